"""Convolutions whose GEMMs nothing can change, without a matrix of patches (docs/semantics.md, "Shortcuts", 7).

The sums are the exact ones of the GEMM that S4 defines, so a datapath qualifies where its registers cannot change any
of them; whatever does not qualify is lowered to matrices and runs as any GEMM does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from fqtsim.backends.base import Array, Events, GemmResult, code_dtype
from fqtsim.backends.checksum import Checksum, RowWords
from fqtsim.backends.exact import operand_range, subset_limit, unlimited_dtype, wrap_codes
from fqtsim.backends.stepwise import finish
from fqtsim.errors import BackendRefused
from fqtsim.hw.lower import Lowered, Range, lower
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import correlate as kernels
from fqtsim.kernels import threads
from fqtsim.kernels import tile as tiles
from fqtsim.kernels.correlate_tile import LANES

Pair = tuple[int, int]
INT32 = 1 << 31
BYTES = (np.int8, np.uint8)


@dataclass(frozen=True)
class Walk:
    """Which place of an image each output position meets through each tap, rows and columns apart.

    Output o and tap t meet (o * step + t * tap + offset) / hole, where that is a whole number inside the image.
    """

    outputs: Pair
    taps: Pair
    step: Pair = (1, 1)
    tap: Pair = (1, 1)
    offset: Pair = (0, 0)
    hole: Pair = (1, 1)

    @lru_cache(maxsize=256)  # noqa: B019, of a frozen value
    def layout(self, size: Pair) -> kernels.Layout:
        """Return where an image of this size stands in planes."""
        down, height, phase_h, shift_h = self._axis(0, size[0])
        across, width, phase_w, shift_w = self._axis(1, size[1])
        phases = (phase_h[:, None] * len(across) + phase_w).reshape(-1)
        shifts = (shift_h[:, None] * width + shift_w).reshape(-1)
        return kernels.Layout(down, across, height, width, *self.outputs, phases, shifts)

    def _axis(self, axis: int, size: int) -> tuple[Array, int, Array, Array]:
        step, hole = self.step[axis], self.hole[axis]
        reach = np.arange(self.taps[axis], dtype=np.int64) * self.tap[axis]
        used, phases = np.unique(reach % step, return_inverse=True)
        shifts = reach // step
        places = self.outputs[axis] + int(shifts.max())
        runs = []
        for phase in used:
            at = np.arange(places) * step + phase + self.offset[axis]
            met = np.flatnonzero((at >= 0) & (at % hole == 0) & (at // hole < size))
            sources = at[met] // hole
            apart = (int(np.diff(met[:2])[0]), int(np.diff(sources[:2])[0])) if len(met) > 1 else (1, 1)
            runs.append([met[0], apart[0], sources[0], apart[1], len(met)] if len(met) else [0, 1, 0, 1, 0])
        return np.array(runs, np.int64), places, phases.astype(np.int64), shifts


@dataclass(frozen=True)
class Side:
    """What the epilogue needs of an operand, per row or column of the GEMM's result: int64 and float64, (count,)."""

    zero_points: Array
    steps: Array


@dataclass(frozen=True)
class Images:
    """fprop and dgrad: every position of every image meets the taps of a weight."""

    #: (N, C, H, W) integers; `images` takes bytes, and a signed byte as weight.
    codes: Array
    #: (N,), as codes: the code of real zero, where a tap meets nothing.
    fill: Array
    walk: Walk
    #: (CO, KH, KW, C), taps in the order of the walk.
    weight: Array
    samples: Side
    channels: Side
    #: Whether the order of k is that of the taps backwards.
    backwards: bool = False
    #: Takes what the codes sum to; a row is a position of a sample.
    checksum: Checksum | None = None

    @property
    def terms(self) -> int:
        """K of the GEMM."""
        return int(self.weight[0].size)


@dataclass(frozen=True)
class Gradient:
    """wgrad: every tap and channel of the images meets every position of the output gradient."""

    #: (N, C, H, W) integers; `gradient` takes bytes, and a signed byte as dh.
    codes: Array
    #: (N,), as codes.
    fill: Array
    walk: Walk
    #: (N, CO, OH, OW).
    dh: Array
    #: Whether the sums over k of the images' codes are wanted.
    wants_row_sums: bool = True

    @property
    def terms(self) -> int:
        """K of the GEMM."""
        return int(self.dh[:, 0].size)


def fits(codes: Array, other: Array, datapath: Datapath) -> bool:
    """Tell whether operands are of the kind that this takes at all: bytes, of which the second are signed."""
    whole = codes.size > 0 and other.size > 0 and not datapath.dropped_bits
    return bool(tiles.HAS_DOT and whole and codes.dtype in BYTES and other.dtype == np.int8)


def any_code(codes: Array) -> Range:
    """Return the range of the type of codes."""
    return _range_of(codes.dtype)


@cache
def _range_of(kind: Any) -> Range:
    ends = np.iinfo(kind)
    return Range(int(ends.min), int(ends.max))


def with_fill(codes: Array, fill: Array) -> Range:
    """Return the range of codes and of what stands where there are none."""
    inside, outside = operand_range(codes), operand_range(fill)
    return Range(min(inside.low, outside.low), max(inside.high, outside.high))


@lru_cache(maxsize=512)
def lowered_for(datapath: Datapath, k: int, a: Range, b: Range) -> Lowered:
    """Return the datapath lowered for sums from 0; the same layers come again and again."""
    return lower(datapath, k, a, b, Range(0, 0))


def images(job: Images, datapath: Datapath, out: Array, with_codes: bool) -> GemmResult | None:
    """Write the float32 outputs (N, CO, OH, OW) and return what the GEMM did; None where this has no proof.

    with_codes: return its codes too; else the result has none.
    """
    if not fits(job.codes, job.weight, datapath):
        return None
    # Proof 7: no sum of some products of an output passes max |a| times the sum of |b|.
    longest = int(np.abs(job.weight.reshape(len(job.weight), -1), dtype=np.int32).sum(1).max())
    b = any_code(job.weight)

    def holds(a: Range) -> bool:
        lowered = lowered_for(datapath, job.terms, a, b)
        return lowered.never_overflows or a.magnitude * longest < subset_limit(lowered)

    # The bytes that enter the products are the codes, or the codes plus 128. Most datapaths hold any bytes.
    if 256 * longest >= INT32 or not (holds(any_code(job.codes)) or holds(with_fill(job.codes, job.fill))):
        return None
    prove_images()
    low, high, codes, sums = _convolve(job, out, with_codes)
    register = datapath.accumulator.register_format
    if register is not None and not (register.minimum + 1 < low and high < register.maximum):
        return None  # outputs at a rail are counted where their codes are
    if job.checksum is not None:
        job.checksum.sums.append(_summed(job.checksum.words, sums))
    return GemmResult(codes.astype(code_dtype(datapath), copy=False), Events(), low, high)


def _words(weight: Array) -> Array:
    """Return W (CO, KH, KW, C) int8 as words of four channels: (tiles, taps * ceil(C / 4), ROWS)."""
    outputs, channels = weight.shape[0], weight.shape[3]
    tiles_, blocks = -(-outputs // kernels.ROWS), -(-channels // 4)
    padded = np.zeros((tiles_ * kernels.ROWS, weight.shape[1] * weight.shape[2], 4 * blocks), np.int8)
    padded[:outputs, :, :channels] = weight.reshape(outputs, -1, channels)
    words = padded.view(np.uint32).reshape(tiles_, kernels.ROWS, -1)
    return np.ascontiguousarray(words.transpose(0, 2, 1))


def _bytes(codes: Array) -> tuple[Array, np.uint8]:
    """Return codes as unsigned bytes, and what a byte must be xored with to be its code plus 128, or plus nothing."""
    return np.ascontiguousarray(codes).view(np.uint8), np.uint8(128 if codes.dtype == np.int8 else 0)


def _position_words(job: Images, layout: kernels.Layout) -> Array:
    """Return the words of positions as they lie in planes: uint32 (2, positions); empty where nobody asked."""
    if job.checksum is None:
        return np.zeros((2, 0), np.uint32)
    words = np.zeros((2, layout.rows, layout.width), np.uint32)
    words[:, :, : layout.columns] = job.checksum.words.inner.reshape(2, layout.rows, layout.columns)
    return np.ascontiguousarray(words.reshape(2, -1)[:, : layout.positions])


def _convolve(job: Images, out: Array, with_codes: bool) -> tuple[int, int, Array, Array]:
    """Return the smallest and largest sum, the codes (N * OH * OW, CO), and what they sum to with the words of
    positions, sample by sample (2, N, CO)."""
    x, flip = _bytes(job.codes)
    size = job.walk.outputs[0] * job.walk.outputs[1]
    codes = np.empty((len(x) if with_codes else 0, size, len(job.weight)), np.int32)
    flat = out.reshape(*out.shape[:2], -1)
    layout, words = job.walk.layout(x.shape[2:]), _words(job.weight)
    column_sums = job.weight.reshape(len(job.weight), -1).sum(1, dtype=np.int64)
    row_side = job.samples.zero_points, job.samples.steps
    column_side = job.channels.zero_points, column_sums, job.channels.steps
    fill, own = job.fill.view(np.uint8), _position_words(job, layout)
    samples = np.empty((2, len(x) if own.size else 0, len(job.weight)), np.uint32)

    def part(first: int, last: int) -> tuple[int, int]:
        work = kernels.image_work(x.shape, layout)
        found: tuple[int, int] = kernels.convolve(
            x, fill, flip, layout, words, row_side, column_side, work, flat, codes, (own, samples), first, last
        )
        return found

    found = threads.run(part, threads.parts(len(x), out[0].size))
    low, high = min(low for low, _ in found), max(high for _, high in found)
    if own.size:  # a byte is its code plus 128 where flip says so
        samples -= own.sum(axis=1, dtype=np.uint32)[:, None, None] * (int(flip) * column_sums).astype(np.uint32)
    return low, high, codes.reshape(-1, len(job.weight)), samples


def _summed(words: RowWords, samples: Array) -> Array:
    """Return what all codes sum to, from the sums of each sample's codes (2, N, CO) with the words of positions."""
    sums: Array = (words.outer[:, :, None] * samples).sum(axis=1, dtype=np.uint32)
    return sums


@dataclass(frozen=True)
class Sums:
    """The exact products of wgrad, and the sums over k of either operand's codes."""

    #: (KH * KW * C, CO) int64; (KH * KW * C,) int64; (CO,) int64.
    products: Array
    rows: Array
    columns: Array


def gradient(job: Gradient, datapath: Datapath) -> tuple[GemmResult, Array, Array] | None:
    """Return what the GEMM did, and the sums over k of either operand's codes; None where this has no proof."""
    positions = job.dh[0, 0].size
    if not fits(job.codes, job.dh, datapath) or positions << 15 >= INT32:
        return None
    lowered = lowered_for(datapath, job.terms, any_code(job.codes), any_code(job.dh))
    if not (lowered.never_overflows or lowered.order_free_wrap):
        lowered = lower(datapath, job.terms, with_fill(job.codes, job.fill), operand_range(job.dh), Range(0, 0))
    if not (lowered.never_overflows or lowered.order_free_wrap):
        return None
    prove_gradient(_vectors(job.dh.shape[1]))
    sums = _sums(job)
    unlimited: Array = sums.products.astype(unlimited_dtype(lowered))
    codes = wrap_codes(unlimited, lowered) if lowered.order_free_wrap else unlimited
    return finish(codes, unlimited, lowered, code_dtype(datapath)), sums.rows, sums.columns


def _vectors(outputs: int) -> int:
    return next((vectors for vectors in kernels.WALKS if outputs <= vectors * LANES), max(kernels.WALKS))


def _sums(job: Gradient) -> Sums:
    x, flip = _bytes(job.codes)
    dh, fill = np.ascontiguousarray(job.dh).view(np.uint8), job.fill.view(np.uint8)
    layout = job.walk.layout(job.codes.shape[2:])
    channels, outputs = x.shape[1], dh.shape[1]
    vectors = _vectors(outputs)
    # A byte is at most 255, a code at least -128, so the int32 sums hold so many samples.
    most = (INT32 - 1) // (dh[0, 0].size << 15)

    def part(first: int, last: int) -> tuple[Array, Array, Array]:
        work = kernels.gradient_work(x.shape, outputs, vectors, layout)
        results = work.acc, work.places, work.columns
        totals = tuple(np.zeros(result.shape, np.int64) for result in results)
        for n in range(first, last, most):
            kernels.WALKS[vectors](x, fill, flip, dh, layout, work, n, min(n + most, last))
            for total, result in zip(totals, results, strict=True):
                total += result
                result[:] = 0
        return totals[0][:, :channels, :outputs], totals[1].reshape(work.planes.shape)[:channels], totals[2]

    found = threads.run(part, threads.parts(len(x), len(layout.shifts) * channels * dh[0].size // 16))
    total, places, columns = (np.sum([one[i] for one in found], axis=0) for i in range(3))
    total -= int(flip) * columns
    rows = np.empty(total.shape[:2], np.int64)
    kernels.tap_sums(places, layout, rows)
    rows -= int(flip) * job.terms
    return Sums(total.reshape(-1, outputs), rows.reshape(-1), columns)


_PROOFS = (
    ((5, 9, 7), Walk((5, 4), (3, 2), (2, 2), (1, 1), (-1, -1))),
    ((4, 3, 5), Walk((6, 11), (3, 3), (1, 1), (2, 1), (-2, -1), (2, 2))),
)
"""Sizes and walks: stride and padding; holes and dilation."""


def _extreme_case(index: int, kind: type, outputs: int) -> tuple[Gradient, Array]:
    """Return operands at the ends of their formats, and the patches of the first one."""
    (channels, *size), walk = _PROOFS[index]
    random, ends = np.random.RandomState(index), np.iinfo(kind)
    x: Array = random.choice([ends.min, ends.max, 1], (2, channels, *size)).astype(kind)
    fill: Array = np.array([ends.max, ends.min], kind)
    dh = random.choice([-128, 127, 3], (2, outputs, *walk.outputs)).astype(np.int8)
    return Gradient(x, fill, walk, dh), _patches(x, fill, walk)


def _refuse_unless(equal: bool) -> None:
    if not equal:
        raise BackendRefused("emulator@cpu: direct convolutions differ from plain sums on this CPU; use stepwise")


@cache
def prove_images() -> None:
    """Compare fprop's walk with plain sums over patches, at the ends of the formats. Raises BackendRefused."""
    for index, outputs in ((0, 11), (1, 3)):
        for kind in BYTES:
            case, patches = _extreme_case(index, kind, outputs)
            weight = np.random.RandomState(2).choice([-128, 127, 3], (outputs, *case.walk.taps, case.codes.shape[1]))
            sides = Side(np.zeros(2, np.int64), np.ones(2)), Side(np.ones(outputs, np.int64), np.ones(outputs))
            out = np.empty((2, outputs, *case.walk.outputs), np.float32)
            inner = np.random.RandomState(3).randint(1 << 31, (1 << 32) - 1, (2, out[0, 0].size), np.uint32)
            checksum = Checksum(RowWords(np.ones((2, 2), np.uint32), inner))
            job = Images(case.codes, case.fill, case.walk, weight.astype(np.int8), *sides, checksum=checksum)
            low, high, codes, sums = _convolve(job, out, True)
            expected = np.einsum("nyxijc,oijc->nyxo", patches, weight.astype(np.int64))
            # A zero point of 1 in every column takes the sum of each patch away.
            shifted = (expected - patches.sum(axis=(3, 4, 5))[..., None]).transpose(0, 3, 1, 2)
            _refuse_unless(np.array_equal(codes, expected.reshape(-1, outputs)) and np.array_equal(out, shifted))
            _refuse_unless((low, high) == (expected.min(), expected.max()))
            summed = np.einsum("rp,npo->rno", inner.astype(np.int64), expected.reshape(2, -1, outputs))
            _refuse_unless(np.array_equal(sums, summed.astype(np.uint32)))


@cache
def prove_gradient(vectors: int) -> None:
    """Compare wgrad's walk of so many vectors with plain sums over patches. Raises BackendRefused."""
    outputs = vectors * LANES - 3
    for index, kind in ((0, BYTES[0]), (1, BYTES[1])):
        case, patches = _extreme_case(index, kind, outputs)
        sums, dh = _sums(case), case.dh.astype(np.int64)
        products = np.einsum("nyxijc,noyx->ijco", patches, dh).reshape(-1, outputs)
        rows = patches.sum(axis=(0, 1, 2)).reshape(-1)
        _refuse_unless(np.array_equal(sums.products, products) and np.array_equal(sums.rows, rows))
        _refuse_unless(np.array_equal(sums.columns, dh.sum(axis=(0, 2, 3))))


def _patches(x: Array, fill: Array, walk: Walk) -> Array:
    """Return what every position meets, one index at a time: (N, OH, OW, KH, KW, C) int64."""
    places = [
        np.arange(walk.outputs[i])[:, None] * walk.step[i] + np.arange(walk.taps[i]) * walk.tap[i] + walk.offset[i]
        for i in (0, 1)
    ]
    met = [(place >= 0) & (place % walk.hole[i] == 0) & (place // walk.hole[i] < x.shape[2 + i])
           for i, place in enumerate(places)]  # fmt: skip
    rows, columns = (np.where(met[i], places[i] // walk.hole[i], 0) for i in (0, 1))
    found = x[:, :, rows[:, None, :, None], columns[None, :, None, :]].transpose(0, 2, 3, 4, 5, 1)
    inside = (met[0][:, None, :, None] & met[1][None, :, None, :])[None, ..., None]
    return np.where(inside, found, fill.reshape(-1, 1, 1, 1, 1, 1)).astype(np.int64)
