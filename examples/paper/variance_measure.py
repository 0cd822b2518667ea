"""Variance of the block convolutions' weight gradients at a checkpoint: between batches, and from quantizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from fqtsim.data.batches import training_batch
from fqtsim.errors import TrainingStopped
from fqtsim.train.config import TrainConfig, build_trainer, resolve

QUANTIZERS = ("ptq", "psq", "bhq")
BITS = (8, 7, 6, 5, 4)
#: The last form is the authors' own alignment of PTQ, with its NaN hole.
ZEROS = ("aligned", "float_offset", "authors")
#: What a part is called that has no quantizer Q_b2, and one that has no gradient quantizer.
NONE, BETWEEN = "none", "between"


@dataclass(frozen=True)
class Task:
    """One curve point, or one of the two lines, over some batches; a Task of the harness."""

    config: TrainConfig
    #: quantizer, zero form, bits; (none, , 0): Q_b1 alone; (between, , 0): variance between batches.
    point: tuple[str, str, int]
    batches: int
    repeats: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return "-".join(str(word) for word in self.point if word)

    def settings(self) -> dict[str, Any]:
        """Return what decides the part."""
        start = self.config.start
        plain = asdict(replace(self.config, start=None))
        plain |= {"hardware": list(self.config.hardware), "weights": "" if start is None else _digest(Path(start))}
        return plain | {"point": list(self.point), "batches": self.batches, "repeats": self.repeats}

    def measure(self) -> dict[str, Any]:
        """Return the mean squared distance of each batch, `squares`, and how many repeats had no step, `holes`."""
        return _between(self) if self.point[0] == BETWEEN else _within(self)


def points(zeros: Sequence[str] = ZEROS, widths: Sequence[int] = BITS) -> list[tuple[str, str, int]]:
    """Return every point of the figure, the lines first."""
    found = [(BETWEEN, "", 0), (NONE, "", 0)]
    for zero in ZEROS:
        names = ("ptq",) if zero == "authors" else QUANTIZERS
        found += [(name, zero, bits) for bits in BITS for name in names if zero in zeros and bits in widths]
    return found


def _digest(path: Path) -> str:
    """Return the digest that a training state says it has; build_trainer() refuses a state of another."""
    with safe_open(path, framework="np") as file:
        return str((file.metadata() or {})["digest"])


def _net(task: Task) -> tuple[Any, Any]:
    """Return the data and the network in eval mode, Q_b2 as the point says; Q_b1 is that of the recipe."""
    name, zero, bits = task.point
    spec = f"{{quantizer: {name}, bits: {bits}, rounding: stochastic, zero: {zero}}}"
    change = {} if bits == 0 else {"grad_for_dgrad": spec}
    resolved = resolve(replace(task.config, steps=1, epochs=None, set_recipe={**task.config.set_recipe, **change}))
    net = build_trainer(resolved).net
    # Running statistics, as in the paper's figure, which was made after validation.
    net.eval()
    return resolved.data, net


def block_convolutions(gradients: Any) -> NDArray[np.float64]:
    """Return the weight gradients of conv1 and conv2 of every block as one vector, as the authors summed them.

    Not among them: the first convolution, the shortcuts and the linear layer.
    """
    from fqtsim.analysis.tape import host

    chosen = [
        host(gradient).astype(np.float64).ravel()
        for (layer, gemm), gradient in gradients.items()
        if gemm == "wgrad" and layer.startswith("blocks.") and layer.endswith(("conv1", "conv2"))
    ]
    return np.concatenate(chosen)


def _reference(net: Any, tape: Any) -> NDArray[np.float64]:
    """Return the gradient without gradient quantizers: the same forward codes, the way back in float."""
    from fqtsim.analysis.batch import all_ports
    from fqtsim.analysis.tape import backward_as

    with backward_as(net, False, all_ports(net)):
        return block_convolutions(tape.backward(_draw(0, 0)))


def _draw(batch: int, repeat: int) -> int:
    from fqtsim.analysis.batch import draw_of

    return draw_of(batch, repeat)


def _tape(task: Task, data: Any, net: Any, number: int) -> Any:
    from fqtsim.analysis.tape import Tape

    images, labels = training_batch(data, task.config.seed, number, task.config.batch)
    return Tape.record(net, images, labels, _draw(number, (1 << 16) - 1))


def _between(task: Task) -> dict[str, Any]:
    """Return each batch's unbiased share of the variance between batches: |g - mean|^2 * M / (M - 1)."""
    data, net = _net(task)
    stack = np.stack([_reference(net, _tape(task, data, net, number)) for number in range(task.batches)])
    squares = np.sum((stack - stack.mean(axis=0)) ** 2, axis=1) * task.batches / (task.batches - 1)
    return {
        "squares": squares.tolist(),
        "repeats": task.batches,
        "holes": 0,
        "message": "",
        "norm": float(np.mean(np.sum(stack**2, axis=1))),
    }


def _within(task: Task) -> dict[str, Any]:
    """Return each batch's mean squared distance of a repeat to the reference, and where there was no step."""
    from fqtsim.analysis.tape import backward_as

    data, net = _net(task)
    squares: list[float | None] = []
    holes, message = 0, ""
    floats = _dgrad_ports(net) if task.point[0] == NONE else []
    for number in range(task.batches):
        tape = _tape(task, data, net, number)
        exact, found = _reference(net, tape), []
        # dgrad and wgrad without limits: what is measured is the quantizers alone.
        with backward_as(net, True, floats):
            for repeat in range(task.repeats):
                try:
                    gradient = block_convolutions(tape.backward(_draw(number, repeat)))
                except TrainingStopped as error:
                    holes, message = holes + 1, message or str(error)
                    continue
                found.append(float(np.sum((gradient - exact) ** 2)))
        squares.append(float(np.mean(found)) if found else None)
    return {"squares": squares, "repeats": task.batches * task.repeats, "holes": holes, "message": message}


def _dgrad_ports(net: Any) -> Sequence[tuple[str, str]]:
    from fqtsim.analysis.batch import all_ports

    return [(layer, port) for layer, port in all_ports(net) if port == "grad_for_dgrad"]
