"""Golden convolutions, quantizers, requantizations and layer steps against other computations of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from golden_sets import golden

import fqtsim
from fqtsim.golden.case import Case, kernel_arguments
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Hardware

Array = np.ndarray[Any, Any]


def conv_of(case: Case) -> Array:
    """The same outputs from torch's float64 convolution, where no register overflows."""
    tensors = {name: torch.from_numpy(array.astype(np.float64)) for name, array in case.inputs.items()}
    options = {key: case.parameters[key] for key in ("stride", "dilation", "groups")}
    fill, (down, right) = case.parameters["fill"], case.parameters["padding"]
    if case.kind == "conv_fprop":
        padded = torch.nn.functional.pad(tensors["x"], (right, right, down, down), value=fill)
        return torch.nn.functional.conv2d(padded, tensors["w"], **options).numpy()
    assert fill == 0
    if case.kind == "conv_dgrad":
        shape = (case.inputs["dh"].shape[0], case.inputs["w"].shape[1] * options["groups"], *case.parameters["size"])
        return torch.nn.grad.conv2d_input(shape, tensors["w"], tensors["dh"], padding=(down, right), **options).numpy()
    channels = case.inputs["x"].shape[1] // options["groups"]
    shape = (case.inputs["dh"].shape[1], channels, *case.parameters["kernel"])
    return torch.nn.grad.conv2d_weight(tensors["x"], shape, tensors["dh"], padding=(down, right), **options).numpy()


@pytest.mark.parametrize("kind", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
def test_convolutions_equal_those_of_torch(kind: str) -> None:
    """tflite_double subtracts zero points first, so padding is 0; its int32 wraps in the cases that aim at that."""
    cases = [case for case in golden("tflite_double", "conv").cases if case.kind == kind]
    assert len(cases) >= 12
    for case in cases:
        exact = conv_of(case).astype(np.int64)
        assert np.array_equal(exact.astype(np.int32), case.expected["codes"]), case.name
        assert case.events["altered"] == np.count_nonzero(exact != case.expected["codes"])


def test_padding_carries_the_code_of_real_zero() -> None:
    cases = [case for case in golden("int8_acc32_wrap", "conv").cases if case.kind == "conv_fprop"]
    assert sum(case.parameters["fill"] != 0 for case in cases) > 5
    for case in cases:
        assert np.array_equal(conv_of(case), case.expected["codes"]), case.name


def rounded(x: Array, how: str) -> Array:
    return {"ties_to_even": np.rint, "floor": np.floor, "half_up": lambda v: np.floor(v + 0.5),
            "away": lambda v: np.copysign(np.floor(np.abs(v) + 0.5), v)}[how](x)  # fmt: skip


@pytest.mark.parametrize("how", ["ties_to_even", "floor", "half_up", "away"])
def test_quantizers_are_told_apart_by_their_ties(how: str) -> None:
    wrong = []
    for case in golden("int8_acc24_saturate", "quantize").cases:
        if case.parameters["rounding"] != "ties_to_even" or case.parameters["quantizer"] == "bhq":
            continue
        x, step, zero = case.inputs["x"], case.expected["step"], case.expected["zero_point"]
        column = (-1,) + (1,) * (x.ndim - 1) if step.ndim else ()
        codes = rounded(x / step.reshape(column), how) + zero.reshape(column)
        if not np.array_equal(np.clip(codes, 0, 255), case.expected["codes"]):
            wrong.append(case.name)
    assert bool(wrong) == (how != "ties_to_even"), wrong


def test_stochastic_cases_bring_their_random_bits() -> None:
    cases = [case for case in golden("int8_acc24_saturate", "quantize").cases if "rand_bits" in case.inputs]
    cases = [case for case in cases if case.parameters["quantizer"] != "bhq"]  # its rows are mixed first
    assert len(cases) >= 4
    for case in cases:
        arguments = kernel_arguments(case)
        x, step, zero = arguments["x"], case.expected["step"], case.expected["zero_point"]
        column = (-1, 1) if step.ndim else ()
        y = (x / step.reshape(column)).astype(object)
        n, words_ = arguments["random_bits"], arguments["rand_bits"].astype(object)
        codes = [(math.floor(v * 2**n) + 2**n - 1 - r) >> n for v, r in zip(y.ravel(), words_.ravel(), strict=True)]
        found = np.array(codes, float).reshape(x.shape) + zero.reshape(column)
        assert np.array_equal(np.clip(found, 0, 255), case.expected["codes"]), case.name


def stages_changed(key: str, value: object) -> Hardware:
    return load_hardware("tflite_double", {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output.1.rounding", "ties_to_even"),
        ("output.1.rounding", "ties_to_away"),
        ("output.1.rounding", "toward_negative"),
        ("output.3.rounding", "ties_to_even"),
        ("output.3.rounding", "ties_to_positive"),
        ("output.3.rounding", "ties_to_zero"),
        ("output.5.overflow", "wrap"),
        ("output.5.overflow", "saturate_symmetric"),
        ("output.5.register", "int9"),
    ],
)
def test_requantization_is_told_from_its_neighbours(key: str, value: str) -> None:
    wrong, other = 0, stages_changed(key, value)
    for case in golden("tflite_double", "requantize").cases:
        found = fqtsim.requantize(case.inputs["acc"], other, **case.parameters).codes
        wrong += int((found != case.expected["codes"]).sum())
    assert wrong > 3


def test_single_rounding_is_told_from_double() -> None:
    wrong = 0
    for case in golden("tflite_double", "requantize").cases:
        parameters = {**case.parameters, "shift": case.parameters["shift"] + 31}
        found = fqtsim.requantize(case.inputs["acc"], "tflite_single", **parameters).codes
        wrong += int((found != case.expected["codes"]).sum())
    assert wrong > 10
    ends = {case.parameters["zero_point"] for case in golden("tflite_double", "requantize").cases}
    assert {-128, 0, 127} <= ends


def test_float_scales_are_told_from_bf16_and_other_roundings() -> None:
    cases = golden("xnnpack_fp32", "requantize").cases
    narrow = sum(
        int((fqtsim.requantize(case.inputs["acc"], "xnnpack_fp32", scale=torch.tensor(case.parameters["scale"])
             .bfloat16().float(), zero_point=case.parameters["zero_point"]).codes != case.expected["codes"]).sum())
        for case in cases
    )  # fmt: skip
    away = load_hardware("xnnpack_fp32", {"output.1.round": "ties_to_away"})
    other = sum(
        int((fqtsim.requantize(case.inputs["acc"], away, scale=np.float32(case.parameters["scale"]),
             zero_point=case.parameters["zero_point"]).codes != case.expected["codes"]).sum())
        for case in cases
    )  # fmt: skip
    assert narrow > 10
    assert other > 10


def test_a_layer_step_holds_every_port_and_product() -> None:
    made = golden("int8_acc24_saturate", "linear")
    for case in made.cases:
        assert {"y", "dx", "dw", "x.codes", "w.codes", "dh_for_wgrad.codes", "fprop.codes"} <= set(case.expected)
        x, w = case.inputs["x"].astype(np.float64), case.inputs["w"].astype(np.float64)
        assert case.expected["y"].shape == (len(x), len(w))
        if not case.events["altered"]:
            scale = float(case.expected["x.step"]) * 64 + float(case.expected["w.step"]) * 64
            assert np.abs(case.expected["y"] - x @ w.T).max() < scale * x.shape[1]
    assert any(case.events["altered"] for case in made.cases)
