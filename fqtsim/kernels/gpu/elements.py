"""Row ranges, ReLU and other element-wise forms on the device. Twins of fqtsim/kernels/quantize.py and
fqtsim/train/elementwise.py."""

from __future__ import annotations

import torch

from fqtsim.kernels.gpu.launch import Fault, is_fused, note


def keys(x: torch.Tensor) -> torch.Tensor:
    """Return int32 numbers in the order of the float32 x; beyond those of the infinities for NaN."""
    bits = x.view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def composed_extremes(x: torch.Tensor, flags: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `extremes` does, by torch operations."""
    order = keys(x.reshape(len(x), -1))
    ends = torch.stack((order.amin(1), order.amax(1)))
    values = (ends ^ ((ends >> 31) & 0x7FFFFFFF)).view(torch.float32) + 0.0  # turns -0 into +0
    note(flags, ~torch.isfinite(values), Fault.NOT_FINITE)
    return values[0], values[1]


def extremes(x: torch.Tensor, flags: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return minimum and maximum, float32 (N,), of each index of dimension 0 of x (N, ...), any strides; zeros as +0.

    NaN and infinity are noted. Fused: one read, 4 bytes an element.
    """
    if x.numel() == 0 or not is_fused(x):
        return composed_extremes(x, flags)
    from fqtsim.kernels.gpu import triton_elements

    return triton_elements.extremes(x, flags)


def select(keep: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return float32 x where the booleans `keep` hold, else +0."""
    return torch.where(keep, x, torch.zeros_like(x))


def relu(x: torch.Tensor) -> torch.Tensor:
    """Return max(x, 0), never -0; NaN for NaN."""
    return torch.where(x <= 0, torch.zeros_like(x), x)


def relu_gradient(y: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """Return dy where the output y of relu is positive, else +0."""
    return select(y > 0, dy)


def composed_add_relu(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return what `add_relu` does, by torch operations."""
    return relu(x + y)


def add_relu(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return max(x + y, 0) of two tensors of one shape. Fused: 8 bytes read and 4 written an element."""
    if x.stride() != y.stride() or not is_fused(x):
        return composed_add_relu(x, y)
    from fqtsim.kernels.gpu import triton_elements

    return triton_elements.add_relu(x, y)


def composed_relu_add_gradient(y: torch.Tensor, dys: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return what `relu_add_gradient` does, by torch operations."""
    total = dys[0]
    for dy in dys[1:]:
        total = total + dy
    return relu_gradient(y, total)


def relu_add_gradient(y: torch.Tensor, dys: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return ((dy0 + dy1) + ...) where the output y of relu is positive, else +0: a fork behind a ReLU (S5.8).

    Fused for one or two gradients: 8 or 12 bytes read and 4 written an element.
    """
    if len(dys) > 2 or any(dy.stride() != y.stride() for dy in dys) or not is_fused(y):
        return composed_relu_add_gradient(y, dys)
    from fqtsim.kernels.gpu import triton_elements

    return triton_elements.relu_add_gradient(y, dys)
