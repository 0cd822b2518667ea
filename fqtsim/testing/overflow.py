"""Laws of a register: what any function that brings an integer into a format must obey (S4)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from random import Random

from fqtsim.errors import InputError
from fqtsim.testing.formats import as_format
from fqtsim.words import IntFormat, Overflow

EVERY_VALUE_BITS = 10
"""Formats up to this width are checked on every value."""
SAMPLES = 2000


def check_overflow(
    function: Callable[[int], int],
    form: IntFormat | str,
    overflow: Overflow | str,
    largest: int | None = None,
) -> None:
    """Raise AssertionError with a counterexample unless function(value) -> code brings integers into a format.

    form: the register's format; overflow: "wrap", "saturate" or "saturate_symmetric". Values are tried in
    -largest..largest, by default four times the format's span: give the largest magnitude that the function takes.
    The laws: codes within the rails; identity inside them; f(f(x)) = f(x); `wrap` is congruent modulo 2**bits;
    saturation gives the rail that was passed, and so is monotone.

        check_overflow(lambda x: max(-128, min(127, x)), "int8", "saturate")
    """
    form = as_format(form)
    word = _overflow_word(overflow)
    rails = form.rails(word)
    if word is Overflow.SATURATE_SYMMETRIC and not form.signed:
        raise InputError(f"overflow = saturate_symmetric: needs a signed format, not {form}; use saturate")
    reach = 4 << form.bits if largest is None else largest
    held: dict[int, int] = {}
    for value in sorted(_values(form, reach), key=abs):  # the first counterexample is then the smallest
        code = held[value] = operator.index(function(value))
        _check_one(value, code, form, word, rails)
        again = operator.index(function(code))
        if again != code:
            raise AssertionError(f"{word} into {form}: f({value}) = {code}, but f({code}) = {again}: not idempotent")


def _overflow_word(overflow: Overflow | str) -> Overflow:
    try:
        return Overflow(overflow)
    except ValueError:
        raise InputError(f"overflow = {overflow!r}: must be one of {', '.join(Overflow)}") from None


def _values(form: IntFormat, reach: int) -> set[int]:
    """Return the values to try."""
    if form.bits <= EVERY_VALUE_BITS and reach <= 8 << EVERY_VALUE_BITS:
        return set(range(-reach, reach + 1))
    span = 1 << form.bits
    turns = {edge + turn * span for edge in (0, form.minimum, form.maximum) for turn in (-2, -1, 0, 1, 2)}
    powers = {sign * (1 << power) for sign in (-1, 1) for power in range(reach.bit_length())}
    near = {place + beside for place in turns | powers for beside in range(-3, 4)}
    random = Random(0)
    sampled = {random.randint(-reach, reach) for _ in range(SAMPLES)}
    return {value for value in near | sampled if abs(value) <= reach}


def _check_one(value: int, code: int, form: IntFormat, word: Overflow, rails: tuple[int, int]) -> None:
    lowest, highest = rails
    where = f"{word} into {form}: f({value}) = {code}"
    if not lowest <= code <= highest:
        raise AssertionError(f"{where}: outside {lowest}..{highest}")
    if lowest <= value <= highest:
        if code != value:
            raise AssertionError(f"{where}: a code of the format must stay as it is")
    elif word is Overflow.WRAP:
        if (code - value) % (1 << form.bits):
            raise AssertionError(f"{where}: not congruent modulo 2**{form.bits}")
    elif code != (lowest if value < lowest else highest):
        raise AssertionError(f"{where}: must be the rail {lowest if value < lowest else highest}")
