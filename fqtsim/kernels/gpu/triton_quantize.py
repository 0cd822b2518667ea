"""Triton kernels from float32 to codes, Philox inside; only the GPU path, or Triton's interpreter, imports this file.

A program draws each counter block once, for the four elements that share it, which are neighbours of the logical
tensor: neighbours in memory of a contiguous tensor, and C apart in one that is channels last. Stochastic rounding is
done in 32-bit integers: with |y| = i + f exactly, y >= 0 goes up iff floor(f 2^n) > r, and y < 0 away from zero iff
ceil(f 2^n) > 2^n - 1 - r, which is S5.6.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from fqtsim.kernels.gpu.quantize import DeviceDraw
from fqtsim.kernels.gpu.random import LOW, Step, signed
from fqtsim.kernels.gpu.triton_common import EXACT, flat, is_dense, power_of_two
from fqtsim.kernels.quantize import _EVEN, _NEGATIVE, _NEVER, _NOT_NEGATIVE, _ODD, _UP
from fqtsim.words import Rounding

_RINT, _GENERAL, _STOCHASTIC = 0, 1, 2
RINT, STOCHASTIC = tl.constexpr(_RINT), tl.constexpr(_STOCHASTIC)
ODD, EVEN, NOT_NEGATIVE = tl.constexpr(_ODD), tl.constexpr(_EVEN), tl.constexpr(_NOT_NEGATIVE)
NEGATIVE, NEVER = tl.constexpr(_NEGATIVE), tl.constexpr(_NEVER)
SAFE = tl.constexpr(1048576.0)

BLOCKS, WARPS = 512, 4
"""Counter blocks a program, four elements each, and its warps."""


@triton.jit
def philox(block, key0, key1, stream, step):
    """Return the four words (uint32) of counter blocks (uint32) of a stream and step; all five are uint32."""
    c0, c1 = block, stream + block * 0
    c2, c3 = step + block * 0, block * 0
    for _ in tl.static_range(10):
        p = c0.to(tl.uint64) * 0xD2511F53
        q = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (q >> 32).to(tl.uint32) ^ c1 ^ key0
        c2 = (p >> 32).to(tl.uint32) ^ c3 ^ key1
        c1 = q.to(tl.uint32)
        c3 = p.to(tl.uint32)
        key0 += 0x9E3779B9
        key1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def four_in_a_row(w0, w1, w2, w3, B: tl.constexpr):
    """Return words (B,) as (B, 4)."""
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (B, 4))


@triton.jit
def step_of(step, step_at, ON_DEVICE: tl.constexpr):
    """Return the step index as uint32, from an argument or from memory."""
    if ON_DEVICE:
        step = tl.load(step_at)
    return step.to(tl.uint32)


@triton.jit
def is_met(floor, CONDITION: tl.constexpr):
    """Return which inexact numbers above these integers go up, or up from a tie."""
    if CONDITION == ODD:
        met = (floor & 1) == 1
    elif CONDITION == EVEN:
        met = (floor & 1) == 0
    elif CONDITION == NOT_NEGATIVE:
        met = floor >= 0
    elif CONDITION == NEGATIVE:
        met = floor < 0
    elif CONDITION == NEVER:
        met = floor != floor
    else:
        met = floor == floor
    return met


@triton.jit
def rounded(y, word, KIND: tl.constexpr, NEAREST: tl.constexpr, CONDITION: tl.constexpr, BITS: tl.constexpr):
    """Return float32 y, first brought to -2**20..2**20, as int32; word (uint32) is for STOCHASTIC alone."""
    held = tl.minimum(tl.maximum(y, -SAFE), SAFE)
    if KIND == RINT:  # 1.5 * 2**23 leaves the integer in the low bits, ties to even
        q = (held + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    else:
        negative = held < 0
        a = tl.abs(held)
        i = a.to(tl.int32)
        f = a - i.to(tl.float32)
        if KIND == STOCHASTIC:
            scaled = f * (2.0**BITS)
            whole = scaled.to(tl.uint32)
            above = whole + (whole.to(tl.float32) != scaled).to(tl.uint32)
            r = word >> (32 - BITS)
            away = tl.where(negative, above > (r ^ ((1 << BITS) - 1)), whole > r)
            i += away.to(tl.int32)
            q = tl.where(negative, -i, i)
        else:
            floor = tl.where(negative, -i - (f > 0).to(tl.int32), i)
            met = is_met(floor, CONDITION)
            up = (f > 0) & met
            if NEAREST:
                up = ((f > 0) & tl.where(negative, f < 0.5, f > 0.5)) | ((f == 0.5) & met)
            q = floor + up.to(tl.int32)
    return q


@triton.jit
def is_tie(y):
    """Return which y lie exactly halfway between two integers: 2 |y| is odd; from 2**23 on y is an integer."""
    twice = tl.minimum(tl.abs(y) * 2.0, 16777216.0)
    whole = twice.to(tl.int32)
    return (whole.to(tl.float32) == twice) & ((whole & 1) == 1)


@triton.jit
def quotient(x, step, offset, HAS_OFFSET: tl.constexpr):
    """Return the float32 number of steps."""
    if HAS_OFFSET:
        y = ((x.to(tl.float64) - offset.to(tl.float64)) / step.to(tl.float64)).to(tl.float32)
    else:
        y = tl.div_rn(x, step)
    return y


@triton.jit
def coded(
    x, word, step, zero_point, offset, inside, low, high,
    KIND: tl.constexpr, NEAREST: tl.constexpr, CONDITION: tl.constexpr, BITS: tl.constexpr, HAS_OFFSET: tl.constexpr,
):  # fmt: skip
    """Return codes (int32) of x, how many of those `inside` were clamped, and how many met a tie."""
    y = quotient(x, step, offset, HAS_OFFSET)
    code = rounded(y, word, KIND, NEAREST, CONDITION, BITS) + zero_point
    held = tl.minimum(tl.maximum(code, low), high)
    clamps = tl.sum(((code != held) & inside).to(tl.int32))
    ties = clamps * 0
    if NEAREST:
        ties = tl.sum((is_tie(y) & inside).to(tl.int32))
    return held, clamps, ties


@triton.jit
def count(counts, clamps, ties):
    """Add to the counts; most programs have nothing to add."""
    tl.atomic_add(counts, clamps.to(tl.int64), mask=clamps != 0)
    tl.atomic_add(counts + 1, ties.to(tl.int64), mask=ties != 0)


_UNSPECIALIZED = ["key0", "key1", "stream", "step_index"]


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _words(out, size, key0, key1, stream, step_index, step_at, ON_DEVICE: tl.constexpr, B: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * B
    blocks = first + tl.arange(0, B)
    words = philox(
        blocks.to(tl.uint32), key0.to(tl.uint32), key1.to(tl.uint32), stream.to(tl.uint32),
        step_of(step_index, step_at, ON_DEVICE),
    )  # fmt: skip
    at = 4 * blocks[:, None] + tl.arange(0, 4)[None, :]
    values = four_in_a_row(words[0], words[1], words[2], words[3], B)
    tl.store(out + at, values.to(tl.int32, bitcast=True), mask=at < size)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _flat(
    x, codes, counts, steps, zero_points, offsets, size, length, tiles, low, high,
    key0, key1, stream, step_index, step_at,
    ON_DEVICE: tl.constexpr, EACH: tl.constexpr, BY_FOURS: tl.constexpr, KIND: tl.constexpr, NEAREST: tl.constexpr,
    CONDITION: tl.constexpr, BITS: tl.constexpr, HAS_OFFSET: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Elements in memory order, which is the logical one where words are drawn. EACH: rows may end anywhere; else a
    program stays in one row, whose length is a multiple of 4 unless it is the only one."""
    pid = tl.program_id(0)
    lane = tl.arange(0, 4)[None, :]
    if EACH:
        start = pid.to(tl.int64) * (4 * B)
        at = tl.arange(0, B)[:, None] * 4 + lane
        inside = at < size - start
        row = tl.where(inside, (start + at) // length, 0)
    else:
        row = pid // tiles
        tile = pid % tiles
        within = tl.cast(tile, tl.int64) * (4 * B)  # a row may have more than 2**31 elements
        start = tl.multiple_of(row.to(tl.int64) * length + within, 4)
        at = tl.arange(0, B)[:, None] * 4 + lane
        rest = length - within
        inside = at < rest
        if BY_FOURS:  # one condition for four neighbours, so that they load and store together
            inside = (tl.arange(0, B)[:, None] * 4 < rest) & (lane < 4)
    step, zero_point = tl.load(steps + row), tl.load(zero_points + row)
    offset = step
    if HAS_OFFSET:
        offset = tl.load(offsets + row)
    word = at.to(tl.uint32)
    if KIND == STOCHASTIC:
        block = (start // 4).to(tl.uint32) + tl.arange(0, B).to(tl.uint32)
        w0, w1, w2, w3 = philox(
            block, key0.to(tl.uint32), key1.to(tl.uint32), stream.to(tl.uint32),
            step_of(step_index, step_at, ON_DEVICE),
        )  # fmt: skip
        word = four_in_a_row(w0, w1, w2, w3, B)
    values = tl.load(x + start + at, mask=inside, other=0.0)
    held, clamps, ties = coded(
        values, word, step, zero_point, offset, inside, low, high, KIND, NEAREST, CONDITION, BITS, HAS_OFFSET
    )
    tl.store(codes + start + at, held.to(codes.dtype.element_ty), mask=inside)
    count(counts, clamps, ties)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _channels_last(
    x, codes, counts, steps, zero_points, offsets, channels, pixels, tiles, per_row, low, high,
    key0, key1, stream, step_index, step_at,
    ON_DEVICE: tl.constexpr, BY_FOURS: tl.constexpr, BITS: tl.constexpr, HAS_OFFSET: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Stochastic codes of x (N, pixels, channels) in memory, logically (N, channels, pixels). BY_FOURS: pixels is a
    multiple of 4, and a program's place is four pixels of one channel; else it is one pixel, drawn for alone."""
    n = tl.program_id(0) // tiles
    place = tl.program_id(0) % tiles * B + tl.arange(0, B)
    channel, group = place % channels, place // channels
    start = n.to(tl.int64) * channels * pixels
    at = start + channel.to(tl.int64) * pixels  # logical place of the channel's first pixel
    row = n * per_row
    step, zero_point = tl.load(steps + row), tl.load(zero_points + row)
    offset = step
    if HAS_OFFSET:
        offset = tl.load(offsets + row)
    if BY_FOURS:
        block = at // 4 + group
        inside = group < pixels // 4
    else:
        block = (at + group) // 4
        inside = group < pixels
    w0, w1, w2, w3 = philox(
        block.to(tl.uint32), key0.to(tl.uint32), key1.to(tl.uint32), stream.to(tl.uint32),
        step_of(step_index, step_at, ON_DEVICE),
    )  # fmt: skip
    clamps = tl.sum(channel * 0)
    ties = clamps
    for j in tl.static_range(4 if BY_FOURS else 1):
        if BY_FOURS:
            pixel = group * 4 + j
            word = w0 if j == 0 else (w1 if j == 1 else (w2 if j == 2 else w3))
        else:
            pixel = group
            lane = (at + group) & 3
            word = tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
        where = start + pixel * channels + channel
        values = tl.load(x + where, mask=inside, other=0.0)
        held, more, _ = coded(
            values, word, step, zero_point, offset, inside, low, high, STOCHASTIC, False, ODD, BITS, HAS_OFFSET
        )
        tl.store(codes + where, held.to(codes.dtype.element_ty), mask=inside)
        clamps += more
    count(counts, clamps, ties)


def _draw_arguments(seed: int, stream: int, step: Step, other: torch.Tensor) -> tuple[Any, ...]:
    """Return key0, key1, stream, step index, where it lies on the device, and whether it does."""
    key = signed(seed & LOW), signed(seed >> 32), signed(stream)
    return (*key, 0, step, True) if isinstance(step, torch.Tensor) else (*key, signed(step), other, False)


def random_words(seed: int, stream: int, step: Step, out: torch.Tensor) -> torch.Tensor:
    """Fill out (count,) int32 and return it."""
    if out.numel():
        grid = (triton.cdiv(out.numel(), 4 * BLOCKS),)
        drawn = _draw_arguments(seed, stream, step, out)
        _words[grid](out, out.numel(), *drawn, BLOCKS, num_warps=WARPS, **EXACT)
    return out


def _is_channels_last(x: torch.Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def quantize(
    x: torch.Tensor,
    step: torch.Tensor,
    zero_point: torch.Tensor,
    low: int,
    high: int,
    rounding: Rounding,
    draw: DeviceDraw | None,
    dtype: torch.dtype,
    offset: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what quantize.quantize does."""
    stochastic = rounding is Rounding.STOCHASTIC
    last = _is_channels_last(x)
    if not x.is_contiguous() and not (last if stochastic else is_dense(x)):
        x = x.contiguous()
        last = False
    codes = torch.empty_like(x, dtype=dtype)
    counts = torch.zeros(2, dtype=torch.int64, device=x.device)
    grids = [values.contiguous() for values in (step, zero_point, step if offset is None else offset)]
    words = _draw_arguments(draw.seed, draw.stream, draw.step, x) if draw else (0, 0, 0, 0, x, False)
    bits = draw.bits if draw else 0
    if stochastic and last:
        pixels = x.shape[2] * x.shape[3]
        fours = pixels % 4 == 0
        block = 512 if fours else 1024
        tiles = triton.cdiv(x.shape[1] * pixels, block * (4 if fours else 1))
        _channels_last[(len(x) * tiles,)](
            x, codes, counts, *grids, x.shape[1], pixels, tiles, int(step.ndim > 0), low, high, *words, fours, bits,
            offset is not None, block, num_warps=WARPS, **EXACT,
        )  # fmt: skip
        return codes, counts
    length = x.numel() // len(x) if step.ndim else x.numel()
    each = (length % 4 != 0 and length != x.numel()) or length < 256
    block = power_of_two(triton.cdiv(x.numel() if each else length, 4), 32, BLOCKS)
    tiles = triton.cdiv(length, 4 * block)
    programs = triton.cdiv(x.numel(), 4 * block) if each else tiles * (x.numel() // length)
    kind = _STOCHASTIC if stochastic else _RINT if rounding is Rounding.TIES_TO_EVEN else _GENERAL
    nearest, condition = _UP.get(rounding, (0, _NEVER))
    _flat[(programs,)](
        flat(x), flat(codes), counts, *grids, x.numel(), length, tiles, low, high, *words, each, length % 4 == 0, kind,
        bool(nearest), condition, bits, offset is not None, block, num_warps=WARPS, **EXACT,
    )  # fmt: skip
    return codes, counts
