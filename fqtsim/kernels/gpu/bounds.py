"""Which outputs of a datapath are U for sure, decided on the device (S4): Cauchy-Schwarz, an output at a time.

No sum of some of the products of an output, in any order, passes |a_i| |b_j|; where limit - |c| covers that, no
register can change it and its code is U. Norms are compared squared, in float64 and pessimistically. Programs whose
tile holds no open output leave what is there; rows and columns are taken in order of their norms, so that the open
outputs gather in few tiles and nothing waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from fqtsim.hw.lower import EXACT, HIGH, LOW, MODE, Lowered

SLACK = 1 + 2.0**-40
"""Covers the few roundings of 2**-53 each on the way to a product of squared norms."""


class Bounds(NamedTuple):
    """What a kernel needs to leave out proven tiles."""

    #: Every register of the chain holds this magnitude.
    limit: int
    #: Squared norms rounded up, float64: of the rows of a (G, M) and of the columns of b (G, N).
    rows: torch.Tensor
    columns: torch.Tensor
    #: Rows and columns by falling norm, int64, of the same shapes; None where an operand lies with k not contiguous,
    #: since rows in another order would be loaded a code at a time.
    row_order: torch.Tensor | None
    column_order: torch.Tensor | None


def subset_limit(lowered: Lowered) -> int:
    """Return the largest magnitude that every register of the chain holds; 0 where the bound does not apply.

    Dropped bits change the items, and an unsigned register must not see a negative partial sum.
    """
    limited = lowered.table[lowered.table[:, MODE] != EXACT]
    if lowered.dropped_bits or not len(limited):
        return 0
    low, high = limited[:, LOW], limited[:, HIGH]
    if low.max() >= 0 and lowered.product.low < 0:
        return 0
    rails = high if lowered.product.low >= 0 else np.minimum(high, -low)
    return int(rails.min())


def squared_norms(codes: torch.Tensor, along: int) -> torch.Tensor:
    """Return the sums of squares along a dimension, rounded up, float64; codes are at most 17 bits wide."""
    wide = codes.to(torch.int32 if codes.element_size() == 1 else torch.int64)
    return (wide * wide).sum(along, dtype=torch.int64).to(torch.float64) * SLACK


def bounds(a: torch.Tensor, b: torch.Tensor, lowered: Lowered) -> Bounds | None:
    """Return the bounds of a (G, M, K) times b (G, K, N), or None where none applies."""
    limit = subset_limit(lowered)
    if limit <= 0:
        return None
    rows, columns = squared_norms(a, 2), squared_norms(b, 1)
    row_order = torch.argsort(rows, 1, descending=True) if a.stride(2) == 1 else None
    column_order = torch.argsort(columns, 1, descending=True) if b.stride(1) == 1 else None
    return Bounds(limit, rows, columns, row_order, column_order)


def open_outputs(found: Bounds, start: torch.Tensor | None) -> torch.Tensor:
    """Return which outputs (G, M, N) the bound does not prove: the composed form of what the kernels decide."""
    shape = (*found.rows.shape, found.columns.shape[1])
    if start is None:
        start = torch.zeros((), dtype=torch.int64, device=found.rows.device).expand(shape)
    space = (found.limit - start.abs()).to(torch.float64)
    return (found.rows[:, :, None] * found.columns[:, None, :] > space * space) | (space < 0)
