"""A captured network: the values that flow through it, the operations on them, and why one cannot be converted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fqtsim.train.geometry import Pair, Window


@dataclass(frozen=True)
class Value:
    """A tensor of the network; number 0 is its input."""

    number: int


@dataclass(frozen=True)
class Shape:
    """What `value.shape` or `value.size()` gives before any size is known."""

    value: Value


@dataclass(frozen=True)
class Dim:
    """The size of one dimension of a value."""

    value: Value
    index: int


@dataclass(frozen=True)
class Op:
    """An operation that a layer of ours performs; `kind` names the layer in `fqtsim.train.layers`."""

    kind: str
    inputs: tuple[Value, ...]
    options: Any = None
    #: The operation overwrites its first input in the model as written.
    inplace: bool = False
    #: The result may share memory with its first input in the model as written.
    view: bool = False


@dataclass(frozen=True)
class ConvOptions:
    """A convolution; its weight and bias are the module's."""

    window: Window
    groups: int


@dataclass(frozen=True)
class AverageOptions:
    """An average pool over windows."""

    window: Window
    include_pad: bool
    divisor: int | None


@dataclass(frozen=True)
class AdaptiveOptions:
    """An average pool to a given output size; None keeps the size of the input."""

    output: tuple[int | None, int | None]


@dataclass(frozen=True)
class FlattenOptions:
    """Dimensions start..end become one."""

    start: int
    end: int


@dataclass(frozen=True)
class ReshapeOptions:
    """The sizes after dimension 0: numbers, -1 for what is left, or Dim for a size of the input itself."""

    sizes: tuple[int | Dim, ...]


class Unsupported(Exception):
    """An operation that no layer of ours performs: why, and what to write instead."""

    def __init__(self, rule: str, remedy: str) -> None:
        self.rule, self.remedy = rule, remedy
        super().__init__(f"{rule}; {remedy}")


@dataclass(frozen=True)
class Call:
    """One operation of the captured network, in the order of its forward pass."""

    op: Op
    output: Value
    #: The module's dotted name, or the name that torch.fx gave to a functional operation.
    name: str
    module: torch.nn.Module | None
    #: "file.py:12: torch.nn.Conv2d conv1", for messages.
    place: str


@dataclass(frozen=True)
class Captured:
    """The whole forward pass."""

    calls: tuple[Call, ...]
    output: Value


def pair(value: Any, what: str) -> Pair:
    """Return an int or a pair of ints as a pair. Raises Unsupported for anything else."""
    both = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, tuple | list) else ()
    if len(both) == 1:
        both = both * 2
    if len(both) != 2 or not all(isinstance(size, int) for size in both):
        raise Unsupported(f"{what} = {value!r} is not a number or a pair of numbers", "write it as numbers")
    return both[0], both[1]
