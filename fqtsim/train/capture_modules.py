"""Which modules of torch.nn a model may contain, and what each becomes; checked for options that change the meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fqtsim.train import capture_functions as functions
from fqtsim.train.geometry import Window
from fqtsim.train.graph import ConvOptions, Op, Unsupported, Value, pair
from fqtsim.train.layer import Layer

STATEFUL = ("linear", "conv2d", "batch_norm", "dropout")
"""Kinds with parameters, running statistics or a random stream: called once in a step (S5.5)."""


def _linear(module: Any, x: Value) -> Op:
    return Op("linear", (x,))


def _conv2d(module: Any, x: Value) -> Op:
    if module.padding_mode != "zeros":
        raise Unsupported(f"padding_mode = {module.padding_mode!r}: only zeros have a code", "use padding_mode='zeros'")
    kernel, stride = pair(module.kernel_size, "kernel_size"), pair(module.stride, "stride")
    dilation = pair(module.dilation, "dilation")
    if module.padding == "valid":
        before = after = (0, 0)
    elif module.padding == "same":
        # As torch: an odd total puts the extra zero at the end.
        totals = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
        before = (totals[0] // 2, totals[1] // 2)
        after = (totals[0] - before[0], totals[1] - before[1])
    else:
        before = after = pair(module.padding, "padding")
    return Op("conv2d", (x,), ConvOptions(Window(kernel, stride, before, after, dilation), module.groups))


def _batch_norm(module: Any, x: Value) -> Op:
    if module.momentum is None and module.track_running_stats:
        raise Unsupported("momentum = None keeps a cumulative average", "give a momentum, for example 0.1")
    return Op("batch_norm", (x,))


def _relu(module: Any, x: Value) -> Op:
    return functions.relu(x, module.inplace)


def _relu6(module: Any, x: Value) -> Op:
    return functions.relu6(x, module.inplace)


def _max_pool(module: Any, x: Value) -> Op:
    return functions.max_pool2d(
        x, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode, module.return_indices
    )


def _average_pool(module: Any, x: Value) -> Op:
    return functions.avg_pool2d(
        x, module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad,
        module.divisor_override,
    )  # fmt: skip


def _adaptive(module: Any, x: Value) -> Op:
    return functions.adaptive_avg_pool2d(x, module.output_size)


def _flatten(module: Any, x: Value) -> Op:
    return functions.flatten(x, module.start_dim, module.end_dim)


def _dropout(module: Any, x: Value) -> Op:
    return Op("dropout", (x,), float(module.p), inplace=module.inplace)


def _identity(module: Any, x: Value) -> Value:
    return x


MODULES: dict[type[nn.Module], Callable[[Any, Value], Op | Value]] = {
    nn.Linear: _linear, nn.Conv2d: _conv2d, nn.BatchNorm1d: _batch_norm, nn.BatchNorm2d: _batch_norm,
    nn.ReLU6: _relu6, nn.ReLU: _relu, nn.MaxPool2d: _max_pool, nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive, nn.Flatten: _flatten, nn.Dropout: _dropout, nn.Identity: _identity,
}  # fmt: skip

_OVERRIDES = ("forward", "_conv_forward", "__call__")

_RELU = "use torch.nn.ReLU"
_NO_SOFTMAX = "remove it and return the logits; the trainer applies softmax cross-entropy"

_REMEDIES: dict[type[nn.Module], str] = {
    nn.Softmax: _NO_SOFTMAX, nn.LogSoftmax: _NO_SOFTMAX,
    nn.Dropout2d: "use torch.nn.Dropout", nn.AlphaDropout: "use torch.nn.Dropout",
    nn.InstanceNorm2d: "use torch.nn.BatchNorm2d", nn.GroupNorm: "use torch.nn.BatchNorm2d",
    nn.LocalResponseNorm: "use torch.nn.BatchNorm2d", nn.SyncBatchNorm: "use torch.nn.BatchNorm2d",
    nn.BatchNorm3d: "use torch.nn.BatchNorm2d and torch.nn.Conv2d",
    nn.LayerNorm: "use torch.nn.BatchNorm1d or torch.nn.BatchNorm2d",
    nn.Conv1d: "use torch.nn.Conv2d with a height of 1", nn.Conv3d: "use torch.nn.Conv2d",
    nn.ConvTranspose2d: "use torch.nn.Conv2d: strides and poolings alone change the size",
    nn.Upsample: "remove it: strides and poolings alone change the size",
    nn.ZeroPad2d: "give the padding to the Conv2d or the pooling that follows",
    nn.AdaptiveMaxPool2d: "use torch.nn.MaxPool2d with a window of numbers",
    nn.Unflatten: "use x.view(x.size(0), ...) in forward", nn.Dropout1d: "use torch.nn.Dropout",
    nn.MaxPool1d: "use torch.nn.MaxPool2d", nn.AvgPool1d: "use torch.nn.AvgPool2d",
    nn.Hardtanh: "use torch.nn.ReLU6", nn.Sigmoid: f"{_RELU}, and leave a gate that multiplies by it out",
    nn.Hardsigmoid: f"{_RELU}, and leave a gate that multiplies by it out",
    **dict.fromkeys(
        (nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Tanh, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.RReLU,
         nn.Softplus),
        _RELU,
    ),
}  # fmt: skip


def known_type(module: nn.Module) -> type[nn.Module] | None:
    """Return the supported class whose behaviour the module has, unchanged by a subclass; None if there is none."""
    for known in MODULES:
        if isinstance(module, known) and all(
            getattr(type(module), name, None) is getattr(known, name, None) for name in _OVERRIDES
        ):
            return known
    return None


def module_op(module: nn.Module, *inputs: Any) -> Op | Value:
    """Return what calling a leaf module means. Raises Unsupported."""
    known = known_type(module)
    if known is None:
        raise Unsupported("not a layer that runs on the hardware", _REMEDIES.get(type(module), functions.SUPPORTED))
    if len(inputs) != 1 or not isinstance(inputs[0], Value):
        raise Unsupported("takes exactly one tensor of the network", "call it with one tensor")
    return MODULES[known](module, inputs[0])


def _check_unwrapped(root: nn.Module) -> None:
    """Raise Unsupported for what torch or this package wraps around a model."""
    kind = type(root).__name__
    if isinstance(root, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise Unsupported(f"the network ({kind}) spreads another one over devices", "convert its .module")
    if isinstance(root, torch.jit.ScriptModule):
        raise Unsupported(f"the network ({kind}) is compiled by torch.jit", "convert the model it was made from")
    if hasattr(root, "_orig_mod"):
        raise Unsupported(f"the network ({kind}) is compiled by torch.compile", "convert the model it was made from")
    if any(isinstance(module, Layer) for module in root.modules()):
        raise Unsupported(f"the network ({kind}) runs on the hardware already", "convert the model it was made from")


def check_plain(root: nn.Module) -> None:
    """Raise Unsupported where a module computes more than its forward says: hooks, parametrizations, lazy layers."""
    _check_unwrapped(root)
    for name, module in root.named_modules():
        where = f"layer {name!r} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"
        state = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if any(torch.nn.parameter.is_lazy(tensor) for _, tensor in state):
            raise Unsupported(f"{where} has no shape yet", "run the model once on a batch before converting")
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(getattr(module, hook) for hook in hooks):
            raise Unsupported(f"{where} has hooks, which a conversion would lose", "remove them before converting")
        if "forward" in vars(module):
            raise Unsupported(f"{where} has a forward put on the instance", "define it in the class")
        if nn.utils.parametrize.is_parametrized(module):
            raise Unsupported(f"{where} has parametrized weights", "remove the parametrizations before converting")
        for key, tensor in state:
            if tensor.device.type != "cpu":
                raise Unsupported(f"{where} has {key} on {tensor.device}", "move the model to the CPU with .cpu()")
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise Unsupported(f"{where} has {key} of {tensor.dtype}", "convert the model with .float()")
