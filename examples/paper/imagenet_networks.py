"""ResNet-50 v1.5 (stride in the 3x3 convolution of a bottleneck, as the authors have it), for imagenet.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fqtsim.data import DataInfo
from fqtsim.models.initialization import initialize

WIDTHS, BLOCKS, EXPANSION = (64, 128, 256, 512), (3, 4, 6, 3), 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each with batch norm; ReLU after the first two and after the addition."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        merged: Tensor = self.relu3(out + identity)
        return merged


class ResNet50(nn.Module):
    """7x7 stem with max pooling, four stages of bottlenecks, global average, linear layer."""

    def __init__(self, info: DataInfo) -> None:
        super().__init__()
        width = WIDTHS[0]
        self.conv1 = nn.Conv2d(info.shape[0], width, 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for number, (own, blocks) in enumerate(zip(WIDTHS, BLOCKS, strict=True)):
            for block in range(blocks):
                stages.append(Bottleneck(width, own, 2 if number and not block else 1))
                width = EXPANSION * own
        self.blocks = nn.Sequential(*stages)
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(width, info.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.flatten(self.avgpool(self.blocks(x))))
        return logits


def resnet50(info: DataInfo) -> nn.Module:
    """Return ResNet-50, its weights a pure function of the seed (Kaiming normal, as the authors')."""
    net = ResNet50(info)
    initialize(net, torch.initial_seed())
    return net
