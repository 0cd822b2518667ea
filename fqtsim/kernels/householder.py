"""The mixing of groups of rows, fused (docs/quantizers.md, Q8). The twin of ref/householder.py, `reflect`."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from fqtsim.kernels.ends import GREATEST, LEAST, widen
from fqtsim.kernels.householder_tile import mix_columns, unmix_columns
from fqtsim.kernels.jit import inner, kernel
from fqtsim.kernels.threads import parts, run
from fqtsim.kernels.vectors import LANES

Array = np.ndarray[Any, Any]

FEW = 8
"""Rows up to which each is a stream of its own that the CPU fetches ahead; those of larger groups are copied first."""
SCRATCH = 1 << 16
"""Values that are copied at a time: they stay in the second-level cache over all passes."""
WIDEST = 1024
"""Columns that are copied at a time at most."""


@inner
def _copy(x: Any, out: Any) -> None:
    for c in range(out.size):
        out[c] = x[c]


@inner
def _scale(x: Any, factor: Any, out: Any) -> None:
    for c in range(x.size):
        out[c] = x[c] * factor


@inner
def _divide(x: Any, divisor: Any, out: Any) -> None:
    for c in range(x.size):
        out[c] = x[c] / divisor


@inner
def _alone(x: Any, side: Any, divides: bool, out: Any, ends: Any) -> None:
    """Finish columns of a row that no other is mixed with."""
    if divides:
        _divide(x, side, out)
    else:
        _scale(x, side, out)
        ends[0, 0], ends[1, 0] = widen(out.view(np.int32), ends[0, 0], ends[1, 0])


@inner
def _group(source: int, target: int, pitch: int, order: Any, width: int, side: Any, divides: bool, ends: Any) -> Any:
    """Mix `width` columns of a group's rows, which lie at order * pitch bytes; tell whether every sum is finite."""
    sides, root = side
    rows = order.ctypes.data, order.size, width, sides.ctypes.data, root
    if divides:
        return unmix_columns(source, target, pitch, *rows, 0)
    return mix_columns(source, target, pitch, *rows, ends.ctypes.data)


@inner
def _copied(
    x: Any, rows: Any, side: Any, divides: bool, width: int, first: int, last: int, scratch: Any, out: Any, ends: Any
) -> Any:
    """Mix columns first..last of a group in copies of `width` columns; tell whether every sum is finite."""
    # A vector apart: rows 4096 bytes apart would fall into one set of the first-level cache.
    pitch, whole, places = width + LANES, True, np.arange(rows.size)
    for start in range(first, last, width):
        stop, place = min(last, start + width), scratch.ctypes.data
        for r in range(rows.size):
            _copy(x[rows[r], start:stop], scratch[r * pitch : r * pitch + stop - start])
        whole &= _group(place, place, 4 * pitch, places, stop - start, side, divides, ends)
        for r in range(rows.size):
            _copy(scratch[r * pitch : r * pitch + stop - start], out[rows[r], start:stop])
    return whole


@kernel
def _mix(
    x: Any, order: Any, starts: Any, roots: Any, sides: Any, divides: bool, scratch: Any, first: int, last: int,
    out: Any, ends: Any,
) -> Any:  # fmt: skip
    """Fill columns first..last, a multiple of LANES, of all groups; tell whether every sum is finite.

    order, sides and ends (rows, 2, LANES) go group by group; scratch takes the rows of a large one.
    """
    whole, pitch = True, 4 * x.shape[1]
    for g in range(roots.size):
        one = slice(starts[g], starts[g + 1])
        rows, side, kept = order[one], (sides[one], roots[g]), ends[one]
        if rows.size == 1:
            _alone(x[rows[0], first:last], side[0][0], divides, out[rows[0], first:last], kept[0])
        elif rows.size <= FEW:
            source, target = x.ctypes.data + 4 * first, out.ctypes.data + 4 * first
            whole &= _group(source, target, pitch, rows, last - first, side, divides, kept)
        else:
            width = min(WIDEST, max(4, SCRATCH // (LANES * rows.size)) * LANES)
            whole &= _copied(x, rows, side, divides, width, first, last, scratch, out, kept)
    return whole


class Mixed(NamedTuple):
    """Mixed rows (N, D), whether every sum is finite, and least and greatest of each row as keys (N, 2)."""

    rows: Array
    finite: bool
    #: Empty where rows were divided.
    ends: Array


def mix(x: Array, groups: list[list[int]], sides: Array, divides: bool) -> Mixed:
    """Return Q x for x (N, D) float32, rows multiplied by their `sides` before, or divided by them after.

    A row in no group is one of its own; groups are of at most 2**22 rows each.
    """
    count = x.shape[1]
    missing = set(range(len(x))).difference(chain.from_iterable(groups)) if sum(map(len, groups)) < len(x) else ()
    groups = [*groups, *([row] for row in sorted(missing))]
    if not x.size:
        return Mixed(x.copy(), True, np.empty((0 if divides else len(x), 2), np.int32))
    if count < LANES:  # whole vectors only: the last column again changes no extreme
        wide = mix(np.pad(x, ((0, 0), (0, LANES - count)), mode="edge"), groups, sides, divides)
        return wide._replace(rows=np.ascontiguousarray(wide.rows[:, :count]))
    x, sizes = np.ascontiguousarray(x), np.array([len(group) for group in groups])
    order, starts = np.fromiter(chain.from_iterable(groups), np.int64), np.concatenate([[0], np.cumsum(sizes)])
    roots, sides, largest = np.sqrt(sizes.astype(np.float32)), sides[order], int(sizes.max())
    out = np.empty_like(x)
    values = largest * LANES + max(SCRATCH, largest * 4 * LANES) if largest > FEW else 0

    def part(first: int, last: int) -> tuple[bool, Array]:
        ends, scratch = np.empty((len(order), 2, LANES), np.int32), np.empty(values, np.float32)
        ends[:, 0], ends[:, 1] = LEAST, GREATEST
        whole = _mix(x, order, starts, roots, sides, divides, scratch, LANES * first, LANES * last, out, ends)
        if last == count // LANES and count % LANES:  # the last whole vector's columns, most of them a second time
            whole &= _mix(x, order, starts, roots, sides, divides, scratch, count - LANES, count, out, ends)
        return whole, ends

    found = run(part, parts(count // LANES, LANES * len(x)))
    ends = np.stack([ends for _, ends in found])
    keys = np.empty((0 if divides else len(x), 2), np.int32)
    if not divides:
        keys[order] = np.stack([ends[:, :, 0].min(axis=(0, 2)), ends[:, :, 1].max(axis=(0, 2))], 1)
    return Mixed(out, all(whole for whole, _ in found), keys)
