"""Laws of quantization noise, as formulas: what a gradient quantizer must do, for a measurement to be held against.

The paper is Chen et al., "A Statistical Framework for Low-bitwidth Training of Deep Neural Networks" (NeurIPS 2020).
Derivations, and the laws of zero-aligned grids, which are this project's own: docs/framework.md. The variance of a
tensor is the sum of the variances of its elements, in the square of the tensor's unit.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fqtsim.analysis.bounds import mixing_weights, octave_widths, variance_bound
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.kernels.luq import top_code
from fqtsim.quantizers import QTensor, Quantizer, quantizer
from fqtsim.quantizers.logarithmic import LogarithmicQuantizer
from fqtsim.words import Rounding

Float64 = NDArray[np.float64]
#: Distribution of the values of a row about zero.
Shape = Literal["gaussian", "laplace"]


def bins(bits: int) -> int:
    """Return B = 2**bits - 1, the steps from the first code to the last."""
    return int(2**bits - 1)


def per_bit_ratio(bits: int, fewer: int) -> float:
    """Return (B / B')**2, what `fewer` bits instead of `bits` multiply the variance of a plain quantizer by.

    4.03, 4.06, 4.13, 4.27 for one bit less than 8, 7, 6, 5. Source: the paper's bounds, all in 1 / B**2.
    """
    return (bins(bits) / bins(fewer)) ** 2


# --- One rounding (S5.6), in units of a step ---------------------------------------------------------------------


def up_probability(quotients: Any, random_bits: int) -> Float64:
    """Return how often S5.6 rounds a quotient up: p = floor(f * 2**n) / 2**n, f its fraction, n the random bits.

    Of the 2**n equally likely integers r exactly floor(f * 2**n) carry floor(y * 2**n) + 2**n - 1 - r past the next
    multiple of 2**n.
    """
    y = np.asarray(quotients, np.float64)
    scaled = np.floor(y * 2.0**random_bits)  # exact for float32 quotients: a shift of the exponent
    return np.asarray(scaled * 2.0**-random_bits - np.floor(y), np.float64)


def rounding_bias(quotients: Any, random_bits: int) -> Float64:
    """Return the mean of the rounded quotient less the quotient, p - f: in -2**-n .. 0."""
    y = np.asarray(quotients, np.float64)
    return np.asarray(up_probability(y, random_bits) - (y - np.floor(y)), np.float64)


def rounding_variance(quotients: Any, random_bits: int) -> Float64:
    """Return the variance of the rounded quotient, p (1 - p), at most 1/4."""
    p = up_probability(quotients, random_bits)
    return np.asarray(p * (1.0 - p), np.float64)


def expected_bias(random_bits: int) -> float:
    """Return -2**-(n + 1), the mean of rounding_bias.

    It holds where fractions are spread evenly, and for every distribution that is symmetric about a grid point and
    has no mass on multiples of 2**-n: frac(z) + frac(-z) = 1.
    """
    return -(2.0 ** -(random_bits + 1))


def expected_variance(random_bits: int) -> float:
    """Return (1 - 4**-n) / 6, the mean of rounding_variance where fractions are spread evenly.

    The mean of k (m - k) / m**2 over k = 0..m-1 is (1 - m**-2) / 6. It is 2/3 of the bound 1/4.
    """
    return (1.0 - 4.0**-random_bits) / 6.0


def bias_to_noise(random_bits: int, terms: int) -> float:
    """Return the most that expected_bias does to a sum of `terms` products, by the standard deviation of that sum.

    2**-(n+1) * sqrt(6 K / (1 - 4**-n)): the bias of sum e_k w_k is -2**-(n+1) sum w_k steps, its variance
    (1 - 4**-n) / 6 * sum w_k**2, and |sum w_k| <= sqrt(K sum w_k**2), with equality for equal w_k.
    """
    return math.sqrt(terms / expected_variance(random_bits)) * -expected_bias(random_bits)


# --- One tensor --------------------------------------------------------------------------------------------------


def exact_variance(q: Quantizer, x: Any) -> float:
    """Return the variance of q's dequantized x over the random bits, exactly up to float64; 0 where nothing is random.

    The sum of p (1 - p) step**2 over the elements, those of mixed rows weighted by bounds.mixing_weights. Elements
    that a clipped range clamps do not vary. x: a float32 numpy array of rank 1 or more.
    """
    tensor = q.quantize(x)
    if q.rounding is not Rounding.STOCHASTIC:
        return 0.0
    steps = _column(tensor.step)
    held = _clamped(q, tensor, _quotients(tensor, x))
    width = _widths(q, held)
    variance = rounding_variance(np.abs(held) / width if _is_log(q) else held, q.random_bits)
    return float(np.sum(mixing_weights(tensor) * (variance * (width * steps) ** 2).sum(axis=1)))


def exact_bias(q: Quantizer, x: Any) -> Float64:
    """Return the mean over the random bits of q's dequantized x less x, in the shape of x. Limits as exact_variance.

    For a rounding that draws nothing it is the error itself.
    """
    tensor = q.quantize(x)
    if q.rounding is not Rounding.STOCHASTIC:
        return np.asarray(np.asarray(tensor.dequantize(), np.float64) - x, np.float64)
    y = _quotients(tensor, x)
    held = _clamped(q, tensor, y)
    width = _widths(q, held)
    if _is_log(q):  # magnitudes are rounded
        rounding = np.sign(held) * width * rounding_bias(np.abs(held) / width, q.random_bits)
    else:
        rounding = rounding_bias(held, q.random_bits)
    bias = (rounding + (held - y)) * _column(tensor.step)
    return np.asarray(_inverse(tensor) @ bias, np.float64).reshape(np.shape(x))


def _is_log(q: Quantizer) -> bool:
    return isinstance(q, LogarithmicQuantizer)


def _widths(q: Quantizer, held: Float64) -> Float64:
    """Return the distance of the codes beside each quotient, in steps: 1, or that of its octave (Q9)."""
    if not _is_log(q):
        return np.ones_like(held)
    return octave_widths(held)


def _inverse(tensor: QTensor) -> Float64:
    """Return T**-1 as a matrix, (rows, rows); the identity where rows are not mixed."""
    identity = np.eye(np.size(tensor.step), dtype=np.float32)
    return np.asarray(tensor.unmix(identity) if tensor.groups else identity, np.float64)


def _column(values: Any) -> Float64:
    return np.asarray(values, np.float64).reshape(-1, 1)


def _quotients(tensor: QTensor, x: Any) -> Float64:
    """Return the quotients that were rounded (docs/quantizers.md, Q5.1), (rows, D), as the kernel computes them."""
    rows = np.ascontiguousarray(x).reshape(np.size(tensor.step), -1)
    mixing = tensor._mixing
    if mixing is not None:
        rows = mixing.apply(rows, DEFAULT_PRIMITIVES)  # type: ignore[attr-defined]
    steps = np.asarray(tensor.step, np.float32).reshape(-1, 1)
    if tensor.offset is None:
        return np.asarray(rows / steps, np.float64)
    exact = (rows.astype(np.float64) - _column(tensor.offset)) / steps.astype(np.float64)
    return exact.astype(np.float32).astype(np.float64)


def _clamped(q: Quantizer, tensor: QTensor, y: Float64) -> Float64:
    """Return the quotients, those beyond the first or last code brought to it."""
    if _is_log(q):
        top = top_code(q.bits)
        return np.asarray(np.clip(y, -top, top), np.float64)
    half = 2 ** (q.bits - 1)
    first = -half + (q.zero == "symmetric") if q.format.signed else 0
    last = half - 1 if q.format.signed else bins(q.bits)
    zero_point = _column(tensor.zero_point)
    return np.asarray(np.clip(y, first - zero_point, last - zero_point), np.float64)


# --- Bounds ------------------------------------------------------------------------------------------------------


def ptq_bound(x: Any, bits: int) -> float:
    """Return N D R(x)**2 / (4 B**2), R = max - min of the tensor. Source: the paper, its per-tensor quantizer."""
    values = np.asarray(x, np.float64)
    return float(np.ptp(values) ** 2 * values.size / (4 * bins(bits) ** 2))


def psq_bound(x: Any, bits: int) -> float:
    """Return D / (4 B**2) * sum of R(row)**2, rows being indices of dimension 0. Source: the paper, per-sample."""
    rows = np.asarray(x, np.float64).reshape(len(x), -1)
    return float(np.sum(np.ptp(rows, axis=1) ** 2) * rows.shape[1] / (4 * bins(bits) ** 2))


def bhq_bound(x: Any, bits: int) -> float:
    """Return the bound of the plain block Householder quantizer on x, with this project's groups and scales.

    Sum over mixed rows of (1 / (n s1**2) + (1 - 1/n) / s2**2) D R(mixed row)**2 / (4 B**2). Source: the paper's
    Var <= D / (4 B**2) |T**-1|^2, taken row by row because each mixed row has a range of its own.
    """
    return variance_bound(quantizer("bhq", bits, Rounding.TIES_TO_EVEN, zero="float_offset").quantize(x))


def bhq_group_estimate(leader: float, follower: float, rows: int, columns: int, bits: int) -> float:
    """Return D / (4 B**2) * (l1**(2/3) n**(-1/3) + l2**(2/3) n**(1/3))**3, near the bound of one group of n rows.

    l1 and l2 are the ranges of the large row and of the largest other. It is the least over s1 and s2 of
    (1/s1**2 + n/s2**2) (s1 l1 / sqrt(n) + s2 l2)**2, by Hoelder's inequality; about l1**2 D / (4 B**2 n) for small l2.
    Source: the paper's form, its exponents derived anew.
    """
    size = leader ** (2 / 3) * rows ** (-1 / 3) + follower ** (2 / 3) * rows ** (1 / 3)
    return float(size**3 * columns / (4 * bins(bits) ** 2))


def dominant_row_ratios(rows: int, zero: str) -> tuple[float, float]:
    """Return (PTQ / PSQ, PSQ / BHQ) of the variances where one row outweighs the others of N without limit.

    Plain: (N, N), the paper's O(N), O(1), O(1/N). Zero-aligned: (1, N), since the other rows then sit on a grid point
    of PTQ and hardly vary (near_zero).
    """
    return (float(rows) if zero == "float_offset" else 1.0, float(rows))


# --- Zero-aligned grids ------------------------------------------------------------------------------------------


def widening(minimum: Any, maximum: Any, bits: int) -> Float64:
    """Return (B * step / R)**2 of `aligned` grids: what alignment multiplies the squared step of a plain grid by.

    With t = -min B / R and its fraction f, the smaller of (t / (t - f))**2 and ((B - t) / (B - t - 1 + f))**2; more
    for a row that does not straddle zero. 1 where the range is 0. Source: docs/quantizers.md, Q2, before the step is
    rounded up.
    """
    low, high = np.maximum(-np.asarray(minimum, np.float64), 0.0), np.maximum(np.asarray(maximum, np.float64), 0.0)
    plain = np.asarray(maximum, np.float64) - np.asarray(minimum, np.float64)
    top = bins(bits)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = low * top / (low + high)
        steps = [np.maximum(_span(low, z), _span(high, top - z)) for z in (np.floor(t), np.ceil(t))]
        wide = np.square(np.minimum(*steps) * top / plain)
    return np.asarray(np.where(plain > 0, wide, 1.0), np.float64)


def _span(reach: Float64, codes: Float64) -> Float64:
    """Return the step that spans `reach` in so many codes; 0 for an empty side, infinity without codes."""
    return np.where(reach > 0, reach / codes, 0.0)


def expected_widening(bits: int) -> float:
    """Return 1 + 1/(B-1) + 1/(3 (B-1)**2), the mean of `widening`, whatever the asymmetry of the row.

    It is the mean over -min B / R in any one cell k..k+1, the same for every k = 0..B-1: docs/framework.md.
    """
    others = bins(bits) - 1
    return 1.0 + 1.0 / others + 1.0 / (3.0 * others**2)


def authors_widening(bits: int) -> float:
    """Return the mean squared widening of the authors' alignment, over asymmetries that escape its NaN hole.

    Their zero code is floor(t) alone: 1 + 1/k + 1/(3 k**2) in the cell k..k+1, averaged over k = 1..B-1. The cell
    k = 0 is the hole, 1/B of all asymmetries. Source: quantizers/authors_ptq.py.
    """
    k = np.arange(1, bins(bits), dtype=np.float64)
    return float(np.mean(1.0 + 1.0 / k + 1.0 / (3.0 * k**2)))


def aligned_per_bit_ratio(bits: int, fewer: int) -> float:
    """Return per_bit_ratio times the ratio of the widenings: 4.43 from 5 to 4 bits, where near_zero is 1 for both."""
    return per_bit_ratio(bits, fewer) * expected_widening(fewer) / expected_widening(bits)


def near_zero(quotients: Any) -> float:
    """Return 6 * mean of f (1 - f), f the fractions: variance relative to that of evenly spread fractions.

    Values next to a grid point hardly vary: |y| (1 - |y|) for |y| < 1, so the mean tends to 6 E|y|. Source: the
    Fourier series f (1 - f) = 1/6 - sum over k >= 1 of cos(2 pi k y) / (pi k)**2, whose cosines average out for values
    that spread over several steps.
    """
    y = np.asarray(quotients, np.float64)
    f = y - np.floor(y)
    return float(6.0 * np.mean(f * (1.0 - f)))


def near_zero_gaussian(deviation: Any) -> Float64:
    """Return near_zero of Gaussian values about zero, `deviation` = sigma / step: 6 sqrt(2/pi) sigma / step if small.

    1 - 6/pi**2 * sum of exp(-2 (pi k deviation)**2) / k**2, the series of near_zero averaged.
    """
    u = np.atleast_1d(np.asarray(deviation, np.float64))
    terms = 64
    k = np.arange(1, terms + 1, dtype=np.float64)
    series = np.sum(np.exp(-2.0 * np.square(np.pi * u[:, None] * k)) / k**2, axis=1)
    # The series is slow where u is small; but there no value reaches the next grid point, 10 sigma away at u = 0.1.
    small = 6.0 * (u * math.sqrt(2.0 / math.pi) - u**2)
    return np.asarray(np.where(u < 0.1, small, 1.0 - 6.0 / np.pi**2 * series), np.float64).reshape(np.shape(deviation))


def near_zero_laplace(scale: Any) -> Float64:
    """Return near_zero of Laplace values about zero, u = (mean of |x|) / step: 6 u coth(1 / (2 u)) - 12 u**2.

    The series of near_zero with the characteristic function 1 / (1 + (2 pi k u)**2), summed in closed form. A heavier
    tail than Gaussian: for small u both tend to 6 E|x| / step.
    """
    u = np.asarray(scale, np.float64)
    with np.errstate(divide="ignore", over="ignore"):
        closed = 6.0 * u / np.tanh(1.0 / (2.0 * u)) - 12.0 * u**2
    # Beyond u = 100 the two terms cancel; the next ones of the series are 1 - 1 / (60 u**2).
    return np.asarray(np.where(u > 100.0, 1.0 - 1.0 / (60.0 * np.maximum(u, 1.0) ** 2), closed), np.float64)


def aligned_variance(
    minimum: Any, maximum: Any, scales: Any, columns: int, bits: int, shape: Shape = "gaussian"
) -> float:
    """Return the variance of a zero-aligned quantizer from ranges and row scales alone: the law of docs/framework.md.

    Sum over rows of D / 6 * step**2 * near_zero(scale / step), step**2 = widening * (R / B)**2. minimum and maximum: of
    each grid, (N,) for psq, one number for ptq; scales (N,): each row's sigma, or mean of |x| for `laplace`. At least 8
    random bits.
    """
    low, high = np.atleast_1d(np.asarray(minimum, np.float64)), np.atleast_1d(np.asarray(maximum, np.float64))
    squared = widening(low, high, bits) * np.square((high - low) / bins(bits))
    factor = {"gaussian": near_zero_gaussian, "laplace": near_zero_laplace}[shape]
    mass = factor(np.asarray(scales, np.float64) / np.sqrt(squared))
    return float(np.sum(columns / 6.0 * squared * mass))
