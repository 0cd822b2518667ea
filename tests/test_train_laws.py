"""The state is a pure function of data, recipe, hardware and seed: not of order, layout, threads or backend (S5)."""

from __future__ import annotations

import copy
from typing import Any

import numba
import numpy as np
import pytest
import torch
from torch import nn

import fqtsim
from fqtsim.backends import get_backend
from fqtsim.backends.base import Backend
from fqtsim.backends.primitives import Primitives
from fqtsim.errors import BackendRefused
from fqtsim.train.module import FQTModule
from fqtsim.train.trainer import Trainer

OPTIMIZER = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}


class Residual(nn.Module):
    """Three readers of one value, a strided shortcut, both norms, dropout and every kind of pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.right = nn.Conv2d(8, 8, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.average = nn.AvgPool2d(3, 2, 1)
        self.drop = nn.Dropout(0.2)
        self.norm1 = nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.left(x) + self.right(x) + x
        x = self.pool(x) + self.average(x)
        x = self.norm1(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return self.fc(self.drop(x))


def network(
    recipe: str = "bhq5", backend: str | Backend = "emulator", machine: str = "int8_acc24_saturate"
) -> FQTModule:
    model = Residual()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(0.4 * rng.standard_normal(tuple(parameter.shape)).astype(np.float32)))
    return fqtsim.fully_quantize(model, recipe, machine, backend, seed=5)


def images(count: int = 8, side: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((count, 3, side, side)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(rng.integers(0, 5, count))


def trained(net: FQTModule, steps: int = 3, layout: Any = torch.contiguous_format, side: int = 10) -> str:
    trainer, (x, labels) = Trainer(net, OPTIMIZER), images(side=side)
    x = x.to(memory_format=layout)
    for _ in range(steps):
        trainer.step(x, labels)
    return trainer.digest().hex


class Permuted(Primitives):
    """Sums in another order each time: a float sum would not survive it."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)

    def exact_sum64(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        for one in axes:
            x = np.take(x, self.rng.permutation(x.shape[one]), axis=one)
        return super().exact_sum64(x, axis, keepdims)


@pytest.mark.parametrize("recipe", ["ptq8", "psq6", "bhq5"])
def test_order_of_reductions_changes_nothing(recipe: str) -> None:
    backend = copy.copy(get_backend("emulator"))
    backend.primitives = Permuted()
    assert trained(network(recipe, backend)) == trained(network(recipe))


def test_a_plain_float_sum_would_be_noticed() -> None:
    """The test above has power: with numpy's sums the permutation shows."""

    class Plain(Permuted):
        def exact_sum64(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
            axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
            for one in axes:
                x = np.take(x, self.rng.permutation(x.shape[one]), axis=one)
            return np.asarray(np.sum(x, axis, keepdims=keepdims)).astype(np.float64)

    backend = copy.copy(get_backend("emulator"))
    backend.primitives = Plain()
    with pytest.raises(BackendRefused):
        network(backend=backend)
    net = network()
    net._run.backend = backend  # past the proof of primitives
    assert trained(net) != trained(network())


def test_memory_layout_changes_nothing() -> None:
    assert trained(network(), layout=torch.channels_last) == trained(network())


@pytest.mark.parametrize("backend", ["stepwise", "native"])
def test_backend_changes_nothing(backend: str) -> None:
    machine = "int8_acc32_wrap"
    assert trained(network(backend=backend, machine=machine)) == trained(network(machine=machine))


def test_reference_agrees() -> None:
    ends = []
    for backend in ("emulator", "reference"):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
        with torch.no_grad():
            for i, parameter in enumerate(model.parameters()):
                size = parameter.numel()
                parameter.copy_(((torch.arange(size) * 7 + i) % 11 / 10 - 0.5).reshape(parameter.shape))
        net = fqtsim.fully_quantize(model, "bhq4", "int8_acc12_saturate", backend)
        trainer, rng = Trainer(net, OPTIMIZER), np.random.default_rng(2)
        for _ in range(2):
            x = rng.standard_normal((4, 1, 4, 4)).astype(np.float32)
            trainer.step(torch.from_numpy(x), torch.tensor([0, 1, 2, 0]))
        ends.append((trainer.digest(), net.report()))
    assert ends[0] == ends[1]
    assert sum(row["altered"] for row in ends[0][1]) > 0


def test_native_refuses_what_it_cannot_guarantee() -> None:
    with pytest.raises(BackendRefused) as caught:
        network(backend="native", machine="int8_acc16_saturate")
    assert str(caught.value).startswith("layer 'stem', fprop: native refuses: ")


def test_backend_may_change_between_steps() -> None:
    net = network()
    trainer, (x, labels) = Trainer(net, OPTIMIZER), images()
    trainer.step(x, labels)
    net.set_backend("stepwise")
    assert net.backend.name == "stepwise"
    for _ in range(2):
        trainer.step(x, labels)
    assert trainer.digest().hex == trained(network())


def test_a_narrow_accumulator_changes_the_state() -> None:
    assert trained(network(machine="int8_acc16_saturate")) != trained(network())


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two Numba threads")
def test_number_of_threads_changes_nothing() -> None:
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(2)
        two = trained(network(), 2, side=33)
        numba.set_num_threads(1)
        one = trained(network(), 2, side=33)
    finally:
        numba.set_num_threads(before)
    assert one == two


def test_seed_changes_the_state_and_repetition_does_not() -> None:
    assert trained(network()) == trained(network())
    other = network()
    other._run.seed = 6
    assert trained(other) != trained(network())


def test_gradients_of_three_readers_are_added_in_forward_order() -> None:
    """Each branch multiplies by its weight alone; the order of the sum decides the last bit."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Flatten() for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.relu(x) + nn.functional.relu6(x) + torch.flatten(x, 1)

    net = fqtsim.fully_quantize(Three(), "ptq8", "int8_acc32_wrap")
    calls: list[Any] = []

    class Recorded(Primitives):
        def add(self, x: Any, y: Any) -> Any:
            calls.append((np.array(x), np.array(y)))
            return super().add(x, y)

    backend = copy.copy(get_backend("emulator"))
    backend.primitives = Recorded()
    net.set_backend(backend)
    x = torch.tensor([[1.0, 7.0, -1.0]]).requires_grad_()
    y = net(x)
    calls.clear()
    y.backward(torch.tensor([[1.0, 2.0, 4.0]]))
    # relu lets 1 2 0 through, relu6 1 0 0, the shortcut 1 2 4.
    assert [(a.tolist(), b.tolist()) for a, b in calls] == [
        ([[1, 2, 0]], [[1, 0, 0]]),
        ([[2, 2, 0]], [[1, 2, 4]]),
    ]
    assert x.grad is not None
    assert x.grad.tolist() == [[3, 4, 4]]


def test_caller_may_reuse_the_batch_before_backward() -> None:
    x, _ = images()
    nets = [network("fp32"), network("fp32")]
    grads = []
    for net, spoil in zip(nets, (False, True), strict=True):
        batch = x.clone()
        y = net(batch)
        if spoil:
            batch.zero_()
        y.sum().backward()
        grads.append(net.get_parameter("stem.weight").grad)
    assert torch.equal(grads[0], grads[1])  # type: ignore[arg-type]
