"""Squared bias, variance and their intervals from repeated gradients of one batch: streaming, and exact to merge.

With errors e_1..e_R of a batch, S their sum: E[|S|^2 - sum |e|^2] = R (R - 1) |E e|^2, whatever the variance. This
U-statistic over pairs of repeats has no bias of its own, unlike |S / R|^2, which counts variance / R as bias.

Repeats are put into blocks by their number. A block keeps the sum of its errors, the sum of their squared norms and
how many there are; the inner products of the sums of one batch give the statistic without any one block, and so its
delete-one-block jackknife. Batches are strata: they are given, and only the random words vary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqtsim.api.requantize import random_bits
from fqtsim.errors import InputError

Floats = NDArray[np.float64]

#: Key of the hash below: no seed of a training run, which counts from 0, is likely to be this one.
_SKETCH_KEY = (1 << 64) - 1


def u_statistic(total: Any, each: Any, count: Any) -> Any:
    """Return the squared norm of a mean from |sum|^2, the sum of squared norms and the number of vectors, 2 or more."""
    return (total - each) / (count * (count - 1))


def spread(total: Any, each: Any, count: Any) -> Any:
    """Return the unbiased variance, summed over elements, from the same three numbers."""
    return (each - total / count) / (count - 1)


@lru_cache(16)
def _buckets(size: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the place and the sign of every element in a sketch."""
    words = np.asarray(random_bits(_SKETCH_KEY, 0, 0, size, 32)).astype(np.uint64)
    places = ((words * np.uint64(width)) >> np.uint64(32)).astype(np.int64)
    return places, np.where(words & np.uint64(1), np.float32(1), np.float32(-1))


def sketch(values: NDArray[Any], width: int) -> Floats:
    """Return an array as a float64 vector of at most `width` numbers, with its squared norm kept in expectation.

    Up to `width` elements it is the array itself. Beyond, every element is added, with a fixed random sign, to a fixed
    random place: linear, so that sums and differences may be taken before or after, and with a relative standard error
    of its squared norm of at most sqrt(2 / width), however few elements hold most of it, which a choice of some
    elements could not promise. Source: Charikar, Chen, Farach-Colton, "Finding frequent items", ICALP 2002.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.size <= width:
        return flat.astype(np.float64)
    places, signs = _buckets(flat.size, width)
    return np.bincount(places, flat * signs, width).astype(np.float64)


@dataclass(frozen=True)
class Products:
    """All that the statistics of one batch need, for each of P vectors over B blocks of repeats."""

    #: (P, B, B): inner products of the blocks' sums.
    gram: Floats
    #: (P, B): sums of the squared norms.
    squares: Floats
    #: (B,): repeats in each block.
    counts: NDArray[np.int64]

    def bias(self) -> Estimates:
        """Return the squared norm of the mean of each vector."""
        return self._estimates(u_statistic)

    def squared_means(self) -> Floats:
        """Return |sum / R|^2 of each vector, (P,): the squared norm of its mean with the part that variance adds."""
        found: Floats = self.gram.sum((1, 2)) / self.counts.sum() ** 2
        return found

    def degenerate_variances(self) -> Floats:
        """Return the variance that `bias` has where the true bias is 0, 2 tr(C^2) / (R (R - 1)), (P,).

        C is the covariance of one repeat; tr(C^2) is estimated without bias, for normal vectors, from the blocks' sums
        around their mean. Source: Bai and Saranadasa, Statistica Sinica 6 (1996), 311-329.
        """
        repeats, blocks = self.counts.sum(), len(self.counts)
        root = np.sqrt(self.counts.astype(np.float64))
        centre = np.eye(blocks) - np.outer(root, root) / repeats
        around = np.einsum("ab,pbc,cd->pad", centre, self.gram / np.outer(root, root), centre)
        m = blocks - 1
        if m < 2:
            raise InputError(f"blocks of repeats = {blocks}: must be at least 3; ask for more repeats")
        trace, squares = np.einsum("paa->p", around) / m, np.einsum("pab,pab->p", around, around) / m**2
        found = m * m / ((m - 1) * (m + 2)) * (squares - trace**2 / m)
        variance: Floats = 2 * np.maximum(found, 0) / (repeats * (repeats - 1))
        return variance

    def variance(self) -> Estimates:
        """Return the variance of each vector, summed over its elements."""
        return self._estimates(spread)

    def _estimates(self, statistic: Callable[[Any, Any, Any], Any]) -> Estimates:
        total, each, count = self.gram.sum((1, 2)), self.squares.sum(1), self.counts.sum()
        rows = self.gram.sum(2)
        without = total[:, None] - 2 * rows + np.diagonal(self.gram, axis1=1, axis2=2)
        left = each[:, None] - self.squares, count - self.counts
        return Estimates(statistic(total, each, count), statistic(without, *left))


@dataclass(frozen=True)
class Estimates:
    """A statistic of P vectors in one batch, and the same without each of the B blocks."""

    #: (P,)
    value: Floats
    #: (P, B)
    deleted: Floats

    def minus(self, other: Estimates) -> Estimates:
        """Return the difference of two statistics over the same blocks, paired block by block."""
        return Estimates(self.value - other.value, self.deleted - other.deleted)


@dataclass
class Moments:
    """Running sums of the error vectors of one batch, block by block; P vectors lie one after the other."""

    #: Elements of each vector.
    sizes: tuple[int, ...]
    #: Repeats in a block.
    block: int
    #: Block number -> sum of its vectors (elements,), sums of their squared norms (P,), repeats.
    blocks: dict[int, tuple[Floats, Floats, int]] = field(default_factory=dict)

    def add(self, repeat: int, vectors: Sequence[Floats]) -> None:
        """Add the error vectors of one repeat."""
        found = np.concatenate(vectors) if vectors else np.zeros(0)
        squares = np.array([np.einsum("i,i->", vector, vector) for vector in vectors])
        number = repeat // self.block
        old = self.blocks.get(number)
        if old is None:
            self.blocks[number] = found, squares, 1
        else:
            np.add(old[0], found, out=old[0])
            self.blocks[number] = old[0], old[1] + squares, old[2] + 1

    def merge(self, other: Moments) -> Moments:
        """Return both together, bit for bit what one pass over all gives. Raises InputError for a shared block."""
        if (self.sizes, self.block) != (other.sizes, other.block):
            raise InputError("analyses of other layers or of blocks of another length: cannot be merged")
        shared = sorted(self.blocks.keys() & other.blocks.keys())
        if shared:
            first = shared[0] * self.block
            raise InputError(
                f"repeat = {first}: in both analyses; merge analyses of different repeats, or of different batches"
            )
        return Moments(self.sizes, self.block, {**self.blocks, **other.blocks})

    def products(self) -> Products:
        """Return the inner products, in the order of the blocks' numbers."""
        parts = [self.blocks[number] for number in sorted(self.blocks)]
        ends = np.cumsum(self.sizes)
        gram = np.empty((len(self.sizes), len(parts), len(parts)))
        for place, (end, size) in enumerate(zip(ends, self.sizes, strict=True)):
            cut = np.stack([sums[end - size : end] for sums, _, _ in parts])
            # einsum, not BLAS: a threaded product would not give the same bits everywhere.
            gram[place] = np.einsum("ik,jk->ij", cut, cut)
        return Products(
            gram, np.stack([squares for _, squares, _ in parts], 1), np.array([count for *_, count in parts])
        )


@dataclass(frozen=True)
class Interval:
    """An estimate and its two-sided interval."""

    value: float
    low: float
    high: float


def combine(batches: Sequence[Estimates], tail: float) -> list[Interval]:
    """Return, for each vector, the mean over batches and an interval that misses with probability `tail` in all.

    Delete-one-block jackknife within each batch, the batches being strata:
    Var = sum over batches of (B - 1) / B * sum over blocks of (deleted - their mean)^2, over (number of batches)^2.
    Student's t with the degrees of freedom of Welch and Satterthwaite. The expectation of a jackknife variance is never
    too small (Efron and Stein, Annals of Statistics 9 (1981), 586-596).
    """
    value = np.mean([one.value for one in batches], axis=0)
    variances, freedoms = _jackknife(batches)
    halves = [_t(tail, df) * math.sqrt(v) for v, df in zip(variances, freedoms, strict=True)]
    return [Interval(float(v), float(v - half), float(v + half)) for v, half in zip(value, halves, strict=True)]


def bias_intervals(batches: Sequence[Products], tail: float) -> list[Interval]:
    """Return, for each vector, the squared bias, mean over batches, and an interval that misses with chance `tail`.

    The lower end U - t sqrt(jackknife) is that of `combine`. Where the true bias is 0 the statistic is degenerate and
    the jackknife variance about twice the true one: too low an end, which is safe. The upper end cannot come from the
    jackknife: where chance made U small, the jackknife is small as well. It is the largest b^2 at which U is no
    surprise, with the variance that U has there: high = U + t sqrt(V(high)),
    V(b^2) = 2 tr(C^2) / (R (R - 1)) + (jackknife / |mean error|^2) b^2, as the second term grows like b' C b.
    """
    value = np.mean([one.bias().value for one in batches], axis=0)
    jackknife, freedoms = _jackknife([one.bias() for one in batches])
    floor = np.sum([one.degenerate_variances() for one in batches], axis=0) / len(batches) ** 2
    means = np.mean([one.squared_means() for one in batches], axis=0)
    found = []
    for u, v, df, least, mean in zip(value, jackknife, freedoms, floor, means, strict=True):
        t = _t(tail, df)
        slope = t * t * v / mean if mean > 0 else 0.0
        high = u + slope / 2 + math.sqrt(max(slope * u + slope**2 / 4 + t * t * least, 0.0))
        found.append(Interval(float(u), float(u - t * math.sqrt(v)), float(max(u, high))))
    return found


def _t(tail: float, freedom: float) -> float:
    return student_t(tail, freedom) if freedom > 0 else 0.0


def _jackknife(batches: Sequence[Estimates]) -> tuple[list[float], list[float]]:
    """Return the variance of the mean over batches and its degrees of freedom, 0 where nothing varies."""
    parts, own = [], []
    for one in batches:
        blocks = one.deleted.shape[1]
        if blocks < 2:
            raise InputError(f"blocks of repeats = {blocks}: the jackknife needs at least 2; ask for more repeats")
        around = one.deleted - one.deleted.mean(1, keepdims=True)
        parts.append((blocks - 1) / blocks * np.sum(around**2, axis=1))
        own.append(blocks - 1)
    variances, freedoms = [], []
    for shares in zip(*parts, strict=True):
        total = float(sum(shares))
        weights = [float(share) / total if total > 0 else 0.0 for share in shares]
        variances.append(total / len(batches) ** 2)
        freedoms.append(1 / sum(w * w / df for w, df in zip(weights, own, strict=True)) if total > 0 else 0.0)
    return variances, freedoms


@lru_cache(4096)
def student_t(tail: float, freedom: float) -> float:
    """Return t with P(|T| > t) = tail for Student's t of `freedom` degrees, which need be no integer."""
    if not 0 < tail < 1 or freedom <= 0:
        raise InputError(f"tail = {tail}, degrees of freedom = {freedom}: must be in 0..1 and above 0")
    low, high = 0.0, 1.0
    while _outside(high, freedom) > tail:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _outside(middle, freedom) > tail else (low, middle)
    return high


def _outside(t: float, freedom: float) -> float:
    """Return P(|T| > t), the incomplete beta function I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + t^2)."""
    x, a, b = freedom / (freedom + t * t), freedom / 2, 0.5
    if x >= 1:
        return 1.0
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return math.exp(front) * _fraction(x, a, b) / a
    return 1 - math.exp(front) * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    value = d
    for m in range(1, 400):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
