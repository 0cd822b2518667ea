"""The innermost loop of a direct convolution: a tile of int32 sums over taps and words of four 8-bit codes.

LLVM IR around VPDPBUSD, which adds four products of unsigned and signed bytes to a lane, modulo 2**32: exact wherever
no sum of the products passes int32, which backends/direct.py proves. One operand lies along the lanes, a word of the
other is broadcast; nothing is copied into a matrix of patches first.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels.tile import INT64, VECTOR, Emitter, Tile, lanes

LANES = lanes("int32")
IMAGE, IMAGE_END = Tile(8, 3), Tile(8, 2)
"""Output channels x vectors of positions; where no more are left, the second."""
WEIGHTS = {1: Tile(16, 1), 2: Tile(8, 2), 4: Tile(4, 4)}
"""Input channels x vectors of output channels, by the number of vectors."""


def make(tile: Tile, *, unsigned_lanes: bool, fresh: bool) -> Any:
    """Build tile(acc, stride, lanes, offsets, n_offsets, lane_step, words, word_step, row_step, n_words), int64 each.

    For every t and j, row r adds word r at words + (t * n_words + j) * word_step + r * row_step, times the lanes at
    lanes + offsets[t] + j * lane_step. Addresses and steps are in bytes; acc is advanced, from 0 if fresh.
    unsigned_lanes: the lanes hold unsigned codes and the words signed ones; else the other way round.
    """

    @intrinsic
    def kernel(
        _context: Any, acc: Any, stride: Any, along: Any, offsets: Any, n_offsets: Any, lane_step: Any, words: Any,
        word_step: Any, row_step: Any, n_words: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            _Correlator(builder, tile, unsigned_lanes, fresh).correlate(*args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), codegen

    return kernel


class _Correlator(Emitter):
    def __init__(self, builder: Any, tile: Tile, unsigned_lanes: bool = True, fresh: bool = True) -> None:
        super().__init__(builder, ir.IntType(32), tile, False, "")
        self.unsigned_lanes, self.fresh = unsigned_lanes, fresh

    def correlate(
        self, acc: Any, stride: Any, along: Any, offsets: Any, n_offsets: Any, lane_step: Any, words: Any,
        word_step: Any, row_step: Any, n_words: Any,
    ) -> None:  # fmt: skip
        builder, one = self.builder, ir.Constant(INT64, 1)
        rows, vectors = self.tile
        places = [self.address(acc, stride, r, v) for r in range(rows) for v in range(vectors)]

        def tap(t: Any, accs: list[Any], _n: Any) -> list[Any]:
            pointer = builder.inttoptr(self.offset(offsets, t, 8), INT64.as_pointer())
            base = builder.add(along, builder.load(pointer))
            first_word = builder.mul(t, n_words)

            def step(j: Any, values: list[Any], _n: Any) -> list[Any]:
                place = self.offset(base, j, 0, by=lane_step)
                codes = [self.load(self.constant_offset(place, VECTOR * v), 1) for v in range(vectors)]
                word = self.offset(words, builder.add(first_word, j), 0, by=word_step)
                result = []
                for r in range(rows):
                    pointer = builder.inttoptr(
                        self.offset(word, ir.Constant(INT64, r), 0, by=row_step), self.element.as_pointer()
                    )
                    spread = self.splat(builder.load(pointer, align=1))
                    for v in range(vectors):
                        pair = (codes[v], spread) if self.unsigned_lanes else (spread, codes[v])
                        result.append(
                            self.call(f"llvm.x86.avx512.vpdpbusd.{8 * VECTOR}", values[r * vectors + v], *pair)
                        )
                return result

            return self.loop(n_words, accs, step, one)

        zero = ir.Constant(self.vector, [0] * self.lanes)
        first = [zero if self.fresh else self.load(place) for place in places]
        last = self.loop(n_offsets, first, tap, one)
        for place, value in zip(places, last, strict=True):
            builder.store(value, self.pointer(place), align=4)


def _copy_rows(
    _context: Any, out: Any, out_pitch: Any, source: Any, pitch: Any, rows: Any, size: Any, mask: Any
) -> Any:
    """Copy rows of `size` bytes, each 32-bit word of them xored with mask; addresses and pitches in bytes.

    Rows are copied in order by whole vectors: up to VECTOR - 1 bytes behind each one are overwritten, and read.
    """

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        emitter = _Correlator(builder, Tile(1, 1))
        to, to_pitch, start, start_pitch, n_rows, n_bytes, word = args
        spread = emitter.splat(builder.trunc(word, ir.IntType(32)))

        def row(y: Any, _values: list[Any], _n: Any) -> list[Any]:
            target = emitter.offset(to, y, 0, by=to_pitch)
            origin = emitter.offset(start, y, 0, by=start_pitch)

            def vector(i: Any, _values: list[Any], _n: Any) -> list[Any]:
                value = builder.xor(emitter.load(builder.add(origin, i), 1), spread)
                builder.store(value, emitter.pointer(builder.add(target, i)), align=1)
                return []

            return emitter.loop(n_bytes, [], vector, ir.Constant(INT64, VECTOR))

        emitter.loop(n_rows, [], row, ir.Constant(INT64, 1))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


copy_rows: Any = intrinsic(_copy_rows)
image, image_end = (make(tile, unsigned_lanes=True, fresh=True) for tile in (IMAGE, IMAGE_END))
weights = {vectors: make(tile, unsigned_lanes=False, fresh=False) for vectors, tile in WEIGHTS.items()}
