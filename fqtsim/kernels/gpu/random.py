"""Philox4x32-10 random words on the device (S5.5). The twin of fqtsim/kernels/random.py.

PyTorch has no unsigned 32-bit arithmetic, so words are the bits of uint32 in int32 tensors, and the composed form
computes in int64, where the product of two 32-bit words keeps all its bits.
"""

from __future__ import annotations

import torch

from fqtsim.kernels.gpu.launch import is_fused

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF

Step = int | torch.Tensor
"""A step index, 0..2**32 - 1: a number, or an int32 or int64 tensor of one element that a captured graph reads."""


def signed(word: int) -> int:
    """Return the int32 number that has the bits of a 32-bit word."""
    return word - (1 << 32) if word >> 31 else word


def _halves(product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (product >> 32) & LOW, product & LOW


def words_of_blocks(blocks: torch.Tensor, seed: int, stream: int, step: Step) -> torch.Tensor:
    """Return the four words of each counter block (int64, any shape), as int64 0..2**32 - 1 in a new last axis."""
    key0, key1 = seed & LOW, seed >> 32
    index = step.to(torch.int64).reshape(()) & LOW if isinstance(step, torch.Tensor) else step
    c0, c1 = blocks & LOW, torch.full_like(blocks, stream)
    c2, c3 = torch.zeros_like(blocks) + index, torch.zeros_like(blocks)
    for _ in range(10):
        p_high, p_low = _halves(c0 * _M0)
        q_high, q_low = _halves(c2 * _M1)
        c0, c1, c2, c3 = q_high ^ c1 ^ key0, q_low, p_high ^ c3 ^ key1, p_low
        key0, key1 = (key0 + _W0) & LOW, (key1 + _W1) & LOW
    return torch.stack((c0, c1, c2, c3), -1)


def words64(seed: int, stream: int, step: Step, count: int, device: torch.device | str) -> torch.Tensor:
    """Return words 0..count as int64 0..2**32 - 1."""
    blocks = torch.arange(-(-count // 4), dtype=torch.int64, device=device)
    return words_of_blocks(blocks, seed, stream, step).reshape(-1)[:count]


def composed_random_words(seed: int, stream: int, step: Step, count: int, device: torch.device | str) -> torch.Tensor:
    """Return what `random_words` does, by torch operations."""
    words = words64(seed, stream, step, count, device)
    return torch.where(words > 0x7FFFFFFF, words - (1 << 32), words).to(torch.int32)


def random_words(seed: int, stream: int, step: Step, count: int, device: torch.device | str) -> torch.Tensor:
    """Return words 0..count of one stream and step: int32 (count,), the bits of uint32; arguments already checked.

    Fused: one write, 4 bytes an element.
    """
    out = torch.empty(count, dtype=torch.int32, device=device)
    if not is_fused(out):
        return composed_random_words(seed, stream, step, count, device)
    from fqtsim.kernels.gpu import triton_quantize

    return triton_quantize.random_words(seed, stream, step, out)
