"""The layers that are not GEMMs: each keeps what its backward needs and calls the maths next door (S5.11)."""

from __future__ import annotations

import math
from typing import Any

import torch

from fqtsim import streams
from fqtsim.errors import InputError
from fqtsim.train import elementwise, norm, pooling
from fqtsim.train.geometry import Window
from fqtsim.train.graph import AdaptiveOptions, AverageOptions, Dim, FlattenOptions, ReshapeOptions
from fqtsim.train.layer import Gradients, Layer
from fqtsim.train.operands import Array
from fqtsim.train.run import Run

Wanted = tuple[bool, ...]


class Entry(Layer):
    """The network's input, copied: what the caller does to the batch later cannot reach the backward pass."""

    def compute(self, *x: Array) -> tuple[Array, Any]:
        return self.run.primitives.copy(x[0]), None

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        return dy, ()


class Exit(Layer):
    """The network's output: must be finite, and has one backward per step index (S5.5, S5.9)."""

    def compute(self, *x: Array) -> tuple[Array, Any]:
        if not self.run.primitives.all_finite(x[0]):
            raise self.stopped("the output", "NaN or infinity")
        return x[0], self.run.step_index

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        run = self.run
        if saved != run.step_index:
            raise InputError(
                f"step index = {run.step_index}: was {saved} in the forward pass; advance it after the backward pass"
            )
        if run.differentiated == saved:
            raise InputError(
                f"step index = {saved}: a second backward would draw the same random bits again; "
                "advance net.step_index between steps"
            )
        run.differentiated = saved
        return dy, ()


class ReLU(Layer):
    """max(x, 0)."""

    def compute(self, *x: Array) -> tuple[Array, Any]:
        y = elementwise.relu(x[0], self.run.primitives)
        return y, y

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        return (elementwise.relu_gradient(saved, dy[0], self.run.primitives),), ()


class ReLU6(Layer):
    """min(max(x, 0), 6)."""

    def compute(self, *x: Array) -> tuple[Array, Any]:
        y = elementwise.relu6(x[0], self.run.primitives)
        return y, y

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        return (elementwise.relu6_gradient(saved, dy[0], self.run.primitives),), ()


class Add(Layer):
    """x + y of one shape: a residual connection."""

    def compute(self, *x: Array) -> tuple[Array, Any]:
        if x[0].shape != x[1].shape:
            raise InputError(
                f"layer {self.name!r}: adds shapes {tuple(x[0].shape)} and {tuple(x[1].shape)}, "
                "which are not the same; project the shortcut with a 1x1 convolution"
            )
        return self.run.primitives.add(x[0], x[1]), None

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        return (dy[0], dy[0]), ()


class Fork(Layer):
    """One value with several readers: their gradients are added left to right in forward order of use (S5.8)."""

    def __init__(self, name: str, run: Run, readers: int) -> None:
        super().__init__(name, run)
        self.readers = readers

    def compute(self, *x: Array) -> tuple[tuple[Array, ...], Any]:
        return (x[0],) * self.readers, None

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        return (elementwise.add_in_order(dy, self.run.primitives),), ()


def _image_size(layer: Layer, x: Array) -> tuple[int, int]:
    """Return height and width of (N, C, H, W). Raises InputError for another rank."""
    if x.ndim != 4:
        raise InputError(
            f"layer {layer.name!r}: a pool got shape {tuple(x.shape)}; feed (samples, channels, height, width)"
        )
    return int(x.shape[2]), int(x.shape[3])


class MaxPool(Layer):
    """The first maximum of each window."""

    def __init__(self, name: str, run: Run, window: Window) -> None:
        super().__init__(name, run)
        self.window = window

    def compute(self, *x: Array) -> tuple[Array, Any]:
        _image_size(self, x[0])
        y, winner = pooling.max_pool(x[0], self.window, self.run.primitives)
        return y, (winner, x[0].shape)

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        winner, shape = saved
        return (pooling.max_pool_gradient(dy[0], winner, shape, self.window, self.run.primitives),), ()


class AveragePool(Layer):
    """The exact sum of each window over its count."""

    def __init__(self, name: str, run: Run, options: AverageOptions) -> None:
        super().__init__(name, run)
        self.options = options

    def compute(self, *x: Array) -> tuple[Array, Any]:
        return self._pool(x[0], self.options)

    def _pool(self, x: Array, options: AverageOptions) -> tuple[Array, Any]:
        size = _image_size(self, x)
        p = self.run.primitives
        counts = p.constant(pooling.divisors(size, options.window, options.include_pad, options.divisor))
        y = pooling.average_pool(x, options.window, counts, p)
        return y, (x.shape, options.window, counts)

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        shape, window, counts = saved
        return (pooling.average_pool_gradient(dy[0], shape, window, counts, self.run.primitives),), ()


class AdaptiveAveragePool(AveragePool):
    """An average pool whose windows follow from the output size; that size must divide the input's."""

    def __init__(self, name: str, run: Run, options: AdaptiveOptions) -> None:
        Layer.__init__(self, name, run)
        self.output = options.output

    def compute(self, *x: Array) -> tuple[Array, Any]:
        size = _image_size(self, x[0])
        wanted = tuple(want or have for want, have in zip(self.output, size, strict=True))
        if any(have % want for have, want in zip(size, wanted, strict=True)):
            raise InputError(
                f"layer {self.name!r}: an output of {wanted[0]} x {wanted[1]} does not divide the input of "
                f"{size[0]} x {size[1]}; use an output size of 1, or one that divides"
            )
        kernel = (size[0] // wanted[0], size[1] // wanted[1])
        return self._pool(x[0], AverageOptions(Window(kernel, kernel, (0, 0), (0, 0)), True, None))


class SpatialMean(AdaptiveAveragePool):
    """The mean over height and width."""

    def __init__(self, name: str, run: Run, keepdim: bool) -> None:
        super().__init__(name, run, AdaptiveOptions((1, 1)))
        self.keepdim = keepdim

    def compute(self, *x: Array) -> tuple[Array, Any]:
        y, saved = super().compute(*x)
        return (y if self.keepdim else y[:, :, 0, 0]), saved

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        return super().differentiate(saved, (dy[0].reshape(*saved[0][:2], 1, 1),), wanted)


class Reshape(Layer):
    """Another shape of the same elements, samples in front."""

    def __init__(self, name: str, run: Run, options: FlattenOptions | ReshapeOptions) -> None:
        super().__init__(name, run)
        self.options = options

    def _shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(self.options, FlattenOptions):
            start = self.options.start % len(shape) if self.options.start < 0 else self.options.start
            end = self.options.end % len(shape)
            if not 1 <= start <= end < len(shape):
                raise InputError(
                    f"layer {self.name!r}: dimensions {self.options.start}..{self.options.end} of shape {shape} "
                    "cannot be flattened; keep dimension 0, the samples, and name dimensions that exist"
                )
            return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
        return (shape[0], *(shape[s.index] if isinstance(s, Dim) else s for s in self.options.sizes))

    def compute(self, *x: Array) -> tuple[Array, Any]:
        shape = self._shape(x[0].shape)
        known, size = math.prod(size for size in shape if size != -1), math.prod(x[0].shape)
        if size % max(known, 1) or (-1 not in shape and known != size):
            raise InputError(
                f"layer {self.name!r}: shape {tuple(x[0].shape)} does not become {tuple(shape)}; "
                "check the image size that the model expects"
            )
        return x[0].reshape(shape), x[0].shape

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        return (dy[0].reshape(saved),), ()


class Dropout(Layer):
    """Zero with probability `rate` while training, the rest scaled up."""

    def __init__(self, name: str, run: Run, rate: float, index: int) -> None:
        super().__init__(name, run)
        self.rate, self.stream = rate, streams.stream_id(index, streams.DROPOUT)

    def compute(self, *x: Array) -> tuple[Array, Any]:
        if not self.training or self.rate == 0:
            return x[0], None
        p, run = self.run.primitives, self.run
        keep = elementwise.dropout_mask(x[0].shape, self.rate, run.seed, self.stream, run.draw_index, p)
        return elementwise.dropout(x[0], keep, self.rate, p), keep

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        if saved is None:
            return dy, ()
        return (elementwise.dropout(dy[0], saved, self.rate, self.run.primitives),), ()


class BatchNorm(Layer):
    """Batch norm over every dimension but 1, with the options of torch's module, and with_relu the ReLU behind it."""

    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    num_batches_tracked: torch.Tensor | None

    def __init__(self, name: str, run: Run, module: Any) -> None:
        super().__init__(name, run)
        self.eps, self.momentum = module.eps, module.momentum
        self.weight, self.bias = module.weight, module.bias
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(key, getattr(module, key))
        self.channels, self.ranks = module.num_features, _ranks(module)
        #: Whether a ReLU that nothing else reads the input of is part of this layer.
        self.with_relu = False

    def weights(self) -> tuple[torch.nn.Parameter, ...]:
        return () if self.weight is None else (self.weight, self.bias)

    def compute(self, *x: Array) -> tuple[Array, Any]:
        self._check(x[0].shape)
        p = self.run.primitives
        from_batch = self.training or self.running_mean is None
        if from_batch:
            mean, var = self._batch(x[0])
        else:
            mean, var = p.array(self.running_mean), p.array(self.running_var)
        affine = None if self.weight is None else (p.array(self.weight), p.array(self.bias))
        return norm.batch_norm(x[0], mean, var, affine, self.eps, from_batch, p, self.with_relu)

    def _batch(self, x: Array) -> tuple[Array, Array]:
        if norm.terms(x) < 2 and self.training:
            raise InputError(
                f"layer {self.name!r}: batch norm of shape {tuple(x.shape)} has one value per channel, "
                "which has no variance; train with larger batches"
            )
        p = self.run.primitives
        mean, var, unbiased = norm.batch_statistics(x, p)
        if self.training and self.running_mean is not None and self.running_var is not None:
            for buffer, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                buffer.copy_(p.tensor(norm.running(p.array(buffer), new, self.momentum, p)))
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return mean, var

    def _check(self, shape: tuple[int, ...]) -> None:
        if len(shape) not in self.ranks or shape[1] != self.channels:
            raise InputError(
                f"layer {self.name!r}: batch norm of {self.channels} channels got shape {shape}; "
                "check the number of channels and dimensions"
            )

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: Wanted) -> tuple[Gradients, Gradients]:
        dx, dgamma, dbeta = norm.batch_norm_gradients(dy[0], saved, self.run.primitives)
        return (dx,), () if self.weight is None else (dgamma, dbeta)


def _ranks(module: Any) -> tuple[int, ...]:
    return (2, 3) if isinstance(module, torch.nn.BatchNorm1d) else (4,)
