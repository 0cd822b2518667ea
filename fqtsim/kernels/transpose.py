"""Transposes 16 x 16 blocks of codes in vector registers, on their way into a packed panel.

LLVM IR, because Numba compiles a transposing copy to one load and one store a code, which for a GEMM with few outputs
a row takes longer than its products.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

EDGE = 16
_INT64 = ir.IntType(64)


def _transpose_block(_context: Any, source: Any, stride: Any, out: Any, out_stride: Any, code: Any, lane: Any) -> Any:
    """Write out[k, r] = source[r, k] for 16 rows of 16 codes: addresses and row strides in bytes.

    code and lane are any numbers of the two types.
    """
    signature = types.void(types.int64, types.int64, types.int64, types.int64, code, lane)

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        narrow, wide = (ir.VectorType(context.get_value_type(kind), EDGE) for kind in (code, lane))
        rows = [_load(builder, narrow, args[0], args[1], r) for r in range(EDGE)]
        for _ in range(4):  # after log2(16) rounds of interleaving row i with row i + 8, rows are columns
            pairs = zip(rows[: EDGE // 2], rows[EDGE // 2 :], strict=True)
            rows = [_interleaved(builder, x, y, half) for x, y in pairs for half in (0, 1)]
        for k, column in enumerate(rows):
            place = builder.inttoptr(_address(builder, args[2], args[3], k), wide.as_pointer())
            builder.store(_widened(builder, column, wide, code.signed), place, align=1)
        return context.get_dummy_value()

    return signature, codegen


transpose_block: Any = intrinsic(_transpose_block)


def _address(builder: Any, base: Any, stride: Any, index: int) -> Any:
    return builder.add(base, builder.mul(stride, ir.Constant(_INT64, index)))


def _load(builder: Any, kind: Any, base: Any, stride: Any, index: int) -> Any:
    return builder.load(builder.inttoptr(_address(builder, base, stride, index), kind.as_pointer()), align=1)


def _interleaved(builder: Any, x: Any, y: Any, half: int) -> Any:
    """Return x0 y0 x1 y1 ... of one half of both vectors."""
    first = half * EDGE // 2
    places = [i + side for i in range(first, first + EDGE // 2) for side in (0, EDGE)]
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), EDGE), places))


def _widened(builder: Any, codes: Any, kind: Any, signed: bool) -> Any:
    """Return the codes in the lanes' type, which holds them all."""
    if isinstance(kind.element, ir.FloatType):
        return builder.sitofp(codes, kind) if signed else builder.uitofp(codes, kind)
    if kind.element.width == codes.type.element.width:
        return codes
    if kind.element.width < codes.type.element.width:
        return builder.trunc(codes, kind)
    return builder.sext(codes, kind) if signed else builder.zext(codes, kind)
