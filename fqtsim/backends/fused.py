"""Fused forms of named sequences on a device, equal to them bit for bit (S5.11): batch norm and the update.

The sequences are in fqtsim/train/norm.py and optimizer.py; the kernels, and their twins in torch operations, in
fqtsim/kernels/gpu.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fqtsim.backends.faults import FaultLog
from fqtsim.kernels.gpu import norm, update


class Fused:
    """What one device does in one go."""

    def __init__(self, faults: FaultLog) -> None:
        self.faults = faults

    def batch_statistics(self, x: torch.Tensor) -> tuple[Any, Any, Any]:
        """Return mean, biased and unbiased variance of each channel."""
        found = norm.statistics(x, 0.0, self.faults.site())
        return found.mean, found.var, found.unbiased

    def batch_norm(
        self, x: Any, mean: Any, var: Any, affine: tuple[Any, Any] | None, eps: float, from_batch: bool,
        with_relu: bool,
    ) -> tuple[Any, norm.Saved]:  # fmt: skip
        """Return the output and what the backward pass needs."""
        inv = norm.inverse_deviation(var, eps)
        y = norm.normalize(x, mean, inv, affine, with_relu)
        return y, norm.Saved(x, mean, inv, affine, from_batch, with_relu)

    def batch_norm_gradients(self, dy: Any, saved: norm.Saved) -> tuple[Any, Any, Any]:
        """Return dx, dgamma and dbeta."""
        return norm.gradients(dy, saved, self.faults.site())

    def sgd(
        self, w: Any, g: Any, v: Any, lr: Any, momentum: np.float32, decay: np.float32, nesterov: bool
    ) -> tuple[Any, Any]:
        """Return new weights and momentum; a number that is not finite is noted."""
        rule = update.Rule(float(momentum), float(decay), nesterov)
        return update.sgd(w, g, v, lr, rule, self.faults.site())
