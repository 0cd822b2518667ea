"""The innermost loop: a tile of accumulators kept in vector registers over a run of k.

LLVM IR, because Numba cannot be told to keep a tile of vectors in registers. One lane is one output, so the order of
k is untouched. Float32 lanes are used only where every number is an integer that float32 holds exactly
(backends/stepwise.py chooses them and has the proof), so that the FMA unit does integer arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_FEATURES = llvmlite.binding.get_host_cpu_features()
_WIDE = bool(_FEATURES.get("avx512f", False))
VECTOR = 64 if _WIDE else 32  # bytes
HAS_DOT = bool(_FEATURES.get("avx512vnni" if _WIDE else "avxvnni", False))
"""Whether one instruction adds two 16-bit products to a 32-bit lane, wrapping or saturating (VPDPWSSD, VPDPWSSDS)."""
HAS_MULTIPLY_ADD = bool(_FEATURES.get("avx512bw" if _WIDE else "avx2", False))
"""Whether one instruction forms the sums of two 16-bit products (VPMADDWD)."""


def lanes(dtype: Any) -> int:
    """Return how many lanes of a NumPy type a vector register has."""
    return VECTOR // int(np.dtype(dtype).itemsize)


class Tile(NamedTuple):
    """Shape of a tile: `rows` x (`vectors` * lanes) accumulators."""

    rows: int
    vectors: int


PLAIN = Tile(8, 3) if _WIDE else Tile(3, 4)
GROUPED = Tile(3, 4) if _WIDE else Tile(3, 2)

INT64 = ir.IntType(64)


def _make(element: ir.Type, tile: Tile, *, grouped: bool, mode: str) -> Any:
    """Build tile(acc, stride, a, b, n_k, group, low, high): addresses, the row stride of acc in bytes, rails.

    a is packed [k][row], b is packed [k][vector*lanes], acc is read, advanced over n_k products and written.
    grouped: `group` products are summed exactly, then the sum is one item; else each product is an item.
    mode: "exact" (or native wrap at the lane's width), "clamp" to low..high, "sign_wrap" and "zero_wrap" keep
    (lane width - low) bits by shifting low bits up and down. "saturate" clamps at the lane's own rails (int16 only),
    "saturate_above" at low and at the lane's upper one. The same two behind "dot_", and "dot_wrap", take words of two
    int16, whose two products they add to an int32 lane at once (needs HAS_DOT).
    """
    scalar: Any = types.float32 if isinstance(element, ir.FloatType) else getattr(types, f"int{element.width}")

    @intrinsic
    def tile_kernel(
        _context: Any, acc: Any, stride: Any, a: Any, b: Any, n_k: Any, group: Any, low: Any, high: Any
    ) -> Any:
        signature = types.void(*[types.int64] * 6, scalar, scalar)

        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            Emitter(builder, element, tile, grouped, mode).emit(*args)
            return context.get_dummy_value()

        return signature, codegen

    return tile_kernel


def emit_loop(builder: Any, n: Any, first: list[Any], body: Any, step: Any, start: Any = None) -> list[Any]:
    """Emit `for i in range(start, n, step)` with values carried in registers; return the last ones.

    first and body(i, values) give the values at first and after each round; start is 0 where there is none.
    """
    entry, head = builder.block, builder.append_basic_block("head")
    inside, done = builder.append_basic_block("inside"), builder.append_basic_block("done")
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(INT64)
    values = [builder.phi(value.type) for value in first]
    builder.cbranch(builder.icmp_signed("<", index, n), inside, done)
    builder.position_at_end(inside)
    advanced = body(index, values)
    back = builder.block
    index.add_incoming(start if start is not None else ir.Constant(INT64, 0), entry)
    index.add_incoming(builder.add(index, step), back)
    builder.branch(head)
    for phi, value, new in zip(values, first, advanced, strict=True):
        phi.add_incoming(value, entry)
        phi.add_incoming(new, back)
    builder.position_at_end(done)
    return values


class Emitter:
    """Writes the IR of a tile kernel at the builder's position; kernels/correlate_tile.py has one of its own."""

    def __init__(self, builder: Any, element: ir.Type, tile: Tile, grouped: bool, mode: str) -> None:
        self.builder, self.element, self.tile, self.grouped, self.mode = builder, element, tile, grouped, mode
        self.is_float = isinstance(element, ir.FloatType)
        self.bytes = 4 if self.is_float else element.width // 8
        self.lanes = VECTOR // self.bytes
        self.vector = ir.VectorType(element, self.lanes)

    def emit(self, acc: Any, stride: Any, a: Any, b: Any, n_k: Any, group: Any, low: Any, high: Any) -> None:
        self.a, self.b, self.group = a, b, group
        self.low, self.high = self.splat(low), self.splat(high)
        cells = [(r, v) for r in range(self.tile.rows) for v in range(self.tile.vectors)]
        places = [self.address(acc, stride, r, v) for r, v in cells]
        first = [self.load(place) for place in places]
        body = self.group_step if self.grouped else self.product_step
        last = self.loop(n_k, first, body, self.group if self.grouped else ir.Constant(INT64, 1))
        for place, value in zip(places, last, strict=True):
            self.builder.store(value, self.pointer(place), align=self.bytes)

    def product_step(self, k: Any, accs: list[Any], _n_k: Any) -> list[Any]:
        return [self.limit(value) for value in self.multiply_add(k, accs)]

    def group_step(self, k: Any, accs: list[Any], n_k: Any) -> list[Any]:
        end = self.builder.add(k, self.group)
        end = self.builder.select(self.builder.icmp_signed("<", end, n_k), end, n_k)
        zeros = [ir.Constant(self.vector, [0] * self.lanes)] * len(accs)
        one = ir.Constant(INT64, 1)
        sums = self.loop(end, zeros, lambda i, values, _: self.multiply_add(i, values), one, start=k)
        return [self.limit(self.plus(acc, item)) for acc, item in zip(accs, sums, strict=True)]

    def loop(self, n: Any, first: list[Any], body: Any, step: Any, start: Any = None) -> list[Any]:
        """Emit `for i in range(start, n, step)`; body(i, values, n) returns the next values."""
        return emit_loop(self.builder, n, first, lambda i, values: body(i, values, n), step, start)

    def multiply_add(self, k: Any, accs: list[Any]) -> list[Any]:
        rows, vectors = self.tile
        b_place = self.offset(self.b, k, VECTOR * vectors)
        b = [self.load(self.constant_offset(b_place, VECTOR * v)) for v in range(vectors)]
        a_place = self.offset(self.a, k, self.bytes * rows)
        result = []
        for r in range(rows):
            pointer = self.builder.inttoptr(self.constant_offset(a_place, self.bytes * r), self.element.as_pointer())
            a = self.splat(self.builder.load(pointer))
            result += [self.fused(a, b[v], accs[r * vectors + v]) for v in range(vectors)]
        return result

    def fused(self, a: Any, b: Any, acc: Any) -> Any:
        if self.is_float:
            return self.call(f"llvm.fma.v{self.lanes}f32", a, b, acc)
        if self.mode.startswith("dot"):
            word = "vpdpwssd" if self.mode == "dot_wrap" else "vpdpwssds"
            return self.call(f"llvm.x86.avx512.{word}.{8 * VECTOR}", acc, b, a)
        product = self.builder.mul(a, b)
        if self.mode.startswith("saturate"):
            return self.call(f"llvm.sadd.sat.v{self.lanes}i{8 * self.bytes}", acc, product)
        return self.builder.add(acc, product)

    def call(self, name: str, *vectors: Any) -> Any:
        """Call an LLVM intrinsic on vectors of the tile's type."""
        signature = ir.FunctionType(self.vector, [self.vector] * len(vectors))
        return self.builder.call(self.builder.module.declare_intrinsic(name, (), signature), vectors)

    def plus(self, x: Any, y: Any) -> Any:
        return self.builder.fadd(x, y) if self.is_float else self.builder.add(x, y)

    def limit(self, value: Any) -> Any:
        builder = self.builder
        if self.mode in ("exact", "saturate", "dot_wrap", "dot_saturate"):
            return value
        if self.mode in ("saturate_above", "dot_saturate_above"):
            return builder.select(builder.icmp_signed(">", value, self.low), value, self.low)
        if self.mode == "clamp":
            compare = builder.fcmp_ordered if self.is_float else builder.icmp_signed
            value = builder.select(compare("<", value, self.high), value, self.high)
            return builder.select(compare(">", value, self.low), value, self.low)
        shifted = builder.shl(value, self.low)
        return (builder.ashr if self.mode == "sign_wrap" else builder.lshr)(shifted, self.low)

    def splat(self, value: Any) -> Any:
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        undefined = ir.Constant(self.vector, ir.Undefined)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(one, undefined, mask)

    def address(self, acc: Any, stride: Any, row: int, vector: int) -> Any:
        place = self.offset(acc, ir.Constant(INT64, row), 0, by=stride)
        return self.constant_offset(place, VECTOR * vector)

    def offset(self, base: Any, index: Any, size: int, by: Any = None) -> Any:
        width = by if by is not None else ir.Constant(INT64, size)
        return self.builder.add(base, self.builder.mul(index, width))

    def constant_offset(self, base: Any, size: int) -> Any:
        return self.builder.add(base, ir.Constant(INT64, size)) if size else base

    def pointer(self, place: Any) -> Any:
        return self.builder.inttoptr(place, self.vector.as_pointer())

    def load(self, place: Any, align: int | None = None) -> Any:
        return self.builder.load(self.pointer(place), align=align or self.bytes)


_F32, _I32, _I16 = ir.FloatType(), ir.IntType(32), ir.IntType(16)
float_exact = _make(_F32, PLAIN, grouped=False, mode="exact")
float_clamp = _make(_F32, PLAIN, grouped=False, mode="clamp")
float_clamp_grouped = _make(_F32, GROUPED, grouped=True, mode="clamp")
int_exact = _make(_I32, PLAIN, grouped=False, mode="exact")
int_clamp = _make(_I32, PLAIN, grouped=False, mode="clamp")
int_clamp_grouped = _make(_I32, GROUPED, grouped=True, mode="clamp")
int_sign_wrap = _make(_I32, PLAIN, grouped=False, mode="sign_wrap")
int_dot_wrap = _make(_I32, PLAIN, grouped=False, mode="dot_wrap")
int_dot_saturate = _make(_I32, PLAIN, grouped=False, mode="dot_saturate")
int_dot_saturate_above = _make(_I32, PLAIN, grouped=False, mode="dot_saturate_above")
int16_saturate = _make(_I16, PLAIN, grouped=False, mode="saturate")
int16_saturate_above = _make(_I16, PLAIN, grouped=False, mode="saturate_above")
