"""Following models with torch.fx: ordinary models pass unmodified, everything else is an error with its place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from fqtsim.errors import InputError
from fqtsim.train.capture import capture
from fqtsim.train.graph import Value

ANY_LAYER = "use Linear, Conv2d, BatchNorm, ReLU, max and average pooling, +, flatten, Dropout and containers of them"


def network(forward: Callable[[Any, Any], Any], **modules: nn.Module) -> nn.Module:
    """Return a module with a convolution `conv`, the given modules and the given forward."""
    made = type("Net", (nn.Module,), {"forward": forward})()
    for name, module in {"conv": nn.Conv2d(3, 3, 3, padding=1), **modules}.items():
        made.add_module(name, module)
    return made


def line(function: Callable[..., Any], text: str) -> str:
    """Return "file:line" of the line of `function` that holds `text`."""
    lines, first = inspect.getsourcelines(function)
    return f"{__file__}:{first + next(i for i, source in enumerate(lines) if text in source)}"


def kinds(module: nn.Module) -> list[str]:
    return [call.op.kind for call in capture(module).calls]


class Block(nn.Module):
    """A residual block as torchvision writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


def test_torchvision_style_converts_unmodified() -> None:
    def forward(self: Any, x: Any) -> Any:
        x = F.relu(self.conv(x), inplace=True)
        x = F.max_pool2d(self.block(x), 2)
        x = F.avg_pool2d(x, kernel_size=2, stride=1)
        x = F.adaptive_avg_pool2d(self.keep(x), (1, 1))
        x = x.view(x.size(0), -1)
        return self.fc(x)

    net = network(forward, block=Block(3), keep=nn.Identity(), fc=nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)))
    assert kinds(net) == [
        "conv2d", "relu", "conv2d", "batch_norm", "relu", "conv2d", "batch_norm", "add", "relu", "max_pool",
        "average_pool", "adaptive_average_pool", "reshape", "dropout", "linear",
    ]  # fmt: skip


def test_residual_reads_the_block_input_twice() -> None:
    captured = capture(nn.Sequential(Block(3)))
    assert captured.calls[0].op.inputs == (Value(0),)
    assert captured.calls[5].op.kind == "add"
    assert captured.calls[5].op.inputs == (Value(5), Value(0))


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(1),
        lambda x: x.view(x.shape[0], -1),
        lambda x: x.reshape(x.size(0), 3 * 4 * 4),
        lambda x: x.view(-1, 48),
        lambda x: x.view((x.size()[0], -1)),
        lambda x: torch.reshape(x, (x.size(0), x.size(1), -1)).flatten(start_dim=1),
        lambda x: x.contiguous().view(x.size(0), -1),
    ],
)
def test_ways_to_flatten(flatten: Callable[[Any], Any]) -> None:
    net = network(lambda self, x: self.fc(flatten(self.conv(x))), fc=nn.Linear(48, 2))
    assert set(kinds(net)) <= {"conv2d", "flatten", "reshape", "linear"}


def test_dead_code_without_state_is_dropped() -> None:
    def forward(self: Any, x: Any) -> Any:
        F.max_pool2d(x, 2)
        return self.conv(x)

    assert kinds(network(forward)) == ["conv2d"]


def matmul(self: Any, x: Any) -> Any:
    return torch.matmul(self.conv(x), x)


def times_two(self: Any, x: Any) -> Any:
    return self.conv(x) * 2


def plus_one(self: Any, x: Any) -> Any:
    return self.conv(x) + 1


def scaled_add(self: Any, x: Any) -> Any:
    return torch.add(self.conv(x), x, alpha=2)


def twice(self: Any, x: Any) -> Any:
    y = self.conv(x)
    return self.conv(y)


def parameter(self: Any, x: Any) -> Any:
    return self.conv(x) + self.conv.bias


def constant(self: Any, x: Any) -> Any:
    return self.conv(x) + torch.ones(1)


def functional_dropout(self: Any, x: Any) -> Any:
    return F.dropout(self.conv(x))


def flatten_all(self: Any, x: Any) -> Any:
    return torch.flatten(self.conv(x))


def no_batch(self: Any, x: Any) -> Any:
    return self.conv(x).view(4, -1)


def indexing(self: Any, x: Any) -> Any:
    return self.conv(x)[:, 0]


def softmax(self: Any, x: Any) -> Any:
    return F.log_softmax(self.conv(x), dim=1)


def transpose(self: Any, x: Any) -> Any:
    return self.conv(x).transpose(1, 2)


def branch_on_value(self: Any, x: Any) -> Any:
    y = self.conv(x)
    return y if y.sum() > 0 else x


def sigmoid(self: Any, x: Any) -> Any:
    return torch.sigmoid(self.conv(x))


@pytest.mark.parametrize(
    ("forward", "text", "message"),
    [
        (matmul, "torch.matmul", "torch.matmul: not a layer that runs on the hardware; "
         "use a torch.nn.Linear or torch.nn.Conv2d submodule"),
        (times_two, "* 2", "operator.mul: not a layer that runs on the hardware; "
         "leave the factor out, or fold it into the weight of a layer"),
        (plus_one, "+ 1", "operator.add: only two tensors of the network can be added; "
         "put a constant into the bias of a layer"),
        (scaled_add, "alpha", "torch.add: alpha = 2 scales a float tensor; leave alpha out"),
        (twice, "self.conv(y)", "layer 'conv' (Conv2d): called a second time in one step; a layer with parameters or "
         "dropout runs once; make a second layer"),
        (parameter, "bias", "conv.bias: a parameter or buffer is used directly; "
         "use it through a Linear, Conv2d or BatchNorm"),
        (functional_dropout, "F.dropout", "torch.nn.functional.dropout: not a layer that runs on the hardware; "
         "use a torch.nn.Dropout submodule, whose random stream has a layer index"),
        (flatten_all, "flatten(self", "torch.flatten: flattening dimension 0 mixes the samples of a batch; "
         "use torch.flatten(x, 1)"),
        (no_batch, "view", "Tensor.view: the first size must be the batch: x.size(0), x.shape[0] or -1; "
         "write x.view(x.size(0), -1) or torch.flatten(x, 1)"),
        (indexing, "[:, 0]", "operator.getitem: a tensor of the network cannot be indexed or sliced; "
         "use torch.flatten(x, 1) to leave positions of size 1 out; for a part of the channels give each branch a 1x1 "
         "Conv2d of the whole tensor instead of a part of it"),
        (softmax, "log_softmax(", "torch.nn.functional.log_softmax: not a layer that runs on the hardware; "
         "return the logits; the trainer applies softmax cross-entropy"),
        (transpose, "transpose(1", "Tensor.transpose: not a layer that runs on the hardware; "
         "keep the dimensions (samples, channels, height, width)"),
        (sigmoid, "torch.sigmoid", "torch.sigmoid: not a layer that runs on the hardware; "
         "use torch.nn.ReLU or torch.nn.ReLU6; leave a gate that multiplies by it out"),
    ],
)  # fmt: skip
def test_refuses_what_would_run_in_float(forward: Callable[..., Any], text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        capture(network(forward))
    assert str(caught.value) == f"{line(forward, text)}: {message}"


def test_refuses_a_constant_tensor() -> None:
    with pytest.raises(InputError, match="the forward pass uses a constant tensor; put it into the bias of a layer"):
        capture(network(constant))


def test_refuses_a_branch_on_values() -> None:
    with pytest.raises(InputError) as caught:
        capture(network(branch_on_value))
    assert str(caught.value) == (
        f"{line(branch_on_value, 'y.sum()')}: the forward pass cannot be followed: a branch depends on a tensor or its "
        "size; write it without branches or loops that depend on tensors or their sizes"
    )


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.InstanceNorm2d(3), "(InstanceNorm2d): not a layer that runs on the hardware; use torch.nn.BatchNorm2d"),
        (nn.Conv2d(3, 3, 3, padding_mode="circular"),
         "(Conv2d): padding_mode = 'circular': only zeros have a code; use padding_mode='zeros'"),
        (nn.Softmax(1), "(Softmax): not a layer that runs on the hardware; "
         "remove it and return the logits; the trainer applies softmax cross-entropy"),
        (nn.BatchNorm2d(3, momentum=None), "(BatchNorm2d): momentum = None keeps a cumulative average; "
         "give a momentum, for example 0.1"),
        (nn.MaxPool2d(2, return_indices=True), "(MaxPool2d): return_indices gives a second output; "
         "leave return_indices out"),
        (nn.Upsample(scale_factor=2), "(Upsample): not a layer that runs on the hardware; "
         "remove it: strides and poolings alone change the size"),
        (nn.LSTM(3, 3), f"(LSTM): not a layer that runs on the hardware; {ANY_LAYER}"),
    ],
)  # fmt: skip
def test_refuses_modules(module: nn.Module, message: str) -> None:
    net = network(lambda self, x: self.extra(self.conv(x)), extra=module)
    with pytest.raises(InputError) as caught:
        capture(net)
    assert str(caught.value) == f"{line(test_refuses_modules, 'self.extra')}: layer 'extra' {message}"


def test_names_the_module_where_containers_call_each_other() -> None:
    with pytest.raises(InputError) as caught:
        capture(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.GELU())))
    assert str(caught.value) == ("layer '1.0' (GELU): not a layer that runs on the hardware; use torch.nn.ReLU")


def test_a_subclass_with_its_own_forward_is_followed_not_trusted() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)

    with pytest.raises(InputError, match=r"extra\.weight: a parameter or buffer is used directly"):
        capture(network(lambda self, x: self.extra(self.conv(x)), extra=Standardized(3, 3, 1)))


def test_a_subclass_that_changes_nothing_is_a_layer() -> None:
    class Mine(nn.Conv2d):
        """Only a name."""

    assert kinds(network(lambda self, x: self.extra(self.conv(x)), extra=Mine(3, 3, 1))) == ["conv2d", "conv2d"]


def overwritten_shortcut(self: Any, x: Any) -> Any:
    y = self.conv(x)
    shortcut = y
    y += x
    return F.relu(shortcut)


def overwritten_input(self: Any, x: Any) -> Any:
    y = self.conv(x)
    z = F.relu(y, inplace=True)
    return z + y


def overwritten_view(self: Any, x: Any) -> Any:
    y = self.conv(x)
    flat = torch.flatten(y, 1)
    y.relu_()
    return flat


@pytest.mark.parametrize(
    ("forward", "use", "by", "name", "overwriter"),
    [
        (overwritten_shortcut, "F.relu(shortcut)", "y += x", "torch.nn.functional.relu", "operator.iadd"),
        (overwritten_input, "z + y", "inplace=True", "operator.add", "torch.nn.functional.relu"),
    ],
)
def test_refuses_a_tensor_overwritten_in_place(
    forward: Callable[..., Any], use: str, by: str, name: str, overwriter: str
) -> None:
    """torch would compute with the new content; the graph alone would silently take the old one."""
    with pytest.raises(InputError) as caught:
        capture(network(forward))
    assert str(caught.value) == (
        f"{line(forward, use)}: {name}: uses a tensor that was overwritten in place by "
        f"{line(forward, by)}: {overwriter}; do that out of place"
    )


def test_refuses_to_return_an_overwritten_view() -> None:
    with pytest.raises(InputError, match=r"^the network's output: uses a tensor that was overwritten in place by "):
        capture(network(overwritten_view))


def depends_on_mode(self: Any, x: Any) -> Any:
    y = self.conv(x)
    if self.training:
        y = F.relu(y)
    return y


def test_refuses_a_branch_on_training() -> None:
    net = network(depends_on_mode).eval()
    with pytest.raises(InputError) as caught:
        capture(net)
    assert str(caught.value) == (
        f"{line(depends_on_mode, 'F.relu')}: the forward pass differs between training and evaluation; "
        "leave self.training to torch.nn.Dropout and batch norm"
    )
    assert not net.training


def two_inputs(self: Any, x: Any, y: Any) -> Any:
    return self.conv(x) + y


def two_outputs(self: Any, x: Any) -> Any:
    return self.conv(x), x


def test_refuses_other_signatures() -> None:
    with pytest.raises(InputError) as caught:
        capture(network(two_inputs))
    assert str(caught.value) == (
        f"{line(two_inputs, 'def ')}: y: the forward pass takes more than one input; "
        "give it one tensor of images or features"
    )
    with pytest.raises(InputError) as caught:
        capture(network(two_outputs))
    assert str(caught.value) == (
        f"{line(two_outputs, 'def ')}: the network returns (conv, x); return one tensor, the logits"
    )


def test_refuses_what_a_conversion_would_lose() -> None:
    net = network(lambda self, x: self.conv(x))
    handle = net.conv.register_forward_hook(lambda *_: None)  # type: ignore[union-attr]
    with pytest.raises(InputError) as caught:
        capture(net)
    assert str(caught.value) == (
        "layer 'conv' (Conv2d) has hooks, which a conversion would lose; remove them before converting"
    )
    handle.remove()
    net.conv.forward = lambda x: x  # type: ignore[union-attr,method-assign]
    with pytest.raises(InputError) as caught:
        capture(net)
    assert str(caught.value) == ("layer 'conv' (Conv2d) has a forward put on the instance; define it in the class")
    del net.conv.forward  # type: ignore[union-attr]
    nn.utils.parametrizations.weight_norm(net.conv)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        capture(net)
    assert str(caught.value) == (
        "layer 'conv' (ParametrizedConv2d) has parametrized weights; remove the parametrizations before converting"
    )


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(3, 2), "the network is a single Linear, which has no layer name; wrap it in torch.nn.Sequential"),
        (nn.Sequential(nn.LazyLinear(3)),
         "layer '0' (LazyLinear) has no shape yet; run the model once on a batch before converting"),
        (nn.Sequential(nn.Linear(3, 2)).double(),
         "layer '0' (Linear) has weight of torch.float64; convert the model with .float()"),
        (network(lambda self, x: self.conv(x), spare=nn.Linear(2, 2)),
         "layer 'spare' (Linear): has weight but does not reach the network's output; remove it from the model"),
    ],
)  # fmt: skip
def test_refuses_networks(module: nn.Module, message: str) -> None:
    with pytest.raises(InputError) as caught:
        capture(module)
    assert str(caught.value) == message
