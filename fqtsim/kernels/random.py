"""Philox4x32-10 random words (S5.5). The twin of ref/random.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fqtsim.kernels.jit import kernel
from fqtsim.kernels.threads import parts, run

# Constants of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), as in Random123's philox.h.
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@njit(nogil=True, inline="always")
def _two_rounds(c: Any, k: Any) -> Any:
    """Return the counter and key, as uint64, after two of the ten rounds."""
    p, q = c[0] * _M0, c[2] * _M1
    c = ((q >> _HALF) ^ c[1] ^ k[0], q & _LOW, (p >> _HALF) ^ c[3] ^ k[1], p & _LOW)
    k = ((k[0] + _W0) & _LOW, (k[1] + _W1) & _LOW)
    p, q = c[0] * _M0, c[2] * _M1
    c = ((q >> _HALF) ^ c[1] ^ k[0], q & _LOW, (p >> _HALF) ^ c[3] ^ k[1], p & _LOW)
    return c, ((k[0] + _W0) & _LOW, (k[1] + _W1) & _LOW)


@njit(nogil=True, inline="always")
def philox(counter: Any, key: Any) -> Any:
    """Return the four words, as uint64, of one counter (four uint64) under one key (two uint64)."""
    # Written out, not a loop: LLVM vectorises the loop over counters only when this body has none (4 times faster).
    c, k = _two_rounds(counter, key)
    c, k = _two_rounds(c, k)
    c, k = _two_rounds(c, k)
    c, k = _two_rounds(c, k)
    return _two_rounds(c, k)[0]


@kernel
def fill_blocks(words: Any, first: Any, last: Any, stream: Any, step: Any, key0: Any, key1: Any) -> None:
    """Fill words[4 * (b - first) ..] with the four words of blocks b in first..last."""
    key = (np.uint64(key0), np.uint64(key1))
    for b in range(last - first):
        w = philox((np.uint64(first + b) & _LOW, np.uint64(stream), np.uint64(step), np.uint64(0)), key)
        words[4 * b], words[4 * b + 1] = np.uint32(w[0]), np.uint32(w[1])
        words[4 * b + 2], words[4 * b + 3] = np.uint32(w[2]), np.uint32(w[3])


def random_words(seed: int, stream: int, step: int, count: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return words 0..count of one stream and step; arguments already checked to fit their fields."""
    blocks = -(-count // 4)
    words = np.empty(4 * blocks, np.uint32)
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32

    def fill(first: int, last: int) -> None:
        fill_blocks(words[4 * first : 4 * last], first, last, stream, step, key0, key1)

    run(fill, parts(blocks, 4))
    return words[:count]
