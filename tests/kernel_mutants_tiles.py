"""`wrap32` kernels with one bug in tiles, tails, strides, sizes, buffers or start values."""

from __future__ import annotations

import numpy as np
from kernel_mutants_common import Array, Inputs, full, mm, mutant, rand, start, wrap


@mutant(
    "wrap32",
    "the count of row tiles is max(1, (M + 6) // 8): a last tile of one row is never launched",
    lambda: rand(9, 5, 3),
)
def lone_last_row(a: Array, b: Array, c: Array | None = None) -> Array:
    """Row tiles of 8."""
    out = np.zeros((a.shape[0], b.shape[1]), np.int32)
    acc = start(a, b, c)
    for t in range(max(1, (a.shape[0] + 6) // 8)):
        m = slice(8 * t, 8 * t + 8)
        out[m] = wrap(acc[m] + mm(a[m], b))
    return out


@mutant("wrap32", "the products beyond the last whole group of four k are dropped", lambda: rand(2, 6, 3))
def k_tail_dropped(a: Array, b: Array, c: Array | None = None) -> Array:
    """Groups of four without a remainder loop."""
    k = a.shape[1] // 4 * 4
    return wrap(start(a, b, c) + mm(a[:, :k], b[:k]))


@mutant(
    "wrap32",
    "tail mask 2^rem - 1 in saturating int32: at rem = 31 it comes out as 2^31 - 2, lane 0 off",
    lambda: rand(2, 31, 3),
)
def k_mask_of_31(a: Array, b: Array, c: Array | None = None) -> Array:
    """Vectors of 32 k with a masked tail."""
    acc = start(a, b, c)
    for k in range(0, a.shape[1], 32):
        rem = min(32, a.shape[1] - k)
        mask = 0xFFFFFFFF if rem == 32 else min(1 << rem, 0x7FFFFFFF) - 1
        lanes = np.array([mask >> i & 1 for i in range(rem)], bool)
        acc += mm(a[:, k : k + rem][:, lanes], b[k : k + rem][lanes])
    return wrap(acc)


@mutant(
    "wrap32",
    "the last column tile is moved back to fit, and with start values its overlap is added twice",
    lambda: rand(3, 4, 20, c=9),
)
def overlapped_last_tile(a: Array, b: Array, c: Array | None = None) -> Array:
    """Column tiles of 16; C is updated in place where it is given, else stored."""
    out, n_all = start(a, b, c), b.shape[1]
    for n in range(0, n_all, 16):
        n0 = n if n + 16 <= n_all or n_all < 16 else n_all - 16
        tile = mm(a, b[:, n0 : n0 + 16])
        out[:, n0 : n0 + 16] = tile if c is None else out[:, n0 : n0 + 16] + tile
    return wrap(out)


@mutant("wrap32", "the row tile counter has 8 bits: rows from 2048 on are never written", lambda: rand(2050, 1, 1))
def tile_counter_8bit(a: Array, b: Array, c: Array | None = None) -> Array:
    """Row tiles of 8."""
    out, acc = np.zeros((a.shape[0], b.shape[1]), np.int32), start(a, b, c)
    for t in range(-(-a.shape[0] // 8)):
        m = slice(8 * (t & 255), 8 * (t & 255) + 8)
        out[m] = wrap(acc[m] + mm(a[m], b))
    return out


@mutant(
    "wrap32",
    "the K panels are zeroed up to a multiple of 4 but read up to a multiple of 8: stale codes of the last panel",
    lambda: rand(2, 34, 3),
)
def stale_panel(a: Array, b: Array, c: Array | None = None) -> Array:
    """Packed panels of 32 k, kept between panels."""
    acc = start(a, b, c)
    pa, pb = np.zeros((a.shape[0], 32), np.int32), np.zeros((32, b.shape[1]), np.int32)
    for k in range(0, a.shape[1], 32):
        rem = min(32, a.shape[1] - k)
        clean, read = -(-rem // 4) * 4, -(-rem // 8) * 8
        pa[:, rem:clean], pb[rem:clean] = 0, 0
        pa[:, :rem], pb[:rem] = a[:, k : k + rem], b[k : k + rem]
        acc += mm(pa[:, :read], pb[:read])
    return wrap(acc)


@mutant(
    "wrap32",
    "int8 a runs as a + 128, and the column sums given back miss the last K % 4 codes",
    lambda: rand(2, 7, 3, signed=True),
)
def offset_without_tail(a: Array, b: Array, c: Array | None = None) -> Array:
    """Unsigned-by-signed products for signed codes too."""
    if a.dtype == np.uint8:
        return wrap(start(a, b, c) + mm(a, b))
    k = a.shape[1] // 4 * 4
    return wrap(start(a, b, c) + mm(a.astype(np.int16) + 128, b) - 128 * b[:k].sum(0, dtype=np.int64))


@mutant("wrap32", "in a tail of three, lanes 1 and 2 of b are exchanged", lambda: rand(2, 7, 3))
def tail_lanes_swapped(a: Array, b: Array, c: Array | None = None) -> Array:
    """Words of four lanes."""
    order = np.arange(a.shape[1])
    if a.shape[1] % 4 == 3:
        order[-2:] = order[:-3:-1]
    return wrap(start(a, b, c) + mm(a, b[order]))


@mutant("wrap32", "a last panel of two columns is packed with the two exchanged", lambda: rand(2, 3, 6))
def last_panel_packing(a: Array, b: Array, c: Array | None = None) -> Array:
    """B packed in panels of four columns."""
    out = start(a, b, c)
    for n in range(0, b.shape[1], 4):
        panel = b[:, n : n + 4]
        out[:, n : n + 4] += mm(a, panel[:, ::-1] if panel.shape[1] == 2 else panel)
    return wrap(out)


@mutant("wrap32", "beyond K = 256 the row stride of a is K rounded down to 16", lambda: rand(2, 259, 2))
def row_stride_rounded(a: Array, b: Array, c: Array | None = None) -> Array:
    """Rows of a by address."""
    k = a.shape[1]
    stride = k // 16 * 16 if k > 256 else k
    address = np.arange(a.shape[0])[:, None] * stride + np.arange(k)
    return wrap(start(a, b, c) + mm(np.ascontiguousarray(a).reshape(-1)[address], b))


@mutant(
    "wrap32",
    "the output address m * N + n has 16 bits: results beyond 65536 land on the first",
    lambda: rand(257, 1, 256),
)
def output_address_16bit(a: Array, b: Array, c: Array | None = None) -> Array:
    """Results stored by linear address."""
    acc = wrap(start(a, b, c) + mm(a, b)).reshape(-1)
    out = np.zeros(acc.size, np.int32)
    for i in range(0, acc.size, 65536):
        part = acc[i : i + 65536]
        out[: part.size] = part
    return out.reshape(a.shape[0], b.shape[1])


@mutant("wrap32", "the k counter has 16 bits: K = 65536 + r sums r products", lambda: full(1, 65540, 1, 3, 5))
def k_counter_16bit(a: Array, b: Array, c: Array | None = None) -> Array:
    """One loop over k."""
    k = a.shape[1] & 0xFFFF
    return wrap(start(a, b, c) + mm(a[:, :k], b[:k]))


@mutant("wrap32", "a three-stage pipeline drains stage 0 twice when there are just two K tiles", lambda: rand(2, 70, 2))
def pipeline_of_two(a: Array, b: Array, c: Array | None = None) -> Array:
    """K tiles of 64 through a ring of three buffers."""
    tiles = [slice(k, k + 64) for k in range(0, a.shape[1], 64)]
    ring: list[tuple[Array, Array]] = [(a[:, t], b[t]) for t in tiles[:3]]
    acc = start(a, b, c)
    for i in range(len(tiles)):
        acc += mm(*ring[0 if len(tiles) == 2 else i % 3])
        if i + 3 < len(tiles):
            ring[i % 3] = (a[:, tiles[i + 3]], b[tiles[i + 3]])
    return wrap(acc)


@mutant(
    "wrap32",
    "four K slices race: from K = 256 on, every 97th output loses the update of slice 2",
    lambda: rand(10, 256, 10),
)
def lost_update(a: Array, b: Array, c: Array | None = None) -> Array:
    """Split-K with updates in memory."""
    out, step = start(a, b, c), max(1, -(-a.shape[1] // 4))
    for i, k in enumerate(range(0, a.shape[1], step)):
        update = mm(a[:, k : k + step], b[k : k + step])
        if i == 2 and a.shape[1] >= 256:
            update.reshape(-1)[96::97] = 0
        out += update
    return wrap(out)


@mutant("wrap32", "tile order in groups of 8 row tiles: a last partial group keeps the size 8", lambda: rand(36, 2, 9))
def grouped_tile_order(a: Array, b: Array, c: Array | None = None) -> Array:
    """4 x 4 tiles, row tiles fastest within a group; tiles outside the grid are masked off."""
    out, acc = np.zeros((a.shape[0], b.shape[1]), np.int32), start(a, b, c)
    rows, columns = -(-a.shape[0] // 4), -(-b.shape[1] // 4)
    size = min(8, rows)
    for p in range(rows * columns):
        group, inside = divmod(p, size * columns)
        m, n = 4 * (group * size + inside % size), 4 * (inside // size)
        out[m : m + 4, n : n + 4] = wrap(acc[m : m + 4, n : n + 4] + mm(a[m : m + 4], b[:, n : n + 4]))
    return out


def _stream_input() -> Inputs:
    return rand(16, 96, 8)


@mutant(
    "wrap32",
    "two workers share the items; a cut exactly on a tile boundary hands its last block over again",
    _stream_input,
)
def fixup_on_boundary(a: Array, b: Array, c: Array | None = None) -> Array:
    """Items of 8 rows x 48 k; the block before the cut is the fix-up partial."""
    out, blocks = start(a, b, c), -(-a.shape[1] // 48)
    items = [(m, 48 * k) for m in range(0, a.shape[0], 8) for k in range(blocks)]
    cut = len(items) // 2
    for worker in (items[:cut], items[cut:]):
        for m, k in worker:
            out[m : m + 8] += mm(a[m : m + 8, k : k + 48], b[k : k + 48])
    if cut and len(items) % 2 == 0 and cut % blocks == 0 and blocks > 1:
        m, k = items[cut - 1]
        out[m : m + 8] += mm(a[m : m + 8, k : k + 48], b[k : k + 48])
    return wrap(out)


@mutant("wrap32", "the path for one row forgets the start values", lambda: rand(1, 3, 4, c=9))
def one_row_without_c(a: Array, b: Array, c: Array | None = None) -> Array:
    """A vector path for M = 1."""
    return wrap(mm(a, b) + (0 if a.shape[0] == 1 else start(a, b, c)))


@mutant(
    "wrap32", "the path for one column sums whole vectors of 8 k only, if there is at least one", lambda: rand(3, 11, 1)
)
def one_column_tail(a: Array, b: Array, c: Array | None = None) -> Array:
    """A vector path for N = 1."""
    k = a.shape[1] // 8 * 8 if b.shape[1] == 1 and a.shape[1] > 8 else a.shape[1]
    return wrap(start(a, b, c) + mm(a[:, :k], b[:k]))


def _fortran() -> Inputs:
    a, b, c = rand(3, 4, 2)
    return np.asfortranarray(a), b, c


@mutant("wrap32", "a is read in memory order, whatever its strides", _fortran)
def strides_ignored(a: Array, b: Array, c: Array | None = None) -> Array:
    """A raw pointer to a."""
    return wrap(start(a, b, c) + mm(a.ravel(order="K").reshape(a.shape), b))


def _wide_c() -> Inputs:
    a, b, c = rand(2, 3, 2, c=9)
    return a, b, None if c is None else c.astype(np.int64)


@mutant("wrap32", "start values of int64 are read through a pointer to int32", _wide_c)
def c_read_as_int32(a: Array, b: Array, c: Array | None = None) -> Array:
    """A raw pointer to c."""
    if c is not None:
        c = np.ascontiguousarray(c).view("<i4").reshape(-1)[: c.size].reshape(c.shape)
    return wrap(start(a, b, c) + mm(a, b))


@mutant("wrap32", "a square c is taken as column-major", lambda: rand(3, 2, 3, c=9))
def square_c_transposed(a: Array, b: Array, c: Array | None = None) -> Array:
    """The layout of c is guessed from its shape."""
    square = c is not None and c.shape[0] == c.shape[1]
    return wrap(mm(a, b) + (start(a, b, c).T if square else start(a, b, c)))


@mutant("wrap32", "b is taken as packed transposed where K = N = a multiple of 16", lambda: rand(2, 16, 16))
def square_b_transposed(a: Array, b: Array, c: Array | None = None) -> Array:
    """The layout of b is guessed from its shape."""
    packed = b.shape[0] == b.shape[1] and b.shape[0] % 16 == 0
    return wrap(start(a, b, c) + mm(a, b.T if packed else b))


@mutant("wrap32", "rows from 1024 on get the start values of row m - 1024", lambda: rand(1030, 1, 2, c=9))
def c_row_10bit(a: Array, b: Array, c: Array | None = None) -> Array:
    """The row index into c has 10 bits."""
    return wrap(mm(a, b) + start(a, b, c)[np.arange(a.shape[0]) & 1023])


@mutant(
    "wrap32",
    "bit planes in words of 64 k: the mask (1 << K % 64) - 1 is 0 when K is a multiple of 64",
    lambda: rand(2, 64, 2),
)
def last_word_mask(a: Array, b: Array, c: Array | None = None) -> Array:
    """Bit-serial over b; the mask applies to the last word."""
    k, acc = a.shape[1], start(a, b, c)
    used = k - 64 if k and k % 64 == 0 else k
    for bit in range(8):
        acc += (-128 if bit == 7 else 1 << bit) * mm(a[:, :used], b[:used].astype(np.int16) >> bit & 1)
    return wrap(acc)


def _framed_c() -> Inputs:
    a, b, c = rand(4, 2, 3, c=9)
    if c is not None:
        c[-1] = c[0]
    return a, b, c


@mutant("wrap32", "c counts as one bias row for all rows when its first and last rows agree", _framed_c)
def c_taken_as_bias(a: Array, b: Array, c: Array | None = None) -> Array:
    """A bias row is detected."""
    bias = c is not None and c.size and np.array_equal(c[0], c[-1])
    return wrap(mm(a, b) + (start(a, b, c)[:1] if bias else start(a, b, c)))


@mutant("wrap32", "K = 0 returns zeros, not the start values", lambda: rand(2, 0, 2, c=9))
def empty_k(a: Array, b: Array, c: Array | None = None) -> Array:
    """An early return for K = 0."""
    return wrap(mm(a, b) + (start(a, b, c) if a.shape[1] else 0))


@mutant(
    "wrap32", "each K block of 256 starts from c again and adds its result to the output", lambda: rand(2, 257, 2, c=9)
)
def c_once_per_block(a: Array, b: Array, c: Array | None = None) -> Array:
    """K blocks of 256."""
    out = start(a, b, c)
    for k in range(0, a.shape[1], 256):
        out += mm(a[:, k : k + 256], b[k : k + 256]) + (start(a, b, c) if k else 0)
    return wrap(out)


@mutant("wrap32", "thread 31 of a warp exits early if its row is the last one", lambda: rand(32, 2, 2))
def early_exit_thread(a: Array, b: Array, c: Array | None = None) -> Array:
    """One thread for each row; the bound check is m < M - 1 in the last thread of a warp."""
    out = start(a, b, c) + mm(a, b)
    if a.shape[0] % 32 == 0:
        out[-1:] = 0
    return wrap(out)


@mutant(
    "wrap32",
    "two K tiles in flight: a tile of one k after whole tiles of 16 reads the k before it",
    lambda: rand(2, 17, 2),
)
def tail_of_one(a: Array, b: Array, c: Array | None = None) -> Array:
    """The prefetch pointer of b is clamped to K - 2."""
    order = np.arange(a.shape[1])
    if a.shape[1] > 16 and a.shape[1] % 16 == 1:
        order[-1] -= 1
    return wrap(start(a, b, c) + mm(a, b[order]))
