"""The proof that fused kernels equal their sequences on this device (S5.2), before either is trusted.

Numbers come from the shipped generator: wide exponents, zeros of both signs, subnormals and ties among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from fqtsim.errors import BackendRefused
from fqtsim.kernels.gpu import elements, householder, norm, quantize, random, sums, update
from fqtsim.kernels.gpu.launch import bits, is_fused
from fqtsim.words import Rounding

Pair = tuple[str, Callable[[], Any], Callable[[], Any]]
"""A name, the fused form and the composed one."""
IMAGES, ROWS = (6, 5, 7, 9), (40, 300)
ROUNDINGS = (Rounding.TIES_TO_EVEN, Rounding.STOCHASTIC, Rounding.TO_ODD)


def _numbers(shape: tuple[int, ...], stream: int, device: torch.device) -> torch.Tensor:
    """Return finite float32 numbers of many magnitudes, with zeros, halves and subnormals."""
    words = random.composed_random_words(7, stream, 0, int(np.prod(shape)), "cpu").reshape(shape)
    x = (words.to(torch.float64) * 2.0**-31).to(torch.float32) * torch.exp2((words & 15).to(torch.float32) - 8.0)
    x = torch.where(words & 0x70 == 0, torch.zeros_like(x) * x, x)
    x = torch.where(words & 0xF00 == 0, torch.round(x * 4.0) * 0.5, x)
    return torch.where(words & 0xF000 == 0, x * 2.0**-130, x).to(device)


def _norms(device: torch.device, channels_last: bool) -> Iterator[Pair]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (_numbers(IMAGES, stream, device).to(memory_format=layout) for stream in (1, 2))
    affine = _numbers((5,), 3, device), _numbers((5,), 4, device)
    found = norm.composed_statistics(x, 1e-5)
    yield "batch norm statistics", lambda: norm.statistics(x, 1e-5), lambda: norm.composed_statistics(x, 1e-5)
    for with_relu in (False, True):
        name, rest = f"batch norm{' with ReLU' if with_relu else ''}", (x, found.mean, found.inv, affine, with_relu)
        yield name, partial(norm.normalize, *rest), partial(norm.composed_normalize, *rest)
        call = dy, norm.Saved(x, found.mean, found.inv, affine, True, with_relu)
        yield f"{name} gradients", partial(norm.gradients, *call), partial(norm.composed_gradients, *call)
    for axes in ((0, 2, 3), (1,), (0, 1, 2, 3)):
        yield "exact sum", partial(sums.exact_sum64, x, axes), partial(sums.composed_exact_sum64, x, axes)


def _mixing(device: torch.device) -> Iterator[Pair]:
    x = _numbers(ROWS, 5, device) * torch.exp2(-torch.arange(ROWS[0], device=device) % 17).to(torch.float32)[:, None]
    least, greatest = elements.composed_extremes(x)
    ranges, peaks = greatest.to(torch.float64) - least.to(torch.float64), torch.maximum(greatest, -least)
    yield "extremes", lambda: elements.extremes(x), lambda: (least, greatest)
    groups = householder.composed_group_rows(ranges)
    s = householder.composed_scales(groups, ranges, peaks)
    yield "BHQ groups", lambda: householder.group_rows(ranges), lambda: groups
    yield "BHQ scales", lambda: householder.scales(groups, ranges, peaks), lambda: s
    mixed = householder.composed_mix(x, groups, s)
    yield "BHQ mixing", lambda: householder.mix(x, groups, s), lambda: mixed
    rest = (mixed, groups, s)
    yield "BHQ unmixing", partial(householder.unmix, *rest), partial(householder.composed_unmix, *rest)


def _codes(device: torch.device) -> Iterator[Pair]:
    x = _numbers(IMAGES, 6, device)
    least, greatest = elements.composed_extremes(x)
    for zero in quantize.GRIDS:
        settings: tuple[Any, ...] = (zero, least, greatest, 5, True)
        grid = quantize.composed_grid(*settings)
        yield f"{zero} grid", partial(quantize.grid, *settings), partial(quantize.composed_grid, *settings)
        for rounding in ROUNDINGS:
            draw = quantize.DeviceDraw(1 << 40, 2, 3, 16) if rounding is Rounding.STOCHASTIC else None
            for laid in (x, x.to(memory_format=torch.channels_last)):
                call = (laid, grid.step, grid.zero_point, grid.low, grid.high, rounding, draw, torch.int8, grid.offset)
                yield (
                    f"quantize {zero} {rounding.value}", partial(quantize.quantize, *call),
                    partial(quantize.composed_quantize, *call),
                )  # fmt: skip


def _updates(device: torch.device) -> Iterator[Pair]:
    w, g, v = (_numbers((1003,), stream, device) for stream in (7, 8, 9))
    lr = torch.full((1,), float(np.float32(0.1)), dtype=torch.float32, device=device)
    rate = float(np.float32(0.9)), float(np.float32(1e-4))
    for rule, moving in (
        (update.Rule(*rate, False), v),
        (update.Rule(*rate, True), v),
        (update.Rule(0.0, 0.0, False), None),
    ):
        call = (w, g, moving, lr, rule, None)
        yield "sgd", partial(update.sgd, *call), partial(update.composed_sgd, *call)


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result if isinstance(part, tuple | torch.Tensor) for tensor in _tensors(part)]


def pairs(device: torch.device) -> Iterator[Pair]:
    """Yield every fused form that layers use, beside what it must equal."""
    for channels_last in (False, True):
        yield from _norms(device, channels_last)
    yield from _mixing(device)
    yield from _codes(device)
    yield from _updates(device)


def prove_fused(device: torch.device) -> None:
    """Compare every fused form with its sequence, bit for bit. Raises BackendRefused naming the first that differs."""
    if not is_fused(torch.zeros(1, device=device)):
        return
    for name, fused, composed in pairs(device):
        for ours, expected in zip(_tensors(fused()), _tensors(composed()), strict=True):
            if ours.shape != expected.shape or not torch.equal(bits(ours), bits(expected)):
                raise BackendRefused(
                    f"{device.type}: the fused form of {name} differs from its sequence; "
                    "its results would differ from other machines', use backend emulator@cpu"
                )
