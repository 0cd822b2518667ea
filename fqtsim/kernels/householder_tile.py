"""The mixing of a group's rows, sixteen columns at a time in vector registers. LLVM IR: Numba keeps no totals there."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels.exact_sum import NOT_FINITE
from fqtsim.kernels.tile import INT64, emit_loop
from fqtsim.kernels.vectors import (
    DOUBLE,
    FLOAT,
    HALF,
    INT32,
    LANES,
    ONE,
    every,
    half_of,
    joined,
    keys,
    load,
    nearer,
    patterns,
    place,
    reduced,
    splat,
    store,
    vector,
    with_terms,
)

SHIFT = 40
"""Bits of a term: sums of up to 2**22 terms fit int64."""
_BIASED = 1023 - 126 + 52 - SHIFT
"""What the exponent field of M (kernels/vectors.py) is above max(1, top >> 23)."""


class _Columns:
    """Writes the IR for sixteen columns of a group, `offset` bytes from the start of each row."""

    def __init__(self, builder: Any, args: Any, offset: Any, divides: bool) -> None:
        self.builder, self.offset, self.divides = builder, offset, divides
        self.source, self.target, self.pitch, self.order, self.n_rows, _, self.sides, root, self.ends = args
        self.root = splat(builder, root)

    def at(self, base: Any, row: Any) -> Any:
        number = load(self.builder, place(self.builder, self.order, row, 8), INT64, 8)
        return self.builder.add(self.builder.add(base, self.builder.mul(number, self.pitch)), self.offset)

    def side(self, row: Any) -> Any:
        """Return the factor or the divisor of a row."""
        return splat(self.builder, load(self.builder, place(self.builder, self.sides, row, 4), FLOAT))

    def value(self, row: Any) -> Any:
        x = load(self.builder, self.at(self.source, row), vector(FLOAT))
        return x if self.divides else self.builder.fmul(x, self.side(row))

    def top(self) -> Any:
        """Return the largest magnitude pattern of each column."""

        def raised(row: Any, values: list[Any]) -> list[Any]:
            return [nearer(self.builder, ">", patterns(self.builder, self.value(row)), values[0])]

        (top,) = emit_loop(self.builder, self.n_rows, [every(vector(INT32), 0)], raised, ONE)
        return top

    def sums(self, top: Any) -> Any:
        """Return the exact sums rounded to float32, where every term is finite."""
        builder, wide, double = self.builder, vector(INT64, HALF), vector(DOUBLE, HALF)
        exponents = nearer(builder, ">", builder.ashr(top, every(top.type, 23)), every(top.type, 1))
        bits = []
        for half in (0, 1):
            field = builder.add(builder.zext(half_of(builder, exponents, half), wide), every(wide, _BIASED))
            bits.append(builder.add(builder.shl(field, every(wide, 52)), every(wide, 1 << 51)))
        binades = [builder.bitcast(one, double) for one in bits]

        def added(row: Any, totals: list[Any]) -> list[Any]:
            return with_terms(builder, self.value(row), binades, totals)

        totals = emit_loop(builder, self.n_rows, [every(wide, 0)] * 2, added, ONE)
        count, halves = splat(builder, self.n_rows, HALF), []
        for half, total in enumerate(totals):
            # Every term came with the bits of M; modulo 2**64 they are taken away at once.
            exact = builder.sitofp(builder.sub(total, builder.mul(bits[half], count)), double)
            unit = builder.sub(bits[half], every(wide, (52 << 52) + (1 << 51)))
            halves.append(builder.fptrunc(builder.fmul(exact, builder.bitcast(unit, double)), vector(FLOAT, HALF)))
        return joined(builder, *halves)

    def finish(self, row: Any, x: Any) -> None:
        """Write a mixed row's columns, divided where that is asked for; else keep its smallest and largest keys."""
        builder = self.builder
        if self.divides:
            store(builder, builder.fdiv(x, self.side(row)), self.at(self.target, row))
            return
        store(builder, x, self.at(self.target, row))
        found = keys(builder, x)
        for side, word in enumerate("<>"):
            own = builder.add(builder.shl(row, ONE), ir.Constant(INT64, side))
            kept = place(builder, self.ends, own, 4 * LANES)
            store(builder, nearer(builder, word, found, load(builder, kept, found.type)), kept)

    def mix(self) -> Any:
        """Mix all rows; return a magnitude pattern a column that is NOT_FINITE or above where a sum is not finite."""
        builder, top, first = self.builder, self.top(), ir.Constant(INT64, 0)
        sums = self.sums(top)
        mean = builder.fdiv(sums, self.root)
        away = builder.fsub(self.root, every(vector(FLOAT), 1.0))
        pull = builder.fdiv(builder.fsub(mean, self.value(first)), away)
        self.finish(first, mean)

        def follow(row: Any, _values: list[Any]) -> list[Any]:
            self.finish(row, builder.fsub(self.value(row), pull))
            return []

        emit_loop(builder, self.n_rows, [], follow, ONE, ONE)
        return nearer(builder, ">", top, patterns(builder, sums))


def _make(divides: bool) -> Any:
    """Build mix(source, target, pitch, order, n_rows, columns, sides, root, ends): whether every sum is finite.

    Addresses; row r lies order[r] * pitch bytes from either base; columns is a multiple of LANES, 2 <= n_rows <= 2**22.
    sides are float32 of each row of the group: divisors of the results, or factors of the values, and then ends
    (n_rows, 2, LANES) int32 are widened to the keys (kernels/ends.py) of the results. target may be source.
    """

    def mix(
        _context: Any, source: Any, target: Any, pitch: Any, order: Any, n_rows: Any, columns: Any, sides: Any,
        root: Any, ends: Any,
    ) -> Any:  # fmt: skip
        signature = types.boolean(*[types.int64] * 7, types.float32, types.int64)

        def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            def sixteen(c: Any, values: list[Any]) -> list[Any]:
                offset = builder.mul(c, ir.Constant(INT64, 4))
                return [nearer(builder, ">", _Columns(builder, args, offset, divides).mix(), values[0])]

            first, step = [every(vector(INT32), 0)], ir.Constant(INT64, LANES)
            (largest,) = emit_loop(builder, args[5], first, sixteen, step)
            return builder.icmp_signed("<", reduced(builder, "smax", largest), ir.Constant(INT32, NOT_FINITE))

        return signature, codegen

    return intrinsic(mix)


mix_columns, unmix_columns = _make(False), _make(True)
