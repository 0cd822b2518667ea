"""Histograms of a gradient quantizer's codes and of its step sizes, as in the paper's figure; they add up exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqtsim.analysis.result import Histogram
from fqtsim.analysis.tape import host

Counts = NDArray[np.int64]
#: A LUQ code is 0 or a sign and one of 7 powers of two.
_LUQ = 7
#: Steps fall into half octaves: bin k holds 2**(k/2) up to 2**((k+1)/2), for k from -_DEEPEST up to _DEEPEST - 1.
_DEEPEST = 300


def code_counts(tensor: Any, logarithmic: bool) -> Counts:
    """Return how often each code occurs: 0..2**bits - 1 of the unsigned port; LUQ's by sign and power, -7..7."""
    codes = host(tensor.codes).astype(np.int64).reshape(-1)
    if logarithmic:
        powers = np.where(codes == 0, 0, np.frexp(np.abs(codes).astype(np.float64))[1])
        return np.bincount((np.sign(codes) * powers + _LUQ).astype(np.int64), minlength=2 * _LUQ + 1)
    lowest = -(1 << (tensor.bits - 1)) if tensor.format.signed else 0
    return np.bincount(codes - lowest, minlength=1 << tensor.bits)


def step_counts(steps: NDArray[np.float64], elements: int) -> Counts:
    """Return how many of the elements have a step in each half octave; each step has equally many."""
    octaves = np.floor(2 * np.log2(steps)).astype(np.int64)
    places = np.clip(octaves + _DEEPEST, 0, 2 * _DEEPEST - 1)
    return np.bincount(places, minlength=2 * _DEEPEST) * (elements // len(steps))


def code_histogram(layer: str, port: str, counts: Counts, logarithmic: bool) -> Histogram:
    """Return the histogram of counts that `code_counts` made."""
    first = -_LUQ if logarithmic else 0
    edges = tuple(first + i - 0.5 for i in range(len(counts) + 1))
    return Histogram(layer, port, "codes", edges, tuple(int(count) for count in counts))


def step_histogram(layer: str, port: str, counts: Counts) -> Histogram:
    """Return the histogram of counts that `step_counts` made, from its first to its last bin with a count."""
    used = np.flatnonzero(counts)
    first, last = int(used[0]), int(used[-1]) + 1
    edges = tuple(float(2.0 ** ((k - _DEEPEST) / 2)) for k in range(first, last + 1))
    return Histogram(layer, port, "steps", edges, tuple(int(count) for count in counts[first:last]))
