"""The primitives on a device, by torch operations and the fused kernels of fqtsim/kernels/gpu (S5.2 to S5.5).

Each method is one individually rounded IEEE operation per element, or a sequence that equals the CPU's; `prove` runs
the same shipped vectors. Nothing waits for the device: faults are noted (faults.py). Numbers of the host become
tensors of the device first, because CUDA divides by a CPU number through its reciprocal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fqtsim.backends.faults import FaultLog
from fqtsim.backends.fused import Fused
from fqtsim.backends.fused_proof import prove_fused
from fqtsim.backends.primitive_vectors import prove
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES, Primitives, _check_fields
from fqtsim.errors import InputError
from fqtsim.kernels.gpu import elementary, elements, householder, norm, quantize, random, sums
from fqtsim.kernels.gpu.launch import Fault, note
from fqtsim.kernels.grid import Grid
from fqtsim.kernels.quantize import Draw
from fqtsim.words import Rounding

TYPES = {
    "int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16, "uint16": torch.int32, "int32": torch.int32,
}  # fmt: skip
"""How codes of a numpy type are held: PyTorch adds no uint16, so those take int32."""


class TorchArrays(Primitives):
    """Moving numbers on one device: the twin of HostArrays."""

    on_device = True
    types = TYPES

    def __init__(self, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.number = lru_cache(maxsize=None)(self._number)  # a recorded step reads them by their place
        self._constants: dict[tuple[str, tuple[int, ...], bytes], torch.Tensor] = {}
        #: While a step is recorded that will be replayed: a number of the host would be that of the recording for ever.
        self.recording = False

    @property
    def host(self) -> Primitives:
        return DEFAULT_PRIMITIVES

    def _number(self, value: float, negative_zero: bool = False) -> torch.Tensor:
        self._refuse_from_host("a number", value)
        return torch.full((), -0.0 if negative_zero else value, dtype=torch.float32, device=self.device)

    def operand(self, x: Any) -> torch.Tensor:
        """Return a float32 tensor of this device; a number becomes one of shape ()."""
        if isinstance(x, torch.Tensor):
            if x.dtype != torch.float32:
                raise InputError(f"dtype = {x.dtype}: operands must be float32; convert the tensor with .float()")
            return x
        value = float(np.float32(x))
        return self.number(value, value == 0 and math.copysign(1, value) < 0)

    def array(self, values: Any) -> Any:
        if isinstance(values, np.ndarray):
            self._refuse_from_host("an array", values.shape)
            return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, non_blocking=True)
        return values.detach().to(self.device, non_blocking=True)

    def _refuse_from_host(self, what: str, which: object) -> None:
        if self.recording:
            raise RuntimeError(f"{what} ({which}) of the host in a recorded step")

    def tensor(self, x: Any) -> torch.Tensor:
        return x.detach()  # type: ignore[no-any-return]

    def constant(self, values: np.ndarray[Any, Any]) -> Any:
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            self._refuse_from_host("a constant", values.shape)
            self._constants[key] = torch.from_numpy(values.copy()).to(self.device)
        return self._constants[key]

    def copy(self, x: Any) -> Any:
        return x.clone()

    def zeros(self, shape: Sequence[int], like: Any) -> Any:
        return torch.zeros(tuple(shape), dtype=like.dtype, device=self.device)

    def select(self, keep: Any, values: Any) -> Any:
        return torch.where(keep, values, self.number(0.0))

    def relu_gradient(self, y: Any, dy: Any) -> Any:
        return self.select(y > 0, dy)

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return torch.where(condition, self.operand(x), y)

    def replace(self, x: Any, where: Any, values: Any) -> None:
        if isinstance(values, torch.Tensor):
            x.copy_(torch.where(where, values, x))
        else:
            x.masked_fill_(where, values)

    def is_nan(self, x: Any) -> Any:
        return torch.isnan(x)

    def pad(self, x: Any, margins: Sequence[tuple[int, int]], value: float) -> Any:
        sides = [side for before_after in reversed(margins) for side in before_after]
        return torch.nn.functional.pad(x, sides, value=value)

    def stack_last(self, arrays: Sequence[Any]) -> Any:
        return torch.stack(tuple(arrays), -1)

    def broadcast(self, x: Any, shape: Sequence[int]) -> Any:
        return x.expand(tuple(shape)).contiguous()

    def row_maximum(self, x: Any) -> Any:
        return x.amax(1, keepdim=True) + self.number(0.0)

    def rows_with(self, shape: tuple[int, int], other: Any, columns: Any, one: Any) -> Any:
        chosen = self.array(columns).to(torch.int64)[:, None] == torch.arange(shape[1], device=self.device)
        return torch.where(chosen, self.operand(one), self.operand(other))

    def integer_sum(self, codes: Any, axes: tuple[int, ...]) -> Any:
        return codes.sum(axes, dtype=torch.int64)

    def scaled_integers(self, total: Any, step: Any) -> Any:
        return (total.to(torch.float64) * step.to(torch.float64)).to(torch.float32)

    def at_least(self, words: Any, threshold: int) -> Any:
        return (words.to(torch.int64) & random.LOW) >= threshold


class TorchPrimitives(TorchArrays):
    """The operations on one device; "cpu" too, where tests compare them with those of NumPy."""

    name = "torch"

    def __init__(self, device: str | torch.device) -> None:
        super().__init__(device)
        self.faults = FaultLog(self.device)
        self.fused_norm: Any = Fused(self.faults)
        self.fused_update: Any = self.fused_norm
        self._proven = False

    def all_finite(self, x: Any) -> bool:
        note(self.faults.site(), ~torch.isfinite(x), Fault.NOT_FINITE)
        return True

    def add(self, x: Any, y: Any) -> Any:
        return self.operand(x) + self.operand(y)

    def subtract(self, x: Any, y: Any) -> Any:
        return self.operand(x) - self.operand(y)

    def multiply(self, x: Any, y: Any) -> Any:
        return self.operand(x) * self.operand(y)

    def divide(self, x: Any, y: Any) -> Any:
        return self.operand(x) / self.operand(y)

    def sqrt(self, x: Any) -> Any:
        return norm.square_root(self.operand(x))

    def maximum(self, x: Any, y: Any) -> Any:
        return torch.maximum(self.operand(x), self.operand(y)) + self.number(0.0)

    def relu(self, x: Any) -> Any:
        return self.maximum(x, np.float32(0))

    def exp(self, x: Any) -> Any:
        return elementary.exp(self.operand(x))

    def log(self, x: Any) -> Any:
        return elementary.log(self.operand(x))

    def rcbrt(self, x: Any) -> Any:
        return elementary.rcbrt(self.operand(x))

    def cos(self, x: Any) -> Any:
        return elementary.cos(self.operand(x), self.faults.site())

    def exact_sum64(self, x: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
        axes = self._axes(x, axis)
        return self._kept(sums.exact_sum64(x, axes, self.faults.site()), axes, keepdims)

    def exact_sum(self, x: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
        axes = self._axes(x, axis)
        return self._kept(sums.exact_sum(x, axes, self.faults.site()), axes, keepdims)

    def _axes(self, x: Any, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
        axes = tuple(range(x.ndim)) if axis is None else (axis,) if isinstance(axis, int) else axis
        return tuple(sorted(a + x.ndim if a < 0 else a for a in axes))

    def _kept(self, total: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
        for axis in axes if keepdims else ():
            total = total.unsqueeze(axis)
        return total

    def random_words(self, seed: int, stream: int, step: random.Step, count: int) -> Any:
        """Return the words as int32, which has the bits of uint32: PyTorch does not compute with uint32."""
        _check_fields(seed, stream, _number(step))
        return random.random_words(seed, stream, step, count, self.device)

    def extremes(self, x: Any) -> tuple[Any, Any]:
        return elements.extremes(x, self.faults.site())

    def quantize(self, x: Any, grid: Any, rounding: Rounding, draw: Draw, storage: str) -> tuple[Any, Any, Any]:
        """Return the codes of x (N, ...), laid out as x; clamps and ties stay on the device, int64 of shape ()."""
        _check_fields(draw.seed, draw.stream, _number(draw.step))
        words = quantize.DeviceDraw(*draw) if rounding is Rounding.STOCHASTIC else None
        codes, counts = quantize.quantize(
            x, grid.step, grid.zero_point, grid.low, grid.high, rounding, words, TYPES[storage], grid.offset
        )
        return codes, counts[0], counts[1]

    def reflect(self, x: Any, groups: Any) -> Any:
        known = groups if isinstance(groups, householder.Groups) else householder.groups_of(groups, self.device)
        return householder.reflect(x, known, self.faults.site())

    def prove(self) -> None:
        """Run the shipped vectors, once. Raises BackendRefused naming the first primitive that fails."""
        if not self._proven:
            self.faults.forget()
            prove(_OnHost(self))
            if self.fused_norm is not None:
                prove_fused(self.device)
            self.faults.forget()  # the vectors hold NaN and infinities
            self._proven = True


def _number(step: random.Step) -> int:
    """Return a step index to check; one on the device was checked where it was written."""
    return step if isinstance(step, int) else 0


class _OnHost:
    """Device primitives with operands and results of NumPy, as the vectors come."""

    def __init__(self, primitives: TorchPrimitives) -> None:
        self._primitives = primitives
        self.name = f"{primitives.name}@{primitives.device.type}"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._primitives, name)

        def call(*operands: Any, **settings: Any) -> Any:
            result = function(*map(self._there, operands), **settings)
            return tuple(map(_here, result)) if isinstance(result, tuple) else _here(result)

        return call

    def _there(self, operand: Any) -> Any:
        if isinstance(operand, np.ndarray):
            return self._primitives.array(operand)
        if isinstance(operand, Grid):
            return quantize.DeviceGrid(*map(self._there, operand))
        return operand


def _here(result: Any) -> Any:
    return result.cpu().numpy() if isinstance(result, torch.Tensor) else result
