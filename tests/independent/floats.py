"""IEEE binary32 and binary64 by their fields: decode, encode with nearest-even, multiply, convert.

Values are single (all lanes alike), so that a plane is 0 or -1 and may steer Python's control flow. Exponents
and shift counts say where a wire is connected, not what it carries: they are Python integers.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .bits import HIGH, LOW, Number, constant, drop, multiply, subtract, trim, unpack


class FloatFormat(NamedTuple):
    """Widths of the fields and the struct codes of the number and of its bit pattern."""

    exponent_bits: int
    fraction_bits: int
    code: str
    pattern: str

    @property
    def lowest(self) -> int:
        """The weight's exponent of the last place of subnormal numbers."""
        return 2 - 2 ** (self.exponent_bits - 1) - self.fraction_bits


BINARY32 = FloatFormat(8, 23, "<f", "<I")
BINARY64 = FloatFormat(11, 52, "<d", "<Q")


def decode(x: float, form: FloatFormat) -> tuple[int, Number, int]:
    """Return sign wire, significand (unsigned, no sign plane) and the exponent of its last place."""
    (pattern,) = struct.unpack(form.pattern, struct.pack(form.code, x))
    planes = [HIGH if pattern >> i & 1 else LOW for i in range(1 + form.exponent_bits + form.fraction_bits)]
    fraction, field = planes[: form.fraction_bits], planes[form.fraction_bits : -1]
    if all(field):
        raise ValueError(f"{x}: not a finite number")
    biased = unpack([*field, LOW], 1)[0]
    hidden = HIGH if any(field) else LOW
    return planes[-1], [*fraction, hidden], form.lowest + max(biased, 1) - 1


def encode(sign: int, magnitude: Number, exponent: int, form: FloatFormat) -> float:
    """Return the float nearest to magnitude * 2**exponent: ties to even, subnormals, infinity on overflow."""
    places = len(trim([*magnitude, LOW])) - 1  # the highest wire that is high is number places - 1
    if places == 0:
        return assemble(sign, 0, [LOW] * form.fraction_bits, form)
    last_place = max(exponent + places - 1 - form.fraction_bits, form.lowest)
    rounded = trim(drop([*magnitude[:places], LOW], last_place - exponent, "ties_to_even"))[:-1]
    if len(rounded) > form.fraction_bits + 1:  # 1.11..1 rounded up to 10.00..0
        rounded, last_place = rounded[1:], last_place + 1
    rounded += [LOW] * (form.fraction_bits + 1 - len(rounded))
    biased = last_place - form.lowest + 1 if rounded[-1] else 0
    if biased >= 2**form.exponent_bits - 1:
        return assemble(sign, 2**form.exponent_bits - 1, [LOW] * form.fraction_bits, form)
    return assemble(sign, biased, rounded[:-1], form)


def assemble(sign: int, biased: int, fraction: Number, form: FloatFormat) -> float:
    field = (constant(biased)[:-1] + [LOW] * form.exponent_bits)[: form.exponent_bits]
    (pattern,) = unpack([*fraction, *field, sign, LOW], 1)
    result: float = struct.unpack(form.code, struct.pack(form.pattern, pattern))[0]
    return result


def from_integer(number: Number, form: FloatFormat = BINARY32, exponent: int = 0) -> float:
    """Return the float nearest to number * 2**exponent (a single value)."""
    sign = number[-1]
    magnitude = subtract([LOW], number) if sign else number
    return encode(sign, magnitude, exponent, form)


def product(x: float, y: float, form: FloatFormat = BINARY32) -> float:
    """Return x * y rounded once, of finite numbers: signs by xor, significands by shift and add."""
    (sign_x, x_bits, x_exponent), (sign_y, y_bits, y_exponent) = decode(x, form), decode(y, form)
    magnitude = multiply([*x_bits, LOW], [*y_bits, LOW])
    return encode(sign_x ^ sign_y, magnitude, x_exponent + y_exponent, form)


def to_integer(x: float, rounding: str, form: FloatFormat = BINARY32) -> Number:
    """Return the integer nearest to x in the sense of `rounding`."""
    sign, significand, exponent = decode(x, form)
    magnitude: Number = [*significand, LOW]
    return drop(subtract([LOW], magnitude) if sign else magnitude, -exponent, rounding)
