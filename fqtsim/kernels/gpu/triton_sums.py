"""The order-free sum in Triton, over any axes; only the GPU path, or Triton's interpreter, imports this file.

A dense tensor is (P, A, M, B) in memory with A and B summed, so a channel's sum needs no copy in either layout. Where
runs of B are long, a program owns one sum or a part of it (ROWS); where they are short, a tile of columns beside each
other. Parts meet by atomic integer addition, which no order changes.
"""

from __future__ import annotations

from itertools import groupby
from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fqtsim.kernels.gpu.launch import Fault
from fqtsim.kernels.gpu.sums import shift_of, terms_of
from fqtsim.kernels.gpu.triton_common import (
    EXACT,
    NOT_FINITE,
    exponent,
    integer,
    magnitude,
    note,
    pointer,
    power,
    power_of_two,
    sum64,
)

FAULT = tl.constexpr(int(Fault.NOT_FINITE))
_TILE, _PROGRAMS = 2048, 1024
SHORT_RUN = 32
"""Runs of fewer contiguous terms are summed as columns."""


class Plan(NamedTuple):
    """How programs share (P, A, M, B): the arguments of every kernel of this shape, and the launch."""

    outer: int
    terms: int
    outputs: int
    inner: int
    #: Tiles along the run of a row (ROWS) or along the columns, and programs that share one sum's tiles.
    across: int
    splits: int
    #: Whether a program owns one (p, m), and the tile's rows and columns.
    by_rows: bool
    tile_rows: int
    tile_columns: int

    @property
    def programs(self) -> int:
        """Return how many programs cover it."""
        return self.outer * self.splits * (self.outputs if self.by_rows else self.across)

    @property
    def arguments(self) -> tuple[int, int, int, int, int]:
        """Return the sizes that kernels take."""
        return self.terms, self.outputs, self.inner, self.across, self.splits

    @property
    def constants(self) -> tuple[bool, int, int]:
        """Return the constants that kernels take."""
        return self.by_rows, self.tile_rows, self.tile_columns


def plan(outer: int, terms: int, outputs: int, inner: int) -> Plan:
    """Return how to walk over a tensor (outer, terms, outputs, inner)."""
    by_rows = inner >= SHORT_RUN or (outputs == 1 and terms == 1)
    run = inner if by_rows else outputs * inner
    columns = power_of_two(run, 16, _TILE if by_rows else 128)
    rows = power_of_two(terms, 1, _TILE // columns)
    across = triton.cdiv(run, columns)
    tiles = triton.cdiv(terms, rows) * (across if by_rows else 1)
    owners = outer * (outputs if by_rows else across)
    return Plan(outer, terms, outputs, inner, across, max(1, min(tiles, _PROGRAMS // owners)), by_rows, rows, columns)


@triton.jit
def owner(outputs, inner, across, splits, ROWS: tl.constexpr, RC: tl.constexpr):
    """Return of this program: p, its first output or tile of columns, its part, and the output m of each column."""
    pid = tl.program_id(0)
    part, rest = pid % splits, pid // splits
    if ROWS:
        p, first = rest // outputs, rest % outputs
        m = first + tl.arange(0, RC) * 0
    else:
        p, first = rest // across, rest % across
        m = tl.minimum((first * RC + tl.arange(0, RC)) // inner, outputs - 1)
    return p, first, part, m


@triton.jit
def count_tiles(terms, across, ROWS: tl.constexpr, RA: tl.constexpr):
    """Return how many tiles one owner has."""
    tiles = tl.cdiv(terms, RA)
    if ROWS:
        tiles = tiles * across
    return tiles


@triton.jit
def places(
    tile, p, first, terms, outputs, inner, across, ROWS: tl.constexpr, RA: tl.constexpr, RC: tl.constexpr
):  # fmt: skip
    """Return where the elements (RA, RC) of a tile lie, and which are inside."""
    if ROWS:
        a = (tile // across) * RA + tl.arange(0, RA)
        b = (tile % across) * RC + tl.arange(0, RC)
        start = first * inner
        run = inner
    else:
        a = tile * RA + tl.arange(0, RA)
        b = first * RC + tl.arange(0, RC)
        start = 0
        run = outputs * inner
    line = (p.to(tl.int64) * terms + a) * (outputs * inner)
    return line[:, None] + (start + b)[None, :], (a < terms)[:, None] & (b < run)[None, :]


@triton.jit
def raise_to(out, m, inside_column, values, ROWS: tl.constexpr):
    """Raise out[m] to the largest of values (RA, RC), int64, each column for its own m."""
    columns = tl.max(values, 0)
    if ROWS:
        tl.atomic_max(out + tl.min(m), tl.max(columns))
    else:
        tl.atomic_max(out + m, columns, mask=inside_column)


@triton.jit
def add_to(out, m, inside_column, values, ROWS: tl.constexpr):
    """Add values (RA, RC), int64, to out[m], each column to its own m."""
    columns = tl.sum(values, 0)
    if ROWS:
        tl.atomic_add(out + tl.min(m), tl.sum(columns))
    else:
        tl.atomic_add(out + m, columns, mask=inside_column)


@triton.jit
def _largest(
    x, tops, terms, outputs, inner, across, splits, ROWS: tl.constexpr, RA: tl.constexpr, RC: tl.constexpr
):  # fmt: skip
    p, first, part, m = owner(outputs, inner, across, splits, ROWS, RC)
    top = tl.zeros((RA, RC), tl.int32)
    for tile in range(part, count_tiles(terms, across, ROWS, RA), splits):
        at, inside = places(tile, p, first, terms, outputs, inner, across, ROWS, RA, RC)
        top = tl.maximum(top, magnitude(tl.load(x + at, mask=inside, other=0.0)))
    real = first * RC + tl.arange(0, RC) < outputs * inner
    raise_to(tops + p * outputs, m, real, top.to(tl.int64), ROWS)


@triton.jit
def _add(
    x, tops, totals, shift, terms, outputs, inner, across, splits,
    ROWS: tl.constexpr, RA: tl.constexpr, RC: tl.constexpr,
):  # fmt: skip
    p, first, part, m = owner(outputs, inner, across, splits, ROWS, RC)
    top = tl.load(tops + p * outputs + m).to(tl.int32)
    scale = power(shift - exponent(top))[None, :]
    total = tl.zeros((RA, RC), tl.int64)
    for tile in range(part, count_tiles(terms, across, ROWS, RA), splits):
        at, inside = places(tile, p, first, terms, outputs, inner, across, ROWS, RA, RC)
        total += integer(tl.load(x + at, mask=inside, other=0.0), scale)
    real = first * RC + tl.arange(0, RC) < outputs * inner
    add_to(totals + p * outputs, m, real, total, ROWS)


@triton.jit
def _values(tops, totals, out, flags, size, shift, HAS_FLAGS: tl.constexpr, B: tl.constexpr):
    at = tl.program_id(0) * B + tl.arange(0, B)
    inside = at < size
    top = tl.load(tops + at, mask=inside, other=0).to(tl.int32)
    tl.store(out + at, sum64(top, tl.load(totals + at, mask=inside, other=0), shift), mask=inside)
    note(flags, top >= NOT_FINITE, FAULT, HAS_FLAGS)


def _sizes(x: torch.Tensor, order: list[int], axes: tuple[int, ...]) -> list[int] | None:
    """Return (P, A, M, B) of the axes in memory order; None where they do not come so."""
    sizes: list[int] = []
    pairs = [(axis in axes, x.shape[axis]) for axis in order if x.shape[axis] > 1]
    for summed, group in groupby(pairs, key=lambda pair: pair[0]):
        if summed is not bool(len(sizes) % 2):
            sizes.append(1)
        sizes.append(prod(size for _, size in group))
    if len(sizes) > 4:
        return None
    if len(sizes) == 2:  # one run for each output
        return [1, 1, *sizes]
    return sizes + [1] * (4 - len(sizes))


def exact_sum64(x: torch.Tensor, axes: tuple[int, ...], flags: torch.Tensor | None) -> torch.Tensor:
    """Return what sums.exact_sum64 does, for x with elements."""
    order = sorted(range(x.ndim), key=x.stride, reverse=True)
    shift = shift_of(terms_of(x, axes))
    sizes = _sizes(x, order, axes)
    if sizes is None or 0 in x.stride():
        order = sorted(range(x.ndim), key=lambda axis: axis in axes)
        x = x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])
        sizes = _sizes(x, order, axes) or []
    dense = x.permute(order).contiguous()
    walk = plan(*sizes)
    outputs = walk.outer * walk.outputs
    tops, totals = torch.zeros((2, outputs), dtype=torch.int64, device=x.device)
    launch = {"num_warps": 4, **EXACT}
    _largest[(walk.programs,)](dense, tops, *walk.arguments, *walk.constants, **launch)
    _add[(walk.programs,)](dense, tops, totals, shift, *walk.arguments, *walk.constants, **launch)
    out = torch.empty(outputs, dtype=torch.float64, device=x.device)
    _values[(triton.cdiv(outputs, 256),)](
        tops, totals, out, pointer(flags, tops), outputs, shift, flags is not None, 256, **launch
    )
    kept = [axis for axis in order if axis not in axes]
    result = out.reshape([x.shape[axis] for axis in kept])
    return result.permute([kept.index(axis) for axis in sorted(kept)]) if kept else result.reshape(())
