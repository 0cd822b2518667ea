"""Where a row's codes stand on the real line: step, zero point and offset (S5.7). The twin of ref/quantize.py.

NumPy float64, one operation per element and call; only the last step rounds to float32, upwards, so that no value of
the row itself is clamped.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


class Grid(NamedTuple):
    """One grid per row: value = step * (code - zero_point), plus offset where there is one."""

    #: float32 (N,), positive.
    step: Float32
    #: int32 (N,), a code.
    zero_point: npt.NDArray[np.int32]
    #: float32 (N,) for float_offset, else None.
    offset: Float32 | None
    #: Lowest and highest code in use.
    low: int
    high: int
    #: (N,): rows without any value but 0, whose codes and zero point are 0 in every format.
    blank: npt.NDArray[np.bool_]


def _up_to_float32(step: Float64) -> Float32:
    nearest = step.astype(np.float32)
    with np.errstate(over="ignore"):  # the neighbour of the largest number, which is not taken
        above = np.nextafter(nearest, np.float32(np.inf))
    return np.where(nearest < step, above, nearest)


def _side(reach: Float64, codes: Float64) -> Float64:
    """Return the step that spans `reach` in so many codes: 0 for an empty side, infinity where codes are missing."""
    return np.where(reach > 0, reach / codes, 0.0)


def aligned(minimum: Float32, maximum: Float32, bits: int, signed: bool) -> Grid:
    """Return the grids on which real zero is a code and every value from minimum to maximum has one."""
    low, high = -np.minimum(minimum, 0).astype(np.float64), np.maximum(maximum, 0).astype(np.float64)
    top = float(2**bits - 1)
    blank = (low == 0) & (high == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = np.where(blank, 0.0, (low * top) / (high + low))
        # A tiny positive side can round `balanced` up to top, which exactly it stays below; so floor is top - 1.
        below = np.where(high > 0, np.minimum(np.floor(balanced), top - 1), np.floor(balanced))
        above = np.ceil(balanced)
        step_below = np.maximum(_side(low, below), _side(high, top - below))
        step_above = np.maximum(_side(low, above), _side(high, top - above))
    step = np.where(blank, 1.0, np.minimum(step_below, step_above))
    zero_point = np.where(step_above < step_below, above, below).astype(np.int32)
    shift = 2 ** (bits - 1) if signed else 0
    zero_point = np.where(blank, 0, zero_point - shift).astype(np.int32)
    return Grid(_up_to_float32(step), zero_point, None, -shift, 2**bits - 1 - shift, blank)


def symmetric(minimum: Float32, maximum: Float32, bits: int, signed: bool) -> Grid:
    """Return the grids with zero point 0; an unsigned one is for rows without negative values."""
    return about_zero(minimum, maximum, 2 ** (bits - 1) - 1 if signed else 2**bits - 1, signed)


def about_zero(minimum: Float32, maximum: Float32, top: int, signed: bool) -> Grid:
    """Return the grids with zero point 0 whose code `top`, or -top if signed, is the largest magnitude of the row."""
    reach = np.maximum(-minimum if signed else maximum, maximum).astype(np.float64)
    blank = reach == 0
    step = np.where(blank, 1.0, reach / float(top))
    return Grid(_up_to_float32(step), np.zeros(step.shape, np.int32), None, -top if signed else 0, top, blank)


def float_offset(minimum: Float32, maximum: Float32, bits: int, signed: bool) -> Grid:
    """Return the paper's grids: the first code stands for the minimum, the last for the maximum."""
    reach = maximum.astype(np.float64) - minimum.astype(np.float64)
    step = np.where(reach == 0, 1.0, reach / float(2**bits - 1))
    shift = 2 ** (bits - 1) if signed else 0
    zero_point = np.full(step.shape, -shift, np.int32)
    blank = np.zeros(step.shape, np.bool_)
    return Grid(_up_to_float32(step), zero_point, minimum, -shift, 2**bits - 1 - shift, blank)


def authors(minimum: Float32, maximum: Float32, bits: int, signed: bool) -> Grid:
    """Return the authors' grids, every operation in float32: zero is the code floor(-low * scale).

    Where that is code 0 the step is NaN, as theirs: the next line of their code divides by it.
    """
    blank = (minimum == 0) & (maximum == 0)
    margin, top = np.float32(1e-8), np.float32(2**bits - 1)
    with np.errstate(over="ignore"):  # a range beyond float32 has scale 0, and so no step
        low = np.minimum(minimum - margin, np.float32(0))
        high = np.maximum(maximum + margin, np.float32(0))
        zero_code = np.where(blank, np.float32(1), np.floor(-low * (top / (high - low))))
    step = np.where(blank, np.float32(1), -low / np.where(zero_code == 0, np.float32(np.nan), zero_code))
    shift = 2 ** (bits - 1) if signed else 0
    zero_point = np.where(blank, 0, zero_code.astype(np.int32) - shift).astype(np.int32)
    return Grid(step, zero_point, None, -shift, 2**bits - 1 - shift, blank)


GRIDS = {"aligned": aligned, "symmetric": symmetric, "float_offset": float_offset, "authors": authors}


def power_of_two(grid: Grid) -> Grid:
    """Return grids with their steps brought up to powers of two, infinity where that is beyond float32.

    Ranges fit, and zero keeps its code.
    """
    mantissa, exponent = np.frexp(grid.step)
    with np.errstate(over="ignore"):
        step = np.ldexp(np.float32(1), exponent - (mantissa == np.float32(0.5))).astype(np.float32)
    return grid._replace(step=step)
