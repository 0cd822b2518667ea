"""Stochastic gradient descent with momentum, Nesterov and weight decay, one float32 operation per symbol (S5.11)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fqtsim.backends.fused_cpu_proof import SEQUENCES, numbers, require_equal
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES, Primitives
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.recipe.spec import Optimizer
from fqtsim.train.operands import Array

_DEFAULTS = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "decay_norm": True}


def as_optimizer(settings: Mapping[str, Any] | Optimizer) -> Optimizer:
    """Return settings as the recipe's model of them; what a mapping leaves out is plain SGD.

    Raises InputError naming the key.
    """
    if isinstance(settings, Optimizer):
        return settings
    rule: Optimizer = checked(Optimizer, _DEFAULTS | dict(settings), "optimizer")
    return rule


def checked(model: type[Any], settings: Mapping[str, Any], what: str) -> Any:
    """Validate settings with a recipe's model. Raises InputError with the key, its value, rule and remedy."""
    from pydantic import ValidationError

    try:
        return model.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        context = first.get("ctx", {})
        key = ".".join(str(part) for part in (what, *first["loc"], *context.get("key", ())))
        raise InputError(f"{key}: {first['msg']}") from None


class Sgd:
    """g' = g + wd * w; v = mu * v + g'; w = w - lr * v, or w - lr * (g' + mu * v) for Nesterov."""

    def __init__(self, settings: Optimizer, exempt: set[str]) -> None:
        self.settings = settings
        #: Parameters without weight decay.
        self.exempt = exempt
        #: Momentum by parameter name; empty where mu is 0.
        self.momentum: dict[str, Array] = {}

    def start(self, parameters: Mapping[str, Array], p: Primitives = DEFAULT_PRIMITIVES) -> None:
        """Set the momentum to zero."""
        if self.settings.momentum:
            self.momentum = {name: p.zeros(w.shape, w) for name, w in parameters.items()}

    def update(
        self, parameters: Mapping[str, Array], gradients: Mapping[str, Array], lr: Array, p: Primitives
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return new parameters and new momentum, changing nothing. Raises TrainingStopped for NaN or infinity.

        lr: a number, or one float32 element on the device.
        """
        fused = _fused(p)
        new, momentum = {}, {name: p.array(v) for name, v in self.momentum.items()}
        # One tensor for all: a device reads it there, and a recorded step another one each time.
        rate = p.array(np.full(1, lr, np.float32)) if isinstance(lr, np.float32) else lr
        for name, gradient in gradients.items():
            step = parameters[name], gradient, momentum[name] if self.settings.momentum else None
            rule = Rule(np.float32(self.settings.momentum), self._decay(name), self.settings.nesterov)
            if fused is None:
                new[name], v = sequence(*step, lr, *rule, p)
            else:
                p.faults.enter(f"the gradient of {name}, or the new {name}")
                new[name], v = fused.sgd(*step, rate, *rule)
            if v is not None:
                momentum[name] = v
            if fused is not None and p.on_device:
                continue  # the kernel notes what is not finite
            if not p.all_finite(gradient):
                raise TrainingStopped(f"the gradient of {name}: NaN or infinity")
            if not p.all_finite(new[name]):
                raise TrainingStopped(f"the new {name}: NaN or infinity; lower the learning rate")
        return new, momentum

    def _decay(self, name: str) -> np.float32:
        return np.float32(0 if name in self.exempt else self.settings.weight_decay)


class Rule(NamedTuple):
    """The constants of one parameter's update; a decay of 0 leaves its term out."""

    momentum: np.float32
    decay: np.float32
    nesterov: bool


def sequence(
    w: Array, g: Array, v: Array | None, lr: Array, momentum: np.float32, decay: np.float32, nesterov: bool,
    p: Primitives,
) -> tuple[Array, Array | None]:  # fmt: skip
    """Return new weights and momentum by primitives; without v there is no momentum."""
    if decay:
        g = p.add(g, p.multiply(decay, w))
    if v is not None:
        v = p.add(p.multiply(momentum, v), g)
        g = p.add(g, p.multiply(momentum, v)) if nesterov else v
    return p.subtract(w, p.multiply(lr, g)), v


def _fused(p: Primitives) -> Any:
    """Return the fused form of `sequence`, proven on this machine; None where that runs."""
    if p.fused_update is not None and not p.on_device:  # a device proves its own before it is used
        _prove(p.fused_update)
    return p.fused_update


@lru_cache(maxsize=1)
def _prove(fused: Any) -> None:
    """Compare the fused form with the sequence, once. Raises BackendRefused where a bit differs."""
    w, g, v = (numbers((5, 31), stream) for stream in (7, 8, 9))
    lr, mu, decay, none = (np.float32(one) for one in (0.1, 0.9, 1e-4, 0))
    rules = (v, Rule(mu, decay, False)), (v, Rule(mu, none, True)), (None, Rule(none, decay, False))
    for speed, rule in (*rules, (None, Rule(none, none, False))):
        ours = fused.sgd(w, g, speed, np.full(1, lr, np.float32), *rule)
        theirs = sequence(w, g, speed, lr, *rule, SEQUENCES)
        for found, expected in zip(ours, theirs, strict=True):
            if expected is not None or found is not None:
                require_equal("stochastic gradient descent", (found,), (expected,))
