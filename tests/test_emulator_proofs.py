"""Where the emulator's bounds lie, and start values that repeat: rows, columns and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import summary
from hypothesis import given
from hypothesis import strategies as st
from mac import chain, datapath

from fqtsim.backends import emulator, get_backend
from fqtsim.backends.exact import subset_limit
from fqtsim.backends.stepwise import prepare, prepare_for_formats, start_values
from fqtsim.kernels import ends
from fqtsim.kernels import gemm as kernels

BACKENDS = ("reference", "stepwise", "emulator")


def bound_holds(a: Any, b: Any, path: Any, c: Any = None) -> bool:
    start = start_values(c, a.shape[0], b.shape[1])
    lowered = prepare(a, b, path, start)
    return emulator.bounded_by_columns(a, b, lowered, start, subset_limit(lowered))


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("b", "start", "holds"),
    [
        # int12 holds up to 2047, in magnitude on both sides; max |a| is 23.
        ([89, 0, 0], 0, True), ([44, -45, 0], 0, True), ([90, 0, 0], 0, False), ([45, -45, 0], 0, False),
        ([88, 0, 0], 23, True), ([88, 0, 0], 24, False), ([-88, 0, 0], -23, True), ([-88, 0, 0], -24, False),
        ([0, 0, 0], 2047, False),  # nothing is left to prove with
    ],
)  # fmt: skip
def test_the_bound_by_column_sums(flipped: bool, b: list[int], start: int, holds: bool) -> None:
    path = datapath(*chain("int12 saturate"))
    long, short = np.full((5, 3), 23, np.int8), np.array([[*b], [0, 1, 0]], np.int8).T
    long[:, 1:] = np.where(np.array(b[1:]) < 0, -23, 23)
    left, right = (np.ascontiguousarray(short.T), np.ascontiguousarray(long.T)) if flipped else (long, short)
    c = np.full((1, 1), start)
    assert bound_holds(left, right, path, c) == holds
    results = [summary(get_backend(name).gemm(left, right, path, c)) for name in BACKENDS]
    assert results[0] == results[1] == results[2]


def test_a_format_may_prove_what_nobody_has_looked_at() -> None:
    for register, proven in (("int17", True), ("int16", False)):
        lowered = prepare_for_formats(4, datapath(*chain(f"{register} saturate")), None)
        # 4 * 128 * 128 = 65536 is one more than int17 holds.
        assert lowered is not None
        assert not lowered.never_overflows
        lowered = prepare_for_formats(3, datapath(*chain(f"{register} saturate")), None)
        assert lowered is not None
        assert lowered.never_overflows == proven
    wide = datapath(*chain("exact"), a="int16", b="int16")
    assert prepare_for_formats(1 << 33, wide, None) is None


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (7, 7)])
@pytest.mark.parametrize(
    "register",
    ["int8 saturate", "int16 saturate", "int20 saturate", "uint32 saturate", "int40 wrap", "int24 wrap",
     "int24 saturate_symmetric"],
)  # fmt: skip
def test_start_values_that_repeat(shape: tuple[int, int], register: str) -> None:
    path = datapath(*chain(register))
    low, high = path.accumulator.register_format.rails(path.accumulator.overflow)
    rng = np.random.default_rng(shape[0])
    a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in ((shape[0], 9), (9, shape[1])))
    ends = [low, high, max(low, -1), low + 1, high - 1]
    for size in ((1, shape[1]), (shape[0], 1), (1, 1), shape):
        c = rng.choice(np.array(ends, np.int64), size)
        whole = np.array(np.broadcast_to(c, shape))
        expected = summary(get_backend("reference").gemm(a, b, path, whole))
        for name in BACKENDS:
            for repeated in (c, np.broadcast_to(c, shape), whole):
                assert summary(get_backend(name).gemm(a, b, path, repeated)) == expected, (name, size)


@pytest.mark.parametrize("few", [0, 1 << 16])
@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_extremes(kind: Any, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel, whatever stands where in blocks of 256 bytes and behind them, and by NumPy."""
    monkeypatch.setattr(ends, "FEW", few)
    form, random = np.iinfo(kind), np.random.default_rng(2)
    codes = np.array([[5, form.max, 3], [form.min, 0, 1]], kind)
    assert ends.extremes(codes) == (form.min, form.max)
    assert ends.extremes(codes[:1, 2:]) == (3, 3)
    for size in (1, 31, 32, 33, 255, 256, 257, 700, 1024):
        middle = random.integers(form.max // 4, form.max // 2, size, kind)
        assert ends.extremes(middle) == (int(middle.min()), int(middle.max()))
        for low, high in random.integers(0, size, (20, 2)):
            codes = middle.copy()
            codes[low], codes[high] = form.min, form.max
            assert ends.extremes(codes) == (int(codes.min()), form.max)


@given(st.data(), st.integers(1, 9), st.integers(1, 9), st.sampled_from([(1, 1), (1, 0)]))
def test_rows_and_columns_that_norms_leave_open(data: st.DataObject, m: int, n: int, starts: tuple[int, int]) -> None:
    """By the largest norms alone, as by every pair of them."""
    norms = st.integers(0, 60).map(float) | st.sampled_from([2.0**52, 2.0**60])
    rows, columns = (np.array(data.draw(st.lists(norms, min_size=k, max_size=k))) for k in (m, n))
    start = data.draw(st.lists(st.integers(-40, 40), min_size=starts[1] or n, max_size=starts[1] or n))
    start = np.array(start, np.int64)[None]
    limit = data.draw(st.integers(1, 60) | st.just((1 << 30) + 20))
    found, expected = ([np.zeros(m, np.bool_), np.zeros(n, np.bool_)] for _ in range(2))
    kernels.open_by_norms(rows, columns, start, limit, *found)
    kernels.open_outputs(rows, columns, np.ascontiguousarray(np.broadcast_to(start, (m, n))), limit, *expected)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


@pytest.mark.parametrize("lane", [np.int16, np.int32])
@pytest.mark.parametrize("size", [(1, 1), (15, 40), (16, 16), (24, 65), (33, 31), (64, 100)])
@pytest.mark.parametrize(("offset", "shift"), [(0, 0), (5, 0), (-7, 3)])
def test_columns_of_lanes_become_rows_of_codes(lane: type, size: tuple[int, int], offset: int, shift: int) -> None:
    rows, count = size
    acc = np.random.default_rng(rows).integers(-(1 << 15), 1 << 15, (rows + 3, count + 20)).astype(lane)
    codes = np.full((count, rows), 99, np.int32)
    middle = count // 3
    for first, last in ((0, middle), (middle, count)):
        kernels.int_columns_to_codes(acc, offset, shift, codes, first, last)
    assert np.array_equal(codes, (acc[:rows, :count].T.astype(np.int64) >> shift) - offset)
