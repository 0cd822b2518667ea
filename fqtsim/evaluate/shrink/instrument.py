"""One instrumented run: how far each accumulator got, and how far its weights could have taken it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fqtsim.backends import get_backend
from fqtsim.data import load_dataset
from fqtsim.data.batches import training_batch
from fqtsim.evaluate.job import Job, build
from fqtsim.evaluate.shrink.bounds import code_range, data_type_reach, needed_bits, weight_reach
from fqtsim.evaluate.shrink.space import Place
from fqtsim.hw.lower import Range
from fqtsim.hw.spec import Datapath
from fqtsim.recipe.spec import Recipe
from fqtsim.train.loop import predictions
from fqtsim.words import Overflow

#: Products traced in one GEMM: rows are sampled evenly beyond that.
MOST_TRACED = 1 << 22
#: Steps that are traced, spread evenly over the run.
TRACED_STEPS = 4
#: GEMMs whose right operand is the weight.
WITH_WEIGHTS = ("fprop", "dgrad")


@dataclass
class Seen:
    """What one accumulator met, and what bounds it. Widths are None where no register of the schema would do."""

    layer: str
    gemm: str
    k: int
    #: Lowest and highest result with every register unlimited, over all steps.
    minimum: int
    maximum: int
    #: Lowest and highest exact sum at the accumulator, over the outputs traced.
    partial_minimum: int
    partial_maximum: int
    #: Lowest and highest sum that this run's weight codes allow; 0 for wgrad, which has none.
    weights_minimum: int
    weights_maximum: int
    #: Widths: of the run, of the weight codes (None for wgrad), of the data types.
    seen_bits: int | None = None
    weights_bits: int | None = None
    data_type_bits: int | None = None

    @property
    def place(self) -> Place:
        """The layer and the GEMM."""
        return self.layer, self.gemm


class _Watch:
    """An observer of every GEMM."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.tracing = recipe, False
        self.seen: dict[Place, Seen] = {}
        self.paths: dict[Place, Datapath] = {}
        self.stepwise = get_backend("stepwise")

    def __call__(self, layer: str, gemm: str, a: Any, b: Any, datapath: Datapath, _c: Any, result: Any) -> None:
        seen = self.seen.setdefault((layer, gemm), Seen(layer, gemm, 0, 0, 0, 0, 0, 0, 0))
        self.paths[layer, gemm] = datapath
        seen.k = max(seen.k, a.shape[1])
        seen.minimum, seen.maximum = min(seen.minimum, result.minimum), max(seen.maximum, result.maximum)
        if gemm in WITH_WEIGHTS:
            reach = weight_reach(datapath, b, code_range(self.recipe, datapath, gemm, "a"))
            seen.weights_minimum = min(seen.weights_minimum, reach.low)
            seen.weights_maximum = max(seen.weights_maximum, reach.high)
        if self.tracing:
            rows = max(1, MOST_TRACED // max(1, a.shape[1] * b.shape[1]))
            part = np.ascontiguousarray(a[:: -(-a.shape[0] // rows)])
            trace = (self.stepwise.gemm(part, b, datapath, None, True).trace or ())[-1]
            seen.partial_minimum = min(seen.partial_minimum, trace.minimum)
            seen.partial_maximum = max(seen.partial_maximum, trace.maximum)

    def finished(self) -> list[Seen]:
        """Return what was seen, with the widths that it needs."""
        for place, seen in self.seen.items():
            path, level = self.paths[place], self.paths[place].accumulator
            met = Range(seen.minimum, seen.maximum)
            if level.overflow is not Overflow.WRAP:  # a register that wraps forgives what it passes on the way
                met = Range(min(met.low, seen.partial_minimum), max(met.high, seen.partial_maximum))
            seen.seen_bits = needed_bits(met, level)
            a, b = (code_range(self.recipe, path, seen.gemm, side) for side in ("a", "b"))
            seen.data_type_bits = needed_bits(data_type_reach(path, seen.k, a, b), level)
            if seen.gemm in WITH_WEIGHTS:
                seen.weights_bits = needed_bits(Range(seen.weights_minimum, seen.weights_maximum), level)
        return list(self.seen.values())


def instrumented_run(job: Job, on_step: Callable[[int, int], None] | None = None) -> list[Seen]:
    """Train and evaluate as `job` says and return what every accumulator met, in order of first use.

    Results and weight codes are watched throughout; partial sums are traced on four steps spread over the run and
    on the first batch of the evaluation, up to 2**22 products of a GEMM. Raises TrainingStopped where the run meets
    NaN or infinity.
    """
    plain = job.plain
    data = load_dataset(plain["data"])
    trainer = build(plain, data)
    watch = _Watch(trainer.net.recipe)
    trainer.net.observers.append(watch)
    steps = int(plain["steps"])
    traced = {round(i * (steps - 1) / max(1, TRACED_STEPS - 1)) for i in range(TRACED_STEPS)}
    for step in range(steps):
        watch.tracing = step in traced
        images, labels = training_batch(data, int(plain["seed"]), step, plain["batch"])
        trainer.step(torch.from_numpy(images), torch.from_numpy(labels))
        if on_step is not None:
            on_step(step + 1, steps)
    # The accumulators must hold evaluation too; its first batch is traced.
    first = data.test_x[: plain["batch"]]
    watch.tracing = True
    predictions(trainer, first, plain["batch"])
    watch.tracing = False
    if len(data.test_x) > len(first):
        predictions(trainer, data.test_x[len(first) :], plain["batch"])
    return watch.finished()


def as_plain(seen: list[Seen]) -> list[dict[str, Any]]:
    """Return what was seen as JSON has it."""
    return [asdict(one) for one in seen]


def from_plain(plain: list[Mapping[str, Any]]) -> list[Seen]:
    """Return what as_plain() wrote."""
    return [Seen(**one) for one in plain]
