"""Ranges that are moving averages: one rule, for calibration and for training (S5.7)."""

from __future__ import annotations

import numpy as np
import torch

from fqtsim.backends.primitives import Primitives
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.train.operands import Array

#: Minimum and maximum; float32 values, held as Python floats.
Range = tuple[float, float]

#: Weight of the newest tensor in a hindsight range.
HINDSIGHT = np.float32(0.1)
#: How the buffer of a port with a hindsight range ends, after the port's name.
SUFFIX = "_hindsight"
#: What such a buffer holds before its port has met a tensor: no range, its minimum being above its maximum.
NONE_YET = (float(np.finfo(np.float32).max), float(np.finfo(np.float32).min))


def moved(old: Range, new: Range, weight: np.float32, p: Primitives) -> Range:
    """Return `old`, each end moved by `weight` of its distance to that of `new`; three float32 operations an end."""
    low, high = (
        float(p.add(end, p.multiply(weight, p.subtract(np.array([to], np.float32), end)))[0])
        for end, to in zip(old, new, strict=True)
    )
    # Two ends a few roundings apart could change places.
    return low, max(low, high)


def kept(buffer: torch.Tensor | None) -> Range | None:
    """Return the range that a buffer, float32 (2,), holds, None before the first tensor and without a buffer."""
    low, high = NONE_YET if buffer is None else buffer.tolist()
    return None if low > high else (low, high)


def from_steps_before(buffer: torch.Tensor, values: Array, moves: bool, p: Primitives) -> Range:
    """Return the range that steps before left in `buffer`, float32 (2,), that of `values` at the first; move it there.

    Raises TrainingStopped for NaN or infinity among the values, and where the distance of two ends is none of float32.
    """
    if p.on_device:
        raise InputError("range = hindsight: moving ranges have no form on a device; use the CPU")
    least, greatest = p.extremes(values.reshape(1, -1))
    own = float(least[0]), float(greatest[0])
    used = kept(buffer) or own
    if moves:
        after = moved(used, own, HINDSIGHT, p)
        if not np.isfinite(after).all():
            raise TrainingStopped(f"the range {used} cannot move to {own}: their distance is beyond float32")
        with torch.no_grad():
            buffer.copy_(torch.tensor(after))
    return used
