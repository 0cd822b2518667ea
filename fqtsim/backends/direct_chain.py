"""Convolutions whose registers can change sums, without a matrix of patches (docs/semantics.md, "Shortcuts", 9).

Where direct.py has no proof that the code is U, these perform every addition of a saturating register, or of a chain
of levels, in the order that S4 defines, on planes of 16-bit codes. What they do not take is lowered to matrices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fqtsim.backends.base import Array, Events, GemmResult, code_dtype
from fqtsim.backends.chains import chain_plan, simplified, split_level
from fqtsim.backends.direct import INT32, Gradient, Images, lowered_for, with_fill
from fqtsim.backends.exact import PLAIN_LANE, Lane, operand_range, subset_limit
from fqtsim.backends.plans import raised
from fqtsim.backends.stepwise import finish, rails
from fqtsim.hw.lower import CLAMP, HIGH, LOW, MODE, RUN, Lowered
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import chain_tile, threads
from fqtsim.kernels import correlate_chain as kernels
from fqtsim.kernels import tile as tiles
from fqtsim.kernels.chain_tile import Form, Kind
from fqtsim.kernels.looks import ROUND_UP
from fqtsim.kernels.tile import Tile
from fqtsim.kernels.transpose import EDGE

SMALLEST = 1 << 24
"""Products from which a walk of the chain's own kind is worth its compilation."""
PRODUCTS = 64
"""Products of an output between two looks at its sum, in whole taps."""
MOST_WORDS = 1 << 22
"""Words of an output gradient that are held at a time."""


class Plan(NamedTuple):
    """Which walk performs a chain, its parameters, and how codes stand in lanes."""

    kind: Kind
    parameters: Array
    lane: Lane


def images(job: Images, datapath: Datapath, out: Array, with_codes: bool) -> GemmResult | None:
    """Do what direct.images does, every addition performed; None where there is no such walk."""
    if not (out.size and job.terms) or not _is_worth_it(job.codes, out[0, 0].size * len(job.weight) * job.terms):
        return None
    a, b = with_fill(job.codes, job.fill), operand_range(job.weight)
    if datapath.dropped_bits or not (a.fits_signed(16) and b.fits_signed(16)):
        return None
    lowered = lowered_for(datapath, job.terms, a, b)
    # No partial sum passes it, so U, and every sum on the way to it, fits int32.
    largest = a.magnitude * int(np.abs(job.weight.reshape(len(job.weight), -1), dtype=np.int64).sum(1).max())
    # So does the sum of a patch, and with zero points of 16 bits every term of the epilogue fits 52 bits.
    if max(largest, a.magnitude * job.terms) >= INT32 or job.terms >= 1 << 19:
        return None
    is_exact = lowered.never_overflows or largest <= subset_limit(lowered)
    plan = _exact_plan() if is_exact else _image_plan(lowered, job.codes.shape[1])
    return None if plan is None else _convolve(job, plan, is_exact, lowered, datapath, out, with_codes)


def _is_worth_it(codes: Array, products_each: int) -> bool:
    return tiles.HAS_DOT and len(codes) * products_each >= SMALLEST


def _short(codes: Array) -> Array:
    """Return codes as int16, so that one form of a walk is compiled."""
    return np.ascontiguousarray(codes, np.int16)


def _exact_plan() -> Plan:
    kind = Kind((Form(),), "pairs", False, True, "planes", Tile(8, 3))
    return Plan(kind, np.zeros((1, chain_tile.PARAMETERS), np.int64), PLAIN_LANE)


def _native(lowered: Lowered) -> Plan | None:
    """Return a plan whose lanes clamp products at the register's upper rail by themselves, or None.

    Kind and shape are the caller's. Proof 5 with a shift of 0: the lane holds x + 2**31 - 1 - high.
    """
    row = lowered.table[0]
    low, high = int(row[LOW]), int(row[HIGH])
    if len(lowered.table) > 1 or row[MODE] != CLAMP or high >= INT32 or low < -INT32:
        return None
    offset, bottom, whole = raised(low, high, 0)
    clamp = "native" if whole else "native_above"
    parameters = np.zeros((1, chain_tile.PARAMETERS), np.int64)
    parameters[0, chain_tile.LOW] = bottom
    return Plan(Kind((Form(clamp=clamp),), "single", False, True), parameters, Lane(offset))


def _image_plan(lowered: Lowered, channels: int) -> Plan | None:
    simple = simplified(lowered)
    native = _native(simple)
    if native is not None:
        return native._replace(kind=native.kind._replace(walk="planes", shape=Tile(8, 3)))
    plan = chain_plan(simple) if split_level(simple) is None else None
    if plan is None or not (plan.kind.words == "single" or _twos_stay_in_taps(simple, channels)):
        return None
    return Plan(plan.kind._replace(walk="planes"), plan.parameters, plan.lane)


def _twos_stay_in_taps(lowered: Lowered, channels: int) -> bool:
    """Tell whether words of two products never span two taps, nor two registers of the lowest level."""
    return channels % 2 == 0 and (len(lowered.table) == 1 or int(lowered.table[0, RUN]) % 2 == 0)


def _taps(job: Images, kind: Kind, layout: Any) -> kernels.Taps:
    """Return the weight as words, in the order of k, and where each finds its lanes."""
    weight = np.ascontiguousarray(job.weight, np.int16)
    outputs, channels = len(weight), weight.shape[3]
    flat = weight.reshape(outputs, -1, channels)
    blocks, phases = -(-channels // 2), len(layout.down) * len(layout.across)
    order = np.arange(flat.shape[1])[:: -1 if job.backwards else 1]
    rows = kind.tile.rows
    padded = np.zeros((-(-outputs // rows) * rows, flat.shape[1], 2 * blocks), np.int16)
    padded[:outputs, :, :channels] = flat[:, order]
    places = layout.phases[order] * layout.plane + layout.shifts[order]
    each = np.arange(blocks) * phases * layout.plane
    if kind.words == "single":
        halves = np.zeros((*padded.shape, 2), np.int16)
        for half in range(2):
            halves[:, :, half::2, half] = padded[:, :, half::2]
        words = halves[:, :, :channels].reshape(len(padded), -1).view(np.int32)
        each = np.repeat(each, 2)[:channels]
    else:
        words = padded.reshape(len(padded), -1).view(np.int32)
    offsets = 4 * (places[:, None] + each).reshape(-1)
    tiles_ = words.reshape(-1, rows, words.shape[1]).transpose(0, 2, 1)
    return kernels.Taps(np.ascontiguousarray(tiles_), offsets)


def _look(job: Images, plan: Plan, lowered: Lowered, layout: Any, is_exact: bool) -> kernels.Look:
    """Return how partial sums prove that a tile's codes are U: for one register that takes products in order."""
    outputs, channels, rows = len(job.weight), job.weight.shape[3], plan.kind.tile.rows
    order = np.arange(len(layout.shifts))[:: -1 if job.backwards else 1]
    weight = job.weight.reshape(outputs, -1, channels)[:, order].astype(np.int64)
    edges = np.append(np.arange(0, len(order), max(1, PRODUCTS // channels)), len(order))
    squares = np.add.reduceat((weight * weight).sum(axis=2), edges[:-1], axis=1)
    padded = np.zeros((-(-outputs // rows) * rows, len(edges) - 1))
    padded[:outputs] = np.sqrt(squares) * ROUND_UP
    roots = np.ascontiguousarray(padded.reshape(-1, rows, len(edges) - 1).max(axis=1).T)
    words = edges * -(-channels // 2)
    # Squares are summed in int32.
    fits = lowered.operands[0].magnitude ** 2 * weight[0].size < INT32
    looks = not is_exact and fits and plan.kind.forms[-1].clamp.startswith("native")
    limits = np.array([rails(lowered)] if looks else [], np.int64).reshape(-1)
    nothing = np.zeros(plan.kind.tile.vectors * kernels.LANES, np.int32)
    return kernels.Look(limits, edges, words, layout.phases[order], layout.shifts[order], roots, nothing)


def _convolve(
    job: Images, plan: Plan, is_exact: bool, lowered: Lowered, datapath: Datapath, out: Array, with_codes: bool
) -> GemmResult:
    x, layout, outputs = _short(job.codes), job.walk.layout(job.codes.shape[2:]), len(job.weight)
    codes = np.empty((len(x) if with_codes else 0, out[0, 0].size, outputs), np.int32)
    flat, kind = out.reshape(*out.shape[:2], -1), plan.kind
    taps = _taps(job, kind, layout)
    none = kernels.Taps(np.empty((0, 1, 1), np.int32), np.empty(0, np.int64))
    exact_taps = none if is_exact else _taps(job, kernels.exact_beside(kind), layout)
    look = _look(job, plan, lowered, layout, is_exact)
    column_sums = job.weight.reshape(outputs, -1).sum(1, dtype=np.int64)
    sides = (
        (job.samples.zero_points, job.samples.steps),
        (job.channels.zero_points, column_sums, job.channels.steps),
    )
    walk, lane, fill = kernels.image_walk(kind), (plan.lane.offset, plan.lane.shift), _short(job.fill)

    def part(first: int, last: int) -> Array:
        work = kernels.image_work(x.shape, layout, kind, outputs, len(look.roots))
        found: Array = walk(
            x, fill, layout, taps, exact_taps, look, plan.parameters, lane, rails(lowered), *sides, work, flat, codes,
            first, last,
        )  # fmt: skip
        return found

    counts = np.stack(threads.run(part, threads.parts(len(x), out[0].size)))
    altered, out_of_range, transient, at_rail = (int(count) for count in counts[:, [0, 1, 2, 5]].sum(axis=0))
    minimum, maximum = int(counts[:, 3].min()), int(counts[:, 4].max())
    events = Events(altered, out_of_range, transient)
    taken: Array = codes.reshape(-1, outputs).astype(code_dtype(datapath), copy=False)
    return GemmResult(taken, events, minimum, maximum, at_rail)


def gradient(job: Gradient, datapath: Datapath) -> tuple[GemmResult, Array, Array] | None:
    """Do what direct.gradient does, every addition performed; None where there is no such walk.

    The sums over k of the images' codes are not formed: it takes no job that wants them.
    """
    positions, outputs = job.dh[0, 0].size, job.dh.shape[1]
    each = len(job.walk.layout(job.codes.shape[2:]).shifts) * job.codes.shape[1] * job.dh[0].size
    if job.wants_row_sums or not _is_worth_it(job.codes, each):
        return None
    a, b = with_fill(job.codes, job.fill), operand_range(job.dh)
    if datapath.dropped_bits or not (a.fits_signed(16) and b.fits_signed(16)):
        return None
    lowered = lowered_for(datapath, job.terms, a, b)
    native = _native(simplified(lowered))
    most = (INT32 - 1) // max(1, a.magnitude * b.magnitude * positions)
    if native is None or not most:
        return None
    vectors = next(count for count in (1, 2, 4) if outputs <= count * kernels.LANES or count == 4)
    shape = Tile(8 // vectors, vectors)
    kind = native.kind._replace(words="apart", twice=True, walk="positions", shape=shape)
    lanes, unlimited, sums = _correlate(job, native._replace(kind=kind), most)
    codes = (lanes.astype(np.int64) - native.lane.offset).astype(np.int32)
    if lowered.unlimited.fits_signed(32):
        unlimited = unlimited.astype(np.int32)
    result = finish(codes, unlimited, lowered, code_dtype(datapath))
    return result, np.zeros(len(codes), np.int64), sums


def _correlate(job: Gradient, plan: Plan, most: int) -> tuple[Array, Array, Array]:
    """Return the lanes and U, (KH * KW * C, CO) each, and what the channels of dh sum to.

    The int32 sums of `most` samples fit.
    """
    x, fill, dh = _short(job.codes), _short(job.fill), _short(job.dh)
    layout, kind, outputs = job.walk.layout(x.shape[2:]), plan.kind, dh.shape[1]
    width, rows = kind.tile.vectors * kernels.LANES, kind.tile.rows
    n_tiles, n_words = -(-outputs // width), -(-layout.positions // 2)
    count = min(len(x), most, max(1, MOST_WORDS // (n_tiles * n_words * width)))
    room = np.empty((count, n_tiles, -(-n_words // EDGE) * EDGE, width), np.int32)
    words = room[:, :, :n_words]
    walk = kernels.gradient_walk(kind)
    blocks = threads.parts(-(-x.shape[1] // rows), rows * len(layout.shifts) * dh[:, 0].size * outputs // 16)
    spans = [(first * rows, min(last * rows, x.shape[1])) for first, last in blocks]
    works = {
        (first, last): kernels.gradient_work(x.shape[2:], last - first, n_tiles * width, layout, kind)
        for first, last in spans
    }
    totals = {span: np.zeros(work.acc.shape, np.int64) for span, work in works.items()}
    column_sums = np.empty((len(x), outputs), np.int64)
    for work in works.values():
        work.acc[:] = plan.lane.offset

    def take(samples: slice) -> None:
        some, gradients = x[samples], dh[samples]

        def part(first: int, last: int) -> None:
            work = works[first, last]
            walk(some, fill[samples], words[: len(some)], layout, plan.parameters, work, first, last)
            totals[first, last] += work.unlimited
            work.unlimited[:] = 0

        threads.run(
            lambda first, last: kernels.place_gradients(gradients, layout, room, column_sums[samples], first, last),
            threads.parts(len(some), gradients[0].size),
        )
        threads.run(part, spans)

    for begin in range(0, len(x), count):
        take(slice(begin, min(begin + count, len(x))))
    lanes, sums = (
        np.concatenate([found[span][:, : span[1] - span[0], :outputs] for span in spans], axis=1).reshape(-1, outputs)
        for found in ({span: work.acc for span, work in works.items()}, totals)
    )
    return lanes, sums, column_sums.sum(0)
