"""identify: planted faults, written here in NumPy and plain Python, are named; faults outside the list are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fqtsim
from fqtsim.cli import main
from fqtsim.errors import InputError
from fqtsim.hw.load import hardware_names, load_hardware, parse_hardware
from fqtsim.hw.spec import Datapath, Hardware
from fqtsim.identify import (
    Observation,
    candidates,
    explain_mismatch,
    explain_mismatches,
    explain_requantization,
    explain_scaling,
    identify,
    identify_requantization,
    tell_apart,
)
from fqtsim.identify.candidates import single_changes
from fqtsim.identify.change import Problem, outputs
from fqtsim.identify.floats import rounded_to, to_float
from fqtsim.identify.search import MOST_CAUSES, NONE_OF_THESE, suggestions

Array = np.ndarray[Any, Any]
Kernel = Callable[[Array, Array, "Array | None"], Array]
FILE = """
schema: 1
name: mine
summary: test
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: none
  levels: [{terms: all, register: int16, overflow: saturate}]
"""
SATURATING = parse_hardware(FILE).datapath
WRAPPING = parse_hardware(FILE.replace("saturate", "wrap").replace("int16", "int32")).datapath
BYTES = parse_hardware(
    FILE.replace("saturate", "wrap").replace("int16", "int32").replace("a: int8", "a: uint8")
).datapath
GROUPED = parse_hardware(FILE.replace("[{", "[{terms: 4, register: exact}, {")).datapath
DROPPING = parse_hardware(
    FILE.replace("{terms: all", "{terms: all, item: {drop_bits: 3, rounding: ties_to_even}")
).datapath
SHAPES = [(5, 70, 6), (4, 33, 7), (3, 300, 3), (7, 5, 2), (6, 64, 6), (19, 130, 18), (4, 8, 4)]


def clamp(value: Array, low: int, high: int) -> Array:
    return np.minimum(np.maximum(value, low), high)


def wrap(value: Array, bits: int) -> Array:
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


def step16(total: Array) -> Array:
    return clamp(total, -32768, 32767)


def chain(a: Array, b: Array, c: Array | None, step: Callable[[Array], Array] = step16, group: int = 1) -> Array:
    """Add products in order of k, `group` at a time, with step() after every addition."""
    total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c.astype(np.int64)
    for k in range(0, a.shape[1], group):
        total = step(total + a[:, k : k + group].astype(np.int64) @ b[k : k + group].astype(np.int64))
    return total


def exact(a: Array, b: Array, c: Array | None) -> Array:
    return chain(a, b, c, lambda total: total)


def operands(datapath: Datapath, shape: tuple[int, int, int], seed: int) -> tuple[Array, Array, Array | None]:
    """Random codes, with rails that push registers over their limits and back, and start values now and then."""
    rng = np.random.default_rng(seed)
    m, k, n = shape
    forms = datapath.multiplier_format("a"), datapath.multiplier_format("b")
    a, b = (rng.integers(f.minimum, f.maximum + 1, size) for f, size in zip(forms, ((m, k), (k, n)), strict=True))
    rails = rng.random(m) < 0.4
    a[rails] = np.where(np.arange(k) < k // 2, forms[0].maximum, forms[0].minimum)
    b[:, rng.random(n) < 0.4] = forms[1].maximum
    b[0, 0], a[0, 0] = forms[1].minimum, forms[0].minimum
    c = rng.integers(-20000, 20000, (m, n)) if seed % 2 else None
    return a, b, c


def observations(datapath: Datapath, kernel: Kernel) -> list[Observation]:
    seen = []
    for seed, shape in enumerate(SHAPES):
        a, b, c = operands(datapath, shape, seed)
        seen.append(Observation(a, b, kernel(a, b, c), c))
    return seen


def shuffled(order: Callable[[int], Any]) -> Kernel:
    return lambda a, b, c: chain(a[:, order(a.shape[1])], b[order(a.shape[1])], c)


def split_k(a: Array, b: Array, c: Array | None) -> Array:
    half = -(-a.shape[1] // 2)
    one, two = chain(a[:, :half], b[:half], None), chain(a[:, half:], b[half:], None)
    start = 0 if c is None else c
    return step16(step16(start + one) + two)


def pairs_of_bytes(a: Array, b: Array, c: Array | None) -> Array:
    total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c
    for k in range(0, a.shape[1], 2):
        total = wrap(total + step16(a[:, k : k + 2].astype(np.int64) @ b[k : k + 2].astype(np.int64)), 32)
    return total


def half_precision(a: Array, b: Array, c: Array | None) -> Array:
    return exact(a, b, c).astype(np.float32).astype(np.int64)


def float_sums(a: Array, b: Array, c: Array | None) -> Array:
    total = (np.zeros((a.shape[0], b.shape[1])) if c is None else c).astype(np.float32)
    for k in range(a.shape[1]):
        total = total + (a[:, k, None] * b[k]).astype(np.float32)
    return total.astype(np.int64)


def wrong_stride(a: Array, b: Array, c: Array | None) -> Array:
    flat, width = a.ravel(), a.shape[1]
    read = [[flat[(i * (width + 1) + k) % flat.size] for k in range(width)] for i in range(a.shape[0])]
    return chain(np.array(read), b, c)


PLANTED: dict[str, tuple[Datapath, Kernel]] = {
    "the accumulator wraps": (SATURATING, lambda a, b, c: wrap(exact(a, b, c), 16)),
    "the accumulator saturates symmetrically": (
        SATURATING, lambda a, b, c: chain(a, b, c, lambda total: clamp(total, -32767, 32767))),
    "the accumulator has 15 bits": (
        SATURATING, lambda a, b, c: chain(a, b, c, lambda total: clamp(total, -16384, 16383))),
    "the accumulator has 20 bits": (
        SATURATING, lambda a, b, c: chain(a, b, c, lambda total: clamp(total, -(1 << 19), (1 << 19) - 1))),
    "the accumulator is unlimited": (SATURATING, exact),
    "overflow is applied once": (SATURATING, lambda a, b, c: step16(exact(a, b, c))),
    "k runs from last to first": (SATURATING, shuffled(lambda k: np.arange(k)[::-1])),
    "k runs in strides of 4": (SATURATING, shuffled(lambda k: [x for s in range(4) for x in range(s, k, 4)])),
    "4 products are summed exactly": (SATURATING, lambda a, b, c: chain(a, b, c, group=4)),
    "8 products are summed at a time": (GROUPED, lambda a, b, c: chain(a, b, c, group=8)),
    "K is split into 2 parts": (SATURATING, split_k),
    "the last k is left out": (WRAPPING, lambda a, b, c: exact(a[:, :-1], b[:-1], c)),
    "the k beyond the last multiple of 16 are left out": (
        WRAPPING, lambda a, b, c: exact(a[:, : a.shape[1] // 16 * 16], b[: a.shape[1] // 16 * 16], c)),
    "a's codes, int8, are read as unsigned": (WRAPPING, lambda a, b, c: exact(a & 255, b, c)),
    "a's codes are read as unsigned and b's as unsigned": (WRAPPING, lambda a, b, c: exact(a & 255, b & 255, c)),
    "the row stride of a is one too large": (SATURATING, wrong_stride),
    "the start value is ignored": (WRAPPING, lambda a, b, c: exact(a, b, None)),
    "the start value is added last": (
        SATURATING, lambda a, b, c: chain(a, b, None) if c is None else step16(chain(a, b, None) + c)),
    "pairs of products saturate at 16 bits": (BYTES, pairs_of_bytes),
    "128 is added to every code of a": (WRAPPING, lambda a, b, c: exact(a + 128, b, c)),
    "the result is rounded to bfloat16": (
        WRAPPING, lambda a, b, c: np.array([[int(bfloat16(int(x))) for x in row] for row in exact(a, b, c)])),
    "the result saturates to int8": (WRAPPING, lambda a, b, c: clamp(exact(a, b, c), -128, 127)),
    "negative results are 0": (WRAPPING, lambda a, b, c: np.maximum(exact(a, b, c), 0)),
    "a sum that overflows once stays at that rail": (SATURATING, lambda a, b, c: sticky(a, b, c)),
    "every second k is left out": (WRAPPING, lambda a, b, c: exact(a[:, ::2], b[::2], c)),
    "7 is added to every output": (WRAPPING, lambda a, b, c: exact(a, b, c) + 7),
    "every tile of 4 columns of the output repeats the first": (
        WRAPPING, lambda a, b, c: exact(a, b, c)[:, np.arange(b.shape[1]) % 4]),
    "the bits dropped at level 0 are rounded toward_negative": (DROPPING, lambda a, b, c: floors(a, b, c)),
}  # fmt: skip


def sticky(a: Array, b: Array, c: Array | None) -> Array:
    total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c.astype(np.int64)
    for i, j in np.ndindex(total.shape):
        for x, y in zip(a[i], b[:, j], strict=True):
            total[i, j] += int(x) * int(y)
            if not -32768 <= total[i, j] <= 32767:
                total[i, j] = -32768 if total[i, j] < 0 else 32767
                break
    return total


def bfloat16(code: int) -> int:
    """Round an integer to 8 significant bits, ties to even, in integers."""
    drop = max(abs(code).bit_length() - 8, 0)
    return (1 if code >= 0 else -1) * (round(abs(code) / (1 << drop)) << drop)


def floors(a: Array, b: Array, c: Array | None) -> Array:
    total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c
    for k in range(a.shape[1]):
        total = step16(total + ((a[:, k, None] * b[k]) >> 3))
    return total


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_the_first_suggestion(name: str) -> None:
    datapath, kernel = PLANTED[name]
    causes = explain_mismatches(observations(datapath, kernel), datapath)
    assert causes, "nothing found"
    assert causes[0].text.startswith(name), [cause.text for cause in causes]
    assert all(cause.reproduces_all and cause.explained == cause.wrong for cause in causes)


def xor_sum(a: Array, b: Array, c: Array | None) -> Array:
    return exact(a, b, c) ^ 1


OUTSIDE: dict[str, Kernel] = {
    "one added to every third output": lambda a, b, c: exact(a, b, c) + (np.arange(b.shape[1]) % 3 == 0),
    "lowest bit flipped": xor_sum,
    "products of two negative codes lost":
        lambda a, b, c: exact(a, b, c) - exact(np.minimum(a, 0), np.minimum(b, 0), None),
    "codes squared": lambda a, b, c: exact(a * a, b, c),
    "every code of -128 read as 5": lambda a, b, c: exact(np.where(a == -128, 5, a), b, c),
    "noise": lambda a, b, c: exact(a, b, c) + np.random.default_rng(1).integers(-1, 2, (a.shape[0], b.shape[1])),
    "the middle k left out": lambda a, b, c: exact(a, b, c) - a[:, [a.shape[1] // 2]] * b[[a.shape[1] // 2]],
    "bias of the wrong column": lambda a, b, c: exact(a, b, None if c is None else c[:, ::-1]) + (c is None),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_fault_outside_the_list_has_no_cause(name: str) -> None:
    causes = explain_mismatches(observations(WRAPPING, OUTSIDE[name]), WRAPPING)
    assert [cause.text for cause in causes] == []
    assert suggestions(causes) == (NONE_OF_THESE,)


def test_pairs_are_tried_where_no_single_change_fits() -> None:
    def kernel(a: Array, b: Array, c: Array | None) -> Array:
        return wrap(exact(a[:, :-1], b[:-1], c), 16)

    causes = explain_mismatches(observations(SATURATING, kernel), SATURATING)
    assert causes[0].count == 2
    assert "accumulator wraps" in causes[0].text
    assert "the last k is left out" in causes[0].text
    assert explain_mismatches(observations(SATURATING, kernel), SATURATING, with_pairs=False) == []


def test_a_pair_holds_where_one_of_its_changes_has_nothing_to_do() -> None:
    """K = 64 and 32 have no remainder to leave out, but the accumulator is another one there too."""

    def kernel(a: Array, b: Array, c: Array | None) -> Array:
        whole = a.shape[1] // 16 * 16
        return exact(a[:, :whole], b[:whole], c)

    causes = explain_mismatches(observations(SATURATING, kernel), SATURATING)
    assert causes[0].text.startswith("the accumulator is unlimited, and the k beyond the last multiple of 16")


def test_equal_outputs_have_no_cause() -> None:
    assert explain_mismatches(observations(SATURATING, chain), SATURATING) == []


def test_a_change_must_reproduce_right_outputs_too() -> None:
    """Half of the rows run through another accumulator: no single datapath gives them all."""
    a, b, _ = operands(SATURATING, (8, 300, 8), 2)
    observed = chain(a, b, None)
    observed[::2] = wrap(exact(a, b, None), 16)[::2]
    wrong = int((observed != chain(a, b, None)).sum())
    assert explain_mismatch(a, b, SATURATING, observed) == []
    # Row 0 from the start is wrong, row 1 right where it must saturate.
    partial = explain_mismatch(a, b, SATURATING, observed, partial=True)
    assert all(not cause.reproduces_all and cause.wrong == wrong for cause in partial)


def test_a_part_of_a_fault_is_named_as_a_part() -> None:
    a, b, _ = operands(WRAPPING, (6, 40, 6), 2)
    observed = exact(a, b, None)
    observed[observed < 0] = 0
    observed[0, 0] += 3
    causes = explain_mismatch(a, b, WRAPPING, observed, partial=True)
    assert causes[0].text.startswith("negative results are 0")
    assert causes[0].explained == causes[0].wrong - 1
    said = suggestions(causes)
    assert said[0] == NONE_OF_THESE
    assert said[1].endswith(
        f"(reproduces {causes[0].explained} of {causes[0].wrong} wrong outputs, so at most a part of it)"
    )


def test_changes_that_cannot_be_told_apart_are_all_listed_with_inputs_that_can() -> None:
    a, b = np.full((1, 3), 127), np.full((3, 1), 127)
    causes = explain_mismatch(a, b, SATURATING, [[3 * 127 * 127]])
    assert {"the accumulator is unlimited", "the accumulator has 24 bits and not 16"} <= {c.text for c in causes}
    assert len(causes) <= MOST_CAUSES
    changes = [cause.change for cause in causes]
    asked = tell_apart(changes, SATURATING)
    assert asked
    for question in asked:
        assert len(question.groups) == len(question.answers) > 1
        c = None if question.c is None else question.c
        problem = Problem(question.a.astype(np.int32), question.b.astype(np.int32), c, SATURATING)
        for group, answer in zip(question.groups, question.answers, strict=True):
            assert all(np.array_equal(outputs(changes[member], problem), answer) for member in group)
        distinct = {answer.tobytes() for answer in question.answers}
        assert len(distinct) == len(question.answers)
        assert "gives" in str(question)


@pytest.mark.parametrize("name", hardware_names())
def test_every_shipped_datapath_has_candidates_of_its_own(name: str) -> None:
    datapath = load_hardware(name).datapath
    singles = single_changes(datapath)
    assert len({change.text for change in singles}) == len(singles) > 300
    every = list(candidates(datapath))
    assert len(every) > len(singles)
    assert {change.count for change in every} == {1, 2}


def test_every_single_change_is_found_again_where_it_shows() -> None:
    """Its own outputs, on several shapes: whatever is listed first gives the same outputs everywhere."""
    for datapath in (SATURATING, GROUPED):
        cases = [operands(datapath, shape, seed) for seed, shape in enumerate(SHAPES[:3])]
        expected = [fqtsim_codes(case, datapath) for case in cases]
        for change in single_changes(datapath)[::19]:
            seen = [outputs(change, Problem(a.astype(np.int32), b.astype(np.int32), c, datapath)) for a, b, c in cases]
            shown = [right if found is None else found for found, right in zip(seen, expected, strict=True)]
            if all(np.array_equal(found, right) for found, right in zip(shown, expected, strict=True)):
                continue
            causes = explain_mismatches(
                [Observation(a, b, found, c) for (a, b, c), found in zip(cases, shown, strict=True)], datapath,
                with_pairs=False,
            )  # fmt: skip
            assert len(causes) == MOST_CAUSES or change.text in {cause.text for cause in causes}
            assert causes


def fqtsim_codes(case: tuple[Array, Array, Array | None], datapath: Datapath) -> Array:
    a, b, c = case
    hardware = parse_hardware(FILE).model_copy(update={"datapath": datapath})
    return np.asarray(fqtsim.gemm(a, b, hardware, c=c).codes)


def test_large_operands_are_sampled_first_and_then_run_in_full() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (300, 900)), rng.integers(-128, 128, (900, 280))
    observed = wrap((a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64), 16)
    causes = explain_mismatch(a, b, SATURATING, observed)
    assert causes[0].text.startswith("the accumulator wraps")
    assert causes[0].outputs == 300 * 280


def test_long_sums_in_float32() -> None:
    a, b = np.full((2, 3000), 127), np.full((3000, 3), 127)
    a[1, ::2] = -128
    b[::3, 1] = 63
    causes = explain_mismatch(a, b, WRAPPING, float_sums(a, b, None))
    assert causes[0].text == "products are added in float32"


@pytest.mark.parametrize(
    "code", [0, 1, 255, 257, 259, 65535, 2**24 + 1, -(2**24) - 3, 2**30 + 2**22, 2**30 + 2**22 + 1]
)
def test_rounding_to_bfloat16_is_a_single_rounding(code: int) -> None:
    assert rounded_to(np.array([code]), "bfloat16").tolist() == [bfloat16(code)]


def test_floats_beyond_their_range() -> None:
    assert rounded_to(np.array([70000, -5]), "float16").tolist() == [-(2**31), -5]
    assert np.isinf(to_float(np.array([70000]), "float16")).all()


@pytest.mark.parametrize(
    ("observed", "text"),
    [
        ([[1]], "observed.shape = (1, 1): must be (2, 2), rows of a by columns of b; reshape it"),
        ([[1.0, 2.0], [3.0, 4.0]], "observed: dtype float64 holds no codes; pass integers"),
    ],
)
def test_observed_codes_are_checked(observed: Any, text: str) -> None:
    with pytest.raises(InputError) as error:
        explain_mismatch([[1], [2]], [[1, 2]], SATURATING, observed)
    assert str(error.value) == text


# --- requantization ---------------------------------------------------------------------------------------------------

DOUBLE = "tflite_double"
RANDOM = np.random.default_rng(3)
ACC = np.r_[RANDOM.integers(-30000, 30000, 400), 7984, -7984, 2**20, -(2**20)]
#: Half of them are 1/2, so that there are ties.
MULTIPLIER = np.r_[np.full(200, 2**30), RANDOM.integers(2**30, 2**31, 200), 1583594044, 1583594044, 2**30, 2**30]
SHIFT = np.r_[RANDOM.integers(6, 12, 400), 9, 9, 8, 8]


def with_output(hardware: str, *edits: tuple[int, dict[str, object]]) -> Hardware:
    described = load_hardware(hardware)
    assert described.output is not None
    stages = list(described.output)
    for place, update in edits:
        stages[place] = stages[place].model_copy(update=update)
    return described.model_copy(update={"output": tuple(stages)})


def test_single_rounding_for_double_rounding() -> None:
    single = fqtsim.requantize(ACC, "tflite_single", MULTIPLIER, SHIFT + 31, zero_point=3).codes
    causes = explain_requantization(ACC, DOUBLE, single, MULTIPLIER, SHIFT, zero_point=3)
    assert causes[0].text == "there is a single rounding, ties_to_positive, and not two"
    double = fqtsim.requantize(ACC, DOUBLE, MULTIPLIER, SHIFT, zero_point=3).codes
    causes = explain_requantization(ACC, "tflite_single", double, MULTIPLIER, SHIFT + 31, zero_point=3)
    assert causes[0].text == "there are two roundings, by 31 bits ties_to_positive and then ties_to_away, and not one"


def requantized(hardware: Hardware | str = DOUBLE, multiplier: Any = MULTIPLIER, less: int = 0, zero: int = 3) -> Array:
    return np.asarray(fqtsim.requantize(ACC, hardware, multiplier, SHIFT - less, zero_point=zero).codes)


STAGES: dict[str, Callable[[], Array]] = {
    "stage 3 (shift) rounds ties_to_positive and not ties_to_away":
        lambda: requantized(with_output(DOUBLE, (3, {"rounding": "ties_to_positive"}))),
    "stage 5 (register int8) does wrap and not saturate":
        lambda: wrap(requantized(with_output(DOUBLE, (5, {"register_word": "int32"}))).astype(np.int64), 8),
    "the zero point is ignored": lambda: requantized(zero=0),
    "the zero point is subtracted": lambda: requantized(zero=-3),
    "the shift is one too small": lambda: requantized(less=1),
    "the multiplier of the first output is taken for every one": lambda: requantized(multiplier=MULTIPLIER[0]),
}  # fmt: skip


@pytest.mark.parametrize("text", STAGES)
def test_a_planted_fault_of_the_stages(text: str) -> None:
    causes = explain_requantization(ACC, DOUBLE, STAGES[text](), MULTIPLIER, SHIFT, zero_point=3)
    assert causes[0].text == text


def test_scale_in_bfloat16_and_a_zero_point_added_too_early() -> None:
    scale = np.random.default_rng(6).random(ACC.size).astype(np.float32) / 1000 + np.float32(1e-4)
    short = np.array([bfloat16(int(np.float64(x) * 2**60)) / 2**60 for x in scale], np.float32)
    observed = fqtsim.requantize(ACC, "xnnpack_fp32", scale=short, zero_point=5).codes
    causes = explain_requantization(ACC, "xnnpack_fp32", observed, scale=scale, zero_point=5)
    assert causes[0].text == "the scale is kept in bfloat16"
    ties = np.arange(-300, 300) * 2 + 1
    half = np.float32(0.5)
    early = clamp(np.rint(ties.astype(np.float32) * half + 5).astype(np.int64), -128, 127)
    causes = explain_requantization(ties, "xnnpack_fp32", early, scale=half, zero_point=5)
    assert "the zero point is added to the float, before rounding" in [cause.text for cause in causes]


def test_two_changes_of_the_stages_and_none_of_them() -> None:
    two = with_output(DOUBLE, (3, {"rounding": "toward_zero"}))
    observed = fqtsim.requantize(ACC, two, MULTIPLIER, SHIFT).codes
    causes = explain_requantization(ACC, DOUBLE, observed, MULTIPLIER, SHIFT, zero_point=3)
    assert causes[0].count == 2
    assert "toward_zero" in causes[0].text
    assert "the zero point is ignored" in causes[0].text
    right = fqtsim.requantize(ACC, DOUBLE, MULTIPLIER, SHIFT, zero_point=3).codes
    assert explain_requantization(ACC, DOUBLE, right, MULTIPLIER, SHIFT, zero_point=3) == []
    assert explain_requantization(ACC, DOUBLE, right ^ 1, MULTIPLIER, SHIFT, zero_point=3) == []
    with pytest.raises(InputError, match=r"^observed.shape = \(3,\): must be \(404,\), that of acc; reshape it$"):
        explain_requantization(ACC, DOUBLE, [1, 2, 3], MULTIPLIER, SHIFT)


def test_the_order_of_scales() -> None:
    rng = np.random.default_rng(7)
    acc = rng.integers(-(2**24), 2**24, (40, 50))
    row, column = rng.random(40).astype(np.float32), rng.random(50).astype(np.float32)
    rule = (acc * (row[:, None].astype(np.float64) * column.astype(np.float64))).astype(np.float32)
    assert explain_scaling(acc, row, column, rule) == []
    kernels = {
        "the row's scale is applied first, in float32": acc.astype(np.float32) * row[:, None] * column,
        "the column's scale is applied first, in float32": acc.astype(np.float32) * column * row[:, None],
        "the scales are multiplied in float32 first": acc.astype(np.float32) * (row[:, None] * column),
    }
    for text, observed in kernels.items():
        assert [cause.text for cause in explain_scaling(acc, row, column, observed)] == [text]
    assert explain_scaling(acc, row, column, rule + np.float32(1)) == []
    with pytest.raises(InputError, match=r"^row.shape = \(3,\): must hold 1 or 40 steps; reshape it$"):
        explain_scaling(acc, row[:3], column, rule)


# --- identify from vectors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int8_acc12_saturate", "int8_acc16_saturate", "x86_avx2_pmaddubsw"])
def test_the_hardware_that_made_vectors_is_found(name: str) -> None:
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 256, (6, 300)), rng.integers(-127, 128, (300, 5))
    b[:, 0] = 127
    found = identify(a, b, fqtsim.gemm(a, b, name).codes)
    assert [text.split()[0] for text in found.hardware] == [name]
    assert found.survivors[0] == found.hardware[0]


def test_hardware_that_vectors_cannot_tell_apart_comes_with_inputs_that_can() -> None:
    a, b = np.array([[1, 2, 3]]), np.array([[4], [5], [6]])
    found = identify(a, b, [[32]], among=["int8_acc16_saturate", "int8_acc24_saturate", "int8_acc32_wrap"])
    assert len(found.hardware) == 3
    assert found.questions
    question = found.questions[0]
    codes = {
        fqtsim.gemm(question.a, question.b, name, c=question.c).codes.tobytes()
        for name in ("int8_acc16_saturate", "int8_acc24_saturate")
    }
    assert len(codes) == 2 or len(found.questions) > 1
    assert "would tell them apart" in str(found)


def test_parameters_are_found_where_no_file_fits() -> None:
    a, b, _ = operands(SATURATING, (6, 200, 6), 2)
    codes = chain(a, b, None, lambda total: clamp(total, -(1 << 17), (1 << 17) - 1))
    found = identify(a, b, codes)
    assert found.hardware == ()
    assert found.parameters[0] == "every product added by itself, accumulator of 18 bits, saturate"


def test_a_changed_file_is_found_where_no_parameters_fit() -> None:
    a, b, _ = operands(SATURATING, (6, 200, 6), 2)
    found = identify(a, b, chain(a[:, ::-1], b[::-1], None), among=["int8_acc16_saturate"])
    assert (found.hardware, found.parameters) == ((), ())
    assert found.changed[0] == "int8_acc16_saturate (fprop), where k runs from last to first"


def test_none_of_these_is_an_answer() -> None:
    a, b, _ = operands(WRAPPING, (6, 50, 6), 2)
    found = identify(a, b, xor_sum(a, b, None))
    assert found.survivors == ()
    assert str(found).startswith("none of these")


def test_identify_refuses_what_fits_no_gemm() -> None:
    with pytest.raises(InputError, match=r"^codes.shape = \(1, 2\): must be \(1, 1\)"):
        identify([[1]], [[1]], [[1, 2]])
    with pytest.raises(InputError, match=r"^a.shape = "):
        identify([1], [[1]], [[1]])


def test_stages_are_identified() -> None:
    codes = fqtsim.requantize(ACC, DOUBLE, MULTIPLIER, SHIFT).codes
    found = identify_requantization(ACC, codes, {"multiplier": MULTIPLIER, "shift": SHIFT})
    assert DOUBLE in found.hardware
    assert "tflite_single" not in found.hardware
    with pytest.raises(InputError, match=r"^no hardware's output stages take these arguments"):
        identify_requantization(ACC, codes, {})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = np.array([[1, 2, 3]]), np.array([[4], [5], [6]])
    path = tmp_path / "vectors.npz"
    np.savez(path, a=a, b=b, codes=[[32]])
    names = ["--among", "int8_acc16_saturate", "--among", "int8_acc24_saturate"]
    assert main(["identify", str(path), *names, "--save", str(tmp_path / "asked")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1. int8_acc16_saturate (fprop, dgrad, wgrad)\n2. int8_acc24_saturate")
    with np.load(tmp_path / "asked" / "inputs_1.npz") as stored:
        assert set(stored.files) >= {"a", "b"}
    a, b, _ = operands(WRAPPING, (6, 50, 6), 2)
    np.savez(path, a=a, b=b, codes=xor_sum(a, b, None))
    assert main(["identify", str(path), *names]) == 1
    assert capsys.readouterr().out.startswith("none of these")


def test_the_command_reads_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "vectors.safetensors"
    save_file({"acc": ACC, "codes": fqtsim.requantize(ACC, DOUBLE, MULTIPLIER, SHIFT).codes,
               "multiplier": MULTIPLIER, "shift": SHIFT}, path)  # fmt: skip
    assert main(["identify", str(path)]) == 0
    assert "tflite_double" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95."])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_file_that_is_none(tmp_path: Path, content: bytes, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"vectors.{suffix}"
    path.write_bytes(content)
    assert main(["identify", str(path)]) == 2
    err = capsys.readouterr().err
    assert "not a readable" in err
    assert "Traceback" not in err


def test_arrays_by_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, a=[[1]], b=[[1]])
    assert main(["identify", str(path)]) == 2
    assert "must be a, b, codes and optionally c" in capsys.readouterr().err


def test_compare_names_causes() -> None:
    a, b, _ = operands(SATURATING, (6, 200, 6), 2)
    found = fqtsim.compare(a, b, "int8_acc16_saturate", wrap(exact(a, b, None), 16))
    assert found.causes[0].startswith("the accumulator wraps")
    assert fqtsim.compare(a, b, "int8_acc16_saturate", chain(a, b, None)).causes == ()
    assert fqtsim.compare(a, b, "int8_acc16_saturate", chain(a, b, None) ^ 1).causes == ()
