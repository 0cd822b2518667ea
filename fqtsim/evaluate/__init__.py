"""Judge a design: which accelerator, which widths, what they cost, and whether a network still trains on them."""
