"""The innermost loop: a tile of accumulators kept in vector registers over a run of k.

LLVM IR, because Numba cannot be told to keep a tile of vectors in registers. One lane is one output, so the order of
k is untouched. Float32 lanes are used only where every number is an integer that float32 holds exactly
(backends/stepwise.py chooses them and has the proof), so that the FMA unit does integer arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WIDE = bool(llvmlite.binding.get_host_cpu_features().get("avx512f", False))
LANES = 16 if _WIDE else 8


class Tile(NamedTuple):
    """Shape of a tile: `rows` x (`vectors` * LANES) accumulators."""

    rows: int
    vectors: int


PLAIN = Tile(6, 4) if _WIDE else Tile(3, 4)
GROUPED = Tile(3, 4) if _WIDE else Tile(3, 2)

_INT64 = ir.IntType(64)


def _make(element: ir.Type, tile: Tile, *, grouped: bool, mode: str) -> Any:
    """Build tile(acc, stride, a, b, n_k, group, low, high): addresses, the row stride of acc in bytes, rails.

    a is packed [k][row], b is packed [k][vector*LANES], acc is read, advanced over n_k products and written.
    grouped: `group` products are summed exactly, then the sum is one item; else each product is an item.
    mode: "exact" (or native wrap at the lane's width), "clamp" to low..high, "sign_wrap" and "zero_wrap" keep
    (lane width - low) bits by shifting low bits up and down.
    """
    scalar: Any = types.float32 if isinstance(element, ir.FloatType) else types.int32

    @intrinsic
    def tile_kernel(
        _context: Any, acc: Any, stride: Any, a: Any, b: Any, n_k: Any, group: Any, low: Any, high: Any
    ) -> Any:
        signature = types.void(*[types.int64] * 6, scalar, scalar)

        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            _Emitter(builder, element, tile, grouped, mode).emit(*args)
            return context.get_dummy_value()

        return signature, codegen

    return tile_kernel


class _Emitter:
    """Writes the IR of one tile kernel at the builder's position."""

    def __init__(self, builder: Any, element: ir.Type, tile: Tile, grouped: bool, mode: str) -> None:
        self.builder, self.element, self.tile, self.grouped, self.mode = builder, element, tile, grouped, mode
        self.vector = ir.VectorType(element, LANES)
        self.is_float = isinstance(element, ir.FloatType)

    def emit(self, acc: Any, stride: Any, a: Any, b: Any, n_k: Any, group: Any, low: Any, high: Any) -> None:
        self.a, self.b, self.group = a, b, group
        self.low, self.high = self.splat(low), self.splat(high)
        cells = [(r, v) for r in range(self.tile.rows) for v in range(self.tile.vectors)]
        places = [self.address(acc, stride, r, v) for r, v in cells]
        first = [self.load(place) for place in places]
        body = self.group_step if self.grouped else self.product_step
        last = self.loop(n_k, first, body, self.group if self.grouped else ir.Constant(_INT64, 1))
        for place, value in zip(places, last, strict=True):
            self.builder.store(value, self.pointer(place), align=4)

    def product_step(self, k: Any, accs: list[Any], _n_k: Any) -> list[Any]:
        return [self.limit(value) for value in self.multiply_add(k, accs)]

    def group_step(self, k: Any, accs: list[Any], n_k: Any) -> list[Any]:
        end = self.builder.add(k, self.group)
        end = self.builder.select(self.builder.icmp_signed("<", end, n_k), end, n_k)
        zeros = [ir.Constant(self.vector, [0] * LANES)] * len(accs)
        one = ir.Constant(_INT64, 1)
        sums = self.loop(end, zeros, lambda i, values, _: self.multiply_add(i, values), one, start=k)
        return [self.limit(self.plus(acc, item)) for acc, item in zip(accs, sums, strict=True)]

    def loop(self, n: Any, first: list[Any], body: Any, step: Any, start: Any = None) -> list[Any]:
        """Emit `for i in range(start, n, step)` with the values carried in registers; return the last ones."""
        builder = self.builder
        entry, head = builder.block, builder.append_basic_block("head")
        inside, done = builder.append_basic_block("inside"), builder.append_basic_block("done")
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(_INT64)
        values = [builder.phi(self.vector) for _ in first]
        builder.cbranch(builder.icmp_signed("<", index, n), inside, done)
        builder.position_at_end(inside)
        advanced = body(index, values, n)
        back = builder.block
        following = builder.add(index, step)
        builder.branch(head)
        index.add_incoming(start if start is not None else ir.Constant(_INT64, 0), entry)
        index.add_incoming(following, back)
        for phi, value, new in zip(values, first, advanced, strict=True):
            phi.add_incoming(value, entry)
            phi.add_incoming(new, back)
        builder.position_at_end(done)
        return values

    def multiply_add(self, k: Any, accs: list[Any]) -> list[Any]:
        rows, vectors = self.tile
        b_place = self.offset(self.b, k, 4 * vectors * LANES)
        b = [self.load(self.constant_offset(b_place, 4 * v * LANES)) for v in range(vectors)]
        a_place = self.offset(self.a, k, 4 * rows)
        result = []
        for r in range(rows):
            pointer = self.builder.inttoptr(self.constant_offset(a_place, 4 * r), self.element.as_pointer())
            a = self.splat(self.builder.load(pointer))
            result += [self.fused(a, b[v], accs[r * vectors + v]) for v in range(vectors)]
        return result

    def fused(self, a: Any, b: Any, acc: Any) -> Any:
        if self.is_float:
            signature = ir.FunctionType(self.vector, [self.vector] * 3)
            fma = self.builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", (), signature)
            return self.builder.call(fma, [a, b, acc])
        return self.builder.add(acc, self.builder.mul(a, b))

    def plus(self, x: Any, y: Any) -> Any:
        return self.builder.fadd(x, y) if self.is_float else self.builder.add(x, y)

    def limit(self, value: Any) -> Any:
        builder = self.builder
        if self.mode == "exact":
            return value
        if self.mode == "clamp":
            compare = builder.fcmp_ordered if self.is_float else builder.icmp_signed
            value = builder.select(compare("<", value, self.high), value, self.high)
            return builder.select(compare(">", value, self.low), value, self.low)
        shifted = builder.shl(value, self.low)
        return (builder.ashr if self.mode == "sign_wrap" else builder.lshr)(shifted, self.low)

    def splat(self, value: Any) -> Any:
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
        undefined = ir.Constant(self.vector, ir.Undefined)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return self.builder.shuffle_vector(one, undefined, mask)

    def address(self, acc: Any, stride: Any, row: int, vector: int) -> Any:
        place = self.offset(acc, ir.Constant(_INT64, row), 0, by=stride)
        return self.constant_offset(place, 4 * vector * LANES)

    def offset(self, base: Any, index: Any, size: int, by: Any = None) -> Any:
        width = by if by is not None else ir.Constant(_INT64, size)
        return self.builder.add(base, self.builder.mul(index, width))

    def constant_offset(self, base: Any, size: int) -> Any:
        return self.builder.add(base, ir.Constant(_INT64, size)) if size else base

    def pointer(self, place: Any) -> Any:
        return self.builder.inttoptr(place, self.vector.as_pointer())

    def load(self, place: Any) -> Any:
        return self.builder.load(self.pointer(place), align=4)


_F32, _I32 = ir.FloatType(), ir.IntType(32)
float_exact = _make(_F32, PLAIN, grouped=False, mode="exact")
float_clamp = _make(_F32, PLAIN, grouped=False, mode="clamp")
float_clamp_grouped = _make(_F32, GROUPED, grouped=True, mode="clamp")
int_exact = _make(_I32, PLAIN, grouped=False, mode="exact")
int_clamp = _make(_I32, PLAIN, grouped=False, mode="clamp")
int_clamp_grouped = _make(_I32, GROUPED, grouped=True, mode="clamp")
int_sign_wrap = _make(_I32, PLAIN, grouped=False, mode="sign_wrap")
