"""BHQ, the paper's block Householder quantizer (S5.12, docs/quantizers.md).

Few rows of a gradient are large. BHQ puts each large row (a leader) into a group with small ones (its followers),
mixes the rows of a group by an orthogonal matrix that spreads the leader evenly, and quantizes the mixed rows. The
grouping is integer arithmetic; the mixing is one rank-1 update per group, its sums exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from fqtsim.backends.primitives import Primitives
from fqtsim.quantizers.per_sample import PerSampleQuantizer
from fqtsim.quantizers.qtensor import Extremes, Mixing

Array = np.ndarray[Any, Any]
LARGEST_RATIO = 2.0**24
"""Cap of s2 / s1: beyond it, the float32 sum of a leader and its followers would lose the leader."""


def integer_ranges(ranges: Array) -> list[int]:
    """Return round(m * 2**(40 - e)), at least 1, of the row ranges m (N,) float64, with e as in S5.3."""
    exponent = max(int(np.frexp(ranges.max())[1]), -125)
    return [max(1, int(m)) for m in np.rint(np.ldexp(ranges, 40 - exponent))]


def group_rows(ranges: list[int]) -> list[list[int]]:
    """Return the groups of row indices, leader first, of positive integer row ranges; one row is one group.

    Leaders are the largest rows, as many as leave more than one small row for each; a group's share of the small
    rows is in proportion to its leader.
    """
    n = len(ranges)
    if n == 1:
        return [[0]]
    order = np.argsort([-one for one in ranges], kind="stable").tolist()  # ties by row index
    small, total = 1, sum(ranges) - ranges[order[-1]]
    while small < n - 1 and small * ranges[order[n - small - 1]] <= total:
        total -= ranges[order[n - small - 1]]
        small += 1
    groups, seen, given = [], 0, 0
    for leader in order[: n - small]:
        seen += ranges[leader]
        share = (2 * small * seen + total) // (2 * total)  # round half up of small * seen / total
        groups.append([leader, *order[n - small + given : n - small + share]])
        given = share
    return groups


def ratios(leaders: Array, followers: Array, sizes: Array, primitives: Primitives) -> Array:
    """Return s2 / s1 of groups, float32 in 1..2**24, from the ranges of their leaders and of their first followers."""
    n = sizes.astype(np.float64)
    root = np.sqrt(n)
    c = 1.0 / (n - root)
    largest = np.where(sizes == 2, c - 1.0, np.maximum(1.0 - c, c))  # max |Q| over the followers' block
    w2, d = followers * largest, (n - 1.0) * (leaders / root)
    small = w2 < d  # else ranges that differ became the same integer
    cube = (np.where(small, w2, 1.0) / np.where(small, d, 1.0)).astype(np.float32)
    capped = cube < np.float32(LARGEST_RATIO**-3)
    rho = primitives.rcbrt(np.where(capped, np.float32(1), cube))
    return np.where(capped, np.float32(LARGEST_RATIO), rho)


def scales(groups: list[list[int]], ranges: Array, peaks: Array, primitives: Primitives) -> Array:
    """Return s of every row, (N,) float32: s1 for leaders, s2 for followers; 1 for a lone row.

    ranges (N,) float64, peaks (N,) float32, the largest magnitude of each row. The common factor of a group is a power
    of two that brings its largest scaled magnitude to 1/2..1, within 2**-100..2**100.
    """
    s = np.ones(len(ranges), np.float32)
    mixed = [group for group in groups if len(group) > 1]
    if not mixed:
        return s
    sizes, rows = np.array([len(group) for group in mixed]), np.fromiter(chain.from_iterable(mixed), np.int64)
    starts = np.cumsum(sizes) - sizes
    leaders, heights = rows[starts], peaks[rows].astype(np.float64)
    rho = ratios(ranges[leaders], ranges[rows[starts + 1]], sizes, primitives)
    heights[starts] = 0  # of followers only
    peak = np.maximum(peaks[leaders], rho * np.maximum.reduceat(heights, starts))
    exponents = np.clip(np.frexp(peak)[1], -100, 100)
    s[rows] = np.repeat(np.ldexp(rho, -exponents), sizes)
    s[leaders] = np.ldexp(np.float32(1), -exponents)
    return s


@dataclass(frozen=True)
class Householder:
    """T = Q diag(s), block by block."""

    #: Row indices of each group, leader first.
    groups: list[list[int]]
    #: Factor of each row, (N,) float32.
    s: Array

    def mix(self, x: Array, primitives: Primitives) -> tuple[Array, Extremes]:
        """Return T x, for x (N, D), and the extremes of its rows."""
        rows, least, greatest = primitives.mix(x, self.s, self.groups)
        return rows, (least, greatest)

    def apply(self, x: Array, primitives: Primitives) -> Array:
        """Return T x, for x (N, D)."""
        return self.mix(x, primitives)[0]

    def undo(self, y: Array, primitives: Primitives) -> Array:
        """Return T^-1 y = diag(1/s) Q y, for y (N, D)."""
        unmixed: Array = primitives.unmix(y, self.s, self.groups)
        return unmixed


class BlockHouseholderQuantizer(PerSampleQuantizer):
    """One step and zero point for each mixed row, in the place of the original row."""

    mixes = True

    def _mix(self, rows: Array, primitives: Primitives) -> tuple[Array, Mixing | None, Extremes | None]:
        least, greatest = primitives.extremes(rows)
        ranges = greatest.astype(np.float64) - least.astype(np.float64)
        groups = group_rows(integer_ranges(ranges))
        s = scales(groups, ranges, np.maximum(greatest, -least), primitives)
        mixing = Householder(groups, s)
        mixed, extremes = mixing.mix(rows, primitives)
        return mixed, mixing, extremes
