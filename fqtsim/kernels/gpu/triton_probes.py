"""Triton kernels that ask what an instruction does where ours never go; only the GPU path imports this file."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def overflow_kernel(a, b, start, out, SIZE: tl.constexpr):
    """Write start + a b^T (SIZE, SIZE), the start values inside the tensor cores' accumulator."""
    rows, k = tl.arange(0, SIZE), tl.arange(0, 32)
    x = tl.load(a + rows[:, None] * 32 + k[None, :])
    y = tl.load(b + rows[:, None] * 32 + k[None, :])
    at = rows[:, None] * SIZE + rows[None, :]
    acc = tl.load(start + at)
    tl.store(out + at, tl.dot(x, tl.trans(y), acc, out_dtype=tl.int32))
