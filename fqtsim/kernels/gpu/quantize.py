"""Grids of rows, and float32 values to codes with the random words drawn on the way, on the device (S5.5 to S5.7).

Twins of fqtsim/kernels/grid.py and fqtsim/kernels/quantize.py. A tensor x (N, ...) may lie in memory as it likes
(channels last, say): the word of an element is that of its place in row-major order of the logical tensor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fqtsim.kernels.gpu.launch import Fault, is_fused, note
from fqtsim.kernels.gpu.random import Step, words64
from fqtsim.kernels.quantize import _EVEN, _NEGATIVE, _NEVER, _NOT_NEGATIVE, _ODD, _SAFE, _UP
from fqtsim.words import Rounding


class DeviceDraw(NamedTuple):
    """Where the random words of one tensor come from; `step` may be a device tensor, which a captured graph reads."""

    seed: int
    stream: int
    step: Step
    #: 1..32.
    bits: int


class DeviceGrid(NamedTuple):
    """One grid per row: value = step * (code - zero_point), plus offset where there is one."""

    #: float32 (N,), positive.
    step: torch.Tensor
    #: int32 (N,), a code.
    zero_point: torch.Tensor
    #: float32 (N,) for float_offset, else None.
    offset: torch.Tensor | None
    #: Lowest and highest code in use.
    low: int
    high: int
    #: bool (N,): rows without any value but 0, whose codes and zero point are 0 in every format.
    blank: torch.Tensor


def _up_to_float32(step: torch.Tensor) -> torch.Tensor:
    nearest = step.to(torch.float32)
    below = nearest.to(torch.float64) < step
    return (nearest.view(torch.int32) + below.to(torch.int32)).view(torch.float32)  # steps are positive


def _side(reach: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return torch.where(reach > 0, reach / codes, torch.zeros_like(reach))


def aligned(minimum: torch.Tensor, maximum: torch.Tensor, bits: int, signed: bool) -> DeviceGrid:
    """Return the grids on which real zero is a code and every value from minimum to maximum has one."""
    low, high = -minimum.clamp(max=0.0).to(torch.float64), maximum.clamp(min=0.0).to(torch.float64)
    top = float(2**bits - 1)
    blank = (low == 0) & (high == 0)
    balanced = torch.where(blank, torch.zeros_like(low), (low * top) / (high + low))
    floor, above = torch.floor(balanced), torch.ceil(balanced)
    below = torch.where(high > 0, floor.clamp(max=top - 1), floor)
    step_below = torch.maximum(_side(low, below), _side(high, top - below))
    step_above = torch.maximum(_side(low, above), _side(high, top - above))
    step = torch.where(blank, torch.ones_like(low), torch.minimum(step_below, step_above))
    zero_point = torch.where(step_above < step_below, above, below).to(torch.int32)
    shift = 2 ** (bits - 1) if signed else 0
    zero_point = torch.where(blank, torch.zeros_like(zero_point), zero_point - shift)
    return DeviceGrid(_up_to_float32(step), zero_point, None, -shift, 2**bits - 1 - shift, blank)


def symmetric(minimum: torch.Tensor, maximum: torch.Tensor, bits: int, signed: bool) -> DeviceGrid:
    """Return the grids with zero point 0; an unsigned one is for rows without negative values."""
    reach = torch.maximum(-minimum if signed else maximum, maximum).to(torch.float64)
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    blank = reach == 0
    step = torch.where(blank, torch.ones_like(reach), reach / torch.full_like(reach, float(top)))
    zero_point = torch.zeros(step.shape, dtype=torch.int32, device=step.device)
    return DeviceGrid(_up_to_float32(step), zero_point, None, -top if signed else 0, top, blank)


def float_offset(minimum: torch.Tensor, maximum: torch.Tensor, bits: int, signed: bool) -> DeviceGrid:
    """Return the paper's grids: the first code stands for the minimum, the last for the maximum."""
    reach = maximum.to(torch.float64) - minimum.to(torch.float64)
    step = torch.where(reach == 0, torch.ones_like(reach), reach / torch.full_like(reach, float(2**bits - 1)))
    shift = 2 ** (bits - 1) if signed else 0
    zero_point = torch.full(step.shape, -shift, dtype=torch.int32, device=step.device)
    blank = torch.zeros(step.shape, dtype=torch.bool, device=step.device)
    return DeviceGrid(_up_to_float32(step), zero_point, minimum, -shift, 2**bits - 1 - shift, blank)


GRIDS = {"aligned": aligned, "symmetric": symmetric, "float_offset": float_offset}


def composed_grid(
    zero: str,
    minimum: torch.Tensor,
    maximum: torch.Tensor,
    bits: int,
    signed: bool,
    flags: torch.Tensor | None = None,
) -> DeviceGrid:
    """Return what `grid` does, by torch operations."""
    if zero == "symmetric" and not signed:
        note(flags, minimum < 0, Fault.NEGATIVE)
    return GRIDS[zero](minimum, maximum, bits, signed)


def grid(
    zero: str,
    minimum: torch.Tensor,
    maximum: torch.Tensor,
    bits: int,
    signed: bool,
    flags: torch.Tensor | None = None,
) -> DeviceGrid:
    """Return the grids of rows with these extremes, float32 (N,); zero is `aligned`, `symmetric` or `float_offset`.

    A negative minimum under an unsigned symmetric grid is noted. Fused: one kernel.
    """
    if not is_fused(minimum):
        return composed_grid(zero, minimum, maximum, bits, signed, flags)
    from fqtsim.kernels.gpu import triton_elements

    return triton_elements.grid(zero, minimum, maximum, bits, signed, flags)


def quotients(x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """Return the float32 number of steps of each element, before rounding."""
    shape = (-1, *(1,) * (x.ndim - 1)) if step.ndim else ()
    if offset is None:
        return x / step.reshape(shape)
    difference = x.to(torch.float64) - offset.reshape(shape).to(torch.float64)
    return (difference / step.reshape(shape).to(torch.float64)).to(torch.float32)


def _met(condition: int, f: torch.Tensor) -> torch.Tensor:
    if condition == _ODD:
        return (f & 1) == 1
    if condition == _EVEN:
        return (f & 1) == 0
    if condition == _NOT_NEGATIVE:
        return f >= 0
    if condition == _NEGATIVE:
        return f < 0
    return torch.full_like(f, condition != _NEVER, dtype=torch.bool)


def rounded(y: torch.Tensor, rounding: Rounding, words: torch.Tensor | None, bits: int) -> torch.Tensor:
    """Return float32 y as int32 by the rounding word; words (int64, y's shape) are for `stochastic`, of `bits` bits."""
    held = y.clamp(-_SAFE, _SAFE).to(torch.float64)
    if words is not None:
        up = 2.0**bits
        r = (words >> (32 - bits)).to(torch.float64)
        return torch.floor((torch.floor(held * up) + (up - 1.0 - r)) * 2.0**-bits).to(torch.int32)
    nearest, condition = _UP[rounding]
    floor = torch.floor(held)
    fraction, f = held - floor, floor.to(torch.int32)
    met = _met(condition, f)
    raised = (fraction > 0.5) | ((fraction == 0.5) & met) if nearest else (fraction > 0.0) & met
    return f + raised.to(torch.int32)


def ties(y: torch.Tensor) -> torch.Tensor:
    """Return which float32 y lie exactly halfway between two integers."""
    twice = y + y
    return (twice == torch.round(twice)) & (y != torch.round(y))


def like(x: torch.Tensor, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return values of x's shape in the memory layout of x."""
    return torch.empty_like(x, dtype=dtype).copy_(values)


def composed_quantize(
    x: torch.Tensor,
    step: torch.Tensor,
    zero_point: torch.Tensor,
    low: int,
    high: int,
    rounding: Rounding,
    draw: DeviceDraw | None,
    dtype: torch.dtype,
    offset: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `quantize` does, by torch operations."""
    shape = (-1, *(1,) * (x.ndim - 1)) if step.ndim else ()
    y = quotients(x, step, offset)
    stochastic = rounding is Rounding.STOCHASTIC and draw is not None
    words = None
    if stochastic and draw is not None:
        words = words64(draw.seed, draw.stream, draw.step, x.numel(), x.device).reshape(x.shape)
    code = rounded(y, rounding, words, 0 if draw is None else draw.bits) + zero_point.reshape(shape)
    held = code.clamp(low, high)
    clamps = (code != held).sum()
    met = ties(y).sum() if not stochastic and _UP[rounding][0] else torch.zeros_like(clamps)
    return like(x, held, dtype), torch.stack((clamps, met))


def quantize(
    x: torch.Tensor,
    step: torch.Tensor,
    zero_point: torch.Tensor,
    low: int,
    high: int,
    rounding: Rounding,
    draw: DeviceDraw | None,
    dtype: torch.dtype,
    offset: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes of float32 x (N, ...), laid out as x, and int64 (2,): how many were clamped, how many met a tie.

    step, zero_point, offset: shape () for one grid, (N,) for one per index of dimension 0. draw is for `stochastic`.
    dtype: any integer type that holds low..high. x must be finite (`extremes` notes what is not).
    Fused: 4 bytes read and the code written, 5 bytes an element for 8-bit codes.
    """
    if x.numel() == 0 or not is_fused(x):
        return composed_quantize(x, step, zero_point, low, high, rounding, draw, dtype, offset)
    from fqtsim.kernels.gpu import triton_quantize

    return triton_quantize.quantize(x, step, zero_point, low, high, rounding, draw, dtype, offset)
