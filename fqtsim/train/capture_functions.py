"""Which functions and tensor methods of torch a model may call, and what each becomes.

Every handler has the signature of the torch function it stands for. What has no handler is refused: nothing runs in
plain float unnoticed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)

from fqtsim.train.geometry import Window
from fqtsim.train.graph import (
    AdaptiveOptions,
    AverageOptions,
    Dim,
    FlattenOptions,
    Op,
    ReshapeOptions,
    Shape,
    Unsupported,
    Value,
    pair,
)

Handler = Callable[..., Any]


def relu(input: Value, inplace: bool = False) -> Op:
    """torch.nn.functional.relu."""
    return Op("relu", (input,), inplace=bool(inplace))


def relu6(input: Value, inplace: bool = False) -> Op:
    """torch.nn.functional.relu6."""
    return Op("relu6", (input,), inplace=bool(inplace))


def relu_(input: Value) -> Op:
    """torch.relu_ and Tensor.relu_."""
    return relu(input, inplace=True)


def add(input: Any, other: Any, *, alpha: Any = 1) -> Op:
    """torch.add, Tensor.add and +."""
    if alpha != 1:
        raise Unsupported(f"alpha = {alpha!r} scales a float tensor", "leave alpha out")
    if not (isinstance(input, Value) and isinstance(other, Value)):
        raise Unsupported("only two tensors of the network can be added", "put a constant into the bias of a layer")
    return Op("add", (input, other))


def add_(input: Any, other: Any, *, alpha: Any = 1) -> Op:
    """Tensor.add_ and +=."""
    plain = add(input, other, alpha=alpha)
    return Op("add", plain.inputs, inplace=True)


def max_pool2d(
    input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Op:  # fmt: skip
    """torch.nn.functional.max_pool2d."""
    if return_indices:
        raise Unsupported("return_indices gives a second output", "leave return_indices out")
    kernel, margin = pair(kernel_size, "kernel_size"), pair(padding, "padding")
    step = pair(stride, "stride") if stride else kernel
    window = Window(kernel, step, margin, margin, pair(dilation, "dilation"), bool(ceil_mode))
    return Op("max_pool", (input,), window)


def avg_pool2d(
    input: Value, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Op:  # fmt: skip
    """torch.nn.functional.avg_pool2d."""
    kernel, margin = pair(kernel_size, "kernel_size"), pair(padding, "padding")
    step = pair(stride, "stride") if stride else kernel
    window = Window(kernel, step, margin, margin, (1, 1), bool(ceil_mode))
    return Op("average_pool", (input,), AverageOptions(window, bool(count_include_pad), divisor_override))


def adaptive_avg_pool2d(input: Value, output_size: Any) -> Op:
    """torch.nn.functional.adaptive_avg_pool2d."""
    both = tuple(output_size) if isinstance(output_size, tuple | list) else (output_size, output_size)
    if len(both) != 2 or not all(size is None or isinstance(size, int) for size in both):
        raise Unsupported(f"output_size = {output_size!r} is not a pair of numbers", "write it as numbers")
    return Op("adaptive_average_pool", (input,), AdaptiveOptions((both[0], both[1])))


def mean(input: Value, dim: Any = None, keepdim: bool = False) -> Op:
    """torch.mean and Tensor.mean over height and width."""
    axes = sorted(dim) if isinstance(dim, tuple | list) else dim
    if axes not in ([2, 3], [-2, -1]):
        raise Unsupported(f"a mean over dim = {dim!r}", "take it over (2, 3), or use torch.nn.AdaptiveAvgPool2d(1)")
    return Op("spatial_mean", (input,), bool(keepdim))


def flatten(input: Value, start_dim: int = 0, end_dim: int = -1) -> Op:
    """torch.flatten and Tensor.flatten."""
    if start_dim == 0:
        raise Unsupported("flattening dimension 0 mixes the samples of a batch", "use torch.flatten(x, 1)")
    return Op("flatten", (input,), FlattenOptions(start_dim, end_dim), view=True)


def reshape(input: Value, *shape: Any) -> Op:
    """torch.reshape, Tensor.reshape and Tensor.view, with the batch in front."""
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    remedy = "write x.view(x.size(0), -1) or torch.flatten(x, 1)"
    if not sizes or not (sizes[0] == -1 or (isinstance(sizes[0], Dim) and sizes[0].index == 0)):
        raise Unsupported("the first size must be the batch: x.size(0), x.shape[0] or -1", remedy)
    rest = sizes[1:]
    own = all(isinstance(size, int) or (isinstance(size, Dim) and size.value == input) for size in rest)
    if not own or sum(size == -1 for size in sizes) > 1:
        raise Unsupported("the sizes must be numbers or sizes of the same tensor, at most one of them -1", remedy)
    return Op("reshape", (input,), ReshapeOptions(rest), view=True)


def size(input: Value, dim: int | None = None) -> Shape | Dim:
    """Tensor.size."""
    return Shape(input) if dim is None else Dim(input, dim)


def attribute(input: Any, name: str) -> Shape:
    """getattr on a tensor: only its shape."""
    if not isinstance(input, Value) or name != "shape":
        raise Unsupported(f"the attribute {name} of a tensor", "use only x.shape")
    return Shape(input)


def item(input: Any, index: Any) -> Dim:
    """Indexing: only of a shape."""
    if not isinstance(input, Shape) or not isinstance(index, int):
        remedy = f"{_FLATTEN} to leave positions of size 1 out; for a part of the channels {_PARTS}"
        raise Unsupported("a tensor of the network cannot be indexed or sliced", remedy)
    return Dim(input.value, index)


def contiguous(input: Value) -> Value:
    """Tensor.contiguous: a matter of layout, which has no meaning here."""
    return input


FUNCTIONS: dict[Any, Handler] = {
    F.relu: relu, torch.relu: relu, F.relu_: relu_, torch.relu_: relu_, F.relu6: relu6,
    operator.add: add, operator.iadd: add_, torch.add: add,
    F.max_pool2d: max_pool2d, torch.max_pool2d: max_pool2d,
    F.avg_pool2d: avg_pool2d, F.adaptive_avg_pool2d: adaptive_avg_pool2d, torch.mean: mean,
    torch.flatten: flatten, torch.reshape: reshape, getattr: attribute, operator.getitem: item,
}  # fmt: skip

METHODS: dict[str, Handler] = {
    "relu": relu, "relu_": relu_, "add": add, "add_": add_, "flatten": flatten, "view": reshape, "reshape": reshape,
    "mean": mean, "size": size, "contiguous": contiguous,
}  # fmt: skip

_USE_A_LAYER = "use a torch.nn.Linear or torch.nn.Conv2d submodule"
_LOGITS = "return the logits; the trainer applies softmax cross-entropy"
_RELU = "use torch.nn.ReLU or torch.nn.ReLU6"
_GATE = "use torch.nn.ReLU or torch.nn.ReLU6; leave a gate that multiplies by it out"
_SCALE = "leave the factor out, or fold it into the weight of a layer"
_SIGN = "use addition: the sign of a branch can be folded into its last weight"
_NORM = "use a torch.nn.BatchNorm2d or torch.nn.BatchNorm1d submodule"
_JOIN = "give each branch a 1x1 Conv2d of its own and add the results"
_PARTS = "give each branch a 1x1 Conv2d of the whole tensor instead of a part of it"
_ORDER = "keep the dimensions (samples, channels, height, width)"
_FLATTEN = "use torch.flatten(x, 1)"
_AVERAGE = "use x.mean((2, 3)) or torch.nn.AdaptiveAvgPool2d(1)"
_MAXIMUM = "use torch.nn.MaxPool2d with a window of numbers"
_PLAIN_FLOAT = "remove it: the network runs in float32 on the CPU"
_REMOVE = "remove it"
_MARGIN = "give the padding to the Conv2d or the pooling that follows"
_SIZE = "remove it: strides and poolings alone change the size"

REMEDIES: dict[str, str] = {
    name: remedy
    for names, remedy in {
        "linear conv2d matmul mm bmm addmm einsum baddbmm conv1d scaled_dot_product_attention": _USE_A_LAYER,
        "mul mul_ imul truediv itruediv div div_ multiply": _SCALE,
        "sub sub_ isub subtract neg negative": _SIGN,
        "softmax log_softmax cross_entropy nll_loss": _LOGITS,
        "dropout dropout_ dropout2d": "use a torch.nn.Dropout submodule, whose random stream has a layer index",
        "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize": _NORM,
        "cat concat concatenate stack hstack": _JOIN,
        "chunk split unbind narrow tensor_split select": _PARTS,
        "permute transpose movedim swapaxes t channel_shuffle unsqueeze": _ORDER,
        "squeeze squeeze_": _FLATTEN,
        "sum": _AVERAGE,
        "max amax maximum adaptive_max_pool2d": _MAXIMUM,
        "to float double half bfloat16 type cuda cpu type_as": _PLAIN_FLOAT,
        "detach clone requires_grad_": _REMOVE,
        "pad": _MARGIN,
        "interpolate upsample pixel_shuffle conv_transpose2d": _SIZE,
        "tanh gelu silu leaky_relu elu selu prelu mish hardtanh hardswish softplus clamp clamp_ clip relu6_": _RELU,
        "sigmoid hardsigmoid": _GATE,
        "eq ne lt le gt ge _assert": "leave the check out; sizes are checked when a batch runs",
    }.items()
    for name in names.split()
}
"""By the last part of the operation's name."""

SUPPORTED = "use Linear, Conv2d, BatchNorm, ReLU, max and average pooling, +, flatten, Dropout and containers of them"


def remedy_for(name: str) -> str:
    """Return what to write instead of the operation called `name`."""
    return REMEDIES.get(name.rsplit(".", 1)[-1], SUPPORTED)
