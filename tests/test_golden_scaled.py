"""Golden cases of a scaled linear layer: the right epilogue passes, and each usual shortcut fails."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_sets import golden

from fqtsim.golden.case import Case, kernel_arguments
from fqtsim.golden.check import check
from fqtsim.golden.coverage import total_coverage
from fqtsim.golden.files import load, save
from fqtsim.hw.load import load_hardware

Array = np.ndarray[Any, Any]
KERNELS = Path(__file__).resolve().parents[1] / "examples" / "kernels"
TINY = np.finfo(np.float32).tiny


def layer(finish: Callable[[Array, Array, Array], Array], add: Callable[[Array, Array], Array] = np.add) -> Any:
    """Return a kernel with exact int64 sums and another epilogue."""

    def kernel(x: Array, w: Array, row_step: Array, column_step: Array, bias: Array | None = None) -> Array:
        y = finish(x.astype(np.int64) @ w.T.astype(np.int64), row_step[:, None], column_step[None, :])
        return (y if bias is None else add(y, bias)).astype(np.float32)

    return kernel


def right(acc: Array, row: Array, column: Array) -> Array:
    return (acc.astype(np.float64) * (row.astype(np.float64) * column.astype(np.float64))).astype(np.float32)


def in_bf16(step: Array) -> Array:
    return (step.view(np.uint32) + 0x8000 & 0xFFFF0000).astype(np.uint32).view(np.float32)


def toward_zero(acc: Array, row: Array, column: Array) -> Array:
    exact = acc.astype(np.float64) * (row.astype(np.float64) * column)
    near = exact.astype(np.float32)
    return np.where(np.abs(near) > np.abs(exact), np.nextafter(near, np.float32(0)), near)


def half_away(acc: Array, row: Array, column: Array) -> Array:
    exact = acc.astype(np.float64) * (row.astype(np.float64) * column)
    near = exact.astype(np.float32)
    away = np.nextafter(near, np.where(exact > near, np.inf, -np.inf).astype(np.float32))
    farther = (np.abs(away) > np.abs(near)) & (np.abs(exact - near) == np.abs(away - exact)) & (exact != near)
    return np.where(farther, away, near)


WRONG = {
    "steps multiplied in float32": layer(lambda acc, row, column: acc.astype(np.float32) * (row * column)),
    "row step first, in float32": layer(lambda acc, row, column: acc.astype(np.float32) * row * column),
    "column step first, in float32": layer(lambda acc, row, column: acc.astype(np.float32) * column * row),
    "steps in bf16": layer(lambda acc, row, column: right(acc, in_bf16(row), in_bf16(column))),
    "fused bias": layer(lambda acc, row, column: acc.astype(np.float64) * (row.astype(np.float64) * column),
                        lambda y, bias: y + bias.astype(np.float64)),
    "denormals taken for 0": layer(lambda *a: np.where(np.abs(right(*a)) < TINY, np.float32(0), right(*a))),
    "rounded toward zero": layer(toward_zero),
    "ties away from zero": layer(half_away),
    "bias ignored": layer(right, lambda y, bias: y),
    "one row step": layer(lambda acc, row, column: right(acc, row[:1], column)),
    "steps swapped": layer(lambda acc, row, column: right(acc, np.resize(column, row.shape),
                                                          np.resize(row, column.shape))),
}  # fmt: skip


def passes(kernel: Any, case: Case) -> bool:
    found = kernel(**kernel_arguments(case))
    return np.array_equal(found.view(np.uint32), case.expected["y"].view(np.uint32))


def test_the_right_epilogue_passes_every_case() -> None:
    cases = golden("int8_acc32_wrap", "scaled_linear").cases
    assert [case.name for case in cases if not passes(layer(right), case)] == []
    assert {"bias" in case.inputs for case in cases} == {True, False}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("hardware", ["int8_acc32_wrap", "tflite_double"])
def test_a_shortcut_fails(name: str, hardware: str) -> None:
    assert [case.name for case in golden(hardware, "scaled_linear").cases if not passes(WRONG[name], case)]


def test_coverage_says_what_is_reached() -> None:
    coverage = total_coverage(golden("tflite_double", "scaled_linear").cases)
    for name in ("ties", "inexact", "denormal", "beyond_24_bits", "differs_in_float32", "differs_with_fused_bias"):
        assert coverage[f"epilogue.{name}"] >= 10, name


def test_a_saturating_accumulator_is_scaled_as_it_saturated() -> None:
    made = golden("int8_acc12_saturate", "scaled_linear")
    assert [case.name for case in made.cases if not passes(layer(right), case)]
    late = layer(lambda acc, row, column: right(np.clip(acc, -2048, 2047), row, column))
    assert passes(late, next(case for case in made.cases if case.name.endswith("_denormal")))


def test_dropped_bits_are_restored() -> None:
    case = golden("dropping", "scaled_linear").cases[0]
    exact = case.inputs["x"].astype(np.int64) @ case.inputs["w"].T.astype(np.int64)
    y = right(exact, case.inputs["row_step"][:, None], case.inputs["column_step"][None])
    assert np.corrcoef(y.ravel(), case.expected["y"].ravel())[0, 1] > 0.9
    assert 0.9 < np.polyfit(y.ravel(), case.expected["y"].ravel(), 1)[0] < 1.1


def test_the_example_passes_and_its_bug_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(KERNELS))
    example = importlib.import_module("scaled_linear")
    sys.modules.pop("scaled_linear")
    made = load(save(golden("xnnpack_fp32", "scaled_linear"), tmp_path / "set.safetensors"))
    verdict = check(made, example.scaled_linear)
    assert verdict.passed, str(verdict)
    verdict = check(made, example.scaled_linear_float32)
    assert not verdict.passed
    assert verdict.shown is not None
    assert "float32" in str(verdict)
    assert load_hardware("xnnpack_fp32").output  # the same file that the example's other epilogue is made for
