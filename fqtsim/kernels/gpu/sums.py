"""Sums that no order of terms can change, on the device (S5.3). The twin of fqtsim/kernels/exact_sum.py.

Integers of 40 bits are added in int64, so the partial sums of thousands of threads may meet in any order, by atomic
addition too.
"""

from __future__ import annotations

import torch

from fqtsim.kernels.gpu.launch import Fault, is_fused, note

MAGNITUDE = 0x7FFFFFFF
NOT_FINITE = 0x7F800000


def power(exponent: torch.Tensor) -> torch.Tensor:
    """Return 2**exponent, -1022..1023, as float64."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def exponent(largest: torch.Tensor) -> torch.Tensor:
    """Return e of S5.3 from the largest magnitude pattern (int32): every |x| of the sum is below 2**e."""
    return (largest.to(torch.int64) >> 23).clamp(min=1) - 126


def value(largest: torch.Tensor, total: torch.Tensor, shift: int) -> torch.Tensor:
    """Return the float64 sum that the integer `total` stands for; NaN where a term was not finite."""
    sums = total.to(torch.float64) * power(exponent(largest) - shift)
    return torch.where(largest < NOT_FINITE, sums, torch.full_like(sums, float("nan")))


def shift_of(terms: int) -> int:
    """Return 40, or less where so many terms could pass int64."""
    return 40 - max(0, (terms - 1).bit_length() - 22)


def integers(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return rint(x * scale) as int64, scale a float64 power of two that broadcasts."""
    return torch.round(x.to(torch.float64) * scale).to(torch.int64)


def terms_of(x: torch.Tensor, axes: tuple[int, ...]) -> int:
    """Return how many terms each sum over `axes` has."""
    terms = 1
    for axis in axes:
        terms *= x.shape[axis]
    return terms


def composed_exact_sum64(x: torch.Tensor, axes: tuple[int, ...], flags: torch.Tensor | None = None) -> torch.Tensor:
    """Return what `exact_sum64` does, by torch operations."""
    if x.numel() == 0:
        kept = [size for axis, size in enumerate(x.shape) if axis not in axes]
        return torch.zeros(kept, dtype=torch.float64, device=x.device)
    if not axes:  # torch takes no axes for all of them
        x, axes = x[..., None], (x.ndim,)
    top = torch.amax(x.view(torch.int32) & MAGNITUDE, axes, keepdim=True)
    shift = shift_of(terms_of(x, axes))
    total = integers(x, power(shift - exponent(top))).sum(axes)
    top = top.reshape(total.shape)
    note(flags, top >= NOT_FINITE, Fault.NOT_FINITE)
    return value(top, total, shift)


def exact_sum64(x: torch.Tensor, axes: tuple[int, ...], flags: torch.Tensor | None = None) -> torch.Tensor:
    """Return the float64 sums of float32 x over `axes` (0..rank-1, distinct); shape: the kept axes in their order.

    A sum with a term that is not finite is NaN and noted. Fused: two reads, 8 bytes an element (the second mostly from
    the cache), whatever the strides.
    """
    if x.numel() == 0 or not axes or not is_fused(x, counts_in_int32=True):
        return composed_exact_sum64(x, axes, flags)
    from fqtsim.kernels.gpu import triton_sums

    return triton_sums.exact_sum64(x, axes, flags)


def exact_sum(x: torch.Tensor, axes: tuple[int, ...], flags: torch.Tensor | None = None) -> torch.Tensor:
    """Return exact_sum64 rounded to float32; a sum beyond float32 is noted."""
    total = exact_sum64(x, axes, flags).to(torch.float32)
    note(flags, torch.isinf(total), Fault.BEYOND_FLOAT32)
    return total
