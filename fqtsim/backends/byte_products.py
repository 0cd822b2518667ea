"""Exact products of operands whose codes span a byte, and which of their outputs no partial sum can push to a rail.

The kernels are kernels/byte_gemm.py; the proof is docs/semantics.md, Shortcuts, 10.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fqtsim.backends.base import Array
from fqtsim.hw.lower import Range
from fqtsim.kernels import byte_gemm as kernels
from fqtsim.kernels import threads
from fqtsim.kernels import tile as tiles
from fqtsim.kernels.byte_words import padded_words
from fqtsim.kernels.transpose import EDGE

_FAR = 1 << 62
"""Beyond every sum of a product that int64 holds."""


SMALLEST = 1 << 22
"""Products from which these kernels are worth their compilation."""


def pays(a: Array, b: Array) -> bool:
    """Tell whether a product is large enough for these kernels."""
    return tiles.HAS_DOT and a.shape[0] * a.shape[1] * b.shape[1] >= SMALLEST


class Limits(NamedTuple):
    """What partial sums may reach without a change by any register of a chain."""

    #: Lowest and highest sum in the order of k.
    low: int = -_FAR
    high: int = _FAR
    #: Largest magnitude of a sum of any products.
    magnitude: int = _FAR


class Bytes(NamedTuple):
    """An operand laid out for the kernels."""

    #: Codes (rows, each contiguous), kept while its address is used.
    codes: Array
    #: Whether k lies along the rows' axis, and the lanes within a row.
    along: bool
    #: How many lanes.
    size: int
    #: What makes a code a byte.
    offset: int

    @property
    def arguments(self) -> tuple[int, int, int, bool, int]:
        """Address, bytes between rows, lanes, orientation and offset."""
        return self.codes.ctypes.data, self.codes.strides[0], self.size, self.along, self.offset


class Product(NamedTuple):
    """The exact product, modulo 2**32, and what is known of its partial sums."""

    total: Array
    #: Smallest and largest of the product.
    ends: Range
    #: Rows of a and columns of b (masks) that meet in some output of which nothing is proven.
    rows: Array
    columns: Array
    #: Whether int32 is known to hold every product.
    fits: bool


def byte_offset(signed: bool, known: Range) -> int | None:
    """Return the offset that makes codes within `known` signed or unsigned bytes, None where none does."""
    low = -128 if signed else 0
    if known.within(low, low + 255):
        return 0
    return low - known.low if known.high - known.low <= 255 and abs(known.low) <= 255 else None


def _laid_out(codes: Array, known: Range, lanes_first: bool, signed: bool) -> Bytes | None:
    """Return an operand (lanes, K), or (K, lanes) unless lanes_first, for the kernels; None where it has no bytes."""
    offset = byte_offset(signed, known)
    if offset is None:
        return None
    if codes.dtype.itemsize > 2:
        codes = codes.astype(np.int16)
    size = codes.shape[0 if lanes_first else 1]
    if codes.strides[1] != codes.itemsize and codes.strides[0] == codes.itemsize:
        codes, lanes_first = codes.T, not lanes_first
    elif codes.strides[1] != codes.itemsize:
        codes = np.ascontiguousarray(codes)
    return Bytes(codes, not lanes_first, size, offset)


def byte_product(a: Array, b: Array, ranges: tuple[Range, Range], limits: Limits | None = None) -> Product | None:
    """Return a (M, K) times b (K, N), or None where the codes, within `ranges`, do not span a byte each.

    limits: outputs that some partial sum may push beyond them are looked for; without them all int32 sums wrap.
    """
    (m, k), n = a.shape, b.shape[1]
    swapped = m > n
    left = _laid_out(*((b, ranges[1], False) if swapped else (a, ranges[0], True)), signed=True)
    right = _laid_out(*((a, ranges[0], True) if swapped else (b, ranges[1], False)), signed=False)
    if left is None or right is None or not tiles.HAS_DOT:
        return None
    looks = limits is not None
    limits = limits or Limits()
    groups, panels = -(-left.size // EDGE), -(-right.size // kernels.WIDTH)
    span = _span(ranges, limits) if looks else kernels.CHUNK
    words = np.empty((groups, padded_words(k), EDGE), np.int32)
    corrections = np.zeros((-(-k // span), groups * EDGE), np.int32)
    squares = np.zeros(corrections.shape, np.int64)
    roots = np.zeros((len(corrections), groups * EDGE // kernels.TILE.rows), np.float64)
    sizes, code = (left.codes.itemsize, right.codes.itemsize), (left.codes.dtype.type(0), right.codes.dtype.type(0))

    def prepare(first: int, last: int) -> None:
        kernels.pack_rows(*left.arguments, words, sizes[0], code[0], k, first, last)
        if right.offset or looks:
            kernels.row_moments(words, k, span, right.offset, left.offset, corrections, squares, roots, first, last)

    threads.run(prepare, threads.parts(groups, k * EDGE))
    out = np.empty((m, n), np.int32)
    open_rows = np.zeros((groups * EDGE, panels), np.bool_)
    open_lanes = np.zeros((-(-left.size // kernels.TILE.rows), panels * kernels.WIDTH), np.bool_)
    # Sums are kept modulo 2**32: one that is within int32 and moves by less than the room to its ends stays there.
    inner = np.array([max(limits.low, -1 << 31), min(limits.high, (1 << 31) - 1), limits.magnitude], np.int64)
    if limits.magnitude < _FAR:
        inner[:2] = -_FAR, _FAR

    def part(first: int, last: int) -> Array:
        summary = np.zeros(3, np.float64)
        kernels.multiply(
            words, corrections, squares, roots, span, looks, inner, k, *right.arguments, left.offset, sizes[1], code[1],
            out, swapped, open_rows, open_lanes, summary, first, last,
        )  # fmt: skip
        return summary

    found = np.stack(threads.run(part, threads.parts(panels, kernels.WIDTH * k * groups)))
    ends = Range(int(found[:, 0].min()), int(found[:, 1].max()))
    rows: Array = np.any(open_rows, axis=1)
    columns: Array = np.any(open_lanes, axis=0)
    rows, columns = rows[: left.size], columns[: right.size]
    proven = looks and limits.magnitude == _FAR and not columns.any()
    fits = proven or (looks and float(found[:, 2].max()) < 1 << 31)
    return Product(out, ends, *((columns, rows) if swapped else (rows, columns)), fits)


def _span(ranges: tuple[Range, Range], limits: Limits) -> int:
    """Return how many products pass between two looks: fewer where rails are near."""
    one = ranges[0].magnitude * ranges[1].magnitude
    room = min(-limits.low, limits.high, limits.magnitude)
    return next((span for span in kernels.SPANS if span * one <= 4 * room), kernels.SPANS[-1])
