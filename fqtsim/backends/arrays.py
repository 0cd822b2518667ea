"""Moving numbers without computing: what NumPy and torch spell differently (the half of the vocabulary that rounds
nothing).

An array is of whatever library the primitives in use have: NumPy here, torch tensors of one device in
torch_primitives.py. Layers may use what both libraries spell alike: shape, ndim, reshape, indexing, comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

Array = Any
"""A NumPy array, or a torch tensor on the device of the primitives."""


class NoFaults:
    """Where nothing is noted, because what stops a step is raised at once: the twin of faults.FaultLog."""

    def enter(self, text: str, step: int | None = None) -> str:
        """Say what is computed from now on; return what was said before."""
        return ""

    def reading_once(self) -> AbstractContextManager[None]:
        """Let what is noted in the block wait for its end."""
        return nullcontext()

    def settle(self) -> None:
        """Raise what was noted, unless somebody reads it later."""


class HostArrays:
    """Arrays of NumPy, on the CPU."""

    #: Whether arrays live on a device whose results the host reads only when it has to.
    on_device = False
    #: Fused forms of batch norm and of the update, equal to their sequences bit for bit; None where those run.
    fused_norm: Any = None
    fused_update: Any = None

    #: Where a device notes what stops a step.
    faults: Any = NoFaults()

    def array(self, values: Any) -> Array:
        """Return a torch tensor or a NumPy array as a contiguous array of this library; shared where it can be."""
        return np.ascontiguousarray(values if isinstance(values, np.ndarray) else values.detach().cpu().numpy())

    def tensor(self, x: Array) -> Any:
        """Return an array as a torch tensor that shares its memory."""
        import torch

        return torch.from_numpy(x)

    def constant(self, values: np.ndarray[Any, Any]) -> Array:
        """Return numbers that the host knows, as an array; a device keeps them from one call to the next."""
        return values

    def copy(self, x: Array) -> Array:
        """Return x in memory of its own."""
        return x.copy()

    def zeros(self, shape: Sequence[int], like: Array) -> Array:
        """Return zeros of the type of `like`."""
        return np.zeros(shape, like.dtype)

    def select(self, keep: Array, values: Array) -> Array:
        """Return the float32 values where `keep`, else +0.

        On bit patterns, which is np.where without its branch: 4 times faster on the masks of a ReLU.
        """
        bits = np.ascontiguousarray(values).view(np.int32) & -keep.view(np.int8).astype(np.int32)
        return bits.view(np.float32)

    def relu_gradient(self, y: Array, dy: Array) -> Array:
        """Return dy where y is positive, else +0."""
        return self.select(y > 0, dy)

    def where(self, condition: Array, x: Array | float, y: Array) -> Array:
        """Return x, an array or a number, where the condition holds, else y; of y's type."""
        return np.where(condition, np.asarray(x, y.dtype), y)

    def replace(self, x: Array, where: Array, values: Array | float) -> None:
        """Overwrite x with the values where the condition holds."""
        np.copyto(x, values, where=where, casting="unsafe")

    def is_nan(self, x: Array) -> Array:
        """Tell which elements are NaN."""
        return np.isnan(x)

    def pad(self, x: Array, margins: Sequence[tuple[int, int]], value: float) -> Array:
        """Return x with so many elements of `value` before and after it along each axis."""
        return np.pad(x, margins, constant_values=x.dtype.type(value))

    def stack_last(self, arrays: Sequence[Array]) -> Array:
        """Return the arrays side by side along a new last axis."""
        return np.stack(arrays, axis=-1)

    def broadcast(self, x: Array, shape: Sequence[int]) -> Array:
        """Return x repeated to `shape`, in memory of its own."""
        return np.broadcast_to(x, shape).copy()

    def row_maximum(self, x: Array) -> Array:
        """Return the largest of each row of x (N, D), never -0 (S5.9), as (N, 1)."""
        return x.max(axis=1, keepdims=True) + x.dtype.type(0)

    def rows_with(self, shape: tuple[int, int], other: Any, columns: Array, one: Any) -> Array:
        """Return a float32 (N, D) array of `other` with `one` in the given column of each row."""
        rows = np.full(shape, other, np.float32)
        rows[np.arange(shape[0]), columns] = one
        return rows

    def integer_sum(self, codes: Array, axes: tuple[int, ...]) -> Array:
        """Return the int64 sum of codes over `axes`."""
        return codes.sum(axis=axes, dtype=np.int64)

    def scaled_integers(self, total: Array, step: Array) -> Array:
        """Return float32(float64(total) * float64(step)) of int64 totals (S5.8)."""
        scaled: Array = (total.astype(np.float64) * np.float64(step)).astype(np.float32)
        return scaled

    def at_least(self, words: Array, threshold: int) -> Array:
        """Tell which 32-bit random words are at least `threshold`, 0..2**32."""
        return words.astype(np.uint64) >= np.uint64(threshold)

    def all_finite(self, x: Array) -> bool:
        """Tell whether no element is NaN or infinite. A device notes what is not, and says yes (S5.9)."""
        return bool(np.isfinite(x).all())
