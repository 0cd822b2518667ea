"""Exact products of matrices of bytes, modulo 2**32, and how near their partial sums come to two rails (VPDPBUSD).

As in kernels/gemm.py, the longer of M and N lies along the lanes, and the other operand, the left one, is packed whole.
A code is a byte less an offset: unsigned along the lanes, signed on the left. With x, y bytes and o, q the offsets
    sum of (x - o) (y - q) = sum of x y - o (sum of y) - q (sum of x) + k o q,
of which the last three are added where sums are read. The bounds are docs/semantics.md, proof 10.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels import correlate_tile
from fqtsim.kernels.byte_words import QUAD, pack_words, padded_words
from fqtsim.kernels.jit import inner, kernel
from fqtsim.kernels.looks import ROUND_UP, SUM_ROUND_UP, may_pass, tile_ends
from fqtsim.kernels.tile import INT64, VECTOR, Emitter, Tile, lanes
from fqtsim.kernels.transpose import EDGE, prefetch, transpose_block, widen_row

LANES = lanes("int32")
TILE = Tile(8, 3) if LANES == EDGE else Tile(4, 2)
"""Rows x vectors of lanes."""
WIDTH = TILE.vectors * LANES
CHUNK = 2048
"""Codes per visit of a panel, which the second-level cache then holds; a multiple of every SPAN."""
SPANS = (512, 256, 128, 64)
"""Codes between two looks at the partial sums."""
STRIDE = WIDTH * QUAD
SIGNED = -0x7F7F7F80
"""What turns a word of signed bytes, xored, into unsigned ones: 128 more each (0x80808080)."""
_INT32 = ir.IntType(32)

_ends = tile_ends(TILE)
_sums = correlate_tile.make(TILE, unsigned_lanes=True, fresh=False)


def _moments(vectors: int) -> Any:
    """Build moments(words, stride, n, mask, sums, squares): of the unsigned bytes u = word ^ mask of n words a lane.

    Writes the sum of u, and of u (u - 128), to int32 arrays of vectors * LANES; addresses, and bytes between words.
    """

    @intrinsic
    def moments(_context: Any, words: Any, stride: Any, n: Any, mask: Any, sums: Any, squares: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            emitter = Emitter(builder, _INT32, Tile(1, vectors), False, "")
            place, step, count, flip, *outs = args
            flipped = emitter.splat(builder.trunc(flip, _INT32))
            sign, one = (ir.Constant(emitter.vector, [number] * LANES) for number in (SIGNED, 0x01010101))
            dot = f"llvm.x86.avx512.vpdpbusd.{8 * VECTOR}"

            def word(j: Any, values: list[Any], _n: Any) -> list[Any]:
                at, result = emitter.offset(place, j, 0, by=step), []
                for v in range(vectors):
                    u = builder.xor(emitter.load(emitter.constant_offset(at, VECTOR * v), 1), flipped)
                    result.append(emitter.call(dot, values[2 * v], u, one))
                    result.append(emitter.call(dot, values[2 * v + 1], u, builder.xor(u, sign)))
                return result

            zero = ir.Constant(emitter.vector, [0] * LANES)
            last = emitter.loop(count, [zero] * (2 * vectors), word, ir.Constant(INT64, 1))
            for i, value in enumerate(last):
                target = emitter.constant_offset(outs[i % 2], VECTOR * (i // 2))
                builder.store(value, emitter.pointer(target), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return moments


_lane_moments = _moments(TILE.vectors)
_row_moments = _moments(EDGE // LANES)


def _lines_to_write(_context: Any, place: Any, stride: Any) -> Any:
    """Ask for the cache lines of a panel's lanes in 16 rows, `stride` bytes apart."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        for r in range(EDGE):
            prefetch(builder, builder.add(args[0], builder.mul(args[1], ir.Constant(INT64, r))), STRIDE + 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


_ask: Any = intrinsic(_lines_to_write)
padded = inner(padded_words)


@kernel
def pack_rows(place: int, step: int, size: int, along: bool, offset: int, words: Any, each: int, code: Any, k: int,
              first: int, last: int) -> None:  # fmt: skip
    """Pack groups first..last of 16 rows of the left operand into words (groups, padded_words(k), 16)."""
    start: Any = np.int64(0)
    for g in range(first, last):
        pack_words(place, step, size, along, offset, words[g], g * EDGE, start, k, each, code)


class Rows(NamedTuple):
    """The left operand, packed, and what is known of it: by spans, all rows of a group of 16 side by side."""

    #: (groups, padded_words(k), 16).
    words: Any
    #: (spans, rows) int32, modulo 2**32: - o (sum of y) + k o q up to the span's end.
    corrections: Any
    #: (spans, rows) int64: at least the sum of the squared codes in the span, as bytes behind the last k count.
    squares: Any
    #: (spans, tiles) float64: at least the largest root of `squares` in a tile.
    roots: Any


class Panel(NamedTuple):
    """Lanes of the right operand, packed, CHUNK codes at a time, and what is known of them."""

    #: (words, WIDTH).
    words: Any
    #: (1 + spans, WIDTH) int32, modulo 2**32: - q (sum of x) up to each span, from all chunks before on.
    side: Any
    #: (spans, WIDTH) int32, (spans,): as in `Rows`.
    squares: Any
    roots: Any
    #: (WIDTH,) int32: sums of bytes so far.
    totals: Any
    #: (2,) int32: smallest and largest sum of a tile. (WIDTH,) bool: room for `_open_outputs`. (1,) int64: 0, the
    #: distance of the words from where they are.
    ends: Any
    near: Any
    distance: Any


@kernel
def row_moments(
    words: Any, k: int, span: int, offset: int, left_offset: int, corrections: Any, squares: Any, roots: Any,
    first: int, last: int,
) -> None:  # fmt: skip
    """Fill `Rows` for groups first..last of packed words; offset and left_offset are o and q."""
    sums, some = np.empty(EDGE, np.int32), np.empty(EDGE, np.int32)
    beyond = np.int64(128 + left_offset)  # the code is u - beyond, with u = y + 128
    for g in range(first, last):
        total = np.zeros(EDGE, np.int64)
        for c in range(corrections.shape[0]):
            k_first, k_end = c * span, min(k, c * span + span)
            quads = (k_end - k_first + QUAD - 1) // QUAD
            place = words.ctypes.data + (g * words.shape[1] + k_first // QUAD) * EDGE * QUAD
            _row_moments(place, EDGE * QUAD, quads, SIGNED, sums.ctypes.data, some.ctypes.data)
            for r in range(EDGE):
                u, count, row = np.int64(sums[r]), quads * QUAD, g * EDGE + r
                total[r] += u - 128 * count
                corrections[c, row] = np.int32(offset * (k_end * left_offset - total[r]))
                squares[c, row] = np.int64(some[r]) + (128 - 2 * beyond) * u + count * beyond * beyond
                root = np.sqrt(np.float64(squares[c, row])) * ROUND_UP
                roots[c, row // TILE.rows] = max(roots[c, row // TILE.rows], root)


@inner
def _measure_lanes(panel: Any, s: int, quads: int, at: int, offset: int, left_offset: int) -> None:
    """Fill span s of a panel, whose words are at an address; offset and left_offset are o and q."""
    sums, some = np.empty(WIDTH, np.int32), np.empty(WIDTH, np.int32)
    _lane_moments(at, STRIDE, quads, 0, sums.ctypes.data, some.ctypes.data)
    count, factor = np.int32(quads * QUAD * offset * offset), np.int32(128 - 2 * offset)
    less, largest = np.int32(-left_offset), np.int32(0)
    for j in range(WIDTH):  # in int32, where Numba would add in int64
        panel.totals[j] = np.int32(panel.totals[j] + sums[j])
        panel.side[s + 1, j] = np.int32(less * panel.totals[j])
        square = np.int32(np.int32(some[j] + np.int32(factor * sums[j])) + count)
        panel.squares[s, j] = square
        largest = max(largest, square)
    panel.roots[s] = np.sqrt(np.float64(largest)) * ROUND_UP


class Open(NamedTuple):
    """Where some sum of products may pass the limits: rows and lanes that meet in such an output; bool."""

    #: (rows, panels).
    rows: Any
    #: (tiles, lanes).
    lanes: Any


@inner
def _open_tile(found: Any, t: int, p: int) -> None:
    """Give up a tile of a panel."""
    for r in range(t * TILE.rows, t * TILE.rows + TILE.rows):
        found.rows[r, p] = True
    for j in range(p * WIDTH, p * WIDTH + WIDTH):
        found.lanes[t, j] = True


@inner
def _open_outputs(acc: Any, rows: Any, panel: Any, t: int, p: int, c: int, s: int, limits: Any, found: Any) -> Any:
    """Open outputs of a tile that span c may push beyond the limits; return how many of its lanes are open."""
    near = panel.near
    near.fill(False)
    for r in range(t * TILE.rows, t * TILE.rows + TILE.rows):
        more, square = np.int32(0), np.float64(rows.squares[c, r]) * ROUND_UP
        any_near: Any = False
        if c:
            more = rows.corrections[c - 1, r]
        for j in range(WIDTH):
            value = np.int32(np.int32(acc[r, j] + more) + panel.side[s, j]) if c else np.int32(0)
            margin = np.float64(min(limits[1] - value, np.int64(value) - limits[0]))
            passes = (margin < 0) | (margin * margin < square * np.float64(panel.squares[s, j]))
            near[j] |= passes
            any_near = any_near | passes
        found.rows[r, p] |= any_near
        count = np.int32(0)
        for j in range(WIDTH if any_near else 0):
            count += np.int32(near[j])
        if 2 * count > WIDTH:  # the tile is given up: no need to look further
            return count
    count = np.int32(0)
    for j in range(WIDTH):
        found.lanes[t, p * WIDTH + j] |= near[j]
        count += np.int32(found.lanes[t, p * WIDTH + j])
    return count


@inner
def _advance(
    acc: Any, rows: Any, panel: Any, t: int, p: int, begin: int, end: int, span: int, limits: Any, found: Any
) -> bool:
    """Add the products of codes begin..end to tile t of panel p, looking at its sums before each span.

    Returns whether to go on: where half the lanes are open, the tile is given up. limits: as in `multiply`.
    """
    row, s, here, looks = t * TILE.rows, 0, (end - begin + span - 1) // span, True
    while s < here:
        c, n = begin // span + s, s + 1
        panel.ends.fill(0)
        if c:
            more, side = rows.corrections.ctypes.data, panel.side.ctypes.data
            more += 4 * ((c - 1) * rows.corrections.shape[1] + row)
            _ends(acc.ctypes.data + row * STRIDE, STRIDE, more, side + s * STRIDE, panel.ends.ctypes.data)
        if (
            may_pass(panel.ends, rows.roots[c, t] * panel.roots[s], limits)
            and 2 * _open_outputs(acc, rows, panel, t, p, c, s, limits, found) > WIDTH
        ):
            _open_tile(found, t, p)
            looks, n = False, here
        k_first, k_end = begin + s * span, min(end, begin + n * span)
        word = ((row // EDGE) * rows.words.shape[1] + k_first // QUAD) * EDGE + row % EDGE
        _sums(
            acc.ctypes.data + row * STRIDE, STRIDE, panel.words.ctypes.data + (k_first - begin) // QUAD * STRIDE,
            panel.distance.ctypes.data, 1, STRIDE, rows.words.ctypes.data + word * QUAD, EDGE * QUAD, QUAD,
            (k_end - k_first + QUAD - 1) // QUAD,
        )  # fmt: skip
        s = n
        if not looks:
            break
    return looks


def _finished(_context: Any, acc: Any, rows: Any, more: Any, side: Any, ends: Any, out: Any, out_stride: Any) -> Any:
    """Write rows of a panel's sums, corrected, to out, and widen ends; all addresses of int32.

    acc (rows, WIDTH), more (rows,), side (WIDTH,), ends (2, WIDTH): the smallest and largest sum of each lane. Rows of
    out are out_stride bytes apart; it may be acc.
    """

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, _INT32, Tile(1, TILE.vectors), False, "")
        source, n_rows, row_side, lane_side, extremes, target, step = args
        along = [VECTOR * v for v in range(TILE.vectors)]
        sides = [emitter.load(emitter.constant_offset(lane_side, at)) for at in along]
        places = [emitter.constant_offset(extremes, at + STRIDE * i) for i in range(2) for at in along]

        def row(r: Any, values: list[Any], _n: Any) -> list[Any]:
            pointer = builder.inttoptr(emitter.offset(row_side, r, QUAD), _INT32.as_pointer())
            added = emitter.splat(builder.load(pointer))
            sums = []
            for v, at in enumerate(along):
                value = emitter.load(emitter.constant_offset(emitter.offset(source, r, STRIDE), at))
                sums.append(builder.add(value, builder.add(added, sides[v])))
                place = emitter.constant_offset(emitter.offset(target, r, 0, by=step), at)
                builder.store(sums[v], emitter.pointer(place), align=4)
            lows, highs = values[: TILE.vectors], values[TILE.vectors :]
            return [
                builder.select(builder.icmp_signed(sign, x, old), x, old)
                for sign, olds in (("<", lows), (">", highs))
                for x, old in zip(sums, olds, strict=True)
            ]

        last = emitter.loop(n_rows, [emitter.load(place) for place in places], row, ir.Constant(INT64, 1))
        for place, value in zip(places, last, strict=True):
            builder.store(value, emitter.pointer(place), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


_finish: Any = intrinsic(_finished)


@inner
def _write_block(acc: Any, out: Any, lanes_first: bool, row: int, rows: int, lane: int, count: int) -> None:
    """Write some of a panel's sums, rows from `row` on, to out (rows, lanes), or (lanes, rows) if lanes_first."""
    source, place, step, to_step = acc.ctypes.data + row * STRIDE, out.ctypes.data, STRIDE, out.strides[0]
    if lanes_first and count == WIDTH and rows == EDGE:
        for j in range(0, WIDTH, EDGE):
            to = place + (lane + j) * to_step + row * out.itemsize
            transpose_block(source + j * QUAD, step, 0, to, to_step, acc[0, 0], out[0, 0])
    elif lanes_first:
        for j in range(count):
            for r in range(row, row + rows):
                out[lane + j, r] = acc[r, j]
    else:
        blocks = count // EDGE
        for r in range(rows):
            widen_row(source + r * step, place + (row + r) * to_step + lane * QUAD, blocks, acc[0, 0], out[0, 0])
            for j in range(blocks * EDGE, count):
                out[row + r, lane + j] = acc[row + r, j]


@inner
def _write_rows(
    acc: Any, corrections: Any, panel: Any, extremes: Any, out: Any, lanes_first: bool, group: int, rows: int,
    lane: int, count: int,
) -> None:  # fmt: skip
    """Correct rows of a group, widen the extremes of their lanes, and write them to out."""
    row, last = group * EDGE, corrections.shape[0] - 1
    source, more = acc.ctypes.data + row * STRIDE, corrections.ctypes.data
    more += QUAD * (last * corrections.shape[1] + row)
    direct = count == WIDTH and not lanes_first
    target, step = (
        (out.ctypes.data + row * out.strides[0] + lane * QUAD, out.strides[0]) if direct else (source, STRIDE)
    )
    _finish(source, rows, more, panel.side.ctypes.data, extremes.ctypes.data, target, step)
    if not direct:
        _write_block(acc, out, lanes_first, row, rows, lane, count)


@inner
def _start_panel(panel: Any, acc: Any, reached: Any, go_on: Any, extremes: Any, looks: bool) -> None:
    """Put sums and what is known of them to 0."""
    acc.fill(0)
    reached.fill(0)
    extremes[0].fill(2147483647)
    extremes[1].fill(-2147483648)
    go_on.fill(looks)
    panel.side.fill(0)
    panel.totals.fill(0)


@kernel
def multiply(
    words: Any, corrections: Any, squares: Any, roots: Any, span: int, looks: bool, limits: Any, k: int,
    place: int, step: int, size: int, along: bool, offset: int, left_offset: int, each: int, code: Any,
    out: Any, lanes_first: bool, open_rows: Any, open_lanes: Any, summary: Any, first: int, last: int,
) -> None:  # fmt: skip
    """Multiply panels first..last of the lanes by all rows, and write the sums to out, int32.

    words, corrections, squares, roots: `Rows`. looks: whether partial sums are looked at. limits, int64: the lowest and
    highest partial sum, in the order of k, that changes nothing; the largest magnitude of any sum of products that does
    not. open_rows, open_lanes: `Open`. summary, float64: smallest and largest product, and a bound on the magnitude of
    every sum of products.
    """
    n_rows, groups, tiles = out.shape[1 if lanes_first else 0], words.shape[0], open_lanes.shape[0]
    rows, found, n_spans = Rows(words, corrections, squares, roots), Open(open_rows, open_lanes), CHUNK // span
    panel = Panel(
        np.empty((padded(min(CHUNK, k)), WIDTH), np.int32), np.zeros((n_spans + 1, WIDTH), np.int32),
        np.zeros((n_spans, WIDTH), np.int32), np.zeros(n_spans, np.float64), np.zeros(WIDTH, np.int32),
        np.zeros(2, np.int32), np.zeros(WIDTH, np.bool_), np.zeros(1, np.int64),
    )  # fmt: skip
    acc, reached, go_on = np.empty((groups * EDGE, WIDTH), np.int32), np.zeros(tiles), np.zeros(tiles, np.bool_)
    extremes, least, most, bound = np.empty((2, WIDTH), np.int32), 2147483647, -2147483648, 0.0
    acc_at, panel_at, words_at = acc.ctypes.data, panel.words.ctypes.data, words.ctypes.data
    for p in range(first, last):
        lane, count = p * WIDTH, min(WIDTH, size - p * WIDTH)
        _start_panel(panel, acc, reached, go_on, extremes, looks)
        for begin in range(0, k, CHUNK):
            end = min(begin + CHUNK, k)
            pack_words(place, step, size, along, offset, panel.words, lane, begin, end, each, code)
            here = (end - begin + span - 1) // span
            for s in range(here if looks or left_offset else 0):
                quads = (min(span, end - begin - s * span) + QUAD - 1) // QUAD
                at = panel_at + s * span // QUAD * STRIDE
                _measure_lanes(panel, s, quads, at, offset, left_offset)
            for t in range(tiles):
                for s in range(here if looks else 0):
                    reached[t] += roots[begin // span + s, t] * panel.roots[s]
                if end == k and t * TILE.rows % EDGE == 0 and not lanes_first:
                    _ask(out.ctypes.data + t * TILE.rows * out.strides[0] + p * STRIDE, out.strides[0])
                if go_on[t]:
                    go_on[t] = _advance(acc, rows, panel, t, p, begin, end, span, limits, found)
                    continue
                row = t * TILE.rows
                word = ((row // EDGE) * words.shape[1] + begin // QUAD) * EDGE + row % EDGE
                _sums(
                    acc_at + row * STRIDE, STRIDE, panel_at, panel.distance.ctypes.data, 1, STRIDE,
                    words_at + word * QUAD, EDGE * QUAD, QUAD, (end - begin + QUAD - 1) // QUAD,
                )  # fmt: skip
            for j in range(WIDTH):  # a copy of a slice would take 2 s to compile, for the text of an error
                panel.side[0, j] = panel.side[here, j]
        for t in range(tiles):
            bound = max(bound, reached[t] * SUM_ROUND_UP)
            if reached[t] * SUM_ROUND_UP > limits[2]:
                _open_tile(found, t, p)
        for g in range(groups):
            _write_rows(
                acc, corrections, panel, extremes, out, lanes_first, g, min(EDGE, n_rows - g * EDGE), lane, count
            )
        for j in range(count):
            least, most = min(least, extremes[0, j]), max(most, extremes[1, j])
    summary[0], summary[1], summary[2] = least, most, bound
