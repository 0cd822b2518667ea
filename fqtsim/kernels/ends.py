"""The smallest and largest of integers, and float32 patterns as integers in the numbers' order."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels.jit import kernel
from fqtsim.kernels.threads import parts, run
from fqtsim.kernels.tile import INT64, emit_loop

_BYTES, _AT_ONCE = 64, 4
"""Bytes of a vector, and vectors that are compared side by side."""
_BLOCK = _BYTES * _AT_ONCE


def _vector_ends(_context: Any, place: Any, blocks: Any, code: Any) -> Any:
    """Return the smallest and the largest of at least one block of vectors at an address.

    LLVM IR: Numba compares integers of less than 32 bits one by one. code is any number of their type.
    """

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        kind = ir.VectorType(context.get_value_type(code), 8 * _BYTES // code.bitwidth)
        sign = "signed" if code.signed else "unsigned"

        def at(address: Any, offset: int) -> Any:
            return builder.inttoptr(builder.add(address, ir.Constant(INT64, offset)), kind.as_pointer())

        def nearer(word: str, one: Any, other: Any) -> Any:
            return builder.select(getattr(builder, f"icmp_{sign}")(word, one, other), one, other)

        def block(index: Any, values: list[Any]) -> list[Any]:
            start = builder.add(args[0], builder.mul(index, ir.Constant(INT64, _BLOCK)))
            codes = [builder.load(at(start, _BYTES * v), align=1) for v in range(_AT_ONCE)]
            return [nearer("<>"[i % 2], values[i], codes[i // 2]) for i in range(2 * _AT_ONCE)]

        first = builder.load(at(args[0], 0), align=1)
        last = emit_loop(builder, args[1], [first] * (2 * _AT_ONCE), block, ir.Constant(INT64, 1))
        both = []
        for i, word in enumerate("<>"):
            result = last[i]
            for other in last[i + 2 :: 2]:
                result = nearer(word, result, other)
            name = f"llvm.vector.reduce.{sign[0]}{('min', 'max')[i]}.v{kind.count}i{kind.element.width}"
            whole = builder.module.declare_intrinsic(name, (), ir.FunctionType(kind.element, [kind]))
            both.append(builder.call(whole, [result]))
        return context.make_tuple(builder, pair, both)

    pair: Any = types.UniTuple(code, 2)  # type: ignore[no-untyped-call]
    return pair(types.int64, types.int64, code), codegen


_in_vectors: Any = intrinsic(_vector_ends)


@kernel
def ends(codes: Any) -> Any:
    """Return the smallest and largest of flat contiguous integers, at least one."""
    low, high = codes[0], codes[0]
    blocks = codes.size * codes.itemsize // _BLOCK
    if blocks:
        low, high = _in_vectors(codes.ctypes.data, blocks, low)
    for i in range(blocks * _BLOCK // codes.itemsize, codes.size):
        low, high = min(low, codes[i]), max(high, codes[i])
    return low, high


FEW = 1 << 16
"""Codes up to which NumPy finds them as fast, without a kernel that a first GEMM would wait for."""


def extremes(codes: Any) -> tuple[int, int]:
    """Return the smallest and largest of contiguous integers, at least one."""
    flat = codes.ravel()
    if flat.size <= FEW:
        return int(flat.min()), int(flat.max())
    found = run(lambda first, last: ends(flat[first:last]), parts(flat.size, quick=True))
    return min(int(low) for low, _ in found), max(int(high) for _, high in found)


@kernel
def key(bits: Any) -> Any:
    """Return the int32 view of a float32 number as an integer in the numbers' order; its own inverse."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


@kernel
def widen(bits: Any, least: Any, greatest: Any) -> Any:
    """Return two keys, widened to hold those of the int32 views of float32 numbers."""
    for i in range(bits.size):
        one = key(bits[i])
        least, greatest = min(least, one), max(greatest, one)
    return least, greatest


LEAST, GREATEST = np.int32(2147483647), np.int32(-2147483648)
"""What `widen` starts from."""


def from_keys(keys: Any) -> tuple[Any, Any]:
    """Return the float32 numbers, zeros as +0, of least and greatest keys (N, 2)."""
    values = (keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(np.float32) + np.float32(0)
    return values[:, 0], values[:, 1]
