"""Exact sums of columns, sixteen at a time in vector registers (S5.3). LLVM IR: Numba keeps no totals in registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels.exact_sum import MAGNITUDE, NOT_FINITE, ROUNDER, ROUNDER_BITS
from fqtsim.kernels.tile import emit_loop

LANES = 16
HALF = LANES // 2
_INT32, _INT64, _FLOAT, _DOUBLE = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
_ONE = ir.Constant(_INT64, 1)
SHIFT = 40
"""Bits of a term: sums of up to 2**22 terms fit int64."""


def _vector(element: ir.Type, count: int) -> Any:
    return ir.VectorType(element, count)


def _all(kind: Any, number: Any) -> Any:
    return ir.Constant(kind, [number] * kind.count)


def _half(builder: Any, x: Any, half: int) -> Any:
    mask = ir.Constant(_vector(_INT32, HALF), list(range(half * HALF, (half + 1) * HALF)))
    return builder.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), mask)


def _joined(builder: Any, low: Any, high: Any) -> Any:
    return builder.shuffle_vector(low, high, ir.Constant(_vector(_INT32, LANES), list(range(LANES))))


def _power(builder: Any, exponents: Any) -> Any:
    """Return 2**exponent of int32 lanes, -1022..1023, as float64 lanes."""
    wide = builder.sext(exponents, _vector(_INT64, HALF))
    biased = builder.add(wide, _all(wide.type, 1023))
    return builder.bitcast(builder.shl(biased, _all(wide.type, 52)), _vector(_DOUBLE, HALF))


class _Columns:
    """Writes the IR for sixteen columns: addresses of a row's first column and of the next row."""

    def __init__(self, builder: Any, base: Any, pitch: Any, n_rows: Any) -> None:
        self.builder, self.base, self.pitch, self.n_rows = builder, base, pitch, n_rows

    def load(self, row: Any, element: ir.Type) -> Any:
        kind = _vector(element, LANES)
        place = self.builder.add(self.base, self.builder.mul(row, self.pitch))
        return self.builder.load(self.builder.inttoptr(place, kind.as_pointer()), align=4)

    def top(self) -> Any:
        """Return the largest magnitude pattern of each column."""
        builder = self.builder

        def raised(row: Any, values: list[Any]) -> list[Any]:
            bits = self.load(row, _INT32)
            bits = builder.and_(bits, _all(bits.type, MAGNITUDE))
            return [builder.select(builder.icmp_signed(">", bits, values[0]), bits, values[0])]

        (top,) = emit_loop(builder, self.n_rows, [_all(_vector(_INT32, LANES), 0)], raised, _ONE)
        return top

    def exponents(self, top: Any) -> Any:
        """Return e of S5.3: every magnitude of the column is below 2**e."""
        biased = self.builder.ashr(top, _all(top.type, 23))
        one = _all(top.type, 1)
        biased = self.builder.select(self.builder.icmp_signed(">", biased, one), biased, one)
        return self.builder.sub(biased, _all(top.type, 126))

    def totals(self, e: Any) -> list[Any]:
        """Return the int64 sums of rint(x * 2**(SHIFT - e)), in two halves."""
        builder = self.builder
        up = builder.sub(_all(e.type, SHIFT), e)
        scales = [_power(builder, _half(builder, up, half)) for half in (0, 1)]
        rounder, zero = _all(_vector(_DOUBLE, HALF), float(ROUNDER)), _all(_vector(_INT64, HALF), 0)

        def added(row: Any, totals: list[Any]) -> list[Any]:
            x = self.load(row, _FLOAT)
            terms = []
            for half, total in enumerate(totals):
                wide = builder.fpext(_half(builder, x, half), rounder.type)
                term = builder.fadd(builder.fmul(wide, scales[half]), rounder)
                terms.append(builder.add(total, builder.bitcast(term, zero.type)))
            return terms

        totals = emit_loop(builder, self.n_rows, [zero, zero], added, _ONE)
        # Every term came with the bits of the rounder; modulo 2**64 they are taken away at once.
        extra, extras = builder.mul(self.n_rows, ir.Constant(_INT64, ROUNDER_BITS)), zero
        for i in range(HALF):
            extras = builder.insert_element(extras, extra, ir.Constant(_INT32, i))
        return [builder.sub(total, extras) for total in totals]

    def sums(self) -> Any:
        """Return the sums rounded to float32; NaN where a term is not finite."""
        builder, top = self.builder, self.top()
        e = self.exponents(top)
        down, halves = builder.sub(e, _all(e.type, SHIFT)), []
        for half, total in enumerate(self.totals(e)):
            exact = builder.sitofp(total, _vector(_DOUBLE, HALF))
            value = builder.fmul(exact, _power(builder, _half(builder, down, half)))
            halves.append(builder.fptrunc(value, _vector(_FLOAT, HALF)))
        both = _joined(builder, *halves)
        broken = builder.icmp_signed(">=", top, _all(top.type, NOT_FINITE))
        return builder.select(broken, _all(both.type, float("nan")), both)


def _column_sums(_context: Any, rows: Any, pitch: Any, n_rows: Any, width: Any, out: Any) -> Any:
    """Write the exact sum of each column, rounded to float32, to out (width,); NaN where a term is not finite.

    rows and out are addresses of float32, pitch is in bytes, width a multiple of LANES, n_rows at most 2**22.
    """

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        start, step, count, columns, target = args

        def sixteen(c: Any, _values: list[Any]) -> list[Any]:
            offset = builder.mul(c, ir.Constant(_INT64, 4))
            sums = _Columns(builder, builder.add(start, offset), step, count).sums()
            place = builder.inttoptr(builder.add(target, offset), sums.type.as_pointer())
            builder.store(sums, place, align=4)
            return []

        emit_loop(builder, columns, [], sixteen, ir.Constant(_INT64, LANES))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


column_sums: Any = intrinsic(_column_sums)
