"""Networks, images and fake quantization that the benchmark compares with; nothing here is part of fqtsim.

`FakeConv` and `FakeLinear` train as the paper's code does (arXiv 2010.14298): float32 numbers rounded to grids, float32
GEMMs of the library, BHQ by a dense N x N matrix. They read the batch a few times only and wait for nothing, so they
are a fast form of that approach.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.data import DataInfo, Dataset
from fqtsim.data.dataset import Normalization
from fqtsim.streams import stream_id

#: Port of the root layer's streams that synthetic images and labels draw from.
SYNTHETIC = 40
CIFAR = DataInfo((3, 32, 32), 10)
IMAGENET = DataInfo((3, 224, 224), 1000)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 convolutions and a shortcut, batch norm after each (ResNet-50, version 1.5)."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        outputs = width * expansion
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                                          nn.BatchNorm2d(outputs))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        shortcut = x if self.shortcut is None else self.shortcut(x)
        result: Tensor = self.relu3(out + shortcut)
        return result


class ResNet50(nn.Module):
    """The usual ResNet-50; `blocks` and `width` make smaller ones."""

    def __init__(self, classes: int = 1000, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, 1)
        parts: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            for block in range(count):
                parts.append(Bottleneck(inputs, width << stage, 2 if stage and not block else 1))
                inputs = 4 * (width << stage)
        self.blocks = nn.Sequential(*parts)
        self.average, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn(self.conv(x))))
        logits: Tensor = self.fc(self.flatten(self.average(self.blocks(x))))
        return logits


def synthetic(info: DataInfo, count: int) -> Dataset:
    """Return images and labels that are Philox words: the same on every machine."""
    size = count * math.prod(info.shape)
    words = DEFAULT_PRIMITIVES.random_words(0, stream_id(0, SYNTHETIC), 0, size)
    pixels = (words >> np.uint32(24)).astype(np.uint8).reshape(count, *info.shape)
    labels = (DEFAULT_PRIMITIVES.random_words(0, stream_id(0, SYNTHETIC), 1, count) % info.classes).astype(np.int64)
    # A tint by class and row, so that there is something to learn.
    tint = (labels[:, None, None, None] * 17 + np.arange(info.shape[1])[None, None, :, None] * 5) % 128
    pixels = (pixels // 2 + tint).astype(np.uint8)
    classes = tuple(str(i) for i in range(info.classes))
    constants = Normalization(255, (0.5,) * info.shape[0], (0.25,) * info.shape[0])
    return Dataset("synthetic", pixels, labels, pixels[:1], labels[:1], classes, constants)


def random_batch(info: DataInfo, count: int) -> tuple[Tensor, Tensor]:
    """Return one batch of synthetic images as a network gets them, and labels; on the CPU."""
    from fqtsim.data.batches import training_batch

    x, y = training_batch(synthetic(info, count), 0, 0, count)
    return torch.from_numpy(x), torch.from_numpy(y)


def _rounded(x: Tensor, low: Tensor, high: Tensor, bits: int, stochastic: bool) -> Tensor:
    step = (high - low).clamp_min(1e-20) / (2**bits - 1)
    codes = (x - low) / step
    codes = torch.floor(codes + torch.rand_like(codes)) if stochastic else torch.round(codes)
    return codes.clamp(0, 2**bits - 1) * step + low


def per_tensor(x: Tensor, bits: int = 8, stochastic: bool = False) -> Tensor:
    """Return x on a grid of its own range."""
    low, high = torch.aminmax(x)
    return _rounded(x, low, high, bits, stochastic)


def householder(ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Return T and its inverse (N, N) for rows of these ranges: large rows lead, small ones follow."""
    n = len(ranges)
    ranked, order = torch.sort(ranges, descending=True)
    leaders = (ranked > ranked.mean()).sum().clamp(1, max(n // 2, 1))
    place = torch.arange(n, device=ranges.device)
    share = torch.cumsum(torch.where(place < leaders, ranked, torch.zeros_like(ranked)), 0)
    share = share / share[-1].clamp_min(1e-20)
    follower = (place - leaders + 0.5) / (n - leaders)
    group = torch.where(place < leaders, place, torch.searchsorted(share, follower.clamp(0, 1)).clamp(max=n - 1))
    member = torch.zeros((n, n), device=ranges.device).index_put_((place, group), torch.ones((), device=ranges.device))
    sizes = member.sum(0).clamp_min(1)
    lead = (place < leaders).to(ranges.dtype)
    v = member / sizes.sqrt() - torch.diag(lead)  # column g: 1 / sqrt(n_g) - e_leader
    v = v / v.norm(dim=0).clamp_min(1e-12)
    q = torch.eye(n, device=ranges.device) - 2 * v @ v.t()
    small = torch.where(place >= leaders, ranked, torch.zeros_like(ranked)).amax().clamp_min(1e-20)
    ratio = ((ranked[group] / sizes[group].sqrt()) / (2 * small)).clamp(1, 2.0**24) ** (1 / 3)
    scale = torch.where(place < leaders, torch.ones_like(ratio), ratio)
    back = torch.argsort(order)
    return (q * scale)[:, back], (q / scale[:, None])[back]


def block_householder(x: Tensor, bits: int) -> Tensor:
    """Return x (N, ...) quantized after T and turned back."""
    rows = x.reshape(len(x), -1)
    low, high = torch.aminmax(rows, dim=1)
    forth, back = householder(high - low)
    mixed = forth @ rows
    low, high = torch.aminmax(mixed, dim=1, keepdim=True)
    return (back @ _rounded(mixed, low, high, bits, True)).reshape(x.shape)


class _FakeConvolution(torch.autograd.Function):
    """A convolution of fake-quantized tensors with fake-quantized gradients: 8 bits for wgrad, BHQ for dgrad."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, window: tuple[Any, ...], bits: int) -> Tensor:
        x, w = per_tensor(x), per_tensor(w)
        ctx.save_for_backward(x, w)
        ctx.window, ctx.bits = window, bits
        return nn.functional.conv2d(x, w, None, *window)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.window
        place = (stride, padding, dilation, False, (0, 0), groups)
        backward, dx = torch.ops.aten.convolution_backward, None
        dw = backward(per_tensor(dy, 8, True), x, w, None, *place, (False, True, False))[1]
        if ctx.needs_input_grad[0]:
            dx = backward(block_householder(dy, ctx.bits), x, w, None, *place, (True, False, False))[0]
        return dx, dw, None, None


class FakeConv(nn.Conv2d):
    """A convolution without bias, by fake quantization."""

    def forward(self, x: Tensor) -> Tensor:
        window = self.stride, self.padding, self.dilation, self.groups
        out: Tensor = _FakeConvolution.apply(x, self.weight, window, 5)
        return out


class _FakeProduct(torch.autograd.Function):
    """The same for a linear layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bits: int) -> Tensor:
        x, w = per_tensor(x), per_tensor(w)
        ctx.save_for_backward(x, w)
        ctx.bits = bits
        return x @ w.t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        return block_householder(dy, ctx.bits) @ w, per_tensor(dy, 8, True).t() @ x, None


class FakeLinear(nn.Linear):
    """A linear layer by fake quantization."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _FakeProduct.apply(x, self.weight, 5)
        return out + self.bias


def fake_quantized(model: nn.Module) -> nn.Module:
    """Give every convolution and linear layer of a model its fake-quantized form, in place."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d:
            layer.__class__ = FakeConv
        elif type(layer) is nn.Linear:
            layer.__class__ = FakeLinear
    return model
