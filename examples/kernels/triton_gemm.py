"""An INT8 GEMM in Triton, and the same with one of twelve bugs that people really write.

    fqtsim golden make --hardware int8_acc32_wrap --gemm dgrad --out set.safetensors
    fqtsim golden check set.safetensors --no-large --kernel triton_gemm.py:matmul

The opening bug is `float32_accumulator`: products summed in float32, exact up to 2**24. It passes
`torch.equal(out, a.int() @ b.int())` on all data with K up to 1024, and on random data with K of many thousands.
Without a GPU the kernel runs in Triton's interpreter.
"""

import os
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported, so set it before
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

TILE_M, TILE_N, TILE_K = 32, 32, 128
RUN = 1023
"""Tiles of k whose products tl.dot adds up: 128 * 128 * RUN * TILE_K < 2**31. Beyond that its int32 accumulator may
clamp: with tiles of fewer than 64 rows Triton emits mma.sync with .satfinite (docs/silicon.md)."""

BUGS = {
    "float32_accumulator": "products are summed in float32",
    "float32_result": "the sum passes through float32 on its way out",
    "int16_result": "the sum is stored in 16 bits",
    "int64_clamped": "the sum is kept in 64 bits and clamped to 32 at the end, where the hardware wraps",
    "zero_point_kept": "128 is compensated for, as for an unsigned a that was shifted, though a is signed",
    "tail_dropped": "the loop runs over K // TILE_K tiles",
    "tail_wraps": "the last tile of k has `% K` in place of a mask",
    "row_stride": "rows of b are taken to be K apart, not N",
    "rows_left_out": "the grid has M // TILE_M rows of tiles",
    "wrong_accumulator": "each tile is added to the start value, not to the accumulator",
    "start_in_each_part": "each part of a split K begins with the start value",
    "start_of_row_0": "the start value has no row stride, as if it were a bias",
}

EACH_TILE = ("float32_accumulator", "int64_clamped", "wrong_accumulator")
"""Bugs of the addition to `total`, which those kernels perform for every tile."""


@triton.jit
def gemm_kernel(
    a_ptr, b_ptr, c_ptr, out_ptr, M, N, K, b_stride,
    HAS_START: tl.constexpr, PARTS: tl.constexpr, BUG: tl.constexpr, RUN: tl.constexpr,
    TILE_M: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M)[:, None]
    cols = tl.program_id(1) * TILE_N + tl.arange(0, TILE_N)[None, :]
    part = tl.program_id(2)
    inside = (rows < M) & (cols < N)
    start = tl.zeros((TILE_M, TILE_N), tl.int32)
    if HAS_START:
        places = cols + rows * 0 if BUG == "start_of_row_0" else rows * N + cols
        start = tl.load(c_ptr + places, mask=inside, other=0)
        if BUG != "start_in_each_part":
            start *= (part == 0).to(tl.int32)
    total = start
    if BUG == "float32_accumulator":
        total = start.to(tl.float32)
    if BUG == "int64_clamped":
        total = start.to(tl.int64)
    tiles = K // TILE_K if BUG == "tail_dropped" else tl.cdiv(K, TILE_K)
    for first in range(part, tiles, PARTS * RUN):
        # tl.dot adds to `products`, which begins at 0 and cannot overflow in one run; runs, and the start value, are
        # added by integer additions, which wrap. An addition of a bare tl.dot would be merged into its accumulator.
        products = tl.zeros((TILE_M, TILE_N), tl.int32)
        for tile in range(first, min(first + PARTS * RUN, tiles), PARTS):
            k = tile * TILE_K + tl.arange(0, TILE_K)
            within = k < K
            if BUG == "tail_wraps":
                k = k % K
                within = k < K
            b_places = k[:, None] * b_stride + cols
            a = tl.load(a_ptr + rows * K + k[None, :], mask=(rows < M) & within[None, :], other=0)
            b = tl.load(b_ptr + b_places, mask=within[:, None] & (cols < N) & (b_places < K * N), other=0)
            products = tl.dot(a, b, products, out_dtype=tl.int32)
            if BUG == "zero_point_kept":
                products += 128 * tl.sum(b.to(tl.int32), axis=0)[None, :]
        total = start + products if BUG == "wrong_accumulator" else total + products.to(total.dtype)
    if BUG == "float32_result":
        total = total.to(tl.float32)
    if BUG == "int16_result":
        total = total.to(tl.int16)
    if BUG == "int64_clamped":
        total = tl.minimum(tl.maximum(total, -2147483648), 2147483647)
    if PARTS == 1:
        tl.store(out_ptr + rows * N + cols, total.to(tl.int32), mask=inside)
    else:  # int32 addition wraps in any order, so parts may arrive in any order
        tl.atomic_add(out_ptr + rows * N + cols, total.to(tl.int32), mask=inside)


def matmul(a: Any, b: Any, c: Any = None, bug: str = "", parts: int = 1) -> torch.Tensor:
    """Return c + a @ b in int32, wrapping: a (M, K) and b (K, N) int8, c (M, N) or None; parts: how K is split."""
    a, b = (torch.as_tensor(operand).to(DEVICE, torch.int8).contiguous() for operand in (a, b))
    (m, k), n = a.shape, b.shape[1]
    out = torch.zeros((m, n), dtype=torch.int32, device=DEVICE)
    start = out if c is None else torch.as_tensor(c).to(DEVICE, torch.int32).contiguous()
    parts = 2 if bug == "start_in_each_part" else parts
    row_tiles = m // TILE_M if bug == "rows_left_out" else triton.cdiv(m, TILE_M)
    if row_tiles:
        gemm_kernel[(row_tiles, triton.cdiv(n, TILE_N), parts)](
            a,
            b,
            start,
            out,
            m,
            n,
            k,
            k if bug == "row_stride" else n,
            c is not None,
            parts,
            bug,
            1 if bug in EACH_TILE else RUN,
            TILE_M,
            TILE_N,
            TILE_K,
            enable_fp_fusion=False,
        )
    return out


def opening_bug(a: Any, b: Any, c: Any = None) -> torch.Tensor:
    """The bug that random data does not find, as a kernel of its own for `fqtsim golden check`."""
    return matmul(a, b, c, bug="float32_accumulator")
