"""ReLU, ReLU6, dropout and the sum where gradients meet (S5.8, S5.9, S5.11)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES, Primitives
from fqtsim.train.operands import Array

ZERO = np.float32(0)
WORDS = 2.0**32


def relu(x: Array, p: Primitives) -> Array:
    """Return max(x, 0), never -0."""
    return p.relu(x)


def relu_gradient(y: Array, dy: Array, p: Primitives = DEFAULT_PRIMITIVES) -> Array:
    """Return dy where the output y of relu is positive, else 0."""
    return p.relu_gradient(y, dy)


def relu6(x: Array, p: Primitives) -> Array:
    """Return min(max(x, 0), 6)."""
    y = p.maximum(x, ZERO)
    return p.where(y > 6, 6, y)


def relu6_gradient(y: Array, dy: Array, p: Primitives = DEFAULT_PRIMITIVES) -> Array:
    """Return dy where the output y of relu6 lies strictly between 0 and 6, as torch does, else 0."""
    return p.select((y > 0) & (y < 6), dy)


def dropout_mask(shape: tuple[int, ...], rate: float, seed: int, stream: int, step: int, p: Primitives) -> Array:
    """Return which elements stay: those whose random word is at least rint(rate * 2^32), in row-major order."""
    words = p.random_words(seed, stream, step, math.prod(shape))
    return p.at_least(words, int(np.rint(rate * WORDS))).reshape(shape)


def dropout(x: Array, keep: Array, rate: float, p: Primitives) -> Array:
    """Return x * float32(1 / (1 - rate)) where `keep`, else 0; also its own gradient."""
    if rate == 1:
        return p.zeros(x.shape, x)
    return p.select(keep, p.multiply(x, np.float32(1 / (1 - rate))))


def add_in_order(gradients: Sequence[Array], p: Primitives) -> Array:
    """Return ((g0 + g1) + g2) + ..., left to right (S5.8)."""
    total = gradients[0]
    for gradient in gradients[1:]:
        total = p.add(total, gradient)
    return total
