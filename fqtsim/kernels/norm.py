"""Batch norm channel by channel, and ReLU, fused (S5.11): equal to the sequences of primitives bit for bit.

A channel's values are read from memory once and stay in a cache for the passes that an exact sum needs. Every line is
one float32 operation per symbol; sums are those of exact_sum.py. Arrays are (N, C, positions).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.kernels.ends import key
from fqtsim.kernels.exact_sum import ROUNDER, exponent, magnitude, power, shift_of, value
from fqtsim.kernels.jit import inner, kernel
from fqtsim.kernels.norm_tile import (
    centre,
    centre_relu,
    pair_tops,
    pair_tops_relu,
    pair_totals,
    pair_totals_relu,
    square_total,
    value_ends,
    value_total,
)
from fqtsim.kernels.threads import parts, run
from fqtsim.kernels.vectors import LANES

Array = np.ndarray[Any, Any]


@inner
def _size(x: Any) -> Any:
    return magnitude(np.float32(x).view(np.int32))


@inner
def _binade(top: Any, shift: int) -> Any:
    """Return M (kernels/vectors.py) of a sum whose largest magnitude pattern is `top`, in terms of `shift` bits."""
    return power(exponent(top) - shift) * ROUNDER


@inner
def _without(total: Any, binade: Any, extent: Any) -> Any:
    """Return a total of kernels/norm_tile.py without the bits of M that came with every lane."""
    vectors = np.int64((extent[2] + LANES - 1) // LANES)
    return np.int64(total - np.float64(binade).view(np.int64) * np.int64(extent[0] * vectors * LANES))


@inner
def _extent(x: Any) -> Any:
    """Return rows of a channel, bytes between them, and values of a row."""
    return np.int64(x.shape[0]), np.int64(4 * x.shape[1] * x.shape[2]), np.int64(x.shape[2])


@inner
def _channel(x: Any, c: Any) -> Any:
    """Return the address of channel c."""
    return np.int64(x.ctypes.data + 4 * c * x.shape[2])


@kernel
def _statistics(x: Any, shift: int, first: int, last: int, out: Any) -> None:
    """Fill out[:, first..last]: mean, sum of squared deviations; NaN where a term is not finite."""
    count, extent = np.float32(x.shape[0] * x.shape[2]), _extent(x)
    for c in range(first, last):
        place = (_channel(x, c),)
        least, greatest = value_ends(place, extent, (), ())
        low, high = np.int32(key(least)).view(np.float32), np.int32(key(greatest)).view(np.float32)
        top = max(_size(low), _size(high))
        binade = _binade(top, shift)
        total = _without(value_total(place, extent, (), (binade,)), binade, extent)
        mean = np.float32(value(top, total, shift)) / count
        # Rounding keeps the order of numbers, so the largest square is that of an end.
        down, up = np.float32(low - mean), np.float32(high - mean)
        top = max(_size(down * down), _size(up * up))
        binade = _binade(top, shift)
        total = _without(square_total(place, extent, (mean,), (binade,)), binade, extent)
        out[0, c], out[1, c] = mean, np.float32(value(top, total, shift))


@kernel
def _relu(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = np.float32(0) if x[i] <= 0 else x[i]


@inner
def _normalize_row(x: Any, numbers: Any, floor: Any, y: Any) -> None:
    mean, inv, gamma, beta = numbers
    for i in range(x.size):
        value = ((x[i] - mean) * inv) * gamma + beta
        y[i] = np.float32(0) if value <= floor else value


@inner
def _standardize_row(x: Any, numbers: Any, floor: Any, y: Any) -> None:
    mean, inv = numbers
    for i in range(x.size):
        value = (x[i] - mean) * inv
        y[i] = np.float32(0) if value <= floor else value


@kernel
def _normalize(x: Any, mean: Any, inv: Any, affine: Any, with_relu: bool, first: int, last: int, y: Any) -> None:
    gamma, beta = affine
    floor = np.float32(0 if with_relu else np.nan)  # of which nothing lies below
    for n in range(first, last):
        for c in range(x.shape[1]):
            if gamma.size:
                _normalize_row(x[n, c], (mean[c], inv[c], gamma[c], beta[c]), floor, y[n, c])
            else:
                _standardize_row(x[n, c], (mean[c], inv[c]), floor, y[n, c])


@inner
def _scaled_row(dy: Any, scale: Any, dx: Any) -> None:
    for i in range(dy.size):
        dx[i] = scale * dy[i]


@kernel
def _gradients(
    dy: Any, x: Any, sides: Any, how: Any, shift: int, first: int, last: int, dx: Any, out: Any
) -> None:  # fmt: skip
    """Fill dx and out[:, first..last]: dgamma, dbeta; NaN where a term is not finite.

    sides: mean, inv, gamma, beta and scale of each channel. how: whether mean and inv came from x; whether a ReLU
    followed, and then they did.
    """
    (mean, inv, gamma, beta, scale), (from_batch, with_relu) = sides, how
    count, extent = np.float32(x.shape[0] * x.shape[2]), _extent(x)
    for c in range(first, last):
        places, numbers = (_channel(dy, c), _channel(x, c)), (mean[c], inv[c], gamma[c], beta[c])
        tops = pair_tops_relu(places, extent, numbers, ()) if with_relu else pair_tops(places, extent, numbers, ())
        top, along_top = tops
        binades = _binade(top, shift), _binade(along_top, shift)
        if with_relu:
            total, along = pair_totals_relu(places, extent, numbers, binades)
        else:
            total, along = pair_totals(places, extent, numbers, binades)
        dgamma = np.float32(value(along_top, _without(along, binades[1], extent), shift))
        dbeta = np.float32(value(top, _without(total, binades[0], extent), shift))
        out[0, c], out[1, c] = dgamma, dbeta
        if from_batch:
            results = (*places, _channel(dx, c))
            means = np.float32(dbeta / count), np.float32(dgamma / count)
            if with_relu:
                centre_relu(results, extent, (*numbers, scale[c], *means), ())
            else:
                centre(results, extent, (*numbers, scale[c], *means), ())
        else:
            for n in range(x.shape[0]):
                _scaled_row(dy[n, c], scale[c], dx[n, c])


def _flat(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(x.shape[0], x.shape[1], -1)


def statistics(x: Array) -> Array:
    """Return (2, C): mean and sum of squared deviations of each channel of x (N, C, ...); not finite where broken."""
    flat = _flat(x)
    out, terms = np.empty((2, x.shape[1]), np.float32), flat.shape[0] * flat.shape[2]
    run(lambda i, j: _statistics(flat, shift_of(terms), i, j, out), parts(x.shape[1], terms))
    return out


def normalize(x: Array, mean: Array, inv: Array, affine: tuple[Array, Array] | None, with_relu: bool = False) -> Array:
    """Return ((x - mean) * inv) * gamma + beta, or without the last two; with_relu: the larger of that and 0."""
    flat, y = _flat(x), np.empty(x.shape, np.float32)
    none = np.empty(0, np.float32)
    scales = (none, none) if affine is None else affine
    ranges = parts(len(x), flat[0].size, quick=True)
    run(lambda i, j: _normalize(flat, mean, inv, scales, with_relu, i, j, _flat(y)), ranges)
    return y


def gradients(
    dy: Array, x: Array, mean: Array, inv: Array, affine: tuple[Array, Array] | None, from_batch: bool, with_relu: bool
) -> tuple[Array, Array, Array]:
    """Return dx, dgamma and dbeta; the last two NaN or infinite where a term is not finite, or a sum beyond float32.

    with_relu: dy counts where the ReLU's output is positive; from_batch then.
    """
    flat, dx = _flat(x), np.empty(x.shape, np.float32)
    out, terms = np.empty((2, x.shape[1]), np.float32), flat.shape[0] * flat.shape[2]
    grads, shift = _flat(dy), shift_of(terms)
    gamma, beta = (np.ones_like(inv), np.zeros_like(inv)) if affine is None else affine
    with np.errstate(all="ignore"):  # of one value a channel
        sides = mean, inv, gamma, beta, inv if affine is None else gamma * inv
    run(
        lambda i, j: _gradients(grads, flat, sides, (from_batch, with_relu), shift, i, j, _flat(dx), out),
        parts(x.shape[1], terms),
    )
    return dx, out[0], out[1]


@kernel
def _relu_gradient(y: Any, dy: Any, dx: Any) -> None:
    for i in range(y.size):
        dx[i] = dy[i] if y[i] > 0 else np.float32(0)


def relu(x: Array) -> Array:
    """Return max(x, 0), never -0; NaN stays."""
    y = np.empty(x.shape, np.float32)
    source, target = np.ascontiguousarray(x).reshape(-1), y.reshape(-1)
    run(lambda i, j: _relu(source[i:j], target[i:j]), parts(x.size, quick=True))
    return y


def relu_gradient(y: Array, dy: Array) -> Array:
    """Return dy where y is positive, else +0."""
    dx = np.empty(dy.shape, np.float32)
    outputs, grads, target = (np.ascontiguousarray(one).reshape(-1) for one in (y, dy, dx))
    run(lambda i, j: _relu_gradient(outputs[i:j], grads[i:j], target[i:j]), parts(dy.size, quick=True))
    return dx
