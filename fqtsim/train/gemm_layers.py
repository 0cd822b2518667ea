"""Linear and Conv2d: quantize, three GEMMs, epilogue (S5 "The three GEMMs").

X and W are quantized once for all GEMMs that read them; dH once by Q_b1 for wgrad and the bias, once by Q_b2 for dgrad.
A port that the recipe leaves float runs on the platform's own GEMM, with the values that its partner's codes denote.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fqtsim import streams
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.hw.spec import Hardware
from fqtsim.quantizers import quantizer
from fqtsim.recipe.spec import Recipe
from fqtsim.train import functional
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Pair
from fqtsim.train.graph import ConvOptions
from fqtsim.train.layer import Gradients, Layer
from fqtsim.train.moving_range import NONE_YET, SUFFIX, Range, from_steps_before, kept
from fqtsim.train.operands import Array, Operand, decoded, encoded
from fqtsim.train.products import Product, conv_product, linear_product
from fqtsim.train.run import Run
from fqtsim.words import Rounding

#: Per port: its random stream, the GEMM and operand whose format its codes are made for, and its name in messages.
_PORTS = {
    "activation": (streams.ACTIVATION, "fprop", "a", "activation"),
    "weight": (streams.WEIGHT, "fprop", "b", "weight"),
    "grad_for_wgrad": (streams.GRAD_FOR_WGRAD, "wgrad", "b", "output gradient"),
    "grad_for_dgrad": (streams.GRAD_FOR_DGRAD, "dgrad", "a", "output gradient"),
}


@dataclass(frozen=True)
class Quantized:
    """A tensor after its port: a QTensor, or the float values where the port is float."""

    tensor: Any
    is_float: bool
    #: Where dimension 0 of the codes belongs.
    axis: int = 0

    def values(self) -> Array:
        """Return the float32 values, those of the codes where there are codes."""
        return self.tensor if self.is_float else self.tensor.dequantize()


class GemmLayer(Layer):
    """A layer with a weight whose three products run on the hardware. Subclasses say how tensors become matrices."""

    def __init__(self, name: str, run: Run, index: int, module: Any, recipe: Recipe, hardware: Hardware) -> None:
        super().__init__(name, run)
        self.index, self.recipe, self.hardware = index, recipe, hardware
        self.weight, self.bias = module.weight, module.bias
        self.quantizers = {port: self._quantizer(port) for port in _PORTS}
        spec = recipe.port("weight")
        self.per_channel = self._quantizer("weight", "psq") if spec is not None and spec.per_channel else None
        spec = recipe.port("grad_for_wgrad")
        self.per_column = spec is not None and spec.per_channel
        if self.per_column:
            self.quantizers["grad_for_wgrad"] = self._quantizer("grad_for_wgrad", "psq")
        for port in _PORTS:
            spec = recipe.port(port)
            if spec is not None and spec.range == "hindsight":
                self.register_buffer(port + SUFFIX, torch.tensor(NONE_YET))
        #: (minimum, maximum) for every activation tensor (S5.7); None where the recipe's `range` tells.
        self.activation_range: Range | None = None
        #: Activations that a clamp changed: an integer, or a tensor on a device.
        self.activation_clamps_so_far: Any = 0

    @property
    def activation_clamps(self) -> int:
        """Activations that a clamp changed; whoever wants a count from now on sets it to 0."""
        return int(self.activation_clamps_so_far)

    @activation_clamps.setter
    def activation_clamps(self, count: int) -> None:
        self.activation_clamps_so_far = count

    @property
    def activation_range_in_use(self) -> Range | None:
        """The range of every activation tensor in evaluation: a fixed one, or that of training steps (hindsight)."""
        return self.activation_range or kept(self._buffers.get("activation" + SUFFIX))

    @property
    def maths(self) -> Any:
        """The module that has the six products: on the CPU, or on a device."""
        if not self.run.primitives.on_device:
            return functional
        from fqtsim.train import on_device

        return on_device

    def _quantizer(self, port: str, kind: str | None = None) -> Any:
        spec = self.recipe.port(port)
        if spec is None:
            return None
        _, gemm, operand, _ = _PORTS[port]
        source = self.hardware.random
        bits = source.bits if spec.rounding is Rounding.STOCHASTIC and source is not None else None
        form = getattr(self.hardware.datapath_for(gemm), operand)
        # One step a channel has a range of its own; hindsight gives each tensor one of steps before.
        span = "current" if kind or spec.range == "hindsight" else spec.range
        return quantizer(
            kind or spec.quantizer, spec.bits, spec.rounding, bits, spec.zero, form, spec.step, span, spec.scale
        )

    def weights(self) -> tuple[torch.nn.Parameter, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def _quantize(self, port: str, values: Array, with_quantizer: Any = None) -> Quantized:
        chosen = with_quantizer or self.quantizers[port]
        if chosen is None:
            return Quantized(values, True)
        number, _, _, tensor = _PORTS[port]
        stream, run = streams.stream_id(self.index, number), self.run
        fixed = self.activation_range if port == "activation" else None
        before = self.enter(tensor)
        moving = self._buffers.get(port + SUFFIX)
        try:
            if moving is not None and fixed is None:
                fixed = from_steps_before(moving, values, self.training, run.primitives)
            codes = chosen.quantize(values, run.seed, stream, run.draw_index, run.primitives, fixed)
        except TrainingStopped as error:
            raise self.stopped(tensor, error) from None
        run.primitives.faults.enter(before)
        run.ties = run.ties + codes.ties
        if port == "activation":
            self.activation_clamps_so_far = self.activation_clamps_so_far + codes.clamps
        return Quantized(codes, False)

    def _operands(
        self, name: str, a: Quantized, b: Quantized, shape: tuple[int, ...] = ()
    ) -> tuple[Operand, Operand, Gemm]:
        """Return both operands of a GEMM as its datapath takes them, or both as float values; shape: for dgrad."""
        path = self.hardware.datapath_for(name)
        if a.is_float or b.is_float:
            return decoded(a.values()), decoded(b.values()), Gemm(self.name, name, path, self.run)
        left = encoded(a.tensor, path.a_format, path.zero_point)
        right = encoded(b.tensor, path.b_format, path.zero_point).with_rows_at(b.axis)
        checks, rows = self.run.checks, self._row_shape(name, left, shape)
        checksum = None if checks is None else checks.checksum(self.name, name, path, rows)
        return left, right, Gemm(self.name, name, path, self.run, checksum)

    def compute(self, *x: Array) -> tuple[Array, Any]:
        self._check(x[0].shape)
        weight = self.run.primitives.array(self.weight)
        xq = self._quantize("activation", x[0])
        wq = self._quantize("weight", weight)
        forward = wq if self.per_channel is None else self._quantize("weight", weight, self.per_channel)
        a, b, gemm = self._operands("fprop", xq, forward)
        y = self._shown(a, b, gemm, self.fprop(a, b, gemm))
        if self.bias is not None:
            p = self.run.primitives
            y = p.add(y, self._along_output(p.array(self.bias), y))
        return y, (xq, wq, x[0].shape)

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: tuple[bool, ...]) -> tuple[Gradients, Gradients]:
        xq, wq, shape = saved
        # Without dgrad no Q_b2 is drawn; streams are per port, so nothing else moves.
        dx = self._input_gradient(wq, dy[0], shape) if wanted[0] else None
        if not any(wanted[1:]):
            return (dx,), (None,) * (len(wanted) - 1)
        a, b, gemm = self._operands("wgrad", xq, self._gradient_for_wgrad(dy[0]))
        dw = self._shown(a, b, gemm, self.wgrad(a, b, gemm)) if wanted[1] else None
        if self.bias is None:
            return (dx,), (dw,)
        return (dx,), (dw, functional.bias_gradient(b, self._summed_axes(dy[0]), self.run.primitives))

    def _gradient_for_wgrad(self, dy: Array) -> Quantized:
        if not self.per_column or self.quantizers["grad_for_wgrad"] is None:
            return self._quantize("grad_for_wgrad", dy)
        if self.run.primitives.on_device:
            raise InputError("grad_for_wgrad.per_channel = true: has no form on a device; use the CPU")
        rows = self.as_quantized("grad_for_wgrad", dy)
        return replace(self._quantize("grad_for_wgrad", rows), axis=self._channel_axis(dy))

    def as_quantized(self, port: str, dy: Array) -> Array:
        """Return an output gradient as the quantizer of a port takes it: with output channels first, if per channel."""
        if port != "grad_for_wgrad" or not self.per_column:
            return dy
        return np.ascontiguousarray(np.moveaxis(dy, self._channel_axis(dy), 0))

    def _input_gradient(self, wq: Quantized, dy: Array, shape: tuple[int, ...]) -> Array:
        dh = self._quantize("grad_for_dgrad", dy)
        a, b, gemm = self._operands("dgrad", dh, wq, shape)
        dx = self._shown(a, b, gemm, self.dgrad(a, b, gemm, shape), shape)
        return dx if dh.is_float else dh.tensor.unmix(dx)

    def _shown(self, a: Operand, b: Operand, gemm: Gemm, out: Array, shape: tuple[int, ...] = ()) -> Array:
        """Return a product of codes, `out`, after whoever watches has seen it; shape: that of the input, for dgrad."""
        run = self.run
        if (run.watchers or run.checks) and a.step is not None and b.step is not None:
            product = self._product(a, b, gemm, out, shape)
            for watch in run.watchers:
                watch(product)
            if run.checks is not None:
                run.checks.watch(product)
        return out

    def _product(self, a: Operand, b: Operand, gemm: Gemm, out: Array, shape: tuple[int, ...]) -> Product:
        """Return a product with what says where its outputs lie."""
        raise NotImplementedError

    def _row_shape(self, gemm: str, a: Operand, shape: tuple[int, ...]) -> Pair:
        """Return what the rows of a GEMM count: samples and positions, or taps and channels (RowWords)."""
        raise NotImplementedError

    def fprop(self, x: Operand, w: Operand, gemm: Gemm) -> Array:
        """Return the layer's product, before the bias."""
        raise NotImplementedError

    def dgrad(self, dh: Operand, w: Operand, gemm: Gemm, shape: tuple[int, ...]) -> Array:
        """Return the gradient of an input of `shape`."""
        raise NotImplementedError

    def wgrad(self, x: Operand, dh: Operand, gemm: Gemm) -> Array:
        """Return the gradient of the weight."""
        raise NotImplementedError

    def _check(self, shape: tuple[int, ...]) -> None:
        raise NotImplementedError

    def _along_output(self, bias: Array, y: Array) -> Array:
        raise NotImplementedError

    def _channel_axis(self, dy: Array) -> int:
        raise NotImplementedError

    def _summed_axes(self, dy: Array) -> tuple[int, ...]:
        channels = self._channel_axis(dy)
        return tuple(axis for axis in range(dy.ndim) if axis != channels)


class Linear(GemmLayer):
    """y = x W^T + b over the last dimension."""

    def fprop(self, x: Operand, w: Operand, gemm: Gemm) -> Array:
        return self.maths.linear_fprop(x, w, gemm)

    def dgrad(self, dh: Operand, w: Operand, gemm: Gemm, shape: tuple[int, ...]) -> Array:
        return self.maths.linear_dgrad(dh, w, gemm)

    def wgrad(self, x: Operand, dh: Operand, gemm: Gemm) -> Array:
        return self.maths.linear_wgrad(x, dh, gemm)

    def _product(self, a: Operand, b: Operand, gemm: Gemm, out: Array, shape: tuple[int, ...]) -> Product:
        return linear_product(gemm, a, b, out)

    def _row_shape(self, gemm: str, a: Operand, shape: tuple[int, ...]) -> Pair:
        *rows, features = a.codes.shape
        return (features, 1) if gemm == "wgrad" else (math.prod(rows), 1)

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 2 or shape[-1] != self.weight.shape[1]:
            raise InputError(
                f"layer {self.name!r}: a linear layer of {self.weight.shape[1]} features got shape {tuple(shape)}; "
                "check the image size that the model expects"
            )

    def _along_output(self, bias: Array, y: Array) -> Array:
        return bias

    def _channel_axis(self, dy: Array) -> int:
        return int(dy.ndim) - 1


class Conv2d(GemmLayer):
    """A convolution with zero padding, stride, dilation and groups."""

    def __init__(
        self, name: str, run: Run, index: int, module: Any, recipe: Recipe, hardware: Hardware, options: ConvOptions
    ) -> None:
        super().__init__(name, run, index, module, recipe, hardware)
        self.window, self.groups = options.window, options.groups

    def fprop(self, x: Operand, w: Operand, gemm: Gemm) -> Array:
        return self.maths.conv_fprop(x, w, self.window, self.groups, gemm)

    def dgrad(self, dh: Operand, w: Operand, gemm: Gemm, shape: tuple[int, ...]) -> Array:
        return self.maths.conv_dgrad(dh, w, self.window, self.groups, (shape[2], shape[3]), gemm)

    def wgrad(self, x: Operand, dh: Operand, gemm: Gemm) -> Array:
        return self.maths.conv_wgrad(x, dh, self.window, self.groups, gemm)

    def _product(self, a: Operand, b: Operand, gemm: Gemm, out: Array, shape: tuple[int, ...]) -> Product:
        return conv_product(gemm, a, b, out, self.window, self.groups, shape)

    def _row_shape(self, gemm: str, a: Operand, shape: tuple[int, ...]) -> Pair:
        samples, channels, height, width = a.codes.shape
        if gemm == "wgrad":
            return math.prod(self.window.kernel), channels // self.groups
        size = (shape[2], shape[3]) if gemm == "dgrad" else self.window.positions((height, width))
        return samples, math.prod(size)

    def _check(self, shape: tuple[int, ...]) -> None:
        channels = self.weight.shape[1] * self.groups
        if len(shape) != 4 or shape[1] != channels:
            raise InputError(
                f"layer {self.name!r}: a convolution of {channels} channels got shape {tuple(shape)}; "
                "feed (samples, channels, height, width)"
            )

    def _along_output(self, bias: Array, y: Array) -> Array:
        return bias.reshape(-1, 1, 1)

    def _channel_axis(self, dy: Array) -> int:
        return 1
