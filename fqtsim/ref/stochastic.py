"""Rounding a real number, not only a shifted code, to an integer (S5.6)."""

from __future__ import annotations

from fractions import Fraction

from fqtsim.ref.fixed import round_shift
from fqtsim.words import Rounding


def round_value(value: float, rounding: Rounding, rand_bits: int = 0, n_bits: int = 0) -> int:
    """Return a finite binary value rounded to an integer.

    Every such value is an integer over a power of two, so this is `round_shift`. For `stochastic` that gives
    (floor(value * 2**n) + 2**n - 1 - r) >> n, with r = rand_bits: up in exactly frac(value) * 2**n of the 2**n cases
    where the fraction has at most n bits.
    """
    exact = Fraction(value)
    return round_shift(exact.numerator, exact.denominator.bit_length() - 1, rounding, rand_bits, n_bits)
