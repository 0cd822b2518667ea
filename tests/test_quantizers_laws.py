"""What the paper says about the quantizers' variance, measured; and the authors' own PTQ with its NaN hole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fqtsim.errors import InputError
from fqtsim.quantizers import quantizer
from fqtsim.quantizers.authors_ptq import authors_ptq

Float32 = npt.NDArray[np.float32]


def variance(name: str, bits: int, x: Float32, zero: str = "float_offset", draws: int = 4) -> float:
    """Return the summed squared error of stochastic rounding, mean over draws."""
    q = quantizer(name, bits, "stochastic", 24, zero=zero)
    return float(np.mean([np.square(q.quantize(x, step=i).dequantize() - x).sum(dtype=float) for i in range(draws)]))


def gaussian(rows: int, columns: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 7, 6, 5])
def test_one_bit_fewer_costs_the_square_of_the_ratio_of_bins(bits: int) -> None:
    """4.03, 4.06, 4.13, 4.27 (Var <= N D R**2 / (4 B**2), B = 2**bits - 1)."""
    x = gaussian(32, 4096)
    ratio = variance("psq", bits - 1, x) / variance("psq", bits, x)
    assert ratio == pytest.approx(((2**bits - 1) / (2 ** (bits - 1) - 1)) ** 2, rel=0.015)


@pytest.mark.parametrize("name", ["ptq", "psq"])
def test_variance_is_two_thirds_of_the_bound(name: str) -> None:
    x = gaussian(32, 4096)
    rows = x.reshape(1, -1) if name == "ptq" else x
    bound = (np.ptp(rows, axis=1) ** 2).sum() * rows.shape[1] / (4 * 255**2)
    assert variance(name, 8, x) / bound == pytest.approx(2 / 3, rel=0.02)


@pytest.mark.parametrize("rows", [8, 32, 128])
def test_bhq_spreads_a_single_large_row_over_all(rows: int) -> None:
    """PSQ/BHQ is about N: 7.6, 31, 129 measured on a prototype."""
    x = gaussian(rows, 1024)
    x[3] *= 1e5
    assert variance("psq", 5, x) / variance("bhq", 5, x) == pytest.approx(rows, rel=0.15)


def test_quantizers_are_ordered_on_heavy_tailed_rows() -> None:
    x = gaussian(128, 256) * np.exp(2 * gaussian(128, 1, seed=1))
    assert variance("ptq", 5, x) > 5 * variance("psq", 5, x) > 10 * variance("bhq", 5, x)


@pytest.mark.parametrize("name", ["ptq", "psq", "bhq"])
@pytest.mark.parametrize("zero", ["aligned", "float_offset"])
def test_gradient_quantizers_are_unbiased(name: str, zero: str) -> None:
    x = gaussian(8, 64) * np.exp(gaussian(8, 1, seed=1))
    q = quantizer(name, 4, "stochastic", 24, zero=zero)
    draws = np.stack([q.quantize(x, step=i).dequantize() for i in range(600)]).astype(float)
    spread = draws.std(axis=0).max(axis=1, keepdims=True)  # of the row: a single element may hardly ever move
    z = (draws.mean(axis=0) - x) / spread * np.sqrt(600)
    assert np.abs(z).max() < 5.5
    assert np.abs(z.mean()) < 0.3


def test_few_random_bits_are_low_by_half_a_unit_on_average() -> None:
    """S5.6: with n bits the mean is low by 2**-(n + 1) of a step; n = 2 makes 1/8."""
    x = gaussian(4, 20000)
    t = quantizer("psq", 6, "stochastic", 2).quantize(x)
    bias = ((t.dequantize() - x) / t.step[:, None]).mean()
    assert bias == pytest.approx(-1 / 8, abs=0.01)


def test_aligned_values_near_zero_are_cheap_for_ptq() -> None:
    """Alignment puts zero on the grid, so near-zero rows cost little: it shrinks the gap between PTQ and PSQ."""
    x = gaussian(64, 512)
    x[4:] *= 1e-4
    gaps = [variance("ptq", 5, x, zero) / variance("psq", 5, x, zero) for zero in ("aligned", "float_offset")]
    assert gaps[1] > 4 * gaps[0]


class TestAuthorsPtq:
    x = np.concatenate([np.float32([-0.05, 1.0]), np.linspace(-0.05, 1, 50, dtype=np.float32)])

    def test_the_nan_hole(self) -> None:
        assert np.isnan(authors_ptq(self.x, 4)).all()
        assert np.isfinite(authors_ptq(self.x, 5)).all()
        aligned = quantizer("ptq", 4, "ties_to_even").quantize(self.x).dequantize()
        assert np.abs(aligned - self.x).max() < 0.5 / 14 + 1e-6

    def test_zero_is_exact_where_it_works(self) -> None:
        x = np.append(self.x, np.float32(0))
        assert authors_ptq(x, 8)[-1] == pytest.approx(0, abs=1e-7)

    def test_noise_rounds_stochastically(self) -> None:
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, (4000, *self.x.shape)).astype(np.float32)
        mean = np.mean([authors_ptq(self.x, 5, n) for n in noise], axis=0)
        assert mean == pytest.approx(self.x, abs=5 * (1.05 / 31) / 2 / np.sqrt(4000) + 1e-4)

    def test_torch(self) -> None:
        tensor = authors_ptq(torch.tensor(self.x), 5, torch.zeros(self.x.shape))
        assert isinstance(tensor, torch.Tensor)
        assert np.array_equal(tensor.numpy(), authors_ptq(self.x, 5))

    def test_other_types_are_errors(self) -> None:
        with pytest.raises(InputError, match="must be float32"):
            authors_ptq(np.ones(3), 5)
