"""Weighted sums of the rows of a matrix of codes, modulo 2**32: what Freivalds' check multiplies with.

Reduction modulo 2**32 is a ring homomorphism, so every sum and product may be reduced where it arises.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.kernels import threads
from fqtsim.kernels.jit import kernel

Words = np.ndarray[Any, np.dtype[np.uint32]]

STRIP = 1 << 11
"""Columns that are summed at a time, so that their sums stay in the first-level cache."""


def combine(weights: Words, matrix: np.ndarray[Any, Any]) -> Words:
    """Return weights (2, R) times an integer matrix (R, C), modulo 2**32: uint32 (2, C)."""
    ranges = threads.parts(matrix.shape[0], matrix.shape[1])

    def part(first: int, last: int) -> Words:
        out = np.zeros((2, matrix.shape[1]), np.uint32)
        _combine(weights, matrix, out, first, last)
        return out

    total, *others = threads.run(part, ranges)
    for other in others:
        total += other
    return total


@kernel
def _combine(weights: Any, matrix: Any, out: Any, first: int, last: int) -> None:
    columns = matrix.shape[1]
    for left in range(0, columns, STRIP):
        right = min(left + STRIP, columns)
        odd, even = out[0, left:right], out[1, left:right]
        row = first
        while row + 4 <= last:
            m0, m1 = matrix[row, left:right], matrix[row + 1, left:right]
            m2, m3 = matrix[row + 2, left:right], matrix[row + 3, left:right]
            u0, u1, u2, u3 = weights[0, row], weights[0, row + 1], weights[0, row + 2], weights[0, row + 3]
            v0, v1, v2, v3 = weights[1, row], weights[1, row + 1], weights[1, row + 2], weights[1, row + 3]
            for i in range(right - left):
                x0, x1, x2, x3 = np.uint32(m0[i]), np.uint32(m1[i]), np.uint32(m2[i]), np.uint32(m3[i])
                odd[i] = np.uint32(odd[i] + u0 * x0 + u1 * x1 + u2 * x2 + u3 * x3)
                even[i] = np.uint32(even[i] + v0 * x0 + v1 * x1 + v2 * x2 + v3 * x3)
            row += 4
        for rest in range(row, last):
            for i in range(left, right):
                x = np.uint32(matrix[rest, i])
                out[0, i] = np.uint32(out[0, i] + weights[0, rest] * x)
                out[1, i] = np.uint32(out[1, i] + weights[1, rest] * x)
