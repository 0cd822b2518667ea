"""The written table of random streams (S5.5): stream = 256 * layer index + port."""

from __future__ import annotations

from fqtsim.errors import InputError

ACTIVATION = 0
WEIGHT = 1
GRAD_FOR_WGRAD = 2
GRAD_FOR_DGRAD = 3
DROPOUT = 4
INIT = 5

# Streams of the run itself: ports of layer 0, which is the root module of every network.
SHUFFLE = 16
CROP = 17
FLIP = 18
# What is recomputed to check a run; nothing that reaches a weight reads these.
CHECK_SAMPLE = 32
CHECK_FREIVALDS = 33
CHECK_TURN = 34


def stream_id(layer_index: int, port: int) -> int:
    """Return the stream number of one port of one layer. Raises InputError where a field would overflow."""
    if not 0 <= port < 256:
        raise InputError(f"port = {port}: must be 0..255; use a port of fqtsim.streams")
    if not 0 <= layer_index < 1 << 24:
        raise InputError(f"layer index = {layer_index}: must be 0..{(1 << 24) - 1}; use a network of fewer modules")
    return 256 * layer_index + port
