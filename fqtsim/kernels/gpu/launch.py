"""What the device forms share: faults that are noted and not raised, and whether Triton runs a tensor.

A fault is noted in `flags`, an int32 tensor of shape (1,) on the device, by the largest number met; the caller reads
it when it next synchronises. None notes nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from functools import lru_cache

import torch

_through_interpreter: ContextVar[bool] = ContextVar("through_interpreter", default=False)


class Fault(IntEnum):
    """What stops the step (S5.9)."""

    #: NaN or infinity where a finite number is needed.
    NOT_FINITE = 1
    #: A sum beyond float32.
    BEYOND_FLOAT32 = 2
    #: A negative value under an unsigned symmetric grid.
    NEGATIVE = 3
    #: An argument outside what the function is defined for.
    OUT_OF_RANGE = 4


def note(flags: torch.Tensor | None, bad: torch.Tensor, fault: Fault) -> None:
    """Raise `flags` to `fault` where any of the booleans `bad` is true, without waiting for the device."""
    if flags is not None:
        torch.maximum(flags, bad.any().to(torch.int32) * int(fault), out=flags)


def bits(x: torch.Tensor) -> torch.Tensor:
    """Return the bits of floats as integers, by which NaN and -0 are compared, too; integers as they are."""
    kinds = {torch.float32: torch.int32, torch.float64: torch.int64}
    return x.contiguous().view(kinds[x.dtype]) if x.dtype in kinds else x


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Tell whether Triton is installed, without importing it."""
    return importlib.util.find_spec("triton") is not None


@contextmanager
def through_interpreter() -> Iterator[None]:
    """Run the fused forms on CPU tensors too: set TRITON_INTERPRET=1 before triton is first imported."""
    token = _through_interpreter.set(True)
    try:
        yield
    finally:
        _through_interpreter.reset(token)


def is_fused(x: torch.Tensor, counts_in_int32: bool = False) -> bool:
    """Tell whether the Triton form runs for x: on CUDA where Triton is installed, else inside through_interpreter.

    counts_in_int32: a form that numbers the elements of x so, and cannot have 2**31 of them.
    """
    fits = not counts_in_int32 or x.numel() < 1 << 31
    return fits and has_triton() and (x.is_cuda or _through_interpreter.get())
