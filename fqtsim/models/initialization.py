"""The initialisation of the project's own models, a pure function of the seed (S5.5)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES, Primitives
from fqtsim.streams import INIT, stream_id


def standard_normal(ops: Primitives, seed: int, stream: int, count: int) -> NDArray[np.float32]:
    """Return `count` normal numbers by Box-Muller: sqrt(-2 log u) * cos(2 pi v), each symbol one primitive.

    Element i takes the top 24 bits of word i for u, in (0, 1], and of word count + i for v, in [0, 1).
    """
    words = ops.random_words(seed, stream, 0, 2 * count) >> np.uint32(8)
    unit = np.float32(2.0**-24)
    u = ops.multiply((words[:count] + np.uint32(1)).astype(np.float32), unit)
    v = ops.multiply(words[count:].astype(np.float32), unit)
    radius = ops.sqrt(ops.multiply(np.float32(-2.0), ops.log(u)))
    normal: NDArray[np.float32] = ops.multiply(radius, ops.cos(ops.multiply(np.float32(2 * math.pi), v)))
    return normal


def initialize(model: nn.Module, seed: int, ops: Primitives = DEFAULT_PRIMITIVES) -> None:
    """Set every parameter: Kaiming normal (fan in) weights, zero biases, batch norm gamma 1 and beta 0.

    A layer's words come from its own stream, layer index = order in named_modules().
    """
    with torch.no_grad():
        for index, module in enumerate(model.modules()):
            if isinstance(module, nn.Linear | nn.Conv2d):
                weight = module.weight
                fan_in = weight[0].numel()
                std = ops.sqrt(ops.divide(np.float32(2.0), np.float32(fan_in)))
                normal = standard_normal(ops, seed, stream_id(index, INIT), weight.numel())
                weight.copy_(torch.from_numpy(ops.multiply(normal, std)).reshape(weight.shape))
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1.0)
                module.bias.zero_()
