"""MobileNetV2 as torchvision writes it (arXiv 1801.04381), with its parameter names, so that its checkpoints fit.

Images whose shorter side is below SMALL_IMAGE keep stride 1 in the first convolution and in the stage of 24 channels:
the whole network then divides a side by 8, where the original divides it by 32. Parameters are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)
from torch import Tensor, nn

from fqtsim.data import DataInfo
from fqtsim.models.resnet18 import SMALL_IMAGE

#: Expansion, channels, blocks and first stride of each stage.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
#: Channels whose stage has stride 1 for small images.
UNSTRIDED_WHEN_SMALL = 24
FIRST_CHANNELS, LAST_CHANNELS = 32, 1280


class ConvBNReLU(nn.Sequential):
    """Convolution, batch norm, ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 3, stride: int = 1, groups: int = 1) -> None:
        padding = (kernel_size - 1) // 2
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel_size, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel by its own 3x3, project by 1x1; add where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand_ratio: int) -> None:
        super().__init__()
        hidden = inputs * expand_ratio
        self.use_res_connect = stride == 1 and inputs == outputs
        layers: list[nn.Module] = []
        if expand_ratio != 1:
            layers.append(ConvBNReLU(inputs, hidden, kernel_size=1))
        layers.extend(
            [
                ConvBNReLU(hidden, hidden, stride=stride, groups=hidden),
                nn.Conv2d(hidden, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            ]
        )
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)  # type: ignore[no-any-return]
        return self.conv(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """First convolution, seven stages of inverted residuals, last convolution, global average, dropout, linear."""

    def __init__(self, info: DataInfo, dropout: float = 0.2) -> None:
        super().__init__()
        channels, height, width = info.shape
        small = min(height, width) < SMALL_IMAGE
        features: list[nn.Module] = [ConvBNReLU(channels, FIRST_CHANNELS, stride=1 if small else 2)]
        features += _stages(small)
        features.append(ConvBNReLU(STAGES[-1][1], LAST_CHANNELS, kernel_size=1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(p=dropout), nn.Linear(LAST_CHANNELS, info.classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        x = torch.flatten(x, 1)
        x = self.classifier(x)
        return x  # noqa: RET504  (as torchvision writes it)


def _stages(small: bool) -> Sequence[nn.Module]:
    blocks, inputs = [], FIRST_CHANNELS
    for expansion, outputs, count, first_stride in STAGES:
        strided = not (small and outputs == UNSTRIDED_WHEN_SMALL)
        for block in range(count):
            blocks.append(InvertedResidual(inputs, outputs, first_stride if strided and not block else 1, expansion))
            inputs = outputs
    return blocks
