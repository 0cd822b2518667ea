"""Laws of rounding: what any function that divides a code by a power of two must obey (S3, S5.6).

No law computes the answer and compares: each states what the word promises, so that a misread formula cannot hide
on both sides.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from random import Random

from fqtsim.errors import InputError
from fqtsim.testing.formats import as_format, corners
from fqtsim.words import IntFormat, Rounding

EVERY_CODE_BITS = 12
"""Formats up to this width are checked on every code."""
SAMPLES = 2000
MAX_WORD_BITS = 16
"""Random words of up to this width are all tried."""

ODD_FUNCTIONS = frozenset({
    Rounding.TIES_TO_EVEN, Rounding.TIES_TO_ODD, Rounding.TIES_TO_AWAY, Rounding.TIES_TO_ZERO,
    Rounding.TOWARD_ZERO, Rounding.AWAY_FROM_ZERO, Rounding.TO_ODD,
})  # fmt: skip
"""Words that treat both signs alike: f(-x) = -f(x)."""


def check_rounding(
    function: Callable[..., int],
    rounding: Rounding | str,
    form: IntFormat | str = "int10",
    shifts: Iterable[int] = range(7),
    n_bits: int = 4,
) -> None:
    """Raise AssertionError with a counterexample unless function rounds code / 2**shift to an integer by a word.

    function: f(code, shift) -> int; for "stochastic" f(code, shift, rand_bits) -> int with 0 <= rand_bits < 2**n_bits.
    form: the format of the codes that it takes: all of them up to 12 bits, corners and 2000 samples beyond.
    The laws: one of the two neighbours, and an integer stays; monotone; nearest, with the word's own choice at a tie;
    the word's direction; f(-x) = -f(x) where the word promises it; for "stochastic" the mean over **all** random
    words is floor(y * 2**n_bits) / 2**n_bits of y = code / 2**shift, exactly, whichever words round up.

        check_rounding(lambda code, shift: code >> shift, "toward_negative", form="int16")
    """
    form, word = as_format(form), _rounding_word(rounding)
    if word is Rounding.STOCHASTIC and not 1 <= n_bits <= MAX_WORD_BITS:
        raise InputError(f"n_bits = {n_bits}: must be 1..{MAX_WORD_BITS}, since every random word is tried")
    tried = _codes(form)
    for shift in shifts:
        if word is Rounding.STOCHASTIC:
            _check_stochastic(function, tried, shift, n_bits)
        else:
            _check_fixed(function, word, tried, shift)


def _rounding_word(rounding: Rounding | str) -> Rounding:
    try:
        return Rounding(rounding)
    except ValueError:
        raise InputError(f"rounding = {rounding!r}: must be one of {', '.join(Rounding)}") from None


def _codes(form: IntFormat) -> list[int]:
    """Return the codes to try, in rising order."""
    if form.bits <= EVERY_CODE_BITS:
        return list(range(form.minimum, form.maximum + 1))
    random = Random(0)
    sampled = {random.randint(form.minimum, form.maximum) for _ in range(SAMPLES)}
    # Near zero shifts of a few bits meet every fraction.
    near = range(max(form.minimum, -300), 300)
    return sorted({*corners(form), *near, *sampled})


def _check_fixed(function: Callable[..., int], word: Rounding, tried: Sequence[int], shift: int) -> None:
    rounded: dict[int, int] = {}
    for code in sorted(tried, key=abs):  # the first counterexample is then the smallest
        result = rounded[code] = operator.index(function(code, shift))
        broken = _broken_law(word, code, shift, result)
        if broken:
            raise AssertionError(f"{word}: f({code}, {shift}) = {result}, but {_ratio(code, shift)} {broken}")
        if word in ODD_FUNCTIONS and -code in rounded and rounded[-code] != -result:
            mirrored = f"f({-code}, {shift}) = {rounded[-code]}"
            raise AssertionError(f"{word}: f({code}, {shift}) = {result}, but {mirrored}: both signs must agree")
    _check_monotone(f"{word}: ", tried, rounded, shift)


def _check_monotone(where: str, tried: Sequence[int], rounded: dict[int, int], shift: int) -> None:
    for below, above in pairwise(tried):
        if rounded[below] > rounded[above]:
            raise AssertionError(
                f"{where}f({below}, {shift}) = {rounded[below]} > f({above}, {shift}) = {rounded[above]}: not monotone"
            )


def _ratio(code: int, shift: int) -> str:
    exact = Fraction(code, 1 << shift)
    value = str(exact.numerator) if exact.denominator == 1 else f"{float(exact):.17g}"
    return f"{code} / 2**{shift} = {value}"


def _neighbour_law(code: int, shift: int, result: int) -> str:
    unit = 1 << shift
    if code % unit == 0:
        return "" if result * unit == code else "is an integer and must stay"
    low = code // unit
    return "" if result in (low, low + 1) else f"lies between {low} and {low + 1}"


def _broken_law(word: Rounding, code: int, shift: int, result: int) -> str:
    """Return what the word promises and the result does not keep, "" where all is well."""
    unit, low = 1 << shift, code // (1 << shift)
    broken = _neighbour_law(code, shift, result)
    if broken or code % unit == 0:
        return broken
    wanted, which = _choice(word, low)
    if word.name.startswith("TIES"):
        distance = abs(2 * (result * unit - code))
        if distance > unit:
            return f"is nearer to {2 * low + 1 - result}"
        return "" if distance < unit or result == wanted else f"is a tie and goes to the {which} neighbour, {wanted}"
    return "" if result == wanted else f"goes to the {which} neighbour, {wanted}"


def _choice(word: Rounding, low: int) -> tuple[int, str]:
    """Return the neighbour, low or low + 1, that a word prefers (at a tie, if it is a nearest word), and why."""
    pair = (low, low + 1)
    even = next(code for code in pair if code % 2 == 0)
    odd = next(code for code in pair if code % 2)
    small = min(pair, key=abs)
    large = max(pair, key=abs)
    return {
        Rounding.TIES_TO_EVEN: (even, "even"),
        Rounding.TIES_TO_ODD: (odd, "odd"),
        Rounding.TO_ODD: (odd, "odd"),
        Rounding.TIES_TO_AWAY: (large, "larger"),
        Rounding.AWAY_FROM_ZERO: (large, "larger"),
        Rounding.TIES_TO_ZERO: (small, "smaller"),
        Rounding.TOWARD_ZERO: (small, "smaller"),
        Rounding.TIES_TO_POSITIVE: (low + 1, "upper"),
        Rounding.TOWARD_POSITIVE: (low + 1, "upper"),
        Rounding.TIES_TO_NEGATIVE: (low, "lower"),
        Rounding.TOWARD_NEGATIVE: (low, "lower"),
    }[word]


def _check_stochastic(function: Callable[..., int], tried: Sequence[int], shift: int, n_bits: int) -> None:
    words = 1 << n_bits
    totals = dict.fromkeys(tried, 0)
    for word in range(words):
        rounded = {code: operator.index(function(code, shift, word)) for code in tried}
        for code in sorted(tried, key=abs):
            broken = _neighbour_law(code, shift, rounded[code])
            if broken:
                found = f"f({code}, {shift}, {word}) = {rounded[code]}"
                raise AssertionError(f"stochastic: {found}, but {_ratio(code, shift)} {broken}")
            totals[code] += rounded[code]
        _check_monotone(f"stochastic, rand_bits = {word}: ", tried, rounded, shift)
    for code in sorted(tried, key=abs):
        expected = (code << n_bits) >> shift
        if totals[code] != expected:
            raise AssertionError(
                f"stochastic: the mean of f({code}, {shift}, r) over all {words} words r is "
                f"{totals[code]}/{words}; it must be {expected}/{words}"
            )
