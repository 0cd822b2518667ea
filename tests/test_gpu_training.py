"""Whole steps on a device give the digest, report and ties of emulator@cpu. The device here is the CPU, by torch."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels then run on CPU tensors

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import fqtsim
from fqtsim.backends import device
from fqtsim.backends.allowed import only_allowed_calls
from fqtsim.backends.base import Backend
from fqtsim.backends.device import DeviceEmulator, DeviceNative
from fqtsim.backends.torch_primitives import TorchPrimitives
from fqtsim.data import load_dataset
from fqtsim.data.batches import training_batch
from fqtsim.hw.load import load_hardware
from fqtsim.kernels.gpu import convolution, datapath, proof
from fqtsim.kernels.gpu.launch import has_triton, through_interpreter
from fqtsim.models import build_model
from fqtsim.train import on_device
from fqtsim.train.ranges import activation_layers

WRAP, SATURATE, TREE = "int8_acc32_wrap", "int8_acc24_saturate", "int8_acc20_tree4"
RULE = dict(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
DATA = load_dataset("digits")
BATCH = 16


def trainer_of(model: Any, recipe: str, hardware: str, backend: str | Backend, **settings: Any) -> fqtsim.Trainer:
    module = build_model(model, DATA.info, 0) if isinstance(model, str) else model
    net = fqtsim.fully_quantize(module, recipe, hardware, backend, seed=0)
    return fqtsim.Trainer(net, RULE | settings, dict(name="constant"))


def train(trainer: fqtsim.Trainer, steps: int) -> fqtsim.Trainer:
    for _ in range(steps):
        x, y = training_batch(DATA, 0, trainer.step_index, BATCH)
        trainer.step(torch.from_numpy(x), torch.from_numpy(y))
    return trainer


def outcome(trainer: fqtsim.Trainer) -> tuple[Any, ...]:
    return trainer.digest().hex, trainer.net.report(), trainer.net.ties


@pytest.mark.parametrize(
    ("model", "recipe", "hardware", "steps"),
    [
        ("mlp", "bhq5", WRAP, 3), ("mlp", "ptq8", WRAP, 2), ("mlp", "psq5", TREE, 2), ("cnn", "bhq5", SATURATE, 2),
        ("cnn", "psq5", "int8_acc16_saturate", 1), ("resnet8", "bhq5", WRAP, 2), ("resnet8", "bhq5", SATURATE, 1),
    ],
)  # fmt: skip
def test_a_device_trains_to_the_digest_of_the_emulator(model: str, recipe: str, hardware: str, steps: int) -> None:
    expected = outcome(train(trainer_of(model, recipe, hardware, "emulator"), steps))
    assert outcome(train(trainer_of(model, recipe, hardware, DeviceEmulator("cpu")), steps)) == expected
    if hardware == WRAP:
        assert outcome(train(trainer_of(model, recipe, hardware, DeviceNative("cpu")), steps)) == expected


class EveryKind(torch.nn.Module):
    """Every layer kind, and groups, dilation, stride and uneven padding of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.depthwise = torch.nn.Conv2d(4, 8, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=4)
        self.paired = torch.nn.Conv2d(8, 4, 1, groups=2, bias=False)
        self.drop = torch.nn.Dropout(0.25)
        self.last = torch.nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.relu6(self.norm(self.first(x)))
        y = torch.nn.functional.max_pool2d(x, 3, 2, padding=1)
        x = y + torch.nn.functional.avg_pool2d(x, 2)
        x = self.drop(torch.relu(self.paired(self.depthwise(x))))
        return self.last(torch.flatten(torch.nn.functional.adaptive_avg_pool2d(x, 1), 1))


@pytest.mark.parametrize("hardware", [WRAP, SATURATE])
def test_every_layer_kind(hardware: str) -> None:
    torch.manual_seed(0)
    model = EveryKind()
    results = [
        outcome(train(trainer_of(model, "psq5", hardware, backend, nesterov=True), 2))
        for backend in ("emulator", DeviceEmulator("cpu"))
    ]
    assert results[0] == results[1]


class Permuted(TorchPrimitives):
    """Every sum in another order, and no fused forms: the layers' own sequences run."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.fused_norm = self.fused_update = None

    def exact_sum64(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return super().exact_sum64(self._shuffled(x, axis), axis, keepdims)

    def exact_sum(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return super().exact_sum(self._shuffled(x, axis), axis, keepdims)

    def _shuffled(self, x: Any, axis: Any) -> Any:
        for number in self._axes(x, axis):
            order = torch.randperm(x.shape[number], generator=torch.Generator().manual_seed(number))
            x = x.index_select(number, order)
        return x


def test_permuted_sums_without_fused_forms_change_nothing() -> None:
    backend = DeviceEmulator("cpu")
    backend.primitives = Permuted()
    expected = outcome(train(trainer_of("cnn", "bhq5", WRAP, "emulator"), 2))
    assert outcome(train(trainer_of("cnn", "bhq5", WRAP, backend), 2)) == expected


@pytest.mark.skipif(not has_triton(), reason="triton is not installed")
def test_through_the_fused_kernels() -> None:
    """A tiny network: every kernel goes through Triton's interpreter."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, stride=2, padding=1), torch.nn.BatchNorm2d(3), torch.nn.ReLU(),
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10),
    )  # fmt: skip
    expected = outcome(train(trainer_of(model, "bhq5", SATURATE, "emulator"), 1))
    with through_interpreter(), np.errstate(all="ignore"):  # NumPy stands in for the device, and warns
        assert outcome(train(trainer_of(model, "bhq5", SATURATE, DeviceEmulator("cpu")), 1)) == expected


def test_layers_call_nothing_that_is_not_on_the_list() -> None:
    for model, hardware in (("cnn", WRAP), ("resnet8", SATURATE)):
        trainer = trainer_of(model, "bhq5", hardware, DeviceEmulator("cpu"))
        with only_allowed_calls():
            train(trainer, 1)


# --- state, faults, observers ----------------------------------------------------------------------------------------


def contents(path: Path) -> tuple[Any, ...]:
    """Everything in a file but the order of its metadata, which safetensors leaves open."""
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata(), {name: (x.dtype.str, x.shape, x.tobytes()) for name, x in tensors.items()}


def test_a_run_changes_backends_and_files_and_stays_the_same(tmp_path: Path) -> None:
    expected = outcome(train(trainer_of("cnn", "bhq5", WRAP, "emulator"), 4))
    trainer = train(trainer_of("cnn", "bhq5", WRAP, "emulator"), 1)
    for backend in (DeviceNative("cpu"), "emulator", DeviceEmulator("cpu")):
        trainer.net.set_backend(backend)
        train(trainer, 1)
    assert outcome(trainer) == expected
    trainer.save(tmp_path / "device.safetensors")
    host = trainer_of("cnn", "bhq5", WRAP, "emulator")
    host.load(tmp_path / "device.safetensors")
    host.save(tmp_path / "host.safetensors")
    assert contents(tmp_path / "device.safetensors") == contents(tmp_path / "host.safetensors")
    again = trainer_of("cnn", "bhq5", WRAP, DeviceEmulator("cpu"))
    again.load(tmp_path / "host.safetensors")
    assert train(again, 1).digest().hex == train(host, 1).digest().hex


def test_a_fault_names_layer_tensor_and_step_and_leaves_the_state() -> None:
    trainer = train(trainer_of("cnn", "bhq5", WRAP, DeviceEmulator("cpu")), 1)
    before = trainer.digest().hex
    x, y = training_batch(DATA, 0, 1, BATCH)
    broken = x.copy()
    broken[3, 0, 2, 2] = np.inf
    with pytest.raises(fqtsim.TrainingStopped) as stopped:
        trainer.step(torch.from_numpy(broken), torch.from_numpy(y))
    first = trainer.net.report()[0]["layer"]
    assert str(stopped.value) == f"step 1: layer {first!r}, activation: NaN or infinity; the step cannot go on"
    assert trainer.digest().hex == before
    assert train(trainer, 1).digest().hex == train(trainer_of("cnn", "bhq5", WRAP, "emulator"), 2).digest().hex


def test_a_rate_that_overflows_the_weights_stops_the_step() -> None:
    trainer = trainer_of("mlp", "ptq8", WRAP, DeviceEmulator("cpu"), lr=1e4, weight_decay=1.0)
    with pytest.raises(fqtsim.TrainingStopped, match=r"^step \d+: "):
        train(trainer, 20)


def test_the_same_operands_are_observed() -> None:
    seen: dict[str, list[tuple[Any, ...]]] = {}
    for name, backend in (("host", "emulator"), ("device", DeviceEmulator("cpu"))):
        trainer = trainer_of("cnn", "bhq5", SATURATE, backend)
        calls: list[tuple[Any, ...]] = []

        def observe(layer: str, gemm: str, a: Any, b: Any, path: Any, c: Any, result: Any, calls: Any = calls) -> None:
            arrays = [np.asarray(value).astype(np.int64).tolist() for value in (a, b, result.codes)]
            calls.append((layer, gemm, *arrays, result.events, result.minimum, result.maximum))

        trainer.net.observers.append(observe)
        train(trainer, 1)
        seen[name] = calls
    assert seen["device"] == seen["host"]


def test_single_products_and_refusals() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (9, 300)).astype(np.uint8), rng.integers(-128, 128, (300, 7)).astype(np.int8)
    for hardware in (WRAP, SATURATE, "int8_acc12_saturate"):
        path = fqtsim.load_hardware(hardware).datapath_for("fprop")
        host = fqtsim.gemm(a, b, hardware, "fprop", backend="emulator")
        device = DeviceEmulator("cpu").gemm(a, b, path)
        assert np.array_equal(device.codes, host.codes)
        assert device.codes.dtype == host.codes.dtype
        assert device.events == host.events
    reason = DeviceNative("cpu").refusal(fqtsim.load_hardware("int8_acc12_saturate").datapath_for("fprop"), 300)
    assert reason == "a register can overflow and INT8 instructions neither saturate nor narrow there"
    net = trainer_of("mlp", "ptq8", WRAP, DeviceEmulator("cpu")).net
    net.trace = True
    with pytest.raises(fqtsim.InputError, match=r"trace = True: a device records no partial sums"):
        net(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("fixed", [(-0.5, 1.25), (0.0, 0.0), (-3.0, 0.0)])
def test_fixed_ranges_of_activations(fixed: tuple[float, float]) -> None:
    found = []
    for backend in ("emulator", DeviceEmulator("cpu")):
        net = trainer_of("mlp", "ptq8", WRAP, backend).net.eval()
        layers = activation_layers(net).values()
        for layer in layers:
            layer.activation_range = fixed
        with torch.no_grad():
            logits = net(torch.from_numpy(training_batch(DATA, 0, 0, BATCH)[0]))
        found.append((logits.numpy().tobytes(), [layer.activation_clamps for layer in layers], net.ties))
    assert found[0] == found[1]
    assert found[0][1][0] > 0


@pytest.mark.parametrize("bits", ["int14", "uint17"])
def test_wgrad_on_a_register_that_wraps_needs_no_patches(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1 of ResNet-56 at batch 128 has K = 131072, where int8 codes can pass int32: its report still counts."""
    hardware = load_hardware("int8_acc32_wrap", {"datapath.levels.-1.register": bits})
    results = []
    for backend in ("emulator", DeviceNative("cpu"), DeviceEmulator("cpu")):
        torch.manual_seed(0)
        net = fqtsim.fully_quantize(EveryKind(), "ptq8", hardware, backend, seed=0)
        results.append(outcome(train(fqtsim.Trainer(net, RULE, dict(name="constant")), 2)))
    assert results[0] == results[1] == results[2]
    wrapped = [row for row in results[0][1] if row["gemm"] == "wgrad" and row["altered"]]
    assert wrapped
    assert all(row["altered"] == row["out_of_range"] for row in wrapped)

    def only_others(gemm: Any, *rest: Any) -> Any:
        if gemm.name == "wgrad":
            raise RuntimeError("a matrix of patches")
        return multiply(gemm, *rest)

    multiply = on_device._multiply
    monkeypatch.setattr(on_device, "_multiply", only_others)
    train(trainer_of(EveryKind(), "ptq8", hardware, DeviceNative("cpu")), 1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="a matrix of patches"):
        train(trainer_of("cnn", "ptq8", "int8_acc12_saturate", DeviceEmulator("cpu")), 1)


@pytest.mark.skipif(not has_triton(), reason="triton is not installed")
def test_the_self_test_of_a_device_runs_every_kernel_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the interpreter, as it stands and with one wrong number in each kernel."""
    with through_interpreter():
        assert proof.convolution_fault("cpu") is None
        for name, wrong in (("_patch_sums", "fprop"), ("_tap_sums", "wgrad")):
            right = getattr(convolution, name)
            with monkeypatch.context() as patch:
                patch.setattr(convolution, name, lambda *args, right=right: right(*args) + 1)
                assert str(proof.convolution_fault("cpu")).startswith(f"{wrong} of a convolution is wrong for 6 and 5")
        emulator = DeviceEmulator("cpu")
        assert [name for name in device.CHAINS if not emulator._performs(name)] == []
        stepped = datapath.stepped
        monkeypatch.setattr(datapath, "stepped", lambda *args: stepped(*args) ^ 1)
        assert not any(emulator._performs(name) for name in device.CHAINS)
