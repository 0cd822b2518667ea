"""Batch norm in Triton; only the GPU path, or Triton's interpreter, imports this file.

Channels are the outputs of the walks of triton_sums.py, so both layouts go without a copy. A working table of int64
rows, zeroed once, takes the keys of the extremes and the integer sums of every channel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fqtsim.kernels.gpu.launch import Fault
from fqtsim.kernels.gpu.norm import Saved, Statistics, float32
from fqtsim.kernels.gpu.sums import shift_of
from fqtsim.kernels.gpu.triton_common import (
    EXACT,
    NOT_FINITE,
    exponent,
    from_key,
    integer,
    key_of,
    magnitude,
    note,
    pointer,
    power,
    sum64,
)
from fqtsim.kernels.gpu.triton_sums import Plan, add_to, count_tiles, owner, places, plan, raise_to

NOT_FINITE_FAULT, BEYOND_FAULT = tl.constexpr(int(Fault.NOT_FINITE)), tl.constexpr(int(Fault.BEYOND_FLOAT32))
_LAUNCH = {"num_warps": 4, **EXACT}


@triton.jit
def ends(work, m, channels):
    """Return the least and greatest value of channels m."""
    return from_key(4294967295 - tl.load(work + channels + m)), from_key(tl.load(work + m))


@triton.jit
def mean_of(work, m, channels, count, shift):
    """Return of channels m the largest pattern of x, its float32 sum, and the mean."""
    least, greatest = ends(work, m, channels)
    top = tl.maximum(magnitude(least), magnitude(greatest))
    total = sum64(top, tl.load(work + 2 * channels + m), shift).to(tl.float32)
    return top, total, tl.div_rn(total, count)


@triton.jit
def top_of_squares(work, m, channels, mean):
    """Return the largest pattern of (x - mean)**2: at an extreme of x, since both roundings keep order."""
    least, greatest = ends(work, m, channels)
    below, above = least - mean, greatest - mean
    return tl.maximum(magnitude(below * below), magnitude(above * above))


@triton.jit
def _extremes(
    x, work, terms, channels, inner, across, splits, ROWS: tl.constexpr, RA: tl.constexpr, RC: tl.constexpr
):  # fmt: skip
    p, first, part, m = owner(channels, inner, across, splits, ROWS, RC)
    most, most_not = tl.zeros((RA, RC), tl.int64), tl.zeros((RA, RC), tl.int64)
    for tile in range(part, count_tiles(terms, across, ROWS, RA), splits):
        at, inside = places(tile, p, first, terms, channels, inner, across, ROWS, RA, RC)
        key = key_of(tl.load(x + at, mask=inside, other=0.0))
        most = tl.maximum(most, tl.where(inside, key, 0))
        most_not = tl.maximum(most_not, tl.where(inside, 4294967295 - key, 0))
    real = first * RC + tl.arange(0, RC) < channels * inner
    raise_to(work, m, real, most, ROWS)
    raise_to(work + channels, m, real, most_not, ROWS)


@triton.jit
def _add(
    x, work, shift, count, terms, channels, inner, across, splits,
    ROWS: tl.constexpr, RA: tl.constexpr, RC: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """Add x to row 2 of the table, or, once that is done, (x - mean)**2 to row 3."""
    p, first, part, m = owner(channels, inner, across, splits, ROWS, RC)
    top, _, mean = mean_of(work, m, channels, count, shift)
    if SQUARES:
        top = top_of_squares(work, m, channels, mean)
    scale = power(shift - exponent(top))[None, :]
    total = tl.zeros((RA, RC), tl.int64)
    for tile in range(part, count_tiles(terms, across, ROWS, RA), splits):
        at, inside = places(tile, p, first, terms, channels, inner, across, ROWS, RA, RC)
        values = tl.load(x + at, mask=inside, other=0.0)
        if SQUARES:
            values = tl.where(inside, values - mean[None, :], 0.0)
            values = values * values
        total += integer(values, scale)
    real = first * RC + tl.arange(0, RC) < channels * inner
    add_to(work + (2 + SQUARES) * channels, m, real, total, ROWS)


@triton.jit
def _statistics(
    work, means, variances, unbiased, inverses, flags, channels, shift, count, less, eps, HAS_FLAGS: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * B + tl.arange(0, B)
    inside = at < channels
    m = tl.minimum(at, channels - 1)
    top, total, mean = mean_of(work, m, channels, count, shift)
    top_squares = top_of_squares(work, m, channels, mean)
    squares = sum64(top_squares, tl.load(work + 3 * channels + m), shift).to(tl.float32)
    variance = tl.div_rn(squares, count)
    tl.store(means + at, mean, mask=inside)
    tl.store(variances + at, variance, mask=inside)
    tl.store(unbiased + at, tl.div_rn(squares, less), mask=inside)
    one = squares * 0.0 + 1.0
    one = tl.where(one == one, one, 1.0)
    tl.store(inverses + at, tl.div_rn(one, tl.sqrt_rn(variance + eps)), mask=inside)
    note(flags, (top >= NOT_FINITE) | (top_squares >= NOT_FINITE), NOT_FINITE_FAULT, HAS_FLAGS)
    note(flags, (tl.abs(total) == float("inf")) | (tl.abs(squares) == float("inf")), BEYOND_FAULT, HAS_FLAGS)


def _walk(x: torch.Tensor) -> tuple[torch.Tensor, Plan]:
    """Return x, contiguous or channels last, and the walk over its channels."""
    channels, inner = x.shape[1], x.numel() // (x.shape[0] * x.shape[1])
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return x, plan(1, x.shape[0] * inner, channels, 1)
    return x.contiguous(), plan(1, x.shape[0], channels, inner)


def statistics(x: torch.Tensor, eps: float, flags: torch.Tensor | None) -> Statistics:
    """Return what norm.statistics does."""
    x, walk = _walk(x)
    channels = x.shape[1]
    terms = x.numel() // channels
    shift = shift_of(terms)
    work = torch.zeros((4, channels), dtype=torch.int64, device=x.device)
    sizes = (*walk.arguments, *walk.constants)
    _extremes[(walk.programs,)](x, work, *sizes, **_LAUNCH)
    _add[(walk.programs,)](x, work, shift, float32(terms), *sizes, False, **_LAUNCH)
    _add[(walk.programs,)](x, work, shift, float32(terms), *sizes, True, **_LAUNCH)
    out = torch.empty((4, channels), dtype=torch.float32, device=x.device)
    _statistics[(triton.cdiv(channels, 128),)](
        work, *out, pointer(flags, work), channels, shift, float32(terms), float32(terms - 1), float32(eps),
        flags is not None, 128, **_LAUNCH,
    )  # fmt: skip
    return Statistics(*out)


@triton.jit
def affine(xhat, gamma, beta, m, HAS_AFFINE: tl.constexpr):
    """Return xhat * gamma + beta, two roundings."""
    if HAS_AFFINE:
        xhat = xhat * tl.load(gamma + m)[None, :] + tl.load(beta + m)[None, :]
    return xhat


@triton.jit
def _normalize(
    x, y, means, inverses, gamma, beta, terms, channels, inner, across, splits,
    ROWS: tl.constexpr, RA: tl.constexpr, RC: tl.constexpr, HAS_AFFINE: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    p, first, part, m = owner(channels, inner, across, splits, ROWS, RC)
    mean, inverse = tl.load(means + m)[None, :], tl.load(inverses + m)[None, :]
    for tile in range(part, count_tiles(terms, across, ROWS, RA), splits):
        at, inside = places(tile, p, first, terms, channels, inner, across, ROWS, RA, RC)
        out = affine((tl.load(x + at, mask=inside, other=0.0) - mean) * inverse, gamma, beta, m, HAS_AFFINE)
        if RELU:
            out = tl.where(out <= 0, 0.0, out)
        tl.store(y + at, out, mask=inside)


def normalize(
    x: torch.Tensor,
    mean: torch.Tensor,
    inv: torch.Tensor,
    affine: tuple[torch.Tensor, torch.Tensor] | None,
    with_relu: bool,
) -> torch.Tensor:
    """Return what norm.normalize does."""
    x, walk = _walk(x)
    y = torch.empty_like(x)
    gamma, beta = affine or (mean, mean)
    parameters = [values.contiguous() for values in (mean, inv, gamma, beta)]
    _normalize[(walk.programs,)](
        x, y, *parameters, *walk.arguments, *walk.constants, affine is not None, with_relu, **_LAUNCH
    )
    return y


@triton.jit
def gradient_terms(
    x, dy, at, inside, mean, inverse, gamma, beta, m, HAS_AFFINE: tl.constexpr, RELU: tl.constexpr
):  # fmt: skip
    """Return xhat and dy of a tile, dy 0 where a ReLU passed nothing on."""
    xhat = tl.where(inside, (tl.load(x + at, mask=inside, other=0.0) - mean) * inverse, 0.0)
    d = tl.load(dy + at, mask=inside, other=0.0)
    if RELU:
        d = tl.where(affine(xhat, gamma, beta, m, HAS_AFFINE) > 0, d, 0.0)
    return xhat, d


@triton.jit
def _gradient_sums(
    x, dy, means, inverses, gamma, beta, work, shift, terms, channels, inner, across, splits,
    ROWS: tl.constexpr, RA: tl.constexpr, RC: tl.constexpr, HAS_AFFINE: tl.constexpr, RELU: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """Raise rows 0 and 1 of the table to the largest patterns of dy and dy * xhat, or ADD them to rows 2 and 3."""
    p, first, part, m = owner(channels, inner, across, splits, ROWS, RC)
    mean, inverse = tl.load(means + m)[None, :], tl.load(inverses + m)[None, :]
    if ADD:
        scale = power(shift - exponent(tl.load(work + m).to(tl.int32)))[None, :]
        scale_along = power(shift - exponent(tl.load(work + channels + m).to(tl.int32)))[None, :]
    total, along = tl.zeros((RA, RC), tl.int64), tl.zeros((RA, RC), tl.int64)
    for tile in range(part, count_tiles(terms, across, ROWS, RA), splits):
        at, inside = places(tile, p, first, terms, channels, inner, across, ROWS, RA, RC)
        xhat, d = gradient_terms(x, dy, at, inside, mean, inverse, gamma, beta, m, HAS_AFFINE, RELU)
        if ADD:
            total += integer(d, scale)
            along += integer(d * xhat, scale_along)
        else:
            total = tl.maximum(total, magnitude(d).to(tl.int64))
            along = tl.maximum(along, magnitude(d * xhat).to(tl.int64))
    real = first * RC + tl.arange(0, RC) < channels * inner
    if ADD:
        add_to(work + 2 * channels, m, real, total, ROWS)
        add_to(work + 3 * channels, m, real, along, ROWS)
    else:
        raise_to(work, m, real, total, ROWS)
        raise_to(work + channels, m, real, along, ROWS)


@triton.jit
def gradient_sum(work, m, channels, shift, ALONG: tl.constexpr):
    """Return the largest pattern and the float32 sum of dy, or of dy * xhat, of channels m."""
    top = tl.load(work + ALONG * channels + m).to(tl.int32)
    return top, sum64(top, tl.load(work + (2 + ALONG) * channels + m), shift).to(tl.float32)


@triton.jit
def _dx(
    x, dy, means, inverses, gamma, beta, work, dx, dgamma, dbeta, flags, shift, count,
    terms, channels, inner, across, splits,
    ROWS: tl.constexpr, RA: tl.constexpr, RC: tl.constexpr, HAS_AFFINE: tl.constexpr, RELU: tl.constexpr,
    FROM_BATCH: tl.constexpr, HAS_FLAGS: tl.constexpr,
):  # fmt: skip
    p, first, part, m = owner(channels, inner, across, splits, ROWS, RC)
    top_b, sum_b = gradient_sum(work, m, channels, shift, 0)
    top_g, sum_g = gradient_sum(work, m, channels, shift, 1)
    if part == 0:  # the programs of one channel write the same numbers
        tl.store(dbeta + m, sum_b)
        tl.store(dgamma + m, sum_g)
        note(flags, (top_b >= NOT_FINITE) | (top_g >= NOT_FINITE), NOT_FINITE_FAULT, HAS_FLAGS)
        note(flags, (tl.abs(sum_b) == float("inf")) | (tl.abs(sum_g) == float("inf")), BEYOND_FAULT, HAS_FLAGS)
    inverse = tl.load(inverses + m)
    scale = inverse
    if HAS_AFFINE:
        scale = tl.load(gamma + m) * inverse
    mean_b, mean_g = tl.div_rn(sum_b, count)[None, :], tl.div_rn(sum_g, count)[None, :]
    mean = tl.load(means + m)[None, :]
    for tile in range(part, count_tiles(terms, across, ROWS, RA), splits):
        at, inside = places(tile, p, first, terms, channels, inner, across, ROWS, RA, RC)
        xhat, d = gradient_terms(x, dy, at, inside, mean, inverse[None, :], gamma, beta, m, HAS_AFFINE, RELU)
        if FROM_BATCH:
            d = (d - mean_b) - xhat * mean_g
        tl.store(dx + at, scale[None, :] * d, mask=inside)


def gradients(
    dy: torch.Tensor, saved: Saved, flags: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what norm.gradients does."""
    x, walk = _walk(saved.x)
    if dy.stride() != x.stride():
        dy = torch.empty_like(x).copy_(dy)
    channels = x.shape[1]
    terms = x.numel() // channels
    shift = shift_of(terms)
    work = torch.zeros((4, channels), dtype=torch.int64, device=x.device)
    dx, (dgamma, dbeta) = torch.empty_like(x), torch.empty((2, channels), dtype=torch.float32, device=x.device)
    gamma, beta = saved.affine or (saved.mean, saved.mean)
    inputs = x, dy, *(values.contiguous() for values in (saved.mean, saved.inv, gamma, beta)), work
    sizes = (*walk.arguments, *walk.constants, saved.affine is not None, saved.with_relu)
    for add in (False, True):
        _gradient_sums[(walk.programs,)](*inputs, shift, *sizes, add, **_LAUNCH)
    _dx[(walk.programs,)](
        *inputs, dx, dgamma, dbeta, pointer(flags, work), shift, float32(terms), *sizes, saved.from_batch,
        flags is not None, **_LAUNCH,
    )  # fmt: skip
    return dx, dgamma, dbeta
