"""The authors' own PTQ with its NaN hole. The laws of the quantizers' variance are in test_laws_*.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fqtsim.errors import InputError
from fqtsim.quantizers import quantizer
from fqtsim.quantizers.authors_ptq import authors_ptq


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
