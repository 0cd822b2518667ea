"""ResNet-18 as torchvision writes it (arXiv 1512.03385), with its parameter names, so that its checkpoints fit.

Images whose shorter side is below SMALL_IMAGE take the stem for CIFAR: one 3x3 convolution of stride 1 (`conv1`) and no
max pooling, where the original has 7x7 of stride 2 and a max pooling, which leave nothing of 32 pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fqtsim.data import DataInfo

SMALL_IMAGE = 64
"""Pixels of the shorter side from which on a network has the stem of its paper."""

WIDTHS = (64, 128, 256, 512)
BLOCKS = 2


class BasicBlock(nn.Module):
    """Twice convolution and batch norm; ReLU after the first and after the residual addition."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x

        out: Tensor = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        out = self.relu(out)
        return out  # noqa: RET504  (as torchvision writes it)


class ResNet18(nn.Module):
    """Stem, four stages of two blocks, global average, linear layer."""

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        channels, height, width = info.shape
        small = min(height, width) < SMALL_IMAGE
        kernel, stride, padding = (3, 1, 1) if small else (7, 2, 3)
        self.inplanes = WIDTHS[0]
        self.conv1 = nn.Conv2d(channels, self.inplanes, kernel, stride=stride, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(WIDTHS[0])
        self.layer2 = self._make_layer(WIDTHS[1], stride=2)
        self.layer3 = self._make_layer(WIDTHS[2], stride=2)
        self.layer4 = self._make_layer(WIDTHS[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(WIDTHS[3], info.classes)

    def _make_layer(self, planes: int, stride: int = 1) -> nn.Sequential:
        layers = []
        for block in range(BLOCKS):
            layers.append(BasicBlock(self.inplanes, planes, 1 if block else stride))
            self.inplanes = planes
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)

        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)

        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        x = self.fc(x)
        return x  # noqa: RET504  (as torchvision writes it)
