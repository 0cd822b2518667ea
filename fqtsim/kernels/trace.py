"""One output at a time in int64, with counts per level: slow, only where a trace is asked for (S4, events)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from fqtsim.hw.lower import (
    BASE,
    BITS,
    CLAMP,
    DROP,
    HIGH,
    LANES,
    LOW,
    MODE,
    NEGATIVE,
    ODD,
    RUN,
    UNSIGNED,
    WRAP,
)

MINIMUM, MAXIMUM, ADDITIONS, OVERFLOWS = range(4)
"""Columns of the statistics: one row per level."""


@njit(nogil=True)
def _rounded(item: Any, row: Any) -> Any:
    bias = row[BASE] + ((item >> row[DROP]) & 1) * row[ODD]
    if item < 0:
        bias += row[NEGATIVE]
    return (item + bias) >> row[DROP]


@njit(nogil=True)
def _limited(value: Any, row: Any) -> Any:
    if row[MODE] == CLAMP:
        return min(max(value, row[LOW]), row[HIGH])
    if row[MODE] == WRAP and row[UNSIGNED]:
        return value & row[HIGH]
    if row[MODE] == WRAP:
        shift = 64 - row[BITS]
        return (value << shift) >> shift
    return value


@njit(nogil=True)
def trace_level(items: Any, row: Any, registers: Any, statistics: Any) -> None:
    """Feed one level's items into its registers, which hold the start values, and update its statistics."""
    for t in range(items.size):
        item = _rounded(items[t], row) if row[DROP] else items[t]
        place = t // row[RUN] if row[RUN] else t % row[LANES]
        exact = registers[place] + item
        after = _limited(exact, row)
        statistics[MINIMUM] = min(statistics[MINIMUM], exact)
        statistics[MAXIMUM] = max(statistics[MAXIMUM], exact)
        statistics[ADDITIONS] += 1
        statistics[OVERFLOWS] += after != exact
        registers[place] = after


@njit(nogil=True)
def trace_products(a: Any, b: Any, out: Any) -> None:
    """Write the products of every output to out (M, N, K)."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                out[i, j, k] = np.int64(a[i, k]) * np.int64(b[k, j])


@njit(nogil=True)
def trace_all(items: Any, row: Any, registers: Any, statistics: Any) -> None:
    """Run one level for every output: items (M, N, items), registers (M, N, registers)."""
    for i in range(items.shape[0]):
        for j in range(items.shape[1]):
            trace_level(items[i, j], row, registers[i, j], statistics)
