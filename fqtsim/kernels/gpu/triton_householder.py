"""Grouping, scales and reflection of rows in Triton; only the GPU path, or Triton's interpreter, imports this file.

Ranks come from counting, which sorts stably without a barrier; one program then finds k, the shares and the places.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fqtsim.kernels import elementary as cpu
from fqtsim.kernels.gpu.householder import Groups, tables
from fqtsim.kernels.gpu.launch import Fault
from fqtsim.kernels.gpu.triton_common import (
    EXACT,
    NOT_FINITE,
    ROUNDER,
    ROUNDER_BITS,
    exponent,
    integer,
    magnitude,
    note,
    pointer,
    power,
    power_of_two,
    sum64,
)

RCBRT_SEED, THIRD = tl.constexpr(cpu._RCBRT_SEED), tl.constexpr(cpu._THIRD)
NOT_FINITE_FAULT, BEYOND_FAULT = tl.constexpr(int(Fault.NOT_FINITE)), tl.constexpr(int(Fault.BEYOND_FLOAT32))


@triton.jit
def integer_ranges(ranges, e):
    """Return round(m * 2**(40 - e)) within 1..2**40, int64 (Q6.2)."""
    scaled = ranges * power(40 - e)
    scaled = tl.where(scaled < 1099511627776.0, scaled, 1099511627776.0)  # a NaN too becomes a number
    m = (scaled + ROUNDER).to(tl.int64, bitcast=True) - ROUNDER_BITS
    return tl.minimum(tl.maximum(m, 1), 1099511627776)


@triton.jit
def _rank(ranges, order, ranked, rows, B: tl.constexpr, R: tl.constexpr):
    """Write the rows R a program, and their integer ranges, to their places in descending order, ties by index."""
    every = tl.arange(0, B)
    values = tl.load(ranges + every, mask=every < rows, other=0.0)
    e = (tl.max(values.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF) >> 52) - 1022
    e = tl.minimum(tl.maximum(e, -125), 129)
    m = tl.where(every < rows, integer_ranges(values, e), 0)
    for i in range(R):
        row = tl.program_id(0) * R + i
        if row < rows:
            own = integer_ranges(tl.load(ranges + row), e)
            rank = tl.sum(((m > own) | ((m == own) & (every < row))).to(tl.int32))
            tl.store(order + rank, row)
            tl.store(ranked + rank, own)


@triton.jit
def _groups(order, ranked, shares, rows_out, starts, sizes, owners, rows, most, B: tl.constexpr):
    """Find k, the shares and the place of every row; one program. shares: room for `rows` numbers."""
    at = tl.arange(0, B)
    inside = at < rows
    m = tl.load(ranked + at, mask=inside, other=0)
    seen = tl.cumsum(m, 0)
    k = (rows - 1 - at).to(tl.int64)  # place n - k - 1 decides about k
    candidate = (at < rows - 1) & ((k * m > seen) | (k == rows - 1))
    small = tl.min(tl.where(candidate, k, rows))
    leaders = rows - small
    total = tl.sum(tl.where(at < leaders, m, 0))
    product = small * tl.minimum(seen, total)
    quotient = product // total
    share = quotient + (2 * (product - quotient * total) >= total).to(tl.int64)
    share = tl.where(at < leaders, share, small)
    tl.store(shares + at, share, mask=inside)
    tl.debug_barrier()
    before = tl.load(shares + at - 1, mask=inside & (at > 0), other=0)
    follower = at - leaders
    low = at.to(tl.int64) * 0  # binary search: the first leader whose share is above the follower's number
    high = low + leaders
    for _ in tl.static_range(13):
        middle = (low + high) // 2
        above = tl.load(shares + tl.minimum(middle, rows - 1)) > follower
        searching = low < high
        high = tl.where(searching & above, middle, high)
        low = tl.where(searching & ~above, middle + 1, low)
    is_leader = at < leaders
    owner = tl.where(is_leader, at.to(tl.int64), low)
    place = tl.where(is_leader, at + before, follower + owner + 1)
    tl.store(rows_out + place, tl.load(order + at, mask=inside, other=0), mask=inside)
    tl.store(owners + place, owner, mask=inside)
    tl.store(sizes + at, tl.where(is_leader, 1 + share - before, 0), mask=at < most)
    tl.store(starts + at, tl.where(is_leader, at + before, rows), mask=at < most)


def group_rows(ranges: torch.Tensor) -> Groups:
    """Return what householder.group_rows does, for 2 to 4096 rows."""
    n, device = len(ranges), ranges.device
    order, ranked, shares, rows, owner = torch.empty((5, n), dtype=torch.int64, device=device)
    starts, sizes = torch.empty((2, n // 2), dtype=torch.int64, device=device)
    block, each = power_of_two(n, 16, 4096), 8
    ranges = ranges.contiguous()
    _rank[(triton.cdiv(n, each),)](ranges, order, ranked, n, block, each, num_warps=4, **EXACT)
    _groups[(1,)](
        order, ranked, shares, rows, starts, sizes, owner, n, n // 2, block, num_warps=4 if block <= 1024 else 8,
        **EXACT,
    )  # fmt: skip
    return Groups(rows, starts, sizes, owner)


@triton.jit
def rcbrt(x):
    """Return x**(-1/3) of a positive float32 (S5.4)."""
    wide = x.to(tl.float64)
    y = (-(wide.to(tl.int64, bitcast=True) // 3) + RCBRT_SEED).to(tl.float64, bitcast=True)
    for _ in tl.static_range(4):
        d = 1.0 - ((wide * y) * y) * y
        y = y + (y * d) * THIRD
    return y.to(tl.float32)


@triton.jit
def _scales(rows, starts, sizes, ranges, peaks, roots, largest, s, n, B: tl.constexpr):
    """Write s of the rows of one group (Q7)."""
    group = tl.program_id(0)
    size, start = tl.load(sizes + group), tl.load(starts + group)
    if size == 1:
        tl.store(s + tl.load(rows + start), 1.0)
    if size > 1:
        leader = tl.load(rows + start)
        tallest = tl.zeros((B,), tl.float32)
        for first in range(1, size, B):
            at = first + tl.arange(0, B)
            member = tl.load(rows + start + at, mask=at < size, other=0)
            tallest = tl.maximum(tallest, tl.load(peaks + member, mask=at < size, other=0.0))
        w2 = tl.load(ranges + tl.load(rows + start + 1)) * tl.load(largest + size)
        d = (size.to(tl.float64) - 1.0) * (tl.load(ranges + leader) / tl.load(roots + size))
        below = w2 < d
        cube = (tl.where(below, w2, 1.0).to(tl.float64) / tl.where(below, d, 1.0).to(tl.float64)).to(tl.float32)
        capped = cube < 2.117582368135750759e-22  # 2**-72
        rho = tl.where(capped, 16777216.0, rcbrt(tl.where(capped, 1.0, cube)))
        own = tl.load(peaks + leader).to(tl.float64)
        peak = tl.maximum(own, rho.to(tl.float64) * tl.max(tallest).to(tl.float64))
        e = ((peak.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1022
        e = tl.where(peak == 0, 0, tl.minimum(tl.maximum(e, -100), 100))
        unit = power(-e).to(tl.float32)
        tl.store(s + leader, unit)
        for first in range(1, size, B):
            at = first + tl.arange(0, B)
            member = tl.load(rows + start + at, mask=at < size, other=0)
            tl.store(s + member, tl.zeros((B,), tl.float32) + rho * unit, mask=at < size)


def scales(groups: Groups, ranges: torch.Tensor, peaks: torch.Tensor) -> torch.Tensor:
    """Return what householder.scales does."""
    n = len(ranges)
    table, s = tables(n, ranges.device), torch.empty_like(peaks)
    _scales[(len(groups.sizes),)](
        groups.rows, groups.starts, groups.sizes, ranges.contiguous(), peaks.contiguous(), table.root, table.largest, s,
        n, 128, num_warps=4, **EXACT,
    )  # fmt: skip
    return s


@triton.jit
def tile_of_group(
    x, rows, before, start, size, first, columns, length, BEFORE: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """Return values (R, C) of the group's rows from number `first` on, their row indices, and which are inside."""
    number = first + tl.arange(0, R)
    row = tl.load(rows + start + number, mask=number < size, other=0)
    inside = (number < size)[:, None] & (columns < length)[None, :]
    values = tl.load(x + row[:, None] * length + columns[None, :], mask=inside, other=0.0)
    if BEFORE:
        values = values * tl.load(before + row)[:, None]
    return values, row, inside


@triton.jit
def store_rows(out, row, columns, length, values, inside, after, AFTER: tl.constexpr):
    """Store values (R, C), each row divided by its factor where there is one."""
    if AFTER:
        values = tl.div_rn(values, tl.load(after + row)[:, None] + tl.zeros(values.shape, tl.float32))
    tl.store(out + row[:, None] * length + columns[None, :], values, mask=inside)


@triton.jit
def _reflect(
    x, out, rows, starts, sizes, roots, before, after, flags, length, tiles,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, HAS_FLAGS: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """A tile of columns of one group: largest patterns, integer sums, then the new rows (Q8)."""
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    size, start = tl.load(sizes + group), tl.load(starts + group)
    columns = tile * C + tl.arange(0, C)
    if size > 0:
        top = tl.zeros((C,), tl.int32)
        for first in range(0, size, R):
            values, _, _ = tile_of_group(x, rows, before, start, size, first, columns, length, BEFORE, R)
            top = tl.maximum(top, tl.max(magnitude(values), 0))
        scale = power(40 - exponent(top))[None, :]
        sums = tl.zeros((C,), tl.int64)
        for first in range(0, size, R):
            values, _, _ = tile_of_group(x, rows, before, start, size, first, columns, length, BEFORE, R)
            sums += tl.sum(integer(values, scale), 0)
        total = sum64(top, sums, 40).to(tl.float32)
        root = tl.load(roots + size) + tl.zeros((C,), tl.float32)
        mean = tl.div_rn(total, root)
        leader, _, _ = tile_of_group(x, rows, before, start, 1, 0, columns, length, BEFORE, 1)
        pull = tl.div_rn(mean - tl.sum(leader, 0), tl.where(size > 1, root - 1.0, 1.0))
        for first in range(0, size, R):
            values, row, inside = tile_of_group(x, rows, before, start, size, first, columns, length, BEFORE, R)
            leads = (first + tl.arange(0, R) == 0)[:, None]
            turned = tl.where(leads, mean[None, :], values - pull[None, :])
            values = tl.where(size > 1, turned, values)
            store_rows(out, row, columns, length, values, inside, after, AFTER)
        if size > 1:
            note(flags, top >= NOT_FINITE, NOT_FINITE_FAULT, HAS_FLAGS)
            note(flags, tl.abs(total) == float("inf"), BEYOND_FAULT, HAS_FLAGS)


def reflect(
    x: torch.Tensor,
    groups: Groups,
    flags: torch.Tensor | None,
    before: torch.Tensor | None = None,
    after: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what householder.reflect does; rows times `before` first, or divided by `after` last (mix, unmix)."""
    x = x.contiguous()
    n, length = x.shape
    out = torch.empty_like(x)
    columns = power_of_two(length, 16, 256)
    rows = power_of_two(n, 2, 8)
    tiles = triton.cdiv(length, columns)
    before_at, after_at = (x if t is None else t.contiguous() for t in (before, after))
    _reflect[(len(groups.sizes) * tiles,)](
        x, out, groups.rows, groups.starts, groups.sizes, tables(n, x.device).root32, before_at, after_at,
        pointer(flags, out), length, tiles, before is not None, after is not None, flags is not None, rows, columns,
        num_warps=4, **EXACT,
    )  # fmt: skip
    return out
