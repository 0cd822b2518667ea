"""Lower convolutions to matrices of codes: gathers only, no arithmetic on a code (S4, "Order of k").

A kernel copies bytes, so callers view the codes as a plain integer type of the same width and one compiled form serves
every format. Positions outside the input, and the holes of a stride-dilated gradient, take the sample's `fill` code.
"""

from __future__ import annotations

from typing import Any

from fqtsim.kernels import threads
from fqtsim.kernels.jit import inner, kernel


def gather_rows(x: Any, fill: Any, out: Any, step: Any, tap: Any, offset: Any, hole: Any) -> None:
    """Write the patch of every output position: x (N, H, W, C) -> out (N, OH, OW, KH, KW, C).

    Output o and tap t read position (o * step + t * tap + offset) / hole of x, where that is a whole number inside x.
    """
    count = out.shape[0] * out.shape[1]
    threads.run(
        lambda first, last: _gather_rows(x, fill, out, step, tap, offset, hole, first, last),
        threads.parts(count, out.size // max(count, 1)),
    )


@kernel
def _gather_rows(
    x: Any, fill: Any, out: Any, step: Any, tap: Any, offset: Any, hole: Any, first: int, last: int
) -> None:
    height, width, channels = x.shape[1:]
    columns, kernel_h, kernel_w = out.shape[2:5]
    for job in range(first, last):
        n, oh = job // out.shape[1], job % out.shape[1]
        for i in range(kernel_h):
            v = oh * step[0] + i * tap[0] + offset[0]
            h = v // hole[0]
            row_inside = 0 <= h < height and h * hole[0] == v
            for ow in range(columns):
                for j in range(kernel_w):
                    u = ow * step[1] + j * tap[1] + offset[1]
                    w = u if hole[1] == 1 else u // hole[1]
                    if row_inside and 0 <= w < width and w * hole[1] == u:
                        for c in range(channels):
                            out[n, oh, ow, i, j, c] = x[n, h, w, c]
                    else:
                        for c in range(channels):
                            out[n, oh, ow, i, j, c] = fill[n]


def gather_columns(x: Any, fill: Any, out: Any, step: Any, tap: Any, offset: Any) -> None:
    """Write the transpose of `gather_rows` without holes: x (N, C, H, W) -> out (KH, KW, C, N, OH, OW)."""
    count = out.shape[0] * out.shape[1] * out.shape[2]
    threads.run(
        lambda first, last: _gather_columns(x, fill, out, step, tap, offset, first, last),
        threads.parts(count, out.size // max(count, 1)),
    )


@kernel
def _gather_columns(x: Any, fill: Any, out: Any, step: Any, tap: Any, offset: Any, first: int, last: int) -> None:
    channels, kernel_w = x.shape[1], out.shape[1]
    for job in range(first, last):
        i, j, c = job // (kernel_w * channels), job // channels % kernel_w, job % channels
        _gather_plane(x, fill, out[i, j, c], (i, j, c), step, tap, offset)


@inner
def _gather_plane(x: Any, fill: Any, out: Any, which: Any, step: Any, tap: Any, offset: Any) -> None:
    """Write what every output position meets of one channel through one tap to out (N, OH, OW)."""
    i, j, c = which
    samples, _, height, width = x.shape
    rows, columns = out.shape[1:]
    left = j * tap[1] + offset[1]
    # Columns start..stop-1 of the output read inside the image; the others are padding.
    start = min(max((-left + step[1] - 1) // step[1], 0), columns)
    stop = max(min((width - left + step[1] - 1) // step[1], columns), start)
    for n in range(samples):
        for oh in range(rows):
            h = oh * step[0] + i * tap[0] + offset[0]
            if not 0 <= h < height:
                for ow in range(columns):
                    out[n, oh, ow] = fill[n]
                continue
            for ow in range(start):
                out[n, oh, ow] = fill[n]
            if step[1] == 1:  # a run of neighbours, which the compiler copies by vectors
                source, target = x[n, c, h, start + left : stop + left], out[n, oh, start:stop]
                for ow in range(stop - start):
                    target[ow] = source[ow]
            else:
                for ow in range(start, stop):
                    out[n, oh, ow] = x[n, c, h, ow * step[1] + left]
            for ow in range(stop, columns):
                out[n, oh, ow] = fill[n]


def gather_some_rows(
    x: Any, fill: Any, out: Any, rows: Any, channel: int, positions: Any, step: Any, tap: Any, offset: Any, hole: Any
) -> None:
    """Write the patches of the positions rows, int64 (R,), from `channel` on: x (N, C, H, W) -> out (R, KH, KW, C').

    A row counts samples, then the output positions in (OH, OW) = positions; places are those of `gather_rows`.
    """
    threads.run(
        lambda first, last: _gather_some_rows(
            x, fill, out, rows, channel, positions, step, tap, offset, hole, first, last
        ),
        threads.parts(len(rows), out[0].size * 4),
    )  # fmt: skip


@kernel
def _gather_some_rows(
    x: Any, fill: Any, out: Any, rows: Any, channel: int, positions: Any, step: Any, tap: Any, offset: Any, hole: Any,
    first: int, last: int,
) -> None:  # fmt: skip
    height, width = x.shape[2:]
    kernel_h, kernel_w, channels = out.shape[1:]
    for r in range(first, last):
        n, place = rows[r] // (positions[0] * positions[1]), rows[r] % (positions[0] * positions[1])
        oh, ow = place // positions[1], place % positions[1]
        for i in range(kernel_h):
            v = oh * step[0] + i * tap[0] + offset[0]
            h = v // hole[0]
            row_inside = 0 <= h < height and h * hole[0] == v
            for j in range(kernel_w):
                u = ow * step[1] + j * tap[1] + offset[1]
                w = u // hole[1]
                if row_inside and 0 <= w < width and w * hole[1] == u:
                    for c in range(channels):
                        out[r, i, j, c] = x[n, channel + c, h, w]
                else:
                    for c in range(channels):
                        out[r, i, j, c] = fill[n]


def gather_some_columns(x: Any, fill: Any, out: Any, taps: Any, step: Any, tap: Any, offset: Any) -> None:
    """Write rows of `gather_columns`, those of taps and channels int64 (R, 3): x (N, C, H, W) -> out (R, N, OH, OW)."""
    threads.run(
        lambda first, last: _gather_some_columns(x, fill, out, taps, step, tap, offset, first, last),
        threads.parts(len(taps), out[0].size),
    )


@kernel
def _gather_some_columns(
    x: Any, fill: Any, out: Any, taps: Any, step: Any, tap: Any, offset: Any, first: int, last: int
) -> None:
    for r in range(first, last):
        _gather_plane(x, fill, out[r], (taps[r, 0], taps[r, 1], taps[r, 2]), step, tap, offset)
