"""Sums that no order of terms can change (S5.3): one exponent per sum, terms as 40-bit integers, added in int64.

The twin of ref/exact_sum.py. Any set of axes is brought to the shape (P, A, M, B), of which A and B are summed.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from fqtsim.kernels.jit import kernel
from fqtsim.kernels.threads import parts, run

MAGNITUDE = 0x7FFFFFFF
NOT_FINITE = 0x7F800000
SHORT_RUN = 32
"""Runs of fewer contiguous terms are summed column by column instead: a vector register must fill."""
BLOCK = 1024
"""Columns summed side by side: their totals, scales and largest patterns stay in the first-level cache."""

# Adding 1.5 * 2**52 rounds |v| < 2**51 to an integer, ties to even, and leaves it in the low bits: rint and the
# conversion to int64 in one addition. v = x * 2**k is exact, so a fused multiply-add could not change it.
ROUNDER = np.float64(1.5 * 2.0**52)
ROUNDER_BITS = int(np.array(ROUNDER).view(np.int64)[()])


@kernel
def magnitude(bits: Any) -> Any:
    """Return the magnitude pattern of an int32 view of a float32 number."""
    return bits & np.int32(MAGNITUDE)


@kernel
def term(x: Any, scale: Any) -> Any:
    """Return rint(x * scale) as int64, scale a power of two."""
    return np.float64(np.float64(x) * scale + ROUNDER).view(np.int64) - ROUNDER_BITS


@kernel
def largest(bits: Any) -> Any:
    """Return the largest magnitude pattern of the int32 views of float32 numbers."""
    top = np.int32(0)
    for i in range(bits.size):
        top = max(top, magnitude(bits[i]))
    return top


@kernel
def scaled_sum(x: Any, scale: Any) -> Any:
    """Return the int64 sum of the terms of x."""
    total = np.int64(0)
    for i in range(x.size):
        total += term(x[i], scale)
    return total


@kernel
def power(exponent: Any) -> Any:
    """Return 2**exponent, -1022..1023, as float64."""
    return np.int64((exponent + 1023) << 52).view(np.float64)


@kernel
def exponent(top: Any) -> Any:
    """Return e of S5.3: every |x| of the sum is below 2**e."""
    return max(np.int64(1), np.int64(top) >> 23) - 126


@kernel
def value(top: Any, total: Any, shift: Any) -> Any:
    """Return the sum that the integer `total` stands for; NaN where a term was not finite."""
    return np.float64(total) * power(exponent(top) - shift) if top < NOT_FINITE else np.nan


@kernel
def _sum_rows(x: Any, bits: Any, shift: Any, first: Any, last: Any, out: Any) -> None:
    """Fill outputs first..last of x (P, A, M, B): output p * M + m."""
    for o in range(first, last):
        p, m = o // x.shape[2], o % x.shape[2]
        top, total = np.int32(0), np.int64(0)
        for a in range(x.shape[1]):
            top = max(top, largest(bits[p, a, m]))
        for a in range(x.shape[1]):
            total += scaled_sum(x[p, a, m], power(shift - exponent(top)))
        out[o] = value(top, total, shift)


@kernel
def _raise_tops(bits: Any, tops: Any) -> None:
    for c in range(bits.size):
        tops[c] = max(tops[c], magnitude(bits[c]))


@kernel
def _add_terms(x: Any, scales: Any, totals: Any) -> None:
    for c in range(x.size):
        totals[c] += term(x[c], scales[c])


@kernel
def _sum_block(x: Any, bits: Any, owner: Any, start: Any, stop: Any, shift: Any, out: Any) -> None:
    """Fill the outputs that own columns start..stop of rows owner.size long, the last row possibly short."""
    width, row, base = stop - start, owner.size, owner[start]
    outputs = owner[stop - 1] - base + 1
    tops, scales, totals = np.zeros(width, np.int32), np.empty(width, np.float64), np.zeros(width, np.int64)
    top, total = np.zeros(outputs, np.int32), np.zeros(outputs, np.int64)
    for i in range(0, x.size, row):
        _raise_tops(bits[i + start : i + stop], tops)
    for c in range(width):
        o = owner[start + c] - base
        top[o] = max(top[o], tops[c])
    for c in range(width):
        scales[c] = power(shift - exponent(top[owner[start + c] - base]))
    for i in range(0, x.size, row):
        _add_terms(x[i + start : i + stop], scales, totals)
    for c in range(width):
        total[owner[start + c] - base] += totals[c]
    for o in range(outputs):
        out[base + o] = value(top[o], total[o], shift)


@kernel
def _sum_columns(x: Any, bits: Any, owner: Any, width: Any, shift: Any, first: Any, last: Any, out: Any) -> None:
    """Fill out (P, M) for blocks first..last of `width` columns of x (P, terms * columns)."""
    blocks = (owner.size + width - 1) // width
    for t in range(first, last):
        p, start = t // blocks, t % blocks * width
        _sum_block(x[p], bits[p], owner, start, min(owner.size, start + width), shift, out[p])


def shift_of(terms: int) -> int:
    """Return the bits of a term in a sum of so many terms, whose total then fits int64."""
    return 40 - max(0, (terms - 1).bit_length() - 22)


def _by_rows(x: Any, shift: int) -> Any:
    """Return the sums of x (P, A, M, B), B long."""
    out, bits = np.empty(x.shape[0] * x.shape[2], np.float64), x.view(np.int32)
    run(lambda i, j: _sum_rows(x, bits, shift, i, j, out), parts(out.size, x.shape[1] * x.shape[3]))
    return out


def _one_long(x: Any, shift: int) -> Any:
    """Return the one sum of all of x, its parts combined in integers."""
    flat = x.reshape(-1)
    bits, ranges = flat.view(np.int32), parts(flat.size)
    top = max(run(lambda i, j: largest(bits[i:j]), ranges))
    if top >= NOT_FINITE:  # whose terms would add up to no int64
        return np.array(np.nan)
    scale = power(shift - exponent(top))
    total = sum(run(lambda i, j: scaled_sum(flat[i:j], scale), ranges))
    return np.array(value(top, total, shift))


def _by_columns(x: Any, shift: int) -> Any:
    """Return the sums of x (P, A, M, B), B short: columns (m, b) side by side, some rows of them if there are few."""
    outer, terms, outputs, inner = x.shape
    columns = outputs * inner
    rows = max(1, min(terms, BLOCK // columns))
    owner = np.tile(np.repeat(np.arange(outputs), inner), rows)
    width = owner.size if rows > 1 else inner * (BLOCK // inner)
    out, flat = np.empty((outer, outputs), np.float64), x.reshape(outer, terms * columns)
    blocks = outer * -(-owner.size // width)
    bits, ranges = flat.view(np.int32), parts(blocks, terms * columns * outer // blocks)
    run(lambda i, j: _sum_columns(flat, bits, owner, width, shift, i, j, out), ranges)
    return out


def _as_four(x: Any, summed: tuple[bool, ...]) -> Any:
    """Return C-ordered x as (P, A, M, B) with A and B summed; copies only where the axes do not come so."""
    sizes: list[int] = []
    axes = [axis for axis in zip(summed, x.shape, strict=True) if axis[1] > 1]
    for is_summed, group in groupby(axes, key=lambda axis: axis[0]):
        if is_summed is not bool(len(sizes) % 2):
            sizes.append(1)
        sizes.append(int(np.prod([size for _, size in group])))
    if len(sizes) <= 2:
        kept, terms = [*sizes, 1, 1][:2]
        return x.reshape(kept, 1, 1, terms)
    if len(sizes) <= 4:
        return x.reshape(*sizes, *[1] * (4 - len(sizes)))
    order = sorted(range(x.ndim), key=lambda axis: summed[axis])
    kept = int(np.prod([size for size, away in zip(x.shape, summed, strict=True) if not away]))
    return np.ascontiguousarray(x.transpose(order)).reshape(kept, 1, 1, -1)


def exact_sum64(x: npt.NDArray[np.float32], axes: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return the float64 sums over `axes` (0..rank-1, distinct); NaN for a sum with a term that is not finite.

    Shapes: the kept axes of x in their order. Source: S5.3.
    """
    # Memory order: the sum does not depend on the order of terms, so a channels-last tensor needs no copy.
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    summed = tuple(axis in axes for axis in order)
    kept = [axis for axis in order if axis not in axes]
    terms = int(np.prod([x.shape[axis] for axis in axes]))
    shape = [x.shape[axis] for axis in kept]
    if x.size == 0:
        result = np.zeros(shape, np.float64)
    else:
        result = _sums(_as_four(np.ascontiguousarray(x.transpose(order)), summed), shift_of(terms)).reshape(shape)
    return result.transpose(np.argsort(kept)) if kept else result


def _sums(x: Any, shift: int) -> Any:
    if x.shape[0] * x.shape[2] == 1:
        return _one_long(x, shift)
    return _by_rows(x, shift) if x.shape[1] == 1 or x.shape[3] >= SHORT_RUN else _by_columns(x, shift)
