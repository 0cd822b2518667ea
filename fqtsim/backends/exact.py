"""The exact product of integer matrices, computed by Numba: what U is made of, and what order-free datapaths reduce."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fqtsim.backends.base import Array
from fqtsim.backends.byte_products import SMALLEST, byte_product, pays
from fqtsim.hw.lower import (
    BITS,
    COLUMNS,
    EXACT,
    HIGH,
    LANES,
    LOW,
    MODE,
    RUN,
    UNSIGNED,
    Lowered,
    Range,
)
from fqtsim.kernels import gemm as kernels
from fqtsim.kernels import threads
from fqtsim.kernels import tile as tiles
from fqtsim.kernels.chain import STRIP, chain_rows
from fqtsim.kernels.ends import extremes

MOST_REGISTERS = 1 << 23
"""Registers of a strip: 64 MiB a thread, however many lanes a datapath has."""

DOUBLE_EXACT_LIMIT = 1 << 53
"""Integers up to this magnitude are float64 numbers, so sums that stay below it are exact in any order."""

FLOAT_EXACT_LIMIT = 1 << 24
"""Integers up to this magnitude are float32 numbers, so sums that stay below it are exact in any order."""


def without_repeats(x: Array) -> Array:
    """Return an array with every axis that only repeats its first element cut to that."""
    return x[tuple(slice(0, 1) if step == 0 else slice(None) for step in x.strides)]


def operand_range(codes: Array) -> Range:
    """Return the smallest and largest code; 0 and 0 where there is none."""
    if not codes.size:
        return Range(0, 0)
    codes = without_repeats(codes)
    flat = codes.ravel() if codes.flags.c_contiguous else codes.T.ravel()
    return Range(*extremes(flat))


class Lane(NamedTuple):
    """How codes stand in lanes: an accumulator is (code + offset) * 2**shift, plus what an arithmetic shift drops."""

    offset: int = 0
    shift: int = 0
    #: How far codes are shifted in their words of two int16, both operands together, and how far each may be.
    in_words: int = 0
    a_room: int = 0
    b_room: int = 0
    #: Whether words have their code twice, which doubles the product once more.
    doubled: bool = False

    def shifts(self, swapped: bool) -> tuple[int, int]:
        """Return how far the left and the right operand are shifted: the left one, packed once, as far as it goes."""
        left = min(self.b_room if swapped else self.a_room, self.in_words)
        return left, self.in_words - left


PLAIN_LANE = Lane()


class TileJob:
    """One GEMM laid out for a driver: packed left operand, padded accumulators, orientation."""

    def __init__(self, driver: kernels.Driver, a: Array, b: Array, c: Array | None, lane: Lane = PLAIN_LANE) -> None:
        m, n = a.shape[0], b.shape[1]
        self.driver, self.lane, self.swapped = driver, lane, m > n
        # The longer of M and N lies along the lanes; the other one is packed whole.
        self.left, self.right = (b, a) if self.swapped else (a, b)
        self.size = (n, m) if self.swapped else (m, n)
        rows, width = driver.tile.rows, driver.width
        tiles, self.panels = -(-self.size[0] // rows), -(-self.size[1] // width)
        self.packed = np.empty((tiles, a.shape[1], rows), driver.dtype)
        threads.run(
            lambda first, last: kernels.pack_tiles(self.left, self.swapped, self.packed, first, last),
            threads.parts(tiles, a.shape[1] * rows),
        )
        left_shift, self.right_shift = lane.shifts(self.swapped)
        driver.convert(self.packed, left_shift, lane.doubled)
        self.acc = np.full((tiles * rows, self.panels * width), lane.offset << lane.shift, driver.dtype)
        if c is not None:
            self._start(without_repeats(c.T if self.swapped else c))

    def _start(self, start: Array) -> None:
        lane = self.lane
        if start.size < self.size[0] * self.size[1]:  # a row, a column or a number
            lanes = (start + lane.offset) << lane.shift
            self.acc[: self.size[0], : self.size[1]] = lanes.astype(self.driver.dtype)
        else:
            threads.run(
                lambda first, last: kernels.codes_to_lanes(start, lane.offset, lane.shift, self.acc, first, last),
                threads.parts(*start.shape),
            )

    def advance(self, k_first: int, k_end: int, group: int, low: int, high: int) -> None:
        lane = self.driver.dtype
        along_columns = not self.swapped

        def part(first: int, end: int) -> None:
            self.driver.run(
                self.packed, self.right, along_columns, self.acc,
                (k_first, k_end), group, lane(low), lane(high), (first, end), self.right_shift, self.lane.doubled,
            )  # fmt: skip

        work = self.packed.shape[0] * self.packed.shape[2] * self.driver.width * (k_end - k_first)
        threads.run(part, threads.parts(self.panels, work // 16))

    @property
    def depth(self) -> int:
        """Products, or words of two, of an output."""
        return int(self.packed.shape[1])

    def result(self, dtype: type) -> Array:
        """Return the accumulators as (M, N)."""
        return self.oriented(self.acc, dtype, self.lane)

    def oriented(self, padded: Array, dtype: type, lane: Lane) -> Array:
        """Return an array laid out like the accumulators as (M, N)."""
        block = padded[: self.size[0], : self.size[1]]
        block = block.T if self.swapped else block
        codes: Array = np.empty(block.shape, dtype)
        if padded.dtype == np.float32 or codes.dtype != np.int32:
            write, source = kernels.lanes_to_codes, block
        else:
            write, source = kernels.int_columns_to_codes if self.swapped else kernels.int_rows_to_codes, padded
        threads.run(
            lambda first, last: write(source, lane.offset, lane.shift, codes, first, last),
            threads.parts(*block.shape),
        )
        return codes


def subset_limit(lowered: Lowered) -> int:
    """Return the largest magnitude that every register of the chain holds; 0 where the bound does not apply.

    Dropped bits change the items, and an unsigned register must not see a negative partial sum.
    """
    limited = lowered.table[lowered.table[:, MODE] != EXACT]
    low, high = limited[:, LOW], limited[:, HIGH]
    if lowered.dropped_bits or (low.max() >= 0 and lowered.product.low < 0):
        return 0
    # With no negative product an unsigned register's lower rail cannot be passed, a signed one's even less.
    rails = high if lowered.product.low >= 0 else np.minimum(high, -low)
    return int(rails.min())


def unlimited_dtype(lowered: Lowered) -> type:
    """Return int32 where U fits it, else int64."""
    return np.int32 if lowered.unlimited.fits_signed(32) else np.int64


def code_range(codes: Array) -> Range:
    """Return a range that holds the codes: that of their type where it is of one byte."""
    if codes.dtype.itemsize > 1 or not codes.size:
        return operand_range(codes)
    ends = np.iinfo(codes.dtype)
    return Range(int(ends.min), int(ends.max))


def exact_product(a: Array, b: Array, dtype: type) -> Array:
    """Return a (M, K) times b (K, N), exactly; the caller has bounded the result to dtype."""
    shape = (a.shape[0], b.shape[1])
    ranges = code_range(a), code_range(b)
    largest = ranges[0].magnitude * ranges[1].magnitude
    if not largest:
        return np.zeros(shape, dtype)
    if a.shape[0] * a.shape[1] * b.shape[1] < SMALLEST and largest * a.shape[1] < DOUBLE_EXACT_LIMIT:
        product = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
        return product.astype(dtype, copy=False)  # wraps as the kernels do, where the caller takes U modulo 2**32
    of_bytes = _product_of_bytes(a, b, ranges, dtype)
    if of_bytes is not None:
        return of_bytes
    run = ((1 << 31) - 1) // (2 * largest)
    if tiles.HAS_DOT and run and all(codes.fits_signed(16) for codes in ranges):
        job = TileJob(kernels.DOT_PAIRS, *kernels.paired(a, b), None)
    else:
        run = FLOAT_EXACT_LIMIT // largest
        if run < 32:
            return run_chain(a, b, None, _exact_table(a.shape[1]), 64).astype(dtype, copy=False)
        job = TileJob(kernels.FLOAT_EXACT, a, b, None)
    if job.depth <= run:
        job.advance(0, job.depth, 1, 0, 0)
        return job.result(dtype)
    total: Array = np.zeros(job.acc.shape, dtype)
    for k in range(0, job.depth, run):
        job.advance(k, min(k + run, job.depth), 1, 0, 0)
        kernels.add_block(total, job.acc)
    return job.oriented(total, dtype, PLAIN_LANE)


def _product_of_bytes(a: Array, b: Array, ranges: tuple[Range, Range], dtype: type) -> Array | None:
    """Return the exact product where the codes of either operand span a byte."""
    if not pays(a, b):
        return None
    # Sums that wrap on the way come back where the result fits.
    largest = ranges[0].magnitude * ranges[1].magnitude
    run = a.shape[1] if dtype is np.int32 else max(1, ((1 << 31) - 1) // largest)
    total: Array | None = None
    for k in range(0, a.shape[1], run):
        part = byte_product(a[:, k : k + run], b[k : k + run], ranges)
        if part is None:  # as for the first part, so for all
            return None
        total = part.total.astype(dtype, copy=False) if total is None else total + part.total
    return total


def _exact_table(k: int) -> Array:
    table = np.zeros((1, COLUMNS), np.int64)
    table[0, [RUN, LANES, MODE]] = k, 1, EXACT
    return table


def run_chain(a: Array, b: Array, start: Array | None, table: Array, word_bits: int) -> Array:
    """Run the chain kernel from the start values, in threads over rows."""
    word = np.int32 if word_bits == 32 else np.int64
    out = np.zeros((a.shape[0], b.shape[1]), word) if start is None else np.array(start, dtype=word, order="C")
    b = np.ascontiguousarray(b, dtype=word)
    n_registers = int(table[:, LANES].sum())
    strip = min(STRIP, max(1, MOST_REGISTERS // n_registers))

    def part(first: int, end: int) -> None:
        chain_rows(a, b, out, table, np.empty((n_registers, strip), word), first, end)

    threads.run(part, threads.parts(a.shape[0], a.shape[1] * b.shape[1]))
    return out


def wrap_codes(values: Array, lowered: Lowered) -> Array:
    """Reduce integers into the wrapping accumulator of a lowered datapath."""
    accumulator = lowered.accumulator
    if lowered.unlimited.within(int(accumulator[LOW]), int(accumulator[HIGH])):
        return values
    return reduced(values, lowered)


def reduced(values: Array, lowered: Lowered) -> Array:
    """Return integers, exact or modulo 2**32 already, modulo 2**bits of an accumulator that wraps."""
    accumulator = lowered.accumulator
    if accumulator[BITS] == 32 and not accumulator[UNSIGNED]:
        return values.astype(np.int32, copy=False)  # the cast wraps
    values = values.astype(np.int64, copy=False)
    shift = np.int64(64 - accumulator[BITS])
    if accumulator[UNSIGNED]:
        return values & np.int64((1 << int(accumulator[BITS])) - 1)
    return (values << shift) >> shift
