"""The three GEMMs of a linear and of a convolutional layer, from encoded tensors to float32 (S4 "Order of k", S5.8).

A scale that varies along the contracted dimension cannot leave the sum, and is an error.
"""

from __future__ import annotations

import math

import numpy as np

from fqtsim.backends.primitives import Primitives
from fqtsim.errors import InputError
from fqtsim.train import direct, lowering
from fqtsim.train.gemm import Gemm, Matrices, Matrix
from fqtsim.train.geometry import Pair, Window
from fqtsim.train.operands import Array, Operand

Scale = tuple[Array | None, Array, Array | None]
"""Step, zero point and offset of an operand, as a Matrix has them."""


def _scale(operand: Operand) -> Scale:
    return operand.step, operand.zero_point, operand.offset


def _per_row(operand: Operand, repeats: int) -> Scale:
    """Return the scale of an operand whose every row became `repeats` rows of a matrix."""
    if not operand.per_row or operand.step is None:
        return _scale(operand)
    offset = None if operand.offset is None else np.repeat(operand.offset, repeats)
    return np.repeat(operand.step, repeats), np.repeat(operand.zero_point, repeats), offset


def _whole(operand: Operand, gemm: Gemm, tensor: str) -> Scale:
    """Return the scale of an operand whose rows are contracted: each part of it must be one number."""
    if operand.per_row:
        raise InputError(
            f"layer {gemm.layer!r}, {gemm.name}: a scale per row of the {tensor} varies along k; "
            "use a per-tensor quantizer (ptq) there"
        )
    return _scale(operand)


def linear_fprop(x: Operand, w: Operand, gemm: Gemm) -> Array:
    """Return X W^T for x (N, ..., CI) and w (CO, CI): float32 (N, ..., CO)."""
    features = x.codes.shape[-1]
    a = x.codes.reshape(-1, features)
    rows = Matrix(a, *_per_row(x, a.shape[0] // max(x.codes.shape[0], 1)))
    out = gemm(rows, Matrix(np.ascontiguousarray(w.codes.T), *_scale(w)), a.shape[0])
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


MOST_BYTES = 1 << 24
"""Codes of the larger operand that are lowered at a time; a group is never cut."""


def _spans(groups: int, bytes_each: int) -> list[Pair]:
    """Return ranges (first, last + 1) that cover the groups, at most MOST_BYTES of codes each unless it is one."""
    count = max(1, min(groups, MOST_BYTES // max(bytes_each, 1)))
    return [(first, min(first + count, groups)) for first in range(0, groups, count)]


def _as_samples(operand: Operand, groups: int) -> Operand:
    """Return (N, G * C, H, W) as (G * N, C, H, W): the groups one after the other, each as samples of its own."""
    if groups == 1:
        return operand
    samples, channels, height, width = operand.codes.shape
    shape = (samples, groups, channels // groups, height, width)
    codes = operand.codes.reshape(shape).transpose(1, 0, 2, 3, 4).reshape(-1, *shape[2:])
    if not operand.per_row or operand.step is None:
        return Operand(codes, *_scale(operand))
    offset = None if operand.offset is None else np.tile(operand.offset, groups)
    return Operand(codes, np.tile(operand.step, groups), np.tile(operand.zero_point, groups), offset)


def _in_groups(codes: Array, step: Array | None, zero_point: Array, offset: Array | None) -> Matrices:
    """Return codes (G, ., .) as matrices that share their scale."""
    return Matrices(codes, [Matrix(one, step, zero_point, offset) for one in codes])


def _grouped_weight(w: Operand, groups: int) -> Array:
    """Return the codes of W (G * CO, CI, KH, KW) as (G, CO, CI, KH, KW)."""
    return w.codes.reshape(groups, -1, *w.codes.shape[1:])


def conv_fprop(x: Operand, w: Operand, window: Window, groups: int, gemm: Gemm) -> Array:
    """Return the convolution of x (N, CI, H, W) with w (CO, CI / groups, KH, KW): float32 (N, CO, OH, OW)."""
    samples, channels, height, width = x.codes.shape
    oh, ow = window.positions((height, width))
    if groups == 1:
        found = direct.fprop(
            x, w, window, gemm, lambda: (lowering.fprop_rows(x, window), lowering.fprop_weight(w.codes))
        )
        if found is not None:
            return found
    met = lowering.fprop_met((height, width), window, channels // groups)
    inputs, outputs = channels // groups, w.codes.shape[0] // groups
    each = samples * oh * ow * w.codes[0].size * x.codes.itemsize
    parts = []
    for first, last in _spans(groups, each):
        count = last - first
        xs = _as_samples(x.channels(1, first * inputs, last * inputs), count)
        rows = lowering.fprop_rows(xs, window).reshape(count, samples * oh * ow, -1)
        ws = w.channels(0, first * outputs, last * outputs)
        columns = np.ascontiguousarray(_grouped_weight(ws, count).transpose(0, 3, 4, 2, 1)).reshape(count, -1, outputs)
        owns = [ws.channels(0, g * outputs, (g + 1) * outputs) for g in range(count)]
        b = Matrices(columns, [Matrix(codes, *_scale(own)) for codes, own in zip(columns, owns, strict=True)])
        parts += gemm.groups(_in_groups(rows, *_per_row(x, oh * ow)), b, samples, met)
    return _joined([part.reshape(samples, outputs, oh, ow) for part in parts], axis=1)


def _joined(parts: list[Array], axis: int) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


def conv_dgrad(dh: Operand, w: Operand, window: Window, groups: int, size: Pair, gemm: Gemm) -> Array:
    """Return the gradient of an input of `size` from dh (N, CO, OH, OW): float32 (N, CI, H, W)."""
    samples = dh.codes.shape[0]
    inputs, outputs = w.codes.shape[1], w.codes.shape[0] // groups
    columns = _whole(w, gemm, "weight")
    if groups == 1:
        found = direct.dgrad(
            dh, w, window, size, gemm,
            lambda: (lowering.dgrad_rows(dh, window, size), lowering.dgrad_weight(w.codes)),
        )  # fmt: skip
        if found is not None:
            return found
    met = lowering.dgrad_met((dh.codes.shape[2], dh.codes.shape[3]), window, size, outputs)
    each = samples * size[0] * size[1] * window.kernel[0] * window.kernel[1] * outputs * dh.codes.itemsize
    parts = []
    for first, last in _spans(groups, each):
        count = last - first
        dhs = _as_samples(dh.channels(1, first * outputs, last * outputs), count)
        rows = lowering.dgrad_rows(dhs, window, size).reshape(count, samples * size[0] * size[1], -1)
        ws = w.channels(0, first * outputs, last * outputs)
        codes = np.ascontiguousarray(_grouped_weight(ws, count).transpose(0, 3, 4, 1, 2)).reshape(count, -1, inputs)
        a = _in_groups(rows, *_per_row(dh, size[0] * size[1]))
        parts += gemm.groups(a, _in_groups(codes, *columns), samples, met)
    return _joined([part.reshape(samples, inputs, *size) for part in parts], axis=1)


def conv_wgrad(x: Operand, dh: Operand, window: Window, groups: int, gemm: Gemm) -> Array:
    """Return the gradient of the weight from x (N, CI, H, W) and dh: float32 (CO, CI / groups, KH, KW)."""
    samples, channels = x.codes.shape[:2]
    inputs, outputs = channels // groups, dh.codes.shape[1] // groups
    positions = dh.codes.shape[2] * dh.codes.shape[3]
    row_scale = _whole(x, gemm, "activation")
    _whole(dh, gemm, "output gradient")
    if groups == 1:
        found = direct.wgrad(
            x, dh, window, gemm, lambda: (lowering.wgrad_rows(x, window), lowering.wgrad_columns(dh.codes))
        )
        if found is not None:
            return found
    met = lowering.wgrad_met((x.codes.shape[2], x.codes.shape[3]), window, samples)
    each = samples * positions * window.kernel[0] * window.kernel[1] * inputs * x.codes.itemsize
    parts = []
    for first, last in _spans(groups, each):
        count = last - first
        xs = _as_samples(x.channels(1, first * inputs, last * inputs), count)
        rows = lowering.wgrad_rows(xs, window).reshape(-1, count, samples * positions)
        gradient = dh.channels(1, first * outputs, last * outputs)
        owns = [gradient.channels(1, g * outputs, (g + 1) * outputs) for g in range(count)]
        columns = lowering.wgrad_columns(_as_samples(gradient, count).codes).reshape(
            count, samples * positions, outputs
        )
        a = _in_groups(np.ascontiguousarray(rows.transpose(1, 0, 2)), *row_scale)
        scales = [_whole(own, gemm, "output gradient") for own in owns]
        b = Matrices(columns, [Matrix(codes, *scale) for codes, scale in zip(columns, scales, strict=True)])
        for out in gemm.groups(a, b, met=met):
            # (1, CO, KH * KW * CI) -> (CO, CI, KH, KW)
            parts.append(out.reshape(outputs, *window.kernel, inputs).transpose(0, 3, 1, 2))
    return np.ascontiguousarray(_joined(parts, axis=0))


def bias_gradient(dh: Operand, axes: tuple[int, ...], p: Primitives) -> Array:
    """Return the sum of dH over `axes`: exact integer sum of code - zero_point, times the step, float32 (S5.8).

    A float offset adds its product with the number of terms, in float64, before the conversion.
    """
    if dh.step is None:
        return p.exact_sum(dh.codes, axes)
    count = math.prod(dh.codes.shape[axis] for axis in axes)
    total = p.integer_sum(dh.codes, axes) - count * dh.zero_point
    if dh.offset is None:
        return p.scaled_integers(total, dh.step)
    offset = np.float64(count) * dh.offset.astype(np.float64)
    summed: Array = (total.astype(np.float64) * dh.step.astype(np.float64) + offset).astype(np.float32)
    return summed
