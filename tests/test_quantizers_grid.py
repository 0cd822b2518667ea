"""S5.7: step and zero point of a row, in ref/ and in the kernels, and the laws that they obey."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.errors import TrainingStopped
from fqtsim.kernels import grid as kernel
from fqtsim.kernels import threads
from fqtsim.ref import quantize as ref
from fqtsim.words import Rounding

LARGEST = float(np.finfo(np.float32).max)
TINIEST = 2.0**-149
EDGES = [0.0, TINIEST, 3 * TINIEST, 2.0**-126, 2.0**-60, 1.0, 3.0, 255.0, LARGEST]
NUMBER = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-4, 4, width=32),
    st.sampled_from([*EDGES, *(-x for x in EDGES)]),
)
BITS = st.integers(2, 16)
ZEROS = ("aligned", "symmetric", "float_offset", "authors")


def ends(x: float, y: float) -> tuple[float, float]:
    return min(x, y) + 0.0, max(x, y) + 0.0


@pytest.mark.parametrize("zero", ZEROS)
@example(-1.0, 1e-30, 8, False)
@example(-1e-30, 1.0, 8, True)
@example(-LARGEST, LARGEST, 2, False)
@example(-TINIEST, 2 * TINIEST, 8, True)
@example(0.0, 0.0, 8, True)
@given(NUMBER, NUMBER, BITS, st.booleans())
def test_kernel_equals_definition(zero: str, x: float, y: float, bits: int, signed: bool) -> None:
    low, high = ends(float(np.float32(x)), float(np.float32(y)))
    assume(not (zero == "symmetric" and not signed and low < 0))
    got = kernel.GRIDS[zero](np.float32([low, 0.0]), np.float32([high, 0.0]), bits, signed)
    if np.isnan(got.step[0]):
        with pytest.raises(TrainingStopped, match="the authors' PTQ has no step here"):
            ref.GRIDS[zero](low, high, bits, signed)
        return
    want = ref.GRIDS[zero](low, high, bits, signed)
    assert (float(got.step[0]), int(got.zero_point[0]), got.low, got.high) == (
        want.step,
        want.zero_point,
        want.low,
        want.high,
    )
    assert (got.offset is None) == (want.offset is None)
    assert got.offset is None or float(got.offset[0]) == want.offset
    assert got.step.dtype == np.float32
    assert got.zero_point.dtype == np.int32


@given(NUMBER, NUMBER, BITS, st.booleans())
def test_zero_is_a_code_and_no_value_in_range_is_clamped(x: float, y: float, bits: int, signed: bool) -> None:
    low, high = ends(x, y)
    grid = ref.aligned(low, high, bits, signed)
    assert grid.low <= grid.zero_point <= grid.high
    assert ref.code(0.0, grid, Rounding.TIES_TO_EVEN) == (grid.zero_point, False)
    for value in (low, high):
        for rounding in (Rounding.TIES_TO_EVEN, Rounding.AWAY_FROM_ZERO, Rounding.TOWARD_POSITIVE):
            assert not ref.code(value, grid, rounding)[1]
        for rand_bits in (0, 255):
            assert not ref.code(value, grid, Rounding.STOCHASTIC, rand_bits, 8)[1]


@given(NUMBER, NUMBER, st.integers(2, 8))
def test_no_zero_point_allows_a_smaller_step(x: float, y: float, bits: int) -> None:
    low, high = ends(x, y)
    assume(min(low, 0) != max(high, 0))
    top, down, up = 2**bits - 1, -Fraction(min(low, 0.0)), Fraction(max(high, 0.0))
    needed = [
        max(down / z if z else Fraction(0), up / (top - z) if z < top else Fraction(0))
        for z in range(top + 1)
        if not (z == 0 and down) and not (z == top and up)
    ]
    step = Fraction(ref.aligned(low, high, bits, False).step)
    # Above the exact best only by its rounding up to float32 (and, below that, by float64).
    assert min(needed) * (1 - Fraction(2) ** -50) <= step <= min(needed) * (1 + Fraction(2) ** -22) + Fraction(TINIEST)


def test_a_tiny_positive_side_keeps_a_code() -> None:
    # t = 255 * 1 / (1 + 1e-30) rounds to 255 in float64, and neither 255 nor its ceiling leaves the 1e-30 a code.
    assert ref.aligned(-1.0, 1e-30, 8, False).zero_point == 254
    assert ref.aligned(-1e-30, 1.0, 8, False).zero_point == 1


@pytest.mark.parametrize(
    ("low", "high", "bits", "zero_point", "step"),
    [
        (0.0, 255.0, 8, 0, 1.0),
        (-255.0, 0.0, 8, 255, 1.0),
        (-128.0, 127.0, 8, 128, 1.0),
        (-1.0, 1.0, 2, 1, 1.0),  # 1 and 2 need the same step: the floor
        (5.0, 6.0, 2, 0, 2.0),  # zero belongs to the range
        (0.0, TINIEST, 8, 0, TINIEST),
        (-LARGEST, LARGEST, 2, 1, LARGEST),
        (-0.05, 1.0, 4, 1, float(np.nextafter(np.float32(1 / 14), np.float32(0)))),
    ],
)
def test_known_aligned_grids(low: float, high: float, bits: int, zero_point: int, step: float) -> None:
    grid = ref.aligned(float(np.float32(low)), high, bits, False)
    assert grid.zero_point == zero_point
    assert grid.step == pytest.approx(step, rel=2.0**-22)
    signed = ref.aligned(float(np.float32(low)), high, bits, True)
    assert (signed.zero_point, signed.step) == (zero_point - 2 ** (bits - 1), grid.step)


def test_an_all_zero_range_stores_zeros_in_every_port() -> None:
    for zero in ("aligned", "symmetric"):
        for signed in (False, True):
            grid = ref.GRIDS[zero](0.0, 0.0, 8, signed)
            assert (grid.step, grid.zero_point) == (1.0, 0)


@given(st.lists(st.lists(NUMBER, min_size=1, max_size=9), min_size=1, max_size=6))
def test_extremes_equal_python(rows: list[list[float]]) -> None:
    width = min(map(len, rows))
    x = np.float32([row[:width] for row in rows])
    least, greatest = P.extremes(x)
    assert least.tolist() == x.min(axis=1).tolist()
    assert greatest.tolist() == x.max(axis=1).tolist()
    assert not np.signbit(least[least == 0]).any()
    assert not np.signbit(greatest[greatest == 0]).any()


def test_extremes_of_one_long_row_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 5)
    x = np.random.default_rng(3).standard_normal((1, 20001)).astype(np.float32)
    assert [float(v[0]) for v in P.extremes(x)] == [float(x.min()), float(x.max())]


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_stops_the_step_and_is_named(bad: float) -> None:
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = bad
    with pytest.raises(TrainingStopped) as caught:
        P.extremes(x)
    assert str(caught.value) == (
        f"row 1, element 2 = {np.float32(bad)}: a tensor to quantize must be finite; the step cannot go on"
    )
