"""What every layer is: two pure functions on arrays, wired into torch's autograd by one Function (S5).

No torch arithmetic happens: torch routes gradients, and where one tensor has several readers an explicit Fork adds
them, because autograd's own addition has no order that a rule could state.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fqtsim.errors import InputError, TrainingStopped
from fqtsim.train.operands import Array
from fqtsim.train.run import Run

Gradients = tuple[Array | None, ...]


class Layer(torch.nn.Module):
    """A layer under the rules of section 5. Subclasses hold parameters and write `compute` and `differentiate`."""

    def __init__(self, name: str, run: Run) -> None:
        super().__init__()
        self.name = name
        # Not a submodule, and shared by all layers of the network.
        object.__setattr__(self, "run", run)

    run: Run

    def compute(self, *x: Array) -> tuple[Array | tuple[Array, ...], Any]:
        """Return the output, or several, and what `differentiate` needs."""
        raise NotImplementedError

    def differentiate(self, saved: Any, dy: tuple[Array, ...], wanted: tuple[bool, ...]) -> tuple[Gradients, Gradients]:
        """Return the gradients of the inputs and of the weights; `wanted` says which are read, in that order."""
        raise NotImplementedError

    def weights(self) -> tuple[torch.nn.Parameter, ...]:
        """Return the parameters in the order in which `differentiate` gives their gradients."""
        return ()

    def forward(self, *x: torch.Tensor) -> Any:
        """Run the layer inside torch's autograd."""
        return _Apply.apply(self, len(x), *x, *self.weights())  # type: ignore[no-untyped-call]

    def run_forward(self, *x: Array) -> tuple[Array | tuple[Array, ...], Any]:
        """Call `compute` on arrays, outside autograd too; what stops it says where (S5.9)."""
        self.enter("forward pass")
        try:
            with np.errstate(all="ignore"):
                found = self.compute(*x)
            self.run.primitives.faults.settle()
        except (TrainingStopped, InputError) as error:
            raise _placed(self, error, "forward pass") from None
        return found

    def run_backward(self, kept: Any, dy: tuple[Array, ...], wanted: tuple[bool, ...]) -> tuple[Gradients, Gradients]:
        """Call `differentiate`, outside autograd too; what stops it says where (S5.9)."""
        self.enter("backward pass")
        try:
            with np.errstate(all="ignore"):
                found = self.differentiate(kept, dy, wanted)
            self.run.primitives.faults.settle()
        except (TrainingStopped, InputError) as error:
            raise _placed(self, error, "backward pass") from None
        return found

    def enter(self, tensor: str) -> str:
        """Say what is computed from now on, for a device that notes faults (S5.9); return what was said before."""
        p = self.run.primitives
        return p.faults.enter(self._place(tensor), self.run.step_index) if p.on_device else ""

    def _place(self, tensor: str) -> str:
        return f"layer {self.name!r}, {tensor}"

    def stopped(self, tensor: str, why: object) -> TrainingStopped:
        """Return the error that stops the step, naming layer, tensor and step (S5.9)."""
        return TrainingStopped(f"step {self.run.step_index}: {self._place(tensor)}: {why}")


class _Apply(torch.autograd.Function):
    """One layer as torch sees it."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, inputs: int, *tensors: torch.Tensor) -> Any:
        ctx.layer, p = layer, layer.run.primitives
        out, ctx.kept = layer.run_forward(*(p.array(x) for x in tensors[:inputs]))
        if isinstance(out, tuple):
            return tuple(p.tensor(y) for y in out)
        return p.tensor(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *dy: torch.Tensor) -> Any:
        layer: Layer = ctx.layer
        p = layer.run.primitives
        inputs, weights = layer.run_backward(ctx.kept, tuple(p.array(d) for d in dy), ctx.needs_input_grad[2:])
        ctx.kept = None
        return (None, None, *(None if g is None else p.tensor(g) for g in (*inputs, *weights)))


def _placed(layer: Layer, error: TrainingStopped | InputError, what: str) -> Exception:
    """Return the error with its layer, where whoever raised it did not know one."""
    if str(error).startswith(("layer ", "step ")):
        return error
    if isinstance(error, TrainingStopped):
        return layer.stopped(what, error)
    return InputError(f"layer {layer.name!r}: {error}")
