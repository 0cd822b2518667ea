"""Mismatches of convolutions, quantizers, output stages and layer steps: where a code comes from, likely causes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fqtsim
from fqtsim.golden.case import SCHEMA, Array, Case, GoldenSet
from fqtsim.golden.check import CaseResult, Verdict, check
from fqtsim.golden.codes import quantize_cases
from fqtsim.golden.convolution import Convolution
from fqtsim.golden.convolution_causes import outputs
from fqtsim.golden.derivation import Derivation
from fqtsim.golden.kernels import Kernel
from fqtsim.golden.layers import GEOMETRIES, SIDES, conv_case, linear_cases
from fqtsim.golden.make import VERSION, hardware_sha256, make_golden
from fqtsim.golden.mixed import mixed_cases
from fqtsim.kernels import fixed
from fqtsim.words import Rounding, ZeroPoint

HW = "int8_acc16_saturate"
SHAPES = ("plain", "strided", "uneven", "grouped")


class Answers(Kernel):
    """A kernel that is given the case itself, so that it can start from the right outputs."""

    name = "answers"
    can_run_again = False

    def __init__(self, answer: Callable[[Case], Mapping[str, Array]]) -> None:
        self._answer = answer

    def run(self, case: Case, inputs: Mapping[str, Array] | None = None) -> dict[str, Any]:
        return dict(case.expected) | dict(self._answer(case))


def verdict(golden: GoldenSet, answer: Callable[[Case], Mapping[str, Array]]) -> Verdict:
    return check(golden, Answers(answer))


def shown(found: Verdict) -> CaseResult:
    assert found.shown is not None
    return found.shown


def small_convs(hardware: str, names: tuple[str, ...] = SHAPES) -> GoldenSet:
    """A few convolutions of each of the three GEMMs; a set of its own, as make_golden's takes half a minute."""
    described, rng, cases = fqtsim.load_hardware(hardware), np.random.default_rng(3), []
    for gemm, sides in SIDES.items():
        path = described.datapath_for(gemm)
        for name in names:
            inputs = {}
            for side, tensor in zip(("a", "b"), sides, strict=True):
                form = path.multiplier_format(side)
                codes = rng.integers(form.minimum, form.maximum + 1, GEOMETRIES[name].shape(tensor))
                inputs[tensor] = codes.astype(form.storage)
            fill = 11 if path.zero_point is ZeroPoint.AFTER_ACCUMULATE else 0
            cases.append(conv_case(f"{gemm}_{name}", gemm, GEOMETRIES[name], inputs, fill, described))
    return GoldenSet(described, hardware_sha256(described), 3, VERSION, SCHEMA, tuple(cases))


@pytest.fixture(scope="module")
def convs() -> GoldenSet:
    return small_convs(HW)


@pytest.fixture(scope="module")
def layers() -> GoldenSet:
    described = fqtsim.load_hardware("int8_acc32_wrap")
    cases = (*quantize_cases(described, 0), *linear_cases(described, 0))
    return GoldenSet(described, hardware_sha256(described), 0, VERSION, SCHEMA, cases)


def of_kind(golden: GoldenSet, kind: str) -> GoldenSet:
    return replace(golden, cases=tuple(case for case in golden.cases if case.kind == kind))


def changed(edit: Callable[[Convolution], Convolution]) -> Callable[[Case], Mapping[str, Array]]:
    """A kernel that computes another convolution than it should."""

    def answer(case: Case) -> Mapping[str, Array]:
        conv, codes = edit(Convolution.of(case)), np.empty_like(case.expected["codes"])
        for group in range(conv.groups):
            made = outputs(conv, group, fqtsim.load_hardware(HW).datapath_for(case.kind.removeprefix("conv_")))
            assert made is not None
            if case.kind == "conv_wgrad":
                each = len(codes) // conv.groups
                laid = made.reshape(*conv.kernel, -1, each).transpose(3, 2, 0, 1)
                codes[group * each : (group + 1) * each] = laid
            else:
                each = codes.shape[1] // conv.groups
                laid = made.reshape(codes.shape[0], *codes.shape[2:], each).transpose(0, 3, 1, 2)
                codes[:, group * each : (group + 1) * each] = laid
        return {"codes": codes}

    return answer


# --- convolutions ----------------------------------------------------------------------------------------------------


def test_a_lowered_convolution_is_the_one_of_the_set(convs: GoldenSet) -> None:
    assert verdict(convs, changed(lambda conv: conv)).passed


@pytest.mark.parametrize(
    ("kind", "edit", "said"),
    [
        ("fprop", lambda conv: replace(conv, flipped=True), "the kernel is flipped"),
        ("fprop", lambda conv: replace(conv, order=(2, 0, 1)), "k runs in the order (channel, kh, kw)"),
        ("fprop", lambda conv: replace(conv, one_group=True), "groups are ignored"),
        ("fprop", lambda conv: replace(conv, stride=(conv.stride[0] + 1, conv.stride[1] + 1)), "stride is one too"),
        ("dgrad", lambda conv: replace(conv, filled_holes=True), "dH is not dilated by the stride"),
        ("wgrad", lambda conv: replace(conv, padding=(conv.padding[0] + 1, conv.padding[1] + 1)), "padding is one too"),
    ],
)
def test_usual_faults_of_convolutions_are_named(convs: GoldenSet, kind: str, edit: Any, said: str) -> None:
    found = verdict(of_kind(convs, f"conv_{kind}"), changed(edit))
    assert not found.passed
    assert said in found.causes[0]
    explanation = shown(found).explanation
    assert explanation is not None
    assert explanation.code == shown(found).mismatch.expected  # type: ignore[union-attr]
    assert "under the first suggestion" in explanation.why


def test_padding_of_zero_is_named_where_the_zero_point_is_not() -> None:
    golden = of_kind(small_convs("int8_acc32_wrap"), "conv_fprop")
    torch = pytest.importorskip("torch")

    def unpadded_zero(case: Case) -> Mapping[str, Array]:
        known = case.parameters
        x, w = (torch.from_numpy(case.inputs[name].astype(np.float64)) for name in ("x", "w"))
        words = {name: tuple(known[name]) for name in ("stride", "padding", "dilation")}
        return {"codes": torch.nn.functional.conv2d(x, w, **words, groups=known["groups"]).numpy().astype(np.int64)}

    found = verdict(golden, unpadded_zero)
    assert "padding holds 0 and not the zero point's code" in found.causes[0]
    text = str(found)
    assert "kh, kw, channel" in text
    assert " padding " in text
    assert "of the GEMM" in text


def test_a_datapath_fault_of_a_convolution_is_found_through_its_gemm(convs: GoldenSet) -> None:
    def wraps(case: Case) -> Mapping[str, Array]:
        conv = Convolution.of(case)
        assert conv.groups == 1
        a, b = (matrix.astype(np.int64) for matrix in conv.matrices(0))
        rows = (a @ b).astype(np.int16).reshape(conv.outputs[0], *conv.outputs[2:], -1)
        return {"codes": rows.transpose(0, 3, 1, 2)}

    fprop = of_kind(convs, "conv_fprop")
    few = replace(fprop, cases=tuple(case for case in fprop.cases if case.parameters["groups"] == 1))
    found = verdict(few, wraps)
    assert "wraps" in found.causes[0]


# --- quantizers ------------------------------------------------------------------------------------------------------


def quantizing(code: Callable[[Array, Array], Array]) -> Callable[[Case], Mapping[str, Array]]:
    """A kernel that makes the codes of per-tensor cases from the quotient and the zero point in its own way."""

    def answer(case: Case) -> Mapping[str, Array]:
        if case.parameters["quantizer"] != "ptq" or case.parameters["rounding"] != "ties_to_even":
            return {}
        right = case.expected["codes"]
        ends = np.iinfo(right.dtype)
        codes = code(case.inputs["x"] / case.expected["step"], case.expected["zero_point"])
        return {"codes": np.clip(codes, ends.min, ends.max)}

    return answer


def away(quotient: Array) -> Array:
    return fixed.round_float(quotient, Rounding.TIES_TO_AWAY)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (lambda q, z: away(q) + z, "codes are rounded ties_to_away and not ties_to_even"),
        (lambda q, z: np.rint(q + np.float32(z)).astype(np.int64), "the zero point is added before rounding"),
        (lambda q, z: np.floor(q).astype(np.int64) + z, "codes are rounded toward_negative and not ties_to_even"),
    ],
)
def test_usual_faults_of_quantizers_are_named(layers: GoldenSet, code: Any, said: str) -> None:
    tensors = of_kind(layers, "quantize")
    few = replace(tensors, cases=tuple(case for case in tensors.cases if case.parameters["quantizer"] == "ptq"))
    found = verdict(few, quantizing(code))
    assert not found.passed
    assert any(said in cause for cause in found.causes), found.causes
    text = str(found)
    for part in ("x / step, float32", "rounded, ties_to_even", "plus the zero point", "clamped to "):
        assert part in text, text


def test_a_step_rounded_down_is_named_and_a_number_of_no_dimension_is_compared(layers: GoldenSet) -> None:
    def steps(case: Case) -> Mapping[str, Array]:
        step = case.expected["step"]
        return {"step": np.nextafter(step, np.float32(0)) if case.parameters["quantizer"] == "ptq" else step}

    found = verdict(of_kind(layers, "quantize"), steps)
    assert shown(found).mismatch.output == "step"  # type: ignore[union-attr]
    assert "the first wrong output is of the grid" in str(found)


def test_a_code_of_mixed_rows_is_derived_from_its_group() -> None:
    described = fqtsim.load_hardware("int8_acc32_wrap")
    cases = tuple(case for case in mixed_cases(described, 0) if "rank_4" in case.name)
    golden = GoldenSet(described, hardware_sha256(described), 0, VERSION, SCHEMA, cases)
    assert len(cases) == 2  # the second rounds stochastically

    for number, case in enumerate(cases):
        codes = case.expected["codes"].astype(np.int64)
        for index in ((0, 0, 0, 0), (2, 1, 3, 1), (4, 2, 1, 0)):
            wrong = codes.copy()
            wrong[index] += 1
            found = verdict(replace(golden, cases=cases[number : number + 1]), lambda _, wrong=wrong: {"codes": wrong})
            explanation = shown(found).explanation
            assert isinstance(explanation, Derivation)
            values = {name: value for name, value, _ in explanation.steps}
            assert explanation.steps[-1][1] == str(codes[index])
            assert values["step"] == str(case.expected["step"][index[0]])
            assert values["zero point"] == str(case.expected["zero_point"][index[0]])
            assert values[f"factor of row {index[0]}"] == str(case.expected["scale"][index[0]])
            assert values["groups of rows"] == str(len(case.expected["group_sizes"]))
            assert f"group of row {index[0]}" in str(found)


def test_of_mixed_rows_the_grouping_is_looked_at_first() -> None:
    described = fqtsim.load_hardware("int8_acc32_wrap")
    cases = tuple(case for case in mixed_cases(described, 0) if case.name == "quantize_bhq_dominant")
    golden = GoldenSet(described, hardware_sha256(described), 0, VERSION, SCHEMA, cases)
    found = verdict(golden, lambda case: {"codes": case.expected["codes"] * 0, "scale": case.expected["scale"] * 2})
    assert shown(found).mismatch.output == "scale"  # type: ignore[union-attr]
    text = str(found)
    for part in ("integer", "followers: rows", "the first wrong output is of the grid", "expected step "):
        assert part in text, text


# --- output stages and layer steps -----------------------------------------------------------------------------------


def test_every_output_stage_is_shown() -> None:
    golden = make_golden("tflite_single", kinds=("requantize",))

    def one_more(case: Case) -> Mapping[str, Array]:
        arguments = dict(case.parameters) | {"shift": case.parameters["shift"] + 1}
        return {"codes": fqtsim.requantize(case.inputs["acc"], "tflite_single", **arguments).codes}

    found = verdict(golden, one_more)
    assert found.causes[0].startswith("the shift is one too large (reproduces all ")
    assert found.causes[0].endswith(" that differ)")
    for part in ("accumulator", "0: integer multiply by", "1: shift by", "add zero point", "register int8 saturate"):
        assert part in str(found)


def test_a_step_is_explained_by_its_first_wrong_output_in_order_of_computation(layers: GoldenSet) -> None:
    steps = of_kind(layers, "linear_step")

    def wrong(case: Case) -> Mapping[str, Array]:
        return {"y": case.expected["y"] + np.float32(1), "fprop.codes": -case.expected["fprop.codes"].astype(np.int64)}

    found = verdict(steps, wrong)
    assert shown(found).mismatch.output == "fprop.codes"  # type: ignore[union-attr]
    assert found.causes[0].startswith("fprop: the result is negated")


def test_a_wrong_scale_of_a_step_is_named(layers: GoldenSet) -> None:
    from fqtsim.golden.first_wrong import corrected, step_operands, step_sums

    def in_single(case: Case) -> Mapping[str, Array]:
        operands = step_operands(case, layers.hardware, "fprop")
        assert operands is not None
        sums = step_sums(case, "fprop", operands, layers.hardware)
        return {"y": corrected(sums).astype(np.float32) * (sums["steps"][0] * sums["steps"][1])}

    found = verdict(of_kind(layers, "linear_step"), in_single)
    assert any("the scales are multiplied in float32 first" in cause for cause in found.causes), found.causes
    for part in ("accumulator", "zero point of a, sum of b", "their product, float64", "rounded to float32"):
        assert part in str(found)
