"""Sums in floating point: what a kernel gives that leaves the integers, one rounding to nearest even at a time."""

from __future__ import annotations

import numpy as np

from fqtsim.identify.change import Array, Problem
from fqtsim.kernels import fixed

MOST_STEPS = 1 << 17
MOST_ADDITIONS = 1 << 27
"""Beyond these an order of float additions is not tried: it has no shortcut."""
OUT_OF_RANGE = -(1 << 31)
"""What a conversion of infinity or NaN to int32 gives on x86."""

#: Bits of the significand, the leading one included; float32 range unless it is float16.
PRECISION = {"float32": 24, "tf32": 11, "bfloat16": 8, "float16": 11}


def to_float(values: Array, name: str) -> Array:
    """Return float32 numbers, or integers, rounded once to a float format, as float32 (ties to even)."""
    if name == "float16":
        with np.errstate(over="ignore"):
            exact = values if values.dtype.kind == "f" else values.astype(np.float64)
            half: Array = exact.astype(np.float16).astype(np.float32)
        return half
    if name == "float32":
        single: Array = values.astype(np.float32)
        return single
    if values.dtype.kind != "f":
        values = _sticky(values)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    drop = 24 - PRECISION[name]
    bits = bits + ((1 << (drop - 1)) - 1) + ((bits >> np.uint64(drop)) & np.uint64(1))
    cut: Array = ((bits >> np.uint64(drop)) << np.uint64(drop)).astype(np.uint32).view(np.float32)
    return cut


def _sticky(codes: Array) -> Array:
    """Return integers as float32 rounded to odd, so that a second rounding to fewer bits is the only one."""
    magnitude = np.abs(codes.astype(np.int64))
    bits = np.frexp(magnitude.astype(np.float64))[1]
    excess = np.maximum(bits - 24, 0)
    low = magnitude & ((np.int64(1) << excess) - 1)
    kept = ((magnitude >> excess) | (low != 0)) << excess
    odd: Array = (np.sign(codes) * kept).astype(np.float32)
    return odd


def from_float(values: Array) -> Array:
    """Return float32 numbers converted to int64, toward zero; what int32 cannot hold becomes its minimum."""
    fits = np.isfinite(values) & (np.abs(values) < np.float32(2**31))
    return np.where(fits, np.where(fits, values, 0).astype(np.int64), OUT_OF_RANGE)


def rounded_to(codes: Array, name: str) -> Array:
    """Return integers rounded to a float format and converted back; int64, float32's out of int32 range kept."""
    values = to_float(codes, name)
    if np.isfinite(values).all():
        return values.astype(np.float64).astype(np.int64)
    return from_float(values)


def accumulated(problem: Problem, name: str, tile: int) -> Array | None:
    """Return start value and exact sums of `tile` products, added in a float format in order of k.

    None where every sum is exact in that format, so that nothing differs, and where there are too many additions.
    """
    steps = -(-problem.k // tile)
    m, n = problem.shape
    if steps > MOST_STEPS or steps * m * n > MOST_ADDITIONS or not problem.k:
        return None
    reach = fixed.magnitude(problem.a) * fixed.magnitude(problem.b) * problem.k + fixed.magnitude(problem.start)
    if reach <= 1 << PRECISION[name]:
        return None
    a, b = problem.a.astype(np.int64), problem.b.astype(np.int64)
    total = to_float(problem.start, name)
    with np.errstate(invalid="ignore", over="ignore"):
        for k in range(0, problem.k, tile):
            item = a[:, k : k + tile] @ b[k : k + tile] if tile > 1 else a[:, k, None] * b[k]
            # In float32 the sum of two numbers of fewer bits is rounded twice only where that cannot show: 24 bits
            # are at least 2 * 11 + 2. An item wider than the format is rounded first, as when it is converted.
            total = to_float(total + to_float(item, name), name)
    return from_float(total)
