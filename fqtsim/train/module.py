"""A converted network: a torch module whose layers follow section 5, and the report of what the hardware did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fqtsim.backends import get_backend
from fqtsim.backends.base import Backend
from fqtsim.errors import BackendRefused, InputError
from fqtsim.hw.spec import Hardware
from fqtsim.recipe.spec import Recipe
from fqtsim.train.layer import Layer
from fqtsim.train.layers import BatchNorm
from fqtsim.train.run import Observer, Run, Watching


@dataclass(frozen=True)
class Step:
    """One layer call: slots it reads, slots it writes, slots that nobody reads afterwards."""

    layer: Layer
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]


class FQTModule(torch.nn.Module):
    """A network under section 5. Its parameters and buffers have the names of the module it was made from."""

    def __init__(
        self, run: Run, recipe: Recipe, hardware: dict[str, Hardware], program: list[Step], output: int
    ) -> None:
        super().__init__()
        self._run, self._recipe, self._hardware = run, recipe, hardware
        self._program, self._output = tuple(program), output

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch: float32, samples first, any memory layout; on the device of the batch.

        A batch is on the CPU, or where the backend computes.
        """
        _check_batch(x, self.backend.device)
        slots: dict[int, torch.Tensor] = {0: x}
        with self.backend.primitives.faults.reading_once():
            for step in self._program:
                out = step.layer(*(slots[i] for i in step.reads))
                for slot in step.frees:
                    slots.pop(slot, None)
                slots.update(zip(step.writes, out if isinstance(out, tuple) else (out,), strict=True))
        logits = slots[self._output]
        return logits if logits.device == x.device else logits.to(x.device)

    @property
    def backend(self) -> Backend:
        """Who executes the GEMMs and the float primitives."""
        return self._run.backend

    def set_backend(self, backend: str | Backend) -> None:
        """Go on with another backend: the state does not depend on it (S5).

        Raises BackendRefused where its float primitives fail their proof (S5.2) or it refuses a datapath.
        """
        chosen = get_backend(backend)
        chosen.primitives.prove()
        for layer, hardware in self._hardware.items():
            for gemm in integer_gemms(self._recipe):
                # Whatever K turns out to be, it is at least 1.
                reason = chosen.refusal(hardware.datapath_for(gemm), 1)
                if reason is not None:
                    raise BackendRefused(f"layer {layer!r}, {gemm}: {chosen.name} refuses: {reason}")
        self._run.read_tally()
        self._run.ties = int(self._run.ties)
        self._run.backend = chosen
        self.to(chosen.device)

    @property
    def recipe(self) -> Recipe:
        """The quantizers and the update rule."""
        return self._recipe

    @property
    def hardware(self) -> dict[str, Hardware]:
        """The hardware of each linear and convolutional layer."""
        return dict(self._hardware)

    @property
    def program(self) -> tuple[Step, ...]:
        """The calls of the layers in the order of the forward pass, for whoever runs them outside autograd."""
        return self._program

    @property
    def output_slot(self) -> int:
        """The slot of `program` that holds the logits in the end."""
        return self._output

    @property
    def seed(self) -> int:
        """The key of all random bits."""
        return self._run.seed

    @property
    def step_index(self) -> int:
        """Index of the training step that the next backward belongs to; it selects the random bits."""
        return self._run.step_index

    @step_index.setter
    def step_index(self, value: int) -> None:
        if not 0 <= value < 1 << 32:
            raise InputError(f"step_index = {value}: must be 0..2**32 - 1; start a run with another seed")
        self._run.step_index = value

    def forget_backward(self) -> None:
        """Allow a backward at this step index again, after a step that was not applied."""
        self._run.differentiated = None

    @property
    def observers(self) -> list[Observer]:
        """Functions called after every GEMM as (layer, gemm, a, b, datapath, c, result); append yours.

        Operands and codes become matrices for it, which takes longer.
        """
        return self._run.observers

    @property
    def watchers(self) -> list[Callable[[Any], None]]:
        """Functions called with every product of a layer (fqtsim.train.products.Product), whatever kernel made it."""
        return self._run.watchers

    @property
    def checks(self) -> Watching | None:
        """Who checks the products of the present step, if anybody does."""
        return self._run.checks

    @checks.setter
    def checks(self, checks: Watching | None) -> None:
        self._run.checks = checks

    @property
    def draw_index(self) -> Any:
        """What selects the random words of the present step: its index, or a device's tensor that holds it."""
        return self._run.draw_index

    @property
    def trace(self) -> bool:
        """Whether GEMMs record every partial sum: slower, and the report gains bits_needed_partial."""
        return self._run.trace

    @trace.setter
    def trace(self, value: bool) -> None:
        self._run.trace = value

    @property
    def platform(self) -> bool:
        """Whether the platform's float GEMM takes part, so that the state depends on the machine."""
        return len(integer_gemms(self._recipe)) < 3

    def report(self) -> list[dict[str, Any]]:
        """Return what each GEMM of each layer did since the last reset, in order of first use."""
        self._run.read_tally()
        return [record.row(layer, gemm) for (layer, gemm), record in self._run.records.items()]

    @property
    def ties(self) -> int:
        """Values that lay exactly between two codes of a quantizer that rounds to nearest, since the last reset."""
        return int(self._run.ties)

    def end_step(self) -> None:
        """Add up, where the counts of a device are, what the GEMMs of this step counted."""
        self._run.tally.end_step()

    def reset_report(self) -> None:
        """Start the report again, and the count of ties."""
        self._run.tally.clear()
        self._run.records.clear()
        self._run.ties = 0

    def norm_parameters(self) -> set[str]:
        """Return the names of batch norm's gamma and beta, which a recipe may exempt from weight decay."""
        norms = {id(w) for step in self._program if isinstance(step.layer, BatchNorm) for w in step.layer.weights()}
        return {name for name, parameter in self.named_parameters() if id(parameter) in norms}


def integer_gemms(recipe: Recipe) -> tuple[str, ...]:
    """Return the GEMMs whose two operands are both codes."""
    operands = {
        "fprop": ("activation", "weight"),
        "dgrad": ("grad_for_dgrad", "weight"),
        "wgrad": ("activation", "grad_for_wgrad"),
    }
    return tuple(gemm for gemm, ports in operands.items() if all(recipe.port(port) for port in ports))


def _check_batch(x: torch.Tensor, device: str) -> None:
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise InputError(f"input of {kind}: must be a torch.float32 tensor; convert it with .float()")
    if x.device.type not in ("cpu", device):
        raise InputError(f"input on {x.device}: must be on the CPU; move it with .cpu()")
    if x.ndim < 2 or 0 in x.shape:
        raise InputError(f"input of shape {tuple(x.shape)}: must be samples first and not empty; add a dimension")
