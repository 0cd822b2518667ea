"""What every quantizer has in common: its settings, and the way from a tensor to codes (S5.6, S5.7)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES, Primitives
from fqtsim.errors import NO_AUTHORS_STEP, InputError, TrainingStopped
from fqtsim.kernels.grid import GRIDS, Grid, power_of_two
from fqtsim.kernels.quantize import Draw
from fqtsim.quantizers.arrays import checked_float32, from_library
from fqtsim.quantizers.qtensor import Extremes, Mixing, QTensor, wrap
from fqtsim.words import IntFormat, Rounding

Array = np.ndarray[Any, Any]


class Zero(StrEnum):
    """Where real zero stands among the codes."""

    #: Real zero is always a code, at whatever place suits the range.
    ALIGNED = "aligned"
    #: Real zero is code 0.
    SYMMETRIC = "symmetric"
    #: The paper's form: the minimum is the first code, and zero need not be a code.
    FLOAT_OFFSET = "float_offset"
    #: Real zero is a code, by the authors' formula, which has no step where the negative side is shorter than one code.
    AUTHORS = "authors"


class Step(StrEnum):
    """Which steps there are."""

    #: Any float32.
    FREE = "free"
    #: Powers of two: the free step rounded up.
    POWER_OF_TWO = "power_of_two"


class Range(StrEnum):
    """Which values a per-tensor grid spans."""

    #: From the smallest to the largest of this tensor.
    CURRENT = "current"
    #: From the mean of the rows' minima to the mean of their maxima; what lies outside is clamped.
    MEAN_OF_ROWS = "mean_of_rows"


class Scale(StrEnum):
    """Which mixed rows share a grid."""

    #: None does: the authors' code.
    PER_ROW = "per_row"
    #: Those of a group: the paper's formula.
    PER_GROUP = "per_group"


@dataclass(frozen=True)
class Quantizer(ABC):
    """Turns float32 tensors into codes. Make one with `fqtsim.quantizer`, which checks the settings."""

    #: Width: codes are 0..2**bits - 1, or less 2**(bits - 1) in a signed port.
    bits: int
    #: How quotients become integers.
    rounding: Rounding
    #: Random bits per element for stochastic rounding, 1..32; 0 for others.
    random_bits: int
    zero: Zero
    #: The operand port that the codes are for.
    format: IntFormat
    step: Step = Step.FREE
    range: Range = Range.CURRENT
    scale: Scale = Scale.PER_ROW

    @abstractmethod
    def _rows(self, x: Array) -> Array:
        """Return x as (rows, D), one grid per row."""

    def _mix(self, rows: Array, primitives: Primitives) -> tuple[Array, Mixing | None, Extremes | None]:
        """Return the rows to quantize, how to undo what was done to them, and their extremes where they are known."""
        return rows, None, None

    #: Whether rows are mixed with each other before quantization.
    mixes = False

    @staticmethod
    def port(bits: int) -> IntFormat:
        """Return the operand port where the caller names none."""
        return IntFormat(bits, signed=False)

    @property
    def code_bits(self) -> int:
        """Width of the codes."""
        return self.bits

    @property
    def per_row(self) -> bool:
        """Whether each row has a grid of its own."""
        return True

    def quantize(
        self,
        x: Any,
        seed: int = 0,
        stream: int = 0,
        step: int = 0,
        primitives: Primitives = DEFAULT_PRIMITIVES,
        range: tuple[float, float] | None = None,
    ) -> QTensor:
        """Quantize a float32 tensor, numpy or torch, any layout; the same library comes out.

        Element i in row-major order of the logical tensor takes word i of (seed, stream, step) (S5.5). A fixed
        `range`, (minimum, maximum) rounded to float32, stands in for the tensor's own: per-tensor quantizers only.
        Raises InputError for another type, an empty tensor, a bad range, or a negative value (with a range, a negative
        minimum) under an unsigned symmetric grid; TrainingStopped for NaN or infinity.
        """
        if primitives.on_device:
            return self._on_device(x, Draw(seed, stream, step, self.random_bits), primitives, range)
        array, restore = from_library(x)
        if checked_float32(array).size == 0:
            raise InputError(f"x: shape {array.shape} has no elements; an empty tensor has no range to quantize")
        rows, mixing, known = self._mix(self._rows(np.asarray(array, order="C")), primitives)
        extremes = known or primitives.extremes(rows)  # also where the range is fixed: no NaN may pass
        if self.scale is Scale.PER_GROUP and mixing is not None:
            extremes = _over_groups(extremes, mixing.groups)
        if self.range is Range.MEAN_OF_ROWS and range is None:
            range = _mean_extremes(array, primitives)
        grid = self._grid(*extremes) if range is None else self._grid(*self._fixed(range))
        draw = Draw(seed, stream, step, self.random_bits)
        # A fixed range of 0 alone has one code, 0, and brings every value to it.
        emptied = range is not None and bool(grid.blank[0])
        kept = np.zeros_like(rows) if emptied else rows
        codes, clamps, ties = self._codes(kept, grid, draw, primitives)
        clamps += int(np.count_nonzero(rows)) if emptied else 0
        shape = (len(rows),) if self.per_row else ()
        tensor = QTensor(
            codes=codes.reshape(array.shape),
            step=grid.step.reshape(shape),
            zero_point=grid.zero_point.reshape(shape),
            offset=None if grid.offset is None else grid.offset.reshape(shape),
            clamps=clamps,
            ties=ties,
            format=self.format,
            bits=self.code_bits,
            groups=None if mixing is None else mixing.groups,
            _blank=grid.blank,
            _mixing=mixing,
            _primitives=primitives,
        )
        return wrap(tensor, restore)

    def _codes(self, rows: Array, grid: Grid, draw: Draw, primitives: Primitives) -> tuple[Array, int, int]:
        """Return the codes of the rows, how many were clamped and how many met a tie."""
        return primitives.quantize(rows, grid, self.rounding, draw, self.format.storage)

    def _on_device(self, x: Any, draw: Draw, primitives: Primitives, range: tuple[float, float] | None) -> QTensor:
        from fqtsim.quantizers.device import quantize

        return quantize(self, x, draw, primitives, None if range is None else self._fixed(range))

    def _fixed(self, range: tuple[float, float]) -> tuple[Array, Array]:
        """Return a fixed range as the extremes of the only row, zeros as +0."""
        if self.per_row:
            raise InputError(f"range = {range}: this quantizer has a range for each row; fix that of a ptq only")
        with np.errstate(over="ignore"):  # beyond float32 is infinity, refused below
            minimum, maximum = (np.array([end], np.float32) + np.float32(0) for end in range)
        if not (np.isfinite(minimum[0]) and np.isfinite(maximum[0]) and minimum[0] <= maximum[0]):
            raise InputError(f"range = {range}: must be two finite float32 in ascending order; give (minimum, maximum)")
        return minimum, maximum

    def _grid(self, minimum: Array, maximum: Array) -> Grid:
        if self.zero is Zero.SYMMETRIC and not self.format.signed and (minimum < 0).any():
            raise InputError(
                f"x: holds {minimum.min()}, and zero = symmetric in format {self.format} has no code below 0; "
                f'use a signed format or zero = "aligned"'
            )
        grid = GRIDS[self.zero](minimum, maximum, self.bits, self.format.signed)
        if np.isnan(grid.step).any():
            raise TrainingStopped(NO_AUTHORS_STEP)
        return grid if self.step is Step.FREE else self._coarse(grid)

    def _coarse(self, grid: Grid) -> Grid:
        coarse = power_of_two(grid)
        if not np.isfinite(coarse.step).all():
            raise InputError(f"step = power_of_two: the step {grid.step.max()} has no power of two above it in float32")
        return coarse


def _mean_extremes(x: Array, primitives: Primitives) -> tuple[float, float]:
    """Return the means of the rows' minima and maxima: the exact sum rounded to float64, divided there."""
    if x.ndim == 0:
        raise InputError("x: shape () has no rows; range = mean_of_rows needs rank 1 or more, use range = current")
    ends = primitives.extremes(np.asarray(x, order="C").reshape(len(x), -1))
    low, high = (math.fsum(end.tolist()) / len(x) for end in ends)
    return low, high


def _over_groups(extremes: tuple[Array, Array], groups: list[list[int]]) -> tuple[Array, Array]:
    """Return the minimum and maximum of each row's group."""
    low, high = (end.copy() for end in extremes)
    for group in groups:
        low[group], high[group] = low[group].min(), high[group].max()
    return low, high
