"""A convolution as one job of a backend that needs no matrix of patches (S4 "Order of k", S5.8).

Each function returns what its namesake of functional.py does, or None where the backend, or the case, has no such way.
dgrad walks its taps backwards, and says so where the order of additions matters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fqtsim.backends.direct import Gradient, Images, Side, Walk
from fqtsim.train.gemm import Gemm, Matrix
from fqtsim.train.geometry import Pair, Window
from fqtsim.train.lowering import forward_walk
from fqtsim.train.operands import Array, Operand, along

Codes = Callable[[], tuple[Array, Array]]
"""The matrices a (M, K) and b (K, N) of a GEMM, made when an observer wants them."""


def _is_plain(*operands: Operand) -> bool:
    """Tell whether operands are codes without float offsets."""
    return all(one.step is not None and one.offset is None for one in operands)


def _side(operand: Operand, count: int) -> Side:
    return Side(along(operand.zero_point, count, np.int64), along(operand.step, count, np.float64))


def _pairs(function: Callable[[int], int]) -> Pair:
    return function(0), function(1)


def fprop(x: Operand, w: Operand, window: Window, gemm: Gemm, codes: Codes) -> Array | None:
    """Return the convolution of x (N, CI, H, W) with w (CO, CI, KH, KW): float32 (N, CO, OH, OW)."""
    if not _is_plain(x, w):
        return None
    samples, _, height, width = x.codes.shape
    weight = np.ascontiguousarray(w.codes.transpose(0, 2, 3, 1))
    walk, sides = forward_walk(window, (height, width)), (_side(x, samples), _side(w, len(weight)))
    job = Images(x.codes, x.fill(samples), walk, weight, *sides, checksum=gemm.checksum)
    return gemm.convolve(job, codes)


def dgrad(dh: Operand, w: Operand, window: Window, size: Pair, gemm: Gemm, codes: Codes) -> Array | None:
    """Return the gradient of an input of `size` from dh (N, CO, OH, OW): float32 (N, CI, H, W)."""
    if not _is_plain(dh, w):
        return None
    samples = len(dh.codes)
    weight = np.ascontiguousarray(w.codes[:, :, ::-1, ::-1].transpose(1, 2, 3, 0))
    offset = _pairs(lambda i: window.before[i] - (window.kernel[i] - 1) * window.dilation[i])
    walk = Walk(size, window.kernel, (1, 1), window.dilation, offset, window.stride)
    sides = _side(dh, samples), _side(w, len(weight))
    job = Images(dh.codes, dh.fill(samples), walk, weight, *sides, backwards=True, checksum=gemm.checksum)
    return gemm.convolve(job, codes)


def wgrad(x: Operand, dh: Operand, window: Window, gemm: Gemm, codes: Codes) -> Array | None:
    """Return the gradient of the weight from x (N, CI, H, W) and dh: float32 (CO, CI, KH, KW)."""
    if not _is_plain(x, dh):
        return None
    samples, channels, height, width = x.codes.shape
    outputs, none = dh.codes.shape[1], np.empty((0, 0), np.int8)
    sides = Matrix(none, x.step, x.zero_point), Matrix(none, dh.step, dh.zero_point)
    walk, shifted = forward_walk(window, (height, width)), bool(dh.zero_point.any())
    job = Gradient(x.codes, x.fill(samples), walk, dh.codes, wants_row_sums=shifted)
    out = gemm.correlate(job, sides, codes)
    if out is None:
        return None
    return np.ascontiguousarray(out.reshape(outputs, *window.kernel, channels).transpose(0, 3, 1, 2))
