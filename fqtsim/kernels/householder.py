"""The reflection of groups of rows, fused (docs/quantizers.md, Q8). The twin of ref/householder.py, `reflect`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fqtsim.kernels.exact_sum import BLOCK, NOT_FINITE, add_terms, exponent, power, raise_tops, value
from fqtsim.kernels.threads import parts, run

Array = np.ndarray[Any, Any]


@njit(nogil=True)
def _means(x: Any, bits: Any, rows: Any, start: Any, stop: Any, root: Any, mean: Any) -> Any:
    """Set mean to the float32 exact sum of the columns start..stop over `rows`, by root; count what is not finite."""
    width = stop - start
    tops, scales, totals = np.zeros(width, np.int32), np.empty(width, np.float64), np.zeros(width, np.int64)
    for r in range(rows.size):
        raise_tops(bits[rows[r], start:stop], tops)
    for c in range(width):
        scales[c] = power(40 - exponent(tops[c]))
    for r in range(rows.size):
        add_terms(x[rows[r], start:stop], scales, totals)
    broken = 0
    for c in range(width):
        total = np.float32(value(tops[c], totals[c], 40))
        broken += int(tops[c] >= NOT_FINITE or abs(total) == np.inf)
        mean[c] = total / root
    return broken


@njit(nogil=True)
def _spread(x: Any, mean: Any, root: Any, pull: Any, out: Any) -> None:
    """Set the leader's row to the mean, and pull to what is taken from its followers."""
    for c in range(x.size):
        pull[c] = (mean[c] - x[c]) / (root - np.float32(1))
        out[c] = mean[c]


@njit(nogil=True)
def _follow(x: Any, pull: Any, out: Any) -> None:
    for c in range(x.size):
        out[c] = x[c] - pull[c]


@njit(nogil=True)
def _reflect(x: Any, bits: Any, order: Any, starts: Any, roots: Any, first: Any, last: Any, out: Any) -> Any:
    """Fill blocks first..last of BLOCK columns of groups of two rows or more; count the sums that are not finite."""
    mean, pull = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    broken = 0
    for block in range(first, last):
        start, stop = block * BLOCK, min(x.shape[1], (block + 1) * BLOCK)
        for g in range(roots.size):
            rows = order[starts[g] : starts[g + 1]]
            broken += _means(x, bits, rows, start, stop, roots[g], mean)
            _spread(x[rows[0], start:stop], mean, roots[g], pull, out[rows[0], start:stop])
            for r in range(1, rows.size):
                _follow(x[rows[r], start:stop], pull, out[rows[r], start:stop])
    return broken


def reflect(x: Array, groups: list[list[int]]) -> tuple[Array, bool]:
    """Return Q x for x (N, D) float32, and whether every sum is finite; groups are at most 2**22 rows each."""
    x = np.ascontiguousarray(x)
    mixed = [np.asarray(group) for group in groups if len(group) > 1]
    if not mixed:
        return x, True
    sizes = np.array([len(group) for group in mixed])
    order, starts = np.concatenate(mixed), np.concatenate([[0], np.cumsum(sizes)])
    roots, bits, blocks = np.sqrt(sizes.astype(np.float32)), x.view(np.int32), -(-x.shape[1] // BLOCK)
    out = np.empty_like(x) if len(order) == len(x) else x.copy()
    ranges = parts(blocks, BLOCK * len(x))
    broken = run(lambda i, j: _reflect(x, bits, order, starts, roots, i, j, out), ranges)
    return out, not any(broken)
