"""The three GEMMs of a linear and of a convolutional layer on a device: the twin of functional.py (S4, S5.8).

Where no register can overflow, one kernel multiplies, corrects the zero points and scales, and a convolution's patches
never lie in memory; so too wgrad, whose sums are the longest, where a register wraps whatever the order. Elsewhere, and
where somebody observes the operands, patches are gathered into a matrix and the datapath runs on it. Images come out
channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fqtsim.backends.device import EMPTY_RECORD, DeviceBackend, DeviceResult
from fqtsim.errors import BackendRefused, InputError
from fqtsim.hw.lower import BITS, HIGH, LOW, MODE, UNSIGNED
from fqtsim.hw.lower import EXACT as EXACT_MODE
from fqtsim.kernels.gpu import convolution, epilogue
from fqtsim.kernels.gpu.epilogue import EXACT, Register, Side, Sums, Watch
from fqtsim.kernels.gpu.gemm import int8_gemm_scaled
from fqtsim.train.gemm import Gemm, check_width
from fqtsim.train.geometry import Pair, Window
from fqtsim.train.operands import Array, Operand

BYTES = (torch.int8, torch.uint8)
RAILS = -(1 << 63) + 1, (1 << 63) - 1


def _backend(gemm: Gemm) -> DeviceBackend:
    backend = gemm.run.backend
    if not isinstance(backend, DeviceBackend):
        raise InputError(f"layer {gemm.layer!r}, {gemm.name}: backend {backend.name} has no device form")
    if gemm.run.trace:
        raise InputError("trace = True: a device records no partial sums; use backend emulator@cpu")
    return backend


def _side(operand: Operand) -> Side:
    step: Any = operand.step
    return Side(operand.zero_point, step)


def _whole(operand: Operand, gemm: Gemm, tensor: str) -> Operand:
    if operand.per_row:
        raise InputError(
            f"layer {gemm.layer!r}, {gemm.name}: a scale per row of the {tensor} varies along k; "
            "use a per-tensor quantizer (ptq) there"
        )
    return operand


def _part(side: Side, group: int, groups: int, count: int) -> Side:
    """Return the columns of one group; a side of one step serves all."""
    if side.step.numel() == 1:
        return side
    along = slice(group * count, (group + 1) * count)
    return Side(None if side.zero is None else side.zero[along], side.step[along])


def _fused(
    gemm: Gemm, a: Operand, b: Operand, sizes: tuple[int, int, int], groups: int,
    product: Callable[[Watch, Register], Array], counts: bool = False,
) -> Array | None:  # fmt: skip
    """Return the product by kernels of one piece where they give every bit and count, else None. sizes: M, N, K.

    counts: whether they also say what a register that wraps, whatever the order, changes.
    """
    backend, (m, n, k) = _backend(gemm), sizes
    if a.codes.dtype not in BYTES or b.codes.dtype not in BYTES or not (m and n and k):
        return None
    if gemm.run.observers:
        return None
    reason = backend.refusal(gemm.datapath, k)
    if reason is not None:
        raise BackendRefused(f"layer {gemm.layer!r}, {gemm.name}: {backend.name}@{backend.device}: {reason}")
    lowered = backend.lowered(gemm.datapath, k)
    row = lowered.accumulator
    wraps = counts and lowered.order_free_wrap and int(row[BITS]) <= 32
    if not (lowered.never_overflows or wraps):
        return None
    check_width(gemm, lowered.unlimited.magnitude, k)
    register = EXACT if lowered.never_overflows else Register(int(row[BITS]), bool(row[UNSIGNED]), counted=True)
    rails = RAILS if row[MODE] == EXACT_MODE else (int(row[LOW]), int(row[HIGH]))
    p = gemm.run.primitives
    watch = Watch(p.constant(EMPTY_RECORD).clone(), *rails, _sums(gemm, groups, n, a.codes.device))
    out = product(watch, register)
    if gemm.checksum is not None and watch.sums is not None:
        gemm.checksum.sums.extend(watch.sums.out)
    # Where a register wraps, what it changes is what is out of its range; nothing is transient.
    altered = watch.record[3:]
    found = torch.cat((altered, altered, p.constant(np.zeros(1, np.int64)), watch.record[:3]))
    gemm.run.note_on_device(gemm.layer, gemm.name, sizes, groups, found)
    return out


def _sums(gemm: Gemm, groups: int, n: int, device: Any) -> Sums | None:
    """Return where sums of the codes go, if somebody checks them."""
    if gemm.checksum is None:
        return None
    words = gemm.checksum.words
    return Sums(words.outer, words.inner, torch.zeros((groups, 2, n), dtype=torch.int32, device=device))


def _multiply(gemm: Gemm, a: Array, b: Array, row: Side, column: Side, rows: int) -> list[Array]:
    """Return the real products float32 (rows, N, M / rows) of each group of a (G, M, K) and b (G, K, N)."""
    if row.step is None or column.step is None:
        return [_laid_out(left @ right, rows) for left, right in zip(a, b, strict=True)]
    backend, (m, k), n, groups = _backend(gemm), a.shape[1:], b.shape[2], len(a)
    try:
        result = backend.multiply(a, b, gemm.datapath)
    except BackendRefused as error:
        raise BackendRefused(f"layer {gemm.layer!r}, {gemm.name}: {error}") from None
    check_width(gemm, backend.lowered(gemm.datapath, k).unlimited.magnitude, k)
    gemm.run.note_on_device(gemm.layer, gemm.name, (m, n, k), groups, result.counts)
    if gemm.checksum is not None:
        for codes in result.codes:
            gemm.checksum.add(codes)
    _show(gemm, a, b, result)
    row_sums, column_sums = a.sum(2, dtype=torch.int64), b.sum(1, dtype=torch.int64)
    return [
        epilogue.finish(
            result.codes[g], k, row, row_sums[g], _part(column, g, groups, n), column_sums[g], rows,
            gemm.datapath.dropped_bits,
        )
        for g in range(groups)
    ]  # fmt: skip


def _show(gemm: Gemm, a: Array, b: Array, result: DeviceResult) -> None:
    if not gemm.run.observers:
        return
    backend = _backend(gemm)
    for g in range(len(a)):
        own: Any = DeviceResult(result.codes[0], result.counts)
        if len(a) > 1:  # the counts above are of all groups
            own = backend.multiply(a[g], b[g], gemm.datapath)
        for observe in gemm.run.observers:
            observe(gemm.layer, gemm.name, a[g], b[g], gemm.datapath, None, own)


def _laid_out(product: Array, rows: int) -> Array:
    return product.reshape(rows, -1, product.shape[1]).transpose(1, 2)


def linear_fprop(x: Operand, w: Operand, gemm: Gemm) -> Array:
    """Return X W^T for x (N, ..., CI) and w (CO, CI): float32 (N, ..., CO)."""
    return _by_rows(x, w, w.codes.t(), gemm)


def linear_dgrad(dh: Operand, w: Operand, gemm: Gemm) -> Array:
    """Return dH W for dh (N, ..., CO) and w (CO, CI): float32 (N, ..., CI)."""
    return _by_rows(dh, _whole(w, gemm, "weight"), w.codes, gemm)


def _by_rows(x: Operand, w: Operand, b: Array, gemm: Gemm) -> Array:
    a = x.codes.reshape(-1, x.codes.shape[-1])
    row, column = _side(x), _side(w)
    out = None
    if x.step is not None and w.step is not None:
        sizes = (a.shape[0], b.shape[1], a.shape[1])
        out = _fused(
            gemm, x, w, sizes, 1,
            lambda watch, register: int8_gemm_scaled(a, b, row, column, 1, register=register, watch=watch),
        )  # fmt: skip
    out = _multiply(gemm, a[None], b[None], row, column, 1)[0] if out is None else out
    return out[0].t().reshape(*x.codes.shape[:-1], -1)


def linear_wgrad(x: Operand, dh: Operand, gemm: Gemm) -> Array:
    """Return dH^T X as X^T dH, transposed: float32 (CO, CI)."""
    a, b = x.codes.reshape(-1, x.codes.shape[-1]).t(), dh.codes.reshape(-1, dh.codes.shape[-1])
    row, column = _side(_whole(x, gemm, "activation")), _side(_whole(dh, gemm, "output gradient"))
    out = None
    if x.step is not None and dh.step is not None:
        sizes = (a.shape[0], b.shape[1], a.shape[1])
        out = _fused(
            gemm, x, dh, sizes, 1,
            lambda watch, register: int8_gemm_scaled(
                a, b, row, column, 1, register=register, watch=watch, channels_last=False
            ),
            counts=True,
        )  # fmt: skip
    out = _multiply(gemm, a[None], b[None], row, column, 1)[0] if out is None else out
    return out[0].contiguous()


@lru_cache(maxsize=4096)
def _taps(size: int, count: int, kernel: int, step: Pair, offset: int, hole: int) -> np.ndarray[Any, Any]:
    """Return which of `size` positions output o meets through tap t: (o, t) -> (o * s + t * d + offset) / hole.

    step is (s, d). `size`, one beyond the last, where that is a hole or padding.
    """
    place = np.arange(count)[:, None] * step[0] + np.arange(kernel) * step[1] + offset
    met = (place >= 0) & (place % hole == 0) & (place // hole < size)
    found: np.ndarray[Any, Any] = np.where(met, place // hole, size).reshape(-1).astype(np.int64)
    return found


def _patches(x: Operand, places: list[np.ndarray[Any, Any]], kernel: Pair, groups: int, gemm: Gemm) -> Array:
    """Return what every output meets of x (N, C, H, W): (G, N, OH, OW, KH, KW, C / G)."""
    samples, channels, height, width = x.codes.shape
    p = gemm.run.primitives
    padded = x.codes.new_empty((samples, height + 1, width + 1, channels))
    padded[:] = 0 if x.step is None else x.zero_point.to(x.codes.dtype).reshape(-1, 1, 1, 1)
    padded[:, :height, :width] = x.codes.permute(0, 2, 3, 1)
    met = padded.index_select(1, p.constant(places[0])).index_select(2, p.constant(places[1]))
    met = met.reshape(samples, -1, kernel[0], len(places[1]) // kernel[1], kernel[1], groups, channels // groups)
    return met.permute(5, 0, 1, 3, 2, 4, 6)


def _fprop_places(size: Pair, window: Window) -> list[np.ndarray[Any, Any]]:
    out = window.positions(size)
    return [
        _taps(size[i], out[i], window.kernel[i], (window.stride[i], window.dilation[i]), -window.before[i], 1)
        for i in (0, 1)
    ]


def _images(parts: list[Array], samples: int, size: Pair) -> Array:
    """Return (N, C, P) per group as (N, G * C, H, W)."""
    images = [part.reshape(samples, -1, *size) for part in parts]
    return images[0] if len(images) == 1 else torch.cat(images, 1)


def conv_fprop(x: Operand, w: Operand, window: Window, groups: int, gemm: Gemm) -> Array:
    """Return the convolution of x (N, CI, H, W) with w (CO, CI / groups, KH, KW): float32 (N, CO, OH, OW)."""
    samples, _, height, width = x.codes.shape
    out_size, outputs = window.positions((height, width)), w.codes.shape[0] // groups
    row, column, k = _side(x), _side(w), w.codes[0].numel()
    out = None
    if x.step is not None and w.step is not None:
        sizes = (samples * out_size[0] * out_size[1], outputs, k)
        out = _fused(
            gemm, x, w, sizes, groups,
            lambda watch, register: convolution.conv_fprop(
                x.codes, w.codes, window, groups, row, column, register=register, watch=watch
            ),
        )  # fmt: skip
    if out is not None:
        return out
    a = _patches(x, _fprop_places((height, width), window), window.kernel, groups, gemm).reshape(groups, -1, k)
    weights = w.codes.reshape(groups, outputs, *w.codes.shape[1:])
    b = weights.permute(0, 3, 4, 2, 1).reshape(groups, k, outputs)
    return _images(_multiply(gemm, a, b, row, column, samples), samples, out_size)


def conv_dgrad(dh: Operand, w: Operand, window: Window, groups: int, size: Pair, gemm: Gemm) -> Array:
    """Return the gradient of an input of `size` from dh (N, CO, OH, OW): float32 (N, CI, H, W)."""
    samples, outputs, inputs = dh.codes.shape[0], w.codes.shape[0] // groups, w.codes.shape[1]
    row, column = _side(dh), _side(_whole(w, gemm, "weight"))
    k = outputs * window.kernel[0] * window.kernel[1]
    out = None
    if dh.step is not None and w.step is not None:
        out = _fused(
            gemm, dh, w, (samples * size[0] * size[1], inputs, k), groups,
            lambda watch, register: convolution.conv_dgrad(
                dh.codes, w.codes, window, groups, size, row, column, register=register, watch=watch
            ),
        )  # fmt: skip
    if out is not None:
        return out
    places = [
        _taps(dh.codes.shape[2 + i], size[i], window.kernel[i], (1, -window.dilation[i]), window.before[i],
              window.stride[i])
        for i in (0, 1)
    ]  # fmt: skip
    a = _patches(dh, places, window.kernel, groups, gemm).reshape(groups, -1, k)
    weights = w.codes.reshape(groups, outputs, *w.codes.shape[1:])
    b = weights.permute(0, 3, 4, 1, 2).reshape(groups, k, inputs)
    return _images(_multiply(gemm, a, b, row, column, samples), samples, size)


def conv_wgrad(x: Operand, dh: Operand, window: Window, groups: int, gemm: Gemm) -> Array:
    """Return the gradient of the weight from x (N, CI, H, W) and dh: float32 (CO, CI / groups, KH, KW)."""
    inputs, outputs = x.codes.shape[1] // groups, dh.codes.shape[1] // groups
    row, column = _side(_whole(x, gemm, "activation")), _side(_whole(dh, gemm, "output gradient"))
    k, m = dh.codes.numel() // dh.codes.shape[1], window.kernel[0] * window.kernel[1] * inputs
    out = None
    if x.step is not None and dh.step is not None:
        out = _fused(
            gemm, x, dh, (m, outputs, k), groups,
            lambda watch, register: convolution.conv_wgrad(
                x.codes, dh.codes, window, groups, row, column, register=register, watch=watch
            ),
            counts=True,
        )  # fmt: skip
    if out is not None:
        return out
    size = (int(x.codes.shape[2]), int(x.codes.shape[3]))
    met = _patches(x, _fprop_places(size, window), window.kernel, groups, gemm)
    a = met.permute(0, 4, 5, 6, 1, 2, 3).reshape(groups, m, k)
    b = dh.codes.permute(1, 0, 2, 3).reshape(groups, outputs, k).transpose(1, 2)
    parts = [out[0].reshape(outputs, *window.kernel, inputs) for out in _multiply(gemm, a, b, row, column, 1)]
    return torch.cat(parts).permute(0, 3, 1, 2).contiguous()
