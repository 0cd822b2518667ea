"""Golden sets: what they reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden_sets import DROPPING, HARDWARE, by_name, datapath_of, everything, golden

from fqtsim.backends import get_backend
from fqtsim.golden.coverage import total_coverage, unlimited_datapath
from fqtsim.golden.inputs import extent
from fqtsim.golden.make import make_golden
from fqtsim.golden.sums import owners
from fqtsim.hw.load import load_hardware

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("name", HARDWARE)
def test_every_code_is_what_performing_every_addition_gives(name: str) -> None:
    made = golden(name)
    stepwise = get_backend("stepwise")
    for case in made.cases:
        if case.name.startswith("large_4096x4096"):
            continue  # 69 G additions; its digest is that of the exact product, which the test below repeats in part
        inputs = case.inputs
        found = stepwise.gemm(inputs["a"], inputs["b"], datapath_of(made, case), inputs.get("c"))
        assert np.array_equal(found.codes, case.expected["codes"]), case.name
        assert found.events.altered == case.events["altered"]
        assert found.events.transient == case.events["transient"]


@pytest.mark.parametrize("name", HARDWARE)
def test_sets_reach_rails_limits_and_events(name: str) -> None:
    made = golden(name)
    coverage = total_coverage(made.cases)
    for reached in ("rails", "landed_on_rail", "one_inside", "one_beyond"):
        assert coverage[reached] >= 10, reached
    if name != "int8_acc32_wrap":  # one wrapping level: order cannot matter and no event is transient
        assert coverage["order_dependent"] >= 20
        assert sum(case.events["transient"] for case in made.cases) >= 10
    for index, level in enumerate(datapath_of(made, made.cases[0]).levels):
        if level.register_format is not None:
            word = "wraps" if level.overflow == "wrap" else "saturations"
            assert coverage[f"level{index}.{word}"] > 20
        if level.item is not None:
            assert coverage[f"level{index}.ties"] > 100
            assert coverage[f"level{index}.inexact"] > coverage[f"level{index}.ties"]


def test_the_library_has_what_its_names_promise() -> None:
    cases = by_name(golden("dropping"))
    sizes = {case.inputs["a"].shape[1] for case in cases.values()}
    assert {0, 1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129} <= sizes
    assert {131_071, 131_072} <= {case.inputs["a"].shape[1] for case in golden("int8_acc32_wrap").cases}
    assert any(case.inputs["a"].shape[0] == 1 for case in cases.values())
    assert any(case.inputs["b"].shape[1] == 1 for case in cases.values())
    a, b = cases["rails"].inputs["a"], cases["rails"].inputs["b"]
    assert a.min() == b.min() == -128
    assert a.max() == b.max() == 127
    assert cases["most_negative"].coverage["most_negative"] == 600
    ties = cases["level0_ties"]
    products = ties.inputs["a"].astype(int)[:, None, :] * ties.inputs["b"].astype(int).T[None]
    exact = products[products % 8 == 4]
    assert (exact > 0).sum() > 20
    assert (exact < 0).sum() > 20
    assert {3, 5} <= set((products % 8).ravel().tolist())
    assert sum("c" in case.inputs for case in cases.values()) >= 4


def test_limits_are_met_exactly_and_on_both_sides() -> None:
    made = golden("int8_acc24_saturate")
    case = by_name(made)["level1_high"]
    unlimited = get_backend("stepwise").gemm(
        case.inputs["a"], case.inputs["b"], unlimited_datapath(datapath_of(made, case))
    )
    top = (1 << 23) - 1
    assert np.diagonal(unlimited.codes).tolist() == [top - 2, top - 1, top, top + 1, top + 2]
    assert np.diagonal(case.expected["codes"]).tolist() == [top - 2, top - 1, top, top, top]


def test_long_limits_reach_31_bits_without_start_values() -> None:
    case = by_name(golden("int8_acc32_wrap"))["long_high"]
    assert "c" not in case.inputs
    top = (1 << 31) - 1
    assert np.diagonal(case.expected["codes"]).tolist() == [top - 1, top, -top - 1]


def test_differences_span_what_zero_points_allow() -> None:
    """int8 less int8 is -255..255, though nine bits would hold -256."""
    hardware = load_hardware("tflite_double")
    assert extent(hardware.datapath, "a") == (-255, 255)
    for case in everything().cases:
        if case.kind == "gemm" and case.inputs["a"].size:
            assert case.inputs["a"].min() >= -255
            assert case.inputs["b"].min() >= -255


def test_owners_follow_the_definition() -> None:
    lanes, total = owners(DROPPING.datapath, 10)
    assert lanes.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert total.tolist() == [0] * 10


@pytest.mark.parametrize("name", HARDWARE)
def test_k_0_gives_the_start_value(name: str) -> None:
    cases = by_name(golden(name))
    assert cases["empty_k"].inputs["a"].shape == (5, 0)
    assert not cases["empty_k"].expected["codes"].any()
    start = cases["start_empty_k"]
    assert start.inputs["b"].shape == (0, 3)
    assert np.array_equal(start.expected["codes"], start.inputs["c"])
    assert len(np.unique(start.inputs["c"])) > 6


def test_large_means_a_seed_in_place_of_operands() -> None:
    large = golden("int8_acc32_wrap")
    small = make_golden("int8_acc32_wrap", large=False)
    assert not any(case.is_large for case in small.cases)
    assert [case.name for case in small.cases] == [case.name for case in large.cases if not case.is_large]
    assert {"k_131072", "large_4096x4096x4096"} <= {case.name for case in large.cases if case.is_large}
