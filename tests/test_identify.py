"""identify: planted faults, written in NumPy and plain Python, are named; faults outside the list are not."""

from __future__ import annotations

import numpy as np
import pytest
from planted_faults import (
    BYTES,
    DROPPING,
    GROUPED,
    SATURATING,
    WRAPPING,
    Array,
    Kernel,
    bfloat16,
    chain,
    clamp,
    exact,
    floors,
    observations,
    operands,
    pairs_of_bytes,
    shuffled,
    split_k,
    step16,
    sticky,
    wrap,
    wrong_stride,
    xor_sum,
)

from fqtsim.hw.spec import Datapath
from fqtsim.identify import (
    explain_mismatch,
    explain_mismatches,
    tell_apart,
)
from fqtsim.identify.change import Problem, outputs
from fqtsim.identify.search import MOST_CAUSES, NONE_OF_THESE, suggestions

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


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_the_first_suggestion(name: str) -> None:
    datapath, kernel = PLANTED[name]
    causes = explain_mismatches(observations(datapath, kernel), datapath)
    assert causes, "nothing found"
    assert causes[0].text.startswith(name), [cause.text for cause in causes]
    assert all(cause.reproduces_all and cause.explained == cause.wrong for cause in causes)


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
