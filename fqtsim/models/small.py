"""The two small models: a multilayer perceptron and a convolutional network for images of a few thousand pixels."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fqtsim.data import DataInfo
from fqtsim.errors import InputError

MLP_WIDTH = 128
CNN_WIDTHS = (16, 32)


def mlp(info: DataInfo) -> nn.Module:
    """Return three linear layers with ReLU between them, on flattened images."""
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
