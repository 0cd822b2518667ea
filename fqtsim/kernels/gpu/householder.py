"""The block Householder mixing of rows on the device, grouping included, without a trip to the host (S5.12).

The twin of fqtsim/kernels/householder.py and fqtsim/quantizers/block_householder.py; rules Q6 to Q8 of
docs/quantizers.md. The number of groups is known to the device alone, so tensors have room for as many as there can be
and empty groups stand last.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from fqtsim.kernels.gpu.elementary import rcbrt
from fqtsim.kernels.gpu.launch import Fault, is_fused, note
from fqtsim.kernels.gpu.sums import MAGNITUDE, NOT_FINITE, exponent, integers, power, value

LARGEST_RATIO = 2.0**24
MOST_ROWS = 1 << 18
"""Rows whose shares int64 can count."""
_ONCE = 4096
"""Rows up to which small * seen fits int64 (below 2**38 * rows**2)."""


class Groups(NamedTuple):
    """Which rows are mixed with each other; int64, on the device."""

    #: (N,): row indices, group after group, leader first and then followers, largest first.
    rows: torch.Tensor
    #: (G,): where each group begins in `rows`; N for the empty ones, which stand last.
    starts: torch.Tensor
    #: (G,): rows of each group.
    sizes: torch.Tensor
    #: (N,): the group of each place in `rows`.
    owner: torch.Tensor

    def lists(self) -> list[list[int]]:
        """Return the groups as lists of row indices. Waits for the device: for tests and reports."""
        rows, sizes = self.rows.tolist(), self.sizes.tolist()
        ends = np.cumsum(sizes).tolist()
        return [rows[end - size : end] for size, end in zip(sizes, ends, strict=True) if size]


class Tables(NamedTuple):
    """Functions of a group's size, by size 0..N: made on the host once, since no root is proven on the device."""

    #: float32 sqrt(n).
    root32: torch.Tensor
    #: float64 sqrt(n), 1 for n < 2.
    root: torch.Tensor
    #: float64: the largest magnitude of Q over the followers' block; 1 for n < 2.
    largest: torch.Tensor


@cache  # a recorded step reads them by their place
def tables(most: int, device: torch.device) -> Tables:
    """Return the tables of sizes 0..most; made on first use, which waits for the device, and kept."""
    n = np.maximum(np.arange(most + 1, dtype=np.float64), 2.0)
    root = np.sqrt(n)
    c = 1.0 / (n - root)
    largest = np.where(n == 2, c - 1.0, np.maximum(1.0 - c, c))
    root32 = np.sqrt(np.arange(most + 1, dtype=np.float32))
    return Tables(*(torch.from_numpy(table).to(device) for table in (root32, root, largest)))


def groups_of(lists: Sequence[Sequence[int]], device: torch.device | str) -> Groups:
    """Return groups that the host knows, on the device; they cover every row once."""
    sizes = torch.tensor([len(group) for group in lists], dtype=torch.int64)
    rows = torch.tensor([row for group in lists for row in group], dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(lists)), sizes)
    return Groups(*(tensor.to(device) for tensor in (rows, sizes.cumsum(0) - sizes, sizes, owner)))


def integer_ranges(ranges: torch.Tensor) -> torch.Tensor:
    """Return round(m * 2**(40 - e)), at least 1, of the row ranges m (N,) float64, with e as in S5.3: int64 (N,).

    Ranges that are not finite, which `extremes` notes, give numbers within 1..2**40 too.
    """
    largest = (ranges.view(torch.int64) & 0x7FFFFFFFFFFFFFFF).amax()
    e = ((largest >> 52) - 1022).clamp(-125, 129)
    scaled, most = ranges * power(40 - e), 2.0**40
    held = torch.where(scaled < most, scaled, torch.full_like(scaled, most))  # a NaN too becomes a number
    return torch.round(held).to(torch.int64).clamp(min=1)


def _shares(seen: torch.Tensor, total: torch.Tensor, small: torch.Tensor, n: int) -> torch.Tensor:
    """Return small * seen / total rounded half up; small in pieces where the product could pass int64."""
    pieces = [(0, 63)] if n <= _ONCE else [(first, 4) for first in range(16, -1, -4)]
    quotient, rest = torch.zeros_like(seen), torch.zeros_like(seen)
    for first, width in pieces:
        part = (small >> first) & ((1 << width) - 1)
        rest = (rest << width if width < 63 else rest) + part * seen
        quotient = (quotient << width if width < 63 else quotient) + torch.div(rest, total, rounding_mode="floor")
        rest = torch.remainder(rest, total)
    return quotient + (2 * rest >= total).to(torch.int64)


def composed_group_rows(ranges: torch.Tensor) -> Groups:
    """Return what `group_rows` does, by torch operations."""
    n, device = len(ranges), ranges.device
    count = torch.arange(n, device=device)
    if n == 1:
        return Groups(count, count, torch.ones_like(count), count)
    m = integer_ranges(ranges)
    order = torch.sort(-m, stable=True).indices
    ranked = m[order]
    seen = torch.cumsum(ranked, 0)
    k = count[1:]  # candidates for the number of followers, 1..n-1
    stops = (k * ranked[n - 1 - k] > seen[n - 1 - k]) | (k == n - 1)
    small = torch.where(stops, k, torch.full_like(k, n)).amin()
    leaders = n - small
    total = seen.gather(0, (leaders - 1).reshape(1))  # an index of shape () would be read by the host
    share = torch.where(count < leaders, _shares(seen.minimum(total), total, small, n), small)
    before = torch.cat((share.new_zeros(1), share[:-1]))
    is_leader = count < leaders
    follower = count - leaders
    owner = torch.where(is_leader, count, torch.searchsorted(share, follower, right=True))
    place = torch.where(is_leader, count + before, follower + owner + 1)
    most = n // 2
    sizes = torch.where(is_leader, 1 + share - before, torch.zeros_like(share))[:most]
    starts = torch.where(is_leader, count + before, torch.full_like(count, n))[:most]
    rows, owners = torch.empty_like(order), torch.empty_like(order)
    return Groups(rows.scatter_(0, place, order), starts, sizes, owners.scatter_(0, place, owner))


def group_rows(ranges: torch.Tensor) -> Groups:
    """Return the groups of rows of these ranges (N,) float64, N up to 2**18: Q6. `ranges` may hold NaN, in no order.

    Leaders are the largest rows; a group's share of the others is in proportion to its leader. Every group has two
    rows or more, so there are at most N // 2; one row is a group of its own. Fused up to 4096 rows: two kernels.
    """
    if not 1 < len(ranges) <= _ONCE or not is_fused(ranges):
        return composed_group_rows(ranges)
    from fqtsim.kernels.gpu import triton_householder

    return triton_householder.group_rows(ranges)


def _ratios(leaders: torch.Tensor, followers: torch.Tensor, sizes: torch.Tensor, rows: int) -> torch.Tensor:
    """Return s2 / s1 of groups, float32 in 1..2**24, from the ranges of their leaders and of their first followers."""
    table = tables(rows, sizes.device)
    w2 = followers * table.largest[sizes]
    d = (sizes.to(torch.float64) - 1.0) * (leaders / table.root[sizes])
    small, one = w2 < d, torch.ones_like(d)
    cube = (torch.where(small, w2, one) / torch.where(small, d, one)).to(torch.float32)
    capped = cube < LARGEST_RATIO**-3
    rho = rcbrt(torch.where(capped, torch.ones_like(cube), cube))
    return torch.where(capped, torch.full_like(rho, LARGEST_RATIO), rho)


def composed_scales(groups: Groups, ranges: torch.Tensor, peaks: torch.Tensor) -> torch.Tensor:
    """Return what `scales` does, by torch operations."""
    n, mixed = len(ranges), groups.sizes > 1
    first = groups.starts.clamp(max=n - 1)
    leaders, seconds = groups.rows[first], groups.rows[(first + 1).clamp(max=n - 1)]
    rho = _ratios(ranges[leaders], ranges[seconds], groups.sizes, n)
    is_leader = torch.arange(n, device=ranges.device) == groups.starts[groups.owner]
    of_followers = torch.where(is_leader, torch.zeros_like(peaks), peaks[groups.rows])
    tallest = torch.zeros_like(rho).scatter_reduce_(0, groups.owner, of_followers, "amax")
    peak = torch.maximum(peaks[leaders].to(torch.float64), rho.to(torch.float64) * tallest.to(torch.float64))
    e = (((peak.view(torch.int64) >> 52) & 0x7FF) - 1022).clamp(-100, 100)
    unit = power(-torch.where(peak == 0, torch.zeros_like(e), e)).to(torch.float32)
    factor = torch.where(is_leader, unit[groups.owner], (rho * unit)[groups.owner])
    factor = torch.where(mixed[groups.owner], factor, torch.ones_like(factor))
    return torch.empty_like(factor).scatter_(0, groups.rows, factor)


def scales(groups: Groups, ranges: torch.Tensor, peaks: torch.Tensor) -> torch.Tensor:
    """Return s of every row, float32 (N,): s1 for leaders, s2 for followers, 1 for a lone row (Q7).

    ranges (N,) float64; peaks (N,) float32, the largest magnitude of each row. Fused: one kernel.
    """
    if not is_fused(ranges):
        return composed_scales(groups, ranges, peaks)
    from fqtsim.kernels.gpu import triton_householder

    return triton_householder.scales(groups, ranges, peaks)


def composed_reflect(x: torch.Tensor, groups: Groups, flags: torch.Tensor | None = None) -> torch.Tensor:
    """Return what `reflect` does, by torch operations."""
    n = len(x)
    packed, owner = x[groups.rows], groups.owner
    column = owner[:, None].expand(packed.shape)
    tops = torch.zeros((len(groups.sizes), x.shape[1]), dtype=torch.int32, device=x.device)
    tops.scatter_reduce_(0, column, packed.view(torch.int32) & MAGNITUDE, "amax")
    terms = integers(packed, power(40 - exponent(tops))[owner])
    totals = torch.zeros(tops.shape, dtype=torch.int64, device=x.device).index_add_(0, owner, terms)
    total = value(tops, totals, 40).to(torch.float32)
    mixed = (groups.sizes > 1)[:, None]
    note(flags, mixed & (tops >= NOT_FINITE), Fault.NOT_FINITE)
    note(flags, mixed & torch.isinf(total), Fault.BEYOND_FLOAT32)
    root = tables(n, x.device).root32[groups.sizes][:, None].expand(total.shape)
    mean = total / root
    pull = (mean - packed[groups.starts.clamp(max=n - 1)]) / (root - 1.0)
    is_leader = (torch.arange(n, device=x.device) == groups.starts[owner])[:, None]
    turned = torch.where(is_leader, mean[owner], packed - pull[owner])
    return torch.empty_like(x).index_copy_(0, groups.rows, torch.where(mixed[owner], turned, packed))


def reflect(x: torch.Tensor, groups: Groups, flags: torch.Tensor | None = None) -> torch.Tensor:
    """Return Q x for float32 x (N, D): the rows of each group reflected (Q8); groups are at most 2**22 rows each.

    A row that is not finite, or a sum beyond float32, is noted. Fused: 4 bytes read (12 for a group whose tile does not
    stay in the cache) and 4 written an element.
    """
    if x.numel() == 0 or len(x) == 1 or not is_fused(x):
        return composed_reflect(x, groups, flags)
    from fqtsim.kernels.gpu import triton_householder

    return triton_householder.reflect(x, groups, flags)


def composed_mix(x: torch.Tensor, groups: Groups, s: torch.Tensor, flags: torch.Tensor | None = None) -> torch.Tensor:
    """Return what `mix` does, by torch operations."""
    return composed_reflect(x * s[:, None], groups, flags)


def mix(x: torch.Tensor, groups: Groups, s: torch.Tensor, flags: torch.Tensor | None = None) -> torch.Tensor:
    """Return T x for float32 x (N, D): each row times its s, then reflected. Fused as `reflect`."""
    if x.numel() == 0 or len(x) == 1 or not is_fused(x):
        return composed_mix(x, groups, s, flags)
    from fqtsim.kernels.gpu import triton_householder

    return triton_householder.reflect(x, groups, flags, before=s)


def composed_unmix(y: torch.Tensor, groups: Groups, s: torch.Tensor, flags: torch.Tensor | None = None) -> torch.Tensor:
    """Return what `unmix` does, by torch operations."""
    return composed_reflect(y, groups, flags) / s[:, None]


def unmix(y: torch.Tensor, groups: Groups, s: torch.Tensor, flags: torch.Tensor | None = None) -> torch.Tensor:
    """Return T^-1 y for float32 y (N, D): reflected, then each row divided by its s. Fused as `reflect`."""
    if y.numel() == 0 or len(y) == 1 or not is_fused(y):
        return composed_unmix(y, groups, s, flags)
    from fqtsim.kernels.gpu import triton_householder

    return triton_householder.reflect(y, groups, flags, after=s)
