"""What an analysis found, as plain data: written to JSON, read by the table and the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

#: What a row of bias is due to, each measured on its own; `all` is the first two together (fqtsim.analysis.batch).
Source = Literal["gradient quantization", "backward hardware", "forward hardware", "all"]
#: `negligible`: the interval lies within the margin; `biased`: beyond it; else `undecided`.
Verdict = Literal["negligible", "biased", "undecided"]


@dataclass(frozen=True)
class Bias:
    """Squared norm of the mean error of one gradient, averaged over batches.

    `gemm` is wgrad for the gradient of the layer's weight, dgrad for that of its input.
    """

    source: Source
    layer: str
    gemm: str
    #: U-statistic over pairs of repeats; may be negative by chance. Units: gradient squared.
    squared: float
    #: Family-wise interval of `squared` by the jackknife; equal to it where nothing is random.
    low: float
    high: float
    #: Squared norm of the reference gradient, averaged over batches.
    reference: float
    #: Variance over repeats, summed over elements, averaged over batches.
    variance: float
    verdict: Verdict


@dataclass(frozen=True)
class Variance:
    """Where the randomness of one weight's gradient comes from, summed over elements."""

    layer: str
    #: Over the random bits, at a fixed batch, backward hardware without limits; mean over batches, 95 % interval.
    quantization: float
    low: float
    high: float
    #: Over batches, without gradient quantization.
    minibatch: float


@dataclass(frozen=True)
class Contribution:
    """Variance that one layer's gradient quantizers add to the weight gradient of a layer below (Theorem 2)."""

    quantizer: str
    port: str
    layer: str
    #: A difference of two measured variances: may be negative.
    variance: float
    low: float
    high: float


@dataclass(frozen=True)
class Bound:
    """Variance of one gradient quantizer on the output gradient it met, beside its bound."""

    layer: str
    port: str
    measured: float
    bound: float


@dataclass(frozen=True)
class Histogram:
    """Counts of a layer's codes, or of the step sizes of its rows weighted by elements."""

    layer: str
    port: str
    kind: Literal["codes", "steps"]
    #: One more than counts.
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class CurvePoint:
    """Quantization variance of one gradient quantizer at one width, summed over the weights."""

    quantizer: str
    zero: str
    bits: int
    variance: float
    low: float
    high: float
    #: Why there is no figure, for example the NaN hole of the authors' PTQ; the numbers are then 0.
    stopped: str = ""


@dataclass(frozen=True)
class Analysis:
    """Everything that `fqtsim analyze` found at one checkpoint."""

    #: model, data, recipe, hardware, seed, step, batch, batches, repeats, margin, confidence, toggle order, digests.
    settings: dict[str, Any]
    biases: tuple[Bias, ...]
    variances: tuple[Variance, ...]
    contributions: tuple[Contribution, ...] = ()
    bounds: tuple[Bound, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    #: Variance against bits; the line of the mini-batch variance is `minibatch`.
    curve: tuple[CurvePoint, ...] = ()
    minibatch: float = 0.0
    #: Rows of `net.report()` for one repeat of every batch.
    events: tuple[dict[str, Any], ...] = field(default=())
