"""The SGD step in one Triton kernel; only the GPU path, or Triton's interpreter, imports this file."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fqtsim.kernels.gpu.launch import Fault
from fqtsim.kernels.gpu.triton_common import EXACT, NOT_FINITE, flat, is_dense, magnitude, note, pointer
from fqtsim.kernels.gpu.update import Rule

_BLOCK = 1024
FAULT = tl.constexpr(int(Fault.NOT_FINITE))


@triton.jit
def _sgd(
    w, g, v, new_w, new_v, lr, flags, size, momentum, decay,
    HAS_MOMENTUM: tl.constexpr, HAS_DECAY: tl.constexpr, NESTEROV: tl.constexpr, HAS_FLAGS: tl.constexpr,
    B: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    inside = at < size
    weight = tl.load(w + at, mask=inside, other=0.0)
    gradient = tl.load(g + at, mask=inside, other=0.0)
    bad = magnitude(gradient) >= NOT_FINITE
    if HAS_DECAY:
        gradient = gradient + weight * decay
    if HAS_MOMENTUM:
        velocity = tl.load(v + at, mask=inside, other=0.0) * momentum + gradient
        tl.store(new_v + at, velocity, mask=inside)
        ahead = gradient + velocity * momentum
        gradient = velocity
        if NESTEROV:
            gradient = ahead
    weight = weight - gradient * tl.load(lr)
    tl.store(new_w + at, weight, mask=inside)
    note(flags, bad | (magnitude(weight) >= NOT_FINITE), FAULT, HAS_FLAGS)


def _as_laid_out(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def sgd(
    w: torch.Tensor, g: torch.Tensor, v: torch.Tensor | None, lr: torch.Tensor, rule: Rule, flags: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return what update.sgd does."""
    if not is_dense(w):
        w = w.contiguous()
    # All in the memory layout of w: a gradient may come channels last where its weight does not.
    g = _as_laid_out(g, w)
    v = None if v is None else _as_laid_out(v, w)
    new_w, new_v = torch.empty_like(w), None if v is None else torch.empty_like(w)
    if not w.numel():
        return new_w, new_v
    at = [w if t is None else flat(t) for t in (w, g, v, new_w, new_v)]
    _sgd[(triton.cdiv(w.numel(), _BLOCK),)](
        *at, lr, pointer(flags, w), w.numel(), rule.momentum, rule.decay, v is not None, bool(rule.decay),
        rule.nesterov, flags is not None, _BLOCK, num_warps=4, **EXACT,
    )  # fmt: skip
    return new_w, new_v
