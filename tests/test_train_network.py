"""Converted networks against torch: float recipes against its float32, quantized ones against the codes' own values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import fqtsim
from fqtsim import streams
from fqtsim.errors import InputError
from fqtsim.hw.load import parse_hardware
from fqtsim.recipe.load import load_recipe
from fqtsim.train import convert
from fqtsim.train.layers import BatchNorm
from fqtsim.train.module import FQTModule

DATAPATH = """
schema: 1
name: exact
summary: any of the zero-point words, nothing lost
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: {zero_point}
  levels: [{{terms: all, register: int40, overflow: saturate}}]
gemms:
  fprop: {{a: {fprop_a}}}
random: {{generator: philox4x32-10, bits: 12}}
"""
SYMMETRIC = {f"{port}.zero": "symmetric" for port in ("activation", "weight", "grad_for_wgrad", "grad_for_dgrad")}


def hardware(zero_point: str = "after_accumulate", fprop_a: str = "int8") -> fqtsim.Hardware:
    return parse_hardware(DATAPATH.format(zero_point=zero_point, fprop_a=fprop_a))


class Wide(nn.Module):
    """One of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.depthwise = nn.Conv2d(6, 6, 3, padding="same", dilation=2, groups=6)
        self.point = nn.Conv2d(6, 8, 1, bias=False)
        self.short = nn.Conv2d(6, 8, (3, 2), stride=(1, 1), padding=(1, 0))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.average = nn.AvgPool2d(2, stride=1)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Sequential(nn.Linear(8, 7), nn.ReLU6(), nn.Identity(), nn.Linear(7, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.point(F.relu6(self.depthwise(x)))
        z = self.short(F.avg_pool2d(x, (1, 2), 1, (0, 1)))
        y += y
        y = self.pool(y)
        y = self.average(y) + self.average(y)
        y = torch.flatten(y.mean((2, 3), keepdim=True), 1)
        mean = torch.mean(z, (-2, -1))
        z = F.adaptive_avg_pool2d(z, 1).view(x.size(0), -1)
        return self.head(self.norm(y + z + mean))


def batch(shape: tuple[int, ...] = (6, 3, 9, 8), seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(0.3 * rng.standard_normal(tuple(parameter.shape)).astype(np.float32)))
    return module


@pytest.mark.parametrize("training", [True, False])
def test_float_recipe_is_torch_within_rounding(training: bool) -> None:
    model = seeded(Wide()).train(training)
    net = fqtsim.fully_quantize(model, "fp32", "int8_acc32_wrap")
    assert net.training is training
    x, y = batch().requires_grad_(), batch().requires_grad_()
    ours, theirs = net(x), model(y)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    weights = batch((6, 4), 1)
    ours.backward(weights)
    theirs.backward(weights)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-5)
    expected = dict(model.named_parameters())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4, msg=name)
    buffers = dict(model.named_buffers())
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], rtol=1e-4, atol=1e-5, msg=name)


def test_state_dict_keeps_the_names_and_the_original_its_weights() -> None:
    model = seeded(Wide())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    net = fqtsim.fully_quantize(model, "ptq8", "int8_acc32_wrap")
    assert list(net.state_dict()) == list(model.state_dict())
    fqtsim.Trainer(net, {"name": "sgd", "lr": 0.1}).step(batch(), torch.arange(6) % 4)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not torch.equal(net.state_dict()["head.3.weight"], before["head.3.weight"])
    model.load_state_dict(net.state_dict())


class Rectified(nn.Module):
    """Batch norms whose ReLU is the only reader, one of two, and one that has two readers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.alone, self.shared = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
        self.plain = nn.BatchNorm2d(5, affine=False, track_running_stats=False)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.alone(self.conv(x)))
        z = self.shared(y)
        z = F.relu(z) + z
        z = F.relu(self.plain(z))
        z = self.relu(z + y) + z
        return self.head(z.mean((2, 3)))


def test_a_relu_is_part_of_the_batch_norm_that_it_alone_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for joined in (True, False):
        if not joined:
            monkeypatch.setattr(convert._Builder, "_joined", lambda *_: False)
        net = fqtsim.fully_quantize(seeded(Rectified()), "bhq5", "int8_acc32_wrap")
        norms = {step.layer.name: step.layer.with_relu for step in net.program if isinstance(step.layer, BatchNorm)}
        assert norms == {"alone": joined, "shared": False, "plain": joined}
        tr = fqtsim.Trainer(net, {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
        losses = [tr.step(batch(seed=seed), torch.arange(6) % 4) for seed in range(3)]
        net.eval()
        x = batch().requires_grad_()
        net(x).sum().backward()
        ends.append((losses, tr.digest().hex, net.report(), net(batch()).tolist(), x.grad.tolist()))
    assert ends[0] == ends[1]


GEOMETRIES = [
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (2, 3), "padding": (1, 0), "dilation": 2, "groups": 2},
    {"kernel_size": 2, "padding": "same"},
]
PORTS = {"activation": streams.ACTIVATION, "weight": streams.WEIGHT, "grad_for_wgrad": streams.GRAD_FOR_WGRAD,
         "grad_for_dgrad": streams.GRAD_FOR_DGRAD}  # fmt: skip


def quantized(recipe: Any, port: str, values: torch.Tensor, step: int, layer: int, seed: int) -> torch.Tensor:
    """Return the values that the layer's port must work with, by the public quantizer."""
    spec = recipe.port(port)
    bits = 12 if spec.rounding == "stochastic" else None
    kind = "psq" if spec.per_channel else spec.quantizer
    q = fqtsim.quantizer(kind, spec.bits, spec.rounding, bits, spec.zero, "int8")
    if port == "grad_for_wgrad" and spec.per_channel:
        values = values.transpose(0, 1).contiguous()
    tensor = q.quantize(values.detach(), seed, streams.stream_id(layer, PORTS[port]), step)
    found = tensor.dequantize().double()
    return found.transpose(0, 1) if port == "grad_for_wgrad" and spec.per_channel else found


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(
    ("recipe", "overrides", "machine"),
    [
        ("ptq8", {}, hardware()),
        ("psq5", {"weight.per_channel": True}, hardware(fprop_a="uint8")),
        ("psq5_channel", {}, hardware()),
        ("psq5_channel", {"grad_for_wgrad.zero": "float_offset"}, hardware()),
        ("psq5_channel", {}, hardware("before_multiply")),
        ("psq5_channel", SYMMETRIC, hardware("none")),
        ("bhq4", {}, hardware("before_multiply")),
        ("psq6", SYMMETRIC, hardware("none")),
    ],
)
def test_convolution_works_with_the_codes_values(
    geometry: dict[str, Any], recipe: str, overrides: dict[str, Any], machine: fqtsim.Hardware
) -> None:
    chosen = load_recipe(recipe, overrides)
    model = seeded(nn.Sequential(nn.Identity(), nn.Conv2d(4, 6, **geometry)))
    net = fqtsim.fully_quantize(model, chosen, machine, seed=99)
    net.step_index = 7
    x = batch((5, 4, 6, 7)).requires_grad_()
    y = net(x)
    dh = batch(tuple(y.shape), 3) * torch.tensor([1e-3, 1, 5, 0.1, 0]).view(-1, 1, 1, 1)
    y.backward(dh)
    weight, bias = model[1].weight.detach(), model[1].bias.detach().double()  # type: ignore[union-attr,operator]

    def port(name: str, values: torch.Tensor) -> torch.Tensor:
        return quantized(chosen, name, values, 7, 2, 99)

    def convolution(a: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        options = {key: value for key, value in geometry.items() if key != "kernel_size"}
        return F.conv2d(a, w, None, **options)

    xq, wq = port("activation", x).requires_grad_(), port("weight", weight).requires_grad_()
    tolerance = {"rtol": 2e-5, "atol": 2e-5}
    out = convolution(xq, wq)
    torch.testing.assert_close(y, (out + bias.view(-1, 1, 1)).float(), **tolerance)
    wide = load_recipe(recipe, {**overrides, "weight.per_channel": False})
    out.backward(port("grad_for_wgrad", dh))
    net_weight, net_bias = net.get_parameter("1.weight"), net.get_parameter("1.bias")
    torch.testing.assert_close(net_weight.grad, wq.grad.float(), **tolerance)  # type: ignore[union-attr]
    torch.testing.assert_close(net_bias.grad, port("grad_for_wgrad", dh).sum((0, 2, 3)).float(), **tolerance)
    # dgrad uses its own per-tensor copy of the weight.
    whole = quantized(wide, "weight", weight, 7, 2, 99)
    xq.grad = None
    convolution(xq, whole).backward(port("grad_for_dgrad", dh))
    torch.testing.assert_close(x.grad, xq.grad.float(), **tolerance)  # type: ignore[union-attr]


def test_straight_through_baseline_differentiates_the_quantized_forward() -> None:
    chosen = load_recipe("qat")
    model = seeded(nn.Sequential(nn.Linear(5, 3)))
    net = fqtsim.fully_quantize(model, chosen, hardware())
    x = batch((4, 5)).requires_grad_()
    dh = batch((4, 3), 2)
    net(x).backward(dh)
    xq = quantized(chosen, "activation", x, 0, 1, 0)
    wq = quantized(chosen, "weight", model[0].weight, 0, 1, 0)  # type: ignore[arg-type]
    torch.testing.assert_close(net.get_parameter("0.weight").grad, (dh.double().T @ xq).float())
    torch.testing.assert_close(x.grad, (dh.double() @ wq).float())
    assert net.platform
    assert {row["gemm"] for row in net.report()} == {"fprop"}


def test_first_layer_runs_no_dgrad_and_draws_no_grad_for_dgrad() -> None:
    net = fqtsim.fully_quantize(seeded(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))), "bhq5", hardware())
    net(batch((4, 5))).sum().backward()
    assert [(row["layer"], row["gemm"]) for row in net.report()] == [
        ("0", "fprop"), ("2", "fprop"), ("2", "dgrad"), ("2", "wgrad"), ("0", "wgrad"),
    ]  # fmt: skip


def test_frozen_weights_run_no_wgrad() -> None:
    model = seeded(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)))
    for parameter in model[1].parameters():
        parameter.requires_grad_(False)
    net = fqtsim.fully_quantize(model, "ptq8", hardware())
    net(batch((4, 5))).sum().backward()
    assert ("1", "wgrad") not in [(row["layer"], row["gemm"]) for row in net.report()]
    assert net.get_parameter("1.weight").grad is None
    assert net.get_parameter("0.weight").grad is not None


def test_dropout_acts_in_training_only() -> None:
    net = fqtsim.fully_quantize(nn.Sequential(nn.Dropout(0.5), nn.Flatten()), "ptq8", hardware(), seed=3)
    x = torch.ones(4, 3, 5)
    y = net(x)
    words = fqtsim.random_bits(3, streams.stream_id(1, streams.DROPOUT), 0, 60, 32)
    assert np.array_equal(y.numpy().ravel(), np.where(words >= 2**31, np.float32(2), np.float32(0)))
    assert torch.equal(net.eval()(x), torch.ones(4, 15))


def test_report_counts_since_the_last_reset() -> None:
    net = fqtsim.fully_quantize(seeded(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2))), "ptq8", "int8_acc12_saturate")
    net(batch((3, 2, 5, 5)))
    (row,) = net.report()
    assert {key: row[key] for key in ("layer", "gemm", "m", "n", "k", "outputs")} == {
        "layer": "0", "gemm": "fprop", "m": 27, "n": 2, "k": 9, "outputs": 108,
    }  # fmt: skip
    assert row["altered"] == row["out_of_range"] + row["transient"] > 0
    bits = row["bits_needed"]
    assert -(2 ** (bits - 1)) <= row["minimum"] <= row["maximum"] < 2 ** (bits - 1)
    assert row["minimum"] < -(2 ** (bits - 2)) or row["maximum"] >= 2 ** (bits - 2)
    net(batch((3, 2, 5, 5)))
    assert net.report()[0]["outputs"] == 216
    net.reset_report()
    assert net.report() == []
    net.trace = True
    net(batch((3, 2, 5, 5)))
    assert net.report()[0]["bits_needed_partial"] >= 1
    assert net.report()[0]["maximum"] == row["maximum"]


def test_observers_see_every_gemm_as_the_backend_gets_it() -> None:
    net = fqtsim.fully_quantize(seeded(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))), "ptq8", hardware())
    seen: list[tuple[Any, ...]] = []
    net.observers.append(lambda *call: seen.append(call))
    net(batch((4, 5))).sum().backward()
    assert [(layer, gemm, a.shape, b.shape) for layer, gemm, a, b, *_ in seen] == [
        ("0", "fprop", (4, 5), (5, 3)), ("1", "fprop", (4, 3), (3, 2)), ("1", "dgrad", (4, 2), (2, 3)),
        ("1", "wgrad", (3, 4), (4, 2)), ("0", "wgrad", (5, 4), (4, 3)),
    ]  # fmt: skip
    for _, gemm, a, b, path, c, result in seen:
        assert path == hardware().datapath_for(gemm)
        assert c is None
        assert np.array_equal(result.codes, a.astype(np.int64) @ b.astype(np.int64))


def test_hardware_by_pattern_first_match_wins() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(27, 2)))
    net = fqtsim.fully_quantize(model, "ptq8", {"0": "int8_acc24_saturate", "*": hardware()})
    assert {name: hw.name for name, hw in net.hardware.items()} == {"0": "int8_acc24_saturate", "2": "exact"}
    with pytest.raises(InputError) as caught:
        fqtsim.fully_quantize(model, "ptq8", {"conv*": hardware(), "0": hardware()})
    assert str(caught.value) == (
        "hardware: no pattern of 'conv*', '0' matches layer '2'; add one, for example '*' at the end"
    )


def test_backward_once_per_step_index() -> None:
    net = fqtsim.fully_quantize(seeded(nn.Sequential(nn.Linear(5, 3))), "ptq8", hardware())
    net(batch((4, 5))).sum().backward()
    with pytest.raises(InputError) as caught:
        net(batch((4, 5))).sum().backward()
    assert str(caught.value) == (
        "step index = 0: a second backward would draw the same random bits again; advance net.step_index between steps"
    )
    net.step_index += 1
    y = net(batch((4, 5)))
    net.step_index += 1
    with pytest.raises(InputError) as caught:
        y.sum().backward()
    assert str(caught.value) == ("step index = 2: was 1 in the forward pass; advance it after the backward pass")


def small() -> FQTModule:
    return fqtsim.fully_quantize(seeded(nn.Sequential(nn.Conv2d(2, 3, 3))), "ptq8", hardware())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small()(torch.zeros(2, 3, 5, 5)), "layer '0': a convolution of 2 channels got shape (2, 3, 5, 5); "
         "feed (samples, channels, height, width)"),
        (lambda: small()(torch.zeros(2, 2, 5, 5).double()),
         "input of torch.float64: must be a torch.float32 tensor; convert it with .float()"),
        (lambda: small()(torch.zeros(0, 2, 5, 5)),
         "input of shape (0, 2, 5, 5): must be samples first and not empty; add a dimension"),
        (lambda: setattr(small(), "step_index", -1),
         "step_index = -1: must be 0..2**32 - 1; start a run with another seed"),
        (lambda: fqtsim.fully_quantize(nn.Sequential(nn.Linear(2, 2)), "ptq8", hardware(), seed=-1),
         "seed = -1: must be an integer 0..2**64 - 1; choose another"),
        (lambda: fqtsim.fully_quantize(nn.Sequential(nn.Flatten(2)), "ptq8", hardware())(torch.zeros(2, 2)),
         "layer '0': dimensions 2..-1 of shape (2, 2) cannot be flattened; "
         "keep dimension 0, the samples, and name dimensions that exist"),
        (lambda: fqtsim.fully_quantize(nn.Sequential(nn.AdaptiveAvgPool2d(2)), "ptq8", hardware())(
            torch.zeros(2, 2, 5, 4)), "layer '0': an output of 2 x 2 does not divide the input of 5 x 4; "
         "use an output size of 1, or one that divides"),
        (lambda: fqtsim.fully_quantize(nn.Sequential(nn.BatchNorm1d(3)), "ptq8", hardware())(torch.zeros(1, 3)),
         "layer '0': batch norm of shape (1, 3) has one value per channel, which has no variance; "
         "train with larger batches"),
        (lambda: fqtsim.fully_quantize(nn.Sequential(nn.MaxPool2d(2)), "ptq8", hardware())(torch.zeros(2, 4, 4)),
         "layer '0': a pool got shape (2, 4, 4); feed (samples, channels, height, width)"),
        (lambda: small()(torch.zeros(2, 2, 2, 5)), "layer '0': input of 2 x 5 positions: a window that spans 3 x 3 "
         "does not fit with its padding; feed larger images or remove a pooling stage"),
    ],
)  # fmt: skip
def test_refuses(call: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert str(caught.value) == message


def test_refuses_tied_weights_and_names_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with pytest.raises(InputError) as caught:
        fqtsim.fully_quantize(model, "ptq8", hardware())
    assert str(caught.value) == ("parameters '0.weight' and '1.weight' are one tensor; give each layer its own weight")
    named = nn.Sequential()
    named.add_module("report", nn.Linear(2, 2))
    with pytest.raises(InputError) as caught:
        fqtsim.fully_quantize(named, "ptq8", hardware())
    assert str(caught.value) == "layer 'report': the converted network uses that name itself; rename the layer"


def test_conflicts_name_both_files() -> None:
    with pytest.raises(InputError, match="zero"):
        fqtsim.fully_quantize(nn.Sequential(nn.Linear(2, 2)), "ptq8", hardware("none"))
