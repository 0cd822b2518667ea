"""S5.3: sums that no order can change, in ref/ and in the kernels."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.kernels import threads
from fqtsim.ref.exact_sum import exact_sum64

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
Float32 = npt.NDArray[np.float32]


def tensors(max_dims: int = 4, max_side: int = 7) -> st.SearchStrategy[Float32]:
    elements = st.one_of(FINITE, st.floats(-2, 2, width=32), st.just(0.0))
    return arrays(np.float32, array_shapes(min_dims=1, max_dims=max_dims, max_side=max_side), elements=elements)


def by_definition(x: Float32, axes: tuple[int, ...]) -> npt.NDArray[np.float64]:
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    rows = x.transpose(*kept, *axes).reshape(math.prod(x.shape[axis] for axis in kept), -1)
    return np.array([exact_sum64(row) for row in rows.tolist()]).reshape([x.shape[axis] for axis in kept])


def assert_same_bits(actual: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> None:
    assert actual.shape == expected.shape
    assert np.array_equal(np.asarray(actual, order="C").view(np.uint64), expected.view(np.uint64))


@given(tensors(), st.data())
def test_kernel_equals_definition_over_any_axes(x: Float32, data: st.DataObject) -> None:
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, x.ndim - 1)))))
    assert_same_bits(P.exact_sum64(x, axes), by_definition(x, axes))


@given(tensors(max_dims=4, max_side=5), st.data())
def test_memory_layout_does_not_matter(x: Float32, data: st.DataObject) -> None:
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, x.ndim - 1)))))
    order = data.draw(st.permutations(range(x.ndim)))
    relaid = x.transpose(order).copy().transpose(np.argsort(order))
    strided = np.repeat(x, 2, axis=0)[::2]
    for same in (relaid, strided, x[::-1][::-1]):
        assert_same_bits(P.exact_sum64(same, axes), P.exact_sum64(x, axes))


@given(st.lists(FINITE, min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_order_of_terms_does_not_matter(terms: list[float], random: object) -> None:
    shuffled = list(terms)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert exact_sum64(terms) == exact_sum64(shuffled)
    assert P.exact_sum64(np.float32(terms)) == P.exact_sum64(np.float32(shuffled)) == exact_sum64(terms)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3000,), (0,)),  # one long sum
        ((3, 5, 64), (0, 2)),  # rows, from 32 contiguous terms on
        ((6, 5, 3, 3), (0, 2, 3)),  # columns of short runs
        ((500, 3), (0,)),  # several rows of columns at a time, the last of them short
        ((3, 2500), (0,)),  # blocks of columns
        ((2, 3, 1030), (1,)),  # blocks of columns under an outer axis
        ((2, 3, 4, 5, 2), (0, 2, 4)),  # no common pattern: rearranged
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_every_kernel_path(
    shape: tuple[int, ...], axes: tuple[int, ...], split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if split:
        monkeypatch.setattr(threads, "SMALLEST_PART", 1)
        monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 5)
    random = np.random.default_rng(7)
    x = np.ldexp(random.standard_normal(shape), random.integers(-30, 30, shape)).astype(np.float32)
    assert_same_bits(P.exact_sum64(x, axes), by_definition(x, axes))


@given(st.lists(st.integers(-(2**23), 2**23), min_size=1, max_size=50), st.integers(-140, 90))
def test_terms_of_similar_size_sum_exactly(codes: list[int], exponent: int) -> None:
    # Integers below 2**24 times one power of two: all lie on the grid of 40 bits.
    terms = [math.ldexp(code, exponent) for code in codes]
    assert Fraction(exact_sum64(terms)) == sum(map(Fraction, terms))


@example([1.0, 2.0**-40, 2.0**-40])
@given(st.lists(FINITE, min_size=1, max_size=30))
def test_error_is_at_most_half_a_unit_a_term(terms: list[float]) -> None:
    unit = max(max(abs(Fraction(x)) for x in terms) * Fraction(2) ** -39, Fraction(2) ** -165)
    exact = sum(map(Fraction, terms))
    rounding = (abs(exact) + len(terms) * unit) * Fraction(2) ** -53  # of the total to float64
    assert abs(Fraction(exact_sum64(terms)) - exact) <= len(terms) * unit / 2 + rounding


def test_a_tie_goes_to_the_even_unit() -> None:
    # e = 1, so the unit is 2**-39: half a unit goes to 0, one and a half to 2.
    assert exact_sum64([1.0, 2.0**-40]) == 1.0
    assert exact_sum64([1.0, 3 * 2.0**-40]) == 1.0 + 2.0**-38


def test_more_than_2_to_22_terms_give_up_a_digit() -> None:
    x = np.full(2**22 + 1, 2.0**-40, np.float32)
    x[0] = 1.0
    # e = 1. With 40 digits each small term would be a tie; with 39, less than one.
    assert float(P.exact_sum64(x)) == 1.0
    x[1:] = 2.0**-39
    assert float(P.exact_sum64(x)) == 1.0  # half of the unit 2**-38, a tie, to even
    assert float(P.exact_sum64(x[:-1])) == 1.0 + (2**22 - 1) * 2.0**-39
    x[:] = np.finfo(np.float32).max
    assert float(P.exact_sum64(x)) == (2**22 + 1) * float(x[0])  # the int64 sum still fits


def test_the_definition_gives_up_a_digit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fqtsim.ref.exact_sum._UNLIMITED_TERMS", 4)
    assert exact_sum64([1.0, 2.0**-39, 0.0, 0.0]) == 1.0 + 2.0**-39
    assert exact_sum64([1.0, 2.0**-39, 0.0, 0.0, 0.0]) == 1.0
    assert exact_sum64([1.0, 2.0**-38, *[0.0] * 6]) == 1.0 + 2.0**-38
    assert exact_sum64([1.0, 2.0**-38, *[0.0] * 7]) == 1.0  # 9 terms: two digits


@pytest.mark.parametrize("terms", [[0.0], [-0.0], [-0.0, -0.0], [1.5, -1.5], []])
def test_a_zero_sum_is_plus_zero(terms: list[float]) -> None:
    for total in (exact_sum64(terms), float(P.exact_sum64(np.float32(terms))), float(P.exact_sum(np.float32(terms)))):
        assert math.copysign(1.0, total) == 1.0
        assert total == 0.0


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("shape", "axes"), [((50,), (0,)), ((4, 40), (1,)), ((40, 4), (0,))])
def test_a_term_that_is_not_finite_stops_the_step(bad: float, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    x.flat[-1] = bad
    with pytest.raises(TrainingStopped, match=r"^exact_sum: a term is not finite \(NaN or infinity\)"):
        P.exact_sum(x, axes)


def test_a_sum_beyond_float32_stops_the_step() -> None:
    x = np.full(3, np.finfo(np.float32).max, np.float32)
    assert float(P.exact_sum64(x)) == 3 * float(x[0])
    with pytest.raises(TrainingStopped, match=r"^exact_sum: the sum is beyond float32"):
        P.exact_sum(x)


def test_axes_and_shapes() -> None:
    x = np.ones((2, 3, 4), np.float32)
    assert P.exact_sum(x).shape == ()
    assert P.exact_sum(x, -1).tolist() == [[4.0] * 3] * 2
    assert P.exact_sum(x, (0, 2), keepdims=True).shape == (1, 3, 1)
    assert P.exact_sum(x).dtype == np.float32
    assert P.exact_sum64(x, ()).shape == x.shape
    assert P.exact_sum(np.ones((0, 3), np.float32), 0).tolist() == [0.0] * 3
    for axis in ((0, 0), (3,), (-4,), (0, -3)):
        with pytest.raises(InputError, match=r"must be distinct axes of a rank 3 array"):
            P.exact_sum(x, axis)


def test_all_rank_four_axis_sets_agree_with_float64() -> None:
    x = np.random.default_rng(1).integers(-9, 9, (3, 4, 5, 6)).astype(np.float32)
    for count in range(5):
        for axes in itertools.combinations(range(4), count):
            assert np.array_equal(P.exact_sum(x, axes), x.sum(axis=axes, dtype=np.float64))


@pytest.mark.parametrize("bad", [(np.nan, np.inf), (np.inf, np.inf), (-np.inf, np.inf)])
def test_terms_that_are_not_finite_in_every_part_stop_the_step(
    bad: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 2)
    x = np.ones(4096, np.float32)
    x[:900], x[-900:] = bad
    with pytest.raises(TrainingStopped, match="not finite"):
        P.exact_sum(x)
