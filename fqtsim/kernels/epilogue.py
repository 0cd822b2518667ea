"""Accumulator codes to float32: zero points in int64, binary64 products and sums, one conversion (S4, S5.8)."""

from __future__ import annotations

from typing import Any

from fqtsim.kernels import threads
from fqtsim.kernels.jit import kernel

_ROWS = 32
"""Rows of accumulators whose codes a first-level cache holds while they are transposed."""


def row_sums(a: Any, out: Any) -> None:
    """Write the int64 sum of each row of the codes a (M, K) to out (M,)."""
    threads.run(lambda first, last: _row_sums(a, out, first, last), threads.parts(len(out), a.shape[1]))


@kernel
def _row_sums(a: Any, out: Any, first: int, last: int) -> None:
    for m in range(first, last):
        total = 0
        for k in range(a.shape[1]):
            total += int(a[m, k])
        out[m] = total


def finish(acc: Any, dropped: int, terms: int, row: Any, column: Any, scales: Any, out: Any) -> None:
    """Write float32(float64(value) * (row step * column step)) to out (R, N, I) for acc (R * I, N).

    value = acc * 2^dropped - za * sum(b) - zb * sum(a) + K * za * zb, where row = (za, sum(a)) is (2, R * I),
    column = (zb, sum(b)) is (2, N), terms is K and scales = (row steps, column steps) are float64.
    """
    threads.run(
        lambda first, last: _finish(acc, dropped, terms, row, column, scales, out, first, last),
        threads.parts(len(acc), acc.shape[1]),
    )


@kernel
def _finish(
    acc: Any, dropped: int, terms: int, row: Any, column: Any, scales: Any, out: Any, first: int, last: int
) -> None:
    inner = out.shape[2]
    begin = first
    while begin < last:
        r = begin // inner
        # A few rows at a time: acc is read along N, out is written along I.
        end = min(begin + _ROWS, last, (r + 1) * inner)
        for n in range(acc.shape[1]):
            zb, sum_b, column_step = column[0, n], column[1, n], scales[1][n]
            for m in range(begin, end):
                za = row[0, m]
                value = (int(acc[m, n]) << dropped) - za * sum_b - zb * row[1, m] + terms * za * zb
                out[r, n, m - r * inner] = float(value) * (scales[0][m] * column_step)
        begin = end


def finish_offset(
    acc: Any, dropped: int, terms: int, row: Any, column: Any, scales: Any, offsets: Any, met: Any, out: Any
) -> None:
    """Write what `finish` does, with the terms of the float offsets added in float64 before the conversion.

    offsets = (row offsets (R * I,), column offsets (N,)) are float64, or empty where an operand has none. met =
    (sums of b less its zero point over valid terms, int64 (P, N); numbers of valid terms, int64 (P,)), where each of
    the P positions is I / P rows in succession.
    """
    threads.run(
        lambda first, last: _finish_offset(
            acc, dropped, terms, row, column, scales, offsets, met, out, first, last
        ),
        threads.parts(len(acc), acc.shape[1]),
    )  # fmt: skip


@kernel
def _finish_offset(
    acc: Any, dropped: int, terms: int, row: Any, column: Any, scales: Any, offsets: Any, met: Any, out: Any,
    first: int, last: int,
) -> None:  # fmt: skip
    inner, (row_offsets, column_offsets), (sums, counts) = out.shape[2], offsets, met
    repeat = inner // len(counts)
    of_row, of_column = len(row_offsets) > 0, len(column_offsets) > 0
    for m in range(first, last):
        r, i = m // inner, m % inner
        position = i // repeat
        za, sum_a, row_step = row[0, m], row[1, m], scales[0][m]
        for n in range(acc.shape[1]):
            zb, column_step = column[0, n], scales[1][n]
            value = (int(acc[m, n]) << dropped) - za * column[1, n] - zb * sum_a + terms * za * zb
            total = float(value) * (row_step * column_step)
            if of_row:
                total = total + float(sums[position, n]) * (row_offsets[m] * column_step)
            if of_column:  # holes hold za and add nothing to the sum
                total = total + float(sum_a - terms * za) * (column_offsets[n] * row_step)
            if of_row and of_column:
                total = total + float(counts[position]) * (row_offsets[m] * column_offsets[n])
            out[r, n, i] = total
