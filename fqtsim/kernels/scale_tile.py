"""The epilogue of a direct convolution's channel straight from its sums, eight outputs at a time (S5.8).

LLVM IR: Numba would copy the sums of each row first, then read them for their extremes, then again to scale them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels.tile import INT64, emit_loop
from fqtsim.kernels.vectors import (
    DOUBLE,
    FLOAT,
    HALF,
    INT32,
    ONE,
    every,
    first_lanes,
    load,
    nearer,
    place,
    reduced,
    splat,
    store,
    store_some,
    vector,
)

_STEP = ir.Constant(INT64, HALF)
_ENDS: Any = types.UniTuple(types.int32, 2)  # type: ignore[no-untyped-call]


class _Channel:
    """Writes the IR: float32((acc + (base - zero * patch)) * scale), float64 inside; without patches zero is 0."""

    def __init__(self, builder: Any, numbers: tuple[Any, ...], has_patches: bool) -> None:
        self.builder, self.has_patches = builder, has_patches
        self.zero, self.base, self.scale = (splat(builder, number, HALF) for number in numbers)

    def scaled(self, acc: Any, patches: Any) -> Any:
        # Integers below 2**53 up to the last product, so only that and float32 round.
        builder, double, base = self.builder, vector(DOUBLE, HALF), self.base
        if self.has_patches:
            sums = builder.sitofp(load(builder, patches, acc.type), double)
            base = builder.fsub(base, builder.fmul(self.zero, sums))
        product = builder.fmul(builder.fadd(builder.sitofp(acc, double), base), self.scale)
        return builder.fptrunc(product, vector(FLOAT, HALF))

    def eight(self, mask: Any, bases: tuple[Any, Any, Any], column: Any, values: list[Any]) -> list[Any]:
        """Write eight outputs, those of a mask, and widen the extremes of the sums."""
        builder, kind = self.builder, vector(INT32, HALF)
        acc_place, patches, out = (place(builder, base, column, 4) for base in bases)
        acc = load(builder, acc_place, kind)
        result = self.scaled(acc, patches)
        if mask is None:
            store(builder, result, out)
            kept = [acc, acc]
        else:
            store_some(builder, result, out, mask)
            kept = [builder.select(mask, acc, every(kind, end)) for end in (2**31 - 1, -(2**31))]
        return [nearer(builder, word, *both) for word, *both in zip("<>", kept, values, strict=True)]


def _make(has_patches: bool) -> Any:
    """Build scale(acc, patches, out, rows, columns, pitch, zero, base, scale): smallest and largest sum.

    Addresses of int32 sums, rows `pitch` bytes apart, and of float32 outputs, rows one behind the other. Up to seven
    places behind a row are read.
    """

    def scale_rows(
        _context: Any, acc: Any, patches: Any, out: Any, rows: Any, columns: Any, pitch: Any, zero: Any, base: Any,
        scale: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            sums, extra, target, n_rows, n_columns, apart, *numbers = args
            channel = _Channel(builder, tuple(numbers), has_patches)
            rest = builder.srem(n_columns, _STEP)
            whole, mask = builder.sub(n_columns, rest), first_lanes(builder, rest, HALF)

            def row(y: Any, values: list[Any]) -> list[Any]:
                down = builder.mul(y, apart)
                written = builder.mul(builder.mul(y, n_columns), ir.Constant(INT64, 4))
                bases = builder.add(sums, down), builder.add(extra, down), builder.add(target, written)
                values = emit_loop(builder, whole, values, partial(channel.eight, None, bases), _STEP)
                return emit_loop(builder, n_columns, values, partial(channel.eight, mask, bases), _STEP, whole)

            first = [every(vector(INT32, HALF), end) for end in (2**31 - 1, -(2**31))]
            low, high = emit_loop(builder, n_rows, first, row, ONE)
            found = [reduced(builder, "smin", low), reduced(builder, "smax", high)]
            return context.make_tuple(builder, _ENDS, found)

        return _ENDS(*[types.int64] * 6, *[types.float64] * 3), codegen

    return intrinsic(scale_rows)


scale_rows, scale_rows_shifted = _make(False), _make(True)
