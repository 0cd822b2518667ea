"""Everything that a layer may do to float32 numbers (S5.2 to S5.5): the vocabulary of the training arithmetic.

Each method is one individually rounded IEEE operation per element, or a fixed sequence of them. NumPy's add,
subtract, multiply, divide and sqrt are such operations; `prove` checks on this machine that they are.
A result out of range is an infinity or a NaN here; the next exact_sum or quantization stops the step (S5.9).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fqtsim.backends.arrays import HostArrays
from fqtsim.backends.fused_cpu import FUSED_NORM, FUSED_UPDATE
from fqtsim.backends.primitive_vectors import prove
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.kernels import elementary, threads
from fqtsim.kernels import exact_sum as _exact_sum
from fqtsim.kernels import householder as _householder
from fqtsim.kernels import luq as _luq
from fqtsim.kernels import norm as _norm
from fqtsim.kernels import quantize as _quantize
from fqtsim.kernels import random as _random
from fqtsim.kernels.ends import from_keys
from fqtsim.kernels.grid import Grid
from fqtsim.kernels.quantize import Draw
from fqtsim.words import Rounding

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Operand = npt.NDArray[np.float32] | np.float32 | float
"""A float32 array, or a number, which then names the nearest float32 value."""


def as_float32(x: Operand) -> Float32:
    """Return x as a float32 array. Raises InputError for an array of another type: nothing is converted silently."""
    if isinstance(x, (float, int)) and not isinstance(x, np.generic):
        return np.asarray(np.float32(x))
    array: Float32 = np.asarray(x)
    if array.dtype != np.float32:
        raise InputError(f"dtype = {array.dtype}: operands must be float32; convert the array with astype(np.float32)")
    return array


def _ieee(function: Callable[..., Any], *operands: Operand) -> Float32:
    """Return function(*operands), elementwise; in threads over dimension 0 where that is worth it."""
    arrays = [as_float32(operand) for operand in operands]
    whole = max(arrays, key=lambda array: array.size)
    large = whole.size >= 2 * threads.SMALLEST_PART and whole.ndim
    ranges = threads.parts(len(whole), whole.size // len(whole), quick=True) if large else []
    if len(ranges) < 2 or np.broadcast_shapes(*(array.shape for array in arrays)) != whole.shape:
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays))
    out = np.empty_like(whole)
    along = [array.ndim == whole.ndim and len(array) == len(whole) for array in arrays]

    def part(first: int, last: int) -> None:
        with np.errstate(all="ignore"):
            parts = (array[first:last] if cut else array for array, cut in zip(arrays, along, strict=True))
            function(*parts, out=out[first:last])

    threads.run(part, ranges)
    return out


def _maximum(x: Float32, y: Float32, out: Float32 | None = None) -> Any:
    return np.add(np.maximum(x, y, out=out), np.float32(0), out=out)


def _check_fields(seed: int, stream: int, step: int) -> None:
    for name, value, bits in (("seed", seed, 64), ("stream", stream, 32), ("step", step, 32)):
        if not 0 <= value < 1 << bits:
            raise InputError(f"{name} = {value}: must be 0..2**{bits} - 1, a field of the generator; use a smaller one")


class Primitives(HostArrays):
    """The operations on the CPU, by NumPy and Numba."""

    name = "numpy"
    fused_norm, fused_update = FUSED_NORM, FUSED_UPDATE

    def __init_subclass__(cls) -> None:
        """A subclass, whose primitives may be others, runs the sequences unless it brings fused forms itself."""
        for form in ("fused_norm", "fused_update"):
            setattr(cls, form, cls.__dict__.get(form))

    @property
    def host(self) -> Primitives:
        """Primitives for the few numbers that stay on the CPU, the learning rate among them."""
        return self

    def add(self, x: Operand, y: Operand) -> Float32:
        """Return x + y."""
        return _ieee(np.add, x, y)

    def subtract(self, x: Operand, y: Operand) -> Float32:
        """Return x - y."""
        return _ieee(np.subtract, x, y)

    def multiply(self, x: Operand, y: Operand) -> Float32:
        """Return x * y."""
        return _ieee(np.multiply, x, y)

    def divide(self, x: Operand, y: Operand) -> Float32:
        """Return x / y."""
        return _ieee(np.divide, x, y)

    def sqrt(self, x: Operand) -> Float32:
        """Return the square root."""
        return _ieee(np.sqrt, x)

    def maximum(self, x: Operand, y: Operand) -> Float32:
        """Return the larger, never -0 (S5.9); NaN if either is."""
        return _ieee(_maximum, x, y)

    def relu(self, x: Float32) -> Float32:
        """Return max(x, 0), never -0; NaN stays."""
        if type(self) is not Primitives:
            return self.maximum(x, np.float32(0))
        y: Float32 = _norm.relu(as_float32(x))
        return y

    def relu_gradient(self, y: Float32, dy: Float32) -> Float32:
        """Return dy where y is positive, else +0."""
        if type(self) is not Primitives:
            chosen: Float32 = super().relu_gradient(y, dy)
            return chosen
        dx: Float32 = _norm.relu_gradient(as_float32(y), as_float32(dy))
        return dx

    def exp(self, x: Operand) -> Float32:
        """Return e**x (S5.4)."""
        return elementary.exp(as_float32(x))

    def log(self, x: Operand) -> Float32:
        """Return the natural logarithm (S5.4): -infinity at 0, NaN below."""
        return elementary.log(as_float32(x))

    def rcbrt(self, x: Operand) -> Float32:
        """Return x**(-1/3) (S5.4): infinity at 0, NaN below."""
        return elementary.rcbrt(as_float32(x))

    def cos(self, x: Operand) -> Float32:
        """Return the cosine of |x| <= 2**20 radians (S5.4). Raises InputError beyond."""
        array = as_float32(x)
        if array.size and np.abs(array).max() > elementary.COS_LIMIT:
            raise InputError("x: cos is defined for |x| <= 1048576 radians; reduce the argument first")
        return elementary.cos(array)

    def exact_sum64(self, x: Float32, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Float64:
        """Return the sum over `axis` as float64, whatever the order of terms (S5.3).

        Raises TrainingStopped if a term is NaN or infinite.
        """
        array = as_float32(x)
        axes = tuple(range(array.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
        axes = tuple(a + array.ndim if a < 0 else a for a in axes)
        if len(set(axes)) != len(axes) or not all(0 <= a < array.ndim for a in axes):
            raise InputError(f"axis = {axis}: must be distinct axes of a rank {array.ndim} array")
        total = _exact_sum.exact_sum64(array, axes)
        if np.isnan(total).any():
            raise TrainingStopped("exact_sum: a term is not finite (NaN or infinity); the step cannot go on")
        return np.expand_dims(total, axes) if keepdims else total

    def exact_sum(self, x: Float32, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Float32:
        """Return exact_sum64 rounded to float32.

        Raises TrainingStopped if a term is NaN or infinite, or the sum is beyond float32.
        """
        with np.errstate(over="ignore"):
            total = np.asarray(self.exact_sum64(x, axis, keepdims).astype(np.float32))
        if not np.isfinite(total).all():
            raise TrainingStopped("exact_sum: the sum is beyond float32; the step cannot go on")
        return total

    def random_words(self, seed: int, stream: int, step: int, count: int) -> npt.NDArray[np.uint32]:
        """Return words 0..count of one stream and step (S5.5): element i is word i mod 4 of counter block i div 4.

        Raises InputError where a number does not fit its field: seed 64 bits, stream, step and count / 4 32 bits.
        """
        if not 0 <= count <= 1 << 34:
            raise InputError(f"count = {count}: must be 0..2**34, the length of one stream; split the tensor")
        _check_fields(seed, stream, step)
        return _random.random_words(seed, stream, step, count)

    def extremes(self, x: Float32) -> tuple[Float32, Float32]:
        """Return minimum and maximum of each row of x (N, D), never -0.

        Raises TrainingStopped if a value is not finite.
        """
        least, greatest = _quantize.extremes(np.ascontiguousarray(as_float32(x)))
        broken = ~(np.isfinite(least) & np.isfinite(greatest))
        if broken.any():
            row = int(np.argmax(broken))
            column = int(np.argmax(~np.isfinite(x[row])))
            raise TrainingStopped(
                f"row {row}, element {column} = {x[row, column]}: a tensor to quantize must be finite; "
                "the step cannot go on"
            )
        return least, greatest

    def quantize(
        self, x: Float32, grid: Grid, rounding: Rounding, draw: Draw, storage: str
    ) -> tuple[npt.NDArray[np.integer[Any]], int, int]:
        """Return the codes of x (N, D) in the numpy type `storage`, one grid per row; clamps; ties met (S5.7).

        Fused: divide, draw, round, add the zero point, clamp. Raises InputError as random_words does.
        """
        _check_fields(draw.seed, draw.stream, draw.step)
        return _quantize.quantize(np.ascontiguousarray(as_float32(x)), grid, rounding, draw, storage)

    def log_codes(self, x: Float32, grid: Grid, draw: Draw, storage: str) -> tuple[npt.NDArray[np.integer[Any]], int]:
        """Return the codes of x (1, D), zero or powers of two, and how many were clamped (docs/quantizers.md, Q9)."""
        _check_fields(draw.seed, draw.stream, draw.step)
        return _luq.log_codes(np.ascontiguousarray(as_float32(x)), grid, draw, storage)

    def reflect(self, x: Float32, groups: list[list[int]]) -> Float32:
        """Return Q x for x (N, D): the rows of each group, leader first, reflected (docs/quantizers.md, Q8).

        Fused here; a subclass, whose primitives may be others, gets the composition unless it fuses them itself.
        Raises TrainingStopped as exact_sum does.
        """
        if type(self) is not Primitives:
            return self.composed_reflect(x, groups)
        return self._mixed(x, groups, np.ones(len(x), np.float32), True).rows

    def mix(self, x: Float32, s: Float32, groups: list[list[int]]) -> tuple[Float32, Float32, Float32]:
        """Return Q (s x) for x (N, D) and s (N,), and minimum and maximum of each of its rows.

        Raises TrainingStopped as reflect and extremes do.
        """
        if type(self) is not Primitives:
            rows = self.reflect(self.multiply(x, s[:, None]), groups)
            return rows, *self.extremes(rows)
        mixed = self._mixed(x, groups, as_float32(s), False)
        least, greatest = from_keys(mixed.ends)
        if not (np.isfinite(least).all() and np.isfinite(greatest).all()):
            least, greatest = self.extremes(mixed.rows)  # which says where
        return mixed.rows, least, greatest

    def unmix(self, y: Float32, s: Float32, groups: list[list[int]]) -> Float32:
        """Return (Q y) / s for y (N, D) and s (N,)."""
        if type(self) is not Primitives:
            return self.divide(self.reflect(y, groups), s[:, None])
        return self._mixed(y, groups, as_float32(s), True).rows

    def _mixed(self, x: Float32, groups: list[list[int]], sides: Float32, divides: bool) -> _householder.Mixed:
        mixed = _householder.mix(as_float32(x), groups, sides, divides)
        if not mixed.finite:
            raise TrainingStopped(
                "reflect: a row holds NaN or infinity, or a sum is beyond float32; the step cannot go on"
            )
        return mixed

    def composed_reflect(self, x: Float32, groups: list[list[int]]) -> Float32:
        """Return what `reflect` does, by the other primitives: what it must equal bit for bit."""
        out = np.array(as_float32(x))
        for group in groups:
            if len(group) > 1:
                root, leader = self.sqrt(float(len(group))), x[group[0]]
                mean = self.divide(self.exact_sum(x[group], 0), root)
                pull = self.divide(self.subtract(mean, leader), self.subtract(root, 1.0))
                out[group[0]] = mean
                out[group[1:]] = self.subtract(x[group[1:]], pull)
        return out

    def prove(self) -> None:
        """Run the shipped vectors, and prove the fused forms. Raises BackendRefused naming the first that fails."""
        prove(self)
        if type(self) is Primitives:
            from fqtsim.backends.fused_cpu_proof import prove_elements

            prove_elements()


DEFAULT_PRIMITIVES = Primitives()
