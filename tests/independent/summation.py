"""exact_sum (section 5, rule 3) by bits: aligned to the largest exponent, rounded, added, rounded."""

from __future__ import annotations

from collections.abc import Sequence

from .bits import LOW, Number, add, drop, subtract
from .floats import BINARY32, BINARY64, decode, encode, from_integer


def exact_sum64(values: Sequence[float]) -> float:
    """Return the sum of float32 values as a float64. Raises ValueError for NaN or infinity."""
    terms = [decode(value, BINARY32) for value in values]
    # The last place of a number with exponent field f weighs 2**(f - 150): e = f - 126 is 24 places above it.
    top = max((exponent for _, _, exponent in terms), default=BINARY32.lowest) + 24
    places = 40
    while len(values) > 1 << (62 - places):  # more than 2**22 terms: one place less for each doubling
        places -= 1
    total: Number = [LOW]
    for sign, significand, exponent in terms:
        magnitude = drop([*significand, LOW], top - places - exponent, "ties_to_even")
        total = subtract(total, magnitude) if sign else add(total, magnitude)
    return from_integer(total, BINARY64, top - places)


def exact_sum(values: Sequence[float]) -> float:
    """Return the sum rounded to float64 and then to float32."""
    wide = exact_sum64(values)
    sign, significand, exponent = decode(wide, BINARY64)
    return encode(sign, significand, exponent, BINARY32)
