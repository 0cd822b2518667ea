"""INT8 matrix products on a device: any mix of int8 and uint8, any strides, every M, N and K.

What must be exact, and why it is:
- A product of two 8-bit codes is at most 2^14 (int8 x int8), 255 * 128 (mixed) or 255^2 (uint8 x uint8) in magnitude,
  so no sum of K of them, nor any part of it in any order, leaves int32 for K up to 131071, 65793 and 33025
  (`exact_terms`). Beyond that int32 sums wrap modulo 2^32. Addition modulo 2^32 is associative, so tiles, parts of a
  split K and atomic additions may come in any order; a saturating datapath never comes here.
- Tensor cores must not be trusted with an overflow: Triton writes `mma.sync` for INT8 with `.satfinite`, which clamps,
  and `wgmma` without it. So no accumulator of theirs ever takes more than RUN terms of signed bytes, starting at 0:
  none can overflow, whatever the instruction would do. (Where a convolution's k is one tile, Triton adds the sums for
  zero points to the same accumulator: up to 128 terms more.) Longer sums are parts, added by ordinary (wrapping)
  integer additions, and so are start values.
- Tensor cores multiply signed bytes. An unsigned code enters as code - 128, and 128 times the other side's sum is
  added back modulo 2^32 (epilogue.py). Codes beyond K are stored as the byte 0 and add nothing to any sum.
- Longer K with an exact sum: runs of k that cannot overflow, added in int64 (`int8_gemm_exact`).
- The composed twin multiplies in float64. Every partial sum is an integer of at most K * 2^16 < 2^53, so no order and
  no fused multiply-add can round one.
`start`, row and column steps, zero points: as `int8_gemm` and `int8_gemm_scaled` say. No argument `k_limit` is
needed: `int8_gemm` wraps and `int8_gemm_exact` does not, for every K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fqtsim.kernels.gpu import tune
from fqtsim.kernels.gpu.epilogue import WRAP32, Register, Side, Watch, composed_finish, finish, output, watched
from fqtsim.kernels.gpu.launch import is_fused
from fqtsim.kernels.gpu.tune import Tile

ALIGNMENT = 16
"""Bytes that rows of codes start at a multiple of: what one asynchronous copy moves."""
RUN = 130944
"""Terms that one tensor-core accumulator takes at most: 128 * 128 * RUN < 2**31, and a multiple of every tile depth."""
LIBRARY_ROWS = 17
"""torch._int_mm on CUDA wants more than 16 rows, and K and N in multiples of 8."""


def exact_terms(a: torch.dtype, b: torch.dtype) -> int:
    """Return the largest K whose sums fit int32 for any codes of these types."""
    most = (255 if a == torch.uint8 else 128) * (255 if b == torch.uint8 else 128)
    return ((1 << 31) - 1) // most


@dataclass(frozen=True)
class Packed:
    """Codes as the kernels read them: signed bytes (R, K), k contiguous, rows aligned; unsigned ones less 128."""

    codes: torch.Tensor
    #: What was taken off each code.
    offset: int
    #: int64 (R,): the sums of the codes as given, or zeros where nobody asked for them.
    sums: torch.Tensor

    @property
    def pitch(self) -> int:
        return max(int(self.codes.stride(0)), -(-self.codes.shape[1] // ALIGNMENT) * ALIGNMENT)


def pack(codes: torch.Tensor, with_sums: bool) -> Packed:
    """Return codes (R, K), int8 or uint8 of any strides, ready for a kernel; no copy where they are already."""
    from fqtsim.kernels.gpu.triton_gemm import pack_kernel

    rows, k = codes.shape
    signed = codes.dtype == torch.int8
    ready = signed and codes.stride(1) == 1 and codes.stride(0) % ALIGNMENT == 0 and codes.stride(0) >= k
    ready = ready and codes.data_ptr() % ALIGNMENT == 0
    pitch = -(-k // ALIGNMENT) * ALIGNMENT
    out = codes if ready else torch.empty((rows, pitch), dtype=torch.int8, device=codes.device)
    sums = torch.zeros(rows, dtype=torch.int64, device=codes.device)
    if with_sums or not ready:
        block = 64 if codes.is_cuda else tune.power_of_two(rows, 1, 64)
        grid = (-(-rows // block) * -(-pitch // 128),)
        pack_kernel[grid](
            codes, out, sums, rows, k, codes.stride(0), codes.stride(1), pitch,
            FLIP=not signed, SUMS=with_sums, WRITE=not ready, BR=block, BK=128, enable_fp_fusion=False,
        )  # fmt: skip
    return Packed(out if ready else out[:, :k], 0 if signed else 128, sums)


def _tiles(a: Packed, b: Packed, split: bool) -> list[Tile]:
    """Return the forms worth measuring for this shape."""
    (m, k), n = a.codes.shape, b.codes.shape[0]
    least = -(-k // RUN)
    if not a.codes.is_cuda:  # the interpreter: parts too, so that they are tested
        return [Tile(32, 32, 64, 4, 1, parts=max(2 if split and k > 64 else 1, least))]
    tma = tune.has_tma(a.codes)
    if m >= 256 and n >= 256:
        shapes = [(128, 256, 8, 4), (128, 128, 4, 3), (256, 128, 8, 4), (128, 128, 8, 4), (64, 128, 4, 4)]
        tiles = [Tile(*shape[:2], 128, *shape[2:], tma=tma) for shape in shapes] + [Tile(128, 256, 128, 8, 3)]
    else:
        rows, columns = tune.power_of_two(m, 16, 64), tune.power_of_two(n, 16, 64)
        tiles = [Tile(rows, columns, 128, 4, 4), Tile(rows, columns, 64, 4, 3), Tile(rows, 2 * columns, 128, 4, 3)]
    library = [Tile(0, 0, 0, 0, 0, library=True)] if _fits_library(a, b) else []
    programs = -(-m // tiles[0].rows) * -(-n // tiles[0].columns)
    parts = max(min(tune.multiprocessors(a.codes) // programs, k // 512), least)
    if split and parts > 1:
        tiles = [tile._replace(parts=parts) for tile in tiles] + (tiles[:1] if least == 1 else [])
    return tiles + library


def _fits_library(a: Packed, b: Packed) -> bool:
    (m, k), n = a.codes.shape, b.codes.shape[0]
    return m >= LIBRARY_ROWS and not k % 8 and not n % 8 and k <= RUN and a.codes.is_cuda


def _loadable(packed: Packed, rows: int, tile: Tile) -> object:
    """Return what a kernel loads tiles from."""
    if not tile.tma:
        return packed.codes
    from fqtsim.kernels.gpu.triton_gemm import descriptor

    shape = packed.codes.shape[0], packed.codes.shape[1]
    loadable: object = descriptor(packed.codes, shape, packed.pitch, (rows, tile.depth))
    return loadable


def _sums(a: Packed, b: Packed, tile: Tile, start: torch.Tensor | None) -> torch.Tensor:
    """Return start + a b^T modulo 2**32 of the codes as given, int32 (M, N), by one form."""
    from fqtsim.kernels.gpu.triton_gemm import gemm_kernel

    (m, k), n = a.codes.shape, b.codes.shape[0]
    if tile.library:
        total = torch._int_mm(a.codes, b.codes.t())
        if b.offset:
            total = total + (b.offset * a.sums).to(torch.int32)[:, None]
        if a.offset:
            total = total + (a.offset * (b.sums - b.offset * k)).to(torch.int32)
        return total if start is None else total + start
    out = torch.empty((m, n), dtype=torch.int32, device=a.codes.device) if tile.parts == 1 else a.codes.new_zeros(
        (m, n), dtype=torch.int32
    )  # fmt: skip
    grid = (-(-m // tile.rows) * -(-n // tile.columns), tile.parts)
    gemm_kernel[grid](
        _loadable(a, tile.rows, tile), _loadable(b, tile.columns, tile), out if start is None else start, out,
        a.sums, b.sums, m, n, k, a.pitch, b.pitch,
        CA=a.offset, CB=b.offset, START=start is not None, PARTS=tile.parts, TMA=tile.tma,
        BM=tile.rows, BN=tile.columns, BK=tile.depth, GROUP=8, **tile.launch,
    )  # fmt: skip
    return out


def exact_sums(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a (M, K) times b (K, N) exactly, int64, by torch operations on any device: integers in float64."""
    return (a.to(torch.float64) @ b.to(torch.float64)).to(torch.int64)


def composed_int8_gemm(a: torch.Tensor, b: torch.Tensor, *, start: torch.Tensor | None = None) -> torch.Tensor:
    """As `int8_gemm`, by torch operations."""
    total = exact_sums(a, b)
    return (total if start is None else total + start).to(torch.int32)  # the conversion wraps


def _shape(a: torch.Tensor, b: torch.Tensor) -> tuple[int, int, int]:
    return a.shape[0], b.shape[1], a.shape[1]


def int8_gemm(a: torch.Tensor, b: torch.Tensor, *, start: torch.Tensor | None = None) -> torch.Tensor:
    """Return start + a b modulo 2**32 as int32 (M, N); a (M, K) and b (K, N) int8 or uint8, start int32 (M, N)."""
    m, n, k = _shape(a, b)
    if not (m and n and k) or not is_fused(a):
        return composed_int8_gemm(a, b, start=start)
    left, right = pack(a, b.dtype == torch.uint8), pack(b.t(), a.dtype == torch.uint8)
    start = None if start is None else start.expand(m, n).contiguous()
    key = ("int8_gemm", m, n, k, a.dtype, b.dtype, start is None, a.device)
    return tune.run(key, _tiles(left, right, split=True), lambda tile: _sums(left, right, tile, start))


def int8_gemm_exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the exact a b (M, N): int32 where no codes of these types can pass it for this K, else int64."""
    k, run = a.shape[1], exact_terms(a.dtype, b.dtype)
    if k <= run:
        return int8_gemm(a, b)
    run = min(run - run % 128, RUN)  # aligned parts need no copy
    total = torch.zeros((a.shape[0], b.shape[1]), dtype=torch.int64, device=a.device)
    for first in range(0, k, run):
        total += int8_gemm(a[:, first : first + run], b[first : first + run])
    return total


def composed_int8_gemm_scaled(
    a: torch.Tensor, b: torch.Tensor, row: Side, column: Side, rows: int = 1, *,
    register: Register = WRAP32, watch: Watch | None = None,
) -> torch.Tensor:  # fmt: skip
    """As `int8_gemm_scaled`, by torch operations."""
    total = exact_sums(a, b)
    codes = register.reduce(total)
    if watch is not None:
        watch.note(total if register.exact else total.to(torch.int32), codes if register.counted else None)
        watch.sum(codes)
    sums = a.sum(1, dtype=torch.int64), b.sum(0, dtype=torch.int64)
    return composed_finish(codes, a.shape[1], row, sums[0], column, sums[1], rows)


def int8_gemm_scaled(
    a: torch.Tensor, b: torch.Tensor, row: Side, column: Side, rows: int = 1, *,
    register: Register = WRAP32, watch: Watch | None = None, channels_last: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Return float32 (rows, N, M / rows): the product with zero points and steps applied (epilogue.py).

    a (M, K), b (K, N): int8 or uint8, any strides; zero points are codes of the same types. `register` is what holds
    a sum; `watch` notes what it held before a width below 32 is applied (exact sums for K up to `exact_terms`).
    `channels_last` chooses how the result is stored, not what it is.
    """
    m, n, k = _shape(a, b)
    if not (m and n and k) or not is_fused(a):
        return composed_int8_gemm_scaled(a, b, row, column, rows, register=register, watch=watch)
    if register.counted or k > RUN or (register.exact and k > exact_terms(a.dtype, b.dtype)):
        acc = int8_gemm_exact(a, b) if register.exact else int8_gemm(a, b)
        codes = register.reduce(acc)
        if watch is not None:
            watch.note(acc, codes if register.counted else None)
            watch.sum(codes)
        sums = pack(a, True).sums, pack(b.t(), True).sums
        return finish(codes, k, row, sums[0], column, sums[1], rows, channels_last=channels_last)
    sums_rows = watch is not None and watch.sums is not None
    if rows == 1 and not channels_last and not sums_rows:
        # Stored (N, M): the rows of the other operand are then the columns' lanes.
        out = int8_gemm_scaled(b.t(), a.t(), column, row, 1, register=register, watch=watch)
        return out.transpose(1, 2)
    left = pack(a, column.zero is not None or b.dtype == torch.uint8)
    right = pack(b.t(), row.zero is not None or a.dtype == torch.uint8)
    tiles = [tile._replace(parts=1) for tile in _tiles(left, right, split=False)]
    key = ("int8_gemm_scaled", m, n, k, a.dtype, b.dtype, rows, channels_last, register, watch is None, sums_rows,
           a.device)  # fmt: skip
    form = _Scaled(left, right, row, column, rows, register, watch, channels_last)
    return tune.run(key, tiles, form.by, () if watch is None else watch.kept)


@dataclass(frozen=True)
class _Scaled:
    """One scaled product, ready for any form."""

    a: Packed
    b: Packed
    row: Side
    column: Side
    rows: int
    register: Register
    watch: Watch | None
    channels_last: bool

    def by(self, tile: Tile) -> torch.Tensor:
        """Return the product by one form."""
        if tile.library:
            acc = _sums(self.a, self.b, tile, None)
            codes = self.register.reduce(acc)
            if self.watch is not None:
                self.watch.note(acc)
                self.watch.sum(codes)
            return finish(
                codes, self.a.codes.shape[1], self.row, self.a.sums, self.column, self.b.sums,
                self.rows, channels_last=self.channels_last,
            )  # fmt: skip
        return self._fused(tile)

    def _fused(self, tile: Tile) -> torch.Tensor:
        from fqtsim.kernels.gpu.triton_gemm import scaled_kernel

        (m, k), n = self.a.codes.shape, self.b.codes.shape[0]
        out = output(self.a.codes, self.rows, m, n, self.channels_last)
        za, row_step, row_run = self.row.vectors(m)
        zb, column_step, column_run = self.column.vectors(n)
        watch, noted = watched(self.watch, za)
        scaled_kernel[(-(-m // tile.rows) * -(-n // tile.columns),)](
            _loadable(self.a, tile.rows, tile), _loadable(self.b, tile.columns, tile), m, n, k,
            self.a.pitch, self.b.pitch, out, out.stride(0), out.stride(2), out.stride(1), m // self.rows,
            za, self.a.sums, row_step, row_run, zb, self.b.sums, column_step, column_run,
            *watch,
            CA=self.a.offset, CB=self.b.offset, BITS=self.register.bits or 32, UNSIGNED=self.register.unsigned,
            WIDE=self.register.wide(k), RECORD=noted, TMA=tile.tma,
            BM=tile.rows, BN=tile.columns, BK=tile.depth, GROUP=8, **tile.launch,
        )  # fmt: skip
        return out
