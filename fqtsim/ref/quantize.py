"""Real values to codes (S5.7): the grid of a row, then one code at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from fqtsim.errors import NO_AUTHORS_STEP, TrainingStopped
from fqtsim.ref import binary32
from fqtsim.ref.stochastic import round_value
from fqtsim.words import Rounding


@dataclass(frozen=True)
class Grid:
    """value = step * (code - zero_point) + offset."""

    step: float
    zero_point: int
    offset: float | None
    low: int
    high: int


def _step(low: float, high: float, zero_point: float, top: float) -> float | None:
    """Return the step that reaches -low with zero_point codes and high with the others; None if a side has no code."""
    sides = [(low, zero_point), (high, top - zero_point)]
    if any(reach > 0 and codes == 0 for reach, codes in sides):
        return None
    return max(reach / codes if reach > 0 else 0.0 for reach, codes in sides)


def aligned(minimum: float, maximum: float, bits: int, signed: bool) -> Grid:
    """Return the grid on which real zero is a code and every value from minimum to maximum has one."""
    top = 2**bits - 1
    shift = 2 ** (bits - 1) if signed else 0
    low, high = -min(minimum, 0.0), max(maximum, 0.0)
    if low == high == 0:
        return Grid(1.0, 0, None, -shift, top - shift)
    balanced = (low * top) / (high + low)
    below, above = math.floor(balanced), math.ceil(balanced)
    if high > 0:  # then balanced < top exactly, though it may have been rounded up to it
        below = min(below, top - 1)
    candidates = [(z, _step(low, high, z, top)) for z in (below, above)]
    zero_point, step = min(((z, s) for z, s in candidates if s is not None), key=lambda pair: pair[1])  # tie: below
    return Grid(binary32.upwards(step), zero_point - shift, None, -shift, top - shift)


def symmetric(minimum: float, maximum: float, bits: int, signed: bool) -> Grid:
    """Return the grid whose zero point is 0; unsigned, the minimum is not negative."""
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    reach = max(-minimum, maximum) if signed else maximum
    step = binary32.upwards(reach / top) if reach > 0 else 1.0
    return Grid(step, 0, None, -top if signed else 0, top)


def float_offset(minimum: float, maximum: float, bits: int, signed: bool) -> Grid:
    """Return the paper's grid: the first code stands for the minimum."""
    shift = 2 ** (bits - 1) if signed else 0
    reach = maximum - minimum
    step = binary32.upwards(reach / (2**bits - 1)) if reach > 0 else 1.0
    return Grid(step, -shift, minimum, -shift, 2**bits - 1 - shift)


def authors(minimum: float, maximum: float, bits: int, signed: bool) -> Grid:
    """Return the authors' grid on which zero is the code floor(-low * scale).

    Raises TrainingStopped where that is code 0: the next line of their code divides by it. Source: docs/quantizers.md.
    """
    top = 2**bits - 1
    shift = 2 ** (bits - 1) if signed else 0
    if minimum == maximum == 0:
        return Grid(1.0, 0, None, -shift, top - shift)
    margin = binary32.nearest(Fraction(1e-8))
    low = min(binary32.subtract(minimum, margin), 0.0)
    high = max(binary32.add(maximum, margin), 0.0)
    span = binary32.subtract(high, low)
    scale = 0.0 if math.isinf(span) else binary32.divide(float(top), span)
    zero_point = math.floor(binary32.multiply(-low, scale))
    if zero_point == 0:
        raise TrainingStopped(NO_AUTHORS_STEP)
    return Grid(binary32.divide(-low, float(zero_point)), zero_point - shift, None, -shift, top - shift)


GRIDS = {"aligned": aligned, "symmetric": symmetric, "float_offset": float_offset, "authors": authors}


def power_of_two(grid: Grid) -> Grid:
    """Return a grid with its step brought up to a power of two; the range fits, and zero keeps its code."""
    mantissa, exponent = math.frexp(grid.step)
    return replace(grid, step=math.ldexp(1.0, exponent - (mantissa == 0.5)))


def quotient(x: float, grid: Grid) -> float:
    """Return the binary32 number of steps from the zero point to x, before rounding to an integer."""
    if grid.offset is None:
        return binary32.divide(x, grid.step)
    steps = (x - grid.offset) / grid.step  # two binary64 operations: the difference may be beyond binary32
    return binary32.nearest(Fraction(steps))


def code(x: float, grid: Grid, rounding: Rounding, rand_bits: int = 0, n_bits: int = 0) -> tuple[int, bool]:
    """Return the code of x, and whether it was clamped: rounded first, then moved by the zero point."""
    exact = round_value(quotient(x, grid), rounding, rand_bits, n_bits) + grid.zero_point
    held = min(max(exact, grid.low), grid.high)
    return held, held != exact


def value(code: int, grid: Grid) -> float:
    """Return the binary32 value that a code stands for."""
    steps = binary32.multiply(float(code - grid.zero_point), grid.step)
    return steps if grid.offset is None else binary32.add(steps, grid.offset)
