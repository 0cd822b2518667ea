"""Any chain of levels by torch operations, every addition performed (S4): what runs where Triton does not.

Twin of fqtsim/kernels/chain.py, one product of every output at a time, on integers of the device.
"""

from __future__ import annotations

from typing import Any

import torch

from fqtsim.hw.lower import BASE, BITS, CLAMP, DROP, HIGH, LANES, LOW, MODE, NEGATIVE, ODD, RUN, UNSIGNED, WRAP

Table = Any


def dropped(items: torch.Tensor, row: Table) -> torch.Tensor:
    """Return items / 2**drop, rounded as the row of the table says."""
    drop = int(row[DROP])
    if not drop:
        return items
    bias = int(row[BASE]) + ((items >> drop) & 1) * int(row[ODD]) + (items < 0).to(items.dtype) * int(row[NEGATIVE])
    return (items + bias) >> drop


def held(total: torch.Tensor, row: Table) -> torch.Tensor:
    """Return exact sums brought into the register of a level."""
    if row[MODE] == CLAMP:
        return total.clamp(int(row[LOW]), int(row[HIGH]))
    if row[MODE] == WRAP and row[UNSIGNED]:
        return total & int(row[HIGH])
    if row[MODE] == WRAP:
        shift = 8 * total.element_size() - int(row[BITS])
        return (total << shift) >> shift
    return total


class _Chain:
    """The registers of every level, each for all outputs; a register that is full empties into the level above."""

    def __init__(self, table: Table, start: torch.Tensor) -> None:
        self.table, self.last = table, len(table) - 1
        self.registers: list[list[torch.Tensor | None]] = [[None] * int(row[LANES]) for row in table]
        self.registers[self.last][0] = start
        self.counts = [0] * len(table)

    def push(self, level: int, items: torch.Tensor | None) -> None:
        """Give items to a level; None is items of 0, which change no register."""
        row = self.table[level]
        lane = self.counts[level] % int(row[LANES])
        if items is not None:
            items, before = dropped(items, row), self.registers[level][lane]
            self.registers[level][lane] = held(items if before is None else before + items, row)
        self.counts[level] += 1
        if level < self.last and row[RUN] and self.counts[level] == row[RUN]:
            self.empty(level)

    def empty(self, level: int) -> None:
        """Give the codes of a level to the one above."""
        full = self.registers[level]
        self.registers[level], self.counts[level] = [None] * len(full), 0
        for code in full:
            self.push(level + 1, code)

    def flush(self) -> None:
        """Empty what the end of k leaves below the accumulator."""
        for level in range(self.last):
            if self.counts[level] or not self.table[level, RUN]:
                self.empty(level)


def composed_chain(
    a: torch.Tensor, b: torch.Tensor, start: torch.Tensor, table: Table, word: torch.dtype
) -> torch.Tensor:
    """Return the accumulators (G, M, N) of a (G, M, K) times b (G, K, N) after all additions, starting from start.

    word is int32 or int64, as hw.lower proves that it is wide enough.
    """
    chain = _Chain(table, start.to(word))
    a, b = a.to(word), b.to(word)
    for k in range(a.shape[2]):
        chain.push(0, a[:, :, k, None] * b[:, k, None, :])
    chain.flush()
    code = chain.registers[chain.last][0]
    return start.to(word) if code is None else code
