"""Requantization stages on one accumulator code, in exact arithmetic (S4)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from fqtsim.ref.fixed import into_register, round_shift
from fqtsim.words import Rounding


def to_float32(value: Fraction) -> Fraction:
    """Return the float32 nearest to value, ties to even. Raises OverflowError beyond the largest float32."""
    if value == 0:
        return Fraction(0)
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, -126) - 23  # weight of the last place; subnormals share the lowest
    unit = Fraction(2) ** exponent
    rounded = round_fraction(value / unit, Rounding.TIES_TO_EVEN) * unit
    if abs(rounded) >= Fraction(2) ** 128:
        raise OverflowError("beyond the largest float32")
    return rounded


def round_fraction(value: Fraction, rounding: Rounding) -> int:
    """Return a rational rounded to an integer by a deterministic word."""
    floor, denominator = value.numerator // value.denominator, value.denominator
    # A ratio whose fraction lies on the same side of one half, as an integer over 4: 0, below, half, above.
    rest = value - floor
    quarter = 0 if rest == 0 else 2 if rest * 2 == 1 else 1 if rest * 2 < 1 else 3
    return round_shift(4 * floor + quarter, 2, rounding) if denominator != 1 else floor


def float32_of_bits(bits: int) -> Fraction:
    """Return the value of a finite float32 bit pattern."""
    return Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])


def requantize(
    code: int,
    stages: Sequence[Any],
    *,
    multiplier: int = 0,
    shift: int = 0,
    scale: Fraction = Fraction(0),
    zero_point: int = 0,
    limited: bool = True,
) -> int | Fraction:
    """Apply the stages to one code. limited=False gives every register unlimited width."""
    value: int | Fraction = code
    for stage in stages:
        if stage.kind == "multiply":
            value = value * multiplier if stage.multiply == "integer" else _float_product(value, scale)
        elif stage.kind == "shift":
            value = round_shift(int(value), shift if stage.shift == "call" else stage.shift, stage.rounding)
        elif stage.kind == "round":
            value = round_fraction(Fraction(value), stage.round)
        elif stage.kind == "add":
            value = value + zero_point
        elif limited:
            value = into_register(int(value), stage.register_format, stage.overflow)
    return value


def _float_product(code: int | Fraction, scale: Fraction) -> Fraction:
    return to_float32(to_float32(Fraction(code)) * scale)
