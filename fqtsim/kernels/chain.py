"""Any chain of levels, every addition performed, vectorised over a strip of output columns (S4).

A strip of outputs, some columns of some rows, walks through k together: one vector operation per product and addition.
The lanes are those of `registers`, int32 or int64; hw.lower proves which is wide enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
from fqtsim.kernels.jit import kernel

STRIP = 2048
"""Outputs that walk through k together: the registers of a few levels stay in the first-level cache."""


@kernel
def _multiply(a: Any, b: Any, items: Any) -> None:
    """Write the products of a column of a and a row of b, row by row."""
    word = items.dtype.type
    width = b.size
    for r in range(a.size):
        x = word(a[r])
        row = items[r * width : (r + 1) * width]
        for j in range(width):
            row[j] = word(x * b[j])


@kernel
def drop(items: Any, row: Any) -> None:
    """Replace each item x by x / 2**drop, rounded."""
    word = items.dtype.type  # without the casts Numba would widen every operation to int64
    drop, base, negative, odd = word(row[DROP]), word(row[BASE]), word(row[NEGATIVE]), word(row[ODD])
    for j in range(items.size):
        x = items[j]
        bias = base + (word(x >> drop) & word(1)) * odd
        if x < 0:
            bias += negative
        items[j] = word(x + word(bias)) >> drop


@kernel
def accumulate(register: Any, items: Any, row: Any) -> None:
    """Add items to a register, exactly, and bring each sum into the register."""
    word = register.dtype.type
    if row[MODE] == CLAMP:
        low, high = word(row[LOW]), word(row[HIGH])
        for j in range(items.size):
            register[j] = min(max(word(register[j] + items[j]), low), high)
    elif row[MODE] == WRAP and row[UNSIGNED]:
        mask = word(row[HIGH])
        for j in range(items.size):
            register[j] = word(register[j] + items[j]) & mask
    elif row[MODE] == WRAP:
        shift = word(8 * register.itemsize - row[BITS])
        for j in range(items.size):
            register[j] = word(word(register[j] + items[j]) << shift) >> shift
    else:
        for j in range(items.size):
            register[j] += items[j]


@kernel
def push(first: Any, table: Any, places: Any, registers: Any, counts: Any, items: Any) -> None:
    """Give items to level `first`; a register that is full empties into the level above."""
    last = table.shape[0] - 1
    level = first
    while True:
        row = table[level]
        if row[DROP]:
            drop(items, row)
        register = registers[places[level] + counts[level] % row[LANES], : items.size]
        accumulate(register, items, row)
        counts[level] += 1
        if level == last or row[RUN] == 0 or counts[level] < row[RUN]:
            return
        items[:] = register
        register[:] = 0
        counts[level] = 0
        level += 1


@kernel
def flush(table: Any, places: Any, registers: Any, counts: Any, items: Any) -> None:
    """Empty what the end of k leaves in the registers below the accumulator."""
    for level in range(table.shape[0] - 1):
        if table[level, RUN] == 0:
            for lane in range(table[level, LANES]):
                items[:] = registers[places[level] + lane, : items.size]
                push(level + 1, table, places, registers, counts, items)
        elif counts[level] > 0:
            items[:] = registers[places[level], : items.size]
            push(level + 1, table, places, registers, counts, items)


@kernel
def chain_rows(a: Any, b: Any, out: Any, table: Any, registers: Any, first: int, end: int) -> None:
    """Compute rows first..end of out, in place: on entry out holds the start values of the accumulator.

    Shapes: a (M, K) integers; b (K, N) and out (M, N) of the registers' type; registers (all registers, at most STRIP).
    """
    n_k, n = b.shape
    n_levels = table.shape[0]
    places = np.zeros(n_levels, np.int64)
    counts = np.zeros(n_levels, np.int64)
    for level in range(1, n_levels):
        places[level] = places[level - 1] + table[level - 1, LANES]
    accumulator = registers[places[n_levels - 1]]
    strip = registers.shape[1]
    all_items = np.empty(strip, registers.dtype)
    for start in range(0, n, strip):
        width = min(strip, n - start)
        rows = strip // width
        for i in range(first, end, rows):
            height = min(rows, end - i)
            items = all_items[: height * width]
            registers[:] = 0
            counts[:] = 0
            for r in range(height):
                accumulator[r * width : (r + 1) * width] = out[i + r, start : start + width]
            for k in range(n_k):
                _multiply(a[i : i + height, k], b[k, start : start + width], items)
                push(0, table, places, registers, counts, items)
            flush(table, places, registers, counts, items)
            for r in range(height):
                out[i + r, start : start + width] = accumulator[r * width : (r + 1) * width]
