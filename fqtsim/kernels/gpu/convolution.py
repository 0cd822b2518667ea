"""The three INT8 products of a convolution as implicit GEMMs: no matrix of patches in memory (S4 "Order of k", S5.8).

The codes are first laid out on a grid that holds the padding and, for dgrad, the holes between strides, all with the
code of real zero, so that they are terms like any others; what a (row, k) reads is then a plain offset. That copy is
as large as the padded tensor, where a matrix of patches would be KH * KW times as large. Why the sums are right:
- The accumulator is a sum of products modulo 2^32 (gemm.py), so k may run in any order: dgrad reads the grid with
  ascending taps and the weights turned round, where S4's order has descending positions. The terms are the same.
- A run of bytes longer than its taps meets weights of 0. Channels added for alignment are the byte 0 and so are their
  weights. None of these adds anything.
- wgrad sums over all grid positions u; dH is the byte 0 wherever u is no output, so that only the N * OH * OW terms
  of S4 remain, and x[u + shift] stays inside the sample's own grid for these. With a stride, x is laid out once for
  each place that a tap can have between two strides.
- No tensor-core accumulator takes more than gemm.RUN terms. wgrad adds its parts of u in memory, in int32, which
  wraps, or where the exact sum is asked for in int64.
- Sums of codes over a patch are taken of that grid, whose channels are summed as it is laid out: integers, exact.
Zero points and steps are `Side`s: of x or dH one, or one per sample; of W one, or in fprop one per output channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from fqtsim.kernels.gpu import tune
from fqtsim.kernels.gpu.composed_convolution import Pair, as_fill, composed_dgrad, composed_fprop, composed_wgrad
from fqtsim.kernels.gpu.epilogue import WRAP32, Register, Side, Watch, watched
from fqtsim.kernels.gpu.gemm import RUN, exact_terms
from fqtsim.kernels.gpu.launch import is_fused
from fqtsim.kernels.gpu.tune import Tile

SLACK = 256
"""Bytes after a grid that the last run may read; they meet weights of 0."""


class Window(Protocol):
    """What a convolution needs of fqtsim.train.geometry.Window; every pair is (vertical, horizontal)."""

    @property
    def kernel(self) -> Pair: ...
    @property
    def stride(self) -> Pair: ...
    @property
    def before(self) -> Pair: ...
    @property
    def dilation(self) -> Pair: ...
    def positions(self, size: Pair) -> Pair: ...


@dataclass(frozen=True)
class Grid:
    """Where a padded or dilated tensor lies: grid row y reads (y * step + offset) / hole."""

    size: Pair
    step: Pair
    offset: Pair
    hole: Pair


def _expand(
    x: torch.Tensor, zero: torch.Tensor | None, groups: int, grid: Grid, out: torch.Tensor,
    strides: tuple[int, int, int], padded: int, with_sums: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Write the codes x (N, G * C, H, W) on a grid; strides of out: (group, position, channel). zero None: byte 0.

    with_sums: return what the bytes of each position sum to over its channels, int32 (G, N * positions).
    """
    from fqtsim.kernels.gpu.triton_convolution import expand_kernel

    samples, channels, height, width = x.shape
    positions, each = samples * grid.size[0] * grid.size[1], channels // groups
    fill = x if zero is None else zero.reshape(-1).to(torch.int32)
    block = tune.power_of_two(padded, 4, 64)
    blocks = -(-padded // block)
    make = torch.empty if blocks == 1 else torch.zeros
    sums = make((groups if with_sums else 0, positions), dtype=torch.int32, device=x.device)
    expand_kernel[(-(-positions // 64), blocks, groups)](
        x, out, sums, fill, 1 if zero is None else max(samples // len(fill), 1), positions, each, padded, height, width,
        *grid.size, *x.stride(), *strides, *grid.step, *grid.offset, *grid.hole,
        FLIP=int(x.dtype == torch.uint8), NOTHING=zero is None, SUMS=min(blocks, 2) if with_sums else 0, BP=64,
        BC=block, enable_fp_fusion=False,
    )  # fmt: skip
    return sums


def _patch_sums(
    places: torch.Tensor, terms: int, size: Pair, kernel: Pair, out: Pair, stride: Pair, taps: Pair
) -> torch.Tensor:
    """Return the sum of the codes of every patch, padding and holes included: int64 (G, N * OH * OW).

    places (G, N * H * W) int32: what the bytes of each position of a grid of `size` sum to; `terms` is added to each
    patch, for bytes that are less than their codes. stride and taps are distances on the grid.
    """
    from fqtsim.kernels.gpu.triton_convolution import patch_sums_kernel

    groups, positions = places.shape
    inner, area = out[0] * out[1], size[0] * size[1]
    count = positions // area * inner
    sums = torch.empty((groups, count), dtype=torch.int64, device=places.device)
    patch_sums_kernel[(-(-count // 256), groups)](
        places, sums, count, positions, inner, out[1], area, stride[0] * size[1], stride[1], taps[0] * size[1], taps[1],
        kernel[1], terms, TAPS=kernel[0] * kernel[1], B=256, enable_fp_fusion=False,
    )  # fmt: skip
    return sums


class _Weights(NamedTuple):
    """Weights as `patches_kernel` reads them: signed bytes (G, CO, runs * length), runs of taps and channels."""

    codes: torch.Tensor
    #: int64 (G, CO): the sums of the codes as given.
    sums: torch.Tensor
    #: Runs, those of one row of taps, bytes of a run, and depth of a tile, of which a run is a multiple.
    runs: int
    across: int
    length: int
    depth: int


@dataclass(frozen=True)
class _Patches:
    """fprop, or dgrad as fprop on an expanded dH with the weights turned round: ready for any form."""

    x: torch.Tensor
    zero: torch.Tensor
    #: (G, CO, KH, KW, CI) codes.
    w: torch.Tensor
    #: Whether the taps of w come backwards.
    turned: bool
    grid: Grid
    window: Window
    out: Pair
    #: Grid positions between neighbouring outputs, and between neighbouring taps.
    stride: Pair
    taps: Pair
    row: Side
    column: Side
    register: Register
    watch: Watch | None
    channels_last: bool

    def _weights(self, padded: int) -> _Weights:
        """Return packed weights, taps turned round where that is asked for, and what they sum to."""
        from fqtsim.kernels.gpu.triton_convolution import pack_weights_kernel

        groups, outputs, kh, kw, channels = self.w.shape
        joined = self.taps[1] == 1 or kw == 1
        length, across = padded * (kw if joined else 1), 1 if joined else kw
        depth = next((d for d in (128, 64) if -length % d <= length // 4), 32)
        pitch = length + -length % depth
        codes = torch.empty((groups, outputs, kh * across * pitch), dtype=torch.int8, device=self.w.device)
        sums = torch.empty((groups, outputs), dtype=torch.int64, device=self.w.device)
        pack_weights_kernel[(groups * outputs,)](
            self.w, codes, sums, outputs, kh, kw, channels, padded, pitch, codes.shape[2], *self.w.stride(),
            FLIP=self.w.dtype == torch.uint8, JOINED=joined, TURNED=self.turned, B=256, enable_fp_fusion=False,
        )  # fmt: skip
        return _Weights(codes, sums, kh * across, across, pitch, depth)

    def result(self) -> torch.Tensor:
        """Return float32 (N, G * CO, OH, OW)."""
        groups, outputs, _, _, channels = self.w.shape
        samples = self.x.shape[0]
        padded = channels + -channels % (16 if channels > 8 else 4)
        area = self.grid.size[0] * self.grid.size[1]
        held = torch.empty(groups * samples * area * padded + SLACK, dtype=torch.int8, device=self.x.device)
        strides = samples * area * padded, padded, 1
        places = _expand(self.x, self.zero, groups, self.grid, held, strides, padded, with_sums=True)
        packed = self._weights(padded)
        sums = _patch_sums(
            places, _offset(self.x) * self.w[0, 0].numel(), self.grid.size, self.window.kernel, self.out, self.stride,
            self.taps,
        )  # fmt: skip
        m, noted = samples * self.out[0] * self.out[1], watched(self.watch, self.zero)[1]
        key = ("patches", m, tuple(self.w.shape), self.grid, self.stride, self.taps, self.x.dtype, self.w.dtype,
               self.channels_last, self.register, noted, self.x.device)  # fmt: skip
        kept = () if self.watch is None else self.watch.kept
        tiles = _patch_tiles(self.x, m, outputs, packed.depth)
        return tune.run(key, tiles, lambda tile: self._by(tile, held, padded, packed, sums), kept)

    def _by(self, tile: Tile, held: torch.Tensor, padded: int, weights: _Weights, sums: torch.Tensor) -> torch.Tensor:
        from fqtsim.kernels.gpu.triton_convolution import patches_kernel

        groups, outputs, kh, kw, channels = self.w.shape
        samples, pitch = self.x.shape[0], self.grid.size[1] * padded
        inner, area = self.out[0] * self.out[1], self.grid.size[0] * pitch
        m, k = samples * inner, kh * kw * channels
        out = _images((samples, groups * outputs, *self.out), self.x.device, self.channels_last)
        za, row_step, row_run = self.row.vectors(m)
        zb, column_step, column_run = self.column.vectors(outputs * groups)
        shared = len(zb) == 1
        watch, noted = watched(self.watch, za)
        grid = (-(-m // tile.rows) * -(-outputs // tile.columns), groups)
        patches_kernel[grid](
            held, weights.codes, m, outputs, k, inner, self.out[1], samples * area, area, self.stride[0] * pitch,
            self.stride[1] * padded, self.taps[0] * pitch, self.taps[1] * padded, weights.codes.shape[2],
            out, out.stride(0), out.stride(3), out.stride(1),
            za, sums, row_step, row_run, zb, weights.sums, column_step, outputs if shared else column_run,
            0 if shared else outputs, *watch,
            CA=_offset(self.x), CB=_offset(self.w), BITS=self.register.bits or 32, UNSIGNED=self.register.unsigned,
            WIDE=self.register.wide(k), RECORD=noted, RUNS=weights.runs, ACROSS=weights.across, LENGTH=weights.length,
            BM=tile.rows, BN=tile.columns, BK=weights.depth, GROUP=8, **tile.launch,
        )  # fmt: skip
        return out


def _offset(codes: torch.Tensor) -> int:
    return 128 if codes.dtype == torch.uint8 else 0


def _images(shape: tuple[int, ...], device: torch.device, channels_last: bool) -> torch.Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=torch.float32, device=device, memory_format=layout).as_strided(
        shape, _strides(shape, channels_last)
    )


def _strides(shape: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """Return strides whose (h, w) are one dimension, also where a size is 1."""
    _, c, h, w = shape
    return (c * h * w, 1, w * c, c) if channels_last else (c * h * w, h * w, w, 1)


def _patch_tiles(x: torch.Tensor, m: int, outputs: int, depth: int) -> list[Tile]:
    columns = tune.power_of_two(outputs, 16, 128)
    if not x.is_cuda:
        return [Tile(32, min(columns, 32), depth, 4, 1)]
    shapes = [(128, columns, 8, 3), (128, columns, 4, 3), (64, columns, 4, 4)]
    if outputs > 128:
        shapes.append((128, 256, 8, 3))
    return [Tile(rows, wide, depth, warps, stages) for rows, wide, warps, stages in shapes]


def conv_fprop(
    x: torch.Tensor, w: torch.Tensor, window: Window, groups: int, row: Side, column: Side, *,
    register: Register = WRAP32, watch: Watch | None = None, channels_last: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Return the convolution of codes x (N, CI, H, W) with w (CO, CI / groups, KH, KW): float32 (N, CO, OH, OW).

    Codes are int8 or uint8 of any strides; `row` is x's side and its zero point is what padding holds.
    """
    samples, out = x.shape[0], window.positions((x.shape[2], x.shape[3]))
    k = w.shape[1] * window.kernel[0] * window.kernel[1]
    if not _runs_fused(x, w, samples, k, register):
        return composed_fprop(x, w, window, groups, row, column, register, watch)
    taps, stride = window.dilation, window.stride
    size = tuple((out[i] - 1) * stride[i] + (window.kernel[i] - 1) * taps[i] + 1 for i in (0, 1))
    grid = Grid((size[0], size[1]), (1, 1), (-window.before[0], -window.before[1]), (1, 1))
    weights = w.reshape(groups, -1, *w.shape[1:]).permute(0, 1, 3, 4, 2)
    zero = as_fill(row.zero, samples, x)
    return _Patches(
        x, zero, weights, False, grid, window, out, stride, taps, row, column, register, watch, channels_last
    ).result()


def _runs_fused(x: torch.Tensor, w: torch.Tensor, samples: int, k: int, register: Register) -> bool:
    short = k <= (exact_terms(x.dtype, w.dtype) if register.exact else RUN)
    return is_fused(x) and short and not register.counted and bool(samples and k and x.numel() and w.numel())


def conv_dgrad(
    dh: torch.Tensor, w: torch.Tensor, window: Window, groups: int, size: Pair, row: Side, column: Side, *,
    register: Register = WRAP32, watch: Watch | None = None, channels_last: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Return the gradient of an input of `size` from codes dh (N, CO, OH, OW): float32 (N, CI, H, W).

    `row` is dH's side and its zero point is what padding and stride holes hold; `column` has one step for all of w.
    """
    samples = dh.shape[0]
    k = w.shape[0] // groups * window.kernel[0] * window.kernel[1]
    if not _runs_fused(dh, w, samples, k, register):
        return composed_dgrad(dh, w, window, groups, size, row, column, register, watch)
    taps = window.dilation
    reach = [(window.kernel[i] - 1) * taps[i] for i in (0, 1)]
    offset = (window.before[0] - reach[0], window.before[1] - reach[1])
    grid = Grid((size[0] + reach[0], size[1] + reach[1]), (1, 1), offset, window.stride)
    weights = w.reshape(groups, -1, *w.shape[1:]).permute(0, 2, 3, 4, 1)
    zero = as_fill(row.zero, samples, dh)
    return _Patches(
        dh, zero, weights, True, grid, window, size, (1, 1), taps, row, column, register, watch, channels_last
    ).result()


def conv_wgrad(
    x: torch.Tensor, dh: torch.Tensor, window: Window, groups: int, row: Side, column: Side, *,
    register: Register = WRAP32, watch: Watch | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return the gradient of the weight from codes x (N, CI, H, W) and dh: float32 (CO, CI / groups, KH, KW).

    `row` is x's side and `column` dH's, each with one zero point and one step.
    """
    if not (is_fused(x) and x.numel() and dh.numel()):
        return composed_wgrad(x, dh, window, groups, row, column, register, watch)
    outputs, channels = dh.shape[1], x.shape[1] // groups
    acc = _wgrad_sums(x, dh, window, groups, row, register.exact)
    out = (dh.shape[2], dh.shape[3])
    sa = _tap_sums(x, row.zero, window, out).reshape(*window.kernel, groups, channels).permute(2, 0, 1, 3)
    sums = sa.reshape(groups, -1), dh.sum((0, 2, 3), dtype=torch.int64)
    dw = torch.empty((outputs, channels, *window.kernel), dtype=torch.float32, device=x.device)
    offsets, k = (_offset(x), _offset(dh)), dh.shape[0] * out[0] * out[1]
    _finish_wgrad(acc, dw, sums, offsets, k, row, column, register, watch)
    return dw


def _finish_wgrad(
    acc: torch.Tensor, out: torch.Tensor, sums: tuple[torch.Tensor, torch.Tensor], offsets: Pair, k: int, row: Side,
    column: Side, register: Register, watch: Watch | None,
) -> None:  # fmt: skip
    """Write what acc (CO, KH * KW * CI) means to out (CO, CI, KH, KW); sums of codes: (G, KH * KW * CI) and (CO,)."""
    from fqtsim.kernels.gpu.triton_convolution import wgrad_finish_kernel

    (count, width), taps = acc.shape, out.shape[2] * out.shape[3]
    (za, row_step, _), (zb, column_step, _) = row.vectors(1), column.vectors(1)
    given, noted = watched(watch, za)
    rows, columns = tune.power_of_two(count, 1, 16), tune.power_of_two(width, 1, 128)
    wgrad_finish_kernel[(-(-width // columns), -(-count // rows))](
        acc, out, width, count, out.shape[1], taps, count // len(sums[0]), k, za, sums[0].contiguous(), row_step, zb,
        sums[1], column_step, *given, CA=offsets[0], CB=offsets[1],
        BITS=register.bits or 64, UNSIGNED=register.unsigned, EXACT=register.exact, COUNTED=register.counted,
        RECORD=noted, BM=columns, BN=rows, enable_fp_fusion=False,
    )  # fmt: skip


def _tap_sums(x: torch.Tensor, zero: torch.Tensor | None, window: Window, out: Pair) -> torch.Tensor:
    """Return, for each tap and channel, the sum of the codes that it meets, padding included: int64 (KH, KW, CI)."""
    samples, channels = x.shape[:2]
    fill = samples * as_fill(zero, 1, x)
    sums = x.sum(0, dtype=torch.int64) - fill
    ends = [
        max(0, (out[i] - 1) * window.stride[i] + (window.kernel[i] - 1) * window.dilation[i] + 1 - x.shape[2 + i]
            - window.before[i]) for i in (0, 1)
    ]  # fmt: skip
    padded = F.pad(sums, (window.before[1], ends[1], window.before[0], ends[0])) + fill
    s = padded.stride()
    taps = (s[1] * window.dilation[0], s[2] * window.dilation[1], s[0])
    windows = padded.as_strided(
        (*window.kernel, channels, *out), (*taps, s[1] * window.stride[0], s[2] * window.stride[1])
    )
    return windows.sum((-1, -2))


def _wgrad_sums(x: torch.Tensor, dh: torch.Tensor, window: Window, groups: int, row: Side, exact: bool) -> torch.Tensor:
    """Return sums of signed bytes, int32 or (exact, long K) int64 (CO, KH * KW * CI / groups)."""
    (samples, inputs), (outputs, *out) = x.shape[:2], dh.shape[1:]
    step, taps = window.stride, window.dilation
    size = [out[i] + (window.kernel[i] - 1) * taps[i] // step[i] for i in (0, 1)]
    total = samples * size[0] * size[1]
    pitch = total + -total % 16
    blocks = min(step[0], (window.kernel[0] - 1) * taps[0] + 1), min(step[1], (window.kernel[1] - 1) * taps[1] + 1)
    xs = torch.empty((step[0] * step[1] * inputs, pitch), dtype=torch.int8, device=x.device)
    ds = torch.empty((outputs, pitch), dtype=torch.int8, device=x.device)
    zero = as_fill(row.zero, 1, x)
    for v in range(blocks[0]):
        for h in range(blocks[1]):
            grid = Grid((size[0], size[1]), step, (v - window.before[0], h - window.before[1]), (1, 1))
            _expand(x, zero, 1, grid, xs[(v * step[1] + h) * inputs :], (0, 1, pitch), inputs)
    _expand(dh, None, 1, Grid((size[0], size[1]), (1, 1), (0, 0), (1, 1)), ds, (0, 1, pitch), outputs)
    wide = exact and total > RUN
    form = _Wgrad(xs, ds, window, groups, (total, size[1], pitch), wide)
    key = ("wgrad", window.kernel, step, taps, groups, inputs, outputs, total, size[1], wide, x.device)
    return tune.run(key, form.tiles(), form.by)


@dataclass(frozen=True)
class _Wgrad:
    """One wgrad, ready for any form."""

    x: torch.Tensor
    dh: torch.Tensor
    window: Window
    groups: int
    #: Positions, those of one grid row, and bytes from row to row.
    lengths: tuple[int, int, int]
    wide: bool

    def _shape(self) -> tuple[int, int, int]:
        """Return taps, output and input channels of a group."""
        inputs = self.x.shape[0] // (self.window.stride[0] * self.window.stride[1])
        return self.window.kernel[0] * self.window.kernel[1], len(self.dh) // self.groups, inputs // self.groups

    def tiles(self) -> list[Tile]:
        """Return the forms worth measuring, none with a part whose sums could overflow."""
        (taps, outputs, channels), least = self._shape(), -(-self.lengths[0] // RUN)
        if not self.x.is_cuda:
            return [Tile(16, 16, 64, 4, 1, parts=max(2, least))]
        tma, sizes = tune.has_tma(self.x), []
        for most in (128, 64):
            rows, columns = tune.power_of_two(outputs, 16, most), tune.power_of_two(channels, 16, most)
            programs = -(-outputs // rows) * -(-channels // columns) * self.groups * taps
            parts = max(least, min(2 * tune.multiprocessors(self.x) // programs, self.lengths[0] // 1024), 1)
            sizes.append(Tile(rows, columns, 128, 8 if rows * columns > 1 << 13 else 4, 3, parts, tma))
        return list(dict.fromkeys([*sizes, sizes[0]._replace(stages=4), sizes[-1]._replace(tma=False)]))

    def by(self, tile: Tile) -> torch.Tensor:
        """Return the sums by one form."""
        from fqtsim.kernels.gpu.triton_convolution import wgrad_kernel

        taps, outputs, channels = self._shape()
        length, across, pitch = self.lengths
        dtype = torch.int64 if self.wide else torch.int32
        out = torch.zeros((len(self.dh), taps * channels), dtype=dtype, device=self.x.device)
        x, dh = self._loadable(self.x, tile.columns, tile), self._loadable(self.dh, tile.rows, tile)
        jobs = -(-outputs // tile.rows) * -(-channels // tile.columns) * self.groups
        wgrad_kernel[(jobs, taps, tile.parts)](
            x, dh, out, len(self.x), len(self.dh), length, pitch, channels, outputs, channels * self.groups,
            self.window.kernel[1], across, taps * channels, *self.window.stride, *self.window.dilation,
            PARTS=tile.parts, TMA=tile.tma, BM=tile.rows, BN=tile.columns, BK=tile.depth, **tile.launch,
        )  # fmt: skip
        return out

    def _loadable(self, codes: torch.Tensor, rows: int, tile: Tile) -> object:
        if not tile.tma:
            return codes
        from fqtsim.kernels.gpu.triton_gemm import descriptor

        loadable: object = descriptor(codes, (len(codes), self.lengths[0]), self.lengths[2], (rows, tile.depth))
        return loadable
