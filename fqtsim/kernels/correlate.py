"""Direct convolutions of 8-bit codes: exact sums straight from padded planes, and their epilogue (S4, S5.8).

An image is laid out once, padded and with stride phases apart, so that output position (y, x) of every tap lies a fixed
distance behind position y * width + x of its phase. Output positions are then one flat run; those past the end of a
row are computed and dropped. No matrix of patches exists.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fqtsim.kernels import correlate_tile as tiles
from fqtsim.kernels.freivalds import weigh
from fqtsim.kernels.jit import inner, kernel, kernel_of
from fqtsim.kernels.scale_tile import scale_rows, scale_rows_shifted
from fqtsim.kernels.tile import VECTOR
from fqtsim.kernels.transpose import EDGE, transpose_block

SPAN = tiles.IMAGE.vectors * tiles.LANES
"""Output positions of a tile."""
ROWS = tiles.IMAGE.rows
"""Output channels of a tile."""

_image_tile, _image_end, copy_rows = tiles.image, tiles.image_end, tiles.copy_rows
_SHORT = tiles.IMAGE_END.vectors * tiles.LANES


class Layout(NamedTuple):
    """Where codes stand in planes, and where each tap reads them. Arrays are int64."""

    #: (phases, 5) for rows and for columns: first place, its step, first source index, its step, how many.
    down: Any
    across: Any
    #: Rows and columns of a plane; output rows and columns.
    height: int
    width: int
    rows: int
    columns: int
    #: (taps,): phase, and distance within its plane.
    phases: Any
    shifts: Any

    @property
    def plane(self) -> int:
        """Places of one plane."""
        return self.height * self.width

    @property
    def positions(self) -> int:
        """Output positions, those past the ends of rows included."""
        return (self.rows - 1) * self.width + self.columns


@inner
def _words_of_four(x: Any, words: Any) -> None:
    """Interleave the bytes of x (4, size) into words."""
    one, two, three, four = x[0], x[1], x[2], x[3]
    for i in range(words.size):
        low = np.uint32(one[i]) | (np.uint32(two[i]) << np.uint32(8))
        words[i] = low | (np.uint32(three[i]) << np.uint32(16)) | (np.uint32(four[i]) << np.uint32(24))


@inner
def _words_of_few(x: Any, words: Any) -> None:
    """The same for fewer channels; the other bytes are 0."""
    for i in range(words.size):
        word = np.uint32(0)
        for c in range(x.shape[0]):
            word |= np.uint32(x[c, i]) << np.uint32(8 * c)
        words[i] = word


@inner
def _spread(code: Any, count: int) -> Any:
    """Return a byte in the lowest `count` bytes of a word."""
    word = np.uint32(0)
    for c in range(count):
        word |= np.uint32(code) << np.uint32(8 * c)
    return word


@inner
def place_image(
    source: Any, columns: int, down: Any, across: Any, width: int, blank: Any, mask: Any, plane: Any
) -> None:
    """Put an image, (rows * columns,) of one type with plane, into a plane; what no source meets becomes blank.

    Up to a vector behind the plane is overwritten.
    """
    top, left, count = down[0], across[0], across[4]
    if not (down[4] and count):
        plane.fill(blank)
        return
    if down[1] == down[3] == across[1] == across[3] == 1:
        size = source.itemsize
        copy_rows(
            plane.ctypes.data + (top * width + left) * size, width * size,
            source.ctypes.data + (down[2] * columns + across[2]) * size, columns * size, down[4], count * size, mask,
        )  # fmt: skip
        # Only now: the copies overwrote what is right of each row.
        plane[: top * width + left].fill(blank)
        for i in range(top, top + down[4] - 1):
            for j in range(i * width + left + count, (i + 1) * width + left):
                plane[j] = blank
        plane[(top + down[4] - 1) * width + left + count :].fill(blank)
        return
    plane.fill(blank)
    for i in range(down[4]):
        row = plane[(top + i * down[1]) * width :]
        line = source[(down[2] + i * down[3]) * columns :]
        for j in range(count):
            row[left + j * across[1]] = line[across[2] + j * across[3]] ^ mask


@inner
def image_planes(x: Any, fill: Any, flip: Any, layout: Any, words: Any, planes: Any) -> None:
    """Lay x (C, H, W) out as words of four channels: planes (ceil(C / 4), phases, places). Bytes are xored with flip.

    In order of memory, as `place_image` overwrites what is behind a plane. words, (H * W and a vector), is working
    space.
    """
    down, across = layout.down, layout.across
    flat = x.reshape(x.shape[0], -1)
    size = flat.shape[1]
    for b in range(planes.shape[0]):
        part = flat[4 * b : 4 * b + 4]
        blank, mask = _spread(fill ^ flip, part.shape[0]), _spread(flip, part.shape[0])
        if part.shape[0] == 4:
            _words_of_four(part, words[:size])
        else:
            _words_of_few(part, words[:size])
        for p in range(planes.shape[1]):
            vertical, horizontal = down[p // len(across)], across[p % len(across)]
            place_image(words, x.shape[2], vertical, horizontal, layout.width, blank, np.int64(mask), planes[b, p])


@inner
def add_taps(sums: Any, phases: Any, shifts: Any, out: Any) -> None:
    """Write to out (positions,) int32 the sum over each patch of what each place has, sums (phases, places)."""
    out.fill(0)
    for t in range(shifts.size):
        source = sums[phases[t], shifts[t] :]
        for i in range(out.size):
            out[i] += source[i]


@inner
def patch_sums(planes: Any, phases: Any, shifts: Any, sums: Any, out: Any) -> None:
    """Write to out (positions,) int32 what each patch's bytes sum to; sums (phases, places) is working space."""
    for p in range(planes.shape[1]):
        total = sums[p]
        total.fill(0)
        for b in range(planes.shape[0]):
            words = planes[b, p]
            for i in range(total.size):
                word = words[i]
                even, odd = word & np.uint32(0x00FF00FF), (word >> np.uint32(8)) & np.uint32(0x00FF00FF)
                both = even + odd
                total[i] += np.int32((both & np.uint32(0xFFFF)) + (both >> np.uint32(16)))
    add_taps(sums, phases, shifts, out)


@inner
def without_ends(flat: Any, width: int, rows: int, columns: int, out: Any) -> None:
    """Write rows of `columns` int32 that lie `width` apart one behind the other; both have a vector more of room."""
    copy_rows(out.ctypes.data, 4 * columns, flat.ctypes.data, 4 * width, rows, 4 * columns, 0)


@inner
def scaled_shifted(acc: Any, base: Any, sums: Any, zero: Any, scale: Any, out: Any) -> None:
    # Integers below 2**53 throughout, so nothing rounds before the last product.
    for i in range(acc.size):
        out[i] = np.float32((np.float64(acc[i]) + (base - zero * np.float64(sums[i]))) * scale)


class ImageWork(NamedTuple):
    """Working space of `convolve`, for one thread; made by `image_work`."""

    #: Words of four channels, with room behind them that a tile's last span and its vectors may read.
    flat: Any
    planes: Any
    words: Any
    #: int32: sums of bytes of each place, and of each patch; sums of products (ROWS, positions and more).
    sums: Any
    patches: Any
    acc: Any
    #: int32, (OH * OW and a vector more): sums without the places past the ends of rows.
    channel: Any


def image_work(shape: tuple[int, ...], layout: Layout) -> ImageWork:
    """Return working space for images of a shape (N, C, H, W)."""
    blocks, phases = -(-shape[1] // 4), len(layout.down) * len(layout.across)
    padded = -(-layout.positions // SPAN) * SPAN
    size, dense = phases * blocks * layout.plane, layout.rows * layout.columns + VECTOR
    flat = np.zeros(size + padded - layout.positions + VECTOR, np.uint32)
    words = np.zeros(shape[2] * shape[3] + VECTOR, np.uint32)
    sums, patches = np.empty((phases, layout.plane), np.int32), np.empty(layout.positions + VECTOR, np.int32)
    acc, channel = np.zeros(ROWS * padded + VECTOR, np.int32), np.zeros(dense, np.int32)
    planes = flat[:size].reshape(blocks, phases, layout.plane)
    return ImageWork(flat, planes, words, sums, patches, acc, channel)


@inner
def store_codes(acc: Any, moved: Any, column: Any) -> None:
    for i in range(column.size):
        column[i] = acc[i] - moved


@inner
def _finish_channel(acc: Any, patches: Any, layout: Any, zero: Any, base: Any, scale: Any, out: Any) -> Any:
    """Write one output channel (OH * OW,) from sums of every position; return the smallest and largest of it."""
    places = acc.ctypes.data, patches.ctypes.data, out.ctypes.data
    extent = layout.rows, layout.columns, 4 * layout.width
    if zero:
        return scale_rows_shifted(*places, *extent, zero, base, scale)
    return scale_rows(*places, *extent, zero, base, scale)


@kernel
def convolve(
    x: Any, fill: Any, flip: Any, layout: Any, words: Any, row_side: Any, column_side: Any, work: Any, out: Any,
    codes: Any, check: Any, first: int, last: int,
) -> Any:  # fmt: skip
    """Convolve samples first..last and write float32 out (N, CO, OH * OW); return the smallest and largest sum.

    x (N, C, H, W) bytes, fill (N,) bytes, words (CO tiles, taps * blocks, ROWS) of signed bytes.
    row_side = (zero points int64, steps float64) of samples; column_side = (zero points, sums over k int64, steps
    float64) of output channels; codes (N, OH * OW, CO) int32 takes the sums too, unless it is empty;
    check = (words uint32 (2, positions), 0 past the ends of rows; uint32 (2, N, CO) that takes what the sums, not yet
    less the shift of bytes, sum to with them, unless it is empty).
    """
    width, rows, columns, phases, shifts = layout.width, layout.rows, layout.columns, layout.phases, layout.shifts
    flat, planes, image, sums, patches, acc, channel = work
    blocks, step, padded = planes.shape[0], planes.shape[1] * planes.shape[2], (acc.size - VECTOR) // ROWS
    offsets = 4 * (phases * planes.shape[2] + shifts)
    zeros, column_sums, steps = column_side
    moving, terms, shifted = np.int64(flip), x.shape[1] * shifts.size, False
    for o in range(zeros.size):
        shifted |= zeros[o] != 0
    one, two, checked = check[0][0], check[0][1], check[1]
    lowest, highest = np.int64(1) << 62, -(np.int64(1) << 62)
    for n in range(first, last):
        image_planes(x[n], fill[n], flip, layout, image, planes)
        if shifted:
            patch_sums(planes, phases, shifts, sums, patches[: patches.size - VECTOR])
        za = row_side[0][n]
        for t in range(words.shape[0]):
            own_words = offsets.ctypes.data, shifts.size, 4 * step, words[t].ctypes.data, 4 * ROWS, 4, blocks
            for q in range(0, padded, SPAN):
                lanes = acc.ctypes.data + 4 * q, 4 * padded, flat.ctypes.data + 4 * q
                if q + _SHORT < (rows - 1) * width + columns:
                    _image_tile(*lanes, *own_words)
                else:
                    _image_end(*lanes, *own_words)
            for o in range(t * ROWS, min((t + 1) * ROWS, out.shape[1])):
                own = acc[(o - t * ROWS) * padded :]
                moved = moving * column_sums[o]
                base = np.float64(zeros[o] * terms * (moving + za) - moved - za * column_sums[o])
                scale = row_side[1][n] * steps[o]
                low, high = _finish_channel(own, patches, layout, np.float64(zeros[o]), base, scale, out[n, o])
                lowest, highest = min(lowest, low - moved), max(highest, high - moved)
                if checked.size:
                    checked[0, n, o], checked[1, n, o] = weigh(one, two, own[: one.size])
                if codes.size:
                    without_ends(own, width, rows, columns, channel)
                    store_codes(channel, moved, codes[n, :, o])
    return lowest, highest


@inner
def copy_codes(source: Any, out: Any) -> None:
    for i in range(source.size):
        out[i] = source[i]


@inner
def byte_planes(x: Any, fill: Any, flip: Any, layout: Any, line: Any, planes: Any) -> None:
    """Lay x (C, H, W) out channel by channel: planes (C or more, phases, places) of bytes xored with flip.

    line, (H * W and a vector more) bytes, is working space: whole vectors of x itself would end behind it.
    """
    down, across, mask = layout.down, layout.across, np.int64(0x01010101) * np.int64(flip)
    for c in range(x.shape[0]):
        copy_codes(x[c].reshape(-1), line)
        for p in range(planes.shape[1]):
            vertical, horizontal = down[p // len(across)], across[p % len(across)]
            place_image(line, x.shape[2], vertical, horizontal, layout.width, fill ^ flip, mask, planes[c, p])


@inner
def _add_bytes(bytes_: Any, total: Any) -> None:
    for i in range(bytes_.size):
        total[i] += np.int32(bytes_[i])


@inner
def sum_of(codes: Any) -> Any:
    """Return the sum of contiguous codes."""
    total = np.int64(0)
    for i in range(codes.size):
        total += codes[i]
    return total


@inner
def gradient_words(dh: Any, start: int, width: int, line: Any, placed: Any, words: Any) -> None:
    """Write dh (CO, OH, OW), channels from start on, as words of positions: words (EDGE at a time, channels).

    Rows are `width` places long, those past the end are 0. line, (OH * OW and a vector more), and placed, (EDGE, a
    channel's places and a vector more), are working space of dh's type.
    """
    outputs, rows, columns = dh.shape
    item, size, word = dh.itemsize, rows * columns, words[0, 0]
    places = 4 * len(words) // item
    for first in range(0, words.shape[1], EDGE):
        for r in range(EDGE):
            o, own = start + first + r, placed[r]
            if o >= outputs:
                own.fill(0)
                continue
            source = dh.ctypes.data + o * size * item
            if (outputs - 1 - o) * size * item < VECTOR:  # whole vectors of dh itself would end behind it
                copy_codes(dh[o].reshape(-1), line)
                source = line.ctypes.data
            copy_rows(own.ctypes.data, width * item, source, columns * item, rows, columns * item, 0)
            for y in range(rows - 1):
                for j in range(y * width + columns, (y + 1) * width):
                    own[j] = 0
            own[(rows - 1) * width + columns : places].fill(0)
        for j in range(0, len(words), EDGE):
            source, target = placed.ctypes.data + 4 * j, words.ctypes.data + 4 * (j * words.shape[1] + first)
            transpose_block(source, placed.shape[1] * item, 0, target, 4 * words.shape[1], word, word)


@kernel
def tap_sums(places: Any, layout: Any, out: Any) -> None:
    """Write to out (taps, C) what each tap meets at all output positions; places (C, phases, plane) int64."""
    for t in range(out.shape[0]):
        for c in range(out.shape[1]):
            own, total = places[c, layout.phases[t]], np.int64(0)
            for y in range(layout.rows):
                start = layout.shifts[t] + y * layout.width
                for j in range(start, start + layout.columns):
                    total += own[j]
            out[t, c] = total


class GradientWork(NamedTuple):
    """Working space and results of a walk of WALKS, for one thread; made by `gradient_work`."""

    #: Bytes of the images with room behind them; words of four positions, EDGE at a time; channels with room.
    flat: Any
    planes: Any
    words: Any
    line: Any
    placed: Any
    #: int32, added to: products (taps, C or more, CO or more), bytes of each place, codes of dh.
    acc: Any
    places: Any
    columns: Any


def gradient_work(shape: tuple[int, ...], outputs: int, vectors: int, layout: Layout) -> GradientWork:
    """Return working space for images of a shape (N, C, H, W) and gradients of so many channels, results 0."""
    rows, width = tiles.WEIGHTS[vectors].rows, vectors * tiles.LANES
    rows, columns = -(-shape[1] // rows) * rows, -(-outputs // width) * width
    phases, n_words = len(layout.down) * len(layout.across), -(-layout.positions // (4 * EDGE)) * EDGE
    size = phases * rows * layout.plane
    longest = max(shape[2] * shape[3], layout.rows * layout.columns)
    flat, line = np.zeros(size + VECTOR, np.uint8), np.zeros(longest + VECTOR, np.uint8)
    return GradientWork(
        flat, flat[:size].reshape(rows, phases, layout.plane), np.zeros((n_words, columns), np.uint32), line,
        np.zeros((EDGE, 4 * n_words + VECTOR), np.uint8), np.zeros((len(layout.shifts), rows, columns), np.int32),
        np.zeros(size, np.int32), np.zeros(outputs, np.int32),
    )  # fmt: skip


def weight_walk(vectors: int) -> Any:
    """Return correlate(...) for so many vectors of output channels a tile; see below."""
    kernel, rows = tiles.weights[vectors], tiles.WEIGHTS[vectors].rows
    outputs = vectors * tiles.LANES

    @kernel_of(f"{vectors} vectors, {tiles.WEIGHTS[vectors]}")
    def correlate(x: Any, fill: Any, flip: Any, dh: Any, layout: Any, work: Any, first: int, last: int) -> None:
        """Add what samples first..last of x, bytes, and dh, int8, give to the results in work."""
        phases, shifts = layout.phases, layout.shifts
        flat, planes, words, line, placed, acc, places, columns = work
        size, pitch, none = planes.shape[2], 4 * acc.shape[2], np.zeros(1, np.int64)
        n_words = ((layout.rows - 1) * layout.width + layout.columns + 3) // 4
        for n in range(first, last):
            byte_planes(x[n], fill[n], flip, layout, line, planes)
            gradient_words(dh[n], 0, layout.width, line, placed, words)
            for o in range(columns.size):
                columns[o] += sum_of(dh[n, o].reshape(-1).view(np.int8))
            _add_bytes(flat[: places.size], places)
            for t in range(shifts.size):
                plane = flat.ctypes.data + phases[t] * size + shifts[t]
                for o in range(0, acc.shape[2], outputs):
                    for c in range(0, acc.shape[1], rows):
                        kernel(
                            acc.ctypes.data + (t * acc.shape[1] + c) * pitch + 4 * o, pitch,
                            words.ctypes.data + 4 * o, none.ctypes.data, 1, pitch,
                            plane + c * planes.shape[1] * size, 4, planes.shape[1] * size, n_words,
                        )  # fmt: skip

    return correlate


WALKS = {vectors: weight_walk(vectors) for vectors in tiles.WEIGHTS}
