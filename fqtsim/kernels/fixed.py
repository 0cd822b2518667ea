"""Arrays of codes: rounding shifts and registers, on int64 or, where 63 bits do not suffice, on Python integers.

NumPy, not Numba: the same expressions serve both. Arrays have at least one dimension, since NumPy turns results of
no dimension into Python integers that do not fit back into an array. Twin of ref/fixed.py by another method: rounding
is adding a bias that depends on sign and parity, then a floor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.hw.lower import rounding_terms
from fqtsim.words import IntFormat, Overflow, Rounding

Codes = np.ndarray[Any, Any]


def widened(codes: Codes, bound: int) -> Codes:
    """Return codes in a type that holds magnitudes up to bound: int64, or object (Python integers)."""
    return codes.astype(np.int64 if bound < 1 << 62 else object)


def magnitude(codes: Codes) -> int:
    """Return the largest magnitude, 0 for an empty array."""
    return max(abs(int(codes.min())), abs(int(codes.max()))) if codes.size else 0


def round_shift(codes: Codes, shift: Codes, rounding: Rounding, rand_bits: Codes | None, n_bits: int) -> Codes:
    """Return codes / 2**shift rounded; shift is an array of codes' shape, a negative one shifts left, exactly."""
    left = int(np.max(-shift, initial=0)) + n_bits
    right = int(np.max(shift, initial=0))
    codes = widened(codes, (magnitude(codes) << max(left, 0)) + (1 << (right + 1)))
    down, up = np.maximum(shift, 0).astype(codes.dtype), np.maximum(-shift, 0).astype(codes.dtype)
    if rounding is Rounding.STOCHASTIC and rand_bits is not None:
        scaled = (codes << n_bits) >> down
        rounded = (scaled + ((1 << n_bits) - 1) - rand_bits.astype(codes.dtype)) >> n_bits
        shifted: Codes = np.where(down > 0, rounded, codes << up)
        return shifted
    one = np.ones_like(codes)
    mask = (one << down) - 1
    half = (mask + 1) >> 1
    base, negative, odd = rounding_terms(half, mask, rounding)
    biased = codes + base + np.where(codes < 0, negative, 0) + ((codes >> down) & 1) * odd
    result: Codes = np.where(down > 0, biased >> down, codes << up)
    return result


def into_register(codes: Codes, register: IntFormat, overflow: Overflow | None) -> Codes:
    """Bring exact integers into a register."""
    low, high = register.rails(overflow)
    if overflow is Overflow.WRAP:
        modulus = 1 << register.bits
        low_bits = codes & (modulus - 1)
        wrapped: Codes = np.where(low_bits > high, low_bits - modulus, low_bits)
        return wrapped
    clamped: Codes = np.minimum(np.maximum(codes, low), high)
    return clamped


def to_float32(codes: Codes) -> Codes:
    """Return integers rounded to float32, ties to even, each rounded once."""
    if codes.dtype != object:
        return codes.astype(np.float32)
    # NumPy would take Python integers through float64 and round twice. Keep 60 bits, the last of them sticky.
    singles = np.zeros(codes.shape, np.float32)
    for place, code in np.ndenumerate(codes):
        excess = max(int(code).bit_length() - 60, 0)
        kept = (code >> excess) | (code & ((1 << excess) - 1) != 0)
        singles[place] = np.ldexp(np.int64(kept).astype(np.float32), excess)
    return singles


def round_float(values: Codes, rounding: Rounding) -> Codes:
    """Return finite float32 values rounded to integers by a deterministic word."""
    floor = np.floor(values)
    # In float64: exact from 1/4 up, and where it rounds, close to 1, it stays above one half.
    rest = values.astype(np.float64) - floor
    # Keep of the fraction what rounding can see: 0, below, at or above one half, as an integer over 4.
    quarter = np.where(rest == 0, 0, np.where(rest < 0.5, 1, np.where(rest == 0.5, 2, 3))).astype(np.int64)
    if magnitude(floor) < 1 << 59:
        integers: Codes = floor.astype(np.int64)
    else:
        integers = np.array([int(value) for value in floor.ravel()], dtype=object).reshape(floor.shape)
    return round_shift(4 * integers + quarter, np.full(values.shape, 2), rounding, None, 0)
