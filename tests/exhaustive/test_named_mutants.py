"""Every mutant and every planted Triton bug: the default sets detect them, and golden check names those in its list."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(7200)]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
#: Right on every case of the set: operands are row-major unless check() is asked for others.
OUT_OF_REACH = {"strides_ignored"}


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("mutants")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_table_covers_every_mutant(mutants: ModuleType) -> None:
    assert {name for name, *_ in mutants.MUTANTS} == set(mutants.EXPECTED)


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("triton", [False, True])
def test_mutants_are_detected_and_named(mutants: ModuleType, triton: bool) -> None:
    if triton and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install 'fqtsim[triton]'")
    names = [name for name, group, *_ in mutants.kernels() if (group == "triton") == triton]
    found = mutants.rows(names)
    counts = mutants.counted(found)
    print("", *(f"{name}: {count}" for name, count in counts.items()), sep="\n")
    assert {row.name for row in found if not row.shown} == (set() if triton else OUT_OF_REACH)
    assert counts["in the list, named right first"] >= 0.9 * counts["in the list"] > 0
    assert counts["added, named right first"] == counts["added to the list since"]
    assert counts["outside, falsely named"] == 0
