"""LUQ's logarithmic codes, in plain integers and fractions (docs/quantizers.md, Q9).

Chmiel et al., "Accurate Neural Training with 4-bit Matrix Multiplications at Standard Formats" (2112.10769).
"""

from __future__ import annotations

from fractions import Fraction

from fqtsim.ref import binary32
from fqtsim.ref.fixed import round_shift
from fqtsim.ref.quantize import Grid
from fqtsim.words import Rounding


def grid(minimum: float, maximum: float, bits: int) -> Grid:
    """Return the grid whose largest code stands for the largest magnitude."""
    top = 2 ** (2 ** (bits - 1) - 2)
    reach = max(-minimum, maximum)
    return Grid(binary32.upwards(reach / top) if reach > 0 else 1.0, 0, None, -top, top)


def code(x: float, grid: Grid, rand_bits: int, n_bits: int) -> tuple[int, bool]:
    """Return the code of x, 0 or plus or minus a power of two, and whether it was clamped."""
    quotient = Fraction(binary32.divide(x, grid.step))
    size, sign = abs(quotient), -1 if quotient < 0 else 1
    if size > grid.high:
        return sign * grid.high, True
    floor = 0 if size < 1 else 1 << (int(size).bit_length() - 1)
    width = max(floor, 1)
    share = (size - floor) / width
    up = round_shift(share.numerator, share.denominator.bit_length() - 1, Rounding.STOCHASTIC, rand_bits, n_bits)
    return sign * (floor + up * width), False
