"""Triton kernels of the INT8 convolutions; only the GPU path, or Triton's interpreter, imports this file.

What they read is laid out by `expand_kernel` so that every (position, tap) is a sum of two offsets: no test for the
border and no division by a stride is left in the loops. convolution.py says why that is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fqtsim.kernels.gpu.triton_gemm import finish_tile, load_tile, tile_of


@triton.jit
def expand_kernel(
    x, out, sums, zero, zero_run, positions, channels, padded, H, W, HP, WP,
    n_stride, c_stride, h_stride, w_stride, out_group, out_position, out_channel,
    step_h, step_w, offset_h, offset_w, hole_h, hole_w,
    FLIP: tl.constexpr, NOTHING: tl.constexpr, SUMS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Copy codes x (N, G * C, H, W) to signed bytes on a grid (N, HP, WP) per group, padding and holes filled.

    Grid row y reads row (y * step + offset) / hole where that is a whole number inside x, elsewhere the sample's code
    of real zero, or with NOTHING the byte 0. Channels from `channels` to `padded` are the byte 0. SUMS: write what the
    bytes of a position sum to, to int32 sums (G, positions); with 2 add it to zeros there.
    """
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    group = tl.program_id(2)
    sample = tl.minimum(p, positions - 1) // (HP * WP)
    v = p // WP % HP * step_h + offset_h
    u = p % WP * step_w + offset_w
    inside = (p < positions) & (v >= 0) & (u >= 0)
    h, w = tl.where(inside, v, 0) // hole_h, tl.where(inside, u, 0) // hole_w
    inside = inside & (h < H) & (w < W) & (h * hole_h == v) & (w * hole_w == u)
    at = sample.to(tl.int64) * n_stride + tl.where(inside, h, 0) * h_stride + tl.where(inside, w, 0) * w_stride
    at = at[:, None] + (group * channels + c).to(tl.int64)[None, :] * c_stride
    codes = tl.load(x + at, mask=inside[:, None] & (c < channels)[None, :], other=0).to(tl.int32)
    if NOTHING:
        codes = tl.where(inside[:, None], codes - FLIP * 128, 0)
    else:
        fill = tl.load(zero + sample // zero_run).to(tl.int32)
        codes = tl.where(inside[:, None], codes, fill[:, None]) - FLIP * 128
    codes = tl.where((c < channels)[None, :], codes, 0)
    own = sums + group.to(tl.int64) * positions + p
    if SUMS == 1:
        tl.store(own, tl.sum(codes, 1), mask=p < positions)
    if SUMS == 2:
        tl.atomic_add(own, tl.sum(codes, 1), mask=p < positions)
    codes = codes.to(tl.int8)
    to = p.to(tl.int64)[:, None] * out_position + c.to(tl.int64)[None, :] * out_channel + group.to(tl.int64) * out_group
    tl.store(out + to, codes, mask=(p < positions)[:, None] & (c < padded)[None, :])


@triton.jit
def pack_weights_kernel(
    w, out, sums, outputs, KH, KW, C, padded, length, total, g_stride, o_stride, h_stride, w_stride, c_stride,
    FLIP: tl.constexpr, JOINED: tl.constexpr, TURNED: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Copy one row of weights w (G, CO, KH, KW, C) to signed bytes out (G, CO, total) and add its codes up.

    A run of `length` bytes holds the taps of a row (JOINED), or one tap, `padded` bytes each; the rest is 0. TURNED:
    the last tap comes first.
    """
    row = tl.program_id(0)
    source = w + (row // outputs).to(tl.int64) * g_stride + (row % outputs).to(tl.int64) * o_stride
    target = out + row.to(tl.int64) * total
    summed = tl.zeros((B,), tl.int32)
    for first in range(0, total, B):
        k = first + tl.arange(0, B)
        run, at = k // length, k % length
        if JOINED:
            i, j, c = run, at // padded, at % padded
        else:
            i, j, c = run // KW, run % KW, at
        inside = (k < total) & (j < KW) & (c < C)
        if TURNED:
            i, j = KH - 1 - i, KW - 1 - j
        place = tl.where(inside, i * h_stride + j * w_stride + c * c_stride, 0)
        codes = tl.load(source + place, mask=inside, other=0)
        summed += codes.to(tl.int32)
        if FLIP:  # a code less 128 is the code with its top bit changed
            codes = tl.where(inside, codes ^ 128, 0)
        tl.store(target + k, codes.to(tl.int8, bitcast=True), mask=k < total)
    tl.store(sums + row, tl.sum(summed, 0).to(tl.int64))


@triton.jit
def patch_sums_kernel(
    places, out, count, positions, inner, Q, area, row_stride, column_stride, tap_row, tap_column, KW, terms,
    TAPS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Write terms and what the taps of an output meet of places (G, positions) to int64 out (G, count)."""
    m = tl.program_id(0) * B + tl.arange(0, B)
    group = tl.program_id(1).to(tl.int64)
    mi = tl.minimum(m, count - 1)
    base = (mi // inner).to(tl.int64) * area + mi % inner // Q * row_stride + mi % Q * column_stride
    total = tl.zeros((B,), tl.int32) + terms
    for tap in range(TAPS):
        total += tl.load(places + group * positions + base + (tap // KW * tap_row + tap % KW * tap_column))
    tl.store(out + group * count + m, total.to(tl.int64), mask=m < count)


@triton.jit
def patches_product(
    x, w, m, n, M, N, inner, Q, sample_stride, row_stride, column_stride, run_stride, tap_stride, w_stride,
    RUNS: tl.constexpr, ACROSS: tl.constexpr, LENGTH: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Return the sums of patches of x times weights, int32 (BM, BN), over runs of LENGTH consecutive bytes."""
    mi = tl.minimum(m + tl.arange(0, BM), M - 1)
    ni = tl.minimum(n + tl.arange(0, BN), N - 1)
    along = tl.arange(0, BK)
    base = (mi // inner).to(tl.int64) * sample_stride + mi % inner // Q * row_stride + mi % Q * column_stride
    weights = ni.to(tl.int64) * w_stride
    total = tl.zeros((BM, BN), tl.int32)
    for t in range(RUNS * (LENGTH // BK)):
        run = t // (LENGTH // BK)
        tap = run // ACROSS * run_stride + run % ACROSS * tap_stride + t % (LENGTH // BK) * BK
        codes = tl.load(x + base[:, None] + (tap + along)[None, :])
        other = tl.load(w + weights[:, None] + (t * BK + along)[None, :])
        total = tl.dot(codes, tl.trans(other), total, out_dtype=tl.int32)
    return total


@triton.jit
def patches_kernel(
    x, w, M, N, K, inner, Q, group_stride, sample_stride, row_stride, column_stride, run_stride, tap_stride, w_stride,
    out, out_sample, out_inner, out_channel,
    row_zero, row_sum, row_step, row_run, column_zero, column_sum, column_step, column_run, column_group,
    record, low, high, outer_words, inner_words, words_run, sums,
    CA: tl.constexpr, CB: tl.constexpr, BITS: tl.constexpr, UNSIGNED: tl.constexpr, WIDE: tl.constexpr,
    RECORD: tl.constexpr, RUNS: tl.constexpr, ACROSS: tl.constexpr, LENGTH: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Write the scaled products of all patches with the weights of one group: fprop, and dgrad on an expanded dH."""
    row, column = tile_of(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    group = tl.program_id(1).to(tl.int64)
    acc = patches_product(
        x + group * group_stride, w + group * N * w_stride, row * BM, column * BN, M, N, inner, Q,
        sample_stride, row_stride, column_stride, run_stride, tap_stride, w_stride, RUNS, ACROSS, LENGTH, BM, BN, BK,
    )  # fmt: skip
    scales = group * column_group
    finish_tile(
        acc, row * BM + tl.arange(0, BM), column * BN, M, N, tl.cast(K, tl.int64),
        (row_zero, row_sum + group * M, row_step, row_run),
        (column_zero + scales, column_sum + group * N, column_step + scales, column_run),
        (out + group * N * out_channel, out_sample, out_inner, out_channel, inner),
        (record, low, high, outer_words, inner_words, words_run, sums + group * 2 * N),
        CA, CB, BITS, UNSIGNED, WIDE, RECORD, BM, BN,
    )  # fmt: skip


@triton.jit
def wgrad_kernel(
    x, dh, out, x_rows, dh_rows, U, pitch, channels, outputs, group_rows, KW, WQ, width,
    step_h, step_w, dilation_h, dilation_w,
    PARTS: tl.constexpr, TMA: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write sums over positions u of dh[co, u] x[ci, u + shift] of one tap to out (G * CO, KH * KW * CI).

    x holds one block of `group_rows` rows for each place a tap can have between two strides. Several parts add to an
    out of zeros; an int64 out takes exact sums of parts that cannot overflow.
    """
    tiles_m, tiles_n = tl.cdiv(outputs, BM), tl.cdiv(channels, BN)
    job, tap, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = job // (tiles_m * tiles_n)
    co, ci = job // tiles_n % tiles_m * BM, job % tiles_n * BN
    v, h = tap // KW * dilation_h, tap % KW * dilation_w
    first_row = (v % step_h * step_w + h % step_w) * group_rows + group * channels + ci
    shift = v // step_h * WQ + h // step_w
    length = tl.cdiv(tl.cdiv(U, BK), PARTS) * BK
    total = tl.zeros((BM, BN), tl.int32)
    for u in range(part * length, tl.minimum(part * length + length, U), BK):
        left = load_tile(dh, group * outputs + co, u, dh_rows, pitch, U, BM, BK, TMA)
        right = load_tile(x, first_row, u + shift, x_rows, pitch, U, BN, BK, TMA)
        total = tl.dot(left, tl.trans(right), total, out_dtype=tl.int32)
    m, n = co + tl.arange(0, BM), ci + tl.arange(0, BN)
    inside = (m < outputs)[:, None] & (n < channels)[None, :]
    at = (group * outputs + m).to(tl.int64)[:, None] * width + (tap * channels + n)[None, :]
    total = total.to(out.dtype.element_ty)
    if PARTS == 1:
        tl.store(out + at, total, mask=inside)
    else:
        tl.atomic_add(out + at, total, mask=inside)


@triton.jit
def wgrad_finish_kernel(
    acc, out, M, N, channels, taps, per_group, K, row_zero, row_sum, row_step, column_zero, column_sum, column_step,
    record, low, high, outer_words, inner_words, words_run, sums,
    CA: tl.constexpr, CB: tl.constexpr, BITS: tl.constexpr, UNSIGNED: tl.constexpr, EXACT: tl.constexpr,
    COUNTED: tl.constexpr, RECORD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write the real values of wgrad's sums acc (N, M), m = (kh, kw, ci), to out (N, CI, KH, KW): epilogue.py.

    EXACT: acc is the exact sum, else one modulo 2**32. COUNTED: record what a register of BITS bits changes. RECORD is
    2 where sums with words of taps (2, KH * KW) and channels (2, CI) go to sums (G, 2, N / G), too.
    """
    m, n = tl.program_id(0) * BM + tl.arange(0, BM), tl.program_id(1) * BN + tl.arange(0, BN)
    mi, ni = tl.minimum(m, M - 1), tl.minimum(n, N - 1).to(tl.int64)
    inside = (n < N)[:, None] & (m < M)[None, :]
    terms = tl.cast(K, tl.int64)
    sa, sb = tl.load(row_sum + (ni // per_group)[:, None] * M + mi[None, :]), tl.load(column_sum + ni)[:, None]
    value = tl.load(acc + ni[:, None] * M + mi[None, :]).to(tl.int64) + CA * sb + CB * sa - terms * (CA * CB)
    if not EXACT:
        value = value.to(tl.int32).to(tl.int64)
    code = value
    if BITS < 64:
        code = value & ((1 << BITS) - 1) if UNSIGNED else (value << (64 - BITS)) >> (64 - BITS)
    if RECORD:
        held = code if COUNTED else value
        tl.atomic_min(record, tl.min(tl.min(tl.where(inside, value, 0x7FFFFFFFFFFFFFFF), 1), 0))
        tl.atomic_max(record + 1, tl.max(tl.max(tl.where(inside, value, -0x7FFFFFFFFFFFFFFF), 1), 0))
        rails = (inside & ((held == low) | (held == high))).to(tl.int64)
        tl.atomic_add(record + 2, tl.sum(tl.sum(rails, 1), 0))
        if COUNTED:
            tl.atomic_add(record + 3, tl.sum(tl.sum((inside & (code != value)).to(tl.int64), 1), 0))
    if RECORD == 2:
        own, total = sums + ni // per_group * (2 * per_group) + ni % per_group, code.to(tl.int32)
        tap, channel = mi // channels, mi % channels
        for r in tl.static_range(2):
            word = tl.load(outer_words + r * taps + tap) * tl.load(inner_words + r * channels + channel)
            word = tl.where(m < M, word, 0)
            tl.atomic_add(own + r * per_group, tl.sum(word[None, :] * total, 1), mask=n < N)
    za, zb = tl.load(row_zero), tl.load(column_zero)
    real = (code - za * sb - zb * sa + terms * za * zb).to(tl.float64)
    step = tl.load(row_step).to(tl.float64) * tl.load(column_step).to(tl.float64)
    at = ni[:, None] * M + (mi % channels * taps + mi // channels)[None, :]
    tl.store(out + at, (real * step).to(tl.float32), mask=inside)
