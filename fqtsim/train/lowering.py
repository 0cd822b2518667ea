"""Convolution as one GEMM: which code stands at which (row, k) (S4, "Order of k").

fprop has k = (kh, kw, channel); dgrad k = (kh, kw, output channel) on the stride-dilated gradient, kh and kw
ascending as indices of W; wgrad rows (kh, kw, ci) and k = (n, h, w).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fqtsim.backends.direct import Walk
from fqtsim.kernels import im2col
from fqtsim.train.geometry import Pair, Window
from fqtsim.train.operands import Array, Operand

_CARRIERS = {1: np.int8, 2: np.int16, 4: np.int32}


def _carrier(codes: Array) -> Array:
    """View codes as the plain integer type of their width: a gather moves bytes, whatever they mean."""
    return codes.view(_CARRIERS[codes.dtype.itemsize])


def forward_walk(window: Window, size: Pair) -> Walk:
    """Return which place of an input of `size` an output of fprop meets through a tap; so do the taps of wgrad."""
    before = (-window.before[0], -window.before[1])
    return Walk(window.positions(size), window.kernel, window.stride, window.dilation, before)


def backward_walk(window: Window, size: Pair) -> Walk:
    """Return which place of dH an input position of `size` meets through a tap.

    Input position h meets output o through tap t where o * stride = h + before - t * dilation; the taps ascend, the
    positions of dH therefore descend, and everything between two strides is a hole.
    """
    dilation = (-window.dilation[0], -window.dilation[1])
    return Walk(size, window.kernel, (1, 1), dilation, window.before, window.stride)


def _arrays(walk: Walk) -> tuple[Array, ...]:
    """Return step, tap, offset and hole of a walk as kernels take them."""
    return tuple(np.array(pair, np.int64) for pair in (walk.step, walk.tap, walk.offset, walk.hole))


@dataclass(frozen=True)
class Met:
    """Which terms of a GEMM are no holes: the same for every sample, channel and column.

    k counts (outer, i, j, inner); row position (x, y) meets k where `down[x, i]` and `across[y, j]`.
    """

    #: bool (X, I).
    down: Array
    #: bool (Y, J).
    across: Array
    outer: int = 1
    inner: int = 1

    @property
    def counts(self) -> Array:
        """The number of valid terms of each row position: int64 (X * Y,)."""
        counts: Array = np.outer(self.down.sum(1, dtype=np.int64), self.across.sum(1, dtype=np.int64)).reshape(-1)
        return counts * (self.outer * self.inner)

    def sums(self, codes: Array, zero_point: Array) -> Array:
        """Return the sums of code - zero_point of b (K, N) over the valid terms: int64 (X * Y, N).

        In float64, where integers below 2^53 are exact in any order: K codes of at most 17 bits stay far below.
        """
        (taps_down, taps_across), columns = (self.down.shape[1], self.across.shape[1]), codes.shape[1]
        shape = (self.outer, taps_down, taps_across, self.inner, columns)
        each = codes.reshape(shape).sum(axis=(0, 3), dtype=np.int64) - self.outer * self.inner * zero_point
        along = np.tensordot(self.across.astype(np.float64), each.astype(np.float64), (1, 1))  # (Y, I, N)
        met = np.tensordot(self.down.astype(np.float64), along, (1, 1))  # (X, Y, N)
        return met.reshape(-1, columns).astype(np.int64)


def all_met(terms: int) -> Met:
    """Return what a GEMM of so many terms without holes meets: one row position, every term."""
    return Met(np.ones((1, 1), np.bool_), np.ones((1, 1), np.bool_), outer=terms)


def _met(size: int, count: int, kernel: int, step: Pair, offset: int, hole: int) -> Array:
    """Tell whether output o meets one of `size` positions through tap t: bool (count, kernel).

    That position is (o * s + t * d + offset) / hole with step = (s, d), as in im2col.gather_rows.
    """
    place = np.arange(count)[:, None] * step[0] + np.arange(kernel) * step[1] + offset
    met: Array = (place >= 0) & (place % hole == 0) & (place // hole < size)
    return met


def fprop_met(size: Pair, window: Window, channels: int) -> Met:
    """Return what each output position of fprop meets of an input of `size`."""
    down, across = (
        _met(size[i], window.positions(size)[i], window.kernel[i], (window.stride[i], window.dilation[i]),
             -window.before[i], 1)
        for i in (0, 1)
    )  # fmt: skip
    return Met(down, across, inner=channels)


def dgrad_met(positions: Pair, window: Window, size: Pair, channels: int) -> Met:
    """Return what each input position of `size` meets of a gradient of `positions`."""
    down, across = (
        _met(positions[i], size[i], window.kernel[i], (1, -window.dilation[i]), window.before[i], window.stride[i])
        for i in (0, 1)
    )
    return Met(down, across, inner=channels)


def wgrad_met(size: Pair, window: Window, samples: int) -> Met:
    """Return what each tap of wgrad meets: the transpose of fprop, over all samples."""
    fprop = fprop_met(size, window, 1)
    return Met(np.ascontiguousarray(fprop.down.T), np.ascontiguousarray(fprop.across.T), outer=samples)


def channels_last(codes: Array) -> Array:
    """Return (N, C, H, W) codes in the memory order (N, H, W, C)."""
    return np.ascontiguousarray(codes.transpose(0, 2, 3, 1))


def _in_words(x: Array, fill: Array, out: Array) -> tuple[Array, Array, Array]:
    """Return the codes, the fill codes and the output as the widest words that a position's channels fill."""
    size = x.shape[-1] * x.itemsize
    word = next(width for width in (8, 4, 2, 1) if size % width == 0)
    if word <= x.itemsize:
        return _carrier(x), _carrier(fill), _carrier(out)
    kind = np.dtype(f"i{word}")
    fills = np.repeat(fill[:, None], word // fill.itemsize, 1).view(kind)[:, 0]
    return x.view(kind), fills, out.view(kind)


def fprop_rows(x: Operand, window: Window) -> Array:
    """Return the patches of x (N, C, H, W) as a matrix (N * OH * OW, KH * KW * C)."""
    samples, channels, height, width = x.codes.shape
    oh, ow = window.positions((height, width))
    out = np.empty((samples, oh, ow, *window.kernel, channels), x.codes.dtype)
    walk = _arrays(forward_walk(window, (height, width)))
    im2col.gather_rows(*_in_words(channels_last(x.codes), x.fill(samples), out), *walk)
    return out.reshape(samples * oh * ow, -1)


def dgrad_rows(dh: Operand, window: Window, size: Pair) -> Array:
    """Return what each input position of `size` meets of dH (N, CO, OH, OW): (N * H * W, KH * KW * CO)."""
    samples, channels = dh.codes.shape[:2]
    out = np.empty((samples, *size, *window.kernel, channels), dh.codes.dtype)
    walk = _arrays(backward_walk(window, size))
    im2col.gather_rows(*_in_words(channels_last(dh.codes), dh.fill(samples), out), *walk)
    return out.reshape(samples * size[0] * size[1], -1)


def wgrad_rows(x: Operand, window: Window) -> Array:
    """Return the transposed patches of x (N, C, H, W): (KH * KW * C, N * OH * OW)."""
    samples, channels, height, width = x.codes.shape
    oh, ow = window.positions((height, width))
    out = np.empty((*window.kernel, channels, samples, oh, ow), x.codes.dtype)
    step, tap, offset, _ = _arrays(forward_walk(window, (height, width)))
    im2col.gather_columns(*_carriers(x, out), step, tap, offset)
    return out.reshape(-1, samples * oh * ow)


def fprop_weight(codes: Array) -> Array:
    """Return W (CO, CI, KH, KW) as the matrix (KH * KW * CI, CO)."""
    return np.ascontiguousarray(codes.transpose(2, 3, 1, 0)).reshape(-1, codes.shape[0])


def dgrad_weight(codes: Array) -> Array:
    """Return W (CO, CI, KH, KW) as the matrix (KH * KW * CO, CI)."""
    return np.ascontiguousarray(codes.transpose(2, 3, 0, 1)).reshape(-1, codes.shape[1])


def wgrad_columns(codes: Array) -> Array:
    """Return dH (N, CO, OH, OW) as the matrix (N * OH * OW, CO)."""
    return channels_last(codes).reshape(-1, codes.shape[1])


def _carriers(x: Operand, out: Array) -> tuple[Array, Array, Array]:
    """Return the codes, the fill codes and the output as plain integers."""
    return _carrier(np.ascontiguousarray(x.codes)), _carrier(x.fill(len(x.codes))), _carrier(out)


def some_rows(x: Operand, walk: Walk, channels: range, rows: Array) -> Array:
    """Return chosen rows, int64 (R,), of fprop_rows or dgrad_rows, of some channels only: (R, KH * KW * C)."""
    out = np.empty((len(rows), *walk.taps, len(channels)), x.codes.dtype)
    im2col.gather_some_rows(*_carriers(x, out), rows, channels.start, walk.outputs, *_arrays(walk))
    return out.reshape(len(rows), -1)


def some_gradient_rows(x: Operand, walk: Walk, taps: Array) -> Array:
    """Return rows of wgrad_rows, those of taps and channels int64 (R, 3) as (kh, kw, c): (R, N * OH * OW)."""
    out = np.empty((len(taps), len(x.codes), *walk.outputs), x.codes.dtype)
    step, tap, offset, _ = _arrays(walk)
    im2col.gather_some_columns(*_carriers(x, out), taps, step, tap, offset)
    return out.reshape(len(taps), -1)
