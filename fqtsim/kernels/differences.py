"""Codes less the zero points of their rows, which a multiplier takes where zero points go in before it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.kernels.jit import kernel
from fqtsim.kernels.threads import parts, run

Array = np.ndarray[Any, Any]


@kernel
def _subtract(codes: Any, zeros: Any, first: int, last: int, out: Any) -> None:
    for n in range(first, last):
        zero, row, target = zeros[n], codes[n], out[n]
        for i in range(row.size):
            target[i] = row[i] - zero


def differences(codes: Array, zeros: Array) -> Array:
    """Return codes less the zero points (N,) of dimension 0, or less one for all, () or (1,), in the latter's type."""
    if codes.size == 0:
        return np.empty(codes.shape, zeros.dtype)
    each = zeros.reshape(-1)
    flat = np.ascontiguousarray(codes).reshape(1 if each.size == 1 else len(codes), -1)
    if each.size != len(flat):
        raise ValueError(f"zeros of shape {zeros.shape}: must be one, or one for each of {len(codes)} rows")
    out = np.empty(flat.shape, zeros.dtype)
    if len(flat) > 1:
        run(lambda first, last: _subtract(flat, each, first, last, out), parts(len(flat), flat.shape[1], quick=True))
    else:
        run(
            lambda first, last: _subtract(flat[:, first:last], each, 0, 1, out[:, first:last]),
            parts(flat.size, quick=True),
        )
    return out.reshape(codes.shape)
