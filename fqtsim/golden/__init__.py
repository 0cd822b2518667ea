"""Golden vectors: sets of cases whose outputs are known to the bit, and the check of a kernel against them."""
