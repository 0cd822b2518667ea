"""Max and average pooling by the taps of the window, gradients added in window order (S5.11)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fqtsim.backends.primitives import Primitives
from fqtsim.train.elementwise import ZERO
from fqtsim.train.geometry import Pair, Window
from fqtsim.train.operands import Array

TAPS = np.zeros((), np.int32)
"""The type of the number of a window's tap."""


def _padded(x: Array, window: Window, value: float, p: Primitives) -> Array:
    """Return x (N, C, H, W) with everything around it that some window reads."""
    margins = [(0, 0), (0, 0), *_margins(_size(x), window)]
    if not any(sum(margin) for margin in margins):
        return x
    return p.pad(x, margins, value)


def _size(x: Array) -> Pair:
    return x.shape[2], x.shape[3]


def _margins(size: Pair, window: Window) -> list[Pair]:
    """Return what lies before and after an image of `size` along each axis; a hanging last window needs more."""
    margins = []
    for axis, count in enumerate(window.positions(size)):
        reach = (count - 1) * window.stride[axis] + window.extent(axis)
        margins.append((window.before[axis], max(reach - size[axis] - window.before[axis], 0)))
    return margins


def _tap(padded: Array, window: Window, i: int, j: int, positions: Pair) -> Array:
    """Return the view of what tap (i, j) of every window reads: (N, C, OH, OW)."""
    top, left = i * window.dilation[0], j * window.dilation[1]
    rows = slice(top, top + (positions[0] - 1) * window.stride[0] + 1, window.stride[0])
    columns = slice(left, left + (positions[1] - 1) * window.stride[1] + 1, window.stride[1])
    return padded[:, :, rows, columns]


def _taps(window: Window) -> Iterator[tuple[int, int, int]]:
    """Yield (number, i, j) in row-major order."""
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            yield i * window.kernel[1] + j, i, j


def max_pool(x: Array, window: Window, p: Primitives) -> tuple[Array, Array]:
    """Return the first maximum of each window and the number of its tap (int32), both (N, C, OH, OW)."""
    positions = window.positions(_size(x))
    padded = _padded(x, window, -np.inf, p)
    best = p.copy(_tap(padded, window, 0, 0, positions))
    winner = p.zeros(best.shape, p.constant(TAPS))
    for number, i, j in list(_taps(window))[1:]:
        value = _tap(padded, window, i, j, positions)
        # A NaN wins too, so that it is seen and stops the step.
        better = (value > best) | p.is_nan(value)
        p.replace(best, better, value)
        p.replace(winner, better, number)
    return p.add(best, ZERO), winner  # + 0 turns -0 into +0 and nothing else


def max_pool_gradient(dy: Array, winner: Array, shape: tuple[int, ...], window: Window, p: Primitives) -> Array:
    """Return the gradient of the input of `shape`: each dy goes to its winner."""
    return _scatter(lambda number: p.select(winner == number, dy), shape, window, p)


def _window_counts(size: Pair, window: Window, axis: int, include_pad: bool) -> Array:
    """Return how many positions each window counts along one axis, by torch's rule for its edges."""
    count = window.positions(size)[axis]
    start = np.arange(count) * window.stride[axis] - window.before[axis]
    stop = np.minimum(start + window.kernel[axis], size[axis] + window.after[axis])
    if not include_pad:
        start, stop = np.maximum(start, 0), np.minimum(stop, size[axis])
    return stop - start


def divisors(size: Pair, window: Window, include_pad: bool, override: int | None = None) -> Array:
    """Return what the sum of each window is divided by: float32 (OH, OW)."""
    if override is not None:
        return np.full(window.positions(size), override, np.float32)
    down = _window_counts(size, window, 0, include_pad)
    across = _window_counts(size, window, 1, include_pad)
    return np.outer(down, across).astype(np.float32)


def average_pool(x: Array, window: Window, counts: Array, p: Primitives) -> Array:
    """Return exact_sum / count of each window: float32 (N, C, OH, OW)."""
    positions = window.positions(_size(x))
    if positions == (1, 1) and window.kernel == tuple(x.shape[2:]):
        return p.divide(p.exact_sum(x, (2, 3), keepdims=True), counts)
    padded = _padded(x, window, 0, p)
    taps = p.stack_last([_tap(padded, window, i, j, positions) for _, i, j in _taps(window)])
    return p.divide(p.exact_sum(taps, (4,)), counts)


def average_pool_gradient(dy: Array, shape: tuple[int, ...], window: Window, counts: Array, p: Primitives) -> Array:
    """Return the gradient of the input of `shape`: dy / count for each window that covers it."""
    share = p.divide(dy, counts)
    if tuple(share.shape[2:]) == (1, 1) and window.kernel == tuple(shape[2:]):
        # A copy in any case: a view of a map of one position would be contiguous, and read-only.
        return p.broadcast(p.add(share, ZERO), shape)
    return _scatter(lambda number: share, shape, window, p)


def _scatter(contribution: Callable[[int], Array], shape: tuple[int, ...], window: Window, p: Primitives) -> Array:
    """Add the contribution of every window to 0 in window order, per input position.

    A position meets its windows in row-major order when the taps go backwards, so one pass per tap does it.
    """
    size = (shape[2], shape[3])
    padded = [length + sum(margin) for length, margin in zip(size, _margins(size, window), strict=True)]
    dx: Any = None
    positions = window.positions(size)
    for number, i, j in reversed(list(_taps(window))):
        given = contribution(number)
        dx = p.zeros((*shape[:2], *padded), given) if dx is None else dx
        view = _tap(dx, window, i, j, positions)
        view[...] = p.add(view, given)
    top, left = window.before
    return p.array(dx[:, :, top : top + shape[2], left : left + shape[3]])
