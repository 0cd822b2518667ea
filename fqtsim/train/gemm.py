"""One GEMM of a layer: codes into the datapath, zero points and steps after it (S4 "Zero points", S5.8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fqtsim.backends.base import GemmResult
from fqtsim.backends.checksum import Checksum
from fqtsim.backends.direct import Gradient, Images
from fqtsim.errors import BackendRefused, InputError
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import epilogue
from fqtsim.train.lowering import Met, all_met
from fqtsim.train.operands import Array, along
from fqtsim.train.run import Run

INT64_BITS = 63

Shape = tuple[int, int, int]
"""M, N and K."""


@dataclass(frozen=True)
class Matrix:
    """One operand of a GEMM; its step and zero point may vary along the dimension that is not contracted."""

    #: (M, K) for a, (K, N) for b; integer codes, or float32 where `step` is None.
    codes: Array
    #: float32, () or (M,) for a, (N,) for b.
    step: Array | None
    #: int64, shaped as `step`: what a code of real zero still holds after the datapath.
    zero_point: Array
    #: float32, shaped as `step`: the float offset of every value but those of holes; None where there is none.
    offset: Array | None = None


@dataclass(frozen=True)
class Matrices:
    """The same operand of one GEMM per group, all of one shape."""

    #: (G, M, K) for a, (G, K, N) for b.
    codes: Array
    #: One per group, whose codes are its part of the array above.
    parts: list[Matrix]


@dataclass(frozen=True)
class Gemm:
    """One of the three GEMMs of one layer, on the hardware of that layer."""

    layer: str
    #: fprop, dgrad or wgrad.
    name: str
    datapath: Datapath
    run: Run
    #: Takes what the codes of each group sum to, where somebody checks that.
    checksum: Checksum | None = None

    def __call__(self, a: Matrix, b: Matrix, rows: int = 1, met: Met | None = None) -> Array:
        """Return the real product (M, N) in float32, laid out as (rows, N, M / rows).

        Operands without a step are multiplied by the platform's own float GEMM. `met` says which terms are no holes
        of a; None: all. Raises InputError where an accumulator with its zero-point terms could pass int64.
        """
        if a.step is None or b.step is None:
            product = torch.mm(torch.from_numpy(a.codes), torch.from_numpy(b.codes)).numpy()
            return np.ascontiguousarray(product.reshape(rows, -1, product.shape[1]).transpose(0, 2, 1))
        try:
            result = self.run.backend.gemm(a.codes, b.codes, self.datapath, None, self.run.trace)
        except BackendRefused as error:
            raise BackendRefused(f"layer {self.layer!r}, {self.name}: {error}") from None
        self._publish(a, b, result)
        return self._finish(a, b, result, rows, met)

    def groups(self, a: Matrices, b: Matrices, rows: int = 1, met: Met | None = None) -> list[Array]:
        """Return what calling this on the matrices of each group would, in order."""
        if a.parts[0].step is None or b.parts[0].step is None:
            return [self(left, right, rows, met) for left, right in zip(a.parts, b.parts, strict=True)]
        try:
            results = self.run.backend.gemm_groups(a.codes, b.codes, self.datapath, self.run.trace)
        except BackendRefused as error:
            raise BackendRefused(f"layer {self.layer!r}, {self.name}: {error}") from None
        products, sides = [], _Sides(a.parts[0], b.parts[0])
        for left, right, result in zip(a.parts, b.parts, results, strict=True):
            self._publish(left, right, result)
            sides = sides if sides.hold_for(left, right) else _Sides(left, right)
            products.append(self._finish(left, right, result, rows, met, sides))
        return products

    def convolve(self, job: Images, matrices: Callable[[], tuple[Array, Array]]) -> Array | None:
        """Return what calling this on the matrices of a convolution would, (N, CO, OH, OW) in float32.

        None where the backend has no way without matrices. `matrices` makes the codes of both, for observers.
        """
        if self.run.trace:
            return None
        out = np.empty((len(job.codes), len(job.weight), *job.walk.outputs), np.float32)
        result = self.run.backend.convolve(job, self.datapath, out, bool(self.run.observers))
        if result is None:
            return None
        check_width(self, self._largest(result), job.terms)
        self._tell((out[:, 0].size, out.shape[1], job.terms), result, matrices)
        return out

    def correlate(
        self, job: Gradient, sides: tuple[Matrix, Matrix], matrices: Callable[[], tuple[Array, Array]]
    ) -> Array | None:
        """Return what calling this on the matrices of wgrad would, (CO, KH * KW * CI) in float32, or None as above.

        sides: steps and zero points of both matrices, without codes.
        """
        found = None if self.run.trace else self.run.backend.correlate(job, self.datapath)
        if found is None:
            return None
        result, row_sums, column_sums = found
        m, n = result.codes.shape
        if self.checksum is not None:
            self.checksum.add(result.codes)
        check_width(self, self._largest(result), job.terms)
        self._tell((m, n, job.terms), result, matrices)
        row, column = np.zeros((2, m), np.int64), np.zeros((2, n), np.int64)
        row[0], column[0], row[1], column[1] = sides[0].zero_point, sides[1].zero_point, row_sums, column_sums
        out = np.empty((1, n, m), np.float32)
        steps = _steps(sides[0].step, m), _steps(sides[1].step, n)
        epilogue.finish(result.codes, self.datapath.dropped_bits, job.terms, row, column, steps, out)
        return out[0]

    def _tell(self, shape: Shape, result: GemmResult, matrices: Callable[[], tuple[Array, Array]]) -> None:
        self.run.note(self.layer, self.name, shape, result)
        if self.run.observers:
            a, b = matrices()
            for observe in self.run.observers:
                observe(self.layer, self.name, a, b, self.datapath, None, result)

    def _publish(self, a: Matrix, b: Matrix, result: GemmResult) -> None:
        shape = (a.codes.shape[0], b.codes.shape[1], a.codes.shape[1])
        if self.checksum is not None:
            self.checksum.add(result.codes)
        self._tell(shape, result, lambda: (a.codes, b.codes))

    def _largest(self, result: GemmResult) -> int:
        """Return the largest magnitude that a code of a result can have."""
        register = self.datapath.accumulator.register_format
        return max(-result.minimum, result.maximum) if register is None else 1 << register.bits

    def _finish(
        self, a: Matrix, b: Matrix, result: GemmResult, rows: int, met: Met | None, sides: _Sides | None = None
    ) -> Array:
        (m, k), n = a.codes.shape, b.codes.shape[1]
        row, column = np.zeros((2, m), np.int64), np.zeros((2, n), np.int64)
        sides = sides or _Sides(a, b)
        row[0], column[0] = a.zero_point, b.zero_point
        # Only the other side's zero point multiplies a sum, so most sums are never formed.
        if sides.b_shifted or b.offset is not None:
            epilogue.row_sums(a.codes, row[1])
        if sides.a_shifted:
            column[1] = b.codes.sum(axis=0, dtype=np.int64)
        dropped = self.datapath.dropped_bits
        check_width(self, self._largest(result), k)
        out = np.empty((rows, n, m // rows), np.float32)
        steps = sides.a_steps, sides.b_steps
        if a.offset is None and b.offset is None:
            epilogue.finish(result.codes, dropped, k, row, column, steps, out)
            return out
        met = all_met(k) if met is None else met
        sums = np.zeros((1, n), np.int64) if a.offset is None else met.sums(b.codes, b.zero_point)
        offsets = _offsets(a.offset, m), _offsets(b.offset, n)
        epilogue.finish_offset(result.codes, dropped, k, row, column, steps, offsets, (sums, met.counts), out)
        return out


def check_width(gemm: Gemm, largest: int, k: int) -> None:
    """Keep the zero-point correction of codes up to `largest` inside int64; up to about 50 bits they always are."""
    path = gemm.datapath
    correction = 3 * k << (path.a_format.bits + path.b_format.bits)
    if ((largest << path.dropped_bits) + correction).bit_length() > INT64_BITS:
        raise InputError(
            f"layer {gemm.layer!r}, {gemm.name}: an accumulator of {path.accumulator.register} with "
            f"{path.dropped_bits} dropped bits passes int64 in the zero-point terms; use a narrower register"
        )


class _Sides:
    """What the steps and zero points of two operands say, found once for all groups that share them."""

    def __init__(self, a: Matrix, b: Matrix) -> None:
        self.steps = a.step, b.step
        self.a_shifted, self.b_shifted = bool(a.zero_point.any()), bool(b.zero_point.any())
        self.a_steps, self.b_steps = _steps(a.step, a.codes.shape[0]), _steps(b.step, b.codes.shape[1])
        self.zero_points = a.zero_point, b.zero_point

    def hold_for(self, a: Matrix, b: Matrix) -> bool:
        """Tell whether these operands have the very steps and zero points that this was made from."""
        theirs = (a.step, b.step, a.zero_point, b.zero_point)
        return all(x is y for x, y in zip(theirs, (*self.steps, *self.zero_points), strict=True))


def _offsets(offset: Array | None, count: int) -> Array:
    return np.empty(0, np.float64) if offset is None else _steps(offset, count)


def _steps(step: Array | None, count: int) -> Array:
    return along(step, count, np.float64)
