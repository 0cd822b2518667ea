"""Golden cases of the block Householder quantizer: what they hold, against dense matrices, and the faults they show."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from golden_sets import golden

from fqtsim.golden.case import Case
from fqtsim.golden.coverage import total_coverage
from fqtsim.golden.make import make_golden
from fqtsim.hw.load import load_hardware

Array = np.ndarray[Any, Any]

STRUCTURES = (
    "one_row", "two_rows", "dominant", "equal", "range_ties", "many", "zero_rows", "zeros", "constant_rows", "denormal",
    "huge", "cap_within", "cap_beyond", "below_integers", "rank_4", "ties",
)  # fmt: skip


def cases(stochastic: bool = False) -> dict[str, Case]:
    found = [case for case in golden("int8_acc24_saturate", "quantize").cases if case.name.startswith("quantize_bhq_")]
    return {
        case.name.removeprefix("quantize_bhq_"): case for case in found if ("rand_bits" in case.inputs) is stochastic
    }


def groups_of(case: Case) -> list[list[int]]:
    rows, sizes = case.expected["group_rows"].tolist(), case.expected["group_sizes"].tolist()
    ends = np.cumsum([0, *sizes])
    return [rows[first:last] for first, last in pairwise(ends)]


def mixed(case: Case) -> Array:
    """T x in float64, with a dense reflection for each group."""
    x = case.inputs["x"].reshape(len(case.inputs["x"]), -1).astype(np.float64)
    q = np.eye(len(x))
    for group in groups_of(case):
        if len(group) > 1:
            v = np.zeros(len(x))
            v[group] = 1 / np.sqrt(len(group))
            v[group[0]] -= 1
            q -= 2 * np.outer(v, v) / (v @ v)
    return np.asarray(q @ (case.expected["scale"].astype(np.float64)[:, None] * x))


def quotients(case: Case) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(mixed(case) / case.expected["step"].astype(np.float64)[:, None])


@pytest.mark.parametrize("name", STRUCTURES)
def test_codes_are_those_of_a_dense_reflection(name: str) -> None:
    case = cases()[name]
    codes = case.expected["codes"].reshape(len(case.inputs["x"]), -1).astype(np.float64)
    off = codes - case.expected["zero_point"][:, None] - quotients(case)
    assert np.abs(off).max() < 0.5 + 2e-4  # float32 sums, against float64
    assert sorted(case.expected["group_rows"].tolist()) == list(range(len(codes)))


@pytest.mark.parametrize("name", STRUCTURES)
def test_stochastic_codes_follow_their_random_bits(name: str) -> None:
    case = cases(stochastic=True)[f"{name}_stochastic"]
    n = case.parameters["random_bits"]
    r = case.inputs["rand_bits"].reshape(len(case.inputs["x"]), -1)
    found = case.expected["codes"].reshape(r.shape).astype(np.float64) - case.expected["zero_point"][:, None]
    shifted = quotients(case) + (2**n - 1 - r.astype(np.float64)) / 2**n
    assert np.mean(np.floor(shifted) == found) > 0.98  # the rest lies within float32 of an integer
    assert np.abs(found - shifted + 0.5).max() < 0.5 + 2e-2


def test_the_structures_are_what_their_names_say() -> None:
    found = cases()
    assert tuple(found) == STRUCTURES
    assert groups_of(found["one_row"]) == [[0]]
    assert groups_of(found["two_rows"]) == [[1, 0]]
    assert len(groups_of(found["dominant"])) == 1
    assert sorted(len(group) for group in groups_of(found["equal"])) == [2, 2, 3]
    assert groups_of(found["range_ties"]) == [[0, 1, 4], [2, 3, 5], [6, 7, 8]]  # ties go by the row
    assert found["cap_beyond"].coverage["bhq.ratios_at_the_cap"] == 1
    assert found["cap_within"].coverage["bhq.ratios_at_the_cap"] == 0
    assert found["cap_within"].expected["scale"][1] / found["cap_within"].expected["scale"][0] > 2.0**23.9
    assert found["below_integers"].coverage["bhq.ratios_of_one"] == 1
    coverage = total_coverage(found.values())
    assert coverage["bhq.denormal_rows"] >= 5
    assert coverage["bhq.zero_rows"] >= 7
    assert found["rank_4"].expected["codes"].ndim == 4


def test_ties_of_mixed_rows_tell_roundings_apart() -> None:
    case = cases()["ties"]
    assert case.coverage["quantizer.ties"] > 200
    exact = quotients(case)
    codes = case.expected["codes"] - case.expected["zero_point"][:, None].astype(np.int64)
    assert np.array_equal(np.rint(exact), codes)
    for wrong in (np.floor(exact + 0.5), np.copysign(np.floor(np.abs(exact) + 0.5), exact), np.ceil(exact - 0.5)):
        assert (wrong != codes).sum() > 50


def test_a_port_without_negative_values_has_no_bhq() -> None:
    hardware = load_hardware("int8_acc12_saturate", {"datapath.zero_point": "none", "datapath.a": "uint8"})
    hardware = hardware.model_copy(update={"gemms": None})
    made = make_golden(hardware, kinds=("quantize",))
    assert not [case for case in made.cases if "bhq" in case.name]
    assert made.cases
