"""Batch norm on the device, fused over its four passes (S5.11). The twin of fqtsim/train/norm.py.

xhat is not kept: the backward pass has x, mean and inv, and forms it again by the same two operations. The largest
square of a sum comes from the extremes of the channel, since rounding keeps order: one pass less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from fqtsim.kernels.gpu.elements import relu, relu_gradient
from fqtsim.kernels.gpu.launch import is_fused
from fqtsim.kernels.gpu.sums import exact_sum


class Statistics(NamedTuple):
    """float32 (C,) each."""

    mean: torch.Tensor
    #: Biased, over n.
    var: torch.Tensor
    #: Over n - 1.
    unbiased: torch.Tensor
    #: 1 / sqrt(var + eps).
    inv: torch.Tensor


Affine = tuple[torch.Tensor, torch.Tensor] | None
"""gamma and beta, float32 (C,)."""


def float32(value: float) -> float:
    """Return the float32 number nearest to value."""
    return float(np.float32(value))


def divide_by(x: torch.Tensor, number: float) -> torch.Tensor:
    """Return x / number, one division per element: CUDA divides by a CPU scalar through its reciprocal."""
    return x / torch.full_like(x, number)


def square_root(x: torch.Tensor) -> torch.Tensor:
    """Return the float32 square root: torch's own float32 one misrounds on CPUs, float64 rounded once does not."""
    return torch.sqrt(x.to(torch.float64)).to(torch.float32)


def _per_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 2))


def _axes(x: torch.Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def inverse_deviation(var: torch.Tensor, eps: float) -> torch.Tensor:
    """Return 1 / sqrt(var + eps), (C,)."""
    root = square_root(var + float32(eps))
    return torch.ones_like(root) / root


def running(old: torch.Tensor, new: torch.Tensor, momentum: float) -> torch.Tensor:
    """Return (1 - momentum) * old + momentum * new, the weights rounded to float32 once."""
    return old * float32(1 - momentum) + new * float32(momentum)


def composed_statistics(x: torch.Tensor, eps: float, flags: torch.Tensor | None = None) -> Statistics:
    """Return what `statistics` does, by torch operations."""
    count = x.numel() // x.shape[1]
    mean = divide_by(exact_sum(x, _axes(x), flags), count)
    d = x - _per_channel(mean, x)
    squares = exact_sum(d * d, _axes(x), flags)
    var = divide_by(squares, count)
    return Statistics(mean, var, divide_by(squares, count - 1), inverse_deviation(var, eps))


def statistics(x: torch.Tensor, eps: float, flags: torch.Tensor | None = None) -> Statistics:
    """Return the statistics of each channel of float32 x (N, C, ...), NCHW or channels last.

    A term or sum that is not finite is noted. Fused: three reads, 12 bytes an element (all but one from the cache for
    tensors that fit it).
    """
    if x.numel() == 0 or not is_fused(x, counts_in_int32=True):
        return composed_statistics(x, eps, flags)
    from fqtsim.kernels.gpu import triton_norm

    return triton_norm.statistics(x, eps, flags)


def _affine(x: torch.Tensor, mean: torch.Tensor, inv: torch.Tensor, affine: Affine) -> torch.Tensor:
    xhat = (x - _per_channel(mean, x)) * _per_channel(inv, x)
    if affine is None:
        return xhat
    return xhat * _per_channel(affine[0], x) + _per_channel(affine[1], x)


def composed_normalize(
    x: torch.Tensor, mean: torch.Tensor, inv: torch.Tensor, affine: Affine, with_relu: bool
) -> torch.Tensor:
    """Return what `normalize` does, by torch operations."""
    y = _affine(x, mean, inv, affine)
    return relu(y) if with_relu else y


def normalize(
    x: torch.Tensor, mean: torch.Tensor, inv: torch.Tensor, affine: Affine, with_relu: bool = False
) -> torch.Tensor:
    """Return (x - mean) * inv * gamma + beta, left to right, laid out as x; with_relu: the larger of that and 0.

    Fused: 4 bytes read and 4 written an element.
    """
    if x.numel() == 0 or not is_fused(x, counts_in_int32=True):
        return composed_normalize(x, mean, inv, affine, with_relu)
    from fqtsim.kernels.gpu import triton_norm

    return triton_norm.normalize(x, mean, inv, affine, with_relu)


class Saved(NamedTuple):
    """What the backward pass of batch norm needs."""

    x: torch.Tensor
    mean: torch.Tensor
    inv: torch.Tensor
    affine: Affine
    #: Whether mean and inv came from this batch, and so depend on x.
    from_batch: bool
    #: Whether a ReLU followed in the same call.
    with_relu: bool = False


def composed_gradients(
    dy: torch.Tensor, saved: Saved, flags: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `gradients` does, by torch operations."""
    x, axes = saved.x, _axes(dy)
    if saved.with_relu:
        dy = relu_gradient(_affine(x, saved.mean, saved.inv, saved.affine), dy)
    xhat = (x - _per_channel(saved.mean, x)) * _per_channel(saved.inv, x)
    dgamma, dbeta = exact_sum(dy * xhat, axes, flags), exact_sum(dy, axes, flags)
    scale = saved.inv if saved.affine is None else saved.affine[0] * saved.inv
    if not saved.from_batch:
        return _per_channel(scale, dy) * dy, dgamma, dbeta
    count = dy.numel() // dy.shape[1]
    centred = dy - _per_channel(divide_by(dbeta, count), dy)
    along = xhat * _per_channel(divide_by(dgamma, count), dy)
    return _per_channel(scale, dy) * (centred - along), dgamma, dbeta


def gradients(
    dy: torch.Tensor, saved: Saved, flags: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return dx (laid out as x), dgamma and dbeta (C,); with_relu: dy counts where the ReLU's output is positive.

    A term or sum that is not finite is noted. Fused: three reads of dy and x and one write, 28 bytes an element.
    """
    if dy.numel() == 0 or not is_fused(dy, counts_in_int32=True):
        return composed_gradients(dy, saved, flags)
    from fqtsim.kernels.gpu import triton_norm

    return triton_norm.gradients(dy, saved, flags)
