"""The step of stochastic gradient descent on the device (S5.11). The twin of fqtsim/train/optimizer.py, `Sgd.update`.

Settings are float32 numbers held in Python floats; the learning rate, which changes, is a device tensor, so that a
captured graph reads the new one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fqtsim.kernels.gpu.launch import Fault, is_fused, note


class Rule(NamedTuple):
    """The constants of the update, each the float32 number nearest to the recipe's; 0 leaves its term out."""

    momentum: float
    decay: float
    nesterov: bool


def composed_sgd(
    w: torch.Tensor, g: torch.Tensor, v: torch.Tensor | None, lr: torch.Tensor, rule: Rule, flags: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what `sgd` does, by torch operations."""
    note(flags, ~torch.isfinite(g), Fault.NOT_FINITE)
    if rule.decay:
        g = g + w * rule.decay
    if v is not None:
        v = v * rule.momentum + g
        g = g + v * rule.momentum if rule.nesterov else v
    new = w - g * lr.reshape(())
    note(flags, ~torch.isfinite(new), Fault.NOT_FINITE)
    return new, v


def sgd(
    w: torch.Tensor, g: torch.Tensor, v: torch.Tensor | None, lr: torch.Tensor, rule: Rule, flags: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the new weights and momentum of one parameter, changing neither; v is None where there is no momentum.

    g' = g + wd * w; v = mu * v + g'; w = w - lr * v, or w - lr * (g' + mu * v) for Nesterov. lr: float32, one element.
    Fused: 12 bytes read and 8 written an element.
    """
    if not is_fused(w):
        return composed_sgd(w, g, v, lr, rule, flags)
    from fqtsim.kernels.gpu import triton_update

    return triton_update.sgd(w, g, v, lr, rule, flags)
