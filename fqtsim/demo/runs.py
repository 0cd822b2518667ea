"""Train the demo's network under one recipe and hardware, and keep what the report needs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqtsim.evaluate.verdict import short
from fqtsim.train.config import TrainConfig, build_trainer, resolve
from fqtsim.train.intervals import paired_difference, show_share
from fqtsim.train.loop import predictions, run

BASE = TrainConfig(
    model="cnn",
    data="digits",
    recipe="bhq5",
    hardware=("int8_acc32_wrap",),
    batch=64,
    set_recipe={"optimizer.lr": "0.05"},
)
#: A run whose best possible accuracy is below this share is not training; chance is 0.1.
TRAINS = 0.5
#: Points of accuracy that a run may lose, at the bad end of its interval, and still be said to train.
SLACK = 0.03


@dataclass(frozen=True)
class Outcome:
    """One finished run."""

    config: TrainConfig
    #: Loss of each step.
    losses: tuple[float, ...]
    #: Whether each test image is classified right.
    right: NDArray[np.bool_]
    #: The report of every GEMM of every layer over the run.
    events: tuple[dict[str, Any], ...]
    digest: str
    seconds: float

    @property
    def label(self) -> str:
        """What the demo calls the run: its recipe, and the hardware where integers run on it."""
        recipe = self.config.recipe
        return recipe if recipe in ("fp32", "qat") else f"{recipe} on {self.hardware}"

    @property
    def hardware(self) -> str:
        """The description's name, with what the run changes in it."""
        return ", ".join([self.config.hardware[0], *self.config.set_hardware.values()])

    @property
    def share(self) -> str:
        """The accuracy with its 95 % interval."""
        return show_share(int(self.right.sum()), len(self.right))

    def total(self, key: str) -> int:
        """Return the sum of one count over all GEMMs."""
        return sum(row[key] for row in self.events)

    def widest(self) -> dict[str, Any]:
        """Return the report of the GEMM whose sums need the widest accumulator."""
        return max(self.events, key=lambda row: int(row["bits_needed"]))


def train_one(config: TrainConfig, out: Path, on_step: Callable[[], None]) -> Outcome:
    """Train in the folder `out` and return what happened."""
    start = time.perf_counter()
    losses: list[float] = []

    def record(line: Any) -> None:
        losses.append(line.loss)
        on_step()

    result = run(replace(config, eval_every=10**9), out, on_step=record)
    seconds = time.perf_counter() - start
    resolved = resolve(config)
    trainer = build_trainer(resolved)
    trainer.load(out / "checkpoint.safetensors")
    right = predictions(trainer, resolved.data.test_x, config.batch) == resolved.data.test_y
    events = json.loads((out / "events.json").read_text(encoding="utf-8"))["layers"]
    return Outcome(config, tuple(losses), right, tuple(events), result.digest, seconds)


def verdict(ours: Outcome, baseline: Outcome, wide: Outcome) -> str:
    """Return one line: does it train, how far from the baseline, what was altered, how many bits it wants.

    `wide` is the run on an accumulator that changes nothing; an equal digest means the same training to the bit.
    """
    difference, half = paired_difference(ours.right, baseline.right)
    if ours.right.mean() < TRAINS:
        word = "does not train"
    elif difference - half < -SLACK and difference + half < 0:
        word = "trains, and loses accuracy"
    else:
        word = "trains"
    widest = ours.widest()
    same = f", as on {wide.hardware} to the bit" if ours is not wide and ours.digest == wide.digest else ""
    return (
        f"{ours.hardware}: {word}{same}, {100 * difference:+.1f} +- {100 * half:.1f} points against "
        f"{baseline.label}; {short(ours.total('altered'))} of {short(ours.total('outputs'))} outputs altered; "
        f"{widest['gemm']} of {widest['layer']} needs {widest['bits_needed']} bits"
    )
