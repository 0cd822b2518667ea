"""The statistics of an analysis against direct formulas and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fqtsim.analysis.statistics import (
    Interval,
    Moments,
    Products,
    bias_intervals,
    combine,
    sketch,
    spread,
    student_t,
    u_statistic,
)
from fqtsim.analysis.summary import verdict
from fqtsim.errors import InputError


def filled(errors: np.ndarray, block: int, first: int = 0) -> Moments:
    """Return the moments of errors (repeats, D), as two vectors of different lengths."""
    cut = errors.shape[1] // 3
    moments = Moments((cut, errors.shape[1] - cut), block)
    for repeat, error in enumerate(errors, first):
        moments.add(repeat, [error[:cut], error[cut:]])
    return moments


def products(errors: np.ndarray, block: int) -> Products:
    """Return the products of errors (repeats, D) as one vector, made with NumPy alone."""
    ids = np.arange(len(errors)) // block
    sums = np.stack([errors[ids == number].sum(0) for number in range(ids[-1] + 1)])
    return Products((sums @ sums.T)[None], np.bincount(ids, (errors**2).sum(1))[None], np.bincount(ids))


def test_the_u_statistic_is_the_mean_over_pairs_of_repeats() -> None:
    errors = np.random.default_rng(1).normal(0.3, 1, (7, 11))
    pairs = [errors[i] @ errors[j] for i in range(7) for j in range(7) if i != j]
    total, each = float(np.sum(errors.sum(0) ** 2)), float(np.sum(errors**2))
    assert u_statistic(total, each, 7) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert spread(total, each, 7) == pytest.approx(np.var(errors, axis=0, ddof=1).sum(), rel=1e-12)


def test_a_statistic_without_a_block_is_that_of_the_other_repeats() -> None:
    errors = np.random.default_rng(2).normal(0.1, 1, (9, 12))  # blocks of 2, the last of 1
    found = filled(errors, 2).products()
    for place, part in enumerate((errors[:, :4], errors[:, 4:])):
        for block in range(5):
            left = np.delete(part, [2 * block, 2 * block + 1][: 9 - 2 * block], axis=0)
            total, each = np.sum(left.sum(0) ** 2), np.sum(left**2)
            assert found.bias().deleted[place, block] == pytest.approx(u_statistic(total, each, len(left)), rel=1e-9)
            assert found.variance().deleted[place, block] == pytest.approx(np.var(left, axis=0, ddof=1).sum(), rel=1e-9)


def test_merged_moments_are_those_of_one_pass_to_the_bit() -> None:
    errors = np.random.default_rng(3).normal(0, 1, (12, 30))
    whole = filled(errors, 3).products()
    merged = filled(errors[6:], 3, first=6).merge(filled(errors[:6], 3)).products()
    for one, other in ((whole.gram, merged.gram), (whole.squares, merged.squares), (whole.counts, merged.counts)):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match="repeat = 3: in both analyses"):
        filled(errors[3:], 3, first=3).merge(filled(errors[:6], 3))
    with pytest.raises(InputError, match="cannot be merged"):
        filled(errors, 3).merge(filled(errors, 4))


def test_the_interval_is_the_jackknife_with_students_t() -> None:
    rng = np.random.default_rng(4)
    batches = [products(rng.normal(0.4, 1, (20, 5)), 2).bias() for _ in range(3)]
    (found,) = combine(batches, 0.01)
    shares = [9 / 10 * np.sum((b.deleted[0] - b.deleted[0].mean()) ** 2) for b in batches]
    freedom = sum(shares) ** 2 / sum(share**2 / 9 for share in shares)
    half = stats.t.isf(0.005, freedom) * np.sqrt(sum(shares)) / 3
    assert found.value == pytest.approx(np.mean([b.value[0] for b in batches]))
    assert found.high - found.value == pytest.approx(half, rel=1e-9)
    assert found.value - found.low == pytest.approx(half, rel=1e-9)


@pytest.mark.parametrize("tail", [0.5, 0.05, 1e-3, 1e-7])
@pytest.mark.parametrize("freedom", [1.0, 2.5, 9.0, 36.0, 4000.0])
def test_student_t(tail: float, freedom: float) -> None:
    assert student_t(tail, freedom) == pytest.approx(stats.t.isf(tail / 2, freedom), rel=1e-9)


def test_what_never_varies_has_no_interval() -> None:
    same = products(np.tile(np.array([3.0, 4.0]), (8, 1)), 2)
    (found,) = bias_intervals([same, same], 0.01)
    assert (found.low, found.value, found.high) == pytest.approx((25.0, 25.0, 25.0), rel=1e-9)
    (none,) = bias_intervals([products(np.zeros((8, 3)), 2)], 0.01)
    assert none == Interval(0.0, 0.0, 0.0)


@pytest.mark.parametrize("spectrum", ["one", "power", "flat"])
def test_the_variance_of_a_degenerate_statistic(spectrum: str) -> None:
    """With no bias, U varies by 2 tr(C^2) / (R (R - 1)); its estimate has no bias, and the jackknife is never below."""
    values = {"one": np.ones(1), "power": 1 / np.arange(1, 60), "flat": np.ones(200)}[spectrum]
    rng = np.random.default_rng(5)
    found = [products(rng.normal(size=(20, len(values))) * np.sqrt(values), 2) for _ in range(600)]
    true = 2 * np.sum(values**2) / (20 * 19)
    assert np.mean([one.degenerate_variances()[0] for one in found]) == pytest.approx(true, rel=0.2)
    assert np.var([one.bias().value[0] for one in found]) == pytest.approx(true, rel=0.35)
    jackknife = [0.9 * np.sum((d - d.mean()) ** 2) for d in (one.bias().deleted[0] for one in found)]
    assert np.mean(jackknife) > 1.3 * true


@pytest.mark.parametrize("dimensions", [1, 3, 40])
@pytest.mark.parametrize("bias", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("heavy", [False, True])
def test_intervals_miss_no_more_often_than_they_say(dimensions: int, bias: float, heavy: bool) -> None:
    """500 runs each: at most 2.5 % below and 2.5 % above, with slack for chance; at bias 0 far fewer below."""
    rng = np.random.default_rng(6)
    below = above = 0
    for _ in range(500):
        draw = rng.standard_t(4, (4, 20, dimensions)) if heavy else rng.normal(size=(4, 20, dimensions))
        draw[:, :, 0] += bias
        (found,) = bias_intervals([products(errors, 2) for errors in draw], 0.05)
        below += found.high < bias**2
        above += found.low > bias**2
    limit = int(stats.binom.isf(1e-4, 500, 0.025))
    assert below <= limit
    assert above <= (5 if bias == 0 else limit)


def test_a_sketch_keeps_small_vectors_and_adds_up() -> None:
    rng = np.random.default_rng(7)
    small = rng.normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(sketch(small, 20), small.reshape(-1).astype(np.float64))
    a, b = (rng.normal(size=5000).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(sketch(a, 512) + sketch(b, 512), sketch(a + b, 512), atol=1e-4)
    assert sketch(a, 512).shape == (512,)


@pytest.mark.parametrize("kept", [1, 10, 20_000])
def test_a_sketch_keeps_the_squared_norm_however_few_elements_hold_it(kept: int) -> None:
    x = np.zeros(20_000, np.float32)
    x[np.random.default_rng(8).permutation(20_000)[:kept]] = np.random.default_rng(9).normal(size=kept)
    assert np.sum(sketch(x, 4096) ** 2) == pytest.approx(np.sum(x.astype(np.float64) ** 2), rel=4 * np.sqrt(2 / 4096))


def test_verdicts() -> None:
    assert verdict(Interval(0.5, 0.2, 0.9), 1e4, 0.01) == "negligible"
    assert verdict(Interval(1.5, 1.2, 1.9), 1e4, 0.01) == "biased"
    assert verdict(Interval(1.0, 0.9, 1.1), 1e4, 0.01) == "undecided"
    assert verdict(Interval(0.0, 0.0, 0.0), 0.0, 0.01) == "negligible"
