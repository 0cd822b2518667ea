"""Triton kernels of row ranges, grids and element-wise sums; only the GPU path, or Triton's interpreter, imports it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fqtsim.kernels.gpu.launch import Fault
from fqtsim.kernels.gpu.quantize import DeviceGrid
from fqtsim.kernels.gpu.triton_common import (
    EXACT,
    NOT_FINITE,
    flat,
    from_key,
    is_dense,
    key_of,
    magnitude,
    note,
    pointer,
    power_of_two,
    rows_of,
)

_BLOCK, _PROGRAMS = 4096, 1024
_ALIGNED, _SYMMETRIC, _FLOAT_OFFSET = 0, 1, 2
ALIGNED, SYMMETRIC = tl.constexpr(_ALIGNED), tl.constexpr(_SYMMETRIC)
NOT_FINITE_FAULT, NEGATIVE_FAULT = tl.constexpr(int(Fault.NOT_FINITE)), tl.constexpr(int(Fault.NEGATIVE))


@triton.jit
def _extremes(x, keys, rows, length, splits, B: tl.constexpr):
    """Raise keys (2, rows): of the greatest, and 2**32 - 1 less that of the least."""
    row, part = tl.program_id(0) // splits, tl.program_id(0) % splits
    start = row.to(tl.int64) * length
    most, most_not = tl.zeros((B,), tl.int64), tl.zeros((B,), tl.int64)
    for tile in range(part, tl.cdiv(length, B), splits):
        at = tile * B + tl.arange(0, B)
        inside = at < length
        key = key_of(tl.load(x + start + at, mask=inside, other=0.0))
        most = tl.maximum(most, tl.where(inside, key, 0))
        most_not = tl.maximum(most_not, tl.where(inside, 4294967295 - key, 0))
    tl.atomic_max(keys + row, tl.max(most))
    tl.atomic_max(keys + rows + row, tl.max(most_not))


@triton.jit
def _ends(keys, least, greatest, flags, rows, HAS_FLAGS: tl.constexpr, B: tl.constexpr):
    at = tl.program_id(0) * B + tl.arange(0, B)
    inside = at < rows
    high = from_key(tl.load(keys + at, mask=inside, other=2147483648))
    low = from_key(4294967295 - tl.load(keys + rows + at, mask=inside, other=2147483647))
    tl.store(greatest + at, high, mask=inside)
    tl.store(least + at, low, mask=inside)
    bad = (magnitude(high) >= NOT_FINITE) | (magnitude(low) >= NOT_FINITE)
    note(flags, inside & bad, NOT_FINITE_FAULT, HAS_FLAGS)


def extremes(x: torch.Tensor, flags: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what elements.extremes does."""
    x = rows_of(x)
    rows, length = len(x), x.numel() // len(x)
    keys = torch.zeros((2, rows), dtype=torch.int64, device=x.device)
    block = power_of_two(length, 128, _BLOCK)
    splits = max(1, min(triton.cdiv(length, block), _PROGRAMS // rows))
    _extremes[(rows * splits,)](flat(x), keys, rows, length, splits, block, num_warps=8 if block > 1024 else 4, **EXACT)
    least, greatest = torch.empty((2, rows), dtype=torch.float32, device=x.device)
    _ends[(triton.cdiv(rows, 256),)](
        keys, least, greatest, pointer(flags, keys), rows, flags is not None, 256, num_warps=4, **EXACT
    )
    return least, greatest


@triton.jit
def up_to_float32(step):
    """Return a positive float64 as float32, rounded up."""
    nearest = step.to(tl.float32)
    below = nearest.to(tl.float64) < step
    return (nearest.to(tl.int32, bitcast=True) + below.to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def side(reach, codes):
    """Return the step that spans `reach` in so many codes: 0 for an empty side, infinity where codes are missing."""
    return tl.where(reach > 0, reach / codes, 0.0)


@triton.jit
def grid_of(minimum, maximum, TOP: tl.constexpr, SHIFT: tl.constexpr, SIGNED: tl.constexpr, ZERO: tl.constexpr):
    """Return step (float32), zero point (int32) and whether the row is blank (docs/quantizers.md, Q2 to Q4).

    TOP: the highest code without its shift; for SYMMETRIC the highest code.
    """
    one = tl.full(minimum.shape, 1.0, tl.float64)
    top = one * TOP
    if ZERO == ALIGNED:
        low = tl.where(minimum < 0, -minimum, 0.0).to(tl.float64)
        high = tl.where(maximum > 0, maximum, 0.0).to(tl.float64)
        blank = (low == 0) & (high == 0)
        balanced = tl.where(blank, 0.0, (low * top) / tl.where(blank, one, high + low))
        floor = balanced.to(tl.int32).to(tl.float64)  # not negative, and below 2**16
        above = floor + (floor < balanced).to(tl.float64)
        below = tl.where((high > 0) & (floor > top - 1.0), top - 1.0, floor)
        step_below = tl.maximum(side(low, below), side(high, top - below))
        step_above = tl.maximum(side(low, above), side(high, top - above))
        step = tl.where(blank, 1.0, tl.minimum(step_below, step_above))
        zero_point = tl.where(step_above < step_below, above, below).to(tl.int32) - SHIFT
        zero_point = tl.where(blank, 0, zero_point)
    elif ZERO == SYMMETRIC:
        reach = maximum
        if SIGNED:
            reach = tl.maximum(-minimum, maximum)
        reach = reach.to(tl.float64)
        blank = reach == 0
        step = tl.where(blank, 1.0, reach / top)
        zero_point = tl.zeros(minimum.shape, tl.int32)
    else:
        reach = maximum.to(tl.float64) - minimum.to(tl.float64)
        blank = minimum != minimum
        step = tl.where(reach == 0, 1.0, reach / top)
        zero_point = tl.zeros(minimum.shape, tl.int32) - SHIFT
    return up_to_float32(step), zero_point, blank


@triton.jit
def _grid(
    least, greatest, steps, zero_points, blanks, flags, rows, TOP: tl.constexpr, SHIFT: tl.constexpr,
    SIGNED: tl.constexpr, ZERO: tl.constexpr, HAS_FLAGS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * B + tl.arange(0, B)
    inside = at < rows
    minimum = tl.load(least + at, mask=inside, other=0.0)
    maximum = tl.load(greatest + at, mask=inside, other=0.0)
    step, zero_point, blank = grid_of(minimum, maximum, TOP, SHIFT, SIGNED, ZERO)
    tl.store(steps + at, step, mask=inside)
    tl.store(zero_points + at, zero_point, mask=inside)
    tl.store(blanks + at, blank.to(tl.int8), mask=inside)
    if ZERO == SYMMETRIC and not SIGNED:
        note(flags, minimum < 0, NEGATIVE_FAULT, HAS_FLAGS)


ZEROS = {"aligned": _ALIGNED, "symmetric": _SYMMETRIC, "float_offset": _FLOAT_OFFSET}


def codes_of(zero: str, bits: int, signed: bool) -> tuple[int, int, int, int]:
    """Return TOP and SHIFT of `grid_of`, and the lowest and highest code in use."""
    if zero == "symmetric":
        top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        return top, 0, -top if signed else 0, top
    shift = 2 ** (bits - 1) if signed else 0
    return 2**bits - 1, shift, -shift, 2**bits - 1 - shift


def grid(
    zero: str, minimum: torch.Tensor, maximum: torch.Tensor, bits: int, signed: bool, flags: torch.Tensor | None
) -> DeviceGrid:
    """Return what quantize.grid does."""
    rows = len(minimum)
    minimum, maximum = minimum.contiguous(), maximum.contiguous()
    top, shift, low, high = codes_of(zero, bits, signed)
    steps = torch.empty_like(minimum)
    zero_points = torch.empty_like(minimum, dtype=torch.int32)
    blanks = torch.empty_like(minimum, dtype=torch.int8)
    _grid[(triton.cdiv(rows, 256),)](
        minimum, maximum, steps, zero_points, blanks, pointer(flags, blanks), rows, top, shift, signed, ZEROS[zero],
        flags is not None, 256, num_warps=4, **EXACT,
    )  # fmt: skip
    return DeviceGrid(
        steps, zero_points, minimum if zero == "float_offset" else None, low, high, blanks.view(torch.bool)
    )


@triton.jit
def _add_relu(x, y, out, size, B: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    inside = at < size
    total = tl.load(x + at, mask=inside, other=0.0) + tl.load(y + at, mask=inside, other=0.0)
    tl.store(out + at, tl.where(total <= 0, 0.0, total), mask=inside)


@triton.jit
def _relu_add_gradient(y, first, second, out, size, TWO: tl.constexpr, B: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    inside = at < size
    total = tl.load(first + at, mask=inside, other=0.0)
    if TWO:
        total = total + tl.load(second + at, mask=inside, other=0.0)
    keep = tl.load(y + at, mask=inside, other=0.0) > 0
    tl.store(out + at, tl.where(keep, total, 0.0), mask=inside)


def add_relu(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return what elements.add_relu does."""
    if not is_dense(x):
        x, y = x.contiguous(), y.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        _add_relu[(triton.cdiv(x.numel(), 1024),)](flat(x), flat(y), flat(out), x.numel(), 1024, num_warps=4, **EXACT)
    return out


def relu_add_gradient(y: torch.Tensor, dys: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return what elements.relu_add_gradient does, for one or two gradients."""
    if not is_dense(y):
        y, dys = y.contiguous(), tuple(dy.contiguous() for dy in dys)
    out = torch.empty_like(y)
    if y.numel():
        _relu_add_gradient[(triton.cdiv(y.numel(), 1024),)](
            flat(y), flat(dys[0]), flat(dys[-1]), flat(out), y.numel(), len(dys) == 2, 1024, num_warps=4, **EXACT
        )
    return out
