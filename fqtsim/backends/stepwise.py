"""Every addition performed, no shortcut: Numba kernels for every datapath that the schema allows (S4)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fqtsim.backends import grouped
from fqtsim.backends.base import Array, Backend, Events, GemmResult, LevelTrace, code_dtype
from fqtsim.backends.chains import codes_and_unlimited
from fqtsim.backends.exact import operand_range, without_repeats
from fqtsim.errors import InputError
from fqtsim.hw.lower import DROP, EXACT, HIGH, LANES, LOW, MODE, RUN, Lowered, Range, lower
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import gemm as kernels
from fqtsim.kernels import threads
from fqtsim.kernels import trace as tracing
from fqtsim.kernels.ends import extremes


def start_values(c: Array | None, m: int, n: int) -> Array | None:
    """Return c as (M, N) int64, None where there is none; a row or a column of it may be a view that repeats."""
    if c is None:
        return None
    return np.broadcast_to(without_repeats(np.asarray(c)).astype(np.int64, copy=False), (m, n))


def prepare(a: Array, b: Array, datapath: Datapath, start: Array | None) -> Lowered:
    """Lower a datapath for these very operands: their own ranges decide the lanes."""
    c = Range(0, 0) if start is None else operand_range(start)
    return lower(datapath, a.shape[1], operand_range(a), operand_range(b), c)


def prepare_for_formats(k: int, datapath: Datapath, start: Array | None) -> Lowered | None:
    """Lower a datapath for any codes of its formats, without a look at these; None where an exact register refuses."""
    return _for_formats(datapath, k, Range(0, 0) if start is None else operand_range(start))


@lru_cache(maxsize=512)
def _for_formats(datapath: Datapath, k: int, c: Range) -> Lowered | None:
    forms = datapath.multiplier_format("a"), datapath.multiplier_format("b")
    left, right = (Range(form.minimum, form.maximum) for form in forms)
    try:
        return lower(datapath, k, left, right, c)
    except InputError:
        return None


def untouched(a: Array, b: Array, datapath: Datapath, start: Array | None, trace: bool) -> GemmResult:
    """Return the result where there is nothing to add: the start values."""
    lowered = prepare(a, b, datapath, start)
    codes = np.zeros((a.shape[0], b.shape[1]), code_dtype(datapath))
    if start is not None:
        codes[:] = start
    result = finish(codes, codes, lowered, code_dtype(datapath))
    return with_trace(result, a, b, lowered, start) if trace else result


def finish(codes: Array, unlimited: Array, lowered: Lowered, dtype: type, ends: Range | None = None) -> GemmResult:
    """Count the events and wrap up. codes may be unlimited itself, where nothing could overflow; ends: those of it."""
    if not codes.size:
        return GemmResult(codes.astype(dtype, copy=False), Events())
    low, high = rails(lowered)
    if codes is unlimited:
        minimum, maximum = (ends.low, ends.high) if ends is not None else extremes(codes)
        if low < minimum and maximum < high:
            return GemmResult(codes.astype(dtype, copy=False), Events(), minimum, maximum)
    word = np.promote_types(codes.dtype, unlimited.dtype)
    flat_codes, flat = codes.ravel().astype(word, copy=False), unlimited.ravel().astype(word, copy=False)

    def part(first: int, last: int) -> Array:
        counts = np.zeros(6, np.int64)
        kernels.count_events(flat_codes[first:last], flat[first:last], low, high, counts)
        return counts

    counts = np.stack(threads.run(part, threads.parts(codes.size)))
    altered, out_of_range, transient, at_rail = (int(count) for count in counts[:, [0, 1, 2, 5]].sum(axis=0))
    minimum, maximum = int(counts[:, 3].min()), int(counts[:, 4].max())
    events = Events(altered, out_of_range, transient)
    return GemmResult(codes.astype(dtype, copy=False), events, minimum, maximum, at_rail)


def finish_groups(
    codes: Array, unlimited: Array, lowered: Lowered, datapath: Datapath, shape: tuple[int, int, int]
) -> list[GemmResult]:
    """Return the result of each group of (G, M, N) = shape; codes may be unlimited itself."""
    dtype, each = code_dtype(datapath), codes.reshape(shape)
    if codes is unlimited:
        return [finish(one, one, lowered, dtype) for one in each]
    return [finish(one, u, lowered, dtype) for one, u in zip(each, unlimited.reshape(shape), strict=True)]


def rails(lowered: Lowered) -> tuple[int, int]:
    """Return the accumulator's rails; those of int64, which nothing reaches, for an exact one."""
    if lowered.accumulator[MODE] == EXACT:
        return -(1 << 63), (1 << 63) - 1
    return int(lowered.accumulator[LOW]), int(lowered.accumulator[HIGH])


class Stepwise(Backend):
    """Performs every addition with Numba."""

    name = "stepwise"

    @property
    def executor(self) -> str:
        return "numba"

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        start = start_values(c, a.shape[0], b.shape[1])
        if not (a.shape[0] and a.shape[1] and b.shape[1]):
            return untouched(a, b, datapath, start, trace)
        lowered = prepare(a, b, datapath, start)
        codes, unlimited = codes_and_unlimited(a, b, lowered, start)
        result = finish(codes, unlimited, lowered, code_dtype(datapath))
        return with_trace(result, a, b, lowered, start) if trace else result

    def gemm_groups(self, a: Array, b: Array, datapath: Datapath, trace: bool = False) -> list[GemmResult]:
        lowered = None if trace else grouped.lowered_groups(a, b, datapath)
        if lowered is None:
            return super().gemm_groups(a, b, datapath, trace)
        a, b = grouped.carriers(a, b)
        unlimited = grouped.unlimited(a, b, lowered, grouped.sums(a, b)[0])
        codes = grouped.chain(a, b, np.arange(unlimited.size), lowered.table, lowered.word_bits)
        return finish_groups(codes, unlimited, lowered, datapath, (len(a), a.shape[1], b.shape[2]))


MAX_TRACE_ITEMS = 1 << 27


def with_trace(result: GemmResult, a: Array, b: Array, lowered: Lowered, start: Array | None) -> GemmResult:
    """Return the result with every level's statistics and registers. Raises InputError beyond 2**27 products."""
    m, n, k = a.shape[0], b.shape[1], a.shape[1]
    if m * n * k > MAX_TRACE_ITEMS:
        raise InputError(f"trace = True: holds all {m * n * k} products; at most {MAX_TRACE_ITEMS}; trace a part")
    items = np.empty((m, n, k), np.int64)
    tracing.trace_products(np.ascontiguousarray(a), np.ascontiguousarray(b), items)
    levels = []
    for index, row in enumerate(lowered.table):
        last, n_items = index == len(lowered.table) - 1, items.shape[2]
        emitted = -(-n_items // int(row[RUN])) if row[RUN] else int(row[LANES]) * (n_items > 0)
        registers = np.zeros((m, n, 1 if last else emitted), np.int64)
        if last and start is not None:
            registers[:, :, 0] = start
        statistics = np.array([np.iinfo(np.int64).max, np.iinfo(np.int64).min, 0, 0], np.int64)
        # Bits are dropped in place, and the items of this level are the registers that the level below reports.
        tracing.trace_level(items.copy() if row[DROP] else items, row, registers, statistics)
        if not items.size:
            statistics[:] = 0
        minimum, maximum, additions, overflows = (int(value) for value in statistics)
        levels.append(LevelTrace(minimum, maximum, additions, overflows, registers))
        items = registers
    return GemmResult(result.codes, result.events, result.minimum, result.maximum, result.at_rail, trace=tuple(levels))
