"""One GEMM per group of a convolution, all groups in one call: for the many tiny ones of a depthwise convolution.

A group's own GEMM spends most of its time on being called. Here the outputs of all groups are lanes of one kernel; each
group's codes and events are those that its own GEMM would give.
"""

from __future__ import annotations

import numpy as np

from fqtsim.backends.base import Array
from fqtsim.backends.exact import MOST_REGISTERS, operand_range, unlimited_dtype
from fqtsim.errors import InputError
from fqtsim.hw.lower import LANES, Lowered, Range, lower, without_overflow
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import lanes as kernels
from fqtsim.kernels import threads
from fqtsim.kernels.chain import STRIP

FEWEST_GROUPS = 4
WIDEST_GROUP = 4
"""Columns of a group's b from which on its own GEMM, with its columns as lanes, is at least as fast."""


def lowered_groups(a: Array, b: Array, datapath: Datapath) -> Lowered | None:
    """Return the datapath lowered for the operands of all groups, or None where each had better run by itself."""
    few = a.shape[0] < FEWEST_GROUPS or b.shape[2] > WIDEST_GROUP
    if few or not a.size or not b.size:
        return None
    try:
        lowered = lower(datapath, a.shape[2], operand_range(a), operand_range(b), Range(0, 0))
    except InputError:
        return None  # of no single group, perhaps; the one it is of will say so
    return lowered if lowered.product.magnitude * a.shape[2] < 1 << 63 else None


def carriers(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the codes of both operands in one type, so that few forms of the kernels are compiled."""
    wide = np.promote_types(np.promote_types(a.dtype, b.dtype), np.int16)
    return a.astype(wide, copy=False), b.astype(wide, copy=False)


def sums(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the exact sum of each lane's products and that of their magnitudes, int64 (G * M * N,)."""
    count = a.shape[0] * a.shape[1] * b.shape[2]
    total, size = np.empty(count, np.int64), np.empty(count, np.int64)
    threads.run(lambda first, end: kernels.lane_sums(a, b, total, size, first, end), threads.parts(count, a.shape[2]))
    return total, size


def chain(a: Array, b: Array, lanes: Array, table: Array, word_bits: int) -> Array:
    """Return the accumulators of some lanes, every addition performed."""
    out = np.empty(lanes.size, np.int32 if word_bits == 32 else np.int64)
    n_registers = int(table[:, LANES].sum())
    strip = min(STRIP, max(1, MOST_REGISTERS // n_registers), max(1, lanes.size))

    def part(first: int, end: int) -> None:
        registers = np.empty((n_registers, strip), out.dtype)
        kernels.chain_lanes(a, b, lanes, out, table, registers, first, end)

    threads.run(part, threads.parts(lanes.size, a.shape[2]))
    return out


def unlimited(a: Array, b: Array, lowered: Lowered, total: Array) -> Array:
    """Return U of every lane; `total` is the exact sum of its products."""
    if lowered.dropped_bits:
        return chain(a, b, np.arange(total.size), without_overflow(lowered.table), 64)
    return total.astype(unlimited_dtype(lowered), copy=False)


def completed(a: Array, b: Array, lowered: Lowered, values: Array, open_lanes: Array) -> Array:
    """Return the accumulators: U, and the open lanes with every addition performed."""
    if not open_lanes.size:
        return values
    stepped = chain(a, b, open_lanes, lowered.table, lowered.word_bits)
    codes = values.astype(np.promote_types(values.dtype, stepped.dtype))
    codes[open_lanes] = stepped
    return codes
