"""Whole runs: 200 steps of the CNN and 30 of ResNet-8 end in one digest, whoever executes and in whatever order."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
import pytest
import torch

import fqtsim
from fqtsim.backends import get_backend
from fqtsim.backends.base import Array, Backend, GemmResult
from fqtsim.backends.primitives import Primitives
from fqtsim.backends.stepwise import Stepwise
from fqtsim.data import load_dataset
from fqtsim.data.batches import training_batch
from fqtsim.hw.spec import Datapath
from fqtsim.models import build_model

pytestmark = pytest.mark.exhaustive

RUNS = {"cnn": 200, "resnet8": 30}
WIDE_ENOUGH = ("int8_acc32_wrap", "int8_acc24_saturate", "int4_acc16_saturate")
"""As shipped these alter no output of these two networks (docs/decisions/0006)."""


def narrow_wgrad(levels: str) -> dict[str, object]:
    return {"gemms.wgrad.levels": levels}


HARDWARE: dict[str, tuple[str, dict[str, object], str]] = {
    "int8_acc32_wrap": ("int8_acc32_wrap", {}, "bhq5"),
    "int8_acc24_saturate": ("int8_acc24_saturate", {}, "bhq5"),
    "int8_acc20_tree4": ("int8_acc20_tree4", {}, "bhq5"),
    "int8_acc16_saturate": ("int8_acc16_saturate", {}, "bhq5"),
    "int4_acc16_saturate": ("int4_acc16_saturate", {}, "bhq4_int4"),
    "int8_acc24_saturate, wgrad too": (
        "int8_acc24_saturate",
        narrow_wgrad("[{terms: 4, register: exact}, {terms: all, register: int24, overflow: saturate}]"),
        "bhq5",
    ),
    "int4_acc16_saturate, wgrad too": (
        "int4_acc16_saturate",
        narrow_wgrad("[{terms: all, register: int16, overflow: saturate}]"),
        "bhq4_int4",
    ),
}


class PermutedSums(Primitives):
    """Adds every sum in another order."""

    name = "permuted"

    def exact_sum64(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        axes = tuple(range(x.ndim)) if axis is None else axis
        for a in (axes,) if isinstance(axes, int) else axes:
            x = np.take(x, np.random.default_rng(x.shape[a]).permutation(x.shape[a]), axis=a)
        return super().exact_sum64(x, axis, keepdims)


class PermutedProducts(Stepwise):
    """Adds the products of a wrapping datapath in another order of k, and every float sum too."""

    primitives = PermutedSums()

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        order = np.random.default_rng(a.shape[1]).permutation(a.shape[1])
        return super().gemm(np.ascontiguousarray(a[:, order]), np.ascontiguousarray(b[order]), datapath, c, trace)


def train(model: str, hardware: str, backend: str | Backend, layout: Any = torch.contiguous_format) -> tuple[str, int]:
    """Return the digest after the whole run, and how many outputs the hardware altered."""
    data = load_dataset("digits")
    name, overrides, recipe = HARDWARE[hardware]
    described = fqtsim.load_hardware(name, overrides)
    net = fqtsim.fully_quantize(build_model(model, data.info, 0), recipe, described, backend, seed=0)
    trainer = fqtsim.Trainer(net, dict(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4), dict(name="constant"))
    batch = 128 if model == "cnn" else 64
    for step in range(RUNS[model]):
        x, y = training_batch(data, 0, step, batch)
        trainer.step(torch.from_numpy(x).contiguous(memory_format=layout), torch.from_numpy(y))
    return trainer.digest().hex, sum(int(row["altered"]) for row in net.report())


@cache
def by_stepwise(model: str, hardware: str) -> tuple[str, int]:
    return train(model, hardware, "stepwise")


@pytest.mark.parametrize("model", RUNS)
@pytest.mark.parametrize("hardware", HARDWARE)
def test_emulator_equals_stepwise(model: str, hardware: str) -> None:
    digest, altered = by_stepwise(model, hardware)
    print(f"\n{model} on {hardware}: {altered} outputs altered, digest {digest[:16]}")
    assert train(model, hardware, "emulator") == (digest, altered)


@pytest.mark.parametrize("hardware", [name for name in HARDWARE if name not in WIDE_ENOUGH])
def test_narrow_hardware_alters_outputs(hardware: str) -> None:
    assert sum(by_stepwise(model, hardware)[1] for model in RUNS) > 0


@pytest.mark.parametrize("model", RUNS)
def test_native_equals_stepwise(model: str) -> None:
    assert train(model, "int8_acc32_wrap", "native")[0] == by_stepwise(model, "int8_acc32_wrap")[0]


@pytest.mark.parametrize("model", RUNS)
def test_permuted_reductions_change_nothing(model: str) -> None:
    assert train(model, "int8_acc32_wrap", PermutedProducts())[0] == by_stepwise(model, "int8_acc32_wrap")[0]


@pytest.mark.parametrize("model", RUNS)
@pytest.mark.parametrize("hardware", ["int8_acc20_tree4", "int8_acc16_saturate"])
def test_threads_and_layout_change_nothing(model: str, hardware: str) -> None:
    digest, _ = by_stepwise(model, hardware)
    assert train(model, hardware, "emulator", torch.channels_last)[0] == digest
    threads = (torch.get_num_threads(), numba.get_num_threads())
    try:
        torch.set_num_threads(1)
        numba.set_num_threads(1)
        assert train(model, hardware, "emulator")[0] == digest
    finally:
        torch.set_num_threads(threads[0])
        numba.set_num_threads(threads[1])


def test_order_matters_where_the_accumulator_saturates() -> None:
    """The permuting backend is able to fail: a saturating accumulator notices the order of k."""
    narrow = "int8_acc16_saturate"
    assert train("cnn", narrow, PermutedProducts())[0] != by_stepwise("cnn", narrow)[0]


def test_reference_agrees_on_a_tiny_net() -> None:
    digests = set()
    for backend in ("reference", "stepwise", "emulator"):
        net = fqtsim.fully_quantize(
            torch.nn.Sequential(
                torch.nn.Flatten(), _seeded(torch.nn.Linear(64, 6)), torch.nn.ReLU(), _seeded(torch.nn.Linear(6, 10))
            ),
            "bhq5", "int8_acc12_saturate", get_backend(backend), seed=0,
        )  # fmt: skip
        trainer = fqtsim.Trainer(net, dict(name="sgd", lr=0.1, momentum=0.9), dict(name="constant"))
        for step in range(3):
            x, y = training_batch(load_dataset("digits"), 0, step, 16)
            trainer.step(torch.from_numpy(x), torch.from_numpy(y))
        digests.add(trainer.digest().hex)
    assert len(digests) == 1


def _seeded(layer: torch.nn.Linear) -> torch.nn.Linear:
    rng = np.random.default_rng(layer.in_features)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(0.3 * rng.standard_normal(tuple(parameter.shape)).astype(np.float32)))
    return layer
