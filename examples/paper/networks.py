"""Networks of the experiments that the package has no name for; their weights are a pure function of the seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fqtsim.data import DataInfo
from fqtsim.models.initialization import initialize
from fqtsim.models.preact_resnet import RESNET_BLOCKS, RESNET_WIDTHS, PreActResNet


class QuarterResNet(nn.Module):
    """A pre-activation ResNet of full depth and width, a quarter of the side: 2x2 means, then a stem of stride 2."""

    def __init__(self, info: DataInfo, blocks: int) -> None:
        super().__init__()
        self.shrink = nn.AvgPool2d(2)
        self.net = PreActResNet(info, blocks)
        self.net.conv = nn.Conv2d(info.shape[0], RESNET_WIDTHS[0], 3, stride=2, padding=1, bias=False)
        # build_model() has set torch's seed to that of the run; the weights come from the package's own generator.
        initialize(self, torch.initial_seed())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.shrink(x))
        return logits


def quarter_resnet20(info: DataInfo) -> nn.Module:
    """Return the ResNet-20 that a sweep of hundreds of runs can afford."""
    return QuarterResNet(info, RESNET_BLOCKS["resnet20"])


def quarter_resnet8(info: DataInfo) -> nn.Module:
    """Return the same with one block a stage, for tests."""
    return QuarterResNet(info, RESNET_BLOCKS["resnet8"])
