"""NumPy or torch in, the same library out. torch is touched only by a caller who already has it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fqtsim.errors import InputError

Array = np.ndarray[Any, Any]


def from_library(x: Any) -> tuple[Array, Callable[[Array], Any]]:
    """Return x as a numpy array, and the function that brings a result back to x's library and device.

    Raises InputError for anything but a numpy array or a torch tensor.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        device = x.device
        return x.detach().cpu().numpy(), lambda result: torch.from_numpy(np.asarray(result)).to(device)
    if isinstance(x, np.ndarray):
        return x, lambda result: result
    raise InputError(f"x: must be a numpy array or a torch tensor, not {type(x).__name__}; convert it first")


def checked_float32(x: Array) -> Array:
    """Return x. Raises InputError unless it is float32."""
    if x.dtype != np.float32:
        raise InputError(f"x: must be float32, not {x.dtype}; convert it with astype(np.float32) or .float()")
    return x
