"""fqtsim/kernels/gpu/norm.py: batch norm, with and without the ReLU behind it, equals fqtsim/train/norm.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_forms import FORMS, called, layouts, no_flags, same, wide

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.kernels.gpu import norm
from fqtsim.kernels.gpu.launch import Fault
from fqtsim.train import elementwise
from fqtsim.train import norm as cpu_norm

SHAPES = [(3, 5, 6, 7), (16, 3), (4, 3, 9), (3, 40, 2, 2)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_statistics(form: str, shape: tuple[int, ...]) -> None:
    x, flags = wide(shape, spread=3), no_flags()
    mean, var, unbiased = cpu_norm.batch_statistics(x, P)
    _, saved = cpu_norm.batch_norm(x, mean, var, None, 1e-5, True, P)
    for tensor in layouts(x):
        got = called(form, norm.statistics, tensor, 1e-5, flags)
        for expected, values in zip((mean, var, unbiased, saved.inv), got, strict=True):
            same(expected, values.numpy())
    assert not flags.item()
    same(cpu_norm.running(mean, var, 0.1, P), norm.running(got.mean, got.var, 0.1).numpy())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("bad", "fault"), [(np.nan, Fault.NOT_FINITE), (3e38, Fault.NOT_FINITE)])
def test_what_is_not_finite_is_noted(form: str, bad: float, fault: Fault) -> None:
    """The square of a large number is beyond float32, and so a term that is not finite."""
    x, flags = torch.ones(4, 3, 2, 2), no_flags()
    x[2, 1, 0, 1] = bad
    called(form, norm.statistics, x, 1e-5, flags)
    assert flags.item() == fault


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_affine", [False, True])
@pytest.mark.parametrize("from_batch", [False, True])
def test_forward_and_backward(form: str, shape: tuple[int, ...], with_affine: bool, from_batch: bool) -> None:
    x, dy, flags = wide(shape, spread=1), wide(shape, 1, 1), no_flags()
    parameters = wide((2, shape[1]), 2, 1)
    affine = (parameters[0], parameters[1]) if with_affine else None
    on_device = tuple(map(torch.from_numpy, affine)) if affine else None
    mean, var, _ = cpu_norm.batch_statistics(x, P)
    y, saved = cpu_norm.batch_norm(x, mean, var, affine, 1e-5, from_batch, P)
    inv = norm.inverse_deviation(torch.from_numpy(var), 1e-5)
    same(saved.inv, inv.numpy())
    rectified = elementwise.relu(y, P)
    for tensor in layouts(x)[:2]:
        for with_relu in (False, True):
            statistics = torch.from_numpy(mean), inv
            got = called(form, norm.normalize, tensor, *statistics, on_device, with_relu)
            same(rectified if with_relu else y, got.numpy())
            into = elementwise.relu_gradient(rectified, dy) if with_relu else dy
            kept = norm.Saved(tensor, *statistics, on_device, from_batch, with_relu)
            gradients = called(form, norm.gradients, torch.from_numpy(dy), kept, flags)
            for expected, values in zip(cpu_norm.batch_norm_gradients(into, saved, P), gradients, strict=True):
                same(expected, values.numpy())
    assert not flags.item()
