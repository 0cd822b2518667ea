"""IEEE 754 binary32 operations, rounded to nearest, ties to even (S5.2), through exact fractions.

Numbers are Python floats that hold a binary32 value. A result beyond the range is an infinity; with infinite or NaN
operands a result is the same in any width, so it is left to Python.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction

LARGEST = float.fromhex("0x1.fffffep+127")
_SMALLEST_EXPONENT = -149  # of the last bit of a subnormal number


def bits_of(x: float) -> int:
    """Return the 32-bit pattern of a binary32 value."""
    return int(struct.unpack("<I", struct.pack("<f", x))[0])


def from_bits(pattern: int) -> float:
    """Return the number that a 32-bit pattern stands for."""
    return float(struct.unpack("<f", struct.pack("<I", pattern))[0])


def _unit(magnitude: Fraction) -> Fraction:
    """Return the distance of neighbouring binary32 numbers around a positive number."""
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    return Fraction(2) ** max(exponent - 23, _SMALLEST_EXPONENT)


def nearest(value: Fraction, sign_of_zero: float = 1.0) -> float:
    """Return the binary32 number nearest to an exact value; a zero takes the sign given."""
    if value == 0:
        return math.copysign(0.0, sign_of_zero)
    unit = _unit(abs(value))
    rounded = round(value / unit) * unit  # Python rounds a tie to even
    if abs(rounded) > LARGEST:
        return math.copysign(math.inf, value)
    return math.copysign(float(rounded), value)


def upwards(value: float) -> float:
    """Return the smallest binary32 number that is not below a binary64 number."""
    exact = Fraction(value)
    if exact == 0:
        return 0.0
    unit = _unit(abs(exact))
    return float(math.ceil(exact / unit) * unit)


def _finite(x: float, y: float) -> bool:
    return math.isfinite(x) and math.isfinite(y)


def add(x: float, y: float) -> float:
    """Return x + y; an exact cancellation is +0."""
    if not _finite(x, y):
        return x + y
    return nearest(Fraction(x) + Fraction(y), math.copysign(1.0, x) if (x, y) == (0, 0) and _alike(x, y) else 1.0)


def subtract(x: float, y: float) -> float:
    """Return x - y."""
    return add(x, -y)


def _alike(x: float, y: float) -> bool:
    return math.copysign(1.0, x) == math.copysign(1.0, y)


def multiply(x: float, y: float) -> float:
    """Return x * y."""
    if not _finite(x, y):
        return x * y
    return nearest(Fraction(x) * Fraction(y), math.copysign(1.0, x) * math.copysign(1.0, y))


def divide(x: float, y: float) -> float:
    """Return x / y, y not 0."""
    if not _finite(x, y):
        return x / y
    return nearest(Fraction(x) / Fraction(y), math.copysign(1.0, x) * math.copysign(1.0, y))


def sqrt(x: float) -> float:
    """Return the square root, x not negative."""
    if x == 0:
        return x
    exact = Fraction(x)
    # An integer root with some 70 bits, then one bit that says whether anything is left of it.
    scaled = exact * Fraction(4) ** 150
    root = math.isqrt(scaled.numerator // scaled.denominator)
    left = Fraction(root) ** 2 != scaled
    return nearest((Fraction(root) + Fraction(int(left), 2)) / Fraction(2) ** 150)


def maximum(x: float, y: float) -> float:
    """Return the larger; a zero is +0 (S5.9)."""
    return max(x, y) + 0.0
