"""Sums of codes with random words, modulo 2**32: what Freivalds' check multiplies with.

Reduction modulo 2**32 is a ring homomorphism, so every sum and product may be reduced where it arises. Convolutions are
followed through their own images: no matrix of patches exists. Where an image is laid out is found anew, not as the
kernels that are checked find it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fqtsim.kernels import threads
from fqtsim.kernels.jit import inner, kernel

Words = np.ndarray[Any, np.dtype[np.uint32]]

STRIP = 1 << 11
"""Columns that are summed at a time, so that their sums stay in the first-level cache."""
EASY = 8
"""Codes of a matrix that are summed in the time of one element that goes as fast as memory does (threads.parts)."""
HELD_WORDS = 1 << 15
"""Sums of images that are held at a time."""


class Grid(NamedTuple):
    """A plane on which output o of a convolution meets tap t at o * step + t * tap + start; pairs are (down, across).

    Source s stands at s * hole + first, if that is within the size. int64 arrays (2,).
    """

    size: Any
    step: Any
    tap: Any
    start: Any
    hole: Any
    first: Any


def grid_of(outputs: Any, taps: Any, step: Any, tap: Any, offset: Any, hole: Any) -> Grid:
    """Return the plane of what meets (o * step + t * tap + offset) / hole; every argument a pair."""
    counts, taps, step, tap, offset, hole = (np.array(x, np.int64) for x in (outputs, taps, step, tap, offset, hole))
    reach = (taps - 1) * tap
    lowest = offset + np.minimum(reach, 0)
    size = (counts - 1) * step + np.abs(reach) + 1
    return Grid(size, step, tap, offset - lowest, hole, -lowest)


def combine(weights: Words, matrix: np.ndarray[Any, Any]) -> Words:
    """Return weights (2, R) times an integer matrix (R, C), modulo 2**32: uint32 (2, C)."""
    ranges = threads.parts(matrix.shape[0], matrix.shape[1] // EASY, quick=True)

    def part(first: int, last: int) -> Words:
        out = np.zeros((2, matrix.shape[1]), np.uint32)
        _combine(weights, matrix, out, first, last)
        return out

    total, *others = threads.run(part, ranges)
    for other in others:
        total += other
    return total


def combine_rows(weights: Words, matrix: np.ndarray[Any, Any]) -> Words:
    """Return what each row of an integer matrix (R, K) sums to with weights (2, K): uint32 (2, R)."""
    out = np.empty((2, matrix.shape[0]), np.uint32)
    threads.run(lambda first, last: _combine_rows(weights, matrix, out, first, last), threads.parts(*matrix.shape))
    return out


def tap_sums(images: Words, fill: Words, grid: Grid, words: Words, taps: tuple[int, int]) -> Words:
    """Return what each tap meets at all outputs, summed with their words: uint32 (2, C, KH * KW).

    images (2, C, H, W), fill (2,): what stands where there is none; words (2, OH, OW).
    """
    out = np.empty((2, images.shape[1], taps[0] * taps[1]), np.uint32)
    if grid.step[1] == 1:  # rows of a plane one behind the other, past whose ends words are 0
        wide = np.zeros((2, words.shape[1], grid.size[1] * grid.step[0]), np.uint32)
        wide[:, :, : words.shape[2]] = words
        count = (words.shape[1] - 1) * wide.shape[2] + words.shape[2]
        words = np.ascontiguousarray(wide.reshape(2, 1, -1)[:, :, :count])
    ranges = threads.parts(images.shape[1], out.shape[2] * words.size, quick=True)
    threads.run(lambda first, last: _tap_sums(images, fill, grid, words, taps[1], out, first, last), ranges)
    return out


def gradient_sums(
    x: np.ndarray[Any, Any], fill: np.ndarray[Any, Any], grid: Grid, tap_words: Words, words: Words,
    dh: np.ndarray[Any, Any], groups: int,
) -> Words:  # fmt: skip
    """Return the sums of what taps and channels meet, with their words, times dH: uint32 (2, groups * CO).

    x (N, groups * C, H, W), fill (N,), tap_words (2, KH, KW), words (2, C), dh (N, groups * CO, OH, OW).
    """
    channels, outputs = x.shape[1] // groups, dh.shape[1] // groups
    (height, width), (rows, columns) = x.shape[2:], dh.shape[2:]
    blank = np.repeat(fill.astype(np.uint32)[:, None] * words.sum(axis=1, dtype=np.uint32), groups, axis=0)

    # A few samples at a time, whose sums stay in the second-level cache.
    each = max(1, min(len(x), HELD_WORDS // (2 * groups * max(height * width, rows * columns))))

    def part(first: int, last: int) -> Words:
        images = np.empty((each * groups, 2, height * width), np.uint32)
        met = np.empty((each * groups, 2, rows * columns), np.uint32)
        out = np.zeros((2, groups, outputs), np.uint32)
        for n in range(first, last, each):
            some = slice(n, min(n + each, last))
            count = (some.stop - n) * groups
            _channel_sums(words, x[some].reshape(count, channels, -1), images)
            _patch_sums(images, width, blank[n * groups : n * groups + count], grid, tap_words, columns, met)
            _add_products(met, dh[some].reshape(count, outputs, -1), out)
        return out.reshape(2, -1)

    total, *others = threads.run(part, threads.parts(len(x), x[0].size + dh[0].size, quick=True))
    for other in others:
        total += other
    return total


@inner
def multiplied(total: Any, word: Any, code: Any) -> Any:
    """Return total + word * code, all uint32.

    Cut to 32 bits at every operation: Numba makes 64 of them, whose products take twice as long in vectors.
    """
    return np.uint32(total + np.uint32(word * code))


@inner
def _add_rows(weights: Any, matrix: Any, out: Any, first: int, last: int) -> None:
    """Add weights (2, R) times rows first..last of a matrix (R, C) to out (2, C)."""
    columns = matrix.shape[1]
    for left in range(0, columns, STRIP):
        right = min(left + STRIP, columns)
        odd, even = out[0, left:right], out[1, left:right]
        row = first
        while row + 4 <= last:
            m0, m1 = matrix[row, left:right], matrix[row + 1, left:right]
            m2, m3 = matrix[row + 2, left:right], matrix[row + 3, left:right]
            u0, u1, u2, u3 = weights[0, row], weights[0, row + 1], weights[0, row + 2], weights[0, row + 3]
            v0, v1, v2, v3 = weights[1, row], weights[1, row + 1], weights[1, row + 2], weights[1, row + 3]
            for i in range(right - left):
                x0, x1, x2, x3 = np.uint32(m0[i]), np.uint32(m1[i]), np.uint32(m2[i]), np.uint32(m3[i])
                two = multiplied(multiplied(odd[i], u0, x0), u1, x1)
                odd[i] = multiplied(multiplied(two, u2, x2), u3, x3)
                two = multiplied(multiplied(even[i], v0, x0), v1, x1)
                even[i] = multiplied(multiplied(two, v2, x2), v3, x3)
            row += 4
        for rest in range(row, last):
            for i in range(left, right):
                x = np.uint32(matrix[rest, i])
                out[0, i] = multiplied(out[0, i], weights[0, rest], x)
                out[1, i] = multiplied(out[1, i], weights[1, rest], x)


@kernel
def _combine(weights: Any, matrix: Any, out: Any, first: int, last: int) -> None:
    _add_rows(weights, matrix, out, first, last)


@inner
def weigh(first: Any, second: Any, codes: Any) -> Any:
    """Return what codes (n,) sum to with each of two rows of words (n,)."""
    odd, even = np.uint32(0), np.uint32(0)
    for i in range(codes.size):
        x = np.uint32(codes[i])
        odd, even = multiplied(odd, first[i], x), multiplied(even, second[i], x)
    return odd, even


@kernel
def _combine_rows(weights: Any, matrix: Any, out: Any, first: int, last: int) -> None:
    for row in range(first, last):
        out[0, row], out[1, row] = weigh(weights[0], weights[1], matrix[row])


@inner
def _copy(source: Any, out: Any) -> None:
    for i in range(out.size):  # of slices: by index and offset it takes three times as long
        out[i] = source[i]


@inner
def _lay(image: Any, width: int, fill: Any, grid: Any, plane: Any) -> None:
    """Put an image (H * width,) on a plane (grid.size, flat), and fill on what it leaves."""
    plane.fill(fill)
    across, hole, left = grid.size[1], grid.hole[1], grid.first[1]
    first = max(0, -(left // hole))
    last = max(first, min(width, (across - 1 - left) // hole + 1))
    for i in range(image.size // width):
        y = i * grid.hole[0] + grid.first[0]
        if not 0 <= y < grid.size[0]:
            continue
        source, start = i * width, y * across + left
        if hole == 1:
            _copy(image[source + first :], plane[start + first : start + last])
        else:
            for j in range(first, last):
                plane[start + j * hole] = image[source + j]


@inner
def _dot(words: Any, line: Any) -> Any:
    total = np.uint32(0)
    for i in range(words.size):
        total = multiplied(total, words[i], line[i])
    return total


@kernel
def _tap_sums(images: Any, fill: Any, grid: Any, words: Any, kw: int, out: Any, first: int, last: int) -> None:
    width, step = grid.size[1], grid.step[1]
    plane = np.empty(grid.size[0] * width, np.uint32)
    for r in range(2):
        for c in range(first, last):
            _lay(images[r, c].reshape(-1), images.shape[3], fill[r], grid, plane)
            for t in range(out.shape[2]):
                top, left = t // kw * grid.tap[0] + grid.start[0], t % kw * grid.tap[1] + grid.start[1]
                place = top * width + left
                if step == 1:
                    out[r, c, t] = _dot(words[r, 0], plane[place:])
                    continue
                total = np.uint32(0)
                for y in range(words.shape[1]):
                    start = place + y * grid.step[0] * width
                    for i in range(words.shape[2]):
                        total = multiplied(total, words[r, y, i], plane[start + i * step])
                out[r, c, t] = total


@kernel
def _channel_sums(words: Any, x: Any, out: Any) -> None:
    """Write the sums over channels of x (B, C, H * W) with words (2, C) to out (B or more, 2, H * W)."""
    for b in range(x.shape[0]):
        out[b].fill(np.uint32(0))
        _add_rows(words, x[b], out[b], 0, x.shape[1])


@inner
def _add_scaled(word: Any, line: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = multiplied(out[i], word, line[i])


@inner
def _add_three(words: Any, line: Any, second: Any, third: Any, out: Any) -> None:
    one, two, three = words[0], words[1], words[2]
    for i in range(out.size):
        out[i] = multiplied(multiplied(multiplied(out[i], one, line[i]), two, second[i]), three, third[i])


@inner
def _add_taps(plane: Any, place: int, apart: int, words: Any, out: Any) -> None:
    """Add what a row of taps meets, with their words (KW,), to one long line of outputs."""
    j = 0
    while j + 3 <= words.size:
        first = place + j * apart
        _add_three(words[j : j + 3], plane[first:], plane[first + apart :], plane[first + 2 * apart :], out)
        j += 3
    for rest in range(j, words.size):
        _add_scaled(words[rest], plane[place + rest * apart :], out)


@kernel
def _patch_sums(images: Any, width: int, fill: Any, grid: Any, tap_words: Any, columns: int, out: Any) -> None:
    """Write what the taps of each output meet of images (., 2, H * W) to out (., 2, OH * OW), summed with their words.

    fill (B, 2) for the first B images, tap_words (2, KH, KW). With neighbouring outputs one long line of a plane serves
    for all of them.
    """
    across, rows = grid.size[1], out.shape[2] // columns
    plane, flat = np.empty(grid.size[0] * across, np.uint32), np.empty((rows - 1) * across + columns, np.uint32)
    dense = grid.step[0] == grid.step[1] == 1
    for b in range(fill.shape[0]):
        for r in range(2):
            _lay(images[b, r], width, fill[b, r], grid, plane)
            own = out[b, r]
            flat.fill(np.uint32(0))
            own.fill(np.uint32(0))
            for i in range(tap_words.shape[1]):
                place = (i * grid.tap[0] + grid.start[0]) * across + grid.start[1]
                if dense:
                    _add_taps(plane, place, grid.tap[1], tap_words[r, i], flat)
                    continue
                for j in range(tap_words.shape[2]):
                    word = tap_words[r, i, j]
                    for y in range(rows):
                        start = place + j * grid.tap[1] + y * grid.step[0] * across
                        for x in range(columns):
                            met = plane[start + x * grid.step[1]]
                            own[y * columns + x] = multiplied(own[y * columns + x], word, met)
            if dense:
                for y in range(rows):
                    _copy(flat[y * across :], own[y * columns : (y + 1) * columns])


@kernel
def _add_products(met: Any, dh: Any, out: Any) -> None:
    """Add the sums of met (B or more, 2, P) times dh (B, CO, P) to out (2, G, CO); groups come by turns."""
    for b in range(dh.shape[0]):
        for o in range(dh.shape[1]):
            odd, even = weigh(met[b, 0], met[b, 1], dh[b, o])
            g = b % out.shape[1]
            out[0, g, o] = np.uint32(out[0, g, o] + odd)
            out[1, g, o] = np.uint32(out[1, g, o] + even)
