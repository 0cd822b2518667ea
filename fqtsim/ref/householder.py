"""The block Householder mixing of rows (S5.12), one element at a time."""

from __future__ import annotations

import math
from fractions import Fraction

from fqtsim.ref import binary32
from fqtsim.ref.binary32 import divide, multiply, nearest, subtract
from fqtsim.ref.elementary import rcbrt
from fqtsim.ref.exact_sum import exact_sum64

LARGEST_RATIO = 2.0**24


def integer_ranges(ranges: list[float]) -> list[int]:
    """Return the row ranges, not negative, as integers of 40 bits for the largest, at least 1."""
    exponent = max(math.frexp(max(ranges))[1], -125)
    return [max(1, round(Fraction(m) * Fraction(2) ** (40 - exponent))) for m in ranges]


def group_rows(ranges: list[int]) -> list[list[int]]:
    """Return the groups of row indices, leader first."""
    n = len(ranges)
    order = sorted(range(n), key=lambda row: (-ranges[row], row))
    m = [ranges[row] for row in order]
    if n == 1:
        return [[0]]
    small = next((k for k in range(1, n) if k * m[n - k - 1] > sum(m[: n - k])), n - 1)
    leaders, followers = order[: n - small], order[n - small :]
    shares = [Fraction(small * sum(m[: i + 1]), sum(m[: n - small])) for i in range(n - small)]
    ends = [math.floor(share + Fraction(1, 2)) for share in shares]
    return [
        [leader, *followers[first:last]] for leader, first, last in zip(leaders, [0, *ends[:-1]], ends, strict=True)
    ]


def largest_entry(n: int) -> float:
    """Return max |Q| over the followers' block, n >= 2: entries 1 - c on the diagonal and -c beside it."""
    c = 1.0 / (n - math.sqrt(n))
    return abs(1.0 - c) if n == 2 else max(abs(1.0 - c), c)


def ratio(leader: float, follower: float, n: int) -> float:
    """Return s2 / s1 from the ranges of the leader and of the largest follower."""
    w1, w2 = leader / math.sqrt(n), follower * largest_entry(n)
    if w2 >= (n - 1) * w1:
        return 1.0
    cube = nearest(Fraction(w2 / ((n - 1) * w1)))
    return LARGEST_RATIO if cube < LARGEST_RATIO**-3 else rcbrt(cube)


def scales(groups: list[list[int]], ranges: list[float], peaks: list[float]) -> list[float]:
    """Return s of every row: s1 of leaders, s2 of followers; the largest scaled magnitude of a group is below 1."""
    s = [1.0] * len(ranges)
    for leader, *followers in groups:
        if followers:
            rho = ratio(ranges[leader], ranges[followers[0]], 1 + len(followers))
            peak = max(peaks[leader], rho * max(peaks[row] for row in followers))
            exponent = min(max(math.frexp(peak)[1], -100), 100)
            s[leader] = 2.0**-exponent
            for row in followers:
                s[row] = rho * 2.0**-exponent
    return s


def reflect(column: list[float], groups: list[list[int]]) -> list[float]:
    """Return Q applied to one column of the rows."""
    out = list(column)
    for group in groups:
        if len(group) > 1:
            root = binary32.sqrt(float(len(group)))
            total = nearest(Fraction(exact_sum64(column[row] for row in group)))
            mean = divide(total, root)
            pull = divide(subtract(mean, column[group[0]]), subtract(root, 1.0))
            out[group[0]] = mean
            for row in group[1:]:
                out[row] = subtract(column[row], pull)
    return out


def mix(column: list[float], groups: list[list[int]], s: list[float]) -> list[float]:
    """Return T = Q diag(s) applied to one column."""
    return reflect([multiply(x, factor) for x, factor in zip(column, s, strict=True)], groups)


def unmix(column: list[float], groups: list[list[int]], s: list[float]) -> list[float]:
    """Return T^-1 = diag(1/s) Q applied to one column."""
    return [divide(y, factor) for y, factor in zip(reflect(column, groups), s, strict=True)]
