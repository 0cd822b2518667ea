"""GEMM drivers around the tiles: pack operands, walk tiles, count events.

The longer of M and N lies along the vector lanes. Swapping the operands changes no bit: the products are the same and
so is the order of k. Packed operands have the type of the tile's lanes: codes, or words of two int16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fqtsim.kernels import tile as tiles
from fqtsim.kernels.jit import kernel, kernel_of
from fqtsim.kernels.shift import floor_shift
from fqtsim.kernels.tile import Tile, lanes
from fqtsim.kernels.transpose import (
    CACHE_LINE,
    EDGE,
    NEAR,
    transpose_block,
    transpose_half,
    widen_half,
    widen_row,
)

CHUNK = 1024
"""Products per visit of a tile: a packed panel of this depth stays in the second-level cache."""


HALF = EDGE // 2


class Driver(NamedTuple):
    """A compiled tile walk, with the shape and lane type that it wants its operands packed for."""

    run: Callable[..., None]
    tile: Tile
    dtype: type
    #: Turns packed codes into what the tile multiplies, in place: (packed, shift, doubled).
    convert: Callable[[Any, int, bool], None]

    @property
    def width(self) -> int:
        return self.tile.vectors * lanes(self.dtype)


@kernel
def pack(source: Any, along_columns: bool, out: Any, first: int, k_first: int, k_end: int) -> None:
    """Write out[k - k_first, r] = source[first + r, k], or source[k, first + r]; missing rows are 0."""
    width = out.shape[1]
    size = source.shape[1] if along_columns else source.shape[0]
    count = min(width, size - first)
    by_vectors = source.strides[1] == source.itemsize
    halves = width == HALF and count == HALF  # a tile's rows, all there
    done = HALF if halves else count // EDGE * EDGE
    done = done if by_vectors else 0
    whole = (k_end - k_first) // EDGE * EDGE if done else 0
    place, to, step, to_step = source.ctypes.data, out.ctypes.data, source.strides[0], out.strides[0]
    code, lane = source[0, 0], out[0, 0]
    if along_columns:
        for k in range(k_first, k_end if done else k_first):
            at, target = place + k * step + first * source.itemsize, to + (k - k_first) * to_step
            if halves:
                widen_half(at, target, 1, code, lane)
            else:
                widen_row(at, target, done // EDGE, code, lane)
    else:
        ahead = width * step if step <= NEAR else CACHE_LINE
        for r in range(0, done, EDGE):
            for k in range(0, whole, EDGE):
                at = place + (first + r) * step + (k_first + k) * source.itemsize
                if halves:
                    transpose_half(at, step, ahead, to + k * to_step, to_step, code, lane)
                else:
                    transpose_block(at, step, ahead, to + k * to_step + r * out.itemsize, to_step, code, lane)
    for k in range(k_first, k_end):
        row = out[k - k_first]
        for r in range(done if along_columns or k - k_first < whole else 0, count):
            row[r] = source[k, first + r] if along_columns else source[first + r, k]
        for r in range(count, width):
            row[r] = 0


@kernel
def pack_tiles(source: Any, along_columns: bool, packed: Any, first: int, last: int) -> None:
    """Pack tiles first..last of the left operand into packed (tiles, K, rows)."""
    start: Any = np.int64(0)  # a literal would be a type of its own, and compile `pack` again
    for t in range(first, last):
        pack(source, along_columns, packed[t], t * packed.shape[2], start, packed.shape[1])


@kernel
def codes_stay(packed: Any, shift: int, doubled: bool) -> None:
    """Leave packed codes as they are."""


@kernel
def codes_to_words(packed: Any, shift: int, doubled: bool) -> None:
    """Make each int32 code a word of two int16: code * 2**shift in the low half, and in the high one if doubled."""
    flat = packed.reshape(-1)
    for i in range(flat.size):
        low = (flat[i] << shift) & 0xFFFF
        flat[i] = np.int32(low | (low << 16)) if doubled else np.int32(low)


def paired(a: Any, b: Any) -> tuple[Any, Any]:
    """Return a (M, K) and b (K, N), codes of int16, as words of two: (M, K/2) and (K/2, N) int32, K padded to even."""
    odd = a.shape[1] % 2
    left = np.ascontiguousarray(np.pad(a, ((0, 0), (0, 1))) if odd else a, dtype=np.int16)
    right = np.pad(b, ((0, 1), (0, 0))) if odd else b
    words = np.empty((right.shape[0] // 2, right.shape[1], 2), np.int16)
    words[:, :, 0], words[:, :, 1] = right[::2], right[1::2]
    return left.view(np.int32), words.view(np.int32)[:, :, 0]


def _walk(name: str, shape: Tile, dtype: type, convert: Any = codes_stay) -> Driver:
    kernel: Any = getattr(tiles, name)
    rows, width = shape.rows, shape.vectors * lanes(dtype)

    @kernel_of(f"{name} {shape} {dtype.__name__} {convert.__name__}")
    def run(
        left: Any,
        right: Any,
        along_columns: bool,
        acc: Any,
        k_range: Any,
        group: int,
        low: Any,
        high: Any,
        panels: Any,
        shift: int,
        doubled: bool,
    ) -> None:
        """Advance acc over k_range for some panels of the right operand. left is packed: (tiles, K, rows).

        shift and doubled: of the right operand's codes in words, whose high half meets 0 unless they are doubled.
        """
        chunk = group * max(1, CHUNK // group)
        panel = np.empty((min(chunk, k_range[1] - k_range[0]), width), acc.dtype)
        stride = acc.shape[1] * acc.itemsize
        for p in range(panels[0], panels[1]):
            for k in range(k_range[0], k_range[1], chunk):
                end = min(k + chunk, k_range[1])
                pack(right, along_columns, panel, p * width, k, end)
                if shift or doubled:
                    convert(panel[: end - k], shift, doubled)
                for t in range(left.shape[0]):
                    place = acc.ctypes.data + t * rows * stride + p * width * acc.itemsize
                    a_place = left[t, k:].ctypes.data
                    kernel(place, stride, a_place, panel.ctypes.data, end - k, group, low, high)

    return Driver(run, shape, dtype, convert)


FLOAT_EXACT = _walk("float_exact", tiles.PLAIN, np.float32)
FLOAT_CLAMP = _walk("float_clamp", tiles.PLAIN, np.float32)
FLOAT_CLAMP_GROUPED = _walk("float_clamp_grouped", tiles.GROUPED, np.float32)
INT_EXACT = _walk("int_exact", tiles.PLAIN, np.int32)
INT_CLAMP = _walk("int_clamp", tiles.PLAIN, np.int32)
INT_CLAMP_GROUPED = _walk("int_clamp_grouped", tiles.GROUPED, np.int32)
INT_SIGN_WRAP = _walk("int_sign_wrap", tiles.PLAIN, np.int32)
INT16_SATURATE = _walk("int16_saturate", tiles.PLAIN, np.int16)
INT16_SATURATE_ABOVE = _walk("int16_saturate_above", tiles.PLAIN, np.int16)
DOT_SATURATE = _walk("int_dot_saturate", tiles.PLAIN, np.int32, codes_to_words)
DOT_SATURATE_ABOVE = _walk("int_dot_saturate_above", tiles.PLAIN, np.int32, codes_to_words)
DOT_PAIRS = _walk("int_dot_wrap", tiles.PLAIN, np.int32)
DOT_WRAP = _walk("int_dot_wrap", tiles.PLAIN, np.int32, codes_to_words)


SQUARE = 32
"""Edge of the squares in which matrices are copied, so that one of them may be transposed."""


@kernel
def codes_to_lanes(codes: Any, offset: int, shift: int, acc: Any, first: int, last: int) -> None:
    """Write (code + offset) * 2**shift of rows first..last of codes (R, N), maybe a transposed view, to acc."""
    columns = codes.shape[1]
    for r in range(first, last, SQUARE):
        for c in range(0, columns, SQUARE):
            for i in range(r, min(r + SQUARE, last)):
                for j in range(c, min(c + SQUARE, columns)):
                    acc[i, j] = (codes[i, j] + offset) << shift


@kernel
def lanes_to_codes(acc: Any, offset: int, shift: int, codes: Any, first: int, last: int) -> None:
    """Write what `codes_to_lanes` undoes: rows first..last of codes (R, N) from acc, maybe a transposed view."""
    columns = codes.shape[1]
    for r in range(first, last, SQUARE):
        for c in range(0, columns, SQUARE):
            for i in range(r, min(r + SQUARE, last)):
                for j in range(c, min(c + SQUARE, columns)):
                    codes[i, j] = (np.int64(acc[i, j]) >> shift) - offset


@kernel
def int_rows_to_codes(acc: Any, offset: int, shift: int, codes: Any, first: int, last: int) -> None:
    """Write what `lanes_to_codes` does from rows of integer lanes to int32 codes, which hold it: in int32, wrapping."""
    by, less = np.int32(shift), np.int32(offset)
    for r in range(first, last):
        row, out = acc[r], codes[r]
        for j in range(out.size):
            out[j] = np.int32(floor_shift(np.int32(row[j]), by) - less)


@kernel
def int_columns_to_codes(acc: Any, offset: int, shift: int, codes: Any, first: int, last: int) -> None:
    """Write what `lanes_to_codes` does from columns first..last of integer lanes to rows of int32 codes (N, R)."""
    by, less = np.int32(shift), np.int32(offset)
    rows = codes.shape[1]
    by_blocks = rows >= EDGE and last - first >= EDGE
    place, to, step, to_step = acc.ctypes.data, codes.ctypes.data, acc.strides[0], codes.strides[0]
    for block in range(first, last, EDGE):
        end = min(block + EDGE, last)
        start = end - EDGE if by_blocks else block  # the last block of either side overlaps, and is written again
        for i in range(0, rows if by_blocks else 0, EDGE):
            r = min(i, rows - EDGE)
            at, target = place + r * step + start * acc.itemsize, to + start * to_step + r * codes.itemsize
            transpose_block(at, step, CACHE_LINE, target, to_step, acc[0, 0], codes[0, 0])
        for j in range(start, end):
            row = codes[j]
            for i in range(rows if not by_blocks else 0):
                row[i] = acc[i, j]
            for i in range(rows if shift or offset else 0):
                row[i] = np.int32(floor_shift(row[i], by) - less)


@kernel
def add_block(total: Any, block: Any) -> None:
    """Add a block of integers, held in lanes of any type, to integer totals, and clear the block."""
    for i in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[i, j] += np.int64(block[i, j])
            block[i, j] = 0


@kernel
def count_events(codes: Any, unlimited: Any, low: int, high: int, counts: Any) -> None:
    """Write altered, out of range, transient, minimum and maximum of unlimited, outputs at a rail.

    codes and unlimited are flat, of one integer type; counts is (6,) int64.
    """
    word = codes.dtype.type
    altered = out_of_range = transient = at_rail = np.int64(0)
    minimum: Any = unlimited[0]
    maximum: Any = minimum
    lowest, highest = np.int64(low), np.int64(high)
    for i in range(codes.size):
        code, u = codes[i], unlimited[i]
        outside = (u < lowest) | (u > highest)
        changed = code != u
        altered += changed
        out_of_range += outside
        transient += changed & ~outside
        at_rail += (code == lowest) | (code == highest)
        minimum, maximum = min(minimum, u), max(maximum, u)
    counts[0], counts[1], counts[2] = altered, out_of_range, transient
    counts[3], counts[4], counts[5] = word(minimum), word(maximum), at_rail


@kernel
def open_outputs(rows: Any, columns: Any, start: Any, limit: int, open_rows: Any, open_columns: Any) -> None:
    """Mark the rows and columns that hold an output with |a_i|**2 |b_j|**2 > (limit - |c|)**2, pessimistically.

    rows and columns are float64 squared norms, rounded up by the caller; start is (M, N), or (0, 0) for zeros.
    """
    for i in range(rows.size):
        for j in range(columns.size):
            if open_rows[i] and open_columns[j]:
                continue
            # In int64 first: near a rail of more than 53 bits a float64 difference could come out too large.
            room = np.float64(limit - abs(start[i, j]) if start.size else limit)
            if room < 0 or rows[i] * columns[j] > room * room:
                open_rows[i] = True
                open_columns[j] = True


@kernel
def open_by_norms(rows: Any, columns: Any, start: Any, limit: int, open_rows: Any, open_columns: Any) -> None:
    """Do what `open_outputs` does for start values (1, N), or (1, 1): the larger a row's norm, the more is open."""
    most: Any = rows[0]
    for i in range(rows.size):
        most = max(most, rows[i])
    last = start.shape[1] - 1
    for j in range(columns.size):
        room = np.float64(limit - abs(start[0, min(j, last)]))
        open_columns[j] = room < 0 or most * columns[j] > room * room
    proven, opened = -1.0, np.inf  # the largest norm of which no output is open, the smallest of which one is
    for i in range(rows.size):
        if proven < rows[i] < opened:
            is_open: Any = False
            for j in range(columns.size):
                room = np.float64(limit - abs(start[0, min(j, last)]))
                is_open |= room < 0 or rows[i] * columns[j] > room * room
            if is_open:
                opened = rows[i]
            else:
                proven = rows[i]
        open_rows[i] = rows[i] >= opened


@kernel
def squared_norms(codes: Any, along_columns: bool, out: Any) -> None:
    """Add the square of every code to out, int64: one entry per row, or per column."""
    for i in range(codes.shape[0]):
        total = np.int64(0)
        for j in range(codes.shape[1]):
            square = np.int64(codes[i, j]) * np.int64(codes[i, j])
            if along_columns:
                out[j] += square
            else:
                total += square
        if not along_columns:
            out[i] += total


@kernel
def column_magnitudes(codes: Any, out: Any) -> None:
    """Add the magnitude of every code to its column of out, int64."""
    for i in range(codes.shape[0]):
        for j in range(codes.shape[1]):
            out[j] += abs(np.int64(codes[i, j]))


@kernel
def row_magnitudes(codes: Any, out: Any) -> None:
    """Add the magnitude of every code to its row of out, int64."""
    for i in range(codes.shape[0]):
        total = np.int64(0)
        for j in range(codes.shape[1]):
            total += abs(np.int64(codes[i, j]))
        out[i] += total
