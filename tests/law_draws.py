"""Draws of a quantizer, as it is or with one fault planted, and what they claim: for the tests of its laws.

A law is a function of a Source that returns claims. It must hold for HONEST and break for each of FAULTS: rounding
without randomness, words used again by another draw or by a neighbour, one random bit in the place of two.

A ratio of two variances alone is blind to a fault that multiplies both by the same. Such laws therefore claim what
they rest on as well (`measured`): the variance of sums over neighbours, and the size of the mean error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fqtsim.analysis import laws
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES, Primitives
from fqtsim.kernels.grid import Grid
from fqtsim.kernels.quantize import Draw
from fqtsim.quantizers import Quantizer, quantizer
from fqtsim.words import Rounding

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]
#: Neighbours whose errors are added before their variance is taken; independent errors add their variances.
BLOCK = 4


class Reused(Primitives):
    """Primitives whose rounding is that of S5.6, with random words changed after they were drawn."""

    def __init__(self, change: Callable[[Words], Words]) -> None:
        self.change = change

    def quantize(
        self, x: Float32, grid: Grid, rounding: Rounding, draw: Draw, storage: str
    ) -> tuple[npt.NDArray[np.integer[Any]], int, int]:
        words = self.change(self.random_words(draw.seed, draw.stream, draw.step, x.size)).reshape(x.shape)
        y = x / grid.step[:, None]
        if grid.offset is not None:
            y = ((x.astype(float) - grid.offset[:, None]) / grid.step[:, None].astype(float)).astype(np.float32)
        whole = 2**draw.bits
        scaled = np.floor(y.astype(float) * whole).astype(np.int64)
        q = (scaled + whole - 1 - (words >> np.uint32(32 - draw.bits)).astype(np.int64)) >> draw.bits
        codes = q + grid.zero_point[:, None]
        held = np.clip(codes, grid.low, grid.high)
        return held.astype(storage), int(np.count_nonzero(held != codes)), 0


def share(words: Words) -> Words:
    """Give element 2i + 1 the word of element 2i."""
    return words[np.arange(words.size) // 2 * 2]


def double(words: Words) -> Words:
    """Give the second bit of each word the value of the first."""
    first = words >> np.uint32(31)
    return np.asarray((words & np.uint32(0xBFFFFFFF)) | (first << np.uint32(30)), np.uint32)


@dataclass(frozen=True)
class Source:
    """How the draws of a tensor are made."""

    rounding: Rounding = Rounding.STOCHASTIC
    primitives: Primitives = DEFAULT_PRIMITIVES
    #: Step, which selects the random words, of a draw.
    step: Callable[[int], int] = lambda draw: draw

    def draws(self, q: Quantizer, x: Float32, count: int) -> Float64:
        """Return x dequantized after `count` draws of a stochastic quantizer, (count, N, D)."""
        if self.rounding is not Rounding.STOCHASTIC:
            q = type(q)(**{**vars(q), "rounding": self.rounding, "random_bits": 0})
        made = [q.quantize(x, step=self.step(i), primitives=self.primitives).dequantize() for i in range(count)]
        return np.stack(made).astype(np.float64)


HONEST = Source()
FAULTS = {
    "rounds to nearest": Source(rounding=Rounding.TIES_TO_EVEN),
    "rounds down": Source(rounding=Rounding.TOWARD_NEGATIVE),
    "every draw has the same words": Source(step=lambda draw: 0),
    "two draws have the same words": Source(step=lambda draw: draw // 2),
    "neighbours share a word": Source(primitives=Reused(share)),
    "one bit is used twice in a word": Source(primitives=Reused(double)),
}


class Claim(NamedTuple):
    """What a law says, and what was found."""

    what: str
    found: float
    expected: float
    #: Allowed difference, relative to what is expected unless that is 0.
    within: float

    @property
    def holds(self) -> bool:
        return bool(abs(self.found - self.expected) <= self.within * (abs(self.expected) or 1.0))


Law = Callable[[Source], Sequence[Claim]]


def broken(law: Law, source: Source) -> list[str]:
    """Return the claims of a law that do not hold, as text."""
    return [f"{c.what}: {c.found:.5g}, not {c.expected:.5g}" for c in law(source) if not c.holds]


def stochastic(name: str, bits: int, zero: str, random_bits: int = 24) -> Quantizer:
    """Return a gradient quantizer."""
    return quantizer(name, bits, Rounding.STOCHASTIC, random_bits, zero=zero)


def sums(errors: Float64) -> Float64:
    """Return errors (..., N, D) added over BLOCK neighbours, (..., N * D / BLOCK)."""
    return np.asarray(errors.reshape(*errors.shape[:-2], -1, BLOCK).sum(axis=-1))


def measured(q: Quantizer, x: Float32, source: Source, count: int = 8) -> tuple[float, list[Claim]]:
    """Return the variance of q on x over draws, and what any law rests on: that errors are independent and unbiased.

    The variance is that of sums over neighbours: of independent errors it is the sum of the elements' variances.
    """
    error = sums(source.draws(q, x, count) - x)
    variance = float(error.var(axis=0, ddof=1).sum())
    exact = laws.exact_variance(q, x)
    off = float(np.square(error.mean(axis=0) - sums(laws.exact_bias(q, x))).sum()) * count / exact
    # Four standard deviations of what so many blocks can say, if a few rows carry all of it.
    width = 4 * np.sqrt(2 / (x.shape[-1] / BLOCK))
    return variance, [
        Claim(f"{type(q).__name__} {q.bits} bits: variance by S5.6", variance, exact, width / np.sqrt(count - 1)),
        Claim(f"{type(q).__name__} {q.bits} bits: mean of {count} draws", off, 1.0, width),
    ]


def gaussian(rows: int, columns: int, seed: int = 0) -> Float32:
    """Return standard normal rows."""
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
