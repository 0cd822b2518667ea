"""Many small GEMMs of one shape at once: outputs of all of them are lanes, whatever group they are of (S4).

A lane is the row-major index of an output (g, m, n): the sum over k of a[g, m, k] * b[g, k, n].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.hw.lower import LANES
from fqtsim.kernels.chain import flush, push
from fqtsim.kernels.jit import kernel

BLOCK = 32
"""Products of a lane that are formed together: they are stored in order of k, a strip of lanes wide."""


@kernel
def lane_sums(a: Any, b: Any, total: Any, size: Any, first: int, end: int) -> None:
    """Write the exact sum of the products of lanes first..end, and the sum of their magnitudes.

    Shapes: a (G, M, K), b (G, K, N) integers; total and size (G * M * N,) int64, which no such sum passes.
    """
    m, n = a.shape[1], b.shape[2]
    for lane in range(first, end):
        group, column = lane // (m * n), lane % n
        left, right = a[group, lane // n % m], b[group, :, column]
        exact = magnitude = np.int64(0)
        for k in range(left.size):
            product = np.int64(left[k]) * np.int64(right[k])
            exact += product
            magnitude += abs(product)
        total[lane], size[lane] = exact, magnitude


@kernel
def _products(a: Any, b: Any, lanes: Any, k_first: int, items: Any) -> None:
    """Write the products of some lanes, from k_first on: row by row in order of k, items (products, lanes)."""
    word = items.dtype.type
    m, n = a.shape[1], b.shape[2]
    for j in range(lanes.size):
        lane = lanes[j]
        left, right = a[lane // (m * n), lane // n % m], b[lane // (m * n), :, lane % n]
        for i in range(items.shape[0]):
            items[i, j] = word(word(left[k_first + i]) * word(right[k_first + i]))


@kernel
def chain_lanes(a: Any, b: Any, lanes: Any, out: Any, table: Any, registers: Any, first: int, end: int) -> None:
    """Perform every addition of lanes[first..end], and write their accumulators to the same places of out.

    Shapes: a (G, M, K), b (G, K, N) integers; lanes and out (L,); out and registers (all registers, lanes that walk
    through k together) of one type.
    """
    n_k, n_levels = a.shape[2], table.shape[0]
    places = np.zeros(n_levels, np.int64)
    counts = np.zeros(n_levels, np.int64)
    for level in range(1, n_levels):
        places[level] = places[level - 1] + table[level - 1, LANES]
    strip = registers.shape[1]
    block = np.empty((BLOCK, strip), registers.dtype)
    for start in range(first, end, strip):
        width = min(strip, end - start)
        registers[:] = 0
        counts[:] = 0
        for k in range(0, n_k, BLOCK):
            items = block[: min(BLOCK, n_k - k), :width]
            _products(a, b, lanes[start : start + width], k, items)
            for i in range(items.shape[0]):
                push(0, table, places, registers, counts, items[i])
        flush(table, places, registers, counts, block[0, :width])
        out[start : start + width] = registers[places[n_levels - 1], :width]
