"""Every GEMM and convolution of ResNet-56, ResNet-50 and a Transformer block: 0 bits may differ.

Each is compared with the composed form, whole: integers in float64, where no sum is rounded (fqtsim/kernels/gpu/
composed_convolution.py), by the vendor's FP64 GEMM. A few outputs of each are computed once more on the CPU, term by
term from the formulas of S4, by `stepwise`. Operands: random codes, and rails that drive sums to their limits.
Several processes share the device, because what takes time is the compilation of the kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_models import CIFAR, IMAGENET, ResNet50
from gpu_report import EQUAL, FAILED, INCOMPLETE, Bench, Row, spread
from torch import nn

import fqtsim
from fqtsim.backends import get_backend
from fqtsim.data import DataInfo
from fqtsim.kernels.gpu import composed_convolution as composed
from fqtsim.kernels.gpu import convolution
from fqtsim.kernels.gpu.epilogue import EXACT, WRAP32, Side
from fqtsim.kernels.gpu.gemm import composed_int8_gemm_scaled, int8_gemm_scaled
from fqtsim.models.preact_resnet import preact_resnet
from fqtsim.train.geometry import Window

HARDWARE = "int8_acc32_wrap"
BLOCK = 1 << 24
"""Outputs that are compared at a time, so that the float64 matrices fit."""
SAMPLES = 4


class Product(NamedTuple):
    """One layer's three GEMMs."""

    network: str
    #: Samples, input channels, height, width; a linear layer has height and width 1.
    shape: tuple[int, int, int, int]
    outputs: int
    window: Window
    groups: int
    linear: bool
    #: The network's first layer needs no dgrad.
    first: bool


def layers(network: str, model: nn.Module, shape: tuple[int, ...]) -> list[Product]:
    """Return the distinct layers of a model at an input shape; nothing is computed."""
    found: dict[Product, None] = {}
    model = model.to("meta")

    def see(module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        size = (*inputs[0].shape, 1, 1)[:4]
        if isinstance(module, nn.Conv2d):
            pad = (module.padding[0], module.padding[1])
            window = Window(module.kernel_size, module.stride, pad, pad, module.dilation)
            found[Product(network, size, module.out_channels, window, module.groups, False, not found)] = None
        elif isinstance(module, nn.Linear):
            found[Product(network, size, module.out_features, POINT, 1, True, not found)] = None

    for module in model.modules():
        module.register_forward_hook(see)
    model(torch.empty(shape, device="meta"))
    return list(found)


POINT = Window((1, 1), (1, 1), (0, 0), (0, 0))


def products(tiny: bool) -> list[Product]:
    """Return what is compared: the layers that training needs, each shape once."""
    with torch.device("meta"):  # no weights are drawn
        return _products(tiny)


def _products(tiny: bool) -> list[Product]:
    if tiny:
        small = DataInfo((3, 8, 8), 10)
        found = layers("ResNet-8", preact_resnet(1)(small), (2, 3, 8, 8))
        found += layers("bottleneck", ResNet50(10, (1, 1), 4), (2, 3, 16, 16))
        return [*found[1:3], *found[-3:], Product("Transformer", (8, 16, 1, 1), 24, POINT, 1, True, False)]
    found = layers("ResNet-56", preact_resnet(9)(CIFAR), (128, *CIFAR.shape))

    sizes = ((4096, 4096), (4096, 16384), (16384, 4096))
    found += [Product("Transformer", (16384, k, 1, 1), n, POINT, 1, True, False) for k, n in sizes]
    # 50 images: the wgrad of conv1 has 50 * 112 * 112 = 627200 terms.
    return found + layers("ResNet-50", ResNet50(), (50, *IMAGENET.shape))


class _Job:
    """One layer with operands, on a device."""

    def __init__(self, product: Product, rails: bool, device: str) -> None:
        self.product, self.rails, self.device = product, rails, device
        self.register = WRAP32 if rails else EXACT
        self.generator = torch.Generator().manual_seed(17 * rails + product.outputs)
        self.random = torch.Generator(device).manual_seed(17 * rails + product.outputs)
        n, c, h, w = product.shape
        self.out = product.window.positions((h, w))
        self.x = self._codes((n, c, h, w), torch.uint8)
        self.w = self._codes((product.outputs, c // product.groups, *product.window.kernel), torch.int8)
        self.dh = self._codes((n, product.outputs, *self.out), torch.int8)
        self.x_side, self.w_side, self.dh_side = self._side(()), self._side(()), self._side(())
        self.dh_rows = self._side((n,))

    def _codes(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return codes (N, C, H, W), images stored channels last as the layers store them."""
        low, high = (0, 255) if dtype == torch.uint8 else (-128, 127)
        place = {"dtype": torch.int16, "generator": self.random, "device": self.device}
        if self.rails:  # and a first sample and channel of the code that makes the largest products
            codes = (torch.randint(0, 2, shape, **place) * (high - low) + low).to(dtype)
            codes[0], codes[:, 0] = (high, high) if dtype == torch.uint8 else (low, low)
        else:
            codes = torch.randint(low, high + 1, shape, **place).to(dtype)
        return codes if self.product.linear else codes.contiguous(memory_format=torch.channels_last)

    def _side(self, shape: tuple[int, ...]) -> Side:
        zero = torch.randint(0, 100, shape, generator=self.generator, dtype=torch.int32)
        step = torch.rand(shape, generator=self.generator) + 0.01
        return Side(zero.to(self.device), step.to(self.device))

    def gemms(self) -> Iterator[tuple[str, torch.Tensor, Iterator[tuple[slice, torch.Tensor]]]]:
        """Yield the name, the result under test and blocks of the expected result along its first dimension."""
        for name in ("fprop", "dgrad", "wgrad"):
            if name == "dgrad" and self.product.first:
                continue
            if self.product.linear:
                yield name, *self._linear(name)
            else:
                yield name, *self._convolution(name)

    def _linear(self, name: str) -> tuple[torch.Tensor, Iterator[tuple[slice, torch.Tensor]]]:
        x, w, dh = (codes.flatten(1) for codes in (self.x, self.w, self.dh))
        a, b, row, column = {
            "fprop": (x, w.t(), self.x_side, self.w_side),
            "dgrad": (dh, w, self.dh_rows, self.w_side),
            "wgrad": (dh.t(), x, self.dh_side, self.x_side),
        }[name]
        got = int8_gemm_scaled(a, b, row, column, register=self.register)[0].t()  # (M, N)

        def blocks() -> Iterator[tuple[slice, torch.Tensor]]:
            height = max(1, BLOCK // max(b.shape))
            for first in range(0, len(a), height):
                part = slice(first, first + height)
                side = row if row.step.ndim == 0 else Side(_of(row.zero, part), row.step[part])
                want = composed_int8_gemm_scaled(a[part], b, side, column, register=self.register)
                yield part, want[0].t()

        return got, blocks()

    def _convolution(self, name: str) -> tuple[torch.Tensor, Iterator[tuple[slice, torch.Tensor]]]:
        p, x, w, dh = self.product, self.x, self.w, self.dh
        shared, size = (p.window, p.groups), p.shape[2:]
        if name == "wgrad":
            got = convolution.conv_wgrad(x, dh, *shared, self.x_side, self.dh_side, register=self.register)
            want = composed.composed_wgrad(x, dh, *shared, self.x_side, self.dh_side, self.register, None)
            return got, iter([(slice(None), want)])
        if name == "fprop":
            got = convolution.conv_fprop(x, w, *shared, self.x_side, self.w_side, register=self.register)
        else:
            got = convolution.conv_dgrad(dh, w, *shared, size, self.dh_rows, self.w_side, register=self.register)

        def blocks() -> Iterator[tuple[slice, torch.Tensor]]:
            for first in range(0, p.shape[0], 10):
                part = slice(first, first + 10)
                if name == "fprop":
                    yield (
                        part,
                        composed.composed_fprop(x[part], w, *shared, self.x_side, self.w_side, self.register, None),
                    )
                else:
                    side = Side(_of(self.dh_rows.zero, part), self.dh_rows.step[part])
                    yield (
                        part,
                        composed.composed_dgrad(dh[part], w, *shared, size, side, self.w_side, self.register, None),
                    )

        return got, blocks()

    def sampled(self, name: str, got: torch.Tensor) -> int:
        """Return how many of a few outputs differ from the CPU's, each computed from its own terms by stepwise."""
        wrong = 0
        for _ in range(SAMPLES):
            at = [int(torch.randint(0, size, (), generator=self.generator)) for size in got.shape]
            full = [*at, 0, 0][:4]
            a, b, row, column = self._terms(name, full)
            codes = fqtsim.gemm(a[None].numpy(), b[:, None].numpy(), HARDWARE, name, backend="stepwise").codes
            za, zb = int(row.zero.cpu()), int(column.zero.cpu())  # type: ignore[union-attr]
            sums = int(a.sum(dtype=torch.int64)), int(b.sum(dtype=torch.int64))
            value = int(codes[0, 0]) - za * sums[1] - zb * sums[0] + len(a) * za * zb
            scale = float(row.step.cpu()) * float(column.step.cpu())
            wrong += bool(np.float32(float(value) * scale) != got[tuple(at)].cpu().numpy())
        return wrong

    def _terms(self, name: str, at: list[int]) -> tuple[torch.Tensor, torch.Tensor, Side, Side]:
        """Return the two vectors whose product is one output, gathered by the formulas of S4, and their sides."""
        p, window = self.product, self.product.window
        (kh, kw), n = window.kernel, p.shape[0]
        each, per = p.shape[1] // p.groups, p.outputs // p.groups
        if name == "wgrad" and p.linear:  # rows of the result are outputs, as in a convolution
            return self.x[:, at[1], 0, 0].cpu(), self.dh[:, at[0], 0, 0].cpu(), self.x_side, self.dh_side
        if name == "wgrad":
            group = at[0] // per
            i, oh, ow = _grids(n, *self.out)
            rows, columns = oh * window.stride[0] + at[2] - window.before[0], ow * window.stride[1] + at[3]
            a = _read(self.x[:, group * each + at[1]], i, rows, columns - window.before[1], self.x_side.zero)
            return a, self.dh[:, at[0]].reshape(-1).cpu(), self.x_side, self.dh_side
        if name == "fprop":
            group = at[1] // per
            i, r, s = _grids(each, kh, kw)
            rows, columns = at[2] * window.stride[0] + r - window.before[0], at[3] * window.stride[1] + s
            planes = self.x[at[0], group * each : (group + 1) * each]
            a = _read(planes, i, rows, columns - window.before[1], self.x_side.zero)
            return a, self.w[at[1]].reshape(-1).cpu(), self.x_side, self.w_side
        group = at[1] // each
        i, r, s = _grids(per, kh, kw)
        rows, columns = at[2] + window.before[0] - r, at[3] + window.before[1] - s
        holes = (rows % window.stride[0] != 0) | (columns % window.stride[1] != 0)
        rows, columns = rows // window.stride[0], columns // window.stride[1]
        side = Side(_of(self.dh_rows.zero, at[0]), self.dh_rows.step[at[0]])
        planes = self.dh[at[0], group * per : (group + 1) * per]
        a = _read(planes, i, torch.where(holes, -1, rows), columns, side.zero)
        b = self.w[group * per : (group + 1) * per, at[1] - group * each].reshape(-1).cpu()
        return a, b, side, self.w_side


def _of(values: torch.Tensor | None, part: Any) -> torch.Tensor:
    assert values is not None
    return values[part]


def _grids(*sizes: int) -> tuple[torch.Tensor, ...]:
    return tuple(grid.reshape(-1) for grid in torch.meshgrid(*map(torch.arange, sizes), indexing="ij"))


def _read(
    planes: torch.Tensor, i: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, zero: torch.Tensor | None
) -> torch.Tensor:
    """Return planes[i, rows, columns] on the CPU, the code of real zero outside."""
    planes = planes.cpu()
    inside = (rows >= 0) & (rows < planes.shape[1]) & (columns >= 0) & (columns < planes.shape[2])
    codes = planes[i, rows.clamp(0, planes.shape[1] - 1), columns.clamp(0, planes.shape[2] - 1)]
    return torch.where(inside, codes, 0 if zero is None else zero.cpu().to(codes.dtype))


class Outcome(NamedTuple):
    """What one job found."""

    place: int
    network: str
    gemms: int
    outputs: int
    wrong: int
    sampled_wrong: int
    #: What was wrong, in words.
    said: str


def compare(task: tuple[int, Product, bool, str]) -> Outcome:
    """Run one layer's GEMMs and compare them."""
    place, product, rails, device = task
    gemms = outputs = wrong = sampled = 0
    said = []
    try:
        job = _Job(product, rails, device)
        for name, got, blocks in job.gemms():
            bad = sum(int((got[part] != want).sum()) for part, want in blocks)
            few = job.sampled(name, got)
            gemms, outputs, wrong, sampled = gemms + 1, outputs + got.numel(), wrong + bad, sampled + few
            if bad or few:
                said.append(f"{name} {product}, rails {rails}: {bad} of {got.numel()}, {few} of {SAMPLES} sampled")
    except Exception as error:
        said.append(f"{product}, rails {rails}: {type(error).__name__}: {error}")
        wrong += 1
    if device == "cuda":
        job = None  # type: ignore[assignment]
        torch.cuda.empty_cache()
    return Outcome(place, product.network, gemms, outputs, wrong, sampled, "; ".join(said))


def equality(bench: Bench) -> None:
    """Compare every shape, network by network; those that the time did not reach make the row incomplete."""
    everything = products(bench.tiny)
    tasks = [(i, p, rails, bench.device) for i, (p, rails) in enumerate(itertools.product(everything, (False, True)))]
    # Half of the processes: float64 matrices are large.
    found = list(spread(compare, tasks, bench.options.jobs // 2, bench.deadline))
    for network in dict.fromkeys(product.network for product in everything):
        mine = [outcome for outcome in found if outcome.network == network]
        wanted = sum(task[1].network == network for task in tasks)
        wrong = sum(outcome.wrong for outcome in mine)
        sampled = sum(outcome.sampled_wrong for outcome in mine)
        gemms, outputs = sum(outcome.gemms for outcome in mine), sum(outcome.outputs for outcome in mine)
        details = {
            "gemms": gemms, "outputs": outputs, "wrong": wrong, "sampled": SAMPLES * gemms, "sampled_wrong": sampled,
            "wrong_shapes": [outcome.said for outcome in mine if outcome.said], "layers": wanted // 2,
        }  # fmt: skip
        work = f"{network}: {gemms} GEMMs, random and rails, against exact sums and stepwise"
        if wrong + sampled or len(mine) == wanted:
            bench.equal(work, wrong + sampled, f"{outputs} outputs, {SAMPLES * gemms} by stepwise", **details)
        else:
            measured = f"{len(mine)} of {wanted} done, {EQUAL}; the compiled kernels are kept for --resume"
            bench.report(Row(work, measured, INCOMPLETE, target="0 differ", details=details))
        for outcome in [outcome for outcome in mine if outcome.said][:5]:
            bench.report(Row(network, outcome.said[:300], FAILED))
    _dumped(bench)


def _dumped(bench: Bench) -> None:
    """Compare every GEMM of a real training step on the device, as its layers ask for it, with stepwise."""
    from gpu_digests import RUNS, trainer_of

    run = RUNS["mlp-digits" if bench.tiny else "resnet8-digits"]
    trainer, batch = trainer_of(run, bench.backend("native"))
    seen: list[tuple[Any, ...]] = []
    trainer.step(*batch(0))
    trainer.net.observers.append(lambda *told: seen.append(told))
    trainer.step(*batch(1))
    stepwise, wrong, outputs = get_backend("stepwise"), 0, 0
    for _layer, _gemm, a, b, datapath, c, result in seen:
        want = stepwise.gemm(*(np.ascontiguousarray(codes.cpu().numpy()) for codes in (a, b)), datapath, c)
        wrong += int((result.codes.cpu().numpy() != want.codes).sum()) + (result.events != want.events)
        outputs += want.codes.size
    name = f"operands dumped from {run.model} on digits, {len(seen)} GEMMs, codes and events"
    bench.equal(name, wrong, f"{outputs} outputs")
