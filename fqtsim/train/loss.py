"""Softmax cross-entropy with label smoothing and its gradient (S5.11)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.backends.primitives import Primitives
from fqtsim.errors import InputError
from fqtsim.train.operands import Array


def softmax_cross_entropy(logits: Array, labels: Array, smoothing: float, p: Primitives) -> tuple[Any, Array]:
    """Return the mean loss of logits (N, C) for labels (N,), and its gradient (softmax - target) / N.

    target is 1 - smoothing + smoothing / C at the label and smoothing / C elsewhere. Raises InputError for a label
    outside 0..C-1 or shapes that do not match. Labels are a NumPy array, or a tensor whose labels check_labels has
    seen; the loss is of logits' library.
    """
    p = p.host if isinstance(logits, np.ndarray) else p
    if isinstance(labels, np.ndarray):
        check_labels(tuple(logits.shape), labels, smoothing)
    samples, classes = logits.shape
    rest = np.float32(smoothing / classes)
    target = p.rows_with((samples, classes), rest, labels, np.float32(1 - smoothing + smoothing / classes))
    z = p.subtract(logits, p.row_maximum(logits))
    e = p.exp(z)
    total = p.exact_sum(e, (1,), keepdims=True)
    per_class = p.multiply(target, p.subtract(p.log(total), z))
    loss = p.divide(p.exact_sum(per_class), np.float32(samples))
    gradient = p.divide(p.subtract(p.divide(e, total), target), np.float32(samples))
    return loss, gradient


def check_labels(shape: tuple[int, ...], labels: Array, smoothing: float) -> None:
    """Raise InputError for labels that logits of this shape have no class for, and for a bad smoothing."""
    if len(shape) != 2 or labels.shape != shape[:1]:
        raise InputError(
            f"labels of shape {labels.shape} for logits of shape {shape}: must be (N,) for (N, classes); "
            "give one class index per sample"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels of type {labels.dtype}: must be integers; give class indices")
    outside = (labels < 0) | (labels >= shape[1])
    if outside.any():
        raise InputError(f"label = {int(labels[outside][0])}: must be 0..{shape[1] - 1}; give the network more outputs")
    if not 0 <= smoothing < 1:
        raise InputError(f"label_smoothing = {smoothing}: must be at least 0 and below 1; 0.1 is usual")
