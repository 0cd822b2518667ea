"""Convolution as one GEMM: which code stands at which (row, k) (S4, "Order of k").

fprop has k = (kh, kw, channel); dgrad k = (kh, kw, output channel) on the stride-dilated gradient, kh and kw
ascending as indices of W; wgrad rows (kh, kw, ci) and k = (n, h, w).
"""

from __future__ import annotations

import numpy as np

from fqtsim.kernels import im2col
from fqtsim.train.geometry import Pair, Window
from fqtsim.train.operands import Array, Operand

_CARRIERS = {1: np.int8, 2: np.int16, 4: np.int32}


def _carrier(codes: Array) -> Array:
    """View codes as the plain integer type of their width: a gather moves bytes, whatever they mean."""
    return codes.view(_CARRIERS[codes.dtype.itemsize])


def _pair(first: int, second: int) -> Array:
    return np.array([first, second], np.int64)


def channels_last(codes: Array) -> Array:
    """Return (N, C, H, W) codes in the memory order (N, H, W, C)."""
    return np.ascontiguousarray(codes.transpose(0, 2, 3, 1))


def fprop_rows(x: Operand, window: Window) -> Array:
    """Return the patches of x (N, C, H, W) as a matrix (N * OH * OW, KH * KW * C)."""
    samples, channels, height, width = x.codes.shape
    oh, ow = window.positions((height, width))
    out = np.empty((samples, oh, ow, *window.kernel, channels), x.codes.dtype)
    im2col.gather_rows(
        _carrier(channels_last(x.codes)),
        _carrier(x.fill(samples)),
        _carrier(out),
        _pair(*window.stride),
        _pair(*window.dilation),
        _pair(-window.before[0], -window.before[1]),
        _pair(1, 1),
    )
    return out.reshape(samples * oh * ow, -1)


def dgrad_rows(dh: Operand, window: Window, size: Pair) -> Array:
    """Return what each input position of `size` meets of dH (N, CO, OH, OW): (N * H * W, KH * KW * CO).

    Input position h meets output o through tap t where o * stride = h + before - t * dilation; the taps ascend, the
    positions of dH therefore descend, and everything between two strides is a hole.
    """
    samples, channels = dh.codes.shape[:2]
    out = np.empty((samples, *size, *window.kernel, channels), dh.codes.dtype)
    im2col.gather_rows(
        _carrier(channels_last(dh.codes)),
        _carrier(dh.fill(samples)),
        _carrier(out),
        _pair(1, 1),
        _pair(-window.dilation[0], -window.dilation[1]),
        _pair(*window.before),
        _pair(*window.stride),
    )
    return out.reshape(samples * size[0] * size[1], -1)


def wgrad_rows(x: Operand, window: Window) -> Array:
    """Return the transposed patches of x (N, C, H, W): (KH * KW * C, N * OH * OW)."""
    samples, channels, height, width = x.codes.shape
    oh, ow = window.positions((height, width))
    out = np.empty((*window.kernel, channels, samples, oh, ow), x.codes.dtype)
    im2col.gather_columns(
        _carrier(np.ascontiguousarray(x.codes)),
        _carrier(x.fill(samples)),
        _carrier(out),
        _pair(*window.stride),
        _pair(*window.dilation),
        _pair(-window.before[0], -window.before[1]),
    )
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
