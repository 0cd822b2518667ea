"""Triton kernels of any datapath on integer ALUs (S4); only the GPU path, or Triton's interpreter, imports this file.

One program computes one tile of outputs; every product of an output goes through its registers in the order that the
levels give. Which kernel fits which chain, and why its numbers fit its lanes, is said in datapath.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Columns of a row of the table, as in fqtsim.hw.lower, then the number of items that the level takes.
RUN = tl.constexpr(0)
LANES = tl.constexpr(1)
DROP = tl.constexpr(2)
BASE = tl.constexpr(3)
NEGATIVE = tl.constexpr(4)
ODD = tl.constexpr(5)
LOW = tl.constexpr(7)
HIGH = tl.constexpr(8)
BITS = tl.constexpr(9)
ITEMS = tl.constexpr(11)
WIDTH = tl.constexpr(12)

# What a level does, as far as it decides which operations are compiled.
EXACT = tl.constexpr(0)
WRAP = tl.constexpr(1)
CLAMP = tl.constexpr(2)
WRAP_UNSIGNED = tl.constexpr(3)

# How a saturating register is kept (datapath.Limit).
BIASED = tl.constexpr(0)
RAILS = tl.constexpr(1)
FULL = tl.constexpr(2)


@triton.jit
def places(order, first, size, stride, BLOCK: tl.constexpr, ORDERED: tl.constexpr):
    """Return the rows (or columns) of a tile, those beyond the last repeating it, and their offsets."""
    at = tl.minimum(first + tl.arange(0, BLOCK), size - 1)
    if ORDERED:
        at = tl.load(order + at)
    return at, at.to(tl.int64) * stride


@triton.jit
def tile_is_open(norms, bound, rows, columns, starts):
    """Tell whether |a_i|**2 |b_j|**2 > (limit - |c|)**2 for some output of a tile: see bounds.py."""
    space = (bound - tl.abs(starts)).to(tl.float64)
    product = tl.load(norms[0] + rows)[:, None] * tl.load(norms[1] + columns)[None, :]
    closed = (product <= space * space) & (space >= 0)
    return tl.sum(tl.sum((closed == 0).to(tl.int32), 1), 0) > 0


@triton.jit
def dropped(item, row, WORD: tl.constexpr):
    """Return item / 2**drop, rounded as the row of the table says."""
    drop = tl.load(row + DROP).to(WORD)
    bias = tl.load(row + BASE).to(WORD) + ((item >> drop) & 1) * tl.load(row + ODD).to(WORD)
    bias += tl.where(item < 0, tl.load(row + NEGATIVE).to(WORD), 0)
    return (item + bias) >> drop


@triton.jit
def held(total, row, MODE: tl.constexpr, WORD: tl.constexpr):
    """Return an exact sum brought into the register of a level."""
    if MODE == CLAMP:
        total = tl.minimum(total, tl.load(row + HIGH).to(WORD))
        total = tl.maximum(total, tl.load(row + LOW).to(WORD))
    elif MODE == WRAP_UNSIGNED:
        total = total & tl.load(row + HIGH).to(WORD)
    elif MODE == WRAP:
        shift = (WORD.primitive_bitwidth - tl.load(row + BITS)).to(WORD)
        total = (total << shift) >> shift
    return total


@triton.jit
def widened(codes, WORD: tl.constexpr):
    """Return codes in the type of the lanes, by way of float32, which holds every code of up to 16 bits.

    Triton moves a plain widening behind the exchange between threads, and then each thread widens what it multiplies.
    """
    return codes.to(WORD) if codes.dtype.primitive_bitwidth == 32 else codes.to(tl.float32).to(WORD)


@triton.jit
def register(
    acc, r, a, b, a_step, b_step, table,
    LEVEL: tl.constexpr, PLAN: tl.constexpr, WORD: tl.constexpr,
):  # fmt: skip
    """Return what register r of a level holds after its items, starting from acc.

    Register r takes items r * run ... of a level of runs, and r, r + lanes ... of a level of lanes. Each item is the
    last code of a register of the level below, so the levels are nested loops, each with one register.
    PLAN: per level (mode, whether it drops bits, whether it has lanes).
    """
    row = table + LEVEL * WIDTH
    items = tl.load(row + ITEMS).to(tl.int32)
    if PLAN[LEVEL][2]:
        first, step, end = r, tl.load(row + LANES).to(tl.int32), items
    else:
        run = tl.load(row + RUN).to(tl.int32)
        first, step, end = r * run, 1, tl.minimum(items - r * run, run) + r * run
    for t in range(first, end, step):
        if LEVEL == 0:
            x = widened(tl.load(a + a_step * t), WORD)
            y = widened(tl.load(b + b_step * t), WORD)
            item = x[:, None] * y[None, :]
        else:
            nothing = tl.zeros(acc.shape, WORD)
            item = register(nothing, t, a, b, a_step, b_step, table, LEVEL - 1, PLAN, WORD)
        if PLAN[LEVEL][1]:
            item = dropped(item, row, WORD)
        acc = held(acc + item, row, PLAN[LEVEL][0], WORD)
    return acc


@triton.jit
def chain_kernel(
    a, b, start, out, table, norms, orders, bound, M, N, a_strides, b_strides,
    LEVELS: tl.constexpr, PLAN: tl.constexpr, WORD: tl.constexpr, HAS_START: tl.constexpr, BOUNDED: tl.constexpr,
    ORDER_A: tl.constexpr, ORDER_B: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Perform every addition of any chain of levels. Shapes: a (G, M, K), b (G, K, N), out and start (G, M, N).

    A strides tuple is (group, row or column, k). Where BOUNDED, a tile that the bound proves is left as it is.
    Instructions per MAC, as compiled for sm_90: 1.6 for products and loads of a level that sums exactly; per item of a
    level 2 more to saturate or to wrap (1 unsigned), 7 to drop bits; nested loops repeat the last two at every level.
    """
    tiles = tl.cdiv(M, BM)
    group = tl.program_id(1).to(tl.int64)
    rows, a_at = places(orders[0] + group * M, tl.program_id(0) % tiles * BM, M, a_strides[1], BM, ORDER_A)
    columns, b_at = places(orders[1] + group * N, tl.program_id(0) // tiles * BN, N, b_strides[1], BN, ORDER_B)
    outputs = group * M * N + rows.to(tl.int64)[:, None] * N + columns[None, :]
    starts = tl.load(start + outputs) if HAS_START else tl.zeros((BM, BN), tl.int64)
    needed = True
    if BOUNDED:
        needed = tile_is_open((norms[0] + group * M, norms[1] + group * N), bound, rows, columns, starts)
    if needed:
        wide = tl.full([], 0, tl.int64)
        acc = register(
            starts.to(WORD), 0, a + group * a_strides[0] + a_at, b + group * b_strides[0] + b_at,
            wide + a_strides[2], wide + b_strides[2], table, LEVELS - 1, PLAN, WORD,
        )  # fmt: skip
        tl.store(out + outputs, acc.to(out.dtype.element_ty))


@triton.jit
def dot4(x, y, total, UNSIGNED_X: tl.constexpr, UNSIGNED_Y: tl.constexpr, NATIVE: tl.constexpr):
    """Return total plus the four products of the bytes of two words, modulo 2**32."""
    if NATIVE:
        kinds: tl.constexpr = ("u32" if UNSIGNED_X else "s32") + "." + ("u32" if UNSIGNED_Y else "s32")
        code: tl.constexpr = "dp4a." + kinds + " $0, $1, $2, $3;"
        total = tl.inline_asm_elementwise(code, "=r,r,r,r", [x, y, total], tl.int32, True, 1)
    else:
        for place in tl.static_range(4):
            total += byte(x, place, UNSIGNED_X) * byte(y, place, UNSIGNED_Y)
    return total


@triton.jit
def byte(word, PLACE: tl.constexpr, UNSIGNED: tl.constexpr):
    """Return one of the four codes of a word."""
    return (word >> (8 * PLACE)) & 255 if UNSIGNED else (word << (24 - 8 * PLACE)) >> 24


@triton.jit
def limited(acc, total, low, high, LIMIT: tl.constexpr):
    """Return a saturating register that held acc after one addition; total is the sum, or where FULL the item."""
    if LIMIT == BIASED:  # the register less its lower rail: 0..high
        acc = tl.maximum(tl.minimum(total, high), 0)
    elif LIMIT == RAILS:
        acc = tl.maximum(tl.minimum(total, high), low)
    else:  # an overflow of int32 shows in the signs
        wrapped = acc + total
        rail = (acc >> 31) ^ 0x7FFFFFFF
        acc = tl.where(((acc ^ wrapped) & (total ^ wrapped)) < 0, rail, wrapped)
    return acc


@triton.jit
def saturating_kernel(
    a, b, start, out, norms, orders, bound, low, high, M, N, K, a_strides, b_strides,
    WORDS: tl.constexpr, PACKED: tl.constexpr, UNSIGNED_A: tl.constexpr, UNSIGNED_B: tl.constexpr,
    NATIVE: tl.constexpr, LIMIT: tl.constexpr, WORD: tl.constexpr, HAS_START: tl.constexpr, BOUNDED: tl.constexpr,
    ORDER_A: tl.constexpr, ORDER_B: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Add exact sums of the products of WORDS words to one saturating register; K counts words, arguments as above.

    A word is one code, or four bytes along k where PACKED. UNROLL items are formed in one turn of the loop; words
    beyond K are 0, and items of 0 change no register. Where LIMIT is BIASED, low is the lower rail and high the
    distance of the rails.

    Instructions on sm_90, as compiled: per word 1 multiply-add (IMAD) or dot product of four codes (dp4a); per item 1
    VIMNMX.RELU where BIASED, 2 for RAILS, 7 where FULL; loads, shared memory and the loop add about 0.5 per word.
    """
    tiles = tl.cdiv(M, BM)
    group = tl.program_id(1).to(tl.int64)
    rows, a_at = places(orders[0] + group * M, tl.program_id(0) % tiles * BM, M, a_strides[1], BM, ORDER_A)
    columns, b_at = places(orders[1] + group * N, tl.program_id(0) // tiles * BN, N, b_strides[1], BN, ORDER_B)
    outputs = group * M * N + rows.to(tl.int64)[:, None] * N + columns[None, :]
    starts = tl.load(start + outputs) if HAS_START else tl.zeros((BM, BN), tl.int64)
    needed = True
    if BOUNDED:
        needed = tile_is_open((norms[0] + group * M, norms[1] + group * N), bound, rows, columns, starts)
    if needed:
        acc = starts.to(WORD)
        if LIMIT == BIASED:
            acc -= low
        x_at, y_at = a + group * a_strides[0] + a_at, b + group * b_strides[0] + b_at
        for k in range(0, K, WORDS * UNROLL):
            for u in tl.static_range(UNROLL):
                total = acc
                if LIMIT == FULL:
                    total = tl.zeros((BM, BN), WORD)
                for w in tl.static_range(WORDS):
                    at = k + (u * WORDS + w)
                    x = widened(tl.load(x_at, mask=tl.full((BM,), at, tl.int32) < K, other=0), WORD)[:, None]
                    y = widened(tl.load(y_at, mask=tl.full((BN,), at, tl.int32) < K, other=0), WORD)[None, :]
                    x_at += a_strides[2]
                    y_at += b_strides[2]
                    if PACKED:
                        x, y = tl.broadcast(x, y)
                        total = dot4(x, y, total, UNSIGNED_A, UNSIGNED_B, NATIVE)
                    else:
                        total += x * y
                acc = limited(acc, total, low, high, LIMIT)
        if LIMIT == BIASED:
            acc += low
        tl.store(out + outputs, acc.to(out.dtype.element_ty))


@triton.jit
def events_kernel(codes, unlimited, counts, low, high, SIZE, BLOCK: tl.constexpr):
    """Add to counts, int64: altered, out of range, transient, minimum and maximum of U, outputs at a rail."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    code = tl.load(codes + at, mask=inside, other=0).to(tl.int64)
    u = tl.load(unlimited + at, mask=inside, other=0).to(tl.int64)
    altered = inside & (code != u)
    outside = inside & ((u < low) | (u > high))
    rail = inside & ((code == low) | (code == high))
    tl.atomic_add(counts, tl.sum(altered.to(tl.int64), 0))
    tl.atomic_add(counts + 1, tl.sum(outside.to(tl.int64), 0))
    tl.atomic_add(counts + 2, tl.sum((altered & (outside == 0)).to(tl.int64), 0))
    tl.atomic_min(counts + 3, tl.min(tl.where(inside, u, 0x7FFFFFFFFFFFFFFF), 0))
    tl.atomic_max(counts + 4, tl.max(tl.where(inside, u, -0x7FFFFFFFFFFFFFFF - 1), 0))
    tl.atomic_add(counts + 5, tl.sum(rail.to(tl.int64), 0))
