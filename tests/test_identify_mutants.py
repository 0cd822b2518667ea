"""A part of the mutants of kernel_mutants.py, on the smaller cases of the default set: named, or none of these.

All of them, on the whole set: tests/exhaustive/test_named_mutants.py.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from fqtsim.golden.case import Case
from fqtsim.golden.check import size
from fqtsim.golden.make import make_golden
from fqtsim.hw.spec import Hardware
from fqtsim.identify import Observation, explain_mismatches

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SMALL = 1 << 15
IN = ["a_sign_extended", "k_tail_dropped", "groups_of_eight", "symmetric_rails", "one_bit_wider", "sticky_flag",
      "split_in_two", "four_registers", "groups_backwards", "strided_groups", "lower_rail_wraps"]  # fmt: skip
ADDED = ["c_through_float32", "short_group_first", "c_port_19bit"]
OUT = ["booth_zero", "zero_row", "tail_of_one", "exact_hit", "short_group_joins"]


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("mutants")
    finally:
        sys.path.remove(str(BENCHMARKS))


@cache
def sets(group: str) -> tuple[Hardware, list[Case]]:
    """The hardware of a group, and the smaller cases of its default set, of fprop: a is uint8."""
    found = importlib.import_module("mutants").hardware(group)
    return found, [case for case in make_golden(found, large=False).cases if size(case) <= SMALL]


@pytest.mark.parametrize("name", [*IN, *ADDED, *OUT])
def test_the_first_suggestion_for_a_mutant(mutants: ModuleType, name: str) -> None:
    group, kernel = next((group, kernel) for named, group, kernel, _ in mutants.MUTANTS if named == name)
    expected = mutants.EXPECTED[name]
    assert expected.place == ("in" if name in IN else "added" if name in ADDED else "out")
    hardware, smaller = sets(group)
    seen = [Observation(case.inputs["a"], case.inputs["b"], kernel(**case.inputs), case.inputs.get("c"))
            for case in smaller]  # fmt: skip
    assert any(
        not np.array_equal(one.observed, case.expected["codes"]) for one, case in zip(seen, smaller, strict=True)
    )
    causes = explain_mismatches(seen, hardware.datapath_for("fprop"))
    if name in OUT:
        assert [cause.text for cause in causes] == []
    else:
        assert causes[0].reproduces_all
        assert any(text in causes[0].text for text in expected.names), [cause.text for cause in causes]
