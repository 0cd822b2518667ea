"""Golden sets against kernels written by somebody else: 27 right ones, 96 with one bug each (kernel_mutants.py).

Every test prints what it found (`pytest -s`). The rival is `torch.equal(out, a.int() @ b.int())` on random codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from kernel_mutants import CORRECT, MUTANTS
from kernel_mutants_common import Entry, Kernel

from fqtsim.golden.case import GoldenSet
from fqtsim.golden.check import check, size
from fqtsim.golden.make import make_golden
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Hardware

GEMMS = {"fprop": "uint8 a", "dgrad": "int8 a"}
QUICK = 1 << 20
"""Products of a case up to which it takes part in the quick tests."""

MOST_PRODUCTS = 1 << 24
"""Products of a case up to which it takes part at all: those of size 4096 do not."""

#: Mutants that only column-major operands show, for which check() has the option layouts.
STRIDES = {"strides_ignored"}
#: Mutants that need the longest cases, of K = 65,794 and more, which are not in the quick tests.
LONG = {
    "plane_skipped", "constant_row", "spill_24bit", "bucket_16bit", "residues", "k_counter_16bit", "guard_bits",
    "offset_sum_16bit",
}  # fmt: skip


def hardware(reference: str) -> Hardware:
    """The meaning of a kernel; those that saturate take codes of a and b, no differences from zero points."""
    if reference == "wrap32":
        return load_hardware("int8_acc32_wrap")
    return load_hardware("int8_acc20_tree4", {"datapath.zero_point": "none"})


@cache
def golden(reference: str, gemm: str) -> GoldenSet:
    """The default set, less its cases of size 4096: a kernel that takes uint8 and int8 a needs that of either."""
    whole = make_golden(hardware(reference), gemm)
    return replace(whole, cases=tuple(case for case in whole.cases if size(case) <= MOST_PRODUCTS))


@cache
def quick(reference: str, gemm: str) -> GoldenSet:
    """Its smaller cases."""
    whole = make_golden(hardware(reference), gemm, large=False)
    return replace(whole, cases=tuple(case for case in whole.cases if size(case) <= QUICK))


def detected_by(kernel: Kernel, golden: GoldenSet, layouts: bool = False) -> str | None:
    """Return the first case that shows a kernel to be wrong."""
    for case in golden.cases:
        verdict = check(replace(golden, cases=(case,)), kernel, explained=False, layouts=layouts)
        if not verdict.passed:
            return verdict.failures[0].name
    return None


@cache
def random_pairs(reference: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the rival tries: random uint8 and int8 codes of a square, an odd and a larger shape.

    For `sat20` of K up to 64: beyond, sums pass 20 bits, and the rival would reject right kernels.
    """
    g = np.random.default_rng(0)
    shapes = [(64, 64, 64), (37, 61, 53), (128, 512 if reference == "wrap32" else 64, 96)]
    unsigned = [(g.integers(0, 256, (m, k)).astype(np.uint8), g.integers(-128, 128, (k, n)).astype(np.int8))
                for m, k, n in shapes]  # fmt: skip
    signed = [(g.integers(-128, 128, a.shape).astype(np.int8), b) for a, b in unsigned]
    return unsigned + signed


def passes_torch_equal(entry: Entry) -> bool:
    torch = pytest.importorskip("torch")
    for a, b in random_pairs(entry[1]):
        exact = torch.from_numpy(a).int() @ torch.from_numpy(b).int()
        if not torch.equal(torch.from_numpy(np.ascontiguousarray(entry[2](a=a, b=b))), exact):
            return False
    return True


def table(found: Iterable[tuple[Entry, str | None, bool]]) -> str:
    """Return the mutants with the case that shows each, and whether torch.equal on random codes lets it pass."""
    lines = [f"{'mutant':26} {'golden set':32} {'torch.equal':12} what is wrong"]
    for (name, _, _, wrong), case, passes in found:
        lines.append(f"{name:26} {case or 'MISSED':32} {'missed' if passes else 'detected':12} {wrong[:90]}")
    return "\n".join(lines)


@pytest.mark.parametrize("gemm", GEMMS)
@pytest.mark.parametrize("reference", ["wrap32", "sat20"])
def test_no_right_kernel_is_rejected(reference: str, gemm: str) -> None:
    kernels = [entry for entry in CORRECT if entry[1] == reference]
    assert len(kernels) >= 9
    rejected = {name: detected_by(kernel, quick(reference, gemm), layouts=True) for name, _, kernel, _ in kernels}
    assert set(rejected.values()) == {None}, rejected
    assert all(passes_torch_equal(entry) for entry in kernels)


@pytest.mark.parametrize("reference", ["wrap32", "sat20"])
def test_nearly_every_mutant_is_detected_by_the_smaller_cases(reference: str) -> None:
    mutants = [entry for entry in MUTANTS if entry[1] == reference]
    missed = {
        name for name, _, kernel, _ in mutants
        if not any(detected_by(kernel, quick(reference, gemm), name in STRIDES) for gemm in GEMMS)
    }  # fmt: skip
    assert missed <= LONG, missed


def test_torch_equal_misses_a_third() -> None:
    missed = [entry for entry in MUTANTS if passes_torch_equal(entry)]
    print(f"\ntorch.equal on random codes misses {len(missed)} of {len(MUTANTS)} mutants")
    assert len(missed) >= len(MUTANTS) / 3


@pytest.mark.exhaustive
def test_the_default_set_detects_every_mutant() -> None:
    found = []
    for entry in MUTANTS:
        name, reference, kernel, _ = entry
        cases = (detected_by(kernel, golden(reference, gemm), name in STRIDES) for gemm in GEMMS)
        shown = next((f"{gemm}: {case}" for gemm, case in zip(GEMMS, cases, strict=True) if case), None)
        found.append((entry, shown, passes_torch_equal(entry)))
    print("\n" + table(found))
    detected, missed = sum(case is not None for _, case, _ in found), sum(passes for _, _, passes in found)
    print(f"golden sets detect {detected} of {len(found)}; torch.equal on random codes misses {missed}")
    assert not [entry[0] for entry, case, _ in found if case is None]


@pytest.mark.exhaustive
@pytest.mark.parametrize("entry", CORRECT, ids=lambda entry: entry[0])
def test_the_whole_set_rejects_no_right_kernel(entry: Entry) -> None:
    for gemm in GEMMS:
        verdict = check(golden(entry[1], gemm), entry[2], explained=False, layouts=True)
        assert verdict.passed, str(verdict)
