"""Stochastic gradient descent with momentum, Nesterov and weight decay, one float32 operation per symbol (S5.11)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

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
        self, parameters: Mapping[str, Array], gradients: Mapping[str, Array], lr: np.float32, p: Primitives
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return new parameters and new momentum, changing nothing. Raises TrainingStopped for NaN or infinity."""
        if p.fused_update is not None:
            return self._fused(parameters, gradients, lr, p)
        new, momentum = {}, {name: p.array(v) for name, v in self.momentum.items()}
        mu, decay = np.float32(self.settings.momentum), np.float32(self.settings.weight_decay)
        for name, gradient in gradients.items():
            w, g = parameters[name], gradient
            if decay and name not in self.exempt:
                g = p.add(g, p.multiply(decay, w))
            if self.settings.momentum:
                momentum[name] = p.add(p.multiply(mu, momentum[name]), g)
                g = p.add(g, p.multiply(mu, momentum[name])) if self.settings.nesterov else momentum[name]
            new[name] = p.subtract(w, p.multiply(lr, g))
            if not p.all_finite(gradient):
                raise TrainingStopped(f"the gradient of {name}: NaN or infinity")
            if not p.all_finite(new[name]):
                raise TrainingStopped(f"the new {name}: NaN or infinity; lower the learning rate")
        return new, momentum

    def _fused(
        self, parameters: Mapping[str, Array], gradients: Mapping[str, Array], lr: np.float32, p: Primitives
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Do what `update` does, one kernel for each parameter; NaN and infinity are noted."""
        new, momentum = {}, {name: p.array(v) for name, v in self.momentum.items()}
        mu, decay = np.float32(self.settings.momentum), np.float32(self.settings.weight_decay)
        rate, before = p.array(np.full(1, lr, np.float32)), p.faults.enter("")
        for name, gradient in gradients.items():
            p.faults.enter(f"{before}the gradient of {name}, or the new {name}")
            own = np.float32(0) if name in self.exempt else decay
            new[name], v = p.fused_update.sgd(
                parameters[name], gradient, momentum.get(name), rate, mu, own, self.settings.nesterov
            )
            if v is not None:
                momentum[name] = v
        return new, momentum
