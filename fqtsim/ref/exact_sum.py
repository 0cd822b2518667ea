"""A sum that no order of its terms can change (S5.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

from fqtsim.ref.binary32 import bits_of

_UNLIMITED_TERMS = 1 << 22


def exact_sum64(terms: Iterable[float]) -> float:
    """Return the sum of finite binary32 values as binary64.

    Each term becomes an integer multiple of 2**(e - 40), where 2**e bounds them all; integers add in any order.
    """
    values = list(terms)
    largest = max((bits_of(x) & 0x7FFFFFFF for x in values), default=0)
    exponent = max(1, largest >> 23) - 126
    digits = 40
    while len(values) > _UNLIMITED_TERMS << (40 - digits):
        digits -= 1
    unit = Fraction(2) ** (exponent - digits)
    total = sum(round(Fraction(x) / unit) for x in values)  # Python rounds a tie to even
    return math.ldexp(float(total), exponent - digits)
