"""Where a row's codes stand on the real line: step, zero point and offset (S5.7). The twin of ref/quantize.py.

Float64, one operation a symbol; only the last step rounds to float32, upwards, so that no value of the row itself is
clamped. NumPy, but for the form that training uses, whose twenty calls took longer than the ranges of many a tensor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fqtsim.kernels.jit import inner, kernel

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


@inner
def _side(reach: Any, codes: Any) -> Any:
    """Return the step that spans `reach` in so many codes: 0 for an empty side, infinity where codes are missing."""
    if not reach > 0:
        return 0.0
    return reach / codes if codes > 0 else np.inf


@kernel
def _fill_aligned(minimum: Any, maximum: Any, top: float, shift: int, steps: Any, zero_points: Any, blank: Any) -> None:
    for i in range(minimum.size):
        low, high = np.float64(-min(minimum[i], np.float32(0))), np.float64(max(maximum[i], np.float32(0)))
        if low == 0 and high == 0:
            steps[i], zero_points[i], blank[i] = 1.0, 0, True
            continue
        balanced = (low * top) / (high + low)
        below = np.floor(balanced)
        if high > 0:  # a tiny positive side can round `balanced` up to top, which exactly it stays below
            below = min(below, top - 1.0)
        above = np.ceil(balanced)
        step_below = max(_side(low, below), _side(high, top - below))
        step_above = max(_side(low, above), _side(high, top - above))
        steps[i], blank[i] = min(step_below, step_above), False
        zero_points[i] = np.int32(above if step_above < step_below else below) - shift


def aligned(minimum: Float32, maximum: Float32, bits: int, signed: bool) -> Grid:
    """Return the grids on which real zero is a code and every value from minimum to maximum has one."""
    shift, shape = 2 ** (bits - 1) if signed else 0, minimum.shape
    step, zero_point, blank = np.empty(shape, np.float64), np.empty(shape, np.int32), np.empty(shape, np.bool_)
    ends = np.ascontiguousarray(minimum), np.ascontiguousarray(maximum)
    _fill_aligned(*ends, float(2**bits - 1), shift, step, zero_point, blank)
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
