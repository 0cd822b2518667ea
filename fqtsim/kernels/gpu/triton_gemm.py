"""Triton kernels of the INT8 matrix product; only the GPU path, or Triton's interpreter, imports this file.

Both operands come packed: signed bytes, (rows, K) with k contiguous, as Hopper's INT8 instructions read them. What is
exact here, and why, is said in gemm.py and epilogue.py.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


def descriptor(codes: torch.Tensor, shape: tuple[int, int], pitch: int, block: tuple[int, int]) -> Any:
    """Return what the tensor memory accelerator loads blocks of codes (rows, `pitch` bytes apart) by."""
    return TensorDescriptor(codes, list(shape), [pitch, 1], list(block))


@triton.jit
def tile_of(pid, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Return the tile (row, column) of a program; programs that run together share rows and columns in the L2."""
    width = GROUP * tiles_n
    first = pid // width * GROUP
    rows = tl.minimum(tiles_m - first, GROUP)
    return first + pid % width % rows, pid % width // rows


@triton.jit
def load_tile(source, first, k, rows, stride, K, R: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr):
    """Return codes (R, BK) from row `first` and column k on; 0 beyond K. Rows beyond the last one repeat it."""
    if TMA:
        tile = source.load([first, k])
    else:
        r = tl.minimum(first + tl.arange(0, R), rows - 1).to(tl.int64)
        along = k + tl.arange(0, BK)
        tile = tl.load(source + r[:, None] * stride + along[None, :], mask=(along < K)[None, :], other=0)
    return tile


@triton.jit
def product(
    a, b, m, n, M, N, K, a_stride, b_stride, first, last,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Return the sums over first <= k < last of a[m, k] b[n, k], modulo 2**32, int32 (BM, BN)."""
    total = tl.zeros((BM, BN), tl.int32)
    for k in range(first, last, BK):
        x = load_tile(a, m, k, M, a_stride, K, BM, BK, TMA)
        y = load_tile(b, n, k, N, b_stride, K, BN, BK, TMA)
        total = tl.dot(x, tl.trans(y), total, out_dtype=tl.int32)
    return total


@triton.jit
def given_codes(acc, row_sum, column_sum, K, CA: tl.constexpr, CB: tl.constexpr):
    """Return the sums of the codes as given, modulo 2**32; those in `acc` are CA and CB less."""
    if CB != 0:
        acc += (CB * row_sum).to(tl.int32)[:, None]
    if CA != 0:
        acc += (CA * (column_sum - CB * K)).to(tl.int32)[None, :]
    return acc


@triton.jit
def corrected(acc, row_zero, row_sum, column_zero, column_sum, K, WIDE: tl.constexpr):
    """Return acc - za sum(b) - zb sum(a) + K za zb: int64, or int32 where the result fits it."""
    rest = row_sum - tl.cast(K, tl.int64) * row_zero
    if WIDE:
        value = acc.to(tl.int64)
        value -= row_zero[:, None] * column_sum[None, :] + rest[:, None] * column_zero[None, :]
    else:
        za, zb = row_zero.to(tl.int32), column_zero.to(tl.int32)
        value = acc - za[:, None] * column_sum.to(tl.int32)[None, :] - rest.to(tl.int32)[:, None] * zb[None, :]
    return value


@triton.jit
def as_float64(value, WIDE: tl.constexpr):
    """Return integers as float64, int64 ones rounded once."""
    if WIDE:
        real = value.to(tl.float64)
    else:  # 2**52 + 2**31 + value has these very bits; one exact subtraction beats the slow conversion
        low = (value ^ -2147483648).to(tl.uint32, bitcast=True).to(tl.int64)
        real = (low | 0x4330000000000000).to(tl.float64, bitcast=True) - 4503601774854144.0
    return real


@triton.jit
def note(record, acc, inside, low, high):
    """Merge a tile into record (3,): the smallest and the largest sum, and how many are a rail."""
    wide = acc.to(tl.int64)
    tl.atomic_min(record, tl.min(tl.min(tl.where(inside, wide, 0x7FFFFFFFFFFFFFFF), 1), 0))
    tl.atomic_max(record + 1, tl.max(tl.max(tl.where(inside, wide, -0x7FFFFFFFFFFFFFFF), 1), 0))
    rails = (inside & ((wide == low) | (wide == high))).to(tl.int64)
    tl.atomic_add(record + 2, tl.sum(tl.sum(rails, 1), 0))


@triton.jit
def add_sums(watch, acc, m, n, M, N):
    """Add what the columns of a tile sum to with the words of its rows, modulo 2**32, to int32 sums (2, N).

    watch[3:]: (words (2, R) and (2, S), S, sums); row i * S + j has the product of words i and j.
    """
    mi = tl.minimum(m, M - 1)
    i, j = mi // watch[5], mi % watch[5]
    for r in tl.static_range(2):
        word = tl.load(watch[3] + r * (M // watch[5]) + i) * tl.load(watch[4] + r * watch[5] + j)
        word = tl.where(m < M, word, 0)
        tl.atomic_add(watch[6] + r * N + n, tl.sum(word[:, None] * acc, 0), mask=n < N)


@triton.jit
def finish(
    acc, m, n, M, N, K, rows, columns, target, watch,
    CA: tl.constexpr, CB: tl.constexpr, BITS: tl.constexpr, UNSIGNED: tl.constexpr, DROPPED: tl.constexpr,
    WIDE: tl.constexpr, RECORD: tl.constexpr,
):  # fmt: skip
    """Write float32(float64(value) * (row step * column step)) of a tile, value as in epilogue.py.

    rows and columns: (zero points, sums, steps, how many share a zero point and a step); target: (out, strides of row,
    inner and column, size of inner); watch: (record, low and high rail, and what `add_sums` takes); RECORD: 0 nothing
    is noted, 1 extremes, 2 sums too.
    """
    mi, ni = tl.minimum(m, M - 1), tl.minimum(n, N - 1)
    inside = (m < M)[:, None] & (n < N)[None, :]
    za, sa = tl.load(rows[0] + mi // rows[3]), tl.load(rows[1] + mi)
    zb, sb = tl.load(columns[0] + ni // columns[3]), tl.load(columns[1] + ni)
    acc = given_codes(acc, sa, sb, K, CA, CB)
    if RECORD:
        note(watch[0], acc, inside, watch[1], watch[2])
    if BITS < 32:
        acc = acc & ((1 << BITS) - 1) if UNSIGNED else (acc << (32 - BITS)) >> (32 - BITS)
    if RECORD == 2:
        add_sums(watch, acc, m, n, M, N)
    if BITS == 32 and UNSIGNED:
        acc = acc.to(tl.int64) & 0xFFFFFFFF
    if DROPPED > 0:
        acc = acc.to(tl.int64) << DROPPED
    real = as_float64(corrected(acc, za, sa, zb, sb, K, WIDE), WIDE)
    step = tl.load(rows[2] + mi // rows[3]).to(tl.float64)[:, None]
    step = step * tl.load(columns[2] + ni // columns[3]).to(tl.float64)[None, :]
    at = (mi // target[4]).to(tl.int64) * target[1] + (mi % target[4]).to(tl.int64) * target[2]
    at = at[:, None] + ni.to(tl.int64)[None, :] * target[3]
    tl.store(target[0] + at, (real * step).to(tl.float32), mask=inside)


@triton.jit
def halves(acc, BM: tl.constexpr, BN: tl.constexpr):
    """Return the left and the right half of a tile; registers change their names, not their places."""
    return tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))


@triton.jit
def finish_in_2(
    acc, m, n, M, N, K, rows, columns, target, watch, CA: tl.constexpr, CB: tl.constexpr, BITS: tl.constexpr,
    UNSIGNED: tl.constexpr, WIDE: tl.constexpr, RECORD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Finish a tile whose first column is n in two halves: float64 numbers of a whole tile fill the registers."""
    left, right = halves(acc, BM, BN)
    half = tl.arange(0, BN // 2)
    finish(left, m, n + half, M, N, K, rows, columns, target, watch, CA, CB, BITS, UNSIGNED, 0, WIDE, RECORD)
    n += BN // 2
    finish(right, m, n + half, M, N, K, rows, columns, target, watch, CA, CB, BITS, UNSIGNED, 0, WIDE, RECORD)


@triton.jit
def finish_in_4(
    acc, m, n, M, N, K, rows, columns, target, watch, CA: tl.constexpr, CB: tl.constexpr, BITS: tl.constexpr,
    UNSIGNED: tl.constexpr, WIDE: tl.constexpr, RECORD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Finish a tile whose first column is n in four parts."""
    left, right = halves(acc, BM, BN)
    finish_in_2(left, m, n, M, N, K, rows, columns, target, watch, CA, CB, BITS, UNSIGNED, WIDE, RECORD, BM, BN // 2)
    finish_in_2(
        right, m, n + BN // 2, M, N, K, rows, columns, target, watch,
        CA, CB, BITS, UNSIGNED, WIDE, RECORD, BM, BN // 2,
    )  # fmt: skip


@triton.jit
def finish_tile(
    acc, m, n, M, N, K, rows, columns, target, watch, CA: tl.constexpr, CB: tl.constexpr, BITS: tl.constexpr,
    UNSIGNED: tl.constexpr, WIDE: tl.constexpr, RECORD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Finish a tile whose first column is n, in as many parts as its width asks for."""
    if BN >= 256:
        left, right = halves(acc, BM, BN)
        finish_in_4(
            left, m, n, M, N, K, rows, columns, target, watch, CA, CB, BITS, UNSIGNED, WIDE, RECORD, BM, BN // 2
        )
        finish_in_4(
            right, m, n + BN // 2, M, N, K, rows, columns, target, watch,
            CA, CB, BITS, UNSIGNED, WIDE, RECORD, BM, BN // 2,
        )  # fmt: skip
    elif BN >= 128:
        finish_in_4(acc, m, n, M, N, K, rows, columns, target, watch, CA, CB, BITS, UNSIGNED, WIDE, RECORD, BM, BN)
    elif BN >= 64:
        finish_in_2(acc, m, n, M, N, K, rows, columns, target, watch, CA, CB, BITS, UNSIGNED, WIDE, RECORD, BM, BN)
    else:
        n = n + tl.arange(0, BN)
        finish(acc, m, n, M, N, K, rows, columns, target, watch, CA, CB, BITS, UNSIGNED, 0, WIDE, RECORD)


@triton.jit
def gemm_kernel(
    a, b, start, out, row_sum, column_sum, M, N, K, a_stride, b_stride,
    CA: tl.constexpr, CB: tl.constexpr, START: tl.constexpr, PARTS: tl.constexpr, TMA: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write start + a b^T modulo 2**32 to out (M, N); with several parts, add them to an out of zeros."""
    row, column = tile_of(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    part = tl.program_id(1)
    length = tl.cdiv(tl.cdiv(K, BK), PARTS) * BK
    first = part * length
    acc = product(
        a, b, row * BM, column * BN, M, N, K, a_stride, b_stride, first, tl.minimum(first + length, K), BM, BN, BK, TMA
    )
    m, n = row * BM + tl.arange(0, BM), column * BN + tl.arange(0, BN)
    inside = (m < M)[:, None] & (n < N)[None, :]
    at = tl.minimum(m, M - 1).to(tl.int64)[:, None] * N + tl.minimum(n, N - 1)[None, :]
    if part == 0:  # what a part adds but once
        sa, sb = tl.load(row_sum + tl.minimum(m, M - 1)), tl.load(column_sum + tl.minimum(n, N - 1))
        acc = given_codes(acc, sa, sb, tl.cast(K, tl.int64), CA, CB)
        if START:
            acc += tl.load(start + at, mask=inside, other=0)
    if PARTS == 1:
        tl.store(out + at, acc, mask=inside)
    else:
        tl.atomic_add(out + at, acc, mask=inside)


@triton.jit
def scaled_kernel(
    a, b, M, N, K, a_stride, b_stride, out, row_stride, inner_stride, column_stride, inner,
    row_zero, row_sum, row_step, row_per, column_zero, column_sum, column_step, column_per,
    record, low, high, outer_words, inner_words, words_run, sums,
    CA: tl.constexpr, CB: tl.constexpr, BITS: tl.constexpr, UNSIGNED: tl.constexpr, WIDE: tl.constexpr,
    RECORD: tl.constexpr, TMA: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write the scaled product of one tile; no sum leaves the registers."""
    row, column = tile_of(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    acc = product(a, b, row * BM, column * BN, M, N, K, a_stride, b_stride, 0, K, BM, BN, BK, TMA)
    finish_tile(
        acc, row * BM + tl.arange(0, BM), column * BN, M, N, tl.cast(K, tl.int64),
        (row_zero, row_sum, row_step, row_per), (column_zero, column_sum, column_step, column_per),
        (out, row_stride, inner_stride, column_stride, inner),
        (record, low, high, outer_words, inner_words, words_run, sums),
        CA, CB, BITS, UNSIGNED, WIDE, RECORD, BM, BN,
    )  # fmt: skip


@triton.jit
def finish_kernel(
    acc, M, N, K, m_stride, n_stride, out, row_stride, inner_stride, column_stride, inner,
    row_zero, row_sum, row_step, row_per, column_zero, column_sum, column_step, column_per,
    BITS: tl.constexpr, UNSIGNED: tl.constexpr, DROPPED: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write the real values of accumulators acc (M, N), int32 or int64."""
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    at = tl.minimum(m, M - 1).to(tl.int64)[:, None] * m_stride + tl.minimum(n, N - 1).to(tl.int64)[None, :] * n_stride
    finish(
        tl.load(acc + at), m, n, M, N, tl.cast(K, tl.int64),
        (row_zero, row_sum, row_step, row_per), (column_zero, column_sum, column_step, column_per),
        (out, row_stride, inner_stride, column_stride, inner), (out, 0, 0),
        0, 0, BITS, UNSIGNED, DROPPED, WIDE, 0,
    )  # fmt: skip


@triton.jit
def pack_kernel(
    source, out, sums, R, K, r_stride, k_stride, out_stride,
    FLIP: tl.constexpr, SUMS: tl.constexpr, WRITE: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Copy codes (R, K) of any strides to signed bytes out (R, out_stride), 0 beyond K, and add up each row."""
    across = tl.cdiv(out_stride, BK)  # in one dimension of the grid: the second one ends at 65535
    r = tl.program_id(0) // across * BR + tl.arange(0, BR)
    k = tl.program_id(0) % across * BK + tl.arange(0, BK)
    inside = (r < R)[:, None] & (k < K)[None, :]
    at = r.to(tl.int64)[:, None] * r_stride + k.to(tl.int64)[None, :] * k_stride
    codes = tl.load(source + at, mask=inside, other=0)
    if SUMS:
        tl.atomic_add(sums + r, tl.sum(codes.to(tl.int32), 1).to(tl.int64), mask=r < R)
    if WRITE:
        if FLIP:  # a code less 128 is the code with its top bit changed
            codes = tl.where(inside, codes ^ 128, 0)
        held = (r < R)[:, None] & (k < out_stride)[None, :]
        tl.store(out + r.to(tl.int64)[:, None] * out_stride + k[None, :], codes.to(tl.int8, bitcast=True), mask=held)
