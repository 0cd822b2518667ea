"""What a layer multiplied, for whoever looks at a part of it: operands, geometry and the float32 product (S4, S5.8).

A product is one GEMM, or one per group of a convolution, by whatever kernel the backend took: only what went in and
what came out is read. Arrays are of NumPy, or tensors of a device; there a part is gathered on the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from fqtsim.backends.direct import Walk
from fqtsim.hw.spec import Datapath
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Pair, Window
from fqtsim.train.lowering import backward_walk, forward_walk, some_gradient_rows, some_rows
from fqtsim.train.operands import Array, Operand

Shape = tuple[int, int, int]


class Side(NamedTuple):
    """What the epilogue needs of each row of a, or column of b: float32, int64 and float32 (count,)."""

    step: Array
    zero_point: Array
    #: None where there is none.
    offset: Array | None


class Part(NamedTuple):
    """Some rows and columns of a product."""

    #: (R, K) and (K, C) codes.
    a: Array
    b: Array
    rows: Side
    columns: Side
    #: (R, C) float32: what the layer got.
    found: Array
    #: bool (R, K): which terms are no holes; None where no operand has an offset.
    met: Array | None

    def on_host(self) -> Part:
        """Return the part as arrays of NumPy. Waits for the device."""
        rows, columns = (Side(*map(_host, side)) for side in (self.rows, self.columns))
        return Part(_host(self.a), _host(self.b), rows, columns, _host(self.found), _host(self.met))


def _host(x: Any) -> Any:
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else x


def scaled(codes: Array, part: Part, dropped: int) -> Array:
    """Return the float32 product (R, C) that accumulators (R, C) mean (S4 "Zero points", S5.8).

    Written out, one NumPy operation per symbol: what checks a kernel must not be that kernel.
    """
    a, b, (row_step, za, row_offset), (column_step, zb, column_offset) = part[:4]
    k, column_step = a.shape[1], column_step.astype(np.float64)
    za, row_step = za[:, None], row_step.astype(np.float64)[:, None]
    value = codes.astype(np.int64)
    if dropped:
        value <<= dropped
    if za.any():
        value -= za * b.sum(0, dtype=np.int64)
    if zb.any():
        value -= zb * a.sum(1, dtype=np.int64)[:, None]
        value += k * za * zb
    total = value.astype(np.float64)
    total *= row_step * column_step
    if row_offset is not None or column_offset is not None:
        total = _with_offsets(total, part)
    product: Array = total.astype(np.float32)
    return product


def _with_offsets(total: Array, part: Part) -> Array:
    """Return total with the terms of float offsets, in the order of S5.8."""
    a, b, (row_step, za, row_offset), (column_step, zb, column_offset) = part[:4]
    row_step, column_step = row_step.astype(np.float64)[:, None], column_step.astype(np.float64)
    met = np.ones(a.shape, np.bool_) if part.met is None else part.met
    if row_offset is not None:
        row_offset = row_offset.astype(np.float64)[:, None]
        # Differences of at most 17 bits: sums of up to 2**36 of them are exact in float64.
        sums = met.astype(np.float64) @ (b.astype(np.int64) - zb).astype(np.float64)
        total = total + sums * (row_offset * column_step)
    if column_offset is not None:
        column_offset = column_offset.astype(np.float64)
        differences = a.sum(1, dtype=np.int64) - a.shape[1] * za
        total = total + differences[:, None].astype(np.float64) * (column_offset * row_step)
    if row_offset is not None and column_offset is not None:
        total = total + met.sum(1)[:, None].astype(np.float64) * (row_offset * column_offset)
    return total


def _side(operand: Operand, index: Array) -> Side:
    def chosen(values: Any) -> Any:
        if values is None:
            return None
        return values[index] if values.ndim else values.reshape(1)[index * 0]

    return Side(chosen(operand.step), chosen(operand.zero_point), chosen(operand.offset))


def _whole(operand: Operand, index: Array) -> Side:
    """Return the side of an operand whose dimension 0 is contracted, and which so has one step."""
    return _side(operand, index if operand.axis else index * 0)


def _permuted(x: Array, *axes: int) -> Array:
    return x.permute(axes) if isinstance(x, torch.Tensor) else x.transpose(axes)


def _columns(x: Array) -> Array:
    """Return (C, ...) as the matrix (K, C)."""
    return x.reshape(x.shape[0], -1).T


@dataclass(frozen=True)
class Product:
    """The products of one layer's GEMM; subclasses know where an output and its codes lie."""

    gemm: Gemm
    #: The tensors that the rows of a and the columns of b are made from.
    a: Operand
    b: Operand
    out: Array
    #: M, N and K of each group.
    shape: Shape
    groups: int = 1

    @property
    def datapath(self) -> Datapath:
        """The hardware of this GEMM."""
        return self.gemm.datapath

    @property
    def names(self) -> tuple[str, str]:
        """The layer and the GEMM."""
        return self.gemm.layer, self.gemm.name

    def part(self, group: int, rows: Array, cols: Array) -> Part:
        """Return some rows and columns of one group; rows (R,) and cols (C,) are int64 arrays of NumPy."""
        if isinstance(self.out, torch.Tensor):
            rows, cols = (torch.from_numpy(index).to(self.out.device) for index in (rows, cols))
        sides = self._sides(group, rows, cols)
        has_offset = any(side.offset is not None for side in sides)
        met = self._met(rows) if has_offset else None
        return Part(
            self._rows(group, rows), self._cols(group, cols), *sides, self._found(group, rows[:, None], cols), met
        )

    def _sides(self, group: int, rows: Array, cols: Array) -> tuple[Side, Side]:
        raise NotImplementedError

    def _rows(self, group: int, rows: Array) -> Array:
        raise NotImplementedError

    def _cols(self, group: int, cols: Array) -> Array:
        raise NotImplementedError

    def _found(self, group: int, rows: Array, cols: Array) -> Array:
        raise NotImplementedError

    def _met(self, rows: Array) -> Array:
        return np.ones((len(rows), self.shape[2]), np.bool_)


@dataclass(frozen=True)
class LinearProduct(Product):
    """fprop and dgrad of a linear layer: a is (N, ..., K), out (N, ..., N')."""

    @property
    def is_dgrad(self) -> bool:
        """Whether b is W itself, and not its transpose."""
        return self.gemm.name == "dgrad"

    def _sides(self, group: int, rows: Array, cols: Array) -> tuple[Side, Side]:
        sample = rows // (self.shape[0] // len(self.a.codes))
        return _side(self.a, sample), _whole(self.b, cols) if self.is_dgrad else _side(self.b, cols)

    def _rows(self, group: int, rows: Array) -> Array:
        return self.a.codes.reshape(-1, self.shape[2])[rows]

    def _cols(self, group: int, cols: Array) -> Array:
        return self.b.codes[:, cols] if self.is_dgrad else self.b.codes[cols].T

    def _found(self, group: int, rows: Array, cols: Array) -> Array:
        return self.out.reshape(-1, self.shape[1])[rows, cols]


@dataclass(frozen=True)
class LinearGradient(Product):
    """wgrad of a linear layer: a is x (N, ..., CI), b dH (N, ..., CO), out (CO, CI)."""

    def _sides(self, group: int, rows: Array, cols: Array) -> tuple[Side, Side]:
        return _whole(self.a, rows), _whole(self.b, cols)

    def _rows(self, group: int, rows: Array) -> Array:
        return self.a.codes.reshape(-1, self.shape[0])[:, rows].T

    def _cols(self, group: int, cols: Array) -> Array:
        return self.b.codes.reshape(-1, self.shape[1])[:, cols]

    def _found(self, group: int, rows: Array, cols: Array) -> Array:
        return self.out[cols, rows]


ONE = Window((1, 1), (1, 1), (0, 0), (0, 0))


@dataclass(frozen=True)
class _Places:
    """Which places of an image some outputs meet along one axis; holes and padding are not met."""

    place: Array
    met: Array


@dataclass(frozen=True)
class ConvProduct(Product):
    """The three products of a convolution."""

    window: Window = ONE
    #: Height and width of the input.
    size: Pair = (1, 1)

    @cached_property
    def walk(self) -> Walk:
        """Which place of an image of `a` an output meets through a tap."""
        walk = backward_walk if self.gemm.name == "dgrad" else forward_walk
        return walk(self.window, self.size)

    def _channels(self, operand: Operand, dimension: int) -> int:
        return int(operand.codes.shape[dimension]) // self.groups

    def _along(self, axis: int, outputs: Array, taps: Array) -> _Places:
        """Return what outputs meet through taps; both broadcast."""
        walk, size = self.walk, self.a.codes.shape[2 + axis]
        place = outputs * walk.step[axis] + taps * walk.tap[axis] + walk.offset[axis]
        hole = walk.hole[axis]
        met = (place >= 0) & (place % hole == 0) & (place // hole < size)
        return _Places((place // hole).clip(0, size - 1), met)

    def _arange(self, like: Array, count: int) -> Array:
        if isinstance(like, torch.Tensor):
            return torch.arange(count, device=like.device)
        return np.arange(count)


@dataclass(frozen=True)
class ConvImages(ConvProduct):
    """fprop and dgrad: a row is a position of a sample, k is (kh, kw, channel)."""

    @property
    def is_dgrad(self) -> bool:
        """Whether b is W with its input channels as columns."""
        return self.gemm.name == "dgrad"

    def _sides(self, group: int, rows: Array, cols: Array) -> tuple[Side, Side]:
        sample = rows // (self.walk.outputs[0] * self.walk.outputs[1])
        columns = _whole(self.b, cols) if self.is_dgrad else _side(self.b, group * self.shape[1] + cols)
        return _side(self.a, sample), columns

    def _split(self, rows: Array) -> tuple[Array, Array, Array]:
        height, width = self.walk.outputs
        return rows // (height * width), rows // width % height, rows % width

    def _taps(self, rows: Array) -> tuple[_Places, _Places]:
        _, down, across = self._split(rows)
        i, j = (self._arange(rows, count) for count in self.walk.taps)
        return self._along(0, down[:, None, None], i[:, None]), self._along(1, across[:, None, None], j)

    def _rows(self, group: int, rows: Array) -> Array:
        channels = self._channels(self.a, 1)
        codes = self.a.codes
        if not isinstance(codes, torch.Tensor):
            return some_rows(self.a, self.walk, range(group * channels, (group + 1) * channels), rows)
        sample, (down, across) = self._split(rows)[0], self._taps(rows)
        channel = group * channels + self._arange(rows, channels)
        met = codes[sample[:, None, None, None], channel, down.place[..., None], across.place[..., None]]
        fill = _side(self.a, sample).zero_point.to(codes.dtype).reshape(-1, 1, 1, 1)
        return torch.where((down.met & across.met)[..., None], met, fill).reshape(len(rows), -1)

    def _met(self, rows: Array) -> Array:
        down, across = self._taps(rows)
        return np.repeat((down.met & across.met).reshape(len(rows), -1), self._channels(self.a, 1), axis=1)

    def _cols(self, group: int, cols: Array) -> Array:
        weight = self.b.codes
        if not self.is_dgrad:
            return _columns(_permuted(weight[group * self.shape[1] + cols], 0, 2, 3, 1))
        outputs = len(weight) // self.groups
        return _columns(_permuted(weight[group * outputs : (group + 1) * outputs][:, cols], 1, 2, 3, 0))

    def _found(self, group: int, rows: Array, cols: Array) -> Array:
        channel = group * self.shape[1] + cols
        if isinstance(self.out, torch.Tensor):
            sample, down, across = self._split(rows)
            return self.out[sample, channel, down, across]
        each = self.walk.outputs[0] * self.walk.outputs[1]
        place = rows // each * (self.out.shape[1] * each) + rows % each
        return self.out.reshape(-1).take(place + channel * each)  # in a third of the time of four indices


@dataclass(frozen=True)
class ConvGradient(ConvProduct):
    """wgrad: a row is a tap and an input channel (kh, kw, ci), k is (n, h, w); b is dH (N, CO, OH, OW)."""

    def _sides(self, group: int, rows: Array, cols: Array) -> tuple[Side, Side]:
        return _whole(self.a, rows), _whole(self.b, group * self.shape[1] + cols)

    def _split(self, rows: Array) -> tuple[Array, Array, Array]:
        channels = self._channels(self.a, 1)
        tap = rows // channels
        return tap // self.walk.taps[1], tap % self.walk.taps[1], rows % channels

    def _taps(self, rows: Array) -> tuple[_Places, _Places]:
        i, j, _ = self._split(rows)
        down, across = (self._arange(rows, count) for count in self.walk.outputs)
        return self._along(0, down[:, None], i[:, None, None]), self._along(1, across, j[:, None, None])

    def _rows(self, group: int, rows: Array) -> Array:
        codes, channels = self.a.codes, self._channels(self.a, 1)
        i, j, channel = self._split(rows)
        channel = group * channels + channel
        if not isinstance(codes, torch.Tensor):
            return some_gradient_rows(self.a, self.walk, np.stack((i, j, channel), 1))
        down, across = self._taps(rows)
        sample = self._arange(rows, len(codes))[:, None, None]
        places = down.place[:, None], across.place[:, None]
        met = codes[sample, channel[:, None, None, None], *places]
        fill = _whole(self.a, sample.reshape(-1)).zero_point.to(codes.dtype).reshape(-1, 1, 1)
        return torch.where((down.met & across.met)[:, None], met, fill).reshape(len(rows), -1)

    def _met(self, rows: Array) -> Array:
        down, across = self._taps(rows)
        return np.tile((down.met & across.met).reshape(len(rows), -1), (1, len(self.a.codes)))

    def _cols(self, group: int, cols: Array) -> Array:
        return _columns(_permuted(self.b.codes[:, group * self.shape[1] + cols], 1, 0, 2, 3))

    def _found(self, group: int, rows: Array, cols: Array) -> Array:
        i, j, channel = self._split(rows)
        return self.out[group * self.shape[1] + cols, channel, i, j]


def linear_product(gemm: Gemm, a: Operand, b: Operand, out: Array) -> Product:
    """Return what a linear layer multiplied: codes a and b as its functions take them (functional.py)."""
    rows, features = math.prod(a.codes.shape[:-1]), int(a.codes.shape[-1])
    if gemm.name == "wgrad":
        return LinearGradient(gemm, a, b, out, (features, int(b.codes.shape[-1]), rows))
    return LinearProduct(gemm, a, b, out, (rows, int(out.shape[-1]), features))


def conv_product(
    gemm: Gemm, a: Operand, b: Operand, out: Array, window: Window, groups: int, shape: tuple[int, ...]
) -> Product:
    """Return what a convolution multiplied; shape (N, C, H, W) is that of the input, for dgrad."""
    images = out if gemm.name != "wgrad" else b.codes
    rows = int(images.shape[0] * images.shape[2] * images.shape[3])
    each = window.kernel[0] * window.kernel[1] * int(a.codes.shape[1]) // groups
    if gemm.name == "wgrad":
        sizes = each, int(out.shape[0]) // groups, rows
        return ConvGradient(gemm, a, b, out, sizes, groups, window, (int(a.codes.shape[2]), int(a.codes.shape[3])))
    size = (shape[2], shape[3]) if gemm.name == "dgrad" else (int(a.codes.shape[2]), int(a.codes.shape[3]))
    return ConvImages(gemm, a, b, out, (rows, int(out.shape[1]) // groups, each), groups, window, size)
