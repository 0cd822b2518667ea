"""How much variance each gradient quantizer adds, in units of the variance that mini-batches have anyway.

The paper's ratio: Var[gradient | batch] over rounding, by Var[gradient] over batches without gradient quantization.
An unbiased quantizer whose ratio is far below 1 costs nothing; above 1 it behaves like a smaller batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fqtsim.analysis.gradients import Gradients, weight_gradients
from fqtsim.data.batches import training_batch
from fqtsim.train.config import TrainConfig, build_trainer, resolve
from fqtsim.train.trainer import Trainer

QUANTIZERS = ("ptq", "psq", "bhq")
BITS = (8, 5)
#: Batches for the mini-batch variance, and draws of the rounding for each: enough for two digits.
BATCHES, DRAWS = 10, 4


@dataclass(frozen=True)
class Table:
    """Ratio of quantization variance to mini-batch variance, by layer and recipe."""

    layers: tuple[str, ...]
    recipes: tuple[str, ...]
    #: recipe -> layer -> ratio.
    ratios: dict[str, dict[str, float]]


def _spread(samples: list[Gradients], layer: str) -> float:
    """Return the unbiased variance of one layer's gradient, summed over its elements."""
    return float(np.var(np.stack([sample[layer] for sample in samples]), axis=0, ddof=1).sum())


def measure(base: TrainConfig, weights: dict[str, torch.Tensor], on_draw: Callable[[], None]) -> Table:
    """Return the table at the given weights, on the first batches of the training set."""
    resolved = resolve(base)
    batches = [training_batch(resolved.data, base.seed, step, base.batch) for step in range(BATCHES)]
    inputs = [(torch.from_numpy(images), labels) for images, labels in batches]

    def at(recipe: str) -> Trainer:
        trainer = build_trainer(resolve(replace(base, recipe=recipe)))
        trainer.net.load_state_dict(weights)
        return trainer

    # QAT's gradient is that of the same quantized network, without quantization on the way back.
    exact = at("qat")
    plain = [weight_gradients(exact.net, images, labels, 0) for images, labels in inputs]
    layers = tuple(plain[0])
    between = {layer: _spread(plain, layer) for layer in layers}
    ratios: dict[str, dict[str, float]] = {}
    for recipe in (f"{name}{bits}" for bits in BITS for name in QUANTIZERS):
        trainer = at(recipe)
        within = dict.fromkeys(layers, 0.0)
        for number, (images, labels) in enumerate(inputs):
            draws = [weight_gradients(trainer.net, images, labels, number * DRAWS + draw) for draw in range(DRAWS)]
            for layer in layers:
                within[layer] += _spread(draws, layer) / BATCHES
            on_draw()
        ratios[recipe] = {layer: within[layer] / between[layer] for layer in layers}
    return Table(layers, tuple(ratios), ratios)


def weights_of(checkpoint: Path, base: TrainConfig) -> dict[str, torch.Tensor]:
    """Return the network's tensors in a checkpoint of this very configuration."""
    trainer = build_trainer(resolve(base))
    trainer.load(checkpoint)
    return {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}
