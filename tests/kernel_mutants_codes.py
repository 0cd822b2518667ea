"""`wrap32` kernels with one bug in the arithmetic, or one that only some codes bring out."""

from __future__ import annotations

import numpy as np
from kernel_mutants_common import Array, Inputs, full, line, mm, mutant, narrow, rand, runs, start, wrap


@mutant("wrap32", "uint8 codes of a are loaded with sign extension", lambda: full(1, 1, 1, 200, 3))
def a_sign_extended(a: Array, b: Array, c: Array | None = None) -> Array:
    """Signed loads."""
    return wrap(start(a, b, c) + mm(a.astype(np.int8), b))


@mutant(
    "wrap32",
    "int8 a as |a| times b with the sign of a: -(-128) stays -128",
    lambda: full(1, 1, 1, -3, -128, signed=True),
)
def sign_moved_to_b(a: Array, b: Array, c: Array | None = None) -> Array:
    """The trick that feeds signed codes to an unsigned-by-signed multiplier."""
    magnitude = np.abs(a.astype(np.int16))
    return wrap(start(a, b, c) + mm(magnitude * (a >= 0), b) + mm(magnitude * (a < 0), np.negative(b)))


@mutant("wrap32", "pairs of products saturate to int16 before they are widened", lambda: full(1, 2, 1, 255, 127))
def pairs_saturate(a: Array, b: Array, c: Array | None = None) -> Array:
    """Pairs of k through 16 bits."""
    acc = start(a, b, c)
    for s in runs(a, b, 2):
        acc += np.clip(s, -32768, 32767)
    return wrap(acc)


@mutant(
    "wrap32",
    "int8: two products share a 16-bit register; (-128)(-128) twice wraps it",
    lambda: full(1, 2, 1, -128, -128, signed=True),
)
def pairs_wrap(a: Array, b: Array, c: Array | None = None) -> Array:
    """Multiply long, multiply-accumulate long, then widen; uint8 codes take the wide path."""
    if a.dtype == np.uint8:
        return wrap(start(a, b, c) + mm(a, b))
    acc = start(a, b, c)
    for s in runs(a, b, 2):
        acc += narrow(s, 16)
    return wrap(acc)


@mutant("wrap32", "one entry of the table of products, 200 x -77, is 16 too small", lambda: full(1, 1, 1, 200, -77))
def one_table_entry(a: Array, b: Array, c: Array | None = None) -> Array:
    """Products from a table."""
    return wrap(start(a, b, c) + mm(a, b) - 16 * mm(a.astype(np.uint8) == 200, b == -77))


@mutant("wrap32", "the table of quarter squares ends at 382: 255 x -128 needs 383", lambda: full(1, 1, 1, 255, -128))
def quarter_squares(a: Array, b: Array, c: Array | None = None) -> Array:
    """a b = q(a + b) - q(a - b) with q(x) = x^2 // 4."""
    table = np.arange(383, dtype=np.int64) ** 2 // 4
    acc, x, y = start(a, b, c), a.astype(np.int32), b.astype(np.int32)
    for k in range(a.shape[1]):
        plus, minus = np.abs(x[:, k, None] + y[k]), np.abs(x[:, k, None] - y[k])
        acc += table[np.minimum(plus, 382)] - table[np.minimum(minus, 382)]
    return wrap(acc)


def _late_plane() -> Inputs:
    return line([1] * 64 + [64])


@mutant("wrap32", "a bit plane of b is skipped when its first 64 rows are empty", _late_plane)
def plane_skipped(a: Array, b: Array, c: Array | None = None) -> Array:
    """Bit planes; the test for an empty plane looks at the first word."""
    acc = start(a, b, c)
    for bit in range(8):
        plane = b.astype(np.int16) >> bit & 1
        if plane[:64].any():
            acc += (-128 if bit == 7 else 1 << bit) * mm(a, plane)
    return wrap(acc)


def _zero_sum() -> Inputs:
    a, b, _ = rand(1, 8, 2, signed=True)
    a[0] = [5, -5, 1, 2, -3, 100, -60, -40]
    return a, b, None


@mutant("wrap32", "a run of 8 codes of a is skipped as zero when its sum is 0", _zero_sum)
def zero_sum_skipped(a: Array, b: Array, c: Array | None = None) -> Array:
    """Zero blocks are skipped."""
    acc = start(a, b, c)
    for k in range(0, a.shape[1], 8):
        block = a[:, k : k + 8].astype(np.int32)
        acc += mm(block * (block.sum(1, keepdims=True) != 0), b[k : k + 8])
    return wrap(acc)


@mutant("wrap32", "a run of 4 codes of b is skipped as zero when its maximum is 0", lambda: line([0, -1, -2, -3]))
def zero_max_skipped(a: Array, b: Array, c: Array | None = None) -> Array:
    """Zero blocks are skipped."""
    acc = start(a, b, c)
    for k in range(0, a.shape[1], 4):
        block = b[k : k + 4].astype(np.int32)
        acc += mm(a[:, k : k + 4], block * (block.max(0) != 0))
    return wrap(acc)


@mutant(
    "wrap32",
    "a constant row takes a[m, 0] * colsum(b), and the column sums have 16 bits",
    lambda: full(1, 300, 1, 1, 127),
)
def constant_row(a: Array, b: Array, c: Array | None = None) -> Array:
    """A shortcut for constant rows."""
    acc = start(a, b, c) + mm(a, b)
    if a.shape[1]:
        rows = (a == a[:, :1]).all(1)
        shortcut = np.multiply.outer(a[:, 0].astype(np.int64), narrow(b.sum(0, dtype=np.int64), 16))
        acc[rows] = (start(a, b, c) + shortcut)[rows]
    return wrap(acc)


def _permuted_rows() -> Inputs:
    a, b, _ = rand(2, 5, 2)
    a[1] = a[0, ::-1]
    return a, b, None


@mutant("wrap32", "a row with the sum and sum of squares of the row before reuses its products", _permuted_rows)
def row_reused(a: Array, b: Array, c: Array | None = None) -> Array:
    """Equal rows are found by a checksum."""
    out, wide = mm(a, b), a.astype(np.int64)
    keys = list(zip(wide.sum(1).tolist(), (wide * wide).sum(1).tolist(), strict=True))
    for m in range(1, len(keys)):
        if keys[m] == keys[m - 1]:
            out[m] = out[m - 1]
    return wrap(out + start(a, b, c))


def _odd_and_large() -> Inputs:
    a, b, c = full(1, 1023, 1, 255, 127)
    b[0], a[0, 0] = 1, 1
    return a, b, c


@mutant("wrap32", "float32 chunks of 1024 k: sums beyond 2^24 round", _odd_and_large)
def float32_chunk_too_long(a: Array, b: Array, c: Array | None = None) -> Array:
    """Each chunk is rounded to float32 once, as a wide float accumulator would at its end."""
    acc = start(a, b, c)
    for s in runs(a, b, 1024):
        acc += s.astype(np.float32).astype(np.int64)
    return wrap(acc)


@mutant("wrap32", "the 32-bit result saturates", lambda: full(1, 1, 1, 1, 1, c=2**31 - 1))
def saturates_at_32(a: Array, b: Array, c: Array | None = None) -> Array:
    """A saturating last addition."""
    return np.clip(start(a, b, c) + mm(a, b), -(2**31), 2**31 - 1).astype(np.int32)


@mutant("wrap32", "start values pass through float32", lambda: full(1, 1, 1, 1, 1, c=2**24 + 1))
def c_through_float32(a: Array, b: Array, c: Array | None = None) -> Array:
    """A bias port of float32."""
    return wrap(mm(a, b) + start(a, b, c).astype(np.float32).astype(np.int64))


@mutant(
    "wrap32",
    "low halves have three guard bits: right for 8 additions, but the remainder is a ninth",
    lambda: full(1, 16, 1, 1, -1),
)
def guard_bits(a: Array, b: Array, c: Array | None = None) -> Array:
    """16-bit halves; the carry goes up once in 8 products."""
    bits = wrap(start(a, b, c)).astype(np.int64) & 0xFFFFFFFF
    low, high = bits & 0xFFFF, bits >> 16
    for k in range(0, a.shape[1], 8):
        for i in range(k, min(k + 8, a.shape[1])):
            item = np.multiply.outer(a[:, i].astype(np.int64), b[i].astype(np.int64))
            low = low + (item & 0xFFFF) & 0x7FFFF
            high = high + (item >> 16)
        high, low = high + (low >> 16), low & 0xFFFF
    return wrap((high << 16) + low)


@mutant(
    "wrap32",
    "a 24-bit register is emptied every 260 products; 257 of 255 x -128 fill it",
    lambda: full(1, 260, 1, 255, -128),
)
def spill_24bit(a: Array, b: Array, c: Array | None = None) -> Array:
    """A narrow register with spills."""
    acc = start(a, b, c)
    for s in runs(a, b, 260):
        acc += narrow(s, 24)
    return wrap(acc)


@mutant(
    "wrap32", "high nibble products in 16 bits, widened every 18 k: 17 is the limit", lambda: full(1, 18, 1, 255, 127)
)
def spill_nibbles(a: Array, b: Array, c: Array | None = None) -> Array:
    """Nibbles of a against b."""
    acc = start(a, b, c)
    high, low = a.astype(np.int16) >> 4, a.astype(np.int16) & 15
    for k in range(0, a.shape[1], 18):
        k1 = slice(k, k + 18)
        acc += 16 * narrow(mm(high[:, k1], b[k1]), 16) + mm(low[:, k1], b[k1])
    return wrap(acc)


@mutant("wrap32", "the sums of a for each code of b have 16 bits", lambda: full(1, 258, 1, 255, 2))
def bucket_16bit(a: Array, b: Array, c: Array | None = None) -> Array:
    """v times the sum of the a whose partner is v."""
    acc = start(a, b, c)
    for v in np.unique(b):
        s = mm(a, b == v)
        acc += int(v) * (s & 0xFFFF if a.dtype == np.uint8 else narrow(s, 16))
    return wrap(acc)


@mutant("wrap32", "Strassen, used from 64 x 64 x 64 on, takes its differences of b in int8", lambda: rand(64, 64, 64))
def strassen_int8(a: Array, b: Array, c: Array | None = None) -> Array:
    """One level of Strassen for large even sizes."""
    i, j, h = a.shape[0] // 2, a.shape[1] // 2, b.shape[1] // 2
    if min(i, j, h) < 32 or a.shape[0] % 2 or a.shape[1] % 2 or b.shape[1] % 2:
        return wrap(start(a, b, c) + mm(a, b))
    x, y = a.astype(np.int64), b.astype(np.int64)
    a11, a12, a21, a22 = x[:i, :j], x[:i, j:], x[i:, :j], x[i:, j:]
    b11, b12, b21, b22 = y[:j, :h], y[:j, h:], y[j:, :h], y[j:, h:]
    p1, p2, p3 = mm(a11 + a22, b11 + b22), mm(a21 + a22, b11), mm(a11, narrow(b12 - b22, 8))
    p4, p5 = mm(a22, narrow(b21 - b11, 8)), mm(a11 + a12, b22)
    p6, p7 = mm(a21 - a11, b11 + b12), mm(a12 - a22, b21 + b22)
    return wrap(np.block([[p1 + p4 - p5 + p7, p3 + p5], [p2 + p4, p1 - p2 + p3 + p6]]) + start(a, b, c))


@mutant(
    "wrap32",
    "uint8 codes run as a - 128; 128 * colsum(b) is given back from 16-bit sums",
    lambda: full(1, 257, 1, 1, -128),
)
def offset_sum_16bit(a: Array, b: Array, c: Array | None = None) -> Array:
    """Signed products for unsigned codes."""
    if a.dtype == np.int8:
        return wrap(start(a, b, c) + mm(a, b))
    given_back = 128 * narrow(b.sum(0, dtype=np.int64), 16)
    return wrap(start(a, b, c) + mm(a.astype(np.int16) - 128, b) + given_back)


@mutant("wrap32", "residues modulo 255, 256 and 257 hold 24 bits: larger sums alias", lambda: full(1, 300, 1, 255, 127))
def residues(a: Array, b: Array, c: Array | None = None) -> Array:
    """A residue number system, with the residue joined by the Chinese remainder theorem."""
    product, span = mm(a, b), 255 * 256 * 257
    total = np.zeros_like(product)
    for p in (255, 256, 257):
        total += (product % p) * (span // p * pow(span // p, -1, p))
    total %= span
    return wrap(start(a, b, c) + np.where(total > span // 2, total - span, total))


@mutant("wrap32", "an all-zero row of a stores 0, not its start values", lambda: full(1, 2, 1, 0, 5, c=7))
def zero_row(a: Array, b: Array, c: Array | None = None) -> Array:
    """Rows of zeros are skipped."""
    return wrap((start(a, b, c) + mm(a, b)) * (a.any(1, keepdims=True) if a.shape[1] else 1))


def _gap() -> Inputs:
    a, b, _ = rand(1, 300, 1)
    b[1:280] = 0
    b[0], b[280:] = 1, 1
    return a, b, None


@mutant("wrap32", "zeros of b are skipped with 8-bit distances: after 256 zeros the column falls behind", _gap)
def zero_run_8bit(a: Array, b: Array, c: Array | None = None) -> Array:
    """Columns of b as (distance, code)."""
    acc = start(a, b, c)
    for n in range(b.shape[1]):
        rows = np.flatnonzero(b[:, n])
        seen = np.cumsum(np.diff(rows, prepend=-1) & 255) - 1
        acc[:, n] += mm(a[:, seen], b[rows, n][:, None])[:, 0]
    return wrap(acc)


@mutant(
    "wrap32",
    "Booth digits of b: -2 a as ~(a << 1) + 1, and the + 1 is gated off when a is 0",
    lambda: full(1, 1, 1, 0, -2),
)
def booth_zero(a: Array, b: Array, c: Array | None = None) -> Array:
    """Radix-4 Booth recoding of b."""
    acc, y = start(a, b, c), b.astype(np.int16)
    for i in range(4):
        window = (y << 1) >> (2 * i) & 7
        digit = np.array([0, 1, 1, 2, -2, -1, -1, 0])[window]
        acc += (mm(a, digit) - mm(a == 0, digit == -2)) << (2 * i)
    return wrap(acc)


@mutant("wrap32", "b is taken to be symmetric: -128 is read as -127", lambda: full(1, 1, 1, 1, -128))
def b_symmetric(a: Array, b: Array, c: Array | None = None) -> Array:
    """Codes of b in -127..127."""
    return wrap(start(a, b, c) + mm(a, np.maximum(b, -127)))


@mutant(
    "wrap32", "when K is a multiple of 64 the last code of a column is zero-extended", lambda: full(1, 64, 1, 1, -1)
)
def last_lane_unsigned(a: Array, b: Array, c: Array | None = None) -> Array:
    """The top lane of the last word is taken out by a logical shift."""
    wide = b.astype(np.int16)
    if a.shape[1] and a.shape[1] % 64 == 0:
        wide[-1] &= 255
    return wrap(start(a, b, c) + mm(a, wide))


@mutant(
    "wrap32", "adding c: a carry that has run through four nibbles of ones is lost", lambda: full(1, 1, 1, 1, -3, c=5)
)
def carry_skip(a: Array, b: Array, c: Array | None = None) -> Array:
    """The last addition is a carry-skip adder of eight nibbles."""
    x, y = wrap(mm(a, b)).astype(np.int64) & 0xFFFFFFFF, start(a, b, c) & 0xFFFFFFFF
    total, carry, run = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x)
    for i in range(0, 32, 4):
        nibble = (x >> i & 15) + (y >> i & 15)
        run = np.where((nibble == 15) & (carry == 1), run + 1, 0)
        total |= (nibble + carry & 15) << i
        carry = (nibble + carry >> 4) & (run < 4)
    return wrap(total)


@mutant("wrap32", "a result of -2^31 counts as not written and becomes 0", lambda: full(1, 1, 1, 1, -1, c=1 - 2**31))
def int_min_sentinel(a: Array, b: Array, c: Array | None = None) -> Array:
    """The output is first filled with the sentinel -2^31."""
    out = wrap(start(a, b, c) + mm(a, b))
    return np.where(out == np.int32(-(2**31)), np.int32(0), out)


@mutant(
    "wrap32",
    "equal bytes go to a squarer, also where one is signed and the other is not",
    lambda: full(1, 1, 1, 200, -56),
)
def squarer(a: Array, b: Array, c: Array | None = None) -> Array:
    """a * a where the bytes of a and b agree; only the first 4 k have the comparator."""
    acc = start(a, b, c) + mm(a, b)
    for k in range(min(4, a.shape[1])):
        x, y = a[:, k, None].astype(np.int64), b[k].astype(np.int64)
        acc += np.where((x & 255) == (y & 255), x * x - x * y, 0)
    return wrap(acc)


@mutant(
    "wrap32",
    "b counts as 2:4 sparse if its first 16 rows are: later groups keep their first two nonzeros",
    lambda: line([1, 0, 0, 2] * 4 + [1, 2, 3, 0]),
)
def sparse_by_probe(a: Array, b: Array, c: Array | None = None) -> Array:
    """Structured sparsity, detected on a probe."""
    k, n = b.shape
    wide = np.pad(b, ((0, -k % 4), (0, 0))).astype(np.int32).reshape(-(-k // 4), 4, n)
    kept = (wide != 0).cumsum(1) <= 2
    if k >= 16 and bool((kept | (wide == 0))[:4].all()):
        wide = wide * kept
    return wrap(start(a, b, c) + mm(a, wide.reshape(-(-k // 4) * 4, n)[:k]))


def _small_first_row() -> Inputs:
    a, b, _ = rand(2, 4, 2)
    a[0], b[0] = 1, 1
    return a, b // 32, None


@mutant("wrap32", "a takes the 4-bit path when its first row fits 4 bits", _small_first_row)
def narrow_by_first_row(a: Array, b: Array, c: Array | None = None) -> Array:
    """A path for small codes, chosen from row 0."""
    if a.size and a[0].max() < 8 and a[0].min() >= 0:
        a = a & 15
    return wrap(start(a, b, c) + mm(a, b))
