"""The pre-activation ResNets of the paper (arXiv 2010.14298, CIFAR-10): three stages of n blocks, widths 16, 32, 64."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fqtsim.data import DataInfo

#: Blocks per stage.
RESNET_BLOCKS = {"resnet8": 1, "resnet20": 3, "resnet56": 9}
RESNET_WIDTHS = (16, 32, 64)


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


def preact_resnet(blocks: int) -> Callable[[DataInfo], nn.Module]:
    """Return what builds a pre-activation ResNet of `blocks` blocks per stage."""
    return lambda info: PreActResNet(info, blocks)
