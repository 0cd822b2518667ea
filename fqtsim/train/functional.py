"""The three GEMMs of a linear and of a convolutional layer, from encoded tensors to float32 (S4 "Order of k", S5.8).

A scale that varies along the contracted dimension cannot leave the sum, and is an error.
"""

from __future__ import annotations

import numpy as np

from fqtsim.backends.primitives import Primitives
from fqtsim.errors import InputError
from fqtsim.train import lowering
from fqtsim.train.gemm import Gemm, Matrix
from fqtsim.train.geometry import Pair, Window
from fqtsim.train.operands import Array, Operand


def _per_row(operand: Operand, repeats: int) -> tuple[Array | None, Array]:
    """Return step and zero point of an operand whose every row became `repeats` rows of a matrix."""
    if not operand.per_row or operand.step is None:
        return operand.step, operand.zero_point
    return np.repeat(operand.step, repeats), np.repeat(operand.zero_point, repeats)


def _whole(operand: Operand, gemm: Gemm, tensor: str) -> tuple[Array | None, Array]:
    """Return step and zero point of an operand whose rows are contracted: both must be one number."""
    if operand.per_row:
        raise InputError(
            f"layer {gemm.layer!r}, {gemm.name}: a scale per row of the {tensor} varies along k; "
            "use a per-tensor quantizer (ptq) there"
        )
    return operand.step, operand.zero_point


def linear_fprop(x: Operand, w: Operand, gemm: Gemm) -> Array:
    """Return X W^T for x (N, ..., CI) and w (CO, CI): float32 (N, ..., CO)."""
    features = x.codes.shape[-1]
    a = x.codes.reshape(-1, features)
    rows = Matrix(a, *_per_row(x, a.shape[0] // max(x.codes.shape[0], 1)))
    out = gemm(rows, Matrix(np.ascontiguousarray(w.codes.T), w.step, w.zero_point), a.shape[0])
    return out.reshape(*x.codes.shape[:-1], -1)


def linear_dgrad(dh: Operand, w: Operand, gemm: Gemm) -> Array:
    """Return dH W for dh (N, ..., CO) and w (CO, CI): float32 (N, ..., CI)."""
    a = dh.codes.reshape(-1, dh.codes.shape[-1])
    rows = Matrix(a, *_per_row(dh, a.shape[0] // max(dh.codes.shape[0], 1)))
    columns = Matrix(np.ascontiguousarray(w.codes), *_whole(w, gemm, "weight"))
    return gemm(rows, columns, a.shape[0]).reshape(*dh.codes.shape[:-1], -1)


def linear_wgrad(x: Operand, dh: Operand, gemm: Gemm) -> Array:
    """Return dH^T X as X^T dH, transposed: float32 (CO, CI)."""
    a = np.ascontiguousarray(x.codes.reshape(-1, x.codes.shape[-1]).T)
    b = np.ascontiguousarray(dh.codes.reshape(-1, dh.codes.shape[-1]))
    rows = Matrix(a, *_whole(x, gemm, "activation"))
    out: Array = gemm(rows, Matrix(b, *_whole(dh, gemm, "output gradient")))[0]
    return out


def conv_fprop(x: Operand, w: Operand, window: Window, groups: int, gemm: Gemm) -> Array:
    """Return the convolution of x (N, CI, H, W) with w (CO, CI / groups, KH, KW): float32 (N, CO, OH, OW)."""
    samples, channels, height, width = x.codes.shape
    oh, ow = window.positions((height, width))
    inputs, outputs = channels // groups, w.codes.shape[0] // groups
    parts = []
    for g in range(groups):
        xg = x.channels(1, g * inputs, (g + 1) * inputs)
        wg = w.channels(0, g * outputs, (g + 1) * outputs)
        rows = Matrix(lowering.fprop_rows(xg, window), *_per_row(xg, oh * ow))
        columns = Matrix(lowering.fprop_weight(wg.codes), wg.step, wg.zero_point)
        parts.append(gemm(rows, columns, samples).reshape(samples, outputs, oh, ow))
    return parts[0] if groups == 1 else np.concatenate(parts, axis=1)


def conv_dgrad(dh: Operand, w: Operand, window: Window, groups: int, size: Pair, gemm: Gemm) -> Array:
    """Return the gradient of an input of `size` from dh (N, CO, OH, OW): float32 (N, CI, H, W)."""
    samples = dh.codes.shape[0]
    inputs, outputs = w.codes.shape[1], w.codes.shape[0] // groups
    parts = []
    for g in range(groups):
        dhg = dh.channels(1, g * outputs, (g + 1) * outputs)
        wg = w.channels(0, g * outputs, (g + 1) * outputs)
        rows = Matrix(lowering.dgrad_rows(dhg, window, size), *_per_row(dhg, size[0] * size[1]))
        columns = Matrix(lowering.dgrad_weight(wg.codes), *_whole(wg, gemm, "weight"))
        parts.append(gemm(rows, columns, samples).reshape(samples, inputs, *size))
    return parts[0] if groups == 1 else np.concatenate(parts, axis=1)


def conv_wgrad(x: Operand, dh: Operand, window: Window, groups: int, gemm: Gemm) -> Array:
    """Return the gradient of the weight from x (N, CI, H, W) and dh: float32 (CO, CI / groups, KH, KW)."""
    inputs, outputs = x.codes.shape[1] // groups, dh.codes.shape[1] // groups
    parts = []
    for g in range(groups):
        xg = x.channels(1, g * inputs, (g + 1) * inputs)
        dhg = dh.channels(1, g * outputs, (g + 1) * outputs)
        rows = Matrix(lowering.wgrad_rows(xg, window), *_whole(xg, gemm, "activation"))
        columns = Matrix(lowering.wgrad_columns(dhg.codes), *_whole(dhg, gemm, "output gradient"))
        # (1, CO, KH * KW * CI) -> (CO, CI, KH, KW)
        out = gemm(rows, columns).reshape(outputs, *window.kernel, inputs)
        parts.append(out.transpose(0, 3, 1, 2))
    return np.ascontiguousarray(parts[0] if groups == 1 else np.concatenate(parts, axis=0))


def bias_gradient(dh: Operand, axes: tuple[int, ...], p: Primitives) -> Array:
    """Return the sum of dH over `axes`: exact integer sum of code - zero_point, one product, float32 (S5.8)."""
    if dh.step is None:
        return p.exact_sum(dh.codes, axes)
    count = int(np.prod([dh.codes.shape[axis] for axis in axes]))
    total = dh.codes.sum(axis=axes, dtype=np.int64) - count * dh.zero_point
    gradient: Array = (total.astype(np.float64) * np.float64(dh.step)).astype(np.float32)
    return gradient
