"""The three INT8 products of a convolution by torch operations, on any device: the twins of convolution.py.

Patches are taken in the order of k that S4 gives, as a matrix in memory: slow, and plain to read.
"""

from __future__ import annotations

from typing import Any

import torch

from fqtsim.kernels.gpu.epilogue import Register, Side, Watch
from fqtsim.kernels.gpu.gemm import composed_int8_gemm_scaled

Pair = tuple[int, int]


def as_fill(zero: torch.Tensor | None, samples: int, like: torch.Tensor) -> torch.Tensor:
    """Return the code of real zero of every sample, int64 (samples,)."""
    if zero is None:
        return torch.zeros(samples, dtype=torch.int64, device=like.device)
    return zero.to(torch.int64).reshape(-1).expand(samples).contiguous()


def _gathered(x: torch.Tensor, fill: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, hole: Pair) -> Any:
    """Return codes (N, C, rows..., columns...) at the given numerators; outside x and in holes, the sample's fill."""
    height, width = x.shape[2:]
    h, w = rows.div(hole[0], rounding_mode="floor"), columns.div(hole[1], rounding_mode="floor")
    inside_h = (h >= 0) & (h < height) & (h * hole[0] == rows)
    inside_w = (w >= 0) & (w < width) & (w * hole[1] == columns)
    h, w = h.clamp(0, height - 1), w.clamp(0, width - 1)
    codes = x[:, :, h[:, None, :, None], w[None, :, None, :]]
    inside = inside_h[:, None, :, None] & inside_w[None, :, None, :]
    return torch.where(inside, codes, fill.to(x.dtype).reshape(-1, 1, 1, 1, 1, 1))


def _patches(x: torch.Tensor, fill: torch.Tensor, out: Pair, step: Pair, tap: Pair, offset: Pair, hole: Pair,
             kernel: Pair) -> torch.Tensor:  # fmt: skip
    """Return what outputs meet through taps, (o * step + t * tap + offset) / hole: (N, C, OH, OW, KH, KW)."""
    places = [
        torch.arange(out[i], device=x.device)[:, None] * step[i]
        + torch.arange(kernel[i], device=x.device) * tap[i]
        + offset[i]
        for i in (0, 1)
    ]
    codes: torch.Tensor = _gathered(x, fill, places[0], places[1], hole)
    return codes


def _per_group(column: Side, groups: int, g: int) -> Side:
    """Return the part of a weight's side that belongs to group g."""

    def part(v: torch.Tensor | None) -> torch.Tensor | None:
        return v if v is None or v.numel() == 1 else v.reshape(groups, -1)[g]

    step = part(column.step)
    return Side(part(column.zero), column.step if step is None else step)


def _products(a: torch.Tensor, b: torch.Tensor, row: Side, column: Side, register: Register, watch: Watch | None,
              samples: int, size: Pair) -> torch.Tensor:  # fmt: skip
    """Return (N, G * n, *size) for a (G, M, K) and b (G, K, n)."""
    groups = len(a)
    parts = [
        composed_int8_gemm_scaled(
            a[g],
            b[g],
            row,
            _per_group(column, groups, g),
            samples,
            register=register,
            watch=watch and watch.of_group(g),
        )
        for g in range(groups)
    ]
    return torch.cat([part.reshape(samples, -1, *size) for part in parts], 1)


def composed_fprop(
    x: torch.Tensor, w: torch.Tensor, window: Any, groups: int, row: Side, column: Side, register: Register,
    watch: Watch | None,
) -> torch.Tensor:  # fmt: skip
    """As conv_fprop: k = (kh, kw, channel)."""
    samples = x.shape[0]
    out = window.positions((x.shape[2], x.shape[3]))
    before = (-window.before[0], -window.before[1])
    patches = _patches(
        x, as_fill(row.zero, samples, x), out, window.stride, window.dilation, before, (1, 1), window.kernel
    )
    a = patches.reshape(samples, groups, -1, *out, *window.kernel).permute(1, 0, 3, 4, 5, 6, 2)
    b = w.reshape(groups, -1, *w.shape[1:]).permute(0, 3, 4, 2, 1)
    k = w[0].numel()
    a, b = a.reshape(groups, samples * out[0] * out[1], k), b.reshape(groups, k, w.shape[0] // groups)
    return _products(a, b, row, column, register, watch, samples, out)


def composed_dgrad(
    dh: torch.Tensor, w: torch.Tensor, window: Any, groups: int, size: Pair, row: Side, column: Side,
    register: Register, watch: Watch | None,
) -> torch.Tensor:  # fmt: skip
    """As conv_dgrad: k = (kh, kw, output channel) on the stride-dilated dH."""
    samples = dh.shape[0]
    taps = (-window.dilation[0], -window.dilation[1])
    patches = _patches(
        dh, as_fill(row.zero, samples, dh), size, (1, 1), taps, window.before, window.stride, window.kernel
    )
    a = patches.reshape(samples, groups, -1, *size, *window.kernel).permute(1, 0, 3, 4, 5, 6, 2)
    b = w.reshape(groups, -1, *w.shape[1:]).permute(0, 3, 4, 1, 2)
    k = b.shape[1] * b.shape[2] * b.shape[3]
    a, b = a.reshape(groups, samples * size[0] * size[1], k), b.reshape(groups, k, w.shape[1])
    return _products(a, b, row, column, register, watch, samples, size)


def composed_wgrad(
    x: torch.Tensor, dh: torch.Tensor, window: Any, groups: int, row: Side, column: Side, register: Register,
    watch: Watch | None,
) -> torch.Tensor:  # fmt: skip
    """As conv_wgrad: rows (kh, kw, ci), k = (n, h, w)."""
    samples, outputs = dh.shape[:2]
    out = (dh.shape[2], dh.shape[3])
    before = (-window.before[0], -window.before[1])
    patches = _patches(
        x, as_fill(row.zero, samples, x), out, window.stride, window.dilation, before, (1, 1), window.kernel
    )
    channels, k = x.shape[1] // groups, samples * out[0] * out[1]
    a = patches.reshape(samples, groups, channels, *out, *window.kernel).permute(1, 5, 6, 2, 0, 3, 4)
    a = a.reshape(groups, -1, k)
    b = dh.reshape(samples, groups, -1, *out).permute(1, 0, 3, 4, 2).reshape(groups, k, -1)
    parts = [
        composed_int8_gemm_scaled(a[g], b[g], row, column, register=register, watch=watch and watch.of_group(g))[0]
        for g in range(groups)
    ]
    return torch.cat(parts).reshape(outputs, *window.kernel, channels).permute(0, 3, 1, 2).contiguous()
