"""Shrink a hardware file: the narrowest accumulators and the fewest random bits with which a network still trains."""
