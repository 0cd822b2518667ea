"""A quantized tensor: codes, and what they stand for (S5.7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from fqtsim.backends.primitives import Primitives
from fqtsim.errors import InputError
from fqtsim.quantizers.arrays import checked_float32, from_library
from fqtsim.words import IntFormat

Array = np.ndarray[Any, Any]


Extremes = tuple[Array, Array]
"""Minimum and maximum of each row, float32 (N,)."""


class Mixing(Protocol):
    """An invertible linear map over dimension 0 that was applied before quantization."""

    @property
    def groups(self) -> list[list[int]]:
        """Row indices of each block of the map, leader first."""

    def undo(self, y: Array, primitives: Primitives) -> Array:
        """Return the inverse map of y (N, D), float32."""


@dataclass(frozen=True, eq=False)
class QTensor:
    """Codes and their meaning: value = step * (code - zero_point), plus offset where there is one.

    Arrays are of the library and device of the tensor that was quantized.
    """

    #: Integers of the port's format, in the shape of the tensor.
    codes: Any
    #: float32, positive; shape () for one grid per tensor, (N,) for one per row (index of dimension 0).
    step: Any
    #: int32, the code of real zero (of the offset, where there is one); shape of step.
    zero_point: Any
    #: float32 in the shape of step, or None.
    offset: Any
    #: How many values fell outside the codes and were brought to the nearest.
    clamps: int
    #: How many quotients lay exactly halfway between two integers, where a rounding to nearest is decided by its word.
    ties: int
    #: The operand port that the codes are for; may be wider than `bits`.
    format: IntFormat
    #: Width of the codes, at most 2**bits of which are in use.
    bits: int
    #: For `bhq`, the rows mixed with each other, leader first; else None.
    groups: list[list[int]] | None
    _blank: Array = field(repr=False)
    _mixing: Mixing | None = field(repr=False)
    _primitives: Primitives = field(repr=False)

    def _per_row(self, values: Any) -> Array:
        """Return a per-grid array as a column that broadcasts over the flattened rows."""
        return from_library(values)[0].reshape(-1, 1)

    def dequantize(self) -> Any:
        """Return the float32 values that the codes stand for, mixing undone; shape of the codes."""
        codes, restore = from_library(self.codes)
        rows = codes.reshape(self._blank.size, -1)
        difference = rows.astype(np.int32) - self._per_row(self.zero_point)
        p = self._primitives
        values = p.multiply(difference.astype(np.float32), self._per_row(self.step))
        if self.offset is not None:
            values = p.add(values, self._per_row(self.offset))
        return self.unmix(restore(values.reshape(codes.shape)))

    def unmix(self, y: Any) -> Any:
        """Return T^-1 y over dimension 0 of a float32 y (N, ...): identity for all quantizers but `bhq`.

        Raises InputError unless y has one row per row of this tensor.
        """
        if self._mixing is None:
            return y
        array, restore = from_library(y)
        if array.ndim == 0 or len(array) != self._blank.size:
            raise InputError(f"y: shape {array.shape} must begin with the {self._blank.size} rows of this tensor")
        rows = np.ascontiguousarray(checked_float32(array)).reshape(len(array), -1)
        return restore(self._mixing.undo(rows, self._primitives).reshape(array.shape))

    def with_format(self, format: IntFormat | str) -> QTensor:
        """Return the same values as codes of another port: codes and zero point moved by 2**(bits - 1) if it is of
        the other signedness.

        Rows without any value but 0 keep code and zero point 0. Raises InputError for a port narrower than `bits`.
        """
        port = checked_format(format, self.bits)
        move = 2 ** (self.bits - 1) * (self.format.signed - port.signed)
        codes, restore = from_library(self.codes)
        zero_point, _ = from_library(self.zero_point)
        moves = np.where(self._blank, 0, move).astype(np.int32)
        rows = codes.reshape(self._blank.size, -1).astype(np.int32) + moves[:, None]
        return replace(
            self,
            codes=restore(rows.astype(port.storage).reshape(codes.shape)),
            zero_point=restore((zero_point.reshape(-1) + moves).reshape(zero_point.shape)),
            format=port,
        )


def checked_format(format: IntFormat | str, bits: int) -> IntFormat:
    """Return the format of a port that holds codes of `bits` bits. Raises InputError if it is narrower, or over 16."""
    port = format if isinstance(format, IntFormat) else IntFormat.parse(format)
    if not bits <= port.bits <= 16:
        raise InputError(
            f"format = {port}: a {bits}-bit quantizer needs a port of {bits}..16 bits; use fewer bits or a wider port"
        )
    return port


def wrap(tensor: QTensor, restore: Callable[[Array], Any]) -> QTensor:
    """Return the tensor with its arrays brought to another library."""
    offset = None if tensor.offset is None else restore(tensor.offset)
    return replace(
        tensor,
        codes=restore(tensor.codes),
        step=restore(tensor.step),
        zero_point=restore(tensor.zero_point),
        offset=offset,
    )
