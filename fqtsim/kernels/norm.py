"""Batch norm channel by channel, and ReLU, fused (S5.11): equal to the sequences of primitives bit for bit.

A channel's values are read from memory once and stay in a cache for the passes that an exact sum needs. Every line is
one float32 operation per symbol; sums are those of exact_sum.py. Arrays are (N, C, positions).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.kernels.exact_sum import exponent, largest, magnitude, power, scaled_sum, shift_of, term, value
from fqtsim.kernels.jit import inner, kernel
from fqtsim.kernels.threads import parts, run

Array = np.ndarray[Any, Any]


@inner
def _size(x: Any) -> Any:
    return magnitude(np.float32(x).view(np.int32))


@inner
def _largest_square(x: Any, mean: Any) -> Any:
    top = np.int32(0)
    for i in range(x.size):
        d = x[i] - mean
        top = max(top, _size(d * d))
    return top


@inner
def _total_square(x: Any, mean: Any, scale: Any) -> Any:
    total = np.int64(0)
    for i in range(x.size):
        d = x[i] - mean
        total += term(d * d, scale)
    return total


@kernel
def _statistics(x: Any, bits: Any, shift: int, first: int, last: int, out: Any) -> None:
    """Fill out[:, first..last]: mean, sum of squared deviations; NaN where a term is not finite."""
    count = np.float32(x.shape[0] * x.shape[2])
    for c in range(first, last):
        top, total = np.int32(0), np.int64(0)
        for n in range(x.shape[0]):
            top = max(top, largest(bits[n, c]))
        scale = power(shift - exponent(top))
        for n in range(x.shape[0]):
            total += scaled_sum(x[n, c], scale)
        mean = np.float32(value(top, total, shift)) / count
        top, total = np.int32(0), np.int64(0)
        for n in range(x.shape[0]):
            top = max(top, _largest_square(x[n, c], mean))
        scale = power(shift - exponent(top))
        for n in range(x.shape[0]):
            total += _total_square(x[n, c], mean, scale)
        out[0, c], out[1, c] = mean, np.float32(value(top, total, shift))


@inner
def _normalize_row(x: Any, mean: Any, inv: Any, gamma: Any, beta: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = ((x[i] - mean) * inv) * gamma + beta


@inner
def _standardize_row(x: Any, mean: Any, inv: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = (x[i] - mean) * inv


@kernel
def _normalize(x: Any, mean: Any, inv: Any, gamma: Any, beta: Any, first: int, last: int, y: Any) -> None:
    for n in range(first, last):
        for c in range(x.shape[1]):
            if gamma.size:
                _normalize_row(x[n, c], mean[c], inv[c], gamma[c], beta[c], y[n, c])
            else:
                _standardize_row(x[n, c], mean[c], inv[c], y[n, c])


@inner
def _largest_pair(dy: Any, x: Any, mean: Any, inv: Any) -> Any:
    top, along = np.int32(0), np.int32(0)
    for i in range(x.size):
        top = max(top, _size(dy[i]))
        along = max(along, _size(dy[i] * ((x[i] - mean) * inv)))
    return top, along


@inner
def _total_pair(dy: Any, x: Any, mean: Any, inv: Any, scale: Any, along_scale: Any) -> Any:
    total, along = np.int64(0), np.int64(0)
    for i in range(x.size):
        total += term(dy[i], scale)
        along += term(dy[i] * ((x[i] - mean) * inv), along_scale)
    return total, along


@inner
def _centred_row(dy: Any, x: Any, mean: Any, inv: Any, scale: Any, dy_mean: Any, along: Any, dx: Any) -> None:
    for i in range(x.size):
        dx[i] = scale * ((dy[i] - dy_mean) - ((x[i] - mean) * inv) * along)


@inner
def _scaled_row(dy: Any, scale: Any, dx: Any) -> None:
    for i in range(dy.size):
        dx[i] = scale * dy[i]


@kernel
def _gradients(
    dy: Any, x: Any, mean: Any, inv: Any, scale: Any, from_batch: bool, shift: int, first: int, last: int, dx: Any,
    out: Any,
) -> None:  # fmt: skip
    """Fill dx and out[:, first..last]: dgamma, dbeta; NaN where a term is not finite."""
    count = np.float32(x.shape[0] * x.shape[2])
    for c in range(first, last):
        top, along_top, total, along_total = np.int32(0), np.int32(0), np.int64(0), np.int64(0)
        for n in range(x.shape[0]):
            one, other = _largest_pair(dy[n, c], x[n, c], mean[c], inv[c])
            top, along_top = max(top, one), max(along_top, other)
        scales = power(shift - exponent(top)), power(shift - exponent(along_top))
        for n in range(x.shape[0]):
            part, along_part = _total_pair(dy[n, c], x[n, c], mean[c], inv[c], scales[0], scales[1])
            total, along_total = total + part, along_total + along_part
        dgamma = np.float32(value(along_top, along_total, shift))
        dbeta = np.float32(value(top, total, shift))
        out[0, c], out[1, c] = dgamma, dbeta
        for n in range(x.shape[0]):
            if from_batch:
                _centred_row(dy[n, c], x[n, c], mean[c], inv[c], scale[c], dbeta / count, dgamma / count, dx[n, c])
            else:
                _scaled_row(dy[n, c], scale[c], dx[n, c])


def _flat(x: Array) -> Array:
    return np.ascontiguousarray(x).reshape(x.shape[0], x.shape[1], -1)


def statistics(x: Array) -> Array:
    """Return (2, C): mean and sum of squared deviations of each channel of x (N, C, ...); not finite where broken."""
    flat = _flat(x)
    out, terms = np.empty((2, x.shape[1]), np.float32), flat.shape[0] * flat.shape[2]
    run(lambda i, j: _statistics(flat, flat.view(np.int32), shift_of(terms), i, j, out), parts(x.shape[1], terms))
    return out


def normalize(x: Array, mean: Array, inv: Array, affine: tuple[Array, Array] | None) -> Array:
    """Return ((x - mean) * inv) * gamma + beta, or without the last two."""
    flat, y = _flat(x), np.empty(x.shape, np.float32)
    none = np.empty(0, np.float32)
    gamma, beta = (none, none) if affine is None else affine
    run(lambda i, j: _normalize(flat, mean, inv, gamma, beta, i, j, _flat(y)), parts(len(x), flat[0].size))
    return y


def gradients(
    dy: Array, x: Array, mean: Array, inv: Array, scale: Array, from_batch: bool
) -> tuple[Array, Array, Array]:
    """Return dx, dgamma and dbeta; the last two NaN or infinite where a term is not finite, or a sum beyond float32."""
    flat, dx = _flat(x), np.empty(x.shape, np.float32)
    out, terms = np.empty((2, x.shape[1]), np.float32), flat.shape[0] * flat.shape[2]
    grads, shift = _flat(dy), shift_of(terms)
    run(
        lambda i, j: _gradients(grads, flat, mean, inv, scale, from_batch, shift, i, j, _flat(dx), out),
        parts(x.shape[1], terms),
    )
    return dx, out[0], out[1]


@kernel
def _relu(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = np.float32(0) if x[i] <= 0 else x[i]


@kernel
def _relu_gradient(y: Any, dy: Any, dx: Any) -> None:
    for i in range(y.size):
        dx[i] = dy[i] if y[i] > 0 else np.float32(0)


def relu(x: Array) -> Array:
    """Return max(x, 0), never -0; NaN stays."""
    y = np.empty(x.shape, np.float32)
    source, target = np.ascontiguousarray(x).reshape(-1), y.reshape(-1)
    run(lambda i, j: _relu(source[i:j], target[i:j]), parts(x.size))
    return y


def relu_gradient(y: Array, dy: Array) -> Array:
    """Return dy where y is positive, else +0."""
    dx = np.empty(dy.shape, np.float32)
    outputs, grads, target = (np.ascontiguousarray(one).reshape(-1) for one in (y, dy, dx))
    run(lambda i, j: _relu_gradient(outputs[i:j], grads[i:j], target[i:j]), parts(dy.size))
    return dx
