"""One forward pass kept, and differentiated as often as wanted: with other random words, quantizers and hardware.

Everything that an analysis compares hangs on the same forward codes; only the way back differs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fqtsim.backends import get_backend
from fqtsim.hw.spec import DatapathChange, Gemms, Hardware, Level
from fqtsim.train.gemm_layers import GemmLayer
from fqtsim.train.layers import Exit
from fqtsim.train.loss import softmax_cross_entropy
from fqtsim.train.module import FQTModule
from fqtsim.words import GEMMS

Array = NDArray[Any]
#: (layer, gemm) -> gradient: wgrad is that of the layer's weight, dgrad that of its input, as the layer returns it.
Gradients = dict[tuple[str, str], Array]
GRADIENT_PORTS = ("grad_for_wgrad", "grad_for_dgrad")
#: Called at each linear or convolutional layer on the way back, with its output gradient and the ports that it uses.
Watch = Callable[[GemmLayer, Any, tuple[str, ...]], None]
#: One level that holds every sum: an accumulator without limits.
UNLIMITED = (Level.model_validate({"terms": "all", "register": "exact"}),)


def gemm_layers(net: FQTModule) -> list[GemmLayer]:
    """Return the linear and convolutional layers in the order of the forward pass."""
    return [step.layer for step in net.program if isinstance(step.layer, GemmLayer)]


def without_limits(hardware: Hardware, gemms: Collection[str]) -> Hardware:
    """Return hardware whose datapaths for `gemms` are one level {terms: all, register: exact}: nothing is dropped.

    Operand formats and the place of zero points stay, so that the same codes are multiplied.
    """
    changes = {}
    for gemm in GEMMS:
        change = getattr(hardware.gemms, gemm, None)
        if gemm in gemms:
            change = (change or DatapathChange()).model_copy(update={"levels": UNLIMITED})
        changes[gemm] = change
    return hardware.model_copy(update={"gemms": Gemms.model_construct(**changes)})


@contextmanager
def _changed(layers: Collection[GemmLayer], hardware: Callable[[Hardware], Hardware] | None) -> Iterator[None]:
    """Give the layers other hardware inside the block, and a backend that takes it."""
    if hardware is None or not layers:
        yield
        return
    before = {layer: layer.hardware for layer in layers}
    run = next(iter(layers)).run
    backend = run.backend
    try:
        for layer in layers:
            layer.hardware = hardware(layer.hardware)
        paths = [layer.hardware.datapath_for(gemm) for layer in layers for gemm in GEMMS]
        if any(backend.refusal(path, 1) is not None for path in paths):
            # Every backend gives the same codes.
            run.backend = get_backend("emulator" if backend.device == "cpu" else f"emulator@{backend.device}")
        yield
    finally:
        run.backend = backend
        for layer, own in before.items():
            layer.hardware = own


@contextmanager
def backward_as(net: FQTModule, unlimited: bool, floats: Collection[tuple[str, str]]) -> Iterator[None]:
    """Inside the block, dgrad and wgrad are without limits, or as given; ports (layer, port) in `floats` are float."""
    layers = gemm_layers(net)
    before = [(layer, dict(layer.quantizers)) for layer in layers]
    wide = (lambda hardware: without_limits(hardware, ("dgrad", "wgrad"))) if unlimited else None
    try:
        for layer in layers:
            for port in GRADIENT_PORTS:
                if (layer.name, port) in floats:
                    layer.quantizers[port] = None
        with _changed(layers, wide):
            yield
    finally:
        for layer, own in before:
            layer.quantizers.update(own)


@dataclass
class Tape:
    """A forward pass of one batch and what its layers kept."""

    net: FQTModule
    #: Gradient of the mean softmax cross-entropy with respect to the logits.
    upstream: Any
    _kept: list[Any] = field(repr=False)
    #: Whether each slot has a parameter above it.
    _needs: dict[int, bool] = field(repr=False)
    #: The layers' buffers, which a pass may move and no pass of an analysis may see moved.
    _buffers: dict[str, torch.Tensor] = field(repr=False)

    @classmethod
    def record(
        cls, net: FQTModule, images: Array, labels: NDArray[np.int64], draw: int, unlimited: bool = False
    ) -> Tape:
        """Run the forward pass at step index `draw`; with `unlimited`, on an fprop without limits.

        Running statistics stay as they were. Raises TrainingStopped, naming the layer, for NaN and infinity.
        """
        buffers = {name: tensor.clone() for name, tensor in net.named_buffers()}
        net.step_index = draw
        p = net.backend.primitives
        tape = cls(net, None, [], {0: False}, buffers)
        slots: dict[int, Any] = {0: p.array(p.tensor(p.array(torch.from_numpy(images))))}
        wide = (lambda hardware: without_limits(hardware, ("fprop",))) if unlimited else None
        try:
            with _changed(gemm_layers(net), wide), p.faults.reading_once():
                for step in net.program:
                    out, kept = step.layer.run_forward(*(slots[slot] for slot in step.reads))
                    tape._kept.append(kept)
                    for slot in step.frees:
                        slots.pop(slot, None)
                    slots.update(zip(step.writes, out if isinstance(out, tuple) else (out,), strict=True))
                    above = any(tape._needs[slot] for slot in step.reads)
                    own = any(weight.requires_grad for weight in step.layer.weights())
                    tape._needs.update(dict.fromkeys(step.writes, above or own))
                _, tape.upstream = softmax_cross_entropy(slots[net.output_slot], labels, 0.0, p)
        finally:
            tape.restore()
        return tape

    def restore(self) -> None:
        """Put the buffers back."""
        with torch.no_grad():
            for name, buffer in self.net.named_buffers():
                buffer.copy_(self._buffers[name])

    def backward(self, draw: int, watch: Watch | None = None) -> Gradients:
        """Return the gradients, with the random words of step index `draw`; on the device, where the network is."""
        net, found = self.net, Gradients()
        net.step_index = draw
        slots: dict[int, Any] = {net.output_slot: self.upstream}
        try:
            with net.backend.primitives.faults.reading_once():
                for step, kept in zip(reversed(net.program), reversed(self._kept), strict=True):
                    if not self._needs[step.writes[0]]:
                        continue
                    dy = tuple(slots.pop(slot) for slot in step.writes)
                    layer = step.layer
                    if isinstance(layer, Exit):  # it only keeps torch from differentiating twice
                        slots[step.reads[0]] = dy[0]
                        continue
                    wanted = tuple(self._needs[slot] for slot in step.reads)
                    own = tuple(weight.requires_grad for weight in layer.weights())
                    if watch is not None and isinstance(layer, GemmLayer):
                        used = zip(GRADIENT_PORTS, (any(own), wanted[0]), strict=True)
                        watch(layer, dy[0], tuple(port for port, needed in used if needed))
                    inputs, weights = layer.run_backward(kept, dy, wanted + own)
                    slots.update((slot, g) for slot, g in zip(step.reads, inputs, strict=True) if g is not None)
                    if isinstance(layer, GemmLayer):
                        pairs = (("wgrad", weights[0]), ("dgrad", inputs[0] if wanted[0] else None))
                        found.update({(layer.name, gemm): g for gemm, g in pairs if g is not None})
        finally:
            self.restore()
        return found


def host(gradient: Any) -> Array:
    """Return a gradient as a NumPy array, brought from its device."""
    array: Array = gradient if isinstance(gradient, np.ndarray) else gradient.detach().cpu().numpy()
    return array
