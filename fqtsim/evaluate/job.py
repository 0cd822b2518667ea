"""One training run of an evaluation: complete in itself, named by a hash, and reduced to a row of plain data.

Sweeps, searches and reports exchange rows only, so a run may happen in another process or on another machine.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from fqtsim.analysis.gradients import GradientNoise, gradient_noise
from fqtsim.data import Dataset, load_dataset
from fqtsim.data.batches import training_batch
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.evaluate.histogram import PartialSums, sampled_partial_sums
from fqtsim.hw.load import parse_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.models import build_model, model_sha256
from fqtsim.recipe.load import parse_recipe
from fqtsim.recipe.spec import Recipe
from fqtsim.train.config import TrainConfig, resolve
from fqtsim.train.convert import fully_quantize
from fqtsim.train.loop import predictions
from fqtsim.train.trainer import Trainer

#: Recipes that stand for "no gradient on the hardware" in every comparison.
BASELINES = ("fp32", "qat")
#: Points of the loss curve that a row keeps.
MOST_POINTS = 200


@dataclass(frozen=True)
class Design:
    """A hardware and a recipe to be judged, as the user named them."""

    recipe: str
    hardware: tuple[str, ...]
    #: Dotted key -> new value, as YAML text.
    set_hardware: Mapping[str, str] = field(default_factory=dict)
    set_recipe: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What reports call the design: recipe, hardware files by name, and what was changed in them."""
        names = [
            name.rpartition("=")[0] + "=" * ("=" in name) + Path(name.rpartition("=")[2]).stem for name in self.hardware
        ]
        changes = [f"{_short(key)}={value}" for key, value in {**self.set_hardware, **self.set_recipe}.items()]
        where = [] if self.recipe == "fp32" else ["on", " ".join(names)]
        return " ".join([self.recipe, *where, *changes])

    def as_plain(self) -> dict[str, Any]:
        """Return the fields and the label as JSON has them."""
        return {
            "label": self.label,
            "recipe": self.recipe,
            "hardware": list(self.hardware),
            "set_hardware": dict(self.set_hardware),
            "set_recipe": dict(self.set_recipe),
        }


def _short(key: str) -> str:
    """Return a dotted key without what every key of its kind begins with."""
    return key.removeprefix("datapath.").removeprefix("levels.-1.").removeprefix("gemms.")


@dataclass(frozen=True)
class Measure:
    """What to measure at the trained weights, beside the training itself."""

    #: Batches and draws of the rounding for bias and variance of gradients; 0 batches: not measured.
    batches: int = 4
    draws: int = 4
    #: Outputs per GEMM whose partial sums are counted; 0: none.
    outputs: int = 64


@dataclass(frozen=True)
class Job:
    """One training run; `key` names everything that decides its row."""

    design: Design
    plain: Mapping[str, Any]
    key: str

    @classmethod
    def of(cls, config: TrainConfig, measure: Measure | None = None) -> Job:
        """Return the job of a configuration, its files read and checked. Raises InputError."""
        from fqtsim import __version__

        if config.start is not None:
            raise InputError(f"start = {config.start}: an evaluation trains from its seed; leave it out")
        resolved = resolve(config)
        build_model(config.model, resolved.data.info, config.seed)
        read = resolved.as_plain()
        plain = {
            "model": config.model, "model_sha256": model_sha256(config.model), "data": config.data,
            "data_sha256": resolved.data.hash, "seed": config.seed, "steps": resolved.steps, "batch": config.batch,
            "recipe": read["recipe"], "hardware": read["hardware"],
            "measure": asdict(measure or Measure()), "version": __version__,
        }  # fmt: skip
        design = Design(config.recipe, config.hardware, dict(config.set_hardware), dict(config.set_recipe))
        return cls._named(design, plain | {"backend": config.backend})

    @classmethod
    def _named(cls, design: Design, plain: Mapping[str, Any]) -> Job:
        # No result depends on the backend, so it is no part of the name.
        text = json.dumps({key: value for key, value in plain.items() if key != "backend"}, sort_keys=True)
        return cls(design, plain, hashlib.sha256(text.encode()).hexdigest())

    def on_hardware(self, hardware: Mapping[str, Hardware], changes: Mapping[str, str]) -> Job:
        """Return the same run on other hardware, given by pattern of layer names; `changes` say it in words."""
        dumps = {
            pattern: hw.model_dump(mode="json", by_alias=True, exclude_none=True) for pattern, hw in hardware.items()
        }
        design = replace(self.design, set_hardware={**self.design.set_hardware, **changes})
        return self._named(design, {**self.plain, "hardware": dumps})


def hardware_of(plain: Mapping[str, Any]) -> dict[str, Hardware]:
    """Return the descriptions of a row or job, by pattern of layer names."""
    return {
        pattern: parse_hardware(yaml.safe_dump(dump, sort_keys=False), f"{dump['name']} of the run")
        for pattern, dump in plain["hardware"].items()
    }


def build(plain: Mapping[str, Any], data: Dataset, recipe: Recipe | None = None) -> Trainer:
    """Return the trainer of a job's `plain` at step 0; with `recipe`, on that one in place of its own."""
    recipe = recipe or parse_recipe(yaml.safe_dump(plain["recipe"], sort_keys=False), "recipe of the run")
    seed = int(plain["seed"])
    model = build_model(plain["model"], data.info, seed)
    return Trainer(
        fully_quantize(model, recipe, hardware_of(plain), backend=plain["backend"], seed=seed),
        total_steps=plain["steps"],
    )


def run_job(job: Job) -> dict[str, Any]:
    """Train, evaluate and measure. Return the row, which says so where the run met NaN or infinity.

    Raises InputError where the data set is not the one that the job was made for.
    """
    start, plain = time.perf_counter(), job.plain
    data = load_dataset(plain["data"])
    if data.hash != plain["data_sha256"]:
        raise InputError(
            f"data = {plain['data']}: SHA-256 {data.hash[:16]} is not that of the run, {plain['data_sha256'][:16]}; "
            "give every machine the same data set"
        )
    trainer = build(plain, data)
    losses: list[float] = []
    row = _empty_row(job, len(data.test_y), data.info.classes)
    try:
        while trainer.step_index < plain["steps"]:
            images, labels = training_batch(data, int(plain["seed"]), trainer.step_index, plain["batch"])
            losses.append(trainer.step(torch.from_numpy(images), torch.from_numpy(labels)))
        row["events"] = trainer.net.report()
        row |= _accuracy(trainer, data, plain["batch"])
        row["status"] = "done"
    except TrainingStopped as error:
        row |= {"status": "diverged", "message": str(error), "failed_step": trainer.step_index}
        row["events"] = row["events"] or trainer.net.report()
    if row["status"] == "done":
        try:
            row |= _measured(trainer, data, plain)
        except TrainingStopped as error:  # the run itself is done; what could not be measured is said
            row["message"] = f"gradients and partial sums not measured: {error}"
    row |= {"losses": thinned(losses), "loss": _last(losses), "digest": trainer.digest().hex}
    return row | {"seconds": time.perf_counter() - start}


def failed_row(job: Job, message: str) -> dict[str, Any]:
    """Return the row of a run that no process lived to finish."""
    return _empty_row(job, 0) | {"status": "failed", "message": message}


def _empty_row(job: Job, tested: int, classes: int | None = None) -> dict[str, Any]:
    same = {name: job.plain[name] for name in ("model", "data", "seed", "steps", "batch", "backend", "hardware")}
    if classes is not None:
        same["classes"] = classes
    return {
        "key": job.key, "status": "failed", "message": "", "failed_step": None, "design": job.design.as_plain(), **same,
        "tested": tested, "accuracy": None, "right": None, "loss": None, "losses": [], "digest": "", "events": [],
        "gradients": [], "partial_sums": [], "seconds": 0.0,
    }  # fmt: skip


def _accuracy(trainer: Trainer, data: Dataset, batch: int) -> dict[str, Any]:
    right = predictions(trainer, data.test_x, batch) == data.test_y
    return {"accuracy": float(np.mean(right)), "right": np.packbits(right).tobytes().hex()}


def _measured(trainer: Trainer, data: Dataset, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return bias and variance of the gradients, and histograms of partial sums, at the weights of `trainer`."""
    measure = Measure(**plain["measure"])
    recipe = trainer.net.recipe
    noise: list[GradientNoise] = []
    sums: list[PartialSums] = []
    if recipe.port("grad_for_wgrad") is not None:
        batches = [training_batch(data, int(plain["seed"]), step, plain["batch"]) for step in range(measure.batches)]
        exact = recipe.model_copy(update={"grad_for_wgrad": "float", "grad_for_dgrad": "float"})
        reference = build(plain, data, exact)
        # A trainer of its own: measuring moves running statistics and the step, which the digest is of.
        noisy = build(plain, data)
        for one in (reference, noisy):
            one.net.load_state_dict(trainer.net.state_dict())
        if measure.batches:
            noise = gradient_noise(noisy.net, reference.net, batches, measure.draws)
    if measure.outputs and recipe.port("activation") is not None:
        counted = build(plain, data)
        counted.net.load_state_dict(trainer.net.state_dict())
        batch = training_batch(data, int(plain["seed"]), 0, plain["batch"])
        sums = sampled_partial_sums(counted.net, batch, measure.outputs, int(plain["seed"]))
    return {"gradients": [asdict(one) for one in noise], "partial_sums": [asdict(one) for one in sums]}


def thinned(losses: list[float]) -> list[list[float]]:
    """Return [step, mean loss] of at most MOST_POINTS stretches of equal length, step being the last of each."""
    if not losses:
        return []
    parts = np.array_split(np.arange(len(losses)), min(MOST_POINTS, len(losses)))
    return [[int(part[-1]) + 1, float(np.mean(np.take(losses, part)))] for part in parts]


def _last(losses: list[float]) -> float | None:
    """Return the mean of the last twentieth, at least one step."""
    return float(np.mean(losses[-max(1, len(losses) // 20) :])) if losses else None


def with_seed(config: TrainConfig, seed: int) -> TrainConfig:
    """Return the same run with another seed."""
    return replace(config, seed=seed)
