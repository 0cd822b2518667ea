"""LLVM IR for sixteen float32 lanes, and for the terms of exact sums (S5.3) of them.

With u = 2**(e - 40) and M = 1.5 * 2**52 * u, |x| < 2**e stays in the binade of M, whose numbers lie u apart: x + M
rounds x to a multiple of u, ties to even, and its bits are those of M plus that multiple.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fqtsim.kernels.exact_sum import MAGNITUDE
from fqtsim.kernels.tile import INT64

LANES = 16
HALF = LANES // 2
INT32, FLOAT, DOUBLE = ir.IntType(32), ir.FloatType(), ir.DoubleType()
ONE = ir.Constant(INT64, 1)


def vector(element: ir.Type, count: int = LANES) -> Any:
    """Return the type of `count` lanes."""
    return ir.VectorType(element, count)


def every(kind: Any, number: Any) -> Any:
    """Return a vector of one constant."""
    return ir.Constant(kind, [number] * kind.count)


def splat(builder: Any, number: Any, count: int = LANES) -> Any:
    """Return a vector of one value."""
    kind = vector(number.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(INT32, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), every(vector(INT32, count), 0))


def unpacked(builder: Any, values: Any) -> list[Any]:
    """Return the values of a tuple."""
    found: list[Any] = cgutils.unpack_tuple(builder, values)  # type: ignore[no-untyped-call]
    return found


def half_of(builder: Any, x: Any, half: int) -> Any:
    """Return the lower or the upper half of a vector."""
    mask = ir.Constant(vector(INT32, HALF), list(range(half * HALF, (half + 1) * HALF)))
    return builder.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), mask)


def joined(builder: Any, low: Any, high: Any) -> Any:
    """Return one vector of two halves."""
    return builder.shuffle_vector(low, high, ir.Constant(vector(INT32), list(range(LANES))))


def place(builder: Any, base: Any, index: Any, size: int) -> Any:
    """Return the address of element `index` of `size` bytes."""
    return builder.add(base, builder.mul(index, ir.Constant(INT64, size)))


def load(builder: Any, address: Any, kind: Any, align: int = 4) -> Any:
    """Return the value at an address."""
    return builder.load(builder.inttoptr(address, kind.as_pointer()), align=align)


def store(builder: Any, value: Any, address: Any) -> None:
    """Write a value to an address."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)


def first_lanes(builder: Any, count: Any, of: int = LANES) -> Any:
    """Return a mask of the first `count` lanes of so many."""
    numbers = ir.Constant(vector(INT64, of), list(range(of)))
    return builder.icmp_signed("<", numbers, splat(builder, count, of))


def load_some(builder: Any, address: Any, mask: Any) -> Any:
    """Return float32 lanes of an address, 0 outside a mask, where nothing is read."""
    kind, pointer = vector(FLOAT, mask.type.count), FLOAT.as_pointer()
    signature = ir.FunctionType(kind, [pointer, INT32, mask.type, kind])
    read = _named(builder, f"llvm.masked.load.v{kind.count}f32.p0", signature)
    return builder.call(read, [builder.inttoptr(address, pointer), ir.Constant(INT32, 4), mask, every(kind, 0.0)])


def store_some(builder: Any, value: Any, address: Any, mask: Any) -> None:
    """Write the float32 lanes inside a mask to an address."""
    pointer = FLOAT.as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [value.type, pointer, INT32, mask.type])
    write = _named(builder, f"llvm.masked.store.v{value.type.count}f32.p0", signature)
    builder.call(write, [value, builder.inttoptr(address, pointer), ir.Constant(INT32, 4), mask])


def _named(builder: Any, name: str, signature: Any) -> Any:
    """Return an intrinsic whose name says pointers in a way that llvmlite does not spell."""
    return builder.module.globals.get(name) or ir.Function(builder.module, signature, name)


def nearer(builder: Any, word: str, x: Any, y: Any) -> Any:
    """Return the smaller ("<") or the larger (">") integers."""
    return builder.select(builder.icmp_signed(word, x, y), x, y)


def patterns(builder: Any, x: Any) -> Any:
    """Return the magnitude patterns of float32 lanes."""
    bits = builder.bitcast(x, vector(INT32))
    return builder.and_(bits, every(bits.type, MAGNITUDE))


def keys(builder: Any, x: Any) -> Any:
    """Return float32 lanes as integers in the numbers' order (kernels/ends.py, `key`)."""
    bits = builder.bitcast(x, vector(INT32))
    sign = builder.ashr(bits, every(bits.type, 31))
    return builder.xor(bits, builder.and_(sign, every(bits.type, MAGNITUDE)))


def reduced(builder: Any, word: str, x: Any) -> Any:
    """Return what llvm.vector.reduce makes of integer lanes: "add", "smin" or "smax"."""
    kind = ir.FunctionType(x.type.element, [x.type])
    name = f"llvm.vector.reduce.{word}.v{x.type.count}i{x.type.element.width}"
    return builder.call(builder.module.declare_intrinsic(name, (), kind), [x])


def with_terms(builder: Any, x: Any, binades: list[Any], totals: list[Any]) -> list[Any]:
    """Return the int64 totals of either half with the bits of x + M added."""
    found = []
    for half, (binade, total) in enumerate(zip(binades, totals, strict=True)):
        term = builder.fadd(builder.fpext(half_of(builder, x, half), vector(DOUBLE, HALF)), binade)
        found.append(builder.add(total, builder.bitcast(term, total.type)))
    return found
