"""Any datapath on the integer ALUs of a device (S4): codes, events and extremes of U, without waiting for the device.

`datapath_gemm(a, b, lowered, start=None) -> DatapathResult`; `composed_datapath_gemm` is its twin in torch operations,
with every addition performed. Operands may have a leading dimension of groups, (G, M, K) and (G, K, N), whose events
are counted together. The caller lowers the datapath for ranges that hold without looking at the operands (those of
the formats): `hw.lower.lower(datapath, k, range of a, range of b, range of start)`.

Three proofs come first, as in backends/emulator.py: no register can overflow; a wrap that order cannot change;
Cauchy-Schwarz for each output (bounds.py). What they cover is the exact product, on the tensor cores. The rest:

- `saturating_kernel` where exact sums of up to MOST_WORDS words enter one saturating register. Per item 1 operation for
  each word (multiply-add; dp4a for four codes of 8 bits) and 1 for the register, which is kept less its lower rail, so
  that both rails are one VIMNMX.RELU.
- `chain_kernel` for every other chain: nested loops over the levels, int32 or int64 lanes as hw.lower proves.

What to expect on an H100 (132 SMs at 1.7 GHz; a cycle issues 128 lanes per SM, 64 of them to the integer ALUs and 64
multiply-adds), from the instructions of the loops as compiled for sm_90, 64 x 64 outputs in 2 warps; none is measured:

| form | instructions per MAC | upper bound, TMAC/s |
|---|---|---|
| one saturating register, BIASED (int20) | 2.55: 1 IMAD, 1 VIMNMX.RELU, 0.55 loads and loop | 11 |
| sums of 4 into it, 8-bit codes (dp4a) | 0.62 | 46, half of it if dp4a has half the rate |
| sums of 4 into it, wider codes | 1.8 | 14 |
| sums of 4 into a whole int32 (FULL) | 2.1 | 10 |
| 64-bit lanes | 13 | 2 |
| any other chain, per level | see chain_kernel | 1 to 6 |

A measurement below half of its bound points at latency: two barriers for every k, and 4 to 8 programs on an SM.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch

from fqtsim.hw.lower import (
    BITS,
    CLAMP,
    COLUMNS,
    DROP,
    EXACT,
    HIGH,
    LANES,
    LOW,
    MODE,
    RUN,
    UNSIGNED,
    WRAP,
    Lowered,
    without_overflow,
)
from fqtsim.kernels.gpu import tune
from fqtsim.kernels.gpu.bounds import Bounds, bounds
from fqtsim.kernels.gpu.composed_chain import composed_chain
from fqtsim.kernels.gpu.gemm import int8_gemm_exact
from fqtsim.kernels.gpu.launch import is_fused
from fqtsim.kernels.gpu.tune import Tile

Table = np.ndarray[Any, Any]
INT32_MAX = (1 << 31) - 1
INT64_MAX = (1 << 63) - 1
MOST_WORDS = 8
"""Words of a group that are added in one turn of the fast kernel's loop."""
BIASED, RAILS, FULL = 0, 1, 2
"""How the fast kernel keeps a register: less its lower rail; as it is; as a whole int32 whose overflow shows."""
EVENT_BLOCK = 1024


class DatapathResult(NamedTuple):
    """One GEMM, or one for each group, on the device."""

    #: (M, N) or (G, M, N), int32 where the accumulator fits it, else int64.
    codes: torch.Tensor
    #: int64 (3,): altered, out of range, transient outputs.
    events: torch.Tensor
    #: int64 (2,): smallest and largest U; both 0 where there is no output.
    extremes: torch.Tensor
    #: int64 (1,): outputs whose code is a rail of the accumulator.
    at_rail: torch.Tensor


class Saturating(NamedTuple):
    """How the fast kernel performs a chain."""

    #: Products that are summed exactly before each addition to the register.
    group: int
    #: Words that hold them: four codes each where packed, else one.
    words: int
    packed: bool
    limit: int
    word: torch.dtype
    low: int
    #: The upper rail; less the lower one where limit is BIASED.
    high: int


def is_eight_bit(codes: torch.Tensor) -> bool:
    """Tell whether codes are stored as bytes."""
    return codes.dtype in (torch.int8, torch.uint8)


def saturating_form(a: torch.Tensor, b: torch.Tensor, lowered: Lowered) -> Saturating | None:
    """Return how the fast kernel performs this chain, or None where only the general one can."""
    table = lowered.table
    group = int(table[0, RUN]) if len(table) == 2 and table[0, MODE] == EXACT else 1
    if len(table) > 2 or (len(table) == 2 and table[0, MODE] != EXACT) or not group or table[:, DROP].any():
        return None
    packed = group > 1 and is_eight_bit(a) and is_eight_bit(b)
    words = -(-group // 4) if packed else group
    if lowered.accumulator[MODE] != CLAMP or words > MOST_WORDS:
        return None
    item = lowered.product.times(group)
    low, high = int(lowered.accumulator[LOW]), int(lowered.accumulator[HIGH])
    form = Saturating(group, words, packed, BIASED, torch.int32, low, high - low)
    if item.fits_signed(32):
        if high - low + item.high <= INT32_MAX:
            return form
        if low + item.low >= -INT32_MAX - 1 and high + item.high <= INT32_MAX:
            return form._replace(limit=RAILS, high=high)
        if low == -INT32_MAX - 1 and high == INT32_MAX:
            return form._replace(limit=FULL, high=high)
    # Sums of four bytes fit 32 bits, but not those of more words: where `item` does not, leave the words as codes.
    return None if packed else form._replace(limit=RAILS, word=torch.int64, high=high)


def code_dtype(lowered: Lowered) -> torch.dtype:
    """Return int32 where the accumulator's codes fit it, else int64."""
    row = lowered.accumulator
    fits = row[MODE] != EXACT and row[LOW] >= -INT32_MAX - 1 and row[HIGH] <= INT32_MAX
    return torch.int32 if fits else torch.int64


def exact_product(a: torch.Tensor, b: torch.Tensor, lowered: Lowered) -> torch.Tensor:
    """Return a (G, M, K) times b (G, K, N) exactly, int32 or int64."""
    if is_eight_bit(a) and is_eight_bit(b):
        return torch.stack([int8_gemm_exact(x, y) for x, y in zip(a, b, strict=True)])
    # Integers in float64: every partial sum of a run stays below 2**53, so nothing is rounded.
    run = max(1, (1 << 53) // max(lowered.product.magnitude, 1))
    total = torch.zeros((*a.shape[:2], b.shape[2]), dtype=torch.int64, device=a.device)
    for k in range(0, a.shape[2], run):
        part = torch.bmm(a[:, :, k : k + run].to(torch.float64), b[:, k : k + run].to(torch.float64))
        total += part.to(torch.int64)
    return total


def wrapped(values: torch.Tensor, lowered: Lowered) -> torch.Tensor:
    """Reduce integers modulo 2**bits of the accumulator."""
    row = lowered.accumulator
    if row[UNSIGNED]:
        return values.to(torch.int64) & int(row[HIGH])
    shift = 64 - int(row[BITS])
    return (values.to(torch.int64) << shift) >> shift


@cache  # a recorded step reads it by its place
def _device_table(data: bytes, k: int, device: torch.device) -> torch.Tensor:
    """Return the rows of a table, each with its number of items; kept, since the copy waits for the device."""
    table = np.frombuffer(data, np.int64).reshape(-1, COLUMNS)
    items, counts = k, []
    for row in table:
        counts.append(items)
        items = -(-items // int(row[RUN])) if row[RUN] else int(row[LANES])
    return torch.from_numpy(np.concatenate((table, np.array(counts)[:, None]), 1)).to(device)


def _plan(table: Table) -> tuple[tuple[int, bool, bool], ...]:
    modes = [3 if row[MODE] == WRAP and row[UNSIGNED] else int(row[MODE]) for row in table]
    return tuple((mode, bool(row[DROP]), not row[RUN]) for mode, row in zip(modes, table, strict=True))


def _tiles(m: int, n: int, x: torch.Tensor) -> list[Tile]:
    """Return the shapes of tile worth measuring: up to 64 outputs a thread, fewer where programs would be few."""
    if not x.is_cuda:
        return [Tile(tune.power_of_two(m, 1, 32), tune.power_of_two(n, 1, 32), 4, 4, 1)]
    found = []
    for rows, columns, warps in ((64, 64, 2), (128, 64, 4), (64, 32, 2), (32, 32, 1)):
        right = tune.power_of_two(n, 1, columns)
        left = tune.power_of_two(m, 1, rows * columns // right)
        tile = Tile(left, tune.power_of_two(n, 1, rows * columns // left), 4, warps, 1)
        if left * tile.columns >= 32 * warps and tile not in found:
            found.append(tile)
    return found or [Tile(tune.power_of_two(m, 1, 32), tune.power_of_two(n, 1, 32), 4, 1, 1)]


class _Call(NamedTuple):
    """What both kernels take."""

    a: torch.Tensor
    b: torch.Tensor
    start: torch.Tensor | None
    found: Bounds | None
    out: torch.Tensor

    @property
    def pointers(self) -> tuple[object, ...]:
        """Norms, orders and limit, or stand-ins that are not read."""
        nothing = self.out
        if self.found is None:
            return (nothing, nothing), (nothing, nothing), 0
        orders = [nothing if order is None else order for order in (self.found.row_order, self.found.column_order)]
        return (self.found.rows, self.found.columns), tuple(orders), self.found.limit

    def shared(self, tile: Tile) -> dict[str, object]:
        """Options of either kernel."""
        found = self.found
        return {
            "HAS_START": self.start is not None,
            "BOUNDED": found is not None,
            "ORDER_A": found is not None and found.row_order is not None,
            "ORDER_B": found is not None and found.column_order is not None,
            "BM": tile.rows,
            "BN": tile.columns,
            **tile.launch,
        }

    def grid(self, tile: Tile) -> tuple[int, int]:
        _, m, n = self.out.shape
        return -(-m // tile.rows) * -(-n // tile.columns), self.out.shape[0]


def _strides(x: torch.Tensor, along: int) -> tuple[int, int, int]:
    return x.stride(0), x.stride(3 - along), x.stride(along)


def _launch_chain(call: _Call, table: Table, word_bits: int, tile: Tile) -> torch.Tensor:
    """Perform any chain from call.start into call.out."""
    import triton.language as tl

    from fqtsim.kernels.gpu.triton_datapath import chain_kernel

    rows = _device_table(np.ascontiguousarray(table).tobytes(), call.a.shape[2], call.a.device)
    norms, orders, limit = call.pointers
    start = call.out if call.start is None else call.start
    chain_kernel[call.grid(tile)](
        call.a, call.b, start, call.out, rows, norms, orders, limit, call.out.shape[1], call.out.shape[2],
        _strides(call.a, 2), _strides(call.b, 1), len(table), _plan(table), tl.int32 if word_bits == 32 else tl.int64,
        **call.shared(tile),
    )  # fmt: skip
    return call.out


def packed_words(codes: torch.Tensor, group: int) -> torch.Tensor:
    """Return the bytes of codes (G, R, K) four to an int32 word (G, R, words), each group filled up with zeros."""
    g, r, k = codes.shape
    aligned = all(stride % 4 == 0 for stride in codes.stride()[:2]) and codes.storage_offset() % 4 == 0
    if group % 4 == 0 and k % 4 == 0 and codes.stride(2) == 1 and aligned:
        return codes.view(torch.int32)
    groups, wide = -(-k // group), -(-group // 4) * 4
    filled = torch.zeros((g, r, groups, wide), dtype=codes.dtype, device=codes.device)
    flat = torch.zeros((g, r, groups * group), dtype=codes.dtype, device=codes.device)
    flat[:, :, :k] = codes
    filled[:, :, :, :group] = flat.view(g, r, groups, group)
    return filled.view(g, r, groups * wide).view(torch.int32)


def _launch_saturating(call: _Call, form: Saturating, native: bool, tile: Tile) -> torch.Tensor:
    """Perform a chain that ends in one saturating register, from call.start into call.out."""
    import triton.language as tl

    from fqtsim.kernels.gpu.triton_datapath import saturating_kernel

    unsigned = call.a.dtype == torch.uint8, call.b.dtype == torch.uint8
    a, b = call.a, call.b
    if form.packed:
        a = packed_words(a, form.group)
        b = packed_words(b.transpose(1, 2), form.group).transpose(1, 2)
    norms, orders, limit = call.pointers
    start = call.out if call.start is None else call.start
    saturating_kernel[call.grid(tile)](
        a, b, start, call.out, norms, orders, limit, form.low, form.high, call.out.shape[1], call.out.shape[2],
        a.shape[2], _strides(a, 2), _strides(b, 1), form.words, form.packed, *unsigned, native, form.limit,
        tl.int32 if form.word == torch.int32 else tl.int64, UNROLL=max(1, tile.depth // form.words),
        **call.shared(tile),
    )  # fmt: skip
    return call.out


def stepped(
    a: torch.Tensor, b: torch.Tensor, lowered: Lowered, start: torch.Tensor | None, out: torch.Tensor,
    found: Bounds | None = None, general: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Perform every addition of every output of (G, M, K) times (G, K, N) that `found` leaves open; fill `out`.

    general: by the kernel of any chain, which the fast one must equal.
    """
    call = _Call(a, b, None if start is None else start.contiguous(), found, out)
    form = None if general else saturating_form(a, b, lowered)
    shape = (*out.shape, a.shape[2], str(a.dtype), str(b.dtype), a.stride(2) == 1, b.stride(1) == 1, start is None)
    key = ("datapath", form or (lowered.table.tobytes(), lowered.word_bits), found is None, shape)
    tiles = _tiles(out.shape[1], out.shape[2], a)
    if form is None or form.word != torch.int32:
        tiles = tiles[-2:]  # two registers a number: fewer outputs a thread

    def perform(tile: tune.Tile) -> torch.Tensor:
        # Forms that are compared must not write to one tensor, nor start from what another one left.
        own = call._replace(out=out.clone()) if tune.is_open(key, tiles) else call
        if form is None:
            return _launch_chain(own, lowered.table, lowered.word_bits, tile)
        return _launch_saturating(own, form, a.is_cuda, tile)

    return tune.run(key, tiles, perform)


def unlimited(a: torch.Tensor, b: torch.Tensor, lowered: Lowered, start: torch.Tensor | None) -> torch.Tensor:
    """Return U (G, M, N): the same chain with every register unlimited."""
    if not lowered.dropped_bits:
        product = exact_product(a, b, lowered)
        return product if start is None else product.to(torch.int64) + start
    table = without_overflow(lowered.table)
    shape = (*a.shape[:2], b.shape[2])
    if not is_fused(a):
        return composed_chain(a, b, _zeros_or(start, shape, a.device), table, torch.int64)
    out = torch.empty(shape, dtype=torch.int64, device=a.device)
    call = _Call(a, b, None if start is None else start.contiguous(), None, out)
    return _launch_chain(call, table, 64, _tiles(shape[1], shape[2], a)[-1])


def _zeros_or(start: torch.Tensor | None, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64, device=device) if start is None else start


def accumulators(
    a: torch.Tensor, b: torch.Tensor, lowered: Lowered, start: torch.Tensor | None, u: torch.Tensor
) -> torch.Tensor:
    """Return the codes (G, M, N), given U."""
    if lowered.never_overflows:
        return u
    if lowered.order_free_wrap:
        return wrapped(u, lowered)
    if not is_fused(a):
        word = torch.int32 if lowered.word_bits == 32 else torch.int64
        return composed_chain(a, b, _zeros_or(start, tuple(u.shape), a.device), lowered.table, word)
    found = bounds(a, b, lowered)
    # What is proven stays as it is: U, which then fits the codes' type.
    out = torch.empty_like(u, dtype=code_dtype(lowered)) if found is None else u.to(code_dtype(lowered), copy=True)
    return stepped(a, b, lowered, start, out, found)


def counted(codes: torch.Tensor, u: torch.Tensor, lowered: Lowered) -> DatapathResult:
    """Return codes with their events (S4.8)."""
    row, device = lowered.accumulator, codes.device
    low, high = (-INT64_MAX - 1, INT64_MAX) if row[MODE] == EXACT else (int(row[LOW]), int(row[HIGH]))
    codes = codes.to(code_dtype(lowered))
    if not codes.numel():
        counts = torch.zeros(6, dtype=torch.int64, device=device)
    elif is_fused(codes):
        from fqtsim.kernels.gpu.triton_datapath import events_kernel

        counts = torch.zeros(6, dtype=torch.int64, device=device)
        counts[3:4].fill_(INT64_MAX)
        counts[4:5].fill_(-INT64_MAX - 1)
        programs = -(-codes.numel() // EVENT_BLOCK)
        flat = codes.contiguous(), u.contiguous()
        events_kernel[(programs,)](*flat, counts, low, high, codes.numel(), EVENT_BLOCK, enable_fp_fusion=False)
    else:
        value, wide = codes.to(torch.int64), u.to(torch.int64)  # rails may be beyond int32
        altered, outside = value != wide, (wide < low) | (wide > high)
        rail = (value == low) | (value == high)
        sums = [one.sum(dtype=torch.int64) for one in (altered, outside, altered & ~outside, rail)]
        counts = torch.stack((*sums[:3], wide.min(), wide.max(), sums[3]))
    return DatapathResult(codes, counts[:3], counts[3:5], counts[5:6])


def _grouped(
    a: torch.Tensor, b: torch.Tensor, start: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return operands with a dimension of groups, and start values int64 (G, M, N)."""
    left, right = (a, b) if a.dim() == 3 else (a[None], b[None])
    if start is not None:
        start = start.to(torch.int64).expand(left.shape[0], left.shape[1], right.shape[2])
    return left, right, start


def datapath_gemm(
    a: torch.Tensor, b: torch.Tensor, lowered: Lowered, start: torch.Tensor | None = None
) -> DatapathResult:
    """Multiply codes (M, K) by (K, N), or (G, M, K) by (G, K, N), on a datapath, starting at `start`.

    a, b: int8, uint8 or int16, any strides; start: integers that broadcast to the result, within the accumulator, as
    the caller has checked. Nothing waits for the device, save the first call of a shape, which measures its forms.
    """
    left, right, begin = _grouped(a, b, start)
    if not a.numel() or not b.numel():
        codes = _zeros_or(begin, (*left.shape[:2], right.shape[2]), a.device)
        result = counted(codes.clone(), codes, lowered)
    else:
        u = unlimited(left, right, lowered, begin)
        result = counted(accumulators(left, right, lowered, begin, u), u, lowered)
    return result if a.dim() == 3 else result._replace(codes=result.codes[0])


def composed_datapath_gemm(
    a: torch.Tensor, b: torch.Tensor, lowered: Lowered, start: torch.Tensor | None = None
) -> DatapathResult:
    """As `datapath_gemm`, every addition performed by torch operations and no shortcut taken."""
    left, right, begin = _grouped(a, b, start)
    origin = _zeros_or(begin, (*left.shape[:2], right.shape[2]), a.device)
    word = torch.int32 if lowered.word_bits == 32 else torch.int64
    u = composed_chain(left, right, origin, without_overflow(lowered.table), torch.int64)
    result = counted(composed_chain(left, right, origin, lowered.table, word).to(torch.int64), u, lowered)
    return result if a.dim() == 3 else result._replace(codes=result.codes[0])
