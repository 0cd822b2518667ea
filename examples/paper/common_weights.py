"""Errors of the gradients of several designs at the same weights: those of one run after some of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fqtsim.evaluate.job import Job
    from fqtsim.train.trainer import Trainer

#: Layer -> [squared bias, variance], both over the squared norm of the reference gradient; or {"stopped": why}.
Errors = Mapping[str, Any]


def trained(plain: Mapping[str, Any], steps: int) -> tuple[Trainer, Any]:
    """Return a run's trainer after so many of its steps, and its data."""
    import torch

    from fqtsim.data import load_dataset
    from fqtsim.data.batches import training_batch
    from fqtsim.evaluate.job import build

    data = load_dataset(plain["data"])
    trainer = build(plain, data)
    for step in range(steps):
        images, labels = training_batch(data, int(plain["seed"]), step, plain["batch"])
        trainer.step(torch.from_numpy(images), torch.from_numpy(labels))
    return trainer, data


def named(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a run decides its result: not the backend."""
    return {key: value for key, value in plain.items() if key != "backend"}


@dataclass(frozen=True)
class CommonWeights:
    """Bias and variance of the weight gradients of `others` at the weights that `wide` has after `at_step` steps.

    Reference: the same batches on the hardware of `wide` in all GEMMs, gradients not quantized. So what a narrow
    accumulator does to the forward pass counts as an error too.
    """

    wide: Job
    #: What each is called, and its run; of the same model, data and seed.
    others: tuple[tuple[str, Job], ...]
    #: Batches, those after `at_step`, and draws of the random words of each.
    at_step: int
    batches: int
    draws: int
    name: str

    def settings(self) -> dict[str, Any]:
        """Return what decides the result."""
        hardware = {label: one.plain["hardware"] for label, one in self.others}
        numbers = {"at_step": self.at_step, "batches": self.batches, "draws": self.draws}
        return {"run": named(self.wide.plain), "hardware": hardware} | numbers

    def measure(self) -> dict[str, Errors]:
        """Return design -> its errors."""
        from fqtsim.data.batches import training_batch

        plain = self.wide.plain
        trainer, data = trained(plain, self.at_step)
        later = range(self.at_step, self.at_step + self.batches)
        batches = [training_batch(data, int(plain["seed"]), step, plain["batch"]) for step in later]
        return {label: self._errors(other.plain, trainer, data, batches) for label, other in self.others}

    def _errors(self, plain: Mapping[str, Any], trainer: Trainer, data: Any, batches: Any) -> Errors:
        from fqtsim.analysis.gradients import gradient_noise
        from fqtsim.errors import TrainingStopped
        from fqtsim.evaluate.job import build

        exact = trainer.net.recipe.model_copy(update={"grad_for_wgrad": "float", "grad_for_dgrad": "float"})
        reference, noisy = build(self.wide.plain, data, exact), build(plain, data)
        for one in (reference, noisy):
            one.net.load_state_dict(trainer.net.state_dict())
        try:
            noise = gradient_noise(noisy.net, reference.net, batches, self.draws)
        except TrainingStopped as error:
            return {"stopped": str(error)}
        return {one.layer: [one.bias, one.variance] for one in noise}


def worst(errors: Errors) -> float | None:
    """Return the largest relative squared bias of a layer, None where the pass stopped."""
    return None if "stopped" in errors else max(bias for bias, _ in errors.values())
