"""The mixing of groups of rows, fused (docs/quantizers.md, Q8). The twin of ref/householder.py, `reflect`."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from fqtsim.kernels.column_tile import LANES, column_sums
from fqtsim.kernels.ends import GREATEST, LEAST, widen
from fqtsim.kernels.exact_sum import BLOCK
from fqtsim.kernels.jit import inner, kernel
from fqtsim.kernels.threads import parts, run

Array = np.ndarray[Any, Any]


SCRATCH = 1 << 16
"""Values of a group's rows that are worked on at a time: they stay in the second-level cache over all passes."""


@inner
def _fetch(x: Any, factor: Any, out: Any) -> None:
    for c in range(out.size):
        out[c] = x[c] * factor


@inner
def _copy(x: Any, out: Any) -> None:
    for c in range(out.size):
        out[c] = x[c]


@inner
def _means(sums: Any, root: Any, mean: Any) -> Any:
    """Set mean to the sums by root; count those that are not finite."""
    broken = np.int32(0)
    for c in range(mean.size):
        broken = np.int32(broken + np.int32(not abs(sums[c]) < np.inf))
        mean[c] = sums[c] / root
    return broken


@inner
def _pull(leader: Any, mean: Any, root: Any, pull: Any) -> None:
    """Set pull to what is taken from the followers."""
    for c in range(leader.size):
        pull[c] = (mean[c] - leader[c]) / (root - np.float32(1))


@inner
def _follow(x: Any, pull: Any, out: Any) -> None:
    for c in range(x.size):
        out[c] = x[c] - pull[c]


@inner
def _follow_divided(x: Any, pull: Any, divisor: Any, out: Any) -> None:
    for c in range(x.size):
        out[c] = (x[c] - pull[c]) / divisor


@inner
def _divide(x: Any, divisor: Any, out: Any) -> None:
    for c in range(x.size):
        out[c] = x[c] / divisor


@kernel
def _mix(
    x: Any, order: Any, starts: Any, roots: Any, factors: Any, divisors: Any, largest: int, width: int, first: int,
    last: int, out: Any, ends: Any,
) -> Any:  # fmt: skip
    """Fill blocks first..last of `width` columns of all groups, of `largest` rows at most; count sums not finite."""
    # Flat, so that a row is known to be contiguous, without which no loop is vectorised.
    scratch = np.empty(largest * width + LANES, np.float32)
    sums, mean, pull = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.float32)
    broken = 0
    for block in range(first, last):
        start, stop = block * width, min(x.shape[1], (block + 1) * width)
        for g in range(roots.size):
            rows = order[starts[g] : starts[g + 1]]
            size = stop - start
            # Sums of whole vectors: those past the last column are dropped.
            for r in range(rows.size):
                if factors.size:
                    _fetch(x[rows[r], start:stop], factors[rows[r]], scratch[r * size : (r + 1) * size])
                else:
                    _copy(x[rows[r], start:stop], scratch[r * size : (r + 1) * size])
            if rows.size > 1:
                column_sums(scratch.ctypes.data, 4 * size, rows.size, -(-size // LANES) * LANES, sums.ctypes.data)
                broken += _means(sums[:size], roots[g], mean[:size])
                _pull(scratch[:size], mean[:size], roots[g], pull[:size])
                _copy(mean[:size], scratch[:size])
            for r in range(rows.size):
                target = out[rows[r], start:stop]
                if r and divisors.size:
                    _follow_divided(scratch[r * size : (r + 1) * size], pull, divisors[rows[r]], target)
                elif r:
                    _follow(scratch[r * size : (r + 1) * size], pull, target)
                elif divisors.size:
                    _divide(scratch[:size], divisors[rows[r]], target)
                else:
                    _copy(scratch[:size], target)
                if ends.size:
                    own = ends[rows[r]]
                    own[0], own[1] = widen(target.view(np.int32), own[0], own[1])
    return broken


class Mixed(NamedTuple):
    """Mixed rows (N, D), whether every sum is finite, and least and greatest of each row as keys (N, 2) on request."""

    rows: Array
    finite: bool
    ends: Array


def mix(x: Array, groups: list[list[int]], factors: Array | None, divisors: Array | None, with_ends: bool) -> Mixed:
    """Return Q x for x (N, D) float32, rows multiplied by `factors` before, divided by `divisors` after.

    Rows in no group stay as they are; groups are of at most 2**22 rows each.
    """
    x, none = np.ascontiguousarray(x), np.empty(0, np.float32)
    sizes = np.array([len(group) for group in groups])
    order, starts = np.fromiter(chain.from_iterable(groups), np.int64), np.concatenate([[0], np.cumsum(sizes)])
    largest = int(sizes.max())
    width = min(BLOCK, max(4 * LANES, SCRATCH // largest // LANES * LANES))
    roots, blocks = np.sqrt(sizes.astype(np.float32)), -(-x.shape[1] // width)
    out = np.empty_like(x) if len(order) == len(x) else x.copy()
    before, after = none if factors is None else factors, none if divisors is None else divisors

    def part(first: int, last: int) -> tuple[int, Array]:
        ends = np.empty((len(x) if with_ends else 0, 2), np.int32)
        ends[:] = LEAST, GREATEST
        return _mix(x, order, starts, roots, before, after, largest, width, first, last, out, ends), ends

    parts_ = run(part, parts(blocks, width * len(x)))
    ends = np.stack([ends for _, ends in parts_])
    least, greatest = ends[..., 0].min(axis=0), ends[..., 1].max(axis=0)
    return Mixed(out, not any(broken for broken, _ in parts_), np.stack([least, greatest], 1))
