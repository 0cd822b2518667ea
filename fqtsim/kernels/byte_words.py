"""Packs codes into words of four bytes along k, for VPDPBUSD (kernels/byte_gemm.py).

LLVM IR, as in kernels/transpose.py. A byte is its code plus an offset, modulo 256. Bytes behind the last k are 0; lanes
behind the last one repeat it, or hold the code 0.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels.jit import inner
from fqtsim.kernels.transpose import CACHE_LINE, EDGE, NEAR, interleaved, prefetch

QUAD = 4
"""Codes of a word."""
RUN = QUAD * EDGE
"""Codes of a row that are packed at once."""
AHEAD = 3 * EDGE
"""Rows from those that are packed to those that are asked for: the panel after this one."""
_INT8, _INT32, _INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class _Packer:
    """Writes IR that loads codes of one type and turns them into bytes."""

    def __init__(self, builder: Any, code: Any, offset: Any) -> None:
        self.builder, self.word = builder, ir.IntType(code.bitwidth)
        self.offset = builder.trunc(offset, _INT8)

    def spread(self, value: Any, lanes: int) -> Any:
        """Return a vector of copies of a number."""
        undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(_INT32, 0))
        return self.builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_INT32, lanes), [0] * lanes))

    def within(self, count: Any, lanes: int) -> Any:
        """Return the mask of the first `count` lanes, 0..127 of them."""
        places = ir.Constant(ir.VectorType(_INT8, lanes), list(range(lanes)))
        return self.builder.icmp_signed("<", places, self.spread(self.builder.trunc(count, _INT8), lanes))

    def load(self, place: Any, lanes: int, mask: Any) -> Any:
        """Return bytes; those of the code 0 where the mask is not set, and nothing is read there."""
        builder, kind = self.builder, ir.VectorType(self.word, lanes)
        zero, pointer = ir.Constant(kind, [0] * lanes), builder.inttoptr(place, kind.as_pointer())
        name, module = f"llvm.masked.load.v{lanes}i{self.word.width}.p0", builder.module
        signature = ir.FunctionType(kind, [pointer.type, _INT32, mask.type, kind])
        load = module.globals.get(name) or ir.Function(module, signature, name)
        codes = builder.call(load, [pointer, ir.Constant(_INT32, 1), mask, zero])
        if self.word.width > _INT8.width:
            codes = builder.trunc(codes, ir.VectorType(_INT8, lanes))
        return builder.add(codes, self.spread(self.offset, lanes))

    def store(self, words: Any, place: Any) -> None:
        """Write words anywhere."""
        self.builder.store(words, self.builder.inttoptr(place, words.type.as_pointer()), align=1)


def _quads_across(
    _context: Any, source: Any, stride: Any, ahead: Any, rows: Any, count: Any, offset: Any, out: Any, out_stride: Any,
    code: Any,
) -> Any:  # fmt: skip
    """Write out[q, r] = codes 4 q .. 4 q + 3 of source[r]: 16 rows of 64 codes, of which `count` are there.

    Rows from `rows` on repeat the last. Addresses, and strides in bytes; what lies `ahead` bytes behind the codes is
    asked for. code is any number of their type.
    """

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        begin, step, further, n_rows, n_codes, shift, target, target_step, _code = args
        packer = _Packer(builder, code, shift)
        mask, last = packer.within(n_codes, RUN), builder.sub(n_rows, ir.Constant(_INT64, 1))
        vectors = []
        for r in range(EDGE):
            row = ir.Constant(_INT64, r)
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            place = builder.add(begin, builder.mul(step, row))
            prefetch(builder, builder.add(place, further), RUN * code.bitwidth // 8)
            codes = packer.load(place, RUN, mask)
            codes = builder.select(mask, codes, ir.Constant(codes.type, [0] * RUN))
            vectors.append(builder.bitcast(codes, ir.VectorType(_INT32, EDGE)))
        for _ in range(4):  # as kernels/transpose.py does with codes
            pairs = zip(vectors[: EDGE // 2], vectors[EDGE // 2 :], strict=True)
            vectors = [interleaved(builder, x, y, half) for x, y in pairs for half in (0, 1)]
        for q, words in enumerate(vectors):
            packer.store(words, builder.add(target, builder.mul(target_step, ir.Constant(_INT64, q))))
        return _context.get_dummy_value()

    return types.void(*[types.int64] * 8, code), codegen


def _quads_along(
    _context: Any, source: Any, stride: Any, rows: Any, count: Any, offset: Any, out: Any, code: Any
) -> Any:
    """Write out[r] = code r of four rows, of which `rows`, and `count` of 16 codes, are there; addresses as above."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        begin, step, n_rows, n_codes, shift, target, _code = args
        packer, words = _Packer(builder, code, shift), None
        kind, there = ir.VectorType(_INT32, EDGE), packer.within(n_codes, EDGE)
        for k in range(QUAD):
            row = ir.Constant(_INT64, k)
            is_there = packer.spread(builder.icmp_signed("<", row, n_rows), EDGE)
            codes = packer.load(builder.add(begin, builder.mul(step, row)), EDGE, builder.and_(there, is_there))
            wide = builder.select(is_there, builder.zext(codes, kind), ir.Constant(kind, [0] * EDGE))
            wide = builder.shl(wide, ir.Constant(kind, [8 * k] * EDGE))
            words = wide if words is None else builder.or_(words, wide)
        packer.store(words, target)
        return _context.get_dummy_value()

    return types.void(*[types.int64] * 6, code), codegen


_across: Any = intrinsic(_quads_across)
_along: Any = intrinsic(_quads_along)


def padded_words(depth: int) -> int:
    """Return how many words of a lane are written for `depth` codes: whole blocks."""
    return -(-depth // RUN) * EDGE


@inner
def pack_words(
    place: int, step: int, size: int, along: bool, offset: int, out: Any, first: int, k_first: int, k_end: int,
    each: int, code: Any,
) -> None:  # fmt: skip
    """Write codes k_first..k_end of the lanes from `first` on, of `size`, to out (padded_words, W) int32, W 16 * n.

    place: the address of codes (lanes, K), or (K, lanes) if along, whose rows are contiguous and `step` bytes apart.
    each: bytes of a code; code: any number of their type.
    """
    to, to_step = out.ctypes.data, out.strides[0]
    for r in range(0, out.shape[1], EDGE):
        lane = min(first + r, size - 1)
        left, target = size - first - r, to + r * out.itemsize
        if along:
            begin, count = place + lane * each, max(0, min(left, EDGE))
            for k in range(k_first, k_end, QUAD):
                at = target + (k - k_first) // QUAD * to_step
                _along(begin + k * step, step, k_end - k, count, offset, at, code)
        else:
            begin, ahead = place + lane * step, AHEAD * step if step <= NEAR else CACHE_LINE
            for k in range(k_first, k_end, RUN):
                at = target + (k - k_first) // QUAD * to_step
                _across(
                    begin + k * each, step, ahead, max(1, left), min(k_end - k, RUN), offset, at, to_step, code
                )  # fmt: skip
