"""A datapath, one output at a time: a chain of levels (S4).

Each level is a machine that takes items and gives codes. `Step` records every addition, so that the same code
is the definition, `explain` and the register trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fqtsim.ref.fixed import into_register, round_shift
from fqtsim.words import IntFormat, Overflow, Rounding


class ItemLike(Protocol):
    @property
    def drop_bits(self) -> int: ...
    @property
    def rounding(self) -> Rounding: ...


class LevelLike(Protocol):
    """What the reference reads of a level; hw.spec.Level has it."""

    @property
    def grouping(self) -> str: ...
    @property
    def count(self) -> int | None: ...
    @property
    def item(self) -> ItemLike | None: ...
    @property
    def register_format(self) -> IntFormat | None: ...
    @property
    def overflow(self) -> Overflow | None: ...


@dataclass(frozen=True)
class Step:
    """One addition."""

    #: Index of the level, from the multipliers outwards.
    level: int
    #: Which register of the level: the group, or the lane.
    register: int
    #: The item as it enters the adder, after dropped bits.
    item: int
    #: The register before the addition.
    before: int
    #: Register plus item, exactly.
    exact: int
    #: The register afterwards.
    after: int

    @property
    def event(self) -> str:
        return "" if self.after == self.exact else "overflow"


@dataclass(frozen=True)
class Output:
    """One output of a GEMM."""

    #: The accumulator's code.
    code: int
    #: The same chain with unlimited registers.
    unlimited: int
    #: Every addition in order of level, then of item.
    steps: tuple[Step, ...]
    altered: bool
    out_of_range: bool

    @property
    def transient(self) -> bool:
        return self.altered and not self.out_of_range


def register_of_items(level: LevelLike, n_items: int) -> list[int]:
    """Return, for each of n_items in order, the number of the register of this level that takes it."""
    if level.grouping == "all":
        return [0] * n_items
    assert level.count is not None  # every other grouping carries a count by construction
    if level.grouping == "lanes":
        return [t % level.count for t in range(n_items)]
    run = level.count if level.grouping == "terms" else max(1, -(-n_items // level.count))
    return [t // run for t in range(n_items)]


def run_level(
    index: int, level: LevelLike, items: Sequence[int], start: int, *, limited: bool
) -> tuple[list[int], list[Step]]:
    """Feed the items through one level. Return the codes that it emits and its additions."""
    takers = register_of_items(level, len(items))
    emitted = level.count if level.grouping == "lanes" else max(takers, default=-1) + 1
    registers = [start] * (emitted or 0)
    steps = []
    for item, taker in zip(items, takers, strict=True):
        if level.item is not None:
            item = round_shift(item, level.item.drop_bits, level.item.rounding)
        before = registers[taker]
        exact = before + item
        after = into_register(exact, level.register_format, level.overflow) if limited else exact
        registers[taker] = after
        steps.append(Step(index, taker, item, before, exact, after))
    return registers, steps


def run_chain(products: Sequence[int], levels: Sequence[LevelLike], c: int, *, limited: bool) -> tuple[int, list[Step]]:
    """Feed the exact products through every level. Return the accumulator's code and all additions."""
    items: Sequence[int] = products
    if not items:
        return c, []
    steps: list[Step] = []
    for index, level in enumerate(levels):
        start = c if index == len(levels) - 1 else 0
        items, added = run_level(index, level, items, start, limited=limited)
        steps += added
    return items[0], steps


def dot(a: Sequence[int], b: Sequence[int], levels: Sequence[LevelLike], c: int = 0) -> Output:
    """Return one output: the codes a[k] and b[k] multiplied and summed by the levels, starting at c."""
    products = [x * y for x, y in zip(a, b, strict=True)]
    code, steps = run_chain(products, levels, c, limited=True)
    unlimited, _ = run_chain(products, levels, c, limited=False)
    accumulator = levels[-1]
    out_of_range = False
    if accumulator.register_format is not None:
        lowest, highest = accumulator.register_format.rails(accumulator.overflow)
        out_of_range = not lowest <= unlimited <= highest
    return Output(code, unlimited, tuple(steps), altered=code != unlimited, out_of_range=out_of_range)
