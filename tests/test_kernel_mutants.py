"""The kernels of kernel_mutants.py are what they say: the right ones right, each mutant wrong on its witness."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from kernel_mutants import CORRECT, MUTANTS, WITNESSES
from kernel_mutants_common import HI20, LO20, Array, Entry, Inputs, full, line, rand

import fqtsim

FILES = {"wrap32": "int8_acc32_wrap", "sat20": "int8_acc20_tree4"}
C_RANGE = {"wrap32": 1 << 31, "sat20": 1 << 19}


def expected(reference: str, a: Array, b: Array, c: Array | None) -> Array:
    """What the hardware file says; int8 codes of a are no fprop codes of `wrap32`, its dgrad has the same levels."""
    gemm = "dgrad" if reference == "wrap32" and a.dtype == np.int8 else "fprop"
    codes: Any = fqtsim.gemm(a, b, FILES[reference], gemm=gemm, c=c).codes
    return np.asarray(codes)


def biased(m: int, k: int, n: int, seed: int, *, signed: bool) -> Inputs:
    """Large codes of a, runs of one sign in b: sums that pass a 20-bit rail and come back."""
    g = np.random.default_rng(seed)
    a = g.integers(100, 128, (m, k)).astype(np.int8) if signed else g.integers(200, 256, (m, k)).astype(np.uint8)
    sign = np.repeat(g.choice([-1, 1], (k // 12 + 1, n)), 12, 0)[:k]
    return a, (sign * g.integers(90, 128, (k, n))).astype(np.int8), None


def inputs(reference: str) -> list[Inputs]:
    """Twenty-two inputs: random ones, edges of shape, layout, codes and start values."""
    r = C_RANGE[reference]
    a, b, c = rand(9, 35, 11, c=r, seed=5)
    wide = None if c is None else c.astype(np.int64)
    up, down = [127] * 4, [-128] * 4
    return [
        rand(1, 1, 1),
        rand(2, 0, 3, c=r),
        rand(2, 0, 3),
        rand(0, 3, 2),
        rand(2, 3, 0),
        rand(1, 31, 5, c=r),
        rand(17, 4, 1, c=r),
        rand(8, 64, 16),
        rand(33, 65, 20, c=100, signed=True),
        rand(7, 130, 9, signed=True, c=r),
        rand(3, 523, 4),
        (a[::-1], b[:, ::-1], wide),
        (np.asfortranarray(a), np.asfortranarray(b), None if wide is None else wide[:, ::-1]),
        full(2, 700, 2, 255, -128),
        full(2, 701, 2, 255, 127, c=r - 1),
        full(2, 30, 2, -128, -128, signed=True, c=-r),
        full(1, 16, 3, 0, 0, c=-r),
        line(up * 6 + down * 12 + up * 3 + [127, -128, 127], n=3),
        line(down * 9 + up + down + [-1], m=2, c=HI20),
        line(up + down * 9 + [0] * 9 + up, n=2, c=LO20),
        biased(11, 150, 13, 1, signed=False),
        biased(5, 301, 6, 2, signed=True),
    ]


@cache
def cases(reference: str) -> list[tuple[Inputs, Array]]:
    """The inputs and what is expected, computed once."""
    return [(x, expected(reference, *x)) for x in inputs(reference)]


@cache
def plain_cases(reference: str) -> list[tuple[Inputs, Array]]:
    """What a casual test would try: random codes, sizes up to 40, unsigned and signed, with and without c."""
    g, found = np.random.default_rng(9), []
    for i in range(40):
        m, k, n = (int(v) for v in g.integers(1, 41, 3))
        x = rand(m, k, n, signed=i % 4 == 3, c=1000 * (i % 2), seed=100 + i)
        found.append((x, expected(reference, *x)))
    return found


def differs(entry: Entry, x: Inputs, want: Array) -> bool:
    """Run the kernel, check its manners and compare; none may write to its arguments."""
    before = [None if t is None else t.copy() for t in x]
    got = entry[2](*x)
    assert got.shape == want.shape
    assert got.dtype == np.int32
    assert all(t is None or u is None or np.array_equal(t, u) for t, u in zip(x, before, strict=True))
    return not np.array_equal(got, want)


def share_wrong(entry: Entry) -> float:
    """Share of the plain cases on which a mutant is wrong."""
    return sum(differs(entry, x, want) for x, want in plain_cases(entry[1])) / 40


@pytest.mark.parametrize("entry", CORRECT, ids=lambda e: e[0])
def test_correct_kernel_equals_the_hardware_file(entry: Entry) -> None:
    wrong = [i for i, (x, want) in enumerate(cases(entry[1])) if differs(entry, x, want)]
    assert not wrong
    assert share_wrong(entry) == 0


@pytest.mark.parametrize("entry", MUTANTS, ids=lambda e: e[0])
def test_mutant_differs_on_its_witness(entry: Entry) -> None:
    x = WITNESSES[entry[0]]()
    assert differs(entry, x, expected(entry[1], *x))
    np.testing.assert_array_equal(entry[2](*x), entry[2](*x))


@pytest.mark.parametrize("entry", MUTANTS, ids=lambda e: e[0])
def test_mutant_runs_on_every_input(entry: Entry) -> None:
    wrong = [differs(entry, x, want) for x, want in cases(entry[1])]
    assert not all(wrong)


def test_lists_are_large_varied_and_mostly_hard() -> None:
    names = [e[0] for e in CORRECT + MUTANTS]
    assert len(set(names)) == len(names)
    assert {e[1] for e in CORRECT} == {e[1] for e in MUTANTS} == set(FILES)
    assert len(CORRECT) >= 10
    assert len(MUTANTS) >= 40
    hard = [e[0] for e in MUTANTS if share_wrong(e) <= 0.1]
    assert len(hard) >= len(MUTANTS) / 2
