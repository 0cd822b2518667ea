"""The step of stochastic gradient descent in one pass (S5.11). The twin of fqtsim/train/optimizer.py, `Sgd.update`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.kernels.jit import kernel
from fqtsim.kernels.threads import parts, run

Array = np.ndarray[Any, Any]


@kernel
def _sgd(w: Any, g: Any, v: Any, numbers: Any, nesterov: bool, new: Any, moved: Any) -> None:
    """numbers: learning rate, momentum and decay, which leaves its term out where it is 0; without v no momentum."""
    lr, mu, decay = numbers
    for i in range(w.size):
        x = g[i]
        if decay != 0:
            x = x + decay * w[i]
        if v.size:
            speed = mu * v[i] + x
            moved[i] = speed
            x = x + mu * speed if nesterov else speed
        new[i] = w[i] - lr * x


def sgd(
    w: Array, g: Array, v: Array | None, lr: np.float32, mu: np.float32, decay: np.float32, nesterov: bool
) -> tuple[Array, Array | None]:
    """Return the new weights and momentum of one parameter, changing neither; v is None where there is no momentum."""
    new, moved = np.empty(w.shape, np.float32), np.empty(w.shape if v is not None else 0, np.float32)
    flat = [np.ascontiguousarray(x).reshape(-1) for x in (w, g, moved if v is None else v)]
    out = new.reshape(-1), moved.reshape(-1)

    def part(i: int, j: int) -> None:
        _sgd(flat[0][i:j], flat[1][i:j], flat[2][i:j], (lr, mu, decay), nesterov, out[0][i:j], out[1][i:j])

    run(part, parts(w.size, quick=True))
    return new, None if v is None else moved
