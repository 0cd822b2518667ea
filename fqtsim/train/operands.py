"""What a port of the MAC array is fed: codes, the code of real zero, the step of each row (S4, S5.7)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fqtsim.backends.arrays import Array
from fqtsim.errors import InputError
from fqtsim.kernels.differences import differences
from fqtsim.words import IntFormat, ZeroPoint

__all__ = ["Array", "Operand", "decoded", "encoded"]


@dataclass(frozen=True)
class Operand:
    """A tensor as one port takes it; `step` None marks float32 values for the platform's own GEMM."""

    #: Integer codes, in the tensor's logical shape.
    codes: Array
    #: float32, shape () or one per index of dimension `axis`.
    step: Array | None
    #: int64, as `step`: the code of real zero among `codes`, which padding and stride holes carry.
    zero_point: Array
    #: float32, as `step`: what is added to every value but that of a hole; None where nothing is.
    offset: Array | None = None
    #: The dimension whose indices have steps of their own, where there are several: 0, or that of output channels.
    axis: int = 0

    @property
    def per_row(self) -> bool:
        """Tell whether each index of dimension 0 has its own step."""
        return self.step is not None and self.step.ndim > 0 and self.axis == 0

    def with_rows_at(self, axis: int) -> Operand:
        """Return the operand with dimension 0, and the steps along it, moved to another place."""
        return replace(self, codes=np.moveaxis(self.codes, 0, axis), axis=axis) if axis else self

    def fill(self, rows: int) -> Array:
        """Return the code of real zero of each index of dimension 0, in the type of the codes."""
        return along(self.zero_point, rows, self.codes.dtype)

    def channels(self, axis: int, start: int, stop: int) -> Operand:
        """Return the part start..stop-1 of the given axis, for one group of a grouped convolution."""
        index = (slice(None),) * axis + (slice(start, stop),)
        if self.step is None or not self.step.ndim or axis != self.axis:
            return replace(self, codes=self.codes[index])
        part = slice(start, stop)
        offset = None if self.offset is None else self.offset[part]
        return Operand(self.codes[index], self.step[part], self.zero_point[part], offset, axis)


def along(values: Any, count: int, kind: Any) -> Array:
    """Return (count,) values of a type from as many, or from one for all."""
    out = np.empty(count, kind)  # np.broadcast_to and a copy take 5 times as long, and a step does this 300 times
    out[:] = values
    return out


def decoded(values: Array) -> Operand:
    """Wrap float32 values for the platform's own GEMM (fp32 and QAT baselines, outside the bit-exact promise)."""
    return Operand(values, None, np.zeros((), np.int64))


def _on_device(tensor: Any, port: IntFormat, zero_point: ZeroPoint) -> Operand:
    """Return a tensor on a device as a port takes it; a zero point where there must be none is noted there."""
    from fqtsim.train.device_operands import operand

    return operand(tensor, port, zero_point)


def encoded(tensor: Any, port: IntFormat, zero_point: ZeroPoint) -> Operand:
    """Return a QTensor as the port of a datapath takes it.

    Raises InputError where the datapath has no zero points and the tensor has one, and for a float offset on a device.
    """
    tensor = tensor if tensor.format == port else tensor.with_format(port)
    if not isinstance(tensor.codes, np.ndarray):
        return _on_device(tensor, port, zero_point)
    zeros = np.asarray(tensor.zero_point).astype(np.int64)
    if zero_point is ZeroPoint.NONE and zeros.any():
        raise InputError(
            f"zero point = {int(zeros.flat[np.flatnonzero(zeros)[0]])}: a datapath with zero_point: none needs 0; "
            "use zero: symmetric in the recipe, or zero_point: after_accumulate in the hardware"
        )
    codes = np.asarray(tensor.codes)
    if zero_point is ZeroPoint.BEFORE_MULTIPLY:
        # The difference enters the multiplier: one bit wider, signed, and real zero is 0.
        wide = np.dtype(IntFormat(port.bits + 1, True).storage)
        codes = differences(codes, zeros.astype(wide))
        zeros = np.zeros_like(zeros)
    offset = None if tensor.offset is None else np.asarray(tensor.offset)
    return Operand(codes, np.asarray(tensor.step), zeros, offset)
