"""Triton kernels of sums with random words; only the GPU path, or Triton's interpreter, imports this file.

All arithmetic is of int32 and wraps, so that no order and no atomic addition changes a sum: freivalds.py.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def combine_kernel(
    weights, matrix, out, R, C, one_stride, wg_stride, w_stride, g_stride, r_stride, c_stride,
    TILES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Add weights (2, G, R) times some rows and columns of matrices (G, R, C) to out (2, G, C)."""
    across, group, groups = tl.cdiv(C, BC), tl.program_id(1).to(tl.int64), tl.num_programs(1)
    c = tl.program_id(0) % across * BC + tl.arange(0, BC)
    first = (tl.program_id(0) // across).to(tl.int64) * (BR * TILES)
    one, two = tl.zeros((BC,), tl.int32), tl.zeros((BC,), tl.int32)
    for tile in range(TILES):
        r = first + tile * BR + tl.arange(0, BR)
        at = group * g_stride + r[:, None] * r_stride + c.to(tl.int64)[None, :] * c_stride
        codes = tl.load(matrix + at, mask=(r < R)[:, None] & (c < C)[None, :], other=0).to(tl.int32)
        own = weights + group * wg_stride + r * w_stride
        one += tl.sum(tl.load(own, mask=r < R, other=0)[:, None] * codes, 0)
        two += tl.sum(tl.load(own + one_stride, mask=r < R, other=0)[:, None] * codes, 0)
    tl.atomic_add(out + group * C + c, one, mask=c < C)
    tl.atomic_add(out + (groups + group) * C + c, two, mask=c < C)


@triton.jit
def combine_rows_kernel(
    weights, matrix, out, R, K, one_stride, wg_stride, w_stride, g_stride, r_stride, k_stride,
    BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write what some rows of matrices (G, R, K) sum to with weights (2, G, K) to out (2, G, R)."""
    group, groups = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    one, two = tl.zeros((BR,), tl.int32), tl.zeros((BR,), tl.int32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        at = group * g_stride + r[:, None] * r_stride + k.to(tl.int64)[None, :] * k_stride
        codes = tl.load(matrix + at, mask=(r < R)[:, None] & (k < K)[None, :], other=0).to(tl.int32)
        own = weights + group * wg_stride + k.to(tl.int64) * w_stride
        one += tl.sum(tl.load(own, mask=k < K, other=0)[None, :] * codes, 1)
        two += tl.sum(tl.load(own + one_stride, mask=k < K, other=0)[None, :] * codes, 1)
    tl.store(out + group * R + r, one, mask=r < R)
    tl.store(out + (groups + group) * R + r, two, mask=r < R)


@triton.jit
def place(o, t, step, tap, offset, hole, size):
    """Return which place of an axis outputs o meet through tap t, and whether there is one."""
    at = o * step + t * tap + offset
    inside = at >= 0
    at = tl.where(inside, at, 0)
    return at // hole, inside & (at % hole == 0) & (at // hole < size)


@triton.jit
def word_taps_kernel(
    images, fill, words, out, C, H, W, OH, OW, KH, KW, step_h, step_w, tap_h, tap_w, offset_h, offset_w, hole_h, hole_w,
    PARTS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Write what one tap meets of some channels of images (2, H, W, C), summed with words (2, OH * OW).

    Several parts of the outputs add to an out of zeros.
    """
    across = tl.cdiv(C, BC)
    tap, r = tl.program_id(0) // across, tl.program_id(1)
    c = tl.program_id(0) % across * BC + tl.arange(0, BC)
    blank = tl.load(fill + r)
    total = tl.zeros((BC,), tl.int32)
    for first in range(tl.program_id(2) * BP, OH * OW, PARTS * BP):
        p = first + tl.arange(0, BP)
        y, met_y = place(p // OW, tap // KW, step_h, tap_h, offset_h, hole_h, H)
        x, met_x = place(p % OW, tap % KW, step_w, tap_w, offset_w, hole_w, W)
        met = met_y & met_x & (p < OH * OW)
        at = ((r * H + tl.where(met, y, 0)) * W + tl.where(met, x, 0)).to(tl.int64) * C
        values = tl.load(images + at[:, None] + c[None, :], mask=met[:, None] & (c < C)[None, :], other=0)
        values = tl.where(met[:, None], values, blank)
        word = tl.load(words + r * (OH * OW) + p, mask=p < OH * OW, other=0)
        total += tl.sum(word[:, None] * values, 0)
    if PARTS == 1:
        tl.store(out + (r * (KH * KW) + tap) * C + c, total, mask=c < C)
    else:
        tl.atomic_add(out + (r * (KH * KW) + tap) * C + c, total, mask=c < C)


@triton.jit
def word_patches_kernel(
    images, fill, words, out, count, N, G, H, W, OH, OW, KH, KW, step_h, step_w, tap_h, tap_w, offset_h, offset_w,
    hole_h, hole_w, B: tl.constexpr,
):  # fmt: skip
    """Write what all taps of some outputs meet of images (2, N, H, W, G), summed with words (2, KH * KW)."""
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    r = tl.program_id(1)
    g, p, n = i % G, i // G % (OH * OW), tl.minimum(i // G // (OH * OW), N - 1)
    blank = tl.load(fill + r * N + n)
    base = (r * N + n).to(tl.int64) * H
    total = tl.zeros((B,), tl.int32)
    for tap in range(KH * KW):
        y, met_y = place(p // OW, tap // KW, step_h, tap_h, offset_h, hole_h, H)
        x, met_x = place(p % OW, tap % KW, step_w, tap_w, offset_w, hole_w, W)
        met = met_y & met_x & (i < count)
        at = ((base + tl.where(met, y, 0)) * W + tl.where(met, x, 0)) * G + g
        value = tl.where(met, tl.load(images + at, mask=met, other=0), blank)
        total += tl.load(words + r * (KH * KW) + tap) * value
    tl.store(out + r.to(tl.int64) * count + i, total, mask=i < count)
