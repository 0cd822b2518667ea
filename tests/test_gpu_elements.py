"""fqtsim/kernels/gpu: sums, ranges, words, elementary functions and the update, in both forms, equal the CPU's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_forms import FORMS, called, layouts, no_flags, same, wide

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.kernels import elementary as cpu_elementary
from fqtsim.kernels import exact_sum as cpu_sum
from fqtsim.kernels import quantize as cpu_quantize
from fqtsim.kernels import random as cpu_random
from fqtsim.kernels.gpu import elementary, elements, random, sums, update
from fqtsim.kernels.gpu.launch import Fault
from fqtsim.kernels.gpu.norm import float32
from fqtsim.train import elementwise
from fqtsim.train.optimizer import Sgd, as_optimizer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 6, 2049])
def test_random_words(form: str, count: int) -> None:
    for key in ((0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 1), (3, 2**31, 5)):
        got = called(form, random.random_words, *key, count, "cpu")
        same(cpu_random.random_words(*key, count), got.numpy().view(np.uint32))


@pytest.mark.parametrize("form", FORMS)
def test_the_step_may_lie_on_the_device(form: str) -> None:
    step = torch.tensor([2**31 - 1], dtype=torch.int32)
    got = called(form, random.random_words, 1, 2, step, 9, "cpu")
    same(cpu_random.random_words(1, 2, 2**31 - 1, 9), got.numpy().view(np.uint32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(5, 7, 6, 3), (2, 3, 8, 8), (5000,), (3, 2100), (700, 2)])
def test_exact_sums_over_any_axes_and_layout(form: str, shape: tuple[int, ...]) -> None:
    flags = no_flags()
    axes = {(0,), (len(shape) - 1,), tuple(range(len(shape))), (0, *range(2, len(shape)))}
    x = wide(shape)
    for tensor in layouts(x):
        for over in axes:
            same(cpu_sum.exact_sum64(x, over), called(form, sums.exact_sum64, tensor, over, flags).numpy())
    assert not flags.item()


@pytest.mark.parametrize("form", FORMS)
def test_sums_at_the_edges(form: str) -> None:
    x = np.float32([[1e-45, -1e-45, -3e-39], [3e38, 3e38, -3e38], [0.0, -0.0, 0.0], [2**24, 1, -(2.0**24)]])
    flags = no_flags()
    same(cpu_sum.exact_sum64(x, (1,)), called(form, sums.exact_sum64, torch.from_numpy(x), (1,), flags).numpy())
    assert not flags.item()
    called(form, sums.exact_sum, torch.full((4,), 3e38), (0,), flags)
    assert flags.item() == Fault.BEYOND_FLOAT32


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_noted(form: str, bad: float) -> None:
    x = torch.ones(3, 300)
    x[1, 7] = bad
    for function in (elements.extremes, lambda x, flags: sums.exact_sum64(x, (1,), flags)):
        flags = no_flags()
        called(form, function, x, flags)
        assert flags.item() == Fault.NOT_FINITE


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 9001), (3, 5, 4, 4), (40, 3), (2, 1)])
def test_extremes(form: str, shape: tuple[int, ...]) -> None:
    x, flags = wide(shape), no_flags()
    x.flat[0] = -0.0
    expected = cpu_quantize.extremes(x.reshape(len(x), -1))
    for tensor in layouts(x):
        for wanted, got in zip(expected, called(form, elements.extremes, tensor, flags), strict=True):
            same(wanted, got.numpy())
    assert not flags.item()


@pytest.mark.parametrize("form", FORMS)
def test_extremes_of_zeros_and_of_one_sign(form: str) -> None:
    x = np.float32([[-0.0, -0.0], [-2, -1], [1, 2], [1e-45, -1e-45]])
    for wanted, got in zip(
        cpu_quantize.extremes(x), called(form, elements.extremes, torch.from_numpy(x), None), strict=True
    ):
        same(wanted, got.numpy())


def test_elementary_functions() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, 1 << 17, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([words, np.uint32([0, 1 << 31, 0x7F800000, 0xFF800000, 1, 0x7FC00000])]).view(np.float32)
    for name in ("exp", "log", "rcbrt", "cos"):
        with np.errstate(all="ignore"):
            expected = getattr(cpu_elementary, name)(x)
        same(expected, getattr(elementary, name)(torch.from_numpy(x)).numpy())
    flags = no_flags()
    elementary.cos(torch.tensor([2.0**20 + 1]), flags)
    assert flags.item() == Fault.OUT_OF_RANGE


@pytest.mark.parametrize("form", FORMS)
def test_relu_and_sums_around_it(form: str) -> None:
    x, y, dy = (wide((70, 31), seed) for seed in range(3))
    x[0, :3] = -0.0, 0.0, np.nan
    y[0, :2] = 0.0
    a, b, d = map(torch.from_numpy, (x, y, dy))
    out = elementwise.relu(P.add(x, y), P)
    same(out, called(form, elements.add_relu, a, b).numpy())
    for dys, gradients in (((d,), [dy]), ((d, a), [dy, x]), ((d, a, b), [dy, x, y])):
        expected = elementwise.relu_gradient(out, elementwise.add_in_order(gradients, P))
        same(expected, called(form, elements.relu_add_gradient, torch.from_numpy(out), dys).numpy())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 1e-4])
def test_sgd(form: str, nesterov: bool, momentum: float, decay: float) -> None:
    if nesterov and not momentum:
        pytest.skip("Nesterov needs momentum")
    settings = dict(name="sgd", lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    rule, (w, g, v), flags = Sgd(as_optimizer(settings), set()), wide((3, 40, 30), spread=2), no_flags()
    rule.momentum = {"w": v} if momentum else {}
    new, velocity = rule.update({"w": w}, {"w": g}, np.float32(0.1), P)
    constants = update.Rule(float32(momentum), float32(decay), nesterov)
    for gradient in (torch.from_numpy(g), torch.from_numpy(np.asfortranarray(g))):
        got = called(
            form, update.sgd, torch.from_numpy(w), gradient, torch.from_numpy(v) if momentum else None,
            torch.full((1,), 0.1), constants, flags,
        )  # fmt: skip
        same(new["w"], got[0].numpy())
        if momentum:
            same(velocity["w"], got[1].numpy())
    assert not flags.item()
    called(form, update.sgd, torch.ones(3), torch.tensor([1.0, np.inf, 1.0]), None, torch.ones(1), constants, flags)
    assert flags.item() == Fault.NOT_FINITE
