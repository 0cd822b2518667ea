"""Known answers for the independent model: worked by hand, published, or produced by silicon and vendors."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from . import bits, floats, model

EXACT = {"terms": "all", "register": "exact"}


def path(*levels: dict, a: str = "int8", b: str = "int8", zero_point: str = "none") -> dict:
    return {"a": a, "b": b, "zero_point": zero_point, "levels": list(levels)}


def final(register: str, overflow: str, **more: object) -> dict:
    return {"terms": "all", "register": register, "overflow": overflow, **more}


def events(altered: int = 0, out_of_range: int = 0, transient: int = 0) -> dict[str, int]:
    return {"altered": altered, "out_of_range": out_of_range, "transient": transient}


PMADDUBSW = path(
    {"terms": 2, "register": "exact"},
    {"terms": 1, "register": "int16", "overflow": "saturate"},
    {"terms": 2, "register": "exact"},
    final("int32", "wrap"),
    a="uint8",
)


def test_inner_wrap_then_24_bits_is_minus_2040() -> None:
    levels = {"terms": 8, "register": "int16", "overflow": "wrap"}, final("int24", "wrap")
    # 8 * 16129 = 129032 = 2 * 65536 - 2040; it fits 24 bits, so the change is transient.
    assert model.dot([127] * 8, [127] * 8, path(*levels)) == (-2040, events(altered=1, transient=1))


def test_pmaddubsw_pair_saturates_as_published() -> None:
    assert model.dot([255, 255], [127, 127], PMADDUBSW) == (32767, events(altered=1, transient=1))
    assert model.dot([255, 255], [-128, -128], PMADDUBSW)[0] == -32768
    assert model.dot([255, 255, 255], [127, -128, 127], PMADDUBSW) == (-255 + 255 * 127, events())


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        # of -2.5, -1.5, -1.25, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1.25, 1.5, 2.5 (quarters, two places)
        ("ties_to_even", [-2, -2, -1, -1, 0, 0, 0, 0, 0, 1, 1, 2, 2]),
        ("ties_to_odd", [-3, -1, -1, -1, -1, 0, 0, 0, 1, 1, 1, 1, 3]),
        ("ties_to_away", [-3, -2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 3]),
        ("ties_to_zero", [-2, -1, -1, -1, 0, 0, 0, 0, 0, 1, 1, 1, 2]),
        ("ties_to_positive", [-2, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 3]),
        ("ties_to_negative", [-3, -2, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2]),
        ("toward_zero", [-2, -1, -1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2]),
        ("away_from_zero", [-3, -2, -2, -1, -1, -1, 0, 1, 1, 1, 2, 2, 3]),
        ("toward_positive", [-2, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3]),
        ("toward_negative", [-3, -2, -2, -1, -1, -1, 0, 0, 0, 0, 1, 1, 2]),
        ("to_odd", [-3, -1, -1, -1, -1, -1, 0, 1, 1, 1, 1, 1, 3]),
    ],
)
def test_roundings_of_quarters(rounding: str, expected: list[int]) -> None:
    quarters = [-10, -6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6, 10]
    assert model.round_shift(quarters, 2, rounding) == expected
    assert model.round_shift(quarters, 0, rounding) == quarters
    assert model.round_shift([-3, 5], -4, rounding) == [-48, 80]
    # Far beyond the width of the number only its sign and its being zero count.
    tiny = {"away_from_zero": [-1, 0, 1], "toward_positive": [0, 0, 1], "toward_negative": [-1, 0, 0]}
    expected_tiny = [-1, 0, 1] if rounding == "to_odd" else tiny.get(rounding, [0, 0, 0])
    assert model.round_shift([-5, 0, 5], 40, rounding) == expected_tiny


def test_five_shifted_by_two_as_in_the_specification() -> None:
    assert model.round_shift(-5, 2, "toward_negative") == [-2]
    assert model.round_shift(-5, 2, "toward_zero") == [-1]


def test_stochastic_counts_are_the_fraction() -> None:
    ups = [model.round_shift(-5, 2, "stochastic", r, 4)[0] for r in range(16)]
    assert ups == [-1] * 12 + [-2] * 4  # -1.25: up with probability 3/4, for the smallest r
    assert [model.stochastic_round(-1.25, r, 4) for r in range(16)] == ups
    # 0.625 seen through two bits is 0.5.
    assert [model.round_shift(5, 3, "stochastic", r, 2)[0] for r in range(4)] == [1, 1, 0, 0]
    assert [model.stochastic_round(-1e-30, r, 3) for r in range(8)] == [0] * 7 + [-1]
    assert model.stochastic_round(7.0, 5, 8) == 7
    assert model.round_shift([4, 5], 2, "stochastic", [3, 0], 2) == [1, 2]


def test_groupings_by_hand() -> None:
    ones, ramp = [1] * 7, [1, 2, 3, 4, 5, 6, 7]

    def emitted(**grouping: int) -> list[int]:
        inner = {**grouping, "register": "int8", "overflow": "saturate"}
        registers = [model.run_register(group, inner, [0], True) for group in model.groups(items, inner)]
        return [bits.unpack(register, 1)[0] for register in registers]

    items = model.products([ramp], [[one] for one in ones], 1, 1, 7)
    assert emitted(terms=3) == [6, 15, 7]
    assert emitted(parts=3) == [6, 15, 7]  # runs of ceil(7 / 3) = 3
    assert emitted(parts=4) == [3, 7, 11, 7]  # runs of 2
    assert emitted(parts=5) == [3, 7, 11, 7]  # still runs of 2: the fifth is empty and omitted
    assert emitted(lanes=3) == [1 + 4 + 7, 2 + 5, 3 + 6]
    assert emitted(lanes=9) == [1, 2, 3, 4, 5, 6, 7, 0, 0]
    assert model.groups(items, {"terms": "all"}) == [items]


def test_exact_sum_is_formed_before_the_register() -> None:
    # int4 saturating: 7 + 20 - 25: 20 is not narrowed first; 7, then 7 (27), then -8 (7 - 25 = -18).
    assert model.dot([4, -5], [5, 5], path(final("int4", "saturate")), c=7) == (-8, events(1, 0, 1))
    # With symmetric saturation the lowest code is never produced, and is out of range.
    symmetric = path(final("int4", "saturate_symmetric"))
    assert model.dot([-8], [1], symmetric) == (-7, events(1, 1, 0))
    with pytest.raises(ValueError, match="start value"):
        model.dot([1], [1], symmetric, c=-8)


def test_unsigned_registers() -> None:
    assert model.dot([-3], [1], path(final("uint4", "wrap"))) == (13, events(1, 1, 0))
    assert model.dot([-3, 5], [1, 1], path(final("uint4", "wrap"))) == (2, events())
    assert model.dot([-3, 5], [1, 1], path(final("uint4", "saturate"))) == (5, events(1, 0, 1))
    assert model.dot([15, 1], [1, 1], path(final("uint4", "saturate"))) == (15, events(1, 1, 0))


def test_no_terms_gives_c() -> None:
    for inner in ({"terms": 4}, {"parts": 3}, {"lanes": 3}, {"terms": "all"}):
        levels = {**inner, "register": "int8", "overflow": "wrap"}, final("int16", "saturate")
        assert model.gemm([[], []], [], path(*levels), c=[[1, -2], [3, 4]]) == ([[1, -2], [3, 4]], events())


def test_dropped_bits_count_and_are_no_event() -> None:
    inner = {"terms": 2, "register": "exact", "item": {"drop_bits": 2, "rounding": "ties_to_even"}}
    outer = final("int8", "wrap", item={"drop_bits": 1, "rounding": "toward_zero"})
    # 10/4 -> 2, 6/4 -> 2 (tie, even); -7/4 -> -2: (4, -2) halved toward zero: 2 - 1.
    assert model.dot([10, 6, -7], [1, 1, 1], path(inner, outer)) == (1, events())
    assert model.dropped_bits(path(inner, outer)) == 3


def test_operands_outside_their_format() -> None:
    with pytest.raises(ValueError, match="operand"):
        model.dot([128], [1], path(EXACT))
    assert model.dot([-255], [255], path(EXACT, zero_point="before_multiply"))[0] == -65025
    with pytest.raises(ValueError, match="operand"):
        model.dot([-257], [1], path(EXACT, zero_point="before_multiply"))


def test_events_per_output_and_start_values() -> None:
    datapath = path(final("int8", "saturate"))
    codes, seen = model.gemm([[100, 100, -100]], [[1, -1], [1, 1], [1, 1]], datapath, c=[[0, 50]])
    # 100, 127 (200), 27 instead of 100; and 50 - 100 + 100 - 100, untouched.
    assert (codes, seen) == ([[27, -50]], events(1, 0, 1))


def test_zero_point_correction() -> None:
    a, b = [[200, 3, 77]], [[5, 9], [250, 0], [1, 31]]
    codes, _ = model.gemm(a, b, path(EXACT, a="uint8", b="uint8"))
    expected = [[sum((a[0][k] - 100) * (b[k][j] - z) for k in range(3)) for j, z in enumerate((7, 128))]]
    assert model.correct_zero_points(codes, a, b, [100], [7, 128]) == expected
    assert model.correct_zero_points([[3]], [[1]], [[1]], [0], [0], dropped=4) == [[48]]


TFLITE_DOUBLE = [
    {"multiply": "integer"},
    {"shift": 31, "rounding": "ties_to_positive"},
    {"register": "int32", "overflow": "saturate"},
    {"shift": "call", "rounding": "ties_to_away"},
    {"add": "zero_point"},
    {"register": "int8", "overflow": "saturate"},
]
ONE_SHIFT = {"shift": "call", "rounding": "ties_to_positive"}
TFLITE_SINGLE = [{"multiply": "integer"}, ONE_SHIFT, *TFLITE_DOUBLE[4:]]
XNNPACK = [{"multiply": "float32"}, {"round": "ties_to_even"}, *TFLITE_DOUBLE[4:]]


def test_tensorflow_25087() -> None:
    assert model.requantize(7984, TFLITE_DOUBLE, multiplier=1583594044, shift=9)[0] == [12]
    assert model.requantize(7984, TFLITE_SINGLE, multiplier=1583594044, shift=31 + 9)[0] == [11]


def test_tensorflow_102943() -> None:
    """The report's scales, multiplier and shift. TFLite gave -120: the float path, with a float32 scale."""
    of_input, of_filter, of_output = 0.05296124517917633, 0.024093778803944588, 0.11484327912330627
    multiplier, shift = 1527099593, 6
    assert round(Fraction(of_input * of_filter / of_output) * 2 ** (31 + shift)) == multiplier
    scale = float(np.float32(of_input) * np.float32(of_filter) / np.float32(of_output))
    assert floats.product(585.0, scale) == 6.5  # a tie; the scale computed in double gives 6.5000005 instead
    assert model.requantize(585, XNNPACK, scale=scale, zero_point=-126)[0] == [-120]
    for stages, places in ((TFLITE_DOUBLE, shift), (TFLITE_SINGLE, 31 + shift)):
        assert model.requantize(585, stages, multiplier, places, zero_point=-126)[0] == [-119]


def test_smallest_times_smallest_saturates_in_srdhm() -> None:
    codes, seen = model.requantize(-(2**31), TFLITE_DOUBLE[:3], multiplier=-(2**31))
    assert (codes, seen) == ([2**31 - 1], events(1, 1, 0))
    assert model.requantize([1, -3], [{"shift": "call", "rounding": "to_odd"}], shift=[-4, 1])[0] == [16, -1]


def test_random123_known_answers() -> None:
    full = 0xFFFFFFFF
    assert model.philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert model.philox([full] * 4, [full] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    answer = [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    assert model.philox(pi, [0xA4093822, 0x299F31D0]) == answer
    assert model.random_bits(0, 0, 0, 3, 32) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C]
    assert model.random_bits(0, 0, 0, 2, 4) == [0x6, 0xE]
    words = model.philox([1, 515, 9, 0], [0x89ABCDEF, 0x01234567])
    assert model.random_bits(0x0123456789ABCDEF, 515, 9, 8, 32)[4:] == words


def test_exact_sum_by_hand() -> None:
    assert model.exact_sum([1.0, 2.0**-24, 2.0**-24]) == 1.0 + 2.0**-23  # a float32 chain would give 1
    assert model.exact_sum([1.0, 2.0**-24]) == 1.0  # a tie, to even
    assert model.exact_sum([1.0, 2.0**-41]) == 1.0
    assert model.exact_sum64([1.0, 2.0**-39]) == 1.0 + 2.0**-39  # e = 1: places down to 2**-39
    assert model.exact_sum64([1.0, 2.0**-40]) == 1.0  # half a place, to even
    assert model.exact_sum64([1.0, 3 * 2.0**-40]) == 1.0 + 2 * 2.0**-39
    assert model.exact_sum([2.0**-149] * 3) == 3 * 2.0**-149
    assert model.exact_sum([]) == model.exact_sum([0.0, -0.0]) == 0.0
    assert model.exact_sum([3.0e38, 3.0e38]) == float("inf")
    with pytest.raises(ValueError, match="finite"):
        model.exact_sum([float("nan")])
