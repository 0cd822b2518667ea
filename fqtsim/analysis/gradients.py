"""Bias and variance that low-bit gradients add, at given weights, in a few draws: what each row of a sweep has.

Reference: the same batch and the same forward codes, the way back in float. What differs is Q_b1, Q_b2 and the
accumulators of dgrad and wgrad. Theorem 1 of the paper says that the quantizers alone add no bias; a saturating
accumulator does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fqtsim.analysis.statistics import u_statistic
from fqtsim.train.loss import softmax_cross_entropy

#: Steps from here on select random words that no training run has used.
FIRST_DRAW = 1 << 31

Gradients = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class GradientNoise:
    """One layer's weight gradient, relative to the squared norm of the reference gradient."""

    layer: str
    #: Squared norm of the mean error, estimated without the part that variance adds; may be negative by chance.
    bias: float
    #: Variance over draws of the stochastic rounding, summed over elements.
    variance: float


def weight_gradients(net: Any, images: torch.Tensor, labels: NDArray[np.int64], draw: int) -> Gradients:
    """Return the float64 gradient of each layer's weight for a batch, with the random bits of step `draw`."""
    net.step_index = draw
    net.forget_backward()
    net.zero_grad(set_to_none=True)
    logits = net(images)
    _, upstream = softmax_cross_entropy(logits.detach().numpy(), labels, 0.0, net.backend.primitives)
    logits.backward(torch.from_numpy(upstream))
    return {
        name.removesuffix(".weight"): parameter.grad.numpy().astype(np.float64)
        for name, parameter in net.named_parameters()
        if parameter.grad is not None and parameter.ndim > 1
    }


def gradient_noise(
    noisy: Any, reference: Any, batches: Sequence[tuple[NDArray[Any], NDArray[np.int64]]], draws: int
) -> list[GradientNoise]:
    """Return bias and variance of every layer, averaged over the batches; at least two draws each.

    The squared bias is the U-statistic over pairs of draws; fqtsim.analysis.measure adds intervals, sources and more.
    """
    bias: dict[str, float] = {}
    variance: dict[str, float] = {}
    scale: dict[str, float] = {}
    for number, (images, labels) in enumerate(batches):
        x = torch.from_numpy(images)
        exact = weight_gradients(reference, x, labels, FIRST_DRAW)
        errors = [
            {layer: value - exact[layer] for layer, value in
             weight_gradients(noisy, x, labels, FIRST_DRAW + number * draws + draw).items()}
            for draw in range(draws)
        ]  # fmt: skip
        for layer, value in exact.items():
            stack = np.stack([error[layer] for error in errors])
            total, each = float(np.sum(stack.sum(axis=0) ** 2)), float(np.sum(stack**2))
            bias[layer] = bias.get(layer, 0.0) + u_statistic(total, each, draws)
            variance[layer] = variance.get(layer, 0.0) + float(np.var(stack, axis=0, ddof=1).sum())
            scale[layer] = scale.get(layer, 0.0) + float(np.sum(value**2))
    return [
        GradientNoise(layer, bias[layer] / norm, variance[layer] / norm) for layer, norm in scale.items() if norm > 0
    ]
