"""Datapath -> integers for the kernels. The only place where a word becomes a number, and where ranges are proven.

Every level becomes a row of an int64 table (columns below). Ranges follow the numbers through the chain, so that
`fits32` says which lanes hold every intermediate sum, and an exact register that would need more than 63 bits
is refused before anything is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fqtsim.errors import InputError
from fqtsim.hw.spec import Datapath, Level
from fqtsim.words import Overflow, Rounding

# Columns of the table.
RUN, LANES, DROP, BASE, NEGATIVE, ODD, MODE, LOW, HIGH, BITS, UNSIGNED = range(11)
COLUMNS = 11
# Values of MODE.
EXACT, WRAP, CLAMP = 0, 1, 2


@dataclass(frozen=True)
class Range:
    """Every number from low to high."""

    low: int
    high: int

    def within(self, low: int, high: int) -> bool:
        return low <= self.low and self.high <= high

    def plus(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def times(self, count: int) -> Range:
        """The range of every partial sum of up to `count` numbers, starting at 0."""
        return Range(min(0, count * self.low), max(0, count * self.high))

    def fits_signed(self, bits: int) -> bool:
        return self.within(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)

    @property
    def magnitude(self) -> int:
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Lowered:
    """A datapath made ready for one K and one range of operands and start values."""

    #: One row of COLUMNS integers per level.
    table: np.ndarray[Any, Any]
    #: Per level, whether every number in it fits int32 lanes (or wraps there natively).
    fits32: tuple[bool, ...]
    #: The same with every register unlimited.
    unlimited_fits32: tuple[bool, ...]
    #: Range of the items that each level's registers take, bits dropped.
    items: tuple[Range, ...]
    #: Range of the result with every register unlimited, c included.
    unlimited: Range
    #: Range of a product.
    product: Range
    #: Ranges of the codes of a and b.
    operands: tuple[Range, Range]
    #: True where no register can change any sum: the result is the exact one.
    never_overflows: bool
    #: True where the result is the exact sum reduced modulo 2**bits of the accumulator, in any order.
    order_free_wrap: bool
    #: Total bits dropped on the way.
    dropped_bits: int

    @property
    def word_bits(self) -> int:
        """32 where lanes of int32 hold every intermediate number, else 64."""
        return 32 if all(self.fits32) else 64

    @property
    def accumulator(self) -> np.ndarray[Any, Any]:
        row: np.ndarray[Any, Any] = self.table[-1]
        return row


def product_range(a: Range, b: Range) -> Range:
    corners = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Range(min(corners), max(corners))


def rounding_terms(half: Any, mask: Any, rounding: Rounding) -> tuple[Any, Any, Any]:
    """Return (base, negative, odd): x / 2**drop rounded is (x + base + [x < 0] negative + [floor odd] odd) >> drop.

    half is 2**(drop - 1) and mask 2**drop - 1, integers or arrays of them.
    """
    return {
        Rounding.TOWARD_NEGATIVE: (0, 0, 0),
        Rounding.TOWARD_POSITIVE: (mask, 0, 0),
        Rounding.TOWARD_ZERO: (0, mask, 0),
        Rounding.AWAY_FROM_ZERO: (mask, -mask, 0),
        Rounding.TO_ODD: (mask, 0, -mask),
        Rounding.TIES_TO_POSITIVE: (half, 0, 0),
        Rounding.TIES_TO_NEGATIVE: (half - 1, 0, 0),
        Rounding.TIES_TO_AWAY: (half, -1, 0),
        Rounding.TIES_TO_ZERO: (half - 1, 1, 0),
        Rounding.TIES_TO_EVEN: (half - 1, 0, 1),
        Rounding.TIES_TO_ODD: (half, 0, -1),
    }[rounding]


def _row(level: Level, n_items: int) -> tuple[list[int], int, int]:
    """Return the table row, the number of items that one register takes at most, and how many codes come out."""
    lanes, run = 1, n_items
    if level.grouping == "lanes":
        lanes = level.count or 1
    elif level.grouping == "terms":
        run = min(level.count or 1, n_items)
    elif level.grouping == "parts":
        run = -(-n_items // (level.count or 1))
    drop, terms = 0, (0, 0, 0)
    if level.item is not None and level.item.drop_bits:
        drop = level.item.drop_bits
        terms = rounding_terms(1 << (drop - 1), (1 << drop) - 1, level.item.rounding)
    mode, low, high, bits, unsigned = EXACT, 0, 0, 64, 0
    register = level.register_format
    if register is not None:
        mode = WRAP if level.overflow is Overflow.WRAP else CLAMP
        low, high = register.rails(level.overflow)
        bits, unsigned = register.bits, int(not register.signed)
    takes = -(-n_items // lanes) if lanes > 1 else run
    emits = lanes if level.grouping == "lanes" else -(-n_items // run)
    stored_run = 0 if level.grouping == "lanes" else run
    return [stored_run, lanes, drop, *terms, mode, low, high, bits, unsigned], takes, emits


def _dropped(item: Range, drop: int) -> Range:
    return Range(item.low >> drop, -(-item.high >> drop))


def _held(sums: Range, row: Sequence[int]) -> Range:
    """The range of what a register holds, given the range of its unlimited partial sums."""
    if row[MODE] == EXACT or sums.within(row[LOW], row[HIGH]):
        return sums
    if row[MODE] == WRAP:
        return Range(row[LOW], row[HIGH])
    return Range(max(sums.low, row[LOW]), min(sums.high, row[HIGH])) if row[LOW] <= 0 <= row[HIGH] else sums


def lower(datapath: Datapath, k: int, a: Range, b: Range, c: Range) -> Lowered:
    """Make a datapath ready for K = k products of codes in the ranges a and b, starting within c.

    Raises InputError where an exact register, or the exact result, would need more than 63 bits for this K.
    """
    products = product_range(a, b)
    items = unlimited_items = products
    rows, taken, fits32, unlimited_fits32 = [], [], [], []
    n_items, never = max(k, 1), True
    last = len(datapath.levels) - 1
    for index, level in enumerate(datapath.levels):
        row, takes, n_items = _row(level, n_items)
        start = c if index == last else Range(0, 0)
        before_drop, unlimited_before_drop = items, unlimited_items
        _check_room_to_round(unlimited_items, row[DROP], index, k)
        items, unlimited_items = _dropped(items, row[DROP]), _dropped(unlimited_items, row[DROP])
        sums = items.times(takes).plus(start)
        unlimited = unlimited_items.times(takes).plus(start)
        _check_exact(row, sums, unlimited, index, k)
        held = _held(sums, row)
        never = never and (row[MODE] == EXACT or sums.within(row[LOW], row[HIGH]))
        fits32.append(_fits32(row, before_drop, items, held))
        unlimited_row = [*row[:MODE], EXACT, *row[MODE + 1 :]]
        unlimited_fits32.append(_fits32(unlimited_row, unlimited_before_drop, unlimited_items, unlimited))
        rows.append(row)
        taken.append(items)
        items, unlimited_items = held, unlimited
    table = np.array(rows, dtype=np.int64)
    return Lowered(
        table=table,
        fits32=tuple(fits32),
        unlimited_fits32=tuple(unlimited_fits32),
        items=tuple(taken),
        unlimited=unlimited_items,
        product=products,
        operands=(a, b),
        never_overflows=never and not datapath.dropped_bits,
        order_free_wrap=_order_free_wrap(table),
        dropped_bits=datapath.dropped_bits,
    )


def _check_exact(row: Sequence[int], sums: Range, unlimited: Range, index: int, k: int) -> None:
    if row[MODE] == EXACT and not sums.fits_signed(63):
        raise InputError(
            f"levels.{index}.register = exact: needs more than 63 bits for K = {k}; "
            f"use a register with an overflow word, or split K"
        )
    if not unlimited.fits_signed(64):
        raise InputError(f"K = {k}: the exact result needs more than 64 bits; split K")


def _check_room_to_round(unlimited: Range, drop: int, index: int, k: int) -> None:
    if drop and unlimited.magnitude + (1 << drop) >= 1 << 63:
        raise InputError(
            f"levels.{index}.item.drop_bits = {drop}: needs more than 63 bits for K = {k}; split K or drop fewer bits"
        )


def _fits32(row: Sequence[int], before_drop: Range, items: Range, held: Range) -> bool:
    biased = before_drop.magnitude + (1 << row[DROP])
    if biased >= 1 << 31 or not items.fits_signed(32):
        return False
    if row[MODE] != EXACT and not Range(row[LOW], row[HIGH]).fits_signed(32):
        return False  # the kernels compare with the rails, and shift by what a lane is wider, in the lane's type
    if row[MODE] == WRAP:
        return True
    return held.plus(items).fits_signed(32) and held.fits_signed(32)


def _order_free_wrap(table: np.ndarray[Any, Any]) -> bool:
    """A wrapping accumulator fed only by exact or at least as wide wrapping levels, with nothing dropped."""
    modes, bits = table[:, MODE], table[:, BITS]
    narrower = (modes == WRAP) & (bits < bits[-1])
    return bool(modes[-1] == WRAP and not (modes == CLAMP).any() and not narrower.any() and not table[:, DROP].any())


def without_overflow(table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the table of the same chain with every register unlimited."""
    unlimited = table.copy()
    unlimited[:, MODE] = EXACT
    return unlimited
