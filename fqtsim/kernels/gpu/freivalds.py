"""Sums of codes with random words, modulo 2**32, on a device: the twin of fqtsim/kernels/freivalds.py.

Words and sums are int32, whose products and sums wrap. What a convolution meets is found from its images and its walk
alone: output o and tap t meet (o * step + t * tap + offset) / hole where that is a whole number inside the image, and
elsewhere the code of real zero. No order of additions matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from fqtsim.kernels.gpu import tune
from fqtsim.kernels.gpu.launch import is_fused

MASK = 0xFFFFFFFF
MOST_TERMS, MOST_ELEMENTS = 1 << 20, 1 << 24
"""Rows that one float64 product sums, and codes that are float64 at a time."""
PROGRAMS = 256
"""Programs among which a sum is shared out, at least, where it is long."""
Pair = tuple[int, int]


class Walk(Protocol):
    """What is needed of fqtsim.backends.direct.Walk; every pair is (down, across)."""

    @property
    def outputs(self) -> Pair: ...
    @property
    def taps(self) -> Pair: ...
    @property
    def step(self) -> Pair: ...
    @property
    def tap(self) -> Pair: ...
    @property
    def offset(self) -> Pair: ...
    @property
    def hole(self) -> Pair: ...


def beside(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the words (2, N) of several groups side by side."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), 1)


def words32(sums: torch.Tensor) -> torch.Tensor:
    """Return integers modulo 2**32 as int32."""
    words = sums.to(torch.int64) & MASK
    return torch.where(words > 0x7FFFFFFF, words - (1 << 32), words).to(torch.int32)


def composed_combine(weights: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """As `combine` of one matrix, by torch operations.

    By float64 products of 16-bit halves: each product is below 2**32 and at most 2**20 are summed, so that every
    partial sum, in whatever order, is an integer below 2**53 and exact.
    """
    rows, columns = matrix.shape
    total = torch.zeros((2, columns), dtype=torch.int64, device=matrix.device)
    # Low and high halves of both rows of weights: (4, R).
    halves = torch.cat([weights & 0xFFFF, (weights >> 16) & 0xFFFF]).to(torch.float64)
    narrow = matrix.element_size() <= 2
    step = max(1, min(MOST_TERMS, MOST_ELEMENTS // max(columns, 1)))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        part, some = matrix[first:last], halves[:, first:last]
        words = [(part, 0)] if narrow else [(part & 0xFFFF, 0), ((part >> 16) & 0xFFFF, 16)]
        for codes, shift in words:
            sums = (some @ codes.to(torch.float64)).to(torch.int64)
            low, high = sums[:2] & MASK, sums[2:] & 0xFFFF
            # The high half of a code times the high half of a word is a multiple of 2**32.
            total += (low << shift) + (high << 16 if not shift else 0)
    return words32(total)


def _grouped(weights: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights (2, G, R) and matrices (G, R, C) of one group or several."""
    return (weights, matrix) if matrix.ndim == 3 else (weights[:, None], matrix[None])


def combine(weights: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return weights (2, R), int32, times an integer matrix (R, C): int32 (2, C). Any strides.

    Of several, weights (2, G, R) and matrices (G, R, C), side by side: (2, G * C).
    """
    weights, matrix = _grouped(weights, matrix)
    if not (matrix.numel() and is_fused(matrix)):
        return beside([composed_combine(weights[:, g], one) for g, one in enumerate(matrix)])
    from fqtsim.kernels.gpu.triton_freivalds import combine_kernel

    groups, rows, columns = matrix.shape
    out = torch.zeros((2, groups * columns), dtype=torch.int32, device=matrix.device)
    wide = tune.power_of_two(columns, 1, 128)
    tall = 2048 // wide
    # A program takes several tiles where there are many rows: fewer atomic additions.
    tiles = max(1, min(16, rows // (tall * PROGRAMS)))
    grid = (-(-columns // wide) * -(-rows // (tall * tiles)), groups)
    combine_kernel[grid](
        weights, matrix, out, rows, columns, *weights.stride(), *matrix.stride(), TILES=tiles, BR=tall, BC=wide,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out


def combine_rows(weights: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return what each row of an integer matrix (R, K) sums to with weights (2, K), int32: int32 (2, R). Any strides.

    Of several, weights (2, G, K) and matrices (G, R, K), side by side: (2, G * R).
    """
    weights, matrix = _grouped(weights, matrix)
    if not (matrix.numel() and is_fused(matrix)):
        return beside([composed_combine(weights[:, g], one.t()) for g, one in enumerate(matrix)])
    from fqtsim.kernels.gpu.triton_freivalds import combine_rows_kernel

    groups, rows, terms = matrix.shape
    out = torch.empty((2, groups * rows), dtype=torch.int32, device=matrix.device)
    wide = tune.power_of_two(terms, 1, 256)
    tall = tune.power_of_two(rows, 1, 2048 // wide)
    combine_rows_kernel[(-(-rows // tall), groups)](
        weights, matrix, out, rows, terms, *weights.stride(), *matrix.stride(), BR=tall, BK=wide,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out


def _met(walk: Walk, images: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """Return what outputs meet of images (B, H, W, C): int64 (B, OH, KH, OW, KW, C); fill (B,) where there is none."""
    height, width = images.shape[1:3]
    padded = fill.to(torch.int64).reshape(-1, 1, 1, 1).repeat(1, height + 1, width + 1, images.shape[3])
    padded[:, :height, :width] = images
    for axis, size in ((0, height), (1, width)):
        outputs, taps = (torch.arange(pair[axis], device=images.device) for pair in (walk.outputs, walk.taps))
        place = outputs[:, None] * walk.step[axis] + taps * walk.tap[axis] + walk.offset[axis]
        hole = walk.hole[axis]
        met = (place >= 0) & (place % hole == 0) & (place // hole < size)
        padded = padded.index_select(1 + axis, torch.where(met, place // hole, size).reshape(-1))
    return padded.reshape(len(images), walk.outputs[0], walk.taps[0], walk.outputs[1], walk.taps[1], -1)


def _arguments(walk: Walk, size: Pair) -> tuple[int, ...]:
    """Return a walk over images of `size` as kernels take it."""
    return (*size, *walk.outputs, *walk.taps, *walk.step, *walk.tap, *walk.offset, *walk.hole)


def tap_sums(images: torch.Tensor, fill: torch.Tensor, walk: Walk, words: torch.Tensor) -> torch.Tensor:
    """Return what each tap meets at all outputs, summed with their words: int32 (2, KH * KW, C).

    images int32 (2, H, W, C); fill (2,): what stands where there is none; words (2, OH * OW).
    """
    _, height, width, channels = images.shape
    taps, (rows, columns) = walk.taps[0] * walk.taps[1], walk.outputs
    if not (images.numel() and is_fused(images)):
        # Products and sums of int64 wrap modulo 2**64, of which 2**32 is a divisor.
        met = _met(walk, images, fill) * words.to(torch.int64).reshape(2, rows, 1, columns, 1, 1)
        return words32(met.sum((1, 3))).reshape(2, taps, channels)
    from fqtsim.kernels.gpu.triton_freivalds import word_taps_kernel

    images, fill, words = (x.contiguous() for x in (images, fill, words))
    wide = tune.power_of_two(channels, 1, 64)
    tall, sums = 1024 // wide, taps * -(-channels // wide)
    parts = max(1, min(PROGRAMS // (2 * sums), -(-rows * columns // tall)))
    make = torch.empty if parts == 1 else torch.zeros
    out = make((2, taps, channels), dtype=torch.int32, device=images.device)
    word_taps_kernel[(sums, 2, parts)](
        images, fill, words, out, channels, *_arguments(walk, (height, width)), PARTS=parts, BP=tall, BC=wide,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out


def patch_sums(images: torch.Tensor, fill: torch.Tensor, walk: Walk, words: torch.Tensor) -> torch.Tensor:
    """Return what the taps of each output meet, summed with their words: int32 (2, N * OH * OW, G).

    images int32 (2, N, H, W, G); fill (2, N): what stands where there is none; words (2, KH * KW).
    """
    _, samples, height, width, groups = images.shape
    rows, columns = walk.outputs
    if not (images.numel() and is_fused(images)):
        met = _met(walk, images.reshape(2 * samples, height, width, groups), fill.reshape(-1))
        met = met.reshape(2, samples, *met.shape[1:])
        met = met * words.to(torch.int64).reshape(2, 1, 1, walk.taps[0], 1, walk.taps[1], 1)
        return words32(met.sum((3, 5))).reshape(2, -1, groups)
    from fqtsim.kernels.gpu.triton_freivalds import word_patches_kernel

    images, fill, words = (x.contiguous() for x in (images, fill, words))
    count = samples * rows * columns * groups
    out = torch.empty((2, samples * rows * columns, groups), dtype=torch.int32, device=images.device)
    word_patches_kernel[(-(-count // 256), 2)](
        images, fill, words, out, count, samples, groups, *_arguments(walk, (height, width)), B=256,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out
