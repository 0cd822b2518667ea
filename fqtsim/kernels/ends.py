"""The smallest and largest of integers, and float32 patterns as integers in the numbers' order."""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.kernels.jit import kernel
from fqtsim.kernels.threads import parts, run


@kernel
def ends(codes: Any) -> Any:
    """Return the smallest and largest of flat integers, at least one."""
    low, high = codes[0], codes[0]
    for i in range(codes.size):
        low, high = min(low, codes[i]), max(high, codes[i])
    return low, high


def extremes(codes: Any) -> tuple[int, int]:
    """Return the smallest and largest of integers of 32 or 64 bits, at least one."""
    flat = codes.ravel()
    found = run(lambda first, last: ends(flat[first:last]), parts(flat.size))
    return min(int(low) for low, _ in found), max(int(high) for _, high in found)


@kernel
def key(bits: Any) -> Any:
    """Return the int32 view of a float32 number as an integer in the numbers' order; its own inverse."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


@kernel
def widen(bits: Any, least: Any, greatest: Any) -> Any:
    """Return two keys, widened to hold those of the int32 views of float32 numbers."""
    for i in range(bits.size):
        one = key(bits[i])
        least, greatest = min(least, one), max(greatest, one)
    return least, greatest


LEAST, GREATEST = np.int32(2147483647), np.int32(-2147483648)
"""What `widen` starts from."""


def from_keys(keys: Any) -> tuple[Any, Any]:
    """Return the float32 numbers, zeros as +0, of least and greatest keys (N, 2)."""
    values = (keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(np.float32) + np.float32(0)
    return values[:, 0], values[:, 1]
