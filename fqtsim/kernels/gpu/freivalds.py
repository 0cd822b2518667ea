"""Sums of codes with random words, modulo 2**32, on a device: the twin of fqtsim/kernels/freivalds.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch

MASK = 0xFFFFFFFF
MOST_TERMS, MOST_ELEMENTS = 1 << 20, 1 << 24
"""Rows that one float64 product sums, and codes that are float64 at a time."""


def first_odd(pairs: torch.Tensor) -> torch.Tensor:
    """Return integers (2, n), of which those of the first row become odd."""
    return torch.stack((pairs[0] | 1, pairs[1]))


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return words (2, N) of several groups side by side, int64."""
    return as_words(torch.cat(tuple(parts), dim=1))


def as_words(words: torch.Tensor) -> torch.Tensor:
    """Return integers modulo 2**32, int64."""
    return words.to(torch.int64) & MASK


def combine(weights: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return weights (2, R), int64 words, times an integer matrix (R, C) modulo 2**32: int64 (2, C).

    By float64 products of 16-bit halves: each product is below 2**32 and at most 2**20 are summed, so that every
    partial sum, in whatever order, is an integer below 2**53 and exact.
    """
    rows, columns = matrix.shape
    total = torch.zeros((2, columns), dtype=torch.int64, device=matrix.device)
    # Low and high halves of both rows of weights: (4, R).
    halves = torch.cat([weights & 0xFFFF, weights >> 16]).to(torch.float64)
    narrow = matrix.element_size() <= 2
    step = max(1, min(MOST_TERMS, MOST_ELEMENTS // max(columns, 1)))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        part, some = matrix[first:last], halves[:, first:last]
        words = [(part, 0)] if narrow else [(part & 0xFFFF, 0), ((part >> 16) & 0xFFFF, 16)]
        for codes, shift in words:
            sums = (some @ codes.to(torch.float64)).to(torch.int64)
            low, high = sums[:2] & MASK, sums[2:] & 0xFFFF
            # The high half of a code times the high half of a word is a multiple of 2**32.
            total += (low << shift) + (high << 16 if not shift else 0)
    return total & MASK


def combine_rows(weights: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return what each row of an integer matrix (R, K) sums to with weights (2, K), int64 words: int64 (2, R)."""
    return combine(weights, matrix.t())
