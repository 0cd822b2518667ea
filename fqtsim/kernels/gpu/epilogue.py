"""Accumulators to float32 on the device: zero points in integers, two float64 products, one conversion (S4, S5.8).

    value = acc * 2^dropped - za * sum(b) - zb * sum(a) + K * za * zb
    out = float32(float64(value) * (float64(row step) * float64(column step)))

Why every step is exact until the two roundings that S5.8 names:
- The product of two float32 steps has at most 48 significant bits and an exponent within float64's: exact, so the
  order of the scales cannot matter.
- value = sum((a - za)(b - zb)) where nothing wrapped and nothing was dropped. With 8-bit codes and zero points each
  term is at most 255 * 255, so for K <= 33025 the value fits int32, and int32 arithmetic, which is arithmetic modulo
  2^32, gives it whatever the intermediate terms are (`INT32_TERMS`). Beyond that, and where the accumulator is
  narrower than its sum, int64 is used; the caller bounds the terms to it.
- The kernels multiply codes a' = a - ca and b' = b - cb, with 128 for an unsigned operand and 0 for a signed one:
  sum(ab) = sum(a'b') + ca sum(b) + cb sum(a) - K ca cb. The accumulator is formed by it modulo 2^32 before anything
  else, so that a register that wraps at 32 bits or fewer holds what it would have held with the codes as given.
- An int32 becomes a float64 as the number whose bits are 0x43300000:(value + 2^31), less 2^52 + 2^31: an exact
  subtraction. An int64 is rounded once, to nearest even, like float(int) of fqtsim/kernels/epilogue.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fqtsim.kernels.gpu.freivalds import combine
from fqtsim.kernels.gpu.launch import is_fused

INT32_TERMS = 33025
"""The largest K at which 255 * 255 * K fits int32."""


@dataclass(frozen=True)
class Side:
    """The rows or the columns of a product. Zero points and steps may be shared by runs of consecutive ones."""

    #: Codes of real zero, integers (), (n,) or (n / run,); None: 0 throughout.
    zero: torch.Tensor | None
    #: float32, shaped as zero.
    step: torch.Tensor

    def vectors(self, count: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return zero points (int64) and steps of one length, and how many of `count` share each."""
        step = self.step.reshape(-1)
        zero = step.new_zeros(1, dtype=torch.int64) if self.zero is None else self.zero.reshape(-1).to(torch.int64)
        size = max(len(step), len(zero))
        return zero.expand(size).contiguous(), step.expand(size).contiguous(), max(count // size, 1)

    def spread(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return zero point and step of each of `count`."""
        zero, step, run = self.vectors(count)
        return (
            zero.reshape(-1, 1).expand(-1, run).reshape(-1)[:count],
            step.reshape(-1, 1).expand(-1, run).reshape(-1)[:count],
        )


@dataclass(frozen=True)
class Register:
    """What holds the sums: a wrapping accumulator, or one that nothing overflows."""

    #: Width of a wrapping accumulator, at most 32; None where the exact sum is meant.
    bits: int | None = 32
    unsigned: bool = False
    #: Whether the exact sum is found first, so that a watch counts what the width changes.
    counted: bool = False

    @property
    def exact(self) -> bool:
        """Whether exact sums are needed, and not those modulo 2**32."""
        return self.bits is None or self.counted

    def wide(self, k: int) -> bool:
        """Tell whether the corrections need int64."""
        return k > INT32_TERMS or self.bits not in (None, 32) or self.unsigned

    def reduce(self, total: torch.Tensor) -> torch.Tensor:
        """Return exact sums (int64), or sums modulo 2**32, as this register holds them, int64."""
        total = total.to(torch.int64)
        if self.bits is None:
            return total
        if self.unsigned:
            return total & ((1 << self.bits) - 1)
        return (total << (64 - self.bits)) >> (64 - self.bits)


EXACT = Register(None)
WRAP32 = Register(32)


@dataclass(frozen=True)
class Sums:
    """Where the sums of codes with random words go, modulo 2**32 (fqtsim/backends/checksum.py)."""

    #: int32 (2, R) and (2, S): the word of row i * S + j is outer[., i] * inner[., j].
    outer: torch.Tensor
    inner: torch.Tensor
    #: int32 (G, 2, N), zeros before.
    out: torch.Tensor

    def add(self, codes: torch.Tensor) -> None:
        """Add what codes (M, N) of the first group sum to."""
        self.out[0] += combine((self.outer[:, :, None] * self.inner[:, None, :]).reshape(2, -1), codes)


@dataclass(frozen=True)
class Watch:
    """Where the extremes of the accumulators go."""

    #: int64 (4,): the smallest, the largest, how many are a rail, and how many a counted width changed.
    record: torch.Tensor
    #: The rails of the accumulator.
    low: int
    high: int
    sums: Sums | None = None

    @property
    def kept(self) -> tuple[torch.Tensor, ...]:
        """What a kernel adds to."""
        return (self.record,) if self.sums is None else (self.record, self.sums.out)

    def of_group(self, group: int) -> Watch:
        """Return the watch of one group of a convolution."""
        if self.sums is None:
            return self
        return replace(self, sums=replace(self.sums, out=self.sums.out[group : group + 1]))

    def note(self, acc: torch.Tensor, codes: torch.Tensor | None = None) -> None:
        """Merge accumulators of any shape, and the codes that a counted register made of them."""
        if not acc.numel():
            return
        acc = acc.to(torch.int64)
        held, altered = (acc, self.record[3]) if codes is None else (codes, self.record[3] + (codes != acc).sum())
        rails = ((held == self.low) | (held == self.high)).sum()
        low, high = torch.minimum(self.record[0], acc.min()), torch.maximum(self.record[1], acc.max())
        self.record.copy_(torch.stack((low, high, self.record[2] + rails, altered)))

    def sum(self, codes: torch.Tensor) -> None:
        """Add what codes (M, N), of the first group, sum to, where that is wanted."""
        if self.sums is not None and codes.numel():
            self.sums.add(codes)


def watched(watch: Watch | None, nothing: torch.Tensor) -> tuple[tuple[object, ...], int]:
    """Return a watch as kernels take it, and what they are to note: 0 nothing, 1 extremes, 2 sums too."""
    if watch is None:
        return (nothing, 0, 0, nothing, nothing, 1, nothing), 0
    record, sums = (watch.record, watch.low, watch.high), watch.sums
    if sums is None:
        return (*record, nothing, nothing, 1, nothing), 1
    return (*record, sums.outer, sums.inner, sums.inner.shape[1], sums.out), 2


def new_record(device: torch.device | str) -> torch.Tensor:
    """Return a record that has seen nothing."""
    return torch.tensor([(1 << 63) - 1, -(1 << 63) + 1, 0, 0], dtype=torch.int64, device=device)


def output(like: torch.Tensor, rows: int, m: int, n: int, channels_last: bool) -> torch.Tensor:
    """Return an empty float32 (rows, N, M / rows), stored (rows, M / rows, N) where `channels_last`."""
    inner = m // max(rows, 1)
    if channels_last:
        return torch.empty((rows, inner, n), dtype=torch.float32, device=like.device).transpose(1, 2)
    return torch.empty((rows, n, inner), dtype=torch.float32, device=like.device)


def composed_values(
    acc: torch.Tensor, k: int, zeros: tuple[torch.Tensor, torch.Tensor], sums: tuple[torch.Tensor, torch.Tensor],
    steps: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """Return the float32 results of acc (int64); every pair is (rows, columns) and broadcasts against it."""
    value = acc - zeros[0] * sums[1] - zeros[1] * sums[0] + k * zeros[0] * zeros[1]
    scale = steps[0].to(torch.float64) * steps[1].to(torch.float64)
    return (value.to(torch.float64) * scale).to(torch.float32)


def composed_finish(
    acc: torch.Tensor, k: int, row: Side, row_sum: torch.Tensor, column: Side, column_sum: torch.Tensor, rows: int,
    dropped: int = 0,
) -> torch.Tensor:  # fmt: skip
    """As `finish`, by torch operations: on any device."""
    m, n = acc.shape
    (za, row_step), (zb, column_step) = row.spread(m), column.spread(n)
    steps = row_step[:, None], column_step
    wide = acc.to(torch.int64) << dropped
    out = composed_values(wide, k, (za[:, None], zb), (row_sum[:, None], column_sum), steps)
    return out.reshape(rows, m // max(rows, 1), n).transpose(1, 2)


def finish(
    acc: torch.Tensor, k: int, row: Side, row_sum: torch.Tensor, column: Side, column_sum: torch.Tensor, rows: int,
    dropped: int = 0, channels_last: bool = True,
) -> torch.Tensor:  # fmt: skip
    """Return the real product float32 (rows, N, M / rows) of accumulators acc (M, N), int32 or int64, any strides.

    row_sum (M,) and column_sum (N,) are int64 sums of the codes of a and of b over k; `k` is the number of terms.
    """
    if not acc.numel() or not is_fused(acc):
        return composed_finish(acc, k, row, row_sum, column, column_sum, rows, dropped)
    from fqtsim.kernels.gpu.triton_gemm import finish_kernel

    m, n = acc.shape
    out = output(acc, rows, m, n, channels_last)
    (za, row_step, row_run), (zb, column_step, column_run) = row.vectors(m), column.vectors(n)
    grid = (-(-m // 32), -(-n // 64))
    finish_kernel[grid](
        acc, m, n, k, acc.stride(0), acc.stride(1), out, out.stride(0), out.stride(2), out.stride(1), m // rows,
        za, row_sum, row_step, row_run, zb, column_sum, column_step, column_run,
        BITS=32, UNSIGNED=False, DROPPED=dropped, WIDE=True, BM=32, BN=64, enable_fp_fusion=False,
    )  # fmt: skip
    return out
