"""Golden convolutions and linear steps that aim at registers: sums are where they should be, and faults there show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from golden_sets import golden

from fqtsim.golden.case import Case
from fqtsim.golden.coverage import total_coverage

Array = np.ndarray[Any, Any]
HARDWARE = "int8_acc12_saturate"
RAILS = (-2048, 2047)


def aimed(kind: str, name: str = HARDWARE) -> list[Case]:
    words = ("_limits", "_transients")
    return [case for case in golden(name, kind).cases if case.name.endswith(words)]


def terms(case: Case, fill: int | None = None) -> Iterator[tuple[Array, Array]]:
    """Yield what each step of k multiplies, in order: codes and weights, broadcast to the outputs' shape.

    Slices of padded tensors, tap by tap; nothing of fqtsim's lowering.
    """
    p = case.parameters
    fill, groups = p["fill"] if fill is None else fill, p["groups"]
    (sh, sw), (ph, pw), (dh, dw) = p["stride"], p["padding"], p["dilation"]
    tensors = {key: value.astype(np.int64) for key, value in case.inputs.items()}
    if case.kind == "conv_dgrad":
        grad, w = tensors["dh"], tensors["w"]
        (height, width), (kh, kw) = p["size"], w.shape[2:]
        # Position o of dh stands at o * stride of a field of fill, its origin moved so that no index is negative.
        off_h, off_w = kh * dh, kw * dw
        field = np.full((*grad.shape[:2], height + ph + off_h + 99, width + pw + off_w + 99), fill)
        field[:, :, off_h : off_h + sh * grad.shape[2] : sh, off_w : off_w + sw * grad.shape[3] : sw] = grad
        each_out, each_in = grad.shape[1] // groups, w.shape[1]
        for y in range(kh):
            for x in range(kw):
                top, left = off_h + ph - y * dh, off_w + pw - x * dw
                seen = field[:, :, top : top + height, left : left + width]
                for co in range(each_out):
                    chosen = [seen[:, g * each_out + co] for g in range(groups) for _ in range(each_in)]
                    weights = [w[g * each_out + co, c, y, x] for g in range(groups) for c in range(each_in)]
                    yield np.stack(chosen, axis=1), np.array(weights)[None, :, None, None]
        return
    x_field = np.pad(tensors["x"], ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=fill)
    if case.kind == "conv_fprop":
        w = tensors["w"]
        each_out, each_in = w.shape[0] // groups, w.shape[1]
        rows = (x_field.shape[2] - dh * (w.shape[2] - 1) - 1) // sh + 1
        cols = (x_field.shape[3] - dw * (w.shape[3] - 1) - 1) // sw + 1
        for y in range(w.shape[2]):
            for x in range(w.shape[3]):
                seen = x_field[:, :, y * dh :: sh, x * dw :: sw][:, :, :rows, :cols]
                for c in range(each_in):
                    chosen = [seen[:, co // each_out * each_in + c] for co in range(w.shape[0])]
                    yield np.stack(chosen, axis=1), w[None, :, c, y, x, None, None]
        return
    grad, (kh, kw) = tensors["dh"], p["kernel"]
    each_out, each_in = grad.shape[1] // groups, x_field.shape[1] // groups
    for n in range(grad.shape[0]):
        for oh in range(grad.shape[2]):
            for ow in range(grad.shape[3]):
                seen = x_field[n, :, oh * sh : oh * sh + dh * kh : dh, ow * sw : ow * sw + dw * kw : dw]
                first = [co // each_out * each_in for co in range(grad.shape[1])]
                yield np.stack([seen[c : c + each_in] for c in first]), grad[n, :, oh, ow, None, None, None]


def sums(case: Case, saturate: bool, fill: int | None = None, rails: tuple[int, int] = RAILS) -> Array:
    """Return the sums, unlimited or saturated after every addition."""
    total: Array = np.zeros(case.expected["codes"].shape, np.int64)
    for codes, weights in terms(case, fill):
        total = total + codes * weights
        total = np.clip(total, *rails) if saturate else total
    return total


def test_every_gemm_and_template_has_both_aims() -> None:
    names = {case.name for case in aimed("conv")}
    for gemm in ("fprop", "dgrad", "wgrad"):
        for template in ("padded", "strided", "grouped"):
            aims = [name for name in names if name.startswith(f"conv_{gemm}_{template}_level")]
            assert aims, (gemm, template)
            assert f"conv_{gemm}_{template}_transients" in names


@pytest.mark.parametrize("gemm", ["fprop", "dgrad", "wgrad"])
def test_convolutions_land_where_they_aim(gemm: str) -> None:
    accumulator = golden(HARDWARE, "conv").hardware.datapath_for(gemm).accumulator
    assert accumulator.register_format is not None
    low, high = accumulator.register_format.rails(accumulator.overflow)
    for case in (case for case in aimed("conv") if case.kind == f"conv_{gemm}"):
        unlimited = sums(case, saturate=False)
        if case.name.endswith("_limits"):
            wanted = [rail + more for rail in (low, high) for more in (-1, 0, 1)]
            assert np.isin(wanted, unlimited).sum() >= 3
            assert {"landed_on_rail", "one_inside", "one_beyond"} <= {k for k, v in case.coverage.items() if v}
        else:
            assert case.events["transient"] >= 3
            assert (unlimited == 0).sum() >= 3
        assert accumulator.overflow == "saturate"
        assert np.array_equal(sums(case, saturate=True, rails=(low, high)), case.expected["codes"]), case.name


def test_padding_with_0_a_rail_one_too_low_and_a_late_clamp_show() -> None:
    cases = [case for case in aimed("conv") if case.kind == "conv_fprop"]
    assert any(case.parameters["fill"] == 255 for case in cases)
    padded = [not np.array_equal(sums(case, True, fill=0), case.expected["codes"])
              for case in cases if case.parameters["fill"]]  # fmt: skip
    assert padded
    assert all(padded)
    late = [np.clip(sums(case, False), *RAILS) for case in cases]
    wrong = {case.name for case, codes in zip(cases, late, strict=True) if (codes != case.expected["codes"]).any()}
    assert {"conv_fprop_padded_transients", "conv_fprop_strided_transients", "conv_fprop_grouped_transients"} <= wrong
    low = [(sums(case, True, rails=(-2048, 2046)) != case.expected["codes"]).any() for case in cases]
    assert all(low)


def test_stride_holes_carry_real_zero_at_an_end_of_the_format() -> None:
    case = next(case for case in aimed("conv") if case.name == "conv_dgrad_strided_transients")
    fill = case.parameters["fill"]
    assert fill == case.inputs["dh"].min()
    form = golden(HARDWARE, "conv").hardware.datapath_for("dgrad").accumulator.register_format
    assert form is not None
    right = sums(case, True, rails=(form.minimum, form.maximum))
    assert np.array_equal(right, case.expected["codes"])
    assert not np.array_equal(sums(case, True, fill=0, rails=(form.minimum, form.maximum)), right)


@pytest.mark.parametrize("gemm", ["fprop", "dgrad", "wgrad"])
def test_linear_steps_aim_whatever_the_random_bits(gemm: str) -> None:
    cases = [case for case in aimed("linear") if f"_{gemm}_" in case.name]
    assert len(cases) == 2
    coverage = total_coverage(cases)
    assert coverage[f"{gemm}.landed_on_rail"] >= 2
    assert coverage[f"{gemm}.one_beyond"] >= 2
    assert sum(case.events["transient"] for case in cases) >= 3
    for case in cases:
        left, right = {"fprop": ("x", "w"), "dgrad": ("dh_for_dgrad", "w"), "wgrad": ("x", "dh_for_wgrad")}[gemm]
        for port in (left, right):
            tensor = case.inputs[port[:2].strip("_") if port.startswith("dh") else port]
            step, zero = case.expected[f"{port}.step"], case.expected[f"{port}.zero_point"]
            assert np.log2(step) % 1 == 0
            assert np.array_equal((case.expected[f"{port}.codes"] - zero.astype(np.float32)) * step, tensor)


def test_zero_points_stand_at_both_ends() -> None:
    zeros = {case.name: int(case.expected["x.zero_point"]) for case in aimed("linear")}
    assert set(zeros.values()) >= {0, 255}, zeros
