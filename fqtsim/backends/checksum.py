"""Sums of a GEMM's codes with random words, modulo 2**32: what Freivalds' check knows of a result.

A checksum travels with a GEMM to whoever has its codes at hand: a kernel that scales them at once sums them as it goes,
and elsewhere they are summed when they are there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from fqtsim.kernels import freivalds


@dataclass(frozen=True)
class RowWords:
    """Two random words for each row of a GEMM: row i * S + j has outer[r, i] * inner[r, j].

    So the sums of a convolution's operand over samples come first, and no patch is met more than once. With odd words
    (r = 0) one wrong output of a column is always seen: an odd factor keeps what is not 0 modulo 2**bits from being 0.
    With uniform words (r = 1) any wrong column is seen with a probability of 1/4 or more: of its errors E (R, S), not
    all 0, E inner is 0 with 1/2 at most, and if not, outer E inner is with 1/2 at most.
    """

    #: uint32 (2, R) and (2, S), on a device int32: samples and positions, or taps and channels.
    outer: Any
    inner: Any

    @cached_property
    def flat(self) -> Any:
        """uint32 (2, R * S), on a device int32."""
        return (self.outer[:, :, None] * self.inner[:, None, :]).reshape(2, -1)


@dataclass
class Checksum:
    """What the codes of a GEMM, or those of each group, sum to."""

    words: RowWords
    #: uint32 (2, N) of each group, in order; on a device int32 tensors.
    sums: list[Any] = field(default_factory=list)

    def add(self, codes: Any) -> None:
        """Sum the codes (M, N) of the next group."""
        if isinstance(codes, np.ndarray):
            self.sums.append(freivalds.combine(self.words.flat, codes))
            return
        from fqtsim.kernels.gpu.freivalds import combine

        self.sums.append(combine(self.words.flat, codes))

    def difference(self, expected: Any) -> Any:
        """Return the sums of all groups less what is expected, (2, G * N), as those are."""
        if isinstance(expected, np.ndarray):
            return np.concatenate(self.sums, axis=1) - expected
        from fqtsim.kernels.gpu.freivalds import beside

        return beside(self.sums) - expected


def row_words(words: Any, outer: int, inner: int) -> RowWords:
    """Return row words made of words (2 * (outer + inner),), of which the first row becomes odd throughout, in place.

    words: uint32 of NumPy, or an int32 tensor.
    """
    parts = words[: 2 * outer].reshape(2, outer), words[2 * outer :].reshape(2, inner)
    for part in parts:
        part[0] |= 1
    return RowWords(*parts)
