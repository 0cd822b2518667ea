"""Statistics of every level: one output at a time in int64, only where a trace is asked for (S4.8)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.hw.lower import DROP, LANES, RUN
from fqtsim.kernels.chain import accumulate, drop
from fqtsim.kernels.jit import kernel

MINIMUM, MAXIMUM, ADDITIONS, OVERFLOWS = range(4)
"""Columns of the statistics: one row per level."""


@kernel
def trace_products(a: Any, b: Any, out: Any) -> None:
    """Write the products of every output to out (M, N, K)."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                out[i, j, k] = np.int64(a[i, k]) * np.int64(b[k, j])


@kernel
def trace_level(items: Any, row: Any, registers: Any, statistics: Any) -> None:
    """Run one level for every output: int64 items (M, N, items), registers (M, N, registers) with start values.

    Where the level drops bits, it does so in `items` itself.
    """
    if row[DROP]:
        drop(items.reshape(items.size), row)
    for i in range(items.shape[0]):
        for j in range(items.shape[1]):
            for t in range(items.shape[2]):
                place = t // row[RUN] if row[RUN] else t % row[LANES]
                register = registers[i, j, place : place + 1]
                exact = register[0] + items[i, j, t]
                accumulate(register, items[i, j, t : t + 1], row)
                statistics[MINIMUM] = min(statistics[MINIMUM], exact)
                statistics[MAXIMUM] = max(statistics[MAXIMUM], exact)
                statistics[ADDITIONS] += 1
                statistics[OVERFLOWS] += register[0] != exact
