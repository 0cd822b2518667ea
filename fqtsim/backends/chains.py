"""Every addition of every output performed, by the fastest walk that a chain of levels allows (S4).

A chain runs as one of: a tile of one limited register (plans.py); a tile that holds the registers of all levels; for
lanes and for registers of many products, one such walk for each register, whose codes the levels above then take;
or, with numbers that int32 does not hold, strips of outputs (kernels/chain.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fqtsim.backends.base import Array
from fqtsim.backends.exact import (
    MOST_REGISTERS,
    PLAIN_LANE,
    Lane,
    TileJob,
    exact_product,
    run_chain,
    unlimited_dtype,
    without_repeats,
)
from fqtsim.backends.plans import raised, tile_plan
from fqtsim.hw.lower import (
    BASE,
    BITS,
    CLAMP,
    DROP,
    EXACT,
    HIGH,
    LANES,
    LOW,
    MODE,
    NEGATIVE,
    ODD,
    RUN,
    UNSIGNED,
    WRAP,
    Lowered,
    without_overflow,
)
from fqtsim.kernels import chain as strips
from fqtsim.kernels import chain_tile, threads
from fqtsim.kernels import gemm as kernels
from fqtsim.kernels import tile as tiles
from fqtsim.kernels.chain_tile import Form, Kind

MOST_PRODUCTS = 1024
"""Products of an item up to which they and the register above share a walk: a panel of them stays in a cache."""
SMALLEST_WALK = 1 << 18
"""Products from which a kernel of the chain's own kind is worth its compilation; below, strips of outputs will do."""
SMALLEST_PART = 1 << 14
"""Products from which a register of a level is worth a walk of its own."""
BLOCK = 1 << 20
"""Outputs whose registers are kept at once, where the registers of a level are walked one after another."""


def stepwise_codes(a: Array, b: Array, lowered: Lowered, start: Array | None) -> Array:
    """Perform every addition of every output and return the accumulators."""
    plan = tile_plan(lowered)
    if plan is None or plan.group > 1:
        codes = _codes_by_walks(a, b, lowered, start)
        if codes is not None:
            return codes
    if plan is None:
        return run_chain(a, b, start, lowered.table, lowered.word_bits)
    job = TileJob(plan.driver, a, b, start, plan.lane)
    job.advance(0, a.shape[1], plan.group, plan.low, plan.high)
    return job.result(np.int32)


def _codes_by_walks(a: Array, b: Array, lowered: Lowered, start: Array | None) -> Array | None:
    """Return the accumulators by tiles that hold the registers of all levels, or walk those of one level in turn."""
    if a.shape[0] * a.shape[1] * b.shape[1] < SMALLEST_WALK:
        return None
    simple = simplified(lowered)
    level = split_level(simple)
    if level is not None:
        pays = _pays(simple, level, (a.shape[0], a.shape[1], b.shape[1]))
        return _split(a, b, simple, start, level) if pays else None
    plan = chain_plan(simple)
    return None if plan is None else _walk(a, b, plan, start)[0]


def codes_and_unlimited(a: Array, b: Array, lowered: Lowered, start: Array | None) -> tuple[Array, Array]:
    """Return the accumulators and U, every addition performed: in one walk where only the accumulator is limited."""
    if lowered.dropped_bits and a.shape[0] * a.shape[1] * b.shape[1] >= SMALLEST_WALK:
        simple = simplified(lowered)
        plan = chain_plan(simple, twice=True) if split_level(simple) is None else None
        if plan is not None:
            return _walk(a, b, plan, start)
    return stepwise_codes(a, b, lowered, start), unlimited_result(a, b, lowered, start)


def unlimited_result(a: Array, b: Array, lowered: Lowered, start: Array | None, product: Array | None = None) -> Array:
    """Return U: the same chain with every register unlimited, from start values c; int32 where it fits.

    product: the exact product, where it is at hand; U takes its place.
    """
    if lowered.dropped_bits:
        unlimited = replace(lowered, table=without_overflow(lowered.table), fits32=lowered.unlimited_fits32)
        return stepwise_codes(a, b, unlimited, start)
    dtype = unlimited_dtype(lowered)
    total = exact_product(a, b, dtype) if product is None else product
    if start is None:
        return total.astype(dtype, copy=False)
    # In the result's own type: U fits it, and integers that wrap on the way come back.
    total = total.astype(dtype, copy=False)
    starts: Array = np.broadcast_to(without_repeats(start).astype(dtype), total.shape)
    threads.run(
        lambda first, last: np.add(total[first:last], starts[first:last], out=total[first:last]),
        threads.parts(*total.shape),
    )
    return total


def simplified(lowered: Lowered) -> Lowered:
    """Return the same chain with fewer levels, for lanes of int32.

    An exact register of one item hands it on. What an exact register has summed may as well come item by item where
    the register above drops no bits and is exact, or wraps: sums modulo 2**32, reduced further, do not depend on it.
    """
    rows, items, fits32 = [row.copy() for row in lowered.table], list(lowered.items), list(lowered.fits32)
    level = 0
    while level < len(rows) - 1:
        row, above = rows[level], rows[level + 1]
        plain = row[MODE] == EXACT and row[LANES] == 1 and row[RUN] > 0 and not above[DROP]
        hands_on = plain and row[RUN] == 1 and not row[DROP]
        merges = plain and above[MODE] in (EXACT, WRAP) and above[LANES] == 1 and above[RUN] > 0
        if not (hands_on or merges):
            level += 1
            continue
        if not hands_on:
            above[RUN] *= row[RUN]
            above[DROP : ODD + 1] = row[DROP : ODD + 1]
        fits32[level + 1] = fits32[level] and fits32[level + 1]
        del rows[level], items[level + 1], fits32[level]
    return replace(lowered, table=np.array(rows), items=tuple(items), fits32=tuple(fits32))


def split_level(lowered: Lowered) -> int | None:
    """Return the lowest level with lanes, or with a register of so many products that it needs a walk of its own."""
    products = 1
    for level, row in enumerate(lowered.table[:-1]):
        products *= int(row[RUN])
        if row[LANES] > 1 or row[RUN] == 0 or products > MOST_PRODUCTS:
            return level
    return None


def _pays(lowered: Lowered, level: int, shape: tuple[int, int, int]) -> bool:
    """Tell whether to walk the registers of a level: each has enough products, and those above find room."""
    (m, k, n), row = shape, lowered.table[level]
    walks = int(row[LANES]) if row[RUN] == 0 else -(-k // int(np.prod(lowered.table[: level + 1, RUN])))
    above = int(lowered.table[level + 1 :, LANES].sum()) * min(m, n)
    return all(lowered.fits32[: level + 1]) and walks * SMALLEST_PART <= m * k * n and above <= MOST_REGISTERS


class ChainPlan(NamedTuple):
    """How a tile performs a chain: which kernel, its parameters, how codes stand in lanes."""

    kind: Kind
    #: Products of a lowest register.
    group: int
    #: Words of an item of the accumulator.
    whole: int
    parameters: Array
    lane: Lane


def chain_plan(lowered: Lowered, twice: bool = False) -> ChainPlan | None:
    """Return how a tile performs this chain, or None where it cannot; twice: and U beside it."""
    dot, table, last = tiles.HAS_DOT, lowered.table, len(lowered.table) - 1
    if not (dot or tiles.HAS_MULTIPLY_ADD) or not all(codes.fits_signed(16) for codes in lowered.operands):
        return None
    if twice and not (all(lowered.unlimited_fits32) and (table[:last, MODE] == EXACT).all()):
        return None
    words = _words(lowered)
    group = int(table[0, RUN])
    lowest = group if words == "single" else -(-group // 2)
    spans = [1, *(lowest * int(run) for run in np.cumprod([1, *table[1:-1, RUN]]))][: len(table)]
    forms, parameters = [], np.zeros((len(table), chain_tile.PARAMETERS), np.int64)
    lane = PLAIN_LANE
    for level, row in enumerate(table):
        numbers = parameters[level]
        numbers[[chain_tile.SPAN, chain_tile.LOW, chain_tile.HIGH]] = spans[level], row[LOW], row[HIGH]
        numbers[chain_tile.DROP : chain_tile.ODD + 1] = row[[DROP, BASE, NEGATIVE, ODD]]
        numbers[chain_tile.SHIFT] = 32 - row[BITS]
        once = level < last and (spans[level + 1] == spans[level])
        wrap = "" if row[MODE] != WRAP or row[BITS] == 32 else "zero" if row[UNSIGNED] else "sign"
        clamp = "rails" if row[MODE] == CLAMP else ""
        if level == last and clamp and dot and (level > 0 or row[DROP]):
            lane, clamp = _scaled(lowered, numbers)
        rounding = bool(row[DROP]), bool(row[BASE]), _sign(row[NEGATIVE]), _sign(row[ODD])
        forms.append(Form(once, *rounding, clamp, wrap))
    # Lanes that clamp by themselves need no room beyond their rails.
    if not all(lowered.fits32[:last] if forms[-1].clamp.startswith("word") else lowered.fits32):
        return None
    return ChainPlan(Kind(tuple(forms), words, twice, dot), group, spans[-1], parameters, lane)


def _sign(bias: int) -> str:
    """Return how a kernel adds a bias (chain_tile.Form)."""
    return {0: "", 1: "+", -1: "-"}.get(int(bias), "more")


def _words(lowered: Lowered) -> str:
    """Return how products stand in words (kernels/chain_tile.py)."""
    row, product = lowered.table[0], lowered.product
    if row[DROP]:
        # A product with its bias fits int16, and one of two zeros is 0 whatever the rounding.
        return "short" if product.magnitude + (1 << int(row[DROP])) < 1 << 15 else "single"
    if row[MODE] != CLAMP:
        return "pairs"  # the register sees their sum
    # The first of two products cannot be changed by a register that holds it.
    two = row[RUN] == 2 and len(lowered.table) > 1 and product.within(int(row[LOW]), int(row[HIGH]))
    return "pairs" if two else "single"


def _scaled(lowered: Lowered, numbers: Array) -> tuple[Lane, str]:
    """Return how an accumulator stands in lanes whose own rails clamp it, and by what; the plain lane where none do.

    An item must fit int16, and so must the word 2**shift that moves it to the lane (docs/semantics.md, proof 5).
    """
    low, high, drop = (int(number) for number in lowered.accumulator[[LOW, HIGH, DROP]])
    shift = 32 - (high - low).bit_length()
    short = lowered.items[-1].fits_signed(16) and drop <= 14  # so what was dropped from fits int32 with its bias
    if not 0 <= shift <= 14 or not short or high >= 1 << 31:
        return PLAIN_LANE, "rails"
    offset, bottom, whole = raised(low, high, shift)
    numbers[chain_tile.UNIT], numbers[chain_tile.LOW] = 1 << shift, bottom << shift
    return Lane(offset, shift), "word" if whole else "word_above"


class ChainJob(TileJob):
    """One GEMM laid out for a tile of several levels; `unlimited` are lanes of U, or no room for them."""

    def __init__(self, plan: ChainPlan, a: Array, b: Array, start: Array | None) -> None:
        super().__init__(chain_tile.chain_driver(plan.kind), a, b, start, plan.lane)
        self.plan, self.start = plan, start
        self.unlimited = np.zeros(self.acc.shape if plan.kind.twice else (0, 0), np.int32)

    def walk(self) -> None:
        """Perform all additions."""
        along_columns, plan = not self.swapped, self.plan

        def part(first: int, end: int) -> None:
            self.driver.run(
                self.packed, self.right, along_columns, self.acc, self.unlimited,
                plan.whole, plan.parameters, (first, end),
            )  # fmt: skip

        work = self.packed.shape[0] * self.packed.shape[2] * self.driver.width * self.depth
        threads.run(part, threads.parts(self.panels, work // 16))

    def unlimited_result(self) -> Array:
        """Return U as (M, N)."""
        if not self.unlimited.size:
            return self.unlimited
        total = self.oriented(self.unlimited, np.int32, PLAIN_LANE)
        if self.start is not None:
            total += without_repeats(self.start).astype(np.int32)
        return total


def _walk(a: Array, b: Array, plan: ChainPlan, start: Array | None) -> tuple[Array, Array]:
    """Return the accumulators, and U where the plan has it."""
    if plan.kind.words != "single":
        a, b = kernels.paired(*_even_groups(a, b, plan.group))
    job = ChainJob(plan, a, b, start)
    job.walk()
    return job.result(np.int32), job.unlimited_result()


def _even_groups(a: Array, b: Array, group: int) -> tuple[Array, Array]:
    """Return operands with a zero behind every group of an odd number of products, so that no word spans two."""
    k = a.shape[1]
    if group % 2 == 0 or group >= k:
        return a, b
    places = np.arange(k) + np.arange(k) // group
    left, right = np.zeros((a.shape[0], places[-1] + 1), a.dtype), np.zeros((places[-1] + 1, b.shape[1]), b.dtype)
    left[:, places], right[places] = a, b
    return left, right


def _split(a: Array, b: Array, lowered: Lowered, start: Array | None, level: int) -> Array:
    """Walk each register of a level by itself, and let the levels above take their codes in order."""
    table = lowered.table
    lanes = int(table[level, LANES])
    below = table[: level + 1].copy()
    below[level, LANES], below[level, RUN] = 1, a.shape[1]
    part = replace(lowered, table=below, items=lowered.items[: level + 1], fits32=lowered.fits32[: level + 1])
    word = np.int32 if lowered.word_bits == 32 else np.int64
    span = int(np.prod(table[:level, RUN]))
    each = span * int(table[level, RUN])
    upper = table[level + 1 :]
    out = np.empty((a.shape[0], b.shape[1]), word)
    for rows, columns in _blocks(out.shape[0], out.shape[1], int(upper[:, LANES].sum())):
        left, right = a[rows], b[:, columns]
        block = None if start is None else start[rows, columns]
        registers = Registers(upper, block, (left.shape[0], right.shape[1]), word)
        for places in _registers_of(a.shape[1], lanes, span, each):
            some = np.ascontiguousarray(left[:, places]), np.ascontiguousarray(right[places])
            # A lane that no item reaches hands on its zero all the same.
            empty = not some[1].size
            codes = np.zeros(registers.shape, word) if empty else stepwise_codes(*some, part, None)
            registers.take(codes.astype(word, copy=False))
        out[rows, columns] = registers.accumulator()
    return out


def _blocks(m: int, n: int, registers: int) -> Iterator[tuple[slice, slice]]:
    """Yield blocks of the outputs, cut along the longer side, that have so many registers each."""
    short = min(m, n)
    size = max(1, min(max(256, BLOCK // short), MOST_REGISTERS // (registers * short)))
    if m >= n:
        yield from ((slice(i, i + size), slice(None)) for i in range(0, m, size))
    else:
        yield from ((slice(None), slice(j, j + size)) for j in range(0, n, size))


def _registers_of(k: int, lanes: int, span: int, each: int) -> Iterator[slice | Array]:
    """Yield the products that each register of a level takes, in the order in which the registers hand on.

    Items of `span` products alternate between lanes; without them, a register is full after `each` products.
    """
    if each:
        yield from (slice(first, first + each) for first in range(0, k, each))
    elif span == 1:
        yield from (slice(lane, None, lanes) for lane in range(lanes))
    else:
        places = np.arange(k)
        yield from (places[places // span % lanes == lane] for lane in range(lanes))


class Registers:
    """The registers of the levels above a walked one, for a block of outputs, by parts that threads take."""

    def __init__(self, table: Array, start: Array | None, shape: tuple[int, int], word: type) -> None:
        self.table, self.shape, self.word = np.ascontiguousarray(table), shape, word
        self.places = np.concatenate([[0], np.cumsum(table[:-1, LANES])])
        size = shape[0] * shape[1]
        self.parts = threads.parts(size)
        n_registers = int(table[:, LANES].sum())
        self.registers: list[Array] = [np.zeros((n_registers, last - first), word) for first, last in self.parts]
        self.counts = [np.zeros(len(table), np.int64) for _ in self.parts]
        if start is not None:
            values = np.broadcast_to(start, shape).reshape(-1)
            for registers, (first, last) in zip(self.registers, self.parts, strict=True):
                registers[self.places[-1]] = values[first:last]

    def take(self, codes: Array) -> None:
        """Take one item of every output; codes are overwritten."""
        items = codes.reshape(-1)
        self._run(lambda index, first, last: strips.push(
            0, self.table, self.places, self.registers[index], self.counts[index], items[first:last]))  # fmt: skip

    def accumulator(self) -> Array:
        """Empty the lower registers and return the accumulators."""
        self._run(lambda index, first, last: strips.flush(
            self.table, self.places, self.registers[index], self.counts[index], np.empty(last - first, self.word)
        ))  # fmt: skip
        return np.concatenate([registers[self.places[-1]] for registers in self.registers]).reshape(self.shape)

    def _run(self, function: Callable[[int, int, int], None]) -> None:
        index = {part: i for i, part in enumerate(self.parts)}
        threads.run(lambda first, last: function(index[first, last], first, last), self.parts)
