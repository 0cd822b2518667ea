"""The GEMMs of ResNet-56 and MobileNetV2 on 32x32 images, as their layers' three products see them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from cpu_report import Bench
from torch import nn

from fqtsim.data import DataInfo
from fqtsim.models import build_model

CIFAR = DataInfo((3, 32, 32), 10)
TOY = DataInfo((3, 8, 8), 10)


class Shape(NamedTuple):
    """One GEMM: (M, K) by (K, N), `groups` times."""

    network: str
    gemm: str
    m: int
    k: int
    n: int
    groups: int = 1

    @property
    def macs(self) -> int:
        """Products of one call."""
        return self.groups * self.m * self.n * self.k

    @property
    def text(self) -> str:
        """The shape as a row names it."""
        if self.network == "cube":
            return f"{self.m}^3"
        times = f"{self.groups} x " if self.groups > 1 else ""
        return f"{self.network} {self.gemm} {times}{self.m} x {self.k} x {self.n}"


def cubes(sizes: tuple[int, ...]) -> list[Shape]:
    """Return n x n x n products."""
    return [Shape("cube", "", n, n, n) for n in sizes]


def network_shapes(bench: Bench, grouped: bool = False) -> list[Shape]:
    """Return each distinct GEMM of both networks once, batch 128; those of grouped layers, or of all others."""
    if not bench.networks:
        return []
    if bench.quick:
        found = _layers("resnet8", TOY, 2)[:3] + _layers("mobilenet_v2", TOY, 2)[:9]
    else:
        found = _layers("resnet56", CIFAR, 128) + _layers("mobilenet_v2", CIFAR, 128)
    chosen = [shape for shape in dict.fromkeys(found) if (shape.groups > 1) == grouped]
    return chosen[:1] if bench.quick else chosen


def step_bytes(name: str, info: DataInfo, batch: int) -> int:
    """Return what the three GEMMs of every layer move at least: two tensors of codes in, one of float32 out."""
    model = build_model(name, info, 0).to("meta")
    total = 0

    def see(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d | nn.Linear):
            # Each of the three is read by two GEMMs and written by one.
            total += (2 + 4) * (inputs[0].numel() + module.weight.numel() + output.numel())

    for module in model.modules():
        module.register_forward_hook(see)
    model(torch.empty((batch, *info.shape), device="meta"))
    return total


def _layers(name: str, info: DataInfo, batch: int) -> list[Shape]:
    model = build_model(name, info, 0).to("meta")
    found: list[Shape] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        first = not found
        if isinstance(module, nn.Conv2d):
            taps, groups = module.kernel_size[0] * module.kernel_size[1], module.groups
            ins, outs = module.in_channels // groups, module.out_channels // groups
            before, after = (batch * t.shape[2] * t.shape[3] for t in (inputs[0], output))
        elif isinstance(module, nn.Linear):
            taps, groups, ins, outs, before, after = 1, 1, module.in_features, module.out_features, batch, batch
        else:
            return
        found.append(Shape(name, "fprop", after, taps * ins, outs, groups))
        if not first:  # nobody reads the gradient of the images
            found.append(Shape(name, "dgrad", before, taps * outs, ins, groups))
        found.append(Shape(name, "wgrad", taps * ins, after, outs, groups))

    for module in model.modules():
        module.register_forward_hook(see)
    model(torch.empty((batch, *info.shape), device="meta"))
    return found
