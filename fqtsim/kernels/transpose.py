"""Moves codes into a packed panel by whole vectors: 16 x 16 blocks transposed, or 16 of a row as they stand.

LLVM IR, because Numba compiles such copies to one load and one store a code, which for a GEMM with few outputs
a row takes longer than its products. Addresses are numbers: taking one from a slice counts references, which costs as
much as a block.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

EDGE = 16
CACHE_LINE = 64
NEAR = 4096
"""Bytes between rows up to which the next block of rows is asked for ahead of time; beyond, the next codes of a row."""
_INT8, _INT32, _INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def prefetch(builder: Any, place: Any, size: int = 1) -> None:
    """Ask for the cache lines of `size` bytes; an address that nothing is at does no harm."""
    name, pointer = "llvm.prefetch.p0", _INT8.as_pointer()
    ask = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(ir.VoidType(), [pointer, _INT32, _INT32, _INT32]), name
    )
    read, second_level, data = (ir.Constant(_INT32, number) for number in (0, 2, 1))
    for line in range(0, size, CACHE_LINE):
        at = builder.inttoptr(builder.add(place, ir.Constant(_INT64, line)), pointer)
        builder.call(ask, [at, read, second_level, data])


def _transposed(n_rows: int) -> Any:
    """Build transpose(source, stride, ahead, out, out_stride, code, lane): out[k, r] = source[r, k] of 16 codes a row.

    Addresses and strides in bytes; of out, 16 // n_rows rows lie together. What is `ahead` bytes behind the codes is
    asked for. code and lane are any numbers of the two types.
    """

    def transpose(
        _context: Any, source: Any, stride: Any, ahead: Any, out: Any, out_stride: Any, code: Any, lane: Any
    ) -> Any:
        signature = types.void(types.int64, types.int64, types.int64, types.int64, types.int64, code, lane)

        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            narrow, wide = (ir.VectorType(context.get_value_type(kind), EDGE) for kind in (code, lane))
            rows = [_load(builder, narrow, args[0], args[1], r) for r in range(n_rows)]
            for r in range(n_rows):
                prefetch(builder, builder.add(_address(builder, args[0], args[1], r), args[2]))
            half = n_rows // 2
            for _ in range(n_rows.bit_length() - 1):  # after log2 rounds of interleaving rows half of them apart
                pairs = zip(rows[:half], rows[half:], strict=True)
                rows = [interleaved(builder, x, y, side) for x, y in pairs for side in (0, 1)]
            for i, columns in enumerate(rows):
                place = builder.inttoptr(_address(builder, args[3], args[4], i * EDGE // n_rows), wide.as_pointer())
                builder.store(_widened(builder, columns, wide, code.signed), place, align=1)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(transpose)


def _widened_row(count: int) -> Any:
    """Build widen(source, out, blocks, code, lane): blocks of `count` codes of a row in the lanes' type.

    Addresses; code and lane are any numbers of the two types.
    """

    def widen(_context: Any, source: Any, out: Any, blocks: Any, code: Any, lane: Any) -> Any:
        signature = types.void(types.int64, types.int64, types.int64, code, lane)

        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            narrow, wide = (ir.VectorType(context.get_value_type(kind), count) for kind in (code, lane))
            steps = [ir.Constant(_INT64, count * kind.bitwidth // 8) for kind in (code, lane)]
            with cgutils.for_range(builder, args[2]) as loop:
                places = [builder.add(at, builder.mul(loop.index, step)) for at, step in zip(args, steps, strict=False)]
                codes = builder.load(builder.inttoptr(places[0], narrow.as_pointer()), align=1)
                target = builder.inttoptr(places[1], wide.as_pointer())
                builder.store(_widened(builder, codes, wide, code.signed), target, align=1)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(widen)


transpose_block, transpose_half = _transposed(EDGE), _transposed(EDGE // 2)
widen_row, widen_half = _widened_row(EDGE), _widened_row(EDGE // 2)


def _address(builder: Any, base: Any, stride: Any, index: int) -> Any:
    return builder.add(base, builder.mul(stride, ir.Constant(_INT64, index)))


def _load(builder: Any, kind: Any, base: Any, stride: Any, index: int) -> Any:
    return builder.load(builder.inttoptr(_address(builder, base, stride, index), kind.as_pointer()), align=1)


def interleaved(builder: Any, x: Any, y: Any, half: int) -> Any:
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
