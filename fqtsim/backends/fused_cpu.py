"""Fused forms on the CPU, equal bit for bit to the sequences of fqtsim/train/norm.py and optimizer.py (S5.11)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fqtsim.kernels import norm, update

Float32 = npt.NDArray[np.float32]


class Saved(NamedTuple):
    """What the backward pass of batch norm needs."""

    x: Float32
    mean: Float32
    inv: Float32
    #: gamma and beta.
    affine: tuple[Float32, Float32] | None
    #: Whether mean and variance came from this batch, and so depend on x.
    from_batch: bool
    #: Whether a ReLU followed in the same call.
    with_relu: bool = False


class FusedNorm:
    """Batch norm in one kernel a pass. A method returns None where a number is not finite: the sequence says which."""

    def batch_statistics(self, x: Float32) -> tuple[Float32, Float32, Float32] | None:
        """Return mean, biased and unbiased variance of each channel."""
        mean, squares = norm.statistics(x)
        count = x.size // x.shape[1]
        if not (np.isfinite(mean).all() and np.isfinite(squares).all()):
            return None
        with np.errstate(all="ignore"):  # of one value a channel
            return mean, squares / np.float32(count), squares / np.float32(count - 1)

    def batch_norm(
        self, x: Float32, mean: Float32, var: Float32, affine: tuple[Float32, Float32] | None, eps: float,
        from_batch: bool, with_relu: bool,
    ) -> tuple[Float32, Saved]:  # fmt: skip
        """Return the output and what the backward pass needs."""
        with np.errstate(all="ignore"):
            inv = np.float32(1) / np.sqrt(var + np.float32(eps))
        return norm.normalize(x, mean, inv, affine, with_relu), Saved(x, mean, inv, affine, from_batch, with_relu)

    def batch_norm_gradients(self, dy: Float32, saved: Saved) -> tuple[Float32, Float32, Float32] | None:
        """Return dx, dgamma and dbeta."""
        with_relu = saved.with_relu
        if with_relu and not saved.from_batch:
            dy = norm.relu_gradient(norm.normalize(saved.x, saved.mean, saved.inv, saved.affine, True), dy)
            with_relu = False
        found = norm.gradients(dy, saved.x, saved.mean, saved.inv, saved.affine, saved.from_batch, with_relu)
        return found if all(np.isfinite(one).all() for one in found[1:]) else None


class FusedUpdate:
    """The update of a parameter in one kernel."""

    def sgd(
        self, w: Float32, g: Float32, v: Float32 | None, lr: Float32, momentum: np.float32, decay: np.float32,
        nesterov: bool,
    ) -> tuple[Float32, Float32 | None]:  # fmt: skip
        """Return new weights and momentum; lr (1,). Nothing says whether they are finite."""
        return update.sgd(w, g, v, lr[0], momentum, decay, nesterov)


FUSED_NORM: Any = FusedNorm()
FUSED_UPDATE: Any = FusedUpdate()
