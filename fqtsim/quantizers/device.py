"""Quantization on a device: the same rules, with nothing read back (S5.6, S5.7, S5.12).

Tensors keep their shape and memory layout; random words go by the row-major index of the logical tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fqtsim.errors import InputError
from fqtsim.kernels.gpu import householder
from fqtsim.kernels.gpu import quantize as kernels
from fqtsim.kernels.gpu.quantize import DeviceGrid
from fqtsim.kernels.quantize import Draw
from fqtsim.quantizers.logarithmic import LogarithmicQuantizer
from fqtsim.quantizers.qtensor import QTensor, checked_format
from fqtsim.words import IntFormat

#: Zero, step, range and scale of the quantizers that have a form here.
_HERE = tuple((zero, "free", "current", "per_row") for zero in ("aligned", "symmetric", "float_offset"))


def in_memory_order(x: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    """Return x (N, ...) as (N, D) without a copy where it is dense, and the way back: columns are mixed alike."""
    order = [0, *sorted(range(1, x.ndim), key=lambda axis: -x.stride()[axis])]
    laid = x.permute(order)
    back = [order.index(axis) for axis in range(x.ndim)]
    return laid.reshape(len(x), -1), lambda rows: rows.reshape(laid.shape).permute(back)


@dataclass(frozen=True)
class DeviceMixing:
    """T = Q diag(s), its groups on the device."""

    known: householder.Groups
    s: torch.Tensor

    @property
    def groups(self) -> list[list[int]]:
        """The groups as lists. Waits for the device."""
        return self.known.lists()

    def undo(self, y: torch.Tensor, primitives: Any) -> torch.Tensor:
        """Return T^-1 y for y (N, ...)."""
        rows, restore = in_memory_order(y)
        return restore(householder.unmix(rows, self.known, self.s, primitives.faults.site()))


@dataclass(frozen=True, eq=False)
class DeviceTensor(QTensor):
    """A QTensor whose arrays, clamps and ties stay on the device."""

    _device_blank: Any = field(repr=False, default=None)

    def _along_rows(self, values: torch.Tensor) -> torch.Tensor:
        return values.reshape(-1, *(1,) * (self.codes.ndim - 1)) if values.ndim else values

    def dequantize(self) -> Any:
        difference = self.codes.to(torch.int32) - self._along_rows(self.zero_point)
        p: Any = self._primitives
        values = p.multiply(difference.to(torch.float32), self._along_rows(self.step))
        if self.offset is not None:
            values = p.add(values, self._along_rows(self.offset))
        return self.unmix(values)

    def unmix(self, y: Any) -> Any:
        return y if self._mixing is None else self._mixing.undo(y, self._primitives)

    def with_format(self, format: IntFormat | str) -> QTensor:
        port = checked_format(format, self.bits)
        move = 2 ** (self.bits - 1) * (self.format.signed - port.signed)
        # Times a boolean: blank rows keep code and zero point 0 in every format.
        moves = (~self._device_blank).to(torch.int32).reshape(self.zero_point.shape) * move
        codes = self.codes.to(torch.int32) + self._along_rows(moves)
        kinds: Any = self._primitives.types  # type: ignore[attr-defined]
        return replace(self, codes=codes.to(kinds[port.storage]), zero_point=self.zero_point + moves, format=port)


def _per_row(values: Any, tensor_wide: bool) -> Any:
    return None if values is None else values.reshape(()) if tensor_wide else values


def quantize(
    quantizer: Any, x: torch.Tensor, draw: Draw, primitives: Any, fixed: tuple[Any, Any] | None
) -> DeviceTensor:
    """Return the codes of x on its device; `fixed` extremes, float32 (1,) of NumPy, stand in for the tensor's own."""
    if isinstance(quantizer, LogarithmicQuantizer):
        raise InputError("luq: codes that are powers of two have no form on a device; use the CPU")
    if (quantizer.zero.value, quantizer.step.value, quantizer.range.value, quantizer.scale.value) not in _HERE:
        raise InputError(
            f"zero = {quantizer.zero.value}, step = {quantizer.step.value}, range = {quantizer.range.value}, scale = "
            f"{quantizer.scale.value}: the authors' zero, power-of-two steps, mean ranges and scales of groups have no "
            "form on a device; use the CPU"
        )
    p, tensor_wide = primitives, not quantizer.per_row
    mixing: Any = None
    if quantizer.mixes:
        least, greatest = p.extremes(x)
        ranges = greatest.to(torch.float64) - least.to(torch.float64)
        groups = householder.group_rows(ranges)
        s = householder.scales(groups, ranges, torch.maximum(greatest, -least))
        mixing = DeviceMixing(groups, s)
        in_order, restore = in_memory_order(x)
        x = restore(householder.mix(in_order, groups, s, p.faults.site()))
    rows = x[None] if tensor_wide else x
    extremes = p.extremes(rows)  # also where the range is fixed: no NaN may pass
    if fixed is not None:
        extremes = p.constant(fixed[0]), p.constant(fixed[1])
    least, greatest = extremes
    signed = quantizer.format.signed
    grid = kernels.grid(quantizer.zero.value, least, greatest, quantizer.bits, signed, p.faults.site())
    emptied = fixed is not None and not (fixed[0].any() or fixed[1].any()) and quantizer.zero.value != "float_offset"
    kept = torch.zeros_like(x) if emptied else x
    step, zero_point, offset = (_per_row(values, tensor_wide) for values in grid[:3])
    place = DeviceGrid(step, zero_point, offset, grid.low, grid.high, grid.blank)
    codes, clamps, ties = p.quantize(kept, place, quantizer.rounding, draw, quantizer.format.storage)
    clamps = clamps + (x != 0).sum() if emptied else clamps
    return DeviceTensor(
        codes=codes, step=place.step, zero_point=place.zero_point, offset=place.offset, clamps=clamps, ties=ties,
        format=quantizer.format, bits=quantizer.bits, groups=None, _blank=np.empty(0, np.bool_), _mixing=mixing,
        _primitives=p, _device_blank=grid.blank,
    )  # fmt: skip
