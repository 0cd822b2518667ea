"""The project's own models and their initialisation, a pure function of the seed (S5.5).

The pre-activation ResNets are the paper's (arXiv 2010.14298, CIFAR-10): three stages of n blocks,
widths 16, 32, 64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES, Primitives
from fqtsim.data import DataInfo
from fqtsim.errors import InputError
from fqtsim.streams import INIT, stream_id

#: Blocks per stage.
RESNET_BLOCKS = {"resnet8": 1, "resnet20": 3, "resnet56": 9}
RESNET_WIDTHS = (16, 32, 64)
MLP_WIDTH = 128
CNN_WIDTHS = (16, 32)


def _mlp(info: DataInfo) -> nn.Module:
    width = MLP_WIDTH
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(info.shape), width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, info.classes),
    )


class SmallCNN(nn.Module):
    """Two rounds of convolution, batch norm, ReLU and max pooling by 2, then one linear layer."""

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        channels, height, width = info.shape
        if min(height, width) < 4:
            raise InputError(f"model = cnn: images of {height}x{width}: must be at least 4x4 for two poolings; use mlp")
        first, second = CNN_WIDTHS
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(second * (height // 4) * (width // 4), info.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.bn1(self.conv1(x))))  # (N, 16, H/2, W/2)
        x = self.pool2(self.relu2(self.bn2(self.conv2(x))))  # (N, 32, H/4, W/4)
        logits: Tensor = self.fc(self.flatten(x))
        return logits


class PreActBlock(nn.Module):
    """Twice batch norm, ReLU, convolution; a 1x1 convolution for the shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + residual


class PreActResNet(nn.Module):
    """First convolution, three stages of pre-activation blocks, batch norm, ReLU, global average, linear."""

    def __init__(self, info: DataInfo, blocks: int) -> None:
        super().__init__()
        width = RESNET_WIDTHS[0]
        self.conv = nn.Conv2d(info.shape[0], width, 3, padding=1, bias=False)
        stages = []
        for stage, outputs in enumerate(RESNET_WIDTHS):
            for block in range(blocks):
                stages.append(PreActBlock(width, outputs, stride=2 if stage and not block else 1))
                width = outputs
        self.blocks = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(width, info.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.blocks(self.conv(x))))  # (N, 64, H/4, W/4)
        logits: Tensor = self.fc(self.flatten(self.pool(x)))
        return logits


def _resnet(blocks: int) -> Callable[[DataInfo], nn.Module]:
    return lambda info: PreActResNet(info, blocks)


_MODELS: dict[str, Callable[[DataInfo], nn.Module]] = {
    "mlp": _mlp,
    "cnn": SmallCNN,
    **{name: _resnet(blocks) for name, blocks in RESNET_BLOCKS.items()},
}


def model_names() -> list[str]:
    """Return the names that build_model() knows."""
    return list(_MODELS)


def build_model(name: str, info: DataInfo, seed: int) -> nn.Module:
    """Return a model with its parameters initialised from the seed. Raises InputError for an unknown name."""
    if name not in _MODELS:
        raise InputError(f"model = {name}: must be one of {', '.join(_MODELS)}; for example cnn")
    model = _MODELS[name](info)
    initialize(model, seed)
    return model


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
