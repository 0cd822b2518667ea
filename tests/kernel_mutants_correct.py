"""Kernels that are right, each in another way: a checker must accept every one of them."""

from __future__ import annotations

from itertools import pairwise

import numba
import numpy as np
import torch
from kernel_mutants_common import HI20, LO20, Array, clip20, correct, mm, runs, scan20, start, wrap

# ---- wrap32


@correct("wrap32", "one int64 matrix product, then the low 32 bits")
def int64_then_wrap(a: Array, b: Array, c: Array | None = None) -> Array:
    """S = A B + C in int64."""
    return wrap(a.astype(np.int64) @ b.astype(np.int64) + start(a, b, c))


@correct("wrap32", "float64 products over chunks of 1000 k, each exact, wrapped after each chunk")
def float64_chunks(a: Array, b: Array, c: Array | None = None) -> Array:
    """Chunks of K in float64."""
    acc = wrap(start(a, b, c))
    for k in range(0, a.shape[1], 1000):
        acc = wrap(acc.astype(np.int64) + mm(a[:, k : k + 1000], b[k : k + 1000]))
    return acc


@correct("wrap32", "float32 products over chunks of 512 k: no sum passes 2^24, so none rounds")
def float32_chunks(a: Array, b: Array, c: Array | None = None) -> Array:
    """Chunks of K in float32."""
    acc = wrap(start(a, b, c))
    for k in range(0, a.shape[1], 512):
        acc += (a[:, k : k + 512].astype(np.float32) @ b[k : k + 512].astype(np.float32)).astype(np.int32)
    return acc


@correct("wrap32", "einsum with the output transposed")
def einsum_transposed(a: Array, b: Array, c: Array | None = None) -> Array:
    """C^T = B^T A^T."""
    return wrap(np.einsum("mk,kn->nm", a.astype(np.int64), b.astype(np.int64)).T + start(a, b, c))


@correct("wrap32", "5 x 7 x 16 tiles with edges, int32 accumulators, n outermost")
def tiled_edges(a: Array, b: Array, c: Array | None = None) -> Array:
    """Blocked with edge handling."""
    out = wrap(start(a, b, c))
    for n in range(0, b.shape[1], 7):
        for m in range(0, a.shape[0], 5):
            for k in range(0, a.shape[1], 16):
                out[m : m + 5, n : n + 7] += wrap(mm(a[m : m + 5, k : k + 16], b[k : k + 16, n : n + 7]))
    return out


@correct("wrap32", "all dimensions padded with zeros to 16 x 64 x 16, the rest cut off")
def padded_panels(a: Array, b: Array, c: Array | None = None) -> Array:
    """K padded with zeros."""
    (m, k), n = a.shape, b.shape[1]
    pa = np.zeros((-(-m // 16) * 16, -(-k // 64) * 64), np.int32)
    pb = np.zeros((pa.shape[1], -(-n // 16) * 16), np.int32)
    pa[:m, :k], pb[:k, :n] = a, b
    return (pa @ pb)[:m, :n] + wrap(start(a, b, c))


@correct("wrap32", "split-K by k mod 3, each part in its own int32 accumulator, added last to first")
def split_k_strided(a: Array, b: Array, c: Array | None = None) -> Array:
    """Split-K is legal where the accumulator wraps."""
    parts = [wrap(mm(a[:, i::3], b[i::3])) for i in range(3)]
    return parts[2] + (parts[1] + (parts[0] + wrap(start(a, b, c))))


@correct("wrap32", "bit-serial: one AND-popcount product for each pair of bit planes, sign planes negative")
def bit_serial(a: Array, b: Array, c: Array | None = None) -> Array:
    """Sum over bit planes."""
    acc = start(a, b, c)
    sign = -128 if a.dtype == np.int8 else 128
    for i in range(8):
        for j in range(8):
            weight = (sign if i == 7 else 1 << i) * (-128 if j == 7 else 1 << j)
            acc += weight * mm(a.astype(np.int16) >> i & 1, b.astype(np.int16) >> j & 1)
    return wrap(acc)


@correct("wrap32", "a 256 x 256 table of products, looked up with the bytes, k ascending")
def product_table(a: Array, b: Array, c: Array | None = None) -> Array:
    """Products from a table."""
    byte = np.arange(256, dtype=np.uint8)
    table = np.multiply.outer(byte.astype(a.dtype).astype(np.int32), byte.astype(np.int8).astype(np.int32))
    ia, ib, acc = a.astype(np.uint8), b.astype(np.uint8), wrap(start(a, b, c))
    for k in range(a.shape[1]):
        acc += table[ia[:, k, None], ib[None, k]]
    return acc


@numba.njit
def _loops(a: Array, b: Array, acc: Array) -> None:
    for m in range(a.shape[0]):
        for k in range(a.shape[1]):
            for n in range(b.shape[1]):
                acc[m, n] = np.int32(acc[m, n] + np.int32(a[m, k]) * np.int32(b[k, n]))


@correct("wrap32", "compiled scalar loops m, k, n in int32 registers")
def numba_loops(a: Array, b: Array, c: Array | None = None) -> Array:
    """Three loops through Numba."""
    acc = wrap(start(a, b, c))
    _loops(a.astype(np.int32), b.astype(np.int32), acc)
    return acc


@correct("wrap32", "torch._int_mm on int8; uint8 codes enter as a - 128 and 128 * colsum(b) is given back")
def torch_int_mm(a: Array, b: Array, c: Array | None = None) -> Array:
    """The library's INT8 product where it fits, with the offset trick for unsigned codes."""
    if 0 in (*a.shape, b.shape[1]):
        return wrap(start(a, b, c))
    offset = 128 if a.dtype == np.uint8 else 0
    ta = torch.from_numpy((a.astype(np.int16) - offset).astype(np.int8))
    out = torch._int_mm(ta, torch.from_numpy(np.ascontiguousarray(b))).numpy()
    return wrap(out + offset * b.sum(0, dtype=np.int64) + start(a, b, c))


@correct("wrap32", "outer products, k descending, in uint32")
def outer_reversed(a: Array, b: Array, c: Array | None = None) -> Array:
    """Rank-1 updates modulo 2^32."""
    acc = wrap(start(a, b, c)).astype(np.uint32)
    for k in reversed(range(a.shape[1])):
        acc += np.multiply.outer(a[:, k].astype(np.int32), b[k].astype(np.int32)).astype(np.uint32)
    return acc.astype(np.int32)


@correct("wrap32", "four nibble products; the high nibble carries the sign")
def nibbles(a: Array, b: Array, c: Array | None = None) -> Array:
    """x = 16 * (x >> 4) + (x & 15)."""
    x, y = a.astype(np.int32), b.astype(np.int32)
    high = 16 * mm(x >> 4, y >> 4) + mm(x >> 4, y & 15) + mm(x & 15, y >> 4)
    return wrap(16 * high + mm(x & 15, y & 15) + start(a, b, c))


@correct("wrap32", "words of four codes; each lane is taken out by shifts, as a dot-product instruction does")
def packed_words(a: Array, b: Array, c: Array | None = None) -> Array:
    """Four lanes in a word."""
    pad = -a.shape[1] % 4
    wa = np.ascontiguousarray(np.pad(a, ((0, 0), (0, pad)))).view("<i4").astype(np.int32)
    wb = np.ascontiguousarray(np.pad(b, ((0, pad), (0, 0))).T).view("<i4").astype(np.int32)
    acc = start(a, b, c)
    for lane in range(4):
        la = wa << (24 - 8 * lane) >> 24
        acc += mm(la if a.dtype == np.int8 else la & 255, (wb << (24 - 8 * lane) >> 24).T)
    return wrap(acc)


@correct("wrap32", "one level of Strassen on the padded operands: exact modulo 2^32")
def strassen(a: Array, b: Array, c: Array | None = None) -> Array:
    """Seven products instead of eight."""
    (m, k), n = a.shape, b.shape[1]
    x = np.pad(a.astype(np.int64), ((0, m % 2), (0, k % 2)))
    y = np.pad(b.astype(np.int64), ((0, k % 2), (0, n % 2)))
    i, j, h = x.shape[0] // 2, x.shape[1] // 2, y.shape[1] // 2
    a11, a12, a21, a22 = x[:i, :j], x[:i, j:], x[i:, :j], x[i:, j:]
    b11, b12, b21, b22 = y[:j, :h], y[:j, h:], y[j:, :h], y[j:, h:]
    p1, p2, p3 = mm(a11 + a22, b11 + b22), mm(a21 + a22, b11), mm(a11, b12 - b22)
    p4, p5 = mm(a22, b21 - b11), mm(a11 + a12, b22)
    p6, p7 = mm(a21 - a11, b11 + b12), mm(a12 - a22, b21 + b22)
    out = np.block([[p1 + p4 - p5 + p7, p3 + p5], [p2 + p4, p1 - p2 + p3 + p6]])
    return wrap(out[:m, :n] + start(a, b, c))


@correct("wrap32", "two 16-bit limbs with a carry between them")
def limbs_with_carry(a: Array, b: Array, c: Array | None = None) -> Array:
    """Low and high half of the accumulator kept apart."""
    bits = wrap(start(a, b, c)).astype(np.uint32)
    low, high = bits & 0xFFFF, bits >> 16
    for s in runs(a, b, 8):
        item = s.astype(np.uint32)
        low = low + (item & 0xFFFF)
        high = (high + (item >> 16) + (low >> 16)) & 0xFFFF
        low = low & 0xFFFF
    return (high << 16 | low).astype(np.int32)


@correct("wrap32", "codes of b as buckets: v times the sum of the a whose partner is v")
def code_buckets(a: Array, b: Array, c: Array | None = None) -> Array:
    """One product by each code that occurs."""
    acc = start(a, b, c)
    for v in np.unique(b):
        acc += int(v) * mm(a, b == v)
    return wrap(acc)


@correct("wrap32", "five workers share all (tile, k block) items evenly; partial tiles meet in a workspace")
def stream_k(a: Array, b: Array, c: Array | None = None) -> Array:
    """Stream-K with fix-up by addition."""
    out, blocks = wrap(start(a, b, c)), range(0, a.shape[1], 32)
    items = [(m, n, k) for m in range(0, a.shape[0], 8) for n in range(0, b.shape[1], 8) for k in blocks]
    cuts = [len(items) * w // 5 for w in range(6)]
    for first, last in reversed(list(pairwise(cuts))):
        for m, n, k in items[first:last]:
            out[m : m + 8, n : n + 8] += wrap(mm(a[m : m + 8, k : k + 32], b[k : k + 32, n : n + 8]))
    return out


# ---- sat20


@correct("sat20", "groups of four in order, a 20-bit clip after each")
def groups_in_order(a: Array, b: Array, c: Array | None = None) -> Array:
    """The definition, over whole matrices."""
    acc = start(a, b, c)
    for s in runs(a, b):
        acc = clip20(acc + s)
    return acc.astype(np.int32)


@numba.njit
def _scan(a: Array, b: Array, acc: Array) -> None:
    for m in range(acc.shape[0]):
        for n in range(acc.shape[1]):
            r = acc[m, n]
            for k in range(0, a.shape[1], 4):
                s = 0
                for i in range(k, min(k + 4, a.shape[1])):
                    s += a[m, i] * b[i, n]
                r = min(max(r + s, -524288), 524287)
            acc[m, n] = r


@correct("sat20", "compiled scalar loops, one output at a time")
def numba_scan(a: Array, b: Array, c: Array | None = None) -> Array:
    """The definition, element by element."""
    acc = start(a, b, c)
    _scan(a.astype(np.int64), b.astype(np.int64), acc)
    return acc.astype(np.int32)


@correct("sat20", "K blocks of 24 cut at group boundaries and chained through c; 6 x 10 tiles")
def chained_blocks(a: Array, b: Array, c: Array | None = None) -> Array:
    """Sequential K blocks, each resuming from the last."""
    out = start(a, b, c)
    for k in range(0, a.shape[1], 24):
        for m in range(0, a.shape[0], 6):
            for n in range(0, b.shape[1], 10):
                tile = out[m : m + 6, n : n + 10]
                tile[:] = scan20(a[m : m + 6, k : k + 24], b[k : k + 24, n : n + 10], tile)
    return out.astype(np.int32)


@correct("sat20", "K padded with zeros to a multiple of 32: a group of zeros changes nothing")
def padded_groups(a: Array, b: Array, c: Array | None = None) -> Array:
    """Zeros at the end of K."""
    pad = -a.shape[1] % 32
    return scan20(np.pad(a, ((0, 0), (0, pad))), np.pad(b, ((0, pad), (0, 0))), start(a, b, c)).astype(np.int32)


@correct(
    "sat20", "legal split-K: each slice is composed into the map r -> clip(r + t, lo, hi), then the maps are applied"
)
def clip_maps(a: Array, b: Array, c: Array | None = None) -> Array:
    """Clipped additions compose to clipped additions, so slices can run apart."""
    slices = []
    for k in range(0, a.shape[1], 20):
        t = np.zeros((a.shape[0], b.shape[1]), np.int64)
        lo, hi = np.full_like(t, -(1 << 40)), np.full_like(t, 1 << 40)
        for s in runs(a[:, k : k + 20], b[k : k + 20]):
            t, lo, hi = t + s, clip20(lo + s), clip20(hi + s)
        slices.append((t, lo, hi))
    acc = start(a, b, c)
    for t, lo, hi in slices:
        acc = np.minimum(np.maximum(acc + t, lo), hi)
    return acc.astype(np.int32)


@correct("sat20", "a plain product wherever |c| + sum |a||b| cannot reach a rail, the chain elsewhere")
def bounded_fast_path(a: Array, b: Array, c: Array | None = None) -> Array:
    """Order cannot matter where no partial sum can leave the register."""
    acc = start(a, b, c)
    safe = np.abs(acc) + mm(np.abs(a.astype(np.int16)), np.abs(b.astype(np.int16))) <= HI20
    return np.where(safe, acc + mm(a, b), scan20(a, b, acc)).astype(np.int32)


@correct("sat20", "the accumulator sits in the top 20 bits of an int32; overflow is seen from the three signs")
def high_bits(a: Array, b: Array, c: Array | None = None) -> Array:
    """A saturating add of 32-bit words, shifted by 12."""
    acc = (start(a, b, c) << 12).astype(np.int32)
    for s in runs(a, b):
        item = (s << 12).astype(np.int32)
        total = acc + item
        over = ((acc ^ total) & (item ^ total)) < 0
        acc = np.where(over, np.where(item < 0, np.int32(LO20 << 12), np.int32(HI20 << 12)), total)
    return acc >> 12


@correct("sat20", "exact prefix sums; at the first prefix beyond a rail the chain restarts from that rail")
def prefix_replay(a: Array, b: Array, c: Array | None = None) -> Array:
    """From rail to rail."""
    out = start(a, b, c)
    sums = np.stack([out, *runs(a, b)])[1:]
    for m in range(out.shape[0]):
        for n in range(out.shape[1]):
            item, base, done = sums[:, m, n], int(out[m, n]), 0
            while done < len(item):
                prefix = base + np.cumsum(item[done:])
                beyond = np.flatnonzero((prefix > HI20) | (prefix < LO20))
                if not len(beyond):
                    base = int(prefix[-1])
                    break
                base = HI20 if prefix[beyond[0]] > 0 else LO20
                done += int(beyond[0]) + 1
            out[m, n] = base
    return out.astype(np.int32)


@correct("sat20", "columns outermost; pairs summed first, then pairs of pairs, as a tree of adders does")
def tree_by_column(a: Array, b: Array, c: Array | None = None) -> Array:
    """One column at a time, a two-step adder tree."""
    out, pad = start(a, b, c), -a.shape[1] % 4
    x = np.pad(a, ((0, 0), (0, pad))).astype(np.int32)
    for n in range(b.shape[1]):
        product = x * np.pad(b[:, n], (0, pad)).astype(np.int32)
        pairs = product[:, 0::2] + product[:, 1::2]
        for s in (pairs[:, 0::2] + pairs[:, 1::2]).T:
            out[:, n] = clip20(out[:, n] + s)
    return out.astype(np.int32)
