"""Turn a torch module into one that trains on the hardware; the module itself stays as it is."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch

from fqtsim.backends import get_backend
from fqtsim.backends.base import Backend
from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.recipe.conflicts import check_compatible
from fqtsim.recipe.load import load_recipe
from fqtsim.recipe.spec import Recipe
from fqtsim.train import gemm_layers, layers
from fqtsim.train.capture import capture
from fqtsim.train.graph import Call, Captured, Value
from fqtsim.train.layer import Layer
from fqtsim.train.module import FQTModule, Step
from fqtsim.train.run import Run

HardwareName = str | os.PathLike[str] | Hardware
GEMM_KINDS = ("linear", "conv2d")


def fully_quantize(
    module: torch.nn.Module,
    recipe: str | os.PathLike[str] | Recipe,
    hardware: HardwareName | Mapping[str, HardwareName],
    backend: str | Backend = "emulator",
    seed: int = 0,
) -> FQTModule:
    """Return a network with the module's weights whose GEMMs run on the hardware, forward and backward.

    `hardware` may be one per fnmatch pattern of layer names, first match wins. Raises InputError naming the line of
    the model, recipe or hardware file that cannot be meant, BackendRefused where the backend cannot run it.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise InputError(f"seed = {seed!r}: must be an integer 0..2**64 - 1; choose another")
    captured = capture(module)
    chosen = load_recipe(recipe)
    by_layer = _assign(captured, hardware)
    for description in {id(hw): hw for hw in by_layer.values()}.values():
        check_compatible(chosen, description)
    _check_untied(module)
    return _Builder(module, captured, Run(get_backend(backend), seed), chosen, by_layer).build()


def _assign(captured: Captured, hardware: HardwareName | Mapping[str, HardwareName]) -> dict[str, Hardware]:
    """Return the hardware of each linear and convolutional layer."""
    patterns = hardware if isinstance(hardware, Mapping) else {"*": hardware}
    loaded = {pattern: load_hardware(name) for pattern, name in patterns.items()}
    assigned = {}
    for call in captured.calls:
        if call.op.kind not in GEMM_KINDS:
            continue
        match = next((pattern for pattern in loaded if fnmatchcase(call.name, pattern)), None)
        if match is None:
            raise InputError(
                f"hardware: no pattern of {', '.join(map(repr, patterns))} matches layer {call.name!r}; "
                "add one, for example '*' at the end"
            )
        assigned[call.name] = loaded[match]
    return assigned


def _check_untied(module: torch.nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first = seen.setdefault(id(parameter), name)
        if first != name:
            raise InputError(f"parameters {first!r} and {name!r} are one tensor; give each layer its own weight")


class _Builder:
    """Makes layers from calls and lays out the program that runs them."""

    def __init__(
        self, module: torch.nn.Module, captured: Captured, run: Run, recipe: Recipe, hardware: dict[str, Hardware]
    ) -> None:
        self.captured, self.run, self.recipe, self.hardware = captured, run, recipe, hardware
        self.index = {name: i for i, (name, _) in enumerate(module.named_modules())}
        # Our layers take the copy's parameters and buffers: training leaves the original untouched.
        self.copy = copy.deepcopy(module)
        self.layers: dict[str, Layer] = {}
        self.norms: dict[str, layers.BatchNorm] = {}
        self.steps: list[tuple[Layer, tuple[int, ...], tuple[int, ...]]] = []
        self.slots = 1
        #: Slots that hold each value, one per reader that has not taken its own yet.
        self.available: dict[Value, list[int]] = {}

    def build(self) -> FQTModule:
        readers = self._count_readers()
        self._add(layers.Entry("input", self.run), [0], Value(0), readers)
        for call in self.captured.calls:
            if not self._joined(call, readers):
                slots = [self.available[value].pop(0) for value in call.op.inputs]
                self._add(self._layer(call), slots, call.output, readers)
        last = self.available[self.captured.output].pop(0)
        output = self._new_slots(1)
        self.steps.append((layers.Exit("output", self.run), (last,), output))
        net = FQTModule(self.run, self.recipe, self.hardware, _with_frees(self.steps, output[0]), output[0])
        self._register(net)
        net.training = self.copy.training
        net.set_backend(self.run.backend)
        return net

    def _count_readers(self) -> dict[Value, int]:
        readers: dict[Value, int] = {self.captured.output: 1}
        for call in self.captured.calls:
            for value in call.op.inputs:
                readers[value] = readers.get(value, 0) + 1
        return readers

    def _joined(self, call: Call, readers: dict[Value, int]) -> bool:
        """Make a ReLU part of the batch norm that it alone reads (S5.11: the same bits, two passes of memory less)."""
        before = next((other for other in self.captured.calls if other.output in call.op.inputs), None)
        if call.op.kind != "relu" or before is None or before.op.kind != "batch_norm" or readers[before.output] > 1:
            return False
        self.norms[before.name].with_relu = True
        self._offer(call.name, tuple(self.available.pop(before.output)), call.output, readers)
        return True

    def _new_slots(self, count: int) -> tuple[int, ...]:
        self.slots += count
        return tuple(range(self.slots - count, self.slots))

    def _add(self, layer: Layer, reads: list[int], value: Value, readers: dict[Value, int]) -> None:
        """Append a step, and a Fork after it where several layers read its result."""
        written = self._new_slots(1)
        self.steps.append((layer, tuple(reads), written))
        self._offer(layer.name, written, value, readers)

    def _offer(self, name: str, written: tuple[int, ...], value: Value, readers: dict[Value, int]) -> None:
        """Let every reader of a value that stands in a slot have a slot of its own."""
        if readers[value] > 1:
            fork = layers.Fork(f"{name} (fork)", self.run, readers[value])
            copies = self._new_slots(readers[value])
            self.steps.append((fork, written, copies))
            written = copies
        self.available[value] = list(written)

    def _layer(self, call: Call) -> Layer:
        layer = self.layers.get(call.name)
        if layer is None or call.module is None:
            layer = self._make(call)
            if call.module is not None:
                layer.training = self.copy.get_submodule(call.name).training
                self.layers[call.name] = layer
        return layer

    def _make(self, call: Call) -> Layer:
        run, name, options = self.run, call.name, call.op.options
        module = None if call.module is None else self.copy.get_submodule(name)
        simple: dict[str, type[Any]] = {"relu": layers.ReLU, "relu6": layers.ReLU6, "add": layers.Add}
        shaped: dict[str, type[Any]] = {
            "max_pool": layers.MaxPool, "average_pool": layers.AveragePool, "flatten": layers.Reshape,
            "adaptive_average_pool": layers.AdaptiveAveragePool, "spatial_mean": layers.SpatialMean,
            "reshape": layers.Reshape,
        }  # fmt: skip
        made: Layer
        if call.op.kind in simple:
            made = simple[call.op.kind](name, run)
        elif call.op.kind in shaped:
            made = shaped[call.op.kind](name, run, options)
        elif call.op.kind == "dropout":
            made = layers.Dropout(name, run, options, self.index[name])
        elif call.op.kind == "batch_norm":
            made = self.norms[name] = layers.BatchNorm(name, run, module)
        elif call.op.kind == "linear":
            made = gemm_layers.Linear(name, run, self.index[name], module, self.recipe, self.hardware[name])
        else:
            place = (self.index[name], module, self.recipe, self.hardware[name])
            made = gemm_layers.Conv2d(name, run, *place, options)
        return made

    def _register(self, net: FQTModule) -> None:
        """Hang the layers below the network under their original names, so that state_dict() keeps its keys."""
        parents = {name.rpartition(".")[0] for name in self.layers}
        for name, _ in self.copy.named_modules():
            is_parent = any(parent == name or parent.startswith(f"{name}.") for parent in parents)
            if not name or not (name in self.layers or is_parent):
                continue
            above, _, key = name.rpartition(".")
            if not above and hasattr(net, key):
                raise InputError(f"layer {key!r}: the converted network uses that name itself; rename the layer")
            net.get_submodule(above).add_module(key, self.layers.get(name) or torch.nn.Module())


def _with_frees(steps: list[tuple[Layer, tuple[int, ...], tuple[int, ...]]], output: int) -> list[Step]:
    """Return the steps with the slots that nobody reads after each."""
    last = {slot: i for i, (_, reads, _) in enumerate(steps) for slot in reads}
    return [
        Step(layer, reads, writes, tuple(slot for slot in reads if last[slot] == i and slot != output))
        for i, (layer, reads, writes) in enumerate(steps)
    ]
