"""What the Triton kernels of the elements share; only the GPU path, or Triton's interpreter, imports this file.

Kernels are launched with enable_fp_fusion=False: a fused multiply-add rounds once where the rules round twice.
`/` of float64 and `tl.div_rn`, `tl.sqrt_rn` of float32 are the IEEE operations; `/` of float32 is not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

EXACT = {"enable_fp_fusion": False}
"""Launch options of every kernel with floats."""

NOT_FINITE = tl.constexpr(0x7F800000)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)
#: 1.5 * 2**52: adding it rounds |v| < 2**51 to an integer, ties to even, in the low bits; and its bits.
ROUNDER = tl.constexpr(6755399441055744.0)
ROUNDER_BITS = tl.constexpr(0x4338000000000000)


@triton.jit
def power(e):
    """Return 2**e, e in -1022..1023, as float64."""
    return ((e.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def magnitude(x):
    """Return the magnitude pattern of float32 x, int32."""
    return x.to(tl.int32, bitcast=True) & MAGNITUDE


@triton.jit
def exponent(top):
    """Return e of S5.3 from the largest magnitude pattern."""
    return tl.maximum(top >> 23, 1) - 126


@triton.jit
def integer(x, scale):
    """Return rint(x * scale) as int64: scale is a float64 power of two, and |x * scale| < 2**51."""
    return (x.to(tl.float64) * scale + ROUNDER).to(tl.int64, bitcast=True) - ROUNDER_BITS


@triton.jit
def sum64(top, total, shift):
    """Return the float64 sum that the integer `total` stands for; NaN where a term was not finite."""
    return tl.where(top < NOT_FINITE, total.to(tl.float64) * power(exponent(top) - shift), float("nan"))


@triton.jit
def key_of(x):
    """Return int64 numbers >= 0 in the order of float32 x: int32 keys plus 2**31, so that 0 is below them all."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & MAGNITUDE)).to(tl.int64) + 2147483648


@triton.jit
def from_key(key):
    """Return the float32 number of a key of `key_of`, a zero as +0."""
    order = (key - 2147483648).to(tl.int32)
    return (order ^ ((order >> 31) & MAGNITUDE)).to(tl.float32, bitcast=True) + 0.0


@triton.jit
def note(flags, bad, FAULT: tl.constexpr, HAS_FLAGS: tl.constexpr):
    """Raise flags[0] to FAULT where any of the booleans `bad` is true."""
    if HAS_FLAGS:
        tl.atomic_max(flags, FAULT, mask=tl.max(bad.to(tl.int32)) > 0)


def pointer(flags: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """Return what stands for `flags` among a kernel's arguments."""
    return other if flags is None else flags


def power_of_two(count: int, least: int, most: int) -> int:
    """Return the power of two at or above count, within least..most."""
    return int(min(most, max(least, triton.next_power_of_2(max(count, 1)))))


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """Return x with dimension 0 outermost and no gaps in memory: itself where it is so, else a contiguous copy."""
    return x if is_dense(x) else x.contiguous()


def is_dense(x: torch.Tensor) -> bool:
    """Tell whether the elements of x fill their part of memory and dimension 0 is outermost."""
    axes = sorted((axis for axis in range(x.ndim) if x.shape[axis] > 1), key=x.stride, reverse=True)
    expected = x.numel()
    for axis in axes:
        expected //= x.shape[axis]
        if x.stride(axis) != expected:
            return False
    return not axes or x.shape[0] == 1 or axes[0] == 0


def flat(x: torch.Tensor) -> torch.Tensor:
    """Return dense x as the 1-D view of its memory, in memory order."""
    return x.as_strided((x.numel(),), (1,))
