"""The formulas of fqtsim.analysis.laws against counting, integration and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from law_draws import gaussian

from fqtsim.analysis import laws
from fqtsim.analysis.bounds import mixing_weights, variance_bound
from fqtsim.quantizers import quantizer
from fqtsim.quantizers.block_householder import group_rows, integer_ranges
from fqtsim.ref.stochastic import round_value
from fqtsim.words import Rounding


def test_the_quoted_ratios_per_bit() -> None:
    plain = [laws.per_bit_ratio(bits, bits - 1) for bits in (8, 7, 6, 5)]
    assert plain == pytest.approx([4.03, 4.06, 4.13, 4.27], abs=0.005)
    assert laws.per_bit_ratio(8, 5) == pytest.approx(67.7, abs=0.05)
    assert laws.per_bit_ratio(8, 4) == 289
    assert 4.4 < laws.aligned_per_bit_ratio(5, 4) < 4.5


@pytest.mark.parametrize("n", [1, 2, 5])
def test_moments_of_one_rounding_by_counting_every_random_integer(n: int) -> None:
    y = np.concatenate([np.linspace(-3, 3, 49), [1 / 3, -1e-6, 1e-6, 2**-n, -(2**-n)]]).astype(np.float32)
    for value in y.astype(float):
        rounded = np.array([round_value(value, Rounding.STOCHASTIC, r, n) for r in range(2**n)], float)
        assert rounded.mean() - value == pytest.approx(laws.rounding_bias(value, n), abs=1e-12)
        assert rounded.var() == pytest.approx(laws.rounding_variance(value, n), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_expected_moments_are_means_over_even_fractions(n: int) -> None:
    y = (np.arange(2**14) + 0.5) / 2**14 * 5 - 2
    assert laws.rounding_bias(y, n).mean() == pytest.approx(laws.expected_bias(n), abs=1e-6)
    assert laws.rounding_variance(y, n).mean() == pytest.approx(laws.expected_variance(n), rel=1e-3)


def test_the_expected_bias_is_exact_for_symmetric_values() -> None:
    """Also far from even fractions: values next to zero, on both sides alike."""
    y = np.abs(gaussian(1, 1000)[0].astype(float)) * 0.01 + 1e-7
    assert laws.rounding_bias(np.r_[y, -y], 3).mean() == pytest.approx(laws.expected_bias(3), rel=1e-12)


@pytest.mark.parametrize("terms", [1, 30])
def test_bias_of_a_sum_of_equal_products_by_its_noise(terms: int) -> None:
    x = gaussian(terms, 60_000)
    q = quantizer("psq", 6, "stochastic", 2, zero="float_offset")
    errors = (q.quantize(x).dequantize().astype(float) - x) / np.asarray(q.quantize(x).step, float)[:, None]
    total = errors.sum(axis=0)
    assert -total.mean() / total.std() == pytest.approx(laws.bias_to_noise(2, terms), rel=0.03)
    total = (errors * np.linspace(-1, 1.5, terms)[:, None]).sum(axis=0)
    assert -total.mean() / total.std() < laws.bias_to_noise(2, terms)


@pytest.mark.parametrize("bits", [3, 4, 5, 8])
def test_the_widening_is_the_same_in_every_cell(bits: int) -> None:
    top = laws.bins(bits)
    phase = (np.arange(20000) + 0.5) / 20000
    for k in range(0, top, max(1, top // 7)):
        asymmetry = (k + phase) / top
        assert laws.widening(-asymmetry, 1 - asymmetry, bits).mean() == pytest.approx(
            laws.expected_widening(bits), rel=1e-4
        )


@pytest.mark.parametrize("low", [-1.0, -0.03, 0.0, 0.4])
@pytest.mark.parametrize("bits", [3, 5, 8])
def test_the_widening_is_that_of_the_grids(bits: int, low: float) -> None:
    x = np.float32([[low, 1.0], [low, 0.5], [low, 7.0]])
    steps = [np.asarray(quantizer("psq", bits, "ties_to_even", zero=z).quantize(x).step, float)
             for z in ("aligned", "float_offset")]  # fmt: skip
    found = laws.widening(x.min(axis=1), x.max(axis=1), bits)
    assert found == pytest.approx((steps[0] / steps[1]) ** 2, rel=1e-6)
    assert laws.widening(0.0, 0.0, bits) == 1


def test_the_authors_widening() -> None:
    """1.03, 1.09, 1.15, 1.28 for 8, 6, 5, 4 bits, found before by averaging over asymmetries; the hole apart."""
    assert [laws.authors_widening(bits) for bits in (8, 6, 5, 4)] == pytest.approx([1.03, 1.09, 1.15, 1.28], abs=0.011)
    t = np.random.default_rng(0).uniform(1, 15, 400_000)  # of 0..15; 0..1 is the hole
    assert np.mean((t / np.floor(t)) ** 2) == pytest.approx(laws.authors_widening(4), rel=2e-3)


@pytest.mark.parametrize("u", [1e-4, 0.01, 0.0999, 0.1001, 0.2, 0.5, 3.0, 99.0, 101.0])
def test_mass_near_zero_by_integration(u: float) -> None:
    # The quantiles of both distributions, so that a mean over them is an integral.
    p = (np.arange(400_000) + 0.5) / 400_000
    scipy_stats = pytest.importorskip("scipy.stats")
    assert laws.near_zero(scipy_stats.norm.ppf(p) * u) == pytest.approx(float(laws.near_zero_gaussian(u)), rel=2e-3)
    assert laws.near_zero(scipy_stats.laplace.ppf(p) * u) == pytest.approx(float(laws.near_zero_laplace(u)), rel=2e-3)


def test_limits_of_the_mass_near_zero() -> None:
    assert laws.near_zero_gaussian(np.array([0.0, 1e-3, 50.0])) == pytest.approx(
        [0, 6 * math.sqrt(2 / math.pi) * 1e-3, 1], rel=2e-3
    )
    assert laws.near_zero_laplace(np.array([0.0, 1e-3, 1e9])) == pytest.approx([0, 6e-3, 1], rel=3e-3)
    assert laws.near_zero([0.0, 1.0, -3.0]) == 0
    assert laws.near_zero([0.5]) == 1.5


@pytest.mark.parametrize("name", ["ptq", "psq", "bhq"])
def test_the_plain_bounds_are_those_of_the_steps(name: str) -> None:
    x = (gaussian(12, 50) * np.exp(gaussian(12, 1, seed=1))).astype(np.float32)
    by_name = {"ptq": laws.ptq_bound, "psq": laws.psq_bound, "bhq": laws.bhq_bound}[name](x, 6)
    q = quantizer(name, 6, "stochastic", 24, zero="float_offset")
    assert variance_bound(q.quantize(x)) == pytest.approx(by_name, rel=1e-5)
    assert 0 < laws.exact_variance(q, x) <= by_name


def test_weights_of_mixed_rows() -> None:
    """1 / (n s1**2) + (1 - 1/n) / s2**2, from the scales of each group."""
    x = gaussian(9, 40)
    x[2] *= 100
    tensor = quantizer("bhq", 5, "ties_to_even").quantize(x)
    ranges = np.ptp(x.astype(float), axis=1)
    assert tensor.groups == group_rows(integer_ranges(ranges))
    weights = mixing_weights(tensor)
    for group in tensor.groups or []:
        n, s1, s2 = len(group), tensor._mixing.s[group[0]], tensor._mixing.s[group[1]]
        assert weights[group] == pytest.approx(np.full(n, 1 / (n * s1**2) + (1 - 1 / n) / s2**2), rel=1e-5)


@pytest.mark.parametrize("zero", ["aligned", "float_offset", "symmetric"])
@pytest.mark.parametrize("name", ["ptq", "psq", "bhq"])
@pytest.mark.parametrize("n", [2, 24])
def test_exact_moments_against_many_draws(name: str, zero: str, n: int) -> None:
    x = (gaussian(8, 64) * np.exp(gaussian(8, 1, seed=1))).astype(np.float32)
    q = quantizer(name, 4, "stochastic", n, zero=zero, format="int8")
    draws = np.stack([q.quantize(x, step=i).dequantize() for i in range(400)]).astype(float)
    exact = laws.exact_variance(q, x)
    assert draws.var(axis=0, ddof=1).sum() == pytest.approx(exact, rel=0.03)
    off = np.square(draws.mean(axis=0) - x - laws.exact_bias(q, x)).sum() * 400 / exact
    assert off == pytest.approx(1, abs=0.35)


def test_a_rounding_without_random_bits_has_bias_and_no_variance() -> None:
    x = gaussian(4, 32)
    q = quantizer("psq", 4, "toward_negative")
    assert laws.exact_variance(q, x) == 0
    assert laws.exact_bias(q, x) == pytest.approx(q.quantize(x).dequantize() - x)
    assert laws.exact_bias(q, x).mean() < 0


def test_bhq_closed_form_is_near_the_bound_of_one_group() -> None:
    x = gaussian(64, 512)
    x[0] *= 1e4
    ranges = np.sort(np.ptp(x.astype(float), axis=1))
    estimate = laws.bhq_group_estimate(ranges[-1], ranges[-2], 64, 512, 5)
    assert laws.bhq_bound(x, 5) == pytest.approx(estimate, rel=0.1)
    assert laws.psq_bound(x, 5) / laws.bhq_bound(x, 5) == pytest.approx(64, rel=0.1)
