"""Row ranges, and float32 values to codes, with the random words drawn on the way (S5.5 to S5.7).

The twin of ref/quantize.py. Work goes by blocks of the flat logical tensor that fit the first-level cache: words, and
codes in one loop where int32 and float32 hold everything exactly, else quotients, integers and codes, one simple loop
each. No block depends on another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fqtsim.kernels.ends import GREATEST, LEAST, from_keys, widen
from fqtsim.kernels.grid import Grid
from fqtsim.kernels.jit import inner, kernel
from fqtsim.kernels.random import fill_blocks
from fqtsim.kernels.shift import floor_shift, top_bits
from fqtsim.kernels.threads import parts, run
from fqtsim.words import Rounding

BLOCK = 4096
"""Elements a block; a multiple of 4, so that blocks begin with a fresh counter."""

_SAFE = float(2**20)
"""Quotients are first brought to -2**20..2**20: far outside every format, so the clamp and its count stay the same."""

# Which inexact numbers go up from their floor: (at or above one half, or any fraction; condition).
_ODD, _EVEN, _NOT_NEGATIVE, _NEGATIVE, _ALWAYS, _NEVER = range(6)
_UP = {
    Rounding.TIES_TO_EVEN: (1, _ODD),
    Rounding.TIES_TO_ODD: (1, _EVEN),
    Rounding.TIES_TO_AWAY: (1, _NOT_NEGATIVE),
    Rounding.TIES_TO_ZERO: (1, _NEGATIVE),
    Rounding.TIES_TO_POSITIVE: (1, _ALWAYS),
    Rounding.TIES_TO_NEGATIVE: (1, _NEVER),
    Rounding.TOWARD_ZERO: (0, _NEGATIVE),
    Rounding.AWAY_FROM_ZERO: (0, _NOT_NEGATIVE),
    Rounding.TOWARD_POSITIVE: (0, _ALWAYS),
    Rounding.TOWARD_NEGATIVE: (0, _NEVER),
    Rounding.TO_ODD: (0, _EVEN),
}


class Draw(NamedTuple):
    """Where the random words of one tensor come from; bits is 0 for a deterministic rounding."""

    seed: int
    stream: int
    step: int
    bits: int


@kernel
def _fill_extremes(bits: Any, first: Any, last: Any, out: Any) -> None:
    for i in range(first, last):
        out[i, 0], out[i, 1] = widen(bits[i], LEAST, GREATEST)


def extremes(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return minimum and maximum of each row of x (N, D), zeros as +0; infinite or NaN if any value of the row is."""
    bits = x.view(np.int32)
    keys = np.empty((len(x), 2), np.int32)
    ranges = parts(len(x), x.shape[1], quick=True)
    if len(x) > 1 or x.size < 2 * BLOCK:
        run(lambda i, j: _fill_extremes(bits, i, j, keys), ranges)
    else:
        pieces = np.array(run(lambda i, j: widen(bits[0, i:j], LEAST, GREATEST), parts(x.size, quick=True)), np.int32)
        keys[0] = pieces[:, 0].min(), pieces[:, 1].max()
    return from_keys(keys)


@kernel
def _divide(x: Any, step: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = x[i] / step


@kernel
def _divide_offset(x: Any, step: Any, offset: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = np.float32((np.float64(x[i]) - np.float64(offset)) / np.float64(step))


@kernel
def _round_general(y: Any, nearest: Any, condition: Any, q: Any) -> None:
    for i in range(y.size):
        value = min(max(np.float64(y[i]), -_SAFE), _SAFE)
        floor = np.floor(value)
        fraction = value - floor  # may round up to 1 for a tiny negative value, which changes no comparison below
        f = np.int32(floor)
        met = (
            (condition == _ODD and f & 1 == 1)
            or (condition == _EVEN and f & 1 == 0)
            or (condition == _NOT_NEGATIVE and f >= 0)
            or (condition == _NEGATIVE and f < 0)
            or condition == _ALWAYS
        )
        up = fraction > 0.5 or (fraction == 0.5 and met) if nearest else fraction > 0.0 and met
        q[i] = f + np.int32(up)


@kernel
def _round_stochastic(y: Any, words: Any, n: Any, q: Any) -> None:
    """Round by S5.6 with the top n bits of each word: the integers below stay under 2**53, so float64 holds them."""
    up, down, drop = np.float64(2.0**n), np.float64(2.0**-n), np.uint32(32 - n)
    for i in range(y.size):
        scaled = np.floor(min(max(np.float64(y[i]), -_SAFE), _SAFE) * up)
        q[i] = np.int32(np.floor((scaled + (up - 1.0 - np.float64(words[i] >> drop))) * down))


@kernel
def _store(q: Any, zero_point: Any, low: Any, high: Any, codes: Any) -> Any:
    """Store clamp(q + zero_point) and return how many were clamped."""
    # int32 throughout: Numba adds two of them in int64, which halves the lanes of every line below.
    clamped = np.int32(0)
    for i in range(q.size):
        code = np.int32(q[i] + zero_point)
        held = min(max(code, low), high)
        clamped = np.int32(clamped + np.int32(code != held))
        codes[i] = held
    return clamped


@kernel
def _count_ties(y: Any) -> Any:
    """Return how many lie exactly halfway between two integers: 2 y, which is exact, is one and y is not."""
    ties = np.int32(0)
    for i in range(y.size):
        twice = y[i] + y[i]
        ties = np.int32(ties + np.int32((twice == np.rint(twice)) & (y[i] != np.rint(y[i]))))
    return ties


@kernel
def _round(y: Any, how: Any, words: Any, bits: Any, q: Any) -> None:
    _, nearest, condition, _ = how
    if bits:
        _round_stochastic(y, words, bits, q)
    else:
        _round_general(y, nearest, condition, q)


@kernel
def _codes_even(x: Any, step: Any, zero_point: Any, low: Any, high: Any, codes: Any) -> Any:
    """Store the codes of part of a row, ties to even; return how many were clamped, how many ties."""
    clamped, ties = np.int32(0), np.int32(0)
    for i in range(x.size):
        y = x[i] / step
        nearest = np.rint(y)
        code = np.int32(np.int32(min(max(nearest, np.float32(-_SAFE)), np.float32(_SAFE))) + zero_point)
        held = min(max(code, low), high)
        clamped = np.int32(clamped + np.int32(code != held))
        twice = y + y
        ties = np.int32(ties + np.int32((twice == np.rint(twice)) & (y != nearest)))
        codes[i] = held
    return clamped, ties


@kernel
def _codes_short(
    x: Any, step: Any, words: Any, n: Any, limit: Any, zero_point: Any, low: Any, high: Any, codes: Any
) -> Any:
    """Store the codes of part of a row, rounded as `_round_stochastic` does in int32; return how many were clamped.

    Quotients are brought to -limit..limit with (limit + 1) 2**n < 2**31; products with 2**n and floors are exact.
    """
    up, top, shift, drop = np.float32(2.0**n), np.int32((1 << n) - 1), np.int32(n), np.uint32(32 - n)
    clamped = np.int32(0)
    for i in range(x.size):
        scaled = np.int32(np.floor(min(max(x[i] / step, -limit), limit) * up))
        q = floor_shift(np.int32(scaled + np.int32(top - np.int32(top_bits(words[i], drop)))), shift)
        code = np.int32(q + zero_point)
        held = min(max(code, low), high)
        clamped = np.int32(clamped + np.int32(code != held))
        codes[i] = held
    return clamped


@inner
def _at_once(x: Any, grid: Any, how: Any, words: Any, bits: Any, start: Any, stop: Any, codes: Any) -> Any:
    """Fill codes start..stop in one pass; return how many were clamped, how many ties."""
    steps, zero_points, _, length, low, high = grid
    clamps, ties, i = np.int64(0), np.int64(0), start
    while i < stop:  # the rows, or parts of rows
        row = i // length
        end = min(stop, (row + 1) * length)
        if bits:
            own = words[i - start : end - start]
            clamps += _codes_short(x[i:end], steps[row], own, bits, how[3], zero_points[row], low, high, codes[i:end])
        else:
            clamped, met = _codes_even(x[i:end], steps[row], zero_points[row], low, high, codes[i:end])
            clamps, ties = clamps + clamped, ties + met
        i = end
    return clamps, ties


@inner
def _in_passes(
    x: Any, grid: Any, how: Any, words: Any, bits: Any, start: Any, stop: Any, space: Any, codes: Any
) -> Any:
    """Fill codes start..stop of one block step by step; return how many were clamped, how many ties."""
    steps, zero_points, offsets, length, low, high = grid
    y, q = space
    i = start
    while i < stop:
        row = i // length
        end = min(stop, (row + 1) * length)
        if offsets.size:
            _divide_offset(x[i:end], steps[row], offsets[row], y[i - start :])
        else:
            _divide(x[i:end], steps[row], y[i - start :])
        i = end
    _round(y[: stop - start], how, words, bits, q)
    ties = _count_ties(y[: stop - start]) if how[1] else np.int32(0)
    clamps, i = np.int64(0), start
    while i < stop:
        row = i // length
        end = min(stop, (row + 1) * length)
        clamps += _store(q[i - start : end - start], zero_points[row], low, high, codes[i:end])
        i = end
    return clamps, ties


@kernel
def _quantize(x: Any, grid: Any, how: Any, draw: Any, first: Any, last: Any, codes: Any) -> Any:
    """Fill codes first..last of the flat rows x; return how many were clamped, how many ties. first % 4 == 0.

    grid: step, zero point, offset (or empty) of each row, row length, lowest and highest code.
    how: whether one pass does it, the two terms of the rounding, and to where quotients are brought in int32.
    draw: two halves of the seed, stream, step, bits.
    """
    key0, key1, stream, index, bits = draw
    words, y, q = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    clamps, ties = np.int64(0), np.int64(0)
    for start in range(first, last, BLOCK):
        stop = min(last, start + BLOCK)
        if bits:
            fill_blocks(words, start // 4, (stop + 3) // 4, (stream, index, 0), (key0, key1))
        if how[0]:
            clamped, met = _at_once(x, grid, how, words, bits, start, stop, codes)
        else:
            clamped, met = _in_passes(x, grid, how, words, bits, start, stop, (y, q), codes)
        clamps, ties = clamps + clamped, ties + met
    return clamps, ties


def _limit(grid: Grid, bits: int) -> np.float32:
    """Return a quotient far outside the grid's codes which int32 holds times 2**bits; 0 where there is none."""
    limit = (1 << 30 >> bits) - 1
    # A quotient beyond +-limit then rounds to a code at least as far outside as the nearest one.
    return np.float32(limit if limit > 4 * (max(-grid.low, grid.high) + 1) else 0)


def quantize(
    x: npt.NDArray[np.float32], grid: Grid, rounding: Rounding, draw: Draw, storage: str
) -> tuple[npt.NDArray[np.integer[Any]], int, int]:
    """Return the codes of x (N, D), one grid per row; how many were clamped; how many met a tie.

    A tie is a quotient exactly halfway between two integers under a rounding to nearest: there the word decides.
    Source: S5.6, S5.7.
    """
    codes = np.empty(x.size, storage)
    flat = x.reshape(-1)
    offset = np.empty(0, np.float32) if grid.offset is None else grid.offset
    rows = (grid.step, grid.zero_point, offset, x.shape[1], np.int32(grid.low), np.int32(grid.high))
    limit = _limit(grid, draw.bits)
    at_once = grid.offset is None and (rounding is Rounding.TIES_TO_EVEN or (draw.bits > 0 and limit > 0))
    how = (at_once, *_UP.get(rounding, (0, _NEVER)), limit)
    words = (draw.seed & 0xFFFFFFFF, draw.seed >> 32, draw.stream, draw.step, draw.bits)
    ranges = [(4 * i, min(4 * j, x.size)) for i, j in parts(-(-x.size // 4), 4)]
    counts = run(lambda i, j: _quantize(flat, rows, how, words, i, j, codes), ranges)
    clamps, ties = (sum(int(count[i]) for count in counts) for i in (0, 1))
    return codes.reshape(x.shape), clamps, ties
