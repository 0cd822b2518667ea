"""Batch norm, one float32 operation per symbol, left to right as bracketed (S5.11)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fqtsim.backends.fused_cpu_proof import SEQUENCES, numbers, require_equal
from fqtsim.backends.primitives import Primitives
from fqtsim.train.operands import Array

ONE = np.float32(1)


@dataclass(frozen=True)
class Normalized:
    """What the backward pass of batch norm needs: xhat in x's shape, inv and gamma per channel."""

    xhat: Array
    inv: Array
    gamma: Array | None
    #: Whether mean and variance came from this batch, and so depend on x.
    from_batch: bool
    #: The output of a ReLU that followed in the same call.
    rectified: Array | None = None


def channel_axes(x: Array) -> tuple[int, ...]:
    """Return every axis but that of the channels, 1."""
    return (0, *range(2, x.ndim))


def per_channel(values: Array, like: Array) -> Array:
    """Return (C,) values in a shape that broadcasts over `like` (N, C, ...)."""
    return values.reshape(-1, *(1,) * (like.ndim - 2))


def terms(x: Array) -> int:
    """Return how many values each channel of x (N, C, ...) has."""
    return int(math.prod(x.shape) // x.shape[1])


def _fused(p: Primitives) -> Any:
    """Return the fused forms of batch norm, proven on this machine; None where the sequences below run."""
    if p.fused_norm is not None and not p.on_device:  # a device proves its own before it is used
        _prove(p.fused_norm)
    return p.fused_norm


@lru_cache(maxsize=1)
def _prove(fused: Any) -> None:
    """Compare the fused forms with the sequences, once. Raises BackendRefused naming the first that differs."""
    x, dy, affine = numbers((6, 5, 7, 9), 3), numbers((6, 5, 7, 9), 4), numbers((2, 5), 5)
    mean, var, unbiased = batch_statistics(x, SEQUENCES)
    pairs: list[tuple[str, Any, Any]] = [("batch norm statistics", fused.batch_statistics(x), (mean, var, unbiased))]
    for scale, from_batch, with_relu in (
        (tuple(affine), True, False),
        (tuple(affine), True, True),
        (None, False, True),
    ):
        rest = x, mean, var, scale, 1e-5, from_batch
        (ours, saved), (theirs, kept) = fused.batch_norm(*rest, with_relu), batch_norm(*rest, SEQUENCES, with_relu)
        pairs.append(("batch norm", (ours,), (theirs,)))
        gradients = batch_norm_gradients(dy, kept, SEQUENCES)
        pairs.append(("batch norm gradients", fused.batch_norm_gradients(dy, saved), gradients))
    for name, found, expected in pairs:
        require_equal(name, found, expected)


def batch_statistics(x: Array, p: Primitives) -> tuple[Array, Array, Array]:
    """Return mean, biased variance and unbiased variance of each channel of x (N, C, ...), float32."""
    fused = _fused(p)
    found = None if fused is None else fused.batch_statistics(x)
    if found is not None:
        statistics: tuple[Array, Array, Array] = found
        return statistics
    axes = channel_axes(x)
    count = terms(x)
    mean = p.divide(p.exact_sum(x, axes), np.float32(count))
    d = p.subtract(x, per_channel(mean, x))
    squares = p.exact_sum(p.multiply(d, d), axes)
    return mean, p.divide(squares, np.float32(count)), p.divide(squares, np.float32(count - 1))


def batch_norm(
    x: Array, mean: Array, var: Array, affine: tuple[Array, Array] | None, eps: float, from_batch: bool, p: Primitives,
    with_relu: bool = False,
) -> tuple[Array, Any]:  # fmt: skip
    """Return xhat * gamma + beta with xhat = (x - mean) * (1 / sqrt(var + eps)), and what backward needs.

    with_relu: the ReLU of that instead.
    """
    fused = _fused(p)
    if fused is not None:
        normalized: tuple[Array, Any] = fused.batch_norm(x, mean, var, affine, eps, from_batch, with_relu)
        return normalized
    inv = p.divide(ONE, p.sqrt(p.add(var, np.float32(eps))))
    return _normalized(x, mean, inv, affine, from_batch, p, with_relu)


def _normalized(
    x: Array, mean: Array, inv: Array, affine: tuple[Array, Array] | None, from_batch: bool, p: Primitives,
    with_relu: bool,
) -> tuple[Array, Normalized]:  # fmt: skip
    y = xhat = p.multiply(p.subtract(x, per_channel(mean, x)), per_channel(inv, x))
    if affine is not None:
        y = p.add(p.multiply(xhat, per_channel(affine[0], x)), per_channel(affine[1], x))
    gamma = None if affine is None else affine[0]
    if not with_relu:
        return y, Normalized(xhat, inv, gamma, from_batch)
    rectified = p.relu(y)
    return rectified, Normalized(xhat, inv, gamma, from_batch, rectified)


def batch_norm_gradients(dy: Array, saved: Any, p: Primitives) -> tuple[Array, Array, Array]:
    """Return dx, dgamma and dbeta.

    dx = (gamma * inv) * ((dy - sum(dy) / n) - xhat * (sum(dy * xhat) / n)), and (gamma * inv) * dy where the statistics
    did not come from the batch.
    """
    fused = _fused(p)
    if fused is not None:
        found: tuple[Array, Array, Array] | None = fused.batch_norm_gradients(dy, saved)
        if found is not None:
            return found
        saved = _by_sequence(saved, p)
    if saved.rectified is not None:
        dy = p.relu_gradient(saved.rectified, dy)
    axes = channel_axes(dy)
    dgamma = p.exact_sum(p.multiply(dy, saved.xhat), axes)
    dbeta = p.exact_sum(dy, axes)
    scale = saved.inv if saved.gamma is None else p.multiply(saved.gamma, saved.inv)
    if not saved.from_batch:
        return p.multiply(per_channel(scale, dy), dy), dgamma, dbeta
    count = np.float32(terms(dy))
    centred = p.subtract(dy, per_channel(p.divide(dbeta, count), dy))
    along = p.multiply(saved.xhat, per_channel(p.divide(dgamma, count), dy))
    return p.multiply(per_channel(scale, dy), p.subtract(centred, along)), dgamma, dbeta


def _by_sequence(saved: Any, p: Primitives) -> Normalized:
    """Return what the sequence would have kept where a fused form ran."""
    return _normalized(saved.x, saved.mean, saved.inv, saved.affine, saved.from_batch, p, saved.with_relu)[1]


def running(old: Array, new: Array, momentum: float, p: Primitives) -> Array:
    """Return (1 - momentum) * old + momentum * new, the weights rounded to float32 once."""
    return p.add(p.multiply(old, np.float32(1 - momentum)), p.multiply(new, np.float32(momentum)))
