"""The learning rate of each step (S5.4, S5.11): constant, by milestones or cosine, each with an optional warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fqtsim.backends.primitives import Primitives
from fqtsim.errors import InputError
from fqtsim.recipe.spec import Schedule
from fqtsim.train.optimizer import checked

HALF, ONE = np.float32(0.5), np.float32(1)
PI = 3.141592653589793


def as_schedule(settings: Mapping[str, Any] | Schedule) -> Schedule:
    """Return settings as the recipe's model of them. Raises InputError naming the key."""
    return settings if isinstance(settings, Schedule) else checked(Schedule, settings, "schedule")


@dataclass(frozen=True)
class Rate:
    """lr(t) = base * factor(t), every product one float32 operation."""

    base: float
    schedule: Schedule
    #: Steps of the run, for a cosine that does not say its own.
    total: int | None = None
    #: Where given, the rate changes only at the start of an epoch of this many steps, as the paper's code does.
    steps_per_epoch: int | None = None

    def __post_init__(self) -> None:
        if self.schedule.name == "cosine" and self._length is None:
            raise InputError(
                "schedule.steps: a cosine schedule needs the number of steps; "
                "add steps to the schedule, or give total_steps"
            )
        if self.steps_per_epoch is not None and self.steps_per_epoch < 1:
            raise InputError(f"steps_per_epoch = {self.steps_per_epoch}: must be at least 1; leave it out for steps")

    def describe(self) -> dict[str, Any]:
        """Return what decides the rate of every step."""
        plain = self.schedule.model_dump(mode="json", exclude_none=True)
        return plain | {"length": self._length, "steps_per_epoch": self.steps_per_epoch}

    @property
    def _length(self) -> int | None:
        return (self.schedule.steps or self.total) if self.schedule.name == "cosine" else None

    def at(self, step: int, p: Primitives) -> np.float32:
        """Return the learning rate of step 0, 1, ...; 0 after the end of a cosine."""
        t = step if self.steps_per_epoch is None else step - step % self.steps_per_epoch
        rate = p.multiply(np.float32(self.base), self._factor(t, p))
        warmup = self.schedule.warmup_steps
        if warmup is not None and t < warmup:
            rate = p.multiply(rate, np.float32((t + 1) / warmup))
        return np.float32(rate)

    def _factor(self, t: int, p: Primitives) -> np.float32:
        if self.schedule.name == "step":
            factor = ONE
            for milestone in self.schedule.milestones or ():
                if t >= milestone:
                    factor = np.float32(p.multiply(factor, np.float32(self.schedule.factor)))
            return factor
        if self.schedule.name == "cosine" and self._length is not None:
            angle = np.float32(PI * min(t, self._length) / self._length)
            return np.float32(p.multiply(HALF, p.add(ONE, p.cos(angle))))
        return ONE
