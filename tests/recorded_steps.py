"""What tests of recorded steps share: networks, batches, and a recorder that runs the program again.

It stands in for a CUDA graph and keeps the promise of Recorder, no more.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels then run on CPU tensors

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

import fqtsim
from fqtsim.backends.device import DeviceEmulator, DeviceNative
from fqtsim.data import load_dataset
from fqtsim.data.batches import training_batch
from fqtsim.models import build_model
from fqtsim.train.check_report import parse_checks
from fqtsim.train.checks import Checker

DATA = load_dataset("digits")
WRAP, SATURATE, TREE = "int8_acc32_wrap", "int8_acc24_saturate", "int8_acc20_tree4"
RULE = dict(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
COSINE = dict(name="cosine")


class Recorder:
    """Runs a program anew for each replay and copies what it gives to where the recording left it."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, program: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        outcome = program()
        places = outcome.tensors()
        for place in places:
            place.fill_(77)  # a graph computes nothing while it is captured

        def replay() -> None:
            self.replayed += 1
            for place, value in zip(places, program().tensors(), strict=True):
                place.copy_(value)

        return outcome, replay


def device(kind: type[DeviceNative] | type[DeviceEmulator], recorder: Any) -> Any:
    backend = kind("cpu")
    backend.recorder = recorder
    return backend


class WithDropout(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(1, 6, 3, stride=2), torch.nn.BatchNorm2d(6)
        self.drop, self.last = torch.nn.Dropout(0.3), torch.nn.Linear(6 * 9, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.flatten(self.drop(torch.relu(self.norm(self.conv(x)))), 1))


def trainer_of(model: str, recipe: str, hardware: str, backend: Any) -> fqtsim.Trainer:
    torch.manual_seed(0)
    module = WithDropout() if model == "dropout" else build_model(model, DATA.info, 0)
    net = fqtsim.fully_quantize(module, recipe, hardware, backend, seed=2)
    return fqtsim.Trainer(net, RULE, COSINE, total_steps=9)


def train(trainer: fqtsim.Trainer, batches: list[int], checker: Checker | None = None) -> list[float]:
    losses = []
    for size in batches:
        x, y = training_batch(DATA, 0, trainer.step_index, size)
        with nullcontext() if checker is None else checker.watching():
            losses.append(trainer.step(torch.from_numpy(x), torch.from_numpy(y)))
    return losses


def outcome(trainer: fqtsim.Trainer) -> tuple[Any, ...]:
    clamps = [layer.activation_clamps for layer in trainer.net.modules() if hasattr(layer, "activation_clamps")]
    return trainer.digest().hex, trainer.net.report(), trainer.net.ties, clamps


def train_once(trainer: fqtsim.Trainer) -> None:
    x, y = training_batch(DATA, 0, trainer.step_index, 8)
    trainer.step(torch.from_numpy(x), torch.from_numpy(y))


def checked(trainer: fqtsim.Trainer, asked: str) -> Checker:
    return Checker(trainer.net, parse_checks(asked))
