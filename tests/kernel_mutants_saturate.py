"""`sat20` kernels with one bug: where, when, how far and in which order they saturate."""

from __future__ import annotations

import numpy as np
from kernel_mutants_common import (
    HI20,
    LO20,
    Array,
    Inputs,
    clip20,
    full,
    line,
    mm,
    mutant,
    narrow,
    rand,
    runs,
    sat20,
    scan20,
    start,
)

UP, DOWN = [127] * 4, [-128] * 4  # with a = 255: groups of 129540 and -130560; five of one kind pass the rail


@mutant("sat20", "saturates once, at the end", lambda: line(UP * 5 + DOWN))
def saturates_at_the_end(a: Array, b: Array, c: Array | None = None) -> Array:
    """A wide accumulator, clipped when it is stored."""
    return clip20(start(a, b, c) + mm(a, b)).astype(np.int32)


@mutant(
    "sat20", "saturates after each product, not after each group of four", lambda: line(UP * 4 + [127, 127, -128, -128])
)
def saturates_each_product(a: Array, b: Array, c: Array | None = None) -> Array:
    """No adder tree."""
    acc = start(a, b, c)
    for s in runs(a, b, 1):
        acc = clip20(acc + s)
    return acc.astype(np.int32)


@mutant("sat20", "groups of eight products are exact", lambda: line(UP * 4 + UP + DOWN))
def groups_of_eight(a: Array, b: Array, c: Array | None = None) -> Array:
    """An adder tree of eight."""
    acc = start(a, b, c)
    for s in runs(a, b, 8):
        acc = clip20(acc + s)
    return acc.astype(np.int32)


@mutant("sat20", "the 20-bit register wraps", lambda: line(UP * 5))
def wraps_at_20(a: Array, b: Array, c: Array | None = None) -> Array:
    """Two's complement."""
    return narrow(start(a, b, c) + mm(a, b), 20).astype(np.int32)


@mutant("sat20", "only the upper rail saturates, the lower one wraps", lambda: line(DOWN * 5))
def lower_rail_wraps(a: Array, b: Array, c: Array | None = None) -> Array:
    """One comparator."""
    acc = start(a, b, c)
    for s in runs(a, b):
        acc = narrow(np.minimum(acc + s, HI20), 20)
    return acc.astype(np.int32)


@mutant("sat20", "the lower rail is -(2^19 - 1)", lambda: line(DOWN * 5))
def symmetric_rails(a: Array, b: Array, c: Array | None = None) -> Array:
    """The most negative code is unused; a start value there is taken as it is."""
    acc = start(a, b, c)
    for s in runs(a, b):
        acc = np.where(acc + s < LO20, -HI20, np.minimum(acc + s, HI20))
    return acc.astype(np.int32)


@mutant(
    "sat20", "a sum that meets the lower rail exactly becomes -(2^19 - 1)", lambda: full(1, 1, 1, 1, -1, c=LO20 + 1)
)
def exact_hit(a: Array, b: Array, c: Array | None = None) -> Array:
    """A comparator with <= and the wrong constant, but only for equality."""
    acc = start(a, b, c)
    for s in runs(a, b):
        acc = np.where((acc + s == LO20) & (s != 0), LO20 + 1, clip20(acc + s))
    return acc.astype(np.int32)


@mutant("sat20", "the register has 21 bits until the result is stored", lambda: line(UP * 6 + DOWN * 2))
def one_bit_wider(a: Array, b: Array, c: Array | None = None) -> Array:
    """Clip at 21 bits, then at 20."""
    acc = start(a, b, c)
    for s in runs(a, b):
        acc = np.clip(acc + s, 2 * LO20, 2 * HI20 + 1)
    return clip20(acc).astype(np.int32)


@mutant(
    "sat20",
    "the rails are compared in their upper 8 bits: within 4096 of the upper rail counts as beyond",
    lambda: full(1, 1, 1, 1, 1, c=HI20 - 2000),
)
def coarse_comparator(a: Array, b: Array, c: Array | None = None) -> Array:
    """A short comparator."""
    acc = start(a, b, c)
    for s in runs(a, b):
        acc = clip20(acc + s)
        acc[acc >> 12 == HI20 >> 12] = HI20
    return acc.astype(np.int32)


@mutant("sat20", "the overflow flag is sticky: a register once on a rail stays there", lambda: line(UP * 5 + DOWN))
def sticky_flag(a: Array, b: Array, c: Array | None = None) -> Array:
    """The flag is never cleared."""
    acc = start(a, b, c)
    stuck = np.zeros(acc.shape, bool)
    for s in runs(a, b):
        exact = acc + s
        acc = np.where(stuck, acc, clip20(exact))
        stuck |= (exact > HI20) | (exact < LO20)
    return acc.astype(np.int32)


def _two_rails() -> Inputs:
    a = np.full((2, 20), 127, np.int8)
    a[1] = -128
    return np.repeat(a, 2, 1), np.full((40, 1), 127, np.int8), None


@mutant(
    "sat20",
    "the overflow flag of one row is shared by its neighbour: odd rows clip with the rail of the row before",
    _two_rails,
)
def shared_flag(a: Array, b: Array, c: Array | None = None) -> Array:
    """Two rows in one SIMD word; where both overflow, the direction is taken from the even row."""
    acc = start(a, b, c)
    for s in runs(a, b):
        exact = acc + s
        acc = clip20(exact)
        odd = exact.shape[0] // 2 * 2
        over = (acc != exact)[:odd]
        both = over[0::2] & over[1::2]
        acc[1:odd:2] = np.where(both, acc[0:odd:2], acc[1:odd:2])
    return acc.astype(np.int32)


@mutant(
    "sat20",
    "K is split in two halves that saturate apart and are then added with saturation",
    lambda: line(UP * 5 + DOWN * 5),
)
def split_in_two(a: Array, b: Array, c: Array | None = None) -> Array:
    """Split-K at a group boundary."""
    k = -(-a.shape[1] // 8) * 4
    first = scan20(a[:, :k], b[:k], start(a, b, c))
    return clip20(first + scan20(a[:, k:], b[k:], start(a, b, None))).astype(np.int32)


@mutant("sat20", "from 64 rows on, four K slices saturate apart", lambda: line((UP * 5 + DOWN * 5) * 2, m=64))
def split_when_tall(a: Array, b: Array, c: Array | None = None) -> Array:
    """A heuristic chooses split-K."""
    if a.shape[0] < 64:
        return sat20(a, b, c)
    acc, step = start(a, b, c), max(4, -(-a.shape[1] // 16) * 4)
    for k in range(0, a.shape[1], step):
        acc = clip20(acc + scan20(a[:, k : k + step], b[k : k + step], start(a, b, None)))
    return acc.astype(np.int32)


@mutant("sat20", "four partial registers take the groups in turn and are added at the end", lambda: line(UP * 5 + DOWN))
def four_registers(a: Array, b: Array, c: Array | None = None) -> Array:
    """Instruction-level parallelism."""
    acc = [start(a, b, c), *(start(a, b, None) for _ in range(3))]
    for i, s in enumerate(runs(a, b)):
        acc[i % 4] = clip20(acc[i % 4] + s)
    return clip20(clip20(acc[0] + acc[1]) + clip20(acc[2] + acc[3])).astype(np.int32)


@mutant("sat20", "the groups run from the last to the first", lambda: line(UP * 5 + DOWN))
def groups_backwards(a: Array, b: Array, c: Array | None = None) -> Array:
    """A loop that counts down."""
    acc = start(a, b, c)
    for s in reversed(list(runs(a, b))):
        acc = clip20(acc + s)
    return acc.astype(np.int32)


@mutant("sat20", "a short last group is added first", lambda: line(UP * 5 + [-128]))
def short_group_first(a: Array, b: Array, c: Array | None = None) -> Array:
    """The remainder is peeled off at the front."""
    k = a.shape[1] // 4 * 4
    acc = scan20(a[:, k:], b[k:], start(a, b, c))
    return scan20(a[:, :k], b[:k], acc).astype(np.int32)


@mutant("sat20", "a group takes k, k + K/4, k + K/2, k + 3K/4 (K a multiple of 4)", lambda: line(UP * 5 + DOWN * 5))
def strided_groups(a: Array, b: Array, c: Array | None = None) -> Array:
    """Four streams of k."""
    k = a.shape[1]
    if k % 4:
        return sat20(a, b, c)
    order = np.arange(k).reshape(4, -1).T.reshape(-1)
    return sat20(a[:, order], b[order], c)


def _long_line() -> Inputs:
    return line([0] * 232 + UP * 4 + [127, 127, -128, -128])


@mutant("sat20", "K blocks of 250: a block boundary cuts the groups", _long_line)
def blocks_cut_groups(a: Array, b: Array, c: Array | None = None) -> Array:
    """K blocks, chained, but not a multiple of four."""
    acc = start(a, b, c)
    for k in range(0, a.shape[1], 250):
        acc = scan20(a[:, k : k + 250], b[k : k + 250], acc)
    return acc.astype(np.int32)


@mutant(
    "sat20",
    "each row starts its K loop m groups later and comes round, against bank conflicts",
    lambda: line(UP * 5 + DOWN, m=6),
)
def rotated_start(a: Array, b: Array, c: Array | None = None) -> Array:
    """Row m starts at group m."""
    items, acc = list(runs(a, b)), start(a, b, c)
    for i in range(len(items)):
        for r in range(min(len(items), a.shape[0])):
            rows = slice(r, None, len(items))
            acc[rows] = clip20(acc[rows] + items[(i + r) % len(items)][rows])
    return acc.astype(np.int32)


@mutant("sat20", "odd columns take groups 0 and 1 in the other order", lambda: line(UP + DOWN, n=2, c=HI20))
def odd_columns_swapped(a: Array, b: Array, c: Array | None = None) -> Array:
    """The first two groups of a column pair are loaded crosswise."""
    out = sat20(a, b, c)
    if a.shape[1] >= 8:
        order = np.r_[4:8, 0:4, 8 : a.shape[1]]
        odd = None if c is None else c[:, 1::2]
        out[:, 1::2] = sat20(a[:, order], b[order][:, 1::2], odd)
    return out


@mutant("sat20", "start values are added at the end", lambda: line(UP + DOWN, c=HI20))
def c_at_the_end(a: Array, b: Array, c: Array | None = None) -> Array:
    """The register starts at 0."""
    return clip20(scan20(a, b, start(a, b, None)) + start(a, b, c)).astype(np.int32)


@mutant("sat20", "start values pass a port of 19 bits that saturates", lambda: full(1, 1, 1, 0, 0, c=300000))
def c_port_19bit(a: Array, b: Array, c: Array | None = None) -> Array:
    """A narrow port for c."""
    return scan20(a, b, np.clip(start(a, b, c), -(1 << 18), (1 << 18) - 1)).astype(np.int32)


@mutant(
    "sat20",
    "the sum of four has 17 bits and wraps: enough for int8 a, but for four times (-128)(-128)",
    lambda: full(1, 4, 1, -128, -128, signed=True),
)
def tree_17bit(a: Array, b: Array, c: Array | None = None) -> Array:
    """The tree of signed codes is a bit narrower than that of unsigned ones."""
    acc = start(a, b, c)
    for s in runs(a, b):
        acc = clip20(acc + narrow(s, 17 if a.dtype == np.int8 else 18))
    return acc.astype(np.int32)


@mutant(
    "sat20", "the sum of four saturates at 18 bits less 2048, its rounding headroom", lambda: full(1, 4, 1, 255, -128)
)
def tree_headroom(a: Array, b: Array, c: Array | None = None) -> Array:
    """A rail of the tree that only the largest sums meet."""
    acc = start(a, b, c)
    for s in runs(a, b):
        acc = clip20(acc + np.clip(s, 2048 - (1 << 17), (1 << 17) - 2048))
    return acc.astype(np.int32)


@mutant(
    "sat20",
    "the fast path is taken wherever the exact result fits: passing beyond a rail goes unseen",
    lambda: line(UP * 5 + DOWN),
)
def fast_path_by_result(a: Array, b: Array, c: Array | None = None) -> Array:
    """A plain product where nothing seems to saturate."""
    exact = start(a, b, c) + mm(a, b)
    return np.where(exact == clip20(exact), exact, scan20(a, b, start(a, b, c))).astype(np.int32)


@mutant("sat20", "the fast path's bound max|a| max|b| K forgets the start values", lambda: line(UP + DOWN, c=HI20))
def fast_path_without_c(a: Array, b: Array, c: Array | None = None) -> Array:
    """A plain product for a whole call that seems safe."""
    if a.size == 0 or b.size == 0:
        return sat20(a, b, c)
    bound = int(np.abs(a.astype(np.int32)).max()) * int(np.abs(b.astype(np.int32)).max()) * a.shape[1]
    return clip20(start(a, b, c) + mm(a, b)).astype(np.int32) if bound <= HI20 else sat20(a, b, c)


@mutant("sat20", "the rails are looked at after every other group only", lambda: line(UP * 5 + DOWN))
def every_other_group(a: Array, b: Array, c: Array | None = None) -> Array:
    """The loop is unrolled by two; one clip was lost, the one of even steps."""
    acc = start(a, b, c)
    for i, s in enumerate(runs(a, b)):
        acc = clip20(acc + s) if i % 2 or 4 * i + 4 >= a.shape[1] else acc + s
    return acc.astype(np.int32)


@mutant(
    "sat20",
    "slices as clipped maps: the upper bound moves with min only, never up to the lower rail",
    lambda: line(DOWN * 12 + UP),
)
def clip_maps_one_sided(a: Array, b: Array, c: Array | None = None) -> Array:
    """Each slice of 80 k is composed into r -> clip(r + t, lo, hi)."""
    acc = start(a, b, c)
    for k in range(0, a.shape[1], 80):
        t = np.zeros_like(acc)
        lo, hi = np.full_like(t, -(1 << 40)), np.full_like(t, 1 << 40)
        for s in runs(a[:, k : k + 80], b[k : k + 80]):
            t, lo, hi = t + s, clip20(lo + s), np.minimum(hi + s, HI20)
        acc = np.minimum(np.maximum(acc + t, lo), hi)
    return clip20(acc).astype(np.int32)


@mutant("sat20", "a short last group is added without saturation, by a wrapping add", lambda: line(UP * 4 + [127]))
def short_group_wraps(a: Array, b: Array, c: Array | None = None) -> Array:
    """The remainder loop uses the plain add."""
    k = a.shape[1] // 4 * 4
    return narrow(scan20(a[:, :k], b[:k], start(a, b, c)) + mm(a[:, k:], b[k:]), 20).astype(np.int32)


@mutant("sat20", "a short last group joins the group before it", lambda: line(UP * 4 + [127] * 4 + [-128] * 2))
def short_group_joins(a: Array, b: Array, c: Array | None = None) -> Array:
    """The last tree takes up to seven products."""
    k = max(0, a.shape[1] // 4 * 4 - (4 if a.shape[1] % 4 else 0))
    acc = scan20(a[:, :k], b[:k], start(a, b, c))
    return clip20(acc + mm(a[:, k:], b[k:])).astype(np.int32)


@mutant("sat20", "when all outputs of a row sit on rails, the row leaves its K loop", lambda: line(UP * 5 + DOWN))
def early_exit_on_rails(a: Array, b: Array, c: Array | None = None) -> Array:
    """An early exit."""
    acc = start(a, b, c)
    for s in runs(a, b):
        done = ((acc == HI20) | (acc == LO20)).all(1, keepdims=True)
        acc = np.where(done, acc, clip20(acc + s))
    return acc.astype(np.int32)


@mutant("sat20", "between K blocks of 256 the register is saved without its low 4 bits", lambda: rand(2, 260, 2))
def spill_without_low_bits(a: Array, b: Array, c: Array | None = None) -> Array:
    """16-bit spill slots."""
    acc = start(a, b, c)
    for k in range(0, a.shape[1], 256):
        acc = scan20(a[:, k : k + 256], b[k : k + 256], acc >> 4 << 4 if k else acc)
    return acc.astype(np.int32)


@mutant("sat20", "a constant row takes clip(c + a[m, 0] * colsum(b)) at once", lambda: line(UP * 5 + DOWN))
def constant_row_at_once(a: Array, b: Array, c: Array | None = None) -> Array:
    """A shortcut for constant rows."""
    out = sat20(a, b, c)
    rows = (a == a[:, :1]).all(1) if a.shape[1] else np.zeros(a.shape[0], bool)
    out[rows] = clip20(start(a, b, c) + mm(a, b))[rows]
    return out


@mutant(
    "sat20",
    "from column 32 on, a short last group keeps the codes of the tile before in its free lanes",
    lambda: rand(2, 6, 40),
)
def stale_lanes(a: Array, b: Array, c: Array | None = None) -> Array:
    """Column tiles of 32; the free lanes of a come round to the start of its row, those of b should hold zeros."""
    k, n = b.shape
    pad = -k % 4
    if k < 4 or pad == 0 or n <= 32:
        return sat20(a, b, c)
    free = np.zeros((pad, n), np.int8)
    free[:, 32:] = np.resize(b[k - pad :, :32], (pad, n - 32))
    return sat20(np.concatenate([a, a[:, :pad]], 1), np.concatenate([b, free]), c)


def _gated() -> Inputs:
    a, b, _ = rand(2, 68, 2)
    a[:, 64] = 0
    return a, b, None


@mutant("sat20", "a zero code in lane 0 gates the clock of the register: the whole group is skipped", _gated)
def clock_gate(a: Array, b: Array, c: Array | None = None) -> Array:
    """Operand gating; the gate looks at lane 0 of a, in groups after the 16th."""
    acc = start(a, b, c)
    for i, s in enumerate(runs(a, b)):
        gated = (a[:, 4 * i] == 0)[:, None] & (i >= 16)
        acc = np.where(gated, acc, clip20(acc + s))
    return acc.astype(np.int32)


def _rail_to_rail() -> Inputs:
    return line(UP * 6)


@mutant("sat20", "a positive overflow in the step after an overflow is missed: the register wraps", _rail_to_rail)
def flag_hazard(a: Array, b: Array, c: Array | None = None) -> Array:
    """A pipeline hazard: the comparator of one step is busy after it has clipped."""
    acc = start(a, b, c)
    busy = np.zeros(acc.shape, bool)
    for s in runs(a, b):
        exact = acc + s
        clipped = clip20(exact)
        acc = np.where(busy & (exact > HI20), narrow(exact, 20), clipped)
        busy = clipped != exact
    return acc.astype(np.int32)
