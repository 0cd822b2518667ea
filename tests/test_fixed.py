"""Rounding and registers: the definition obeys the laws, and the array twin equals it, code by code."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from every_code import compare_every_code
from hypothesis import example, given
from hypothesis import strategies as st

import fqtsim
from fqtsim.errors import InputError
from fqtsim.kernels import fixed
from fqtsim.ref import fixed as ref
from fqtsim.ref.requantize import round_fraction
from fqtsim.testing import check_overflow, check_rounding, codes, formats
from fqtsim.words import IntFormat, Overflow, Rounding

FIXED = [rounding for rounding in Rounding if rounding is not Rounding.STOCHASTIC]
# x in quarters -> by word, worked by hand from the words of IEEE 754 and S3.
QUARTERS = [-10, -7, -6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6, 7, 10]
TABLE = {
    "ties_to_even": [-2, -2, -2, -1, -1, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2],
    "ties_to_odd": [-3, -2, -1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 1, 2, 3],
    "ties_to_away": [-3, -2, -2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2, 3],
    "ties_to_zero": [-2, -2, -1, -1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2],
    "ties_to_positive": [-2, -2, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3],
    "ties_to_negative": [-3, -2, -2, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 2],
    "toward_zero": [-2, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2],
    "away_from_zero": [-3, -2, -2, -2, -1, -1, -1, 0, 1, 1, 1, 2, 2, 2, 3],
    "toward_positive": [-2, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3],
    "toward_negative": [-3, -2, -2, -2, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2],
    "to_odd": [-3, -1, -1, -1, -1, -1, -1, 0, 1, 1, 1, 1, 1, 1, 3],
}


@pytest.mark.parametrize("rounding", FIXED)
def test_a_table_worked_by_hand(rounding: Rounding) -> None:
    assert [ref.round_shift(code, 2, rounding) for code in QUARTERS] == TABLE[rounding]
    assert fqtsim.round_shift(np.array(QUARTERS), 2, rounding).tolist() == TABLE[rounding]
    assert [round_fraction(Fraction(code, 4), rounding) for code in QUARTERS] == TABLE[rounding]


@pytest.mark.parametrize("rounding", FIXED)
def test_every_word_keeps_its_promises(rounding: Rounding) -> None:
    check_rounding(lambda code, shift: ref.round_shift(code, shift, rounding), rounding)
    check_rounding(lambda code, shift: ref.round_shift(code, shift, rounding), rounding, "int62", range(1, 62, 7))


@pytest.mark.parametrize("n_bits", [1, 3, 8])
def test_stochastic_rounding_has_its_exact_mean(n_bits: int) -> None:
    def rounded(code: int, shift: int, word: int) -> int:
        return ref.round_shift(code, shift, Rounding.STOCHASTIC, word, n_bits)

    check_rounding(rounded, Rounding.STOCHASTIC, "int6", range(12), n_bits)


def test_stochastic_rounding_follows_its_formula() -> None:
    # y = 5/4 with 2 bits: floor(y * 4) = 5; words 0..3 give (5 + 3 - r) >> 2.
    assert [ref.round_shift(5, 2, Rounding.STOCHASTIC, word, 2) for word in range(4)] == [2, 1, 1, 1]
    assert [ref.round_shift(-5, 2, Rounding.STOCHASTIC, word, 2) for word in range(4)] == [-1, -1, -1, -2]
    # One bit sees halves only: 1/4 counts as 0, the documented shortfall.
    assert [ref.round_shift(1, 2, Rounding.STOCHASTIC, word, 1) for word in range(2)] == [0, 0]


@pytest.mark.parametrize("rounding", list(Rounding))
def test_arrays_round_like_the_definition(rounding: Rounding) -> None:
    values = np.arange(-700, 701)
    for n_bits in (1, 5, 32) if rounding is Rounding.STOCHASTIC else (0,):
        words = np.array([((1 << n_bits) - 1) * part // 7 for part in range(8)])[np.abs(values) % 8]
        random = {"rand_bits": words, "n_bits": n_bits} if n_bits else {}
        for shift in (-3, 0, 1, 2, 5, 9, 12):
            expected = [
                ref.round_shift(int(code), shift, rounding, int(word), n_bits)
                for code, word in zip(values, words, strict=True)
            ]
            got = fqtsim.round_shift(values, shift, rounding, **random)
            assert got.dtype == np.int64
            assert got.tolist() == expected, (shift, n_bits)


@given(st.data(), formats(max_bits=62), st.sampled_from(list(Rounding)))
def test_wide_arrays_round_like_the_definition(data: st.DataObject, form: IntFormat, rounding: Rounding) -> None:
    values = data.draw(st.lists(codes(form), min_size=1, max_size=6))
    shifts = data.draw(st.lists(st.integers(-62, 62), min_size=len(values), max_size=len(values)))
    n_bits = data.draw(st.integers(1, 32)) if rounding is Rounding.STOCHASTIC else 0
    words = data.draw(st.lists(st.integers(0, (1 << n_bits) - 1), min_size=len(values), max_size=len(values)))
    expected = [ref.round_shift(*one, rounding, word, n_bits) for *one, word in zip(values, shifts, words, strict=True)]
    random = (np.array(words), n_bits) if n_bits else (None, 0)
    got = fixed.round_shift(np.array(values), np.array(shifts), rounding, *random)
    assert got.tolist() == expected


REGISTERS = ["int2", "int5", "uint5", "int8", "uint16", "int24", "int32", "int62", "uint62"]


@pytest.mark.parametrize(
    ("name", "overflow"),
    [
        (name, word)
        for name in REGISTERS
        for word in Overflow
        if name[0] != "u" or word is not Overflow.SATURATE_SYMMETRIC
    ],
)
def test_registers_keep_their_promises(name: str, overflow: Overflow) -> None:
    form = IntFormat.parse(name)
    check_overflow(lambda value: ref.into_register(value, form, overflow), form, overflow)
    # Wider values than int64 take Python integers, as requantization does.
    kind = object if form.bits > 58 else np.int64
    check_overflow(lambda value: fixed.into_register(np.array([value], kind), form, overflow)[0], form, overflow)


def test_an_exact_register_holds_anything() -> None:
    assert ref.into_register(-(1 << 100), None, None) == -(1 << 100)
    with pytest.raises(InputError, match=r"^register = int8: needs an overflow word; use wrap or saturate$"):
        ref.into_register(1, IntFormat.parse("int8"), None)


def test_every_code_of_narrow_formats() -> None:
    """Codes of up to 4 bits, each rounded by every word into every register of up to 4 bits, from every start."""
    compared = compare_every_code(max_bits=4, drops=range(5))
    print(f"{compared} codes equal")
    assert compared == 345_240  # 56 codes, 45 ways to drop bits, 137 start values of 15 registers


# --- float32 to integer ----------------------------------------------------------------------------------------------

BELOW_HALF = float(np.nextafter(np.float32(0.5), np.float32(0)))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1), st.sampled_from(FIXED))
@example([-BELOW_HALF, BELOW_HALF], Rounding.TIES_TO_AWAY)  # float32 makes -0.49999997 - floor(-0.49999997) a tie
@example([-BELOW_HALF, BELOW_HALF], Rounding.TIES_TO_NEGATIVE)
@example([-1e-45, 1e-45, -1e-9], Rounding.AWAY_FROM_ZERO)
@example([8388607.5, -8388607.5, 4194303.25], Rounding.TIES_TO_EVEN)
@example([3.4e38, -3.4e38], Rounding.TO_ODD)
def test_floats_round_like_fractions(values: list[float], rounding: Rounding) -> None:
    singles = np.array(values, np.float32)
    expected = [round_fraction(Fraction(float(value)), rounding) for value in singles]
    assert fixed.round_float(singles, rounding).tolist() == expected


@pytest.mark.parametrize("rounding", FIXED)
def test_floats_around_every_half(rounding: Rounding) -> None:
    middles = np.array(
        [sign * (whole + half) for sign in (-1, 1) for whole in range(70) for half in (0, 0.5)], np.float32
    )
    values = np.concatenate([middles, np.nextafter(middles, np.float32(-1e9)), np.nextafter(middles, np.float32(1e9))])
    expected = [round_fraction(Fraction(float(value)), rounding) for value in values]
    assert fixed.round_float(values, rounding).tolist() == expected
