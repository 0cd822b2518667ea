"""Requantization stages and scales: planted faults are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from planted_faults import (
    ACC,
    DOUBLE,
    MULTIPLIER,
    SHIFT,
    Array,
    bfloat16,
    clamp,
    wrap,
)

import fqtsim
from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.identify import (
    explain_requantization,
    explain_scaling,
)


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
