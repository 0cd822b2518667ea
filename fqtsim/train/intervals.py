"""How sure an accuracy is: intervals for a share of test images and for the difference of two paired ones."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

#: Two-sided 95 % of the normal distribution.
Z95 = 1.959963984540054


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share of `total`, both ends in 0..1.

    Source: E. B. Wilson, JASA 22 (1927), 209-212.
    """
    share, z2 = right / total, Z95 * Z95
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(ours: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> tuple[float, float]:
    """Return (difference of shares right, half width of its 95 % interval) over the same test images.

    Images that both get right or wrong cancel; half a pseudo-image on each side of the others keeps the width
    above zero (Agresti and Min, Statistics in Medicine 24 (2005), 729-740).
    """
    total = len(ours) + 2
    gained = float(np.sum(ours & ~baseline)) + 0.5
    lost = float(np.sum(~ours & baseline)) + 0.5
    difference = (gained - lost) / total
    variance = (gained + lost - (gained - lost) ** 2 / total) / total**2
    return difference, Z95 * math.sqrt(variance)


def show_share(right: int, total: int) -> str:
    """Return a share in percent with its interval: `94.2 % [91.3, 96.2]`."""
    low, high = wilson(right, total)
    return f"{100 * right / total:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
