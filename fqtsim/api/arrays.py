"""Arrays at the border: numpy or torch in, numpy inside, the caller's library and device out."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from fqtsim.backends.exact import operand_range
from fqtsim.errors import InputError
from fqtsim.hw.spec import Datapath
from fqtsim.words import IntFormat

Array = np.ndarray[Any, Any]


def is_torch(array: Any) -> bool:
    """Tell whether this is a torch tensor, without importing torch for those who do not use it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def to_numpy(array: Any, name: str) -> Array:
    """Return integers as a numpy array. Raises InputError for floats, bools and what is no array."""
    if is_torch(array):
        array = array.detach().cpu().numpy()
    result = np.asarray(array)
    if result.dtype.kind not in "iu":
        raise InputError(f"{name}: dtype {result.dtype} holds no codes; pass integers")
    return result.astype(result.dtype.newbyteorder("="), copy=False)


def like(codes: Array, model: Any) -> Any:
    """Return codes in the library and on the device of the model array."""
    if not is_torch(model):
        return codes
    import torch

    return torch.from_numpy(np.ascontiguousarray(codes)).to(model.device)


def checked_codes(codes: Array, form: IntFormat, name: str) -> Array:
    """Return codes in the format's storage type, rows or columns contiguous; the codes themselves where they are so.

    Raises InputError naming the first code outside the format.
    """
    ends = np.iinfo(codes.dtype) if codes.dtype.kind in "iu" else None
    certain = ends is not None and ends.min >= form.minimum and ends.max <= form.maximum
    if codes.size and not certain and not operand_range(codes).within(form.minimum, form.maximum):
        outside = np.argwhere((codes < form.minimum) | (codes > form.maximum))[0]
        place = ", ".join(str(int(index)) for index in outside)
        raise InputError(
            f"{name}[{place}] = {int(codes[tuple(outside)])}: must be a code of {form}, "
            f"{form.minimum}..{form.maximum}; quantize to {form} first"
        )
    stored: Array = codes.astype(form.storage, order="K", copy=False)
    return stored if stored.flags.f_contiguous else np.ascontiguousarray(stored)


def checked_operands(a: Any, b: Any, datapath: Datapath) -> tuple[Array, Array]:
    """Return a (M, K) and b (K, N) ready for a backend. Raises InputError for shapes, types and codes."""
    left, right = to_numpy(a, "a"), to_numpy(b, "b")
    for name, operand in (("a", left), ("b", right)):
        if operand.ndim != 2:
            raise InputError(f"{name}.shape = {operand.shape}: must have 2 dimensions; reshape it")
    if left.shape[1] != right.shape[0]:
        raise InputError(
            f"a.shape = {left.shape}, b.shape = {right.shape}: a's columns must equal b's rows; transpose one"
        )
    form_a, form_b = datapath.multiplier_format("a"), datapath.multiplier_format("b")
    return checked_codes(left, form_a, "a"), checked_codes(right, form_b, "b")


def checked_start(c: Any, datapath: Datapath, shape: tuple[int, int]) -> Array | None:
    """Return start values broadcast to (M, N) int64. Raises InputError outside the accumulator."""
    if c is None:
        return None
    start = to_numpy(c, "c")
    try:
        np.broadcast_to(start, shape)
    except ValueError:
        raise InputError(f"c.shape = {start.shape}: must broadcast to {shape}; reshape it") from None
    accumulator = datapath.accumulator
    register = accumulator.register_format or IntFormat(63, True)
    low, high = register.rails(accumulator.overflow)
    if start.size and (int(start.min()) < low or int(start.max()) > high):
        raise InputError(f"c: must lie in the accumulator, {low}..{high}; it holds {start.min()}..{start.max()}")
    return np.broadcast_to(start.astype(np.int64), shape)
