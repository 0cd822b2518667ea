"""Direct convolutions whose registers matter: every addition performed, straight from padded planes (S4, S5.8).

Planes are those of correlate.py, of words of two 16-bit codes; the tiles are those of chain_tile.py. fprop and dgrad
sum U beside the codes; wgrad sums both in one tile, a register for each pair of a tap's channel and an output channel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fqtsim.kernels.chain_tile import Form, Kind, chain_tile
from fqtsim.kernels.correlate import (
    Layout,
    add_taps,
    copy_codes,
    gradient_words,
    place_image,
    scaled_shifted,
    store_codes,
    sum_of,
    without_ends,
)
from fqtsim.kernels.ends import ends
from fqtsim.kernels.gemm import count_events
from fqtsim.kernels.jit import inner, kernel, kernel_of, made_once
from fqtsim.kernels.looks import ROUND_UP, may_pass, tile_ends
from fqtsim.kernels.tile import VECTOR, Tile, lanes
from fqtsim.kernels.transpose import EDGE

LANES = lanes(np.int32)


def exact_beside(kind: Kind) -> Kind:
    """Return the kind that sums U on the planes that another kind walks, by spans of the same width."""
    rows = {3: 8, 4: 6}.get(kind.tile.vectors, 8)
    return Kind((Form(),), "pairs", False, True, "planes", Tile(rows, kind.tile.vectors))


class ImageWork(NamedTuple):
    """Working space of an image walk, for one thread; made by `image_work`."""

    #: Words of two channels, with room behind them that a tile's last span and its vectors may read.
    flat: Any
    planes: Any
    #: uint32 (H * W and a vector).
    line: Any
    #: int32: lanes and U of every output channel and position, flat with room for a vector.
    acc: Any
    unlimited: Any
    #: int32 (OH * OW and a vector): one channel without the places past the ends of rows.
    channel: Any
    u_channel: Any
    #: int32: sums of codes of each place, and of each patch; the latter without the places past the ends of rows.
    sums: Any
    patches: Any
    patch_channel: Any
    #: float64 (groups, spans) of a `Look`.
    roots: Any
    #: (2,) int32: smallest and largest sum of a tile; bool (tiles, spans): whether every addition was performed.
    ends: Any
    opened: Any


def image_work(shape: tuple[int, ...], layout: Layout, kind: Kind, outputs: int, groups: int) -> ImageWork:
    """Return working space for images of a shape (N, C, H, W)."""
    span = kind.tile.vectors * LANES
    blocks, phases = -(-shape[1] // 2), len(layout.down) * len(layout.across)
    padded, size = -(-layout.positions // span) * span, blocks * phases * layout.plane
    flat = np.zeros(size + padded - layout.positions + VECTOR, np.uint32)
    rows = (-(-outputs // one.tile.rows) * one.tile.rows for one in (kind, exact_beside(kind)))
    acc, unlimited = (np.zeros(count * padded + VECTOR, np.int32) for count in rows)
    dense = layout.rows * layout.columns + VECTOR
    channel, u_channel, patch_channel = (np.zeros(dense, np.int32) for _ in range(3))
    sums, patches = np.empty((phases, layout.plane), np.int32), np.empty(layout.positions + VECTOR, np.int32)
    planes, line = flat[:size].reshape(blocks, phases, layout.plane), np.zeros(shape[2] * shape[3] + VECTOR, np.uint32)
    roots = np.zeros((groups, padded // span))
    return ImageWork(
        flat, planes, line, acc, unlimited, channel, u_channel, sums, patches, patch_channel, roots,
        np.zeros(2, np.int32), np.zeros((-(-outputs // kind.tile.rows), padded // span), np.bool_),
    )  # fmt: skip


@inner
def _words_of_two(low: Any, high: Any, words: Any) -> None:
    for i in range(words.size):
        words[i] = np.uint32(low[i] & 0xFFFF) | (np.uint32(high[i] & 0xFFFF) << np.uint32(16))


@inner
def _words_of_one(low: Any, words: Any) -> None:
    for i in range(words.size):
        words[i] = np.uint32(low[i] & 0xFFFF)


@inner
def _word_planes(x: Any, fill: Any, layout: Any, line: Any, planes: Any) -> None:
    """Lay x (C, H, W) out as words of two channels: planes (ceil(C / 2), phases, places); what is missing is 0."""
    down, across = layout.down, layout.across
    flat = x.reshape(x.shape[0], -1)
    size = flat.shape[1]
    for b in range(planes.shape[0]):
        blank = np.uint32(fill & 0xFFFF)
        if 2 * b + 1 < x.shape[0]:
            _words_of_two(flat[2 * b], flat[2 * b + 1], line[:size])
            blank |= blank << np.uint32(16)
        else:
            _words_of_one(flat[2 * b], line[:size])
        for p in range(planes.shape[1]):
            vertical, horizontal = down[p // len(across)], across[p % len(across)]
            place_image(line, x.shape[2], vertical, horizontal, layout.width, blank, np.int64(0), planes[b, p])


@inner
def _patch_sums(planes: Any, phases: Any, shifts: Any, sums: Any, out: Any) -> None:
    """Write to out (positions,) int32 what each patch's codes sum to; sums (phases, places) is working space."""
    for p in range(planes.shape[1]):
        total = sums[p]
        total.fill(0)
        for b in range(planes.shape[0]):
            words = planes[b, p].view(np.int32)
            for i in range(total.size):
                total[i] += np.int32(np.int32(words[i] << np.int32(16)) >> np.int32(16)) + (words[i] >> np.int32(16))
    add_taps(sums, phases, shifts, out)


@inner
def _lanes_to_codes(channel: Any, offset: int, shift: int) -> None:
    less, by = np.int32(offset), np.int32(shift)
    for i in range(channel.size):
        channel[i] = np.int32((channel[i] >> by) - less)


@inner
def _count(codes: Any, unlimited: Any, rails: Any, same: bool, counts: Any) -> None:
    """Do what `count_events` does; same: the codes are U, and none of them may be at a rail."""
    if same:
        counts[:] = 0
        counts[3], counts[4] = ends(codes)
    if not same or counts[3] <= rails[0] or counts[4] >= rails[1]:
        count_events(codes, unlimited, rails[0], rails[1], counts)


@inner
def _add_counts(one: Any, counts: Any) -> None:
    for i in (0, 1, 2, 5):
        counts[i] += one[i]
    counts[3], counts[4] = min(counts[3], one[3]), max(counts[4], one[4])


class Taps(NamedTuple):
    """What a tile adds, in order: words (tiles, n, rows) int32, and where each finds its lanes, (n,) int64 bytes."""

    words: Any
    offsets: Any


class Look(NamedTuple):
    """How to tell, tile by tile, that no addition changes a sum (docs/semantics.md, proof 10): groups of taps."""

    #: (2,) int64: the register's rails; (0,) to tell nothing.
    limits: Any
    #: (groups + 1,) int64: where a group begins, among taps and among the words of the exact taps.
    taps: Any
    words: Any
    #: Phases and shifts of the taps in their order.
    phases: Any
    shifts: Any
    #: (groups, tiles) float64: at least the largest norm of a group's weights in a tile.
    roots: Any
    #: int32 zeros, as many as a tile has lanes or rows: U needs no corrections.
    nothing: Any


@inner
def _norms(planes: Any, look: Any, span: int, squares: Any, patches: Any, roots: Any) -> None:
    """Write to roots (groups, spans) at least the largest norm of what a group's taps meet in a span of positions."""
    for p in range(planes.shape[1]):
        total = squares[p]
        total.fill(0)
        for b in range(planes.shape[0]):
            words = planes[b, p].view(np.int32)
            for i in range(total.size):
                low, high = np.int32(np.int32(words[i] << np.int32(16)) >> np.int32(16)), words[i] >> np.int32(16)
                total[i] += np.int32(low * low) + np.int32(high * high)
    for g in range(roots.shape[0]):
        first, last = look.taps[g], look.taps[g + 1]
        add_taps(squares, look.phases[first:last], look.shifts[first:last], patches)
        for s in range(roots.shape[1]):
            largest = np.int32(0)
            for i in range(s * span, min(patches.size, s * span + span)):
                largest = max(largest, patches[i])
            roots[g, s] = np.sqrt(np.float64(largest)) * ROUND_UP


@inner
def _to_lanes(sums: Any, begin: int, pitch: int, rows: int, span: int, lane: Any, acc: Any) -> None:
    """Write the codes of a tile, its sums, as lanes."""
    more, by = np.int32(lane[0]), np.int32(lane[1])
    for r in range(rows):
        for i in range(begin + r * pitch, begin + r * pitch + span):
            acc[i] = np.int32(np.int32(sums[i] + more) << by)


def _tile_walk(kind: Kind) -> Any:
    """Return walk(...) for a kind of chain: fills the lanes and U of one image; see below."""
    exact_kind = exact_beside(kind)
    tile, exact, ends_of_tile = chain_tile(kind), chain_tile(exact_kind), tile_ends(exact_kind.tile)
    rows, exact_rows, span = kind.tile.rows, exact_kind.tile.rows, kind.tile.vectors * LANES

    @inner
    def step(taps: Any, parameters: Any, work: Any, t: int, q: int, padded: int) -> None:
        tile(
            work.acc.ctypes.data + 4 * (t * rows * padded + q), 0, 4 * padded, taps.words[t].ctypes.data,
            work.flat.ctypes.data + 4 * q, taps.offsets.size, parameters.ctypes.data, taps.offsets.ctypes.data,
        )  # fmt: skip

    @inner
    def add(taps: Any, parameters: Any, work: Any, t: int, q: int, padded: int, begin: int, end: int) -> None:
        exact(
            work.unlimited.ctypes.data + 4 * (t * exact_rows * padded + q), 0, 4 * padded,
            taps.words[t, begin:].ctypes.data, work.flat.ctypes.data + 4 * q, end - begin, parameters.ctypes.data,
            taps.offsets[begin:].ctypes.data,
        )  # fmt: skip

    @inner
    def add_and_look(taps: Any, look: Any, parameters: Any, work: Any, t: int, q: int, padded: int) -> bool:
        """Sum a tile of U, looking at its sums before every group of taps; return whether they do not prove it."""
        at, nothing = work.unlimited.ctypes.data + 4 * (t * rows * padded + q), look.nothing.ctypes.data
        for g in range(look.roots.shape[0]):
            ends_of_tile(at, 4 * padded, nothing, nothing, work.ends.ctypes.data)
            near = may_pass(work.ends, look.roots[g, t] * work.roots[g, q // span], look.limits)
            add(taps, parameters, work, t, q, padded, look.words[g], look.words[-1 if near else g + 1])
            if near:
                return True
        return False

    @inner
    def walk(
        taps: Any, exact_taps: Any, look: Any, looks: bool, parameters: Any, lane: Any, work: Any, padded: int
    ) -> None:
        """Perform the additions of all tiles; with looks, only where they prove nothing. Lanes and U are fresh."""
        for q in range(0, padded, span):
            for t in range(taps.words.shape[0]):
                near = True
                if looks:
                    near = add_and_look(exact_taps, look, parameters, work, t, q, padded)
                    work.opened[t, q // span] = near
                if near:
                    step(taps, parameters, work, t, q, padded)
            for t in range(0 if looks else exact_taps.words.shape[0]):
                add(exact_taps, parameters, work, t, q, padded, 0, exact_taps.offsets.size)
        for t in range(taps.words.shape[0] if looks else 0):
            for q in range(0, padded if work.opened[t].any() else 0, span):
                if not work.opened[t, q // span]:
                    _to_lanes(work.unlimited, t * rows * padded + q, padded, rows, span, lane, work.acc)

    return walk


@made_once
def image_walk(kind: Kind) -> Any:
    """Return convolve(...) for a kind of chain; see below."""
    walk, rows, span = _tile_walk(kind), kind.tile.rows, kind.tile.vectors * LANES

    @kernel_of(repr(kind))
    def convolve(
        x: Any, fill: Any, layout: Any, taps: Any, exact_taps: Any, look: Any, parameters: Any, lane: Any, rails: Any,
        row_side: Any, column_side: Any, work: Any, out: Any, codes: Any, first: int, last: int,
    ) -> Any:  # fmt: skip
        """Convolve samples first..last, write float32 out (N, CO, OH * OW); return the six counts of `count_events`.

        x (N, C, H, W), fill (N,) codes; exact_taps without words: the code is U; look: for a register whose tiles are
        those of the exact taps. lane = (offset, shift), rails = (low, high); row_side = (zero points int64, steps
        float64) of samples, column_side = (zero points, sums over k int64, steps float64) of output channels; codes
        (N, OH * OW, CO) int32 takes the codes, unless it is empty.
        """
        width, down, across = layout.width, layout.rows, layout.columns
        acc, channel, patch_channel, u_channel = work.acc, work.channel, work.patch_channel, work.u_channel
        patches = work.patches[: work.patches.size - VECTOR]
        zeros, column_sums, steps = column_side
        terms = x.shape[1] * layout.shifts.size
        size, padded = down * across, (acc.size - VECTOR) // (taps.words.shape[0] * rows)
        counts, one = np.zeros(6, np.int64), np.zeros(6, np.int64)
        counts[3], counts[4] = np.int64(1) << 62, -(np.int64(1) << 62)
        looks = look.limits.size > 0
        for n in range(first, last):
            _word_planes(x[n], fill[n], layout, work.line, work.planes)
            if zeros.any():
                _patch_sums(work.planes, layout.phases, layout.shifts, work.sums, patches)
                without_ends(work.patches, width, down, across, patch_channel)
            if looks:
                _norms(work.planes, look, span, work.sums, patches, work.roots)
            acc.fill(np.int32(lane[0] << lane[1]))
            work.unlimited.fill(0)
            walk(taps, exact_taps, look, looks, parameters, lane, work, padded)
            for o in range(out.shape[1]):
                # The codes are U, in the lanes where there are no exact taps, else in U where a look proves it.
                in_u = looks and not work.opened[o // rows].any()
                is_u = in_u or exact_taps.words.shape[0] == 0
                without_ends(work.unlimited[o * padded :] if in_u else acc[o * padded :], width, down, across, channel)
                if not in_u:
                    _lanes_to_codes(channel[:size], lane[0], lane[1])
                if not is_u:
                    without_ends(work.unlimited[o * padded :], width, down, across, u_channel)
                _count(channel[:size], channel[:size] if is_u else u_channel[:size], rails, is_u, one)
                _add_counts(one, counts)
                za, zb, scale = row_side[0][n], zeros[o], row_side[1][n] * steps[o]
                base = np.float64(terms * za * zb - za * column_sums[o])
                scaled_shifted(channel[:size], base, patch_channel[:size], np.float64(zb), scale, out[n, o])
                if codes.size:
                    store_codes(channel, 0, codes[n, :, o])
            # Where nothing at all is proven for one sample, nothing much will be for those like it.
            looks = looks and not work.opened.all()
        return counts

    return convolve


@kernel
def place_gradients(dh: Any, layout: Any, words: Any, sums: Any, first: int, last: int) -> None:
    """Write samples first..last of dh (N, CO, OH, OW) int16 as words of two positions, and what its channels sum to.

    words (N, tiles, words and more up to EDGE, CO a tile) int32, sums (N, CO) int64.
    """
    line = np.empty(dh.shape[2] * dh.shape[3] + VECTOR, np.int16)
    placed = np.empty((EDGE, 2 * words.shape[2] + VECTOR), np.int16)
    for n in range(first, last):
        for tile in range(words.shape[1]):
            gradient_words(dh[n], tile * words.shape[3], layout.width, line, placed, words[n, tile])
        for o in range(dh.shape[1]):
            sums[n, o] = sum_of(dh[n, o].reshape(-1))


class GradientWork(NamedTuple):
    """Working space and registers of a gradient walk, for some input channels; made by `gradient_work`."""

    #: int16 codes, channels with their phases one behind the other, with room behind them; one channel.
    flat: Any
    planes: Any
    line: Any
    #: int32 (taps, C or more, CO or more): lanes, and U of some samples.
    acc: Any
    unlimited: Any


def gradient_work(size: tuple[int, int], channels: int, columns: int, layout: Layout, kind: Kind) -> GradientWork:
    """Return working space for images of a size, lanes and U at 0."""
    phases, rows = len(layout.down) * len(layout.across), -(-channels // kind.tile.rows) * kind.tile.rows
    count = rows * phases * layout.plane
    flat, line = np.zeros(count + VECTOR, np.int16), np.zeros(size[0] * size[1] + VECTOR, np.int16)
    acc = np.zeros((len(layout.shifts), rows, columns), np.int32)
    planes = flat[:count].reshape(rows, phases, layout.plane)
    return GradientWork(flat, planes, line, acc, np.zeros_like(acc))


@made_once
def gradient_walk(kind: Kind) -> Any:
    """Return correlate(...) for a kind of register; see below."""
    tile, rows, outputs = chain_tile(kind), kind.tile.rows, kind.tile.vectors * LANES

    @kernel_of(repr(kind))
    def correlate(
        x: Any, fill: Any, words: Any, layout: Any, parameters: Any, work: Any, first: int, last: int
    ) -> None:
        """Take samples of x (N, C, H, W), channels first..last, and of dh, as `place_gradients` writes it, in order."""
        phases, shifts, down, across = layout.phases, layout.shifts, layout.down, layout.across
        flat, planes, line, acc, unlimited = work
        pitch, apart = 4 * acc.shape[2], 2 * planes.shape[1] * planes.shape[2]
        for n in range(x.shape[0]):
            for c in range(first, last):
                copy_codes(x[n, c].reshape(-1), line)
                for p in range(planes.shape[1]):
                    vertical, horizontal = down[p // len(across)], across[p % len(across)]
                    place_image(
                        line, x.shape[3], vertical, horizontal, layout.width, np.int16(fill[n]), np.int64(0),
                        planes[c - first, p],
                    )  # fmt: skip
            for t in range(shifts.size):
                plane = flat.ctypes.data + 2 * (phases[t] * planes.shape[2] + shifts[t])
                for c in range(0, acc.shape[1], rows):
                    for o in range(words.shape[1]):
                        place = (t * acc.shape[1] + c) * pitch + 4 * o * outputs
                        tile(
                            acc.ctypes.data + place, unlimited.ctypes.data + place, pitch, plane + c * apart,
                            words[n, o].ctypes.data, words.shape[2], parameters.ctypes.data, apart,
                        )  # fmt: skip

    return correlate
