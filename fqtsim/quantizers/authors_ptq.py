"""The authors' own gradient PTQ, for comparison: fake quantization, with its NaN hole.

Source: cjf00000/StatQuant 8cde082, `ScalarPreconditioner` and `UniformQuantize`. Zero maps to the integer code
floor(-min * scale). Where that is 0, because the negative side is shorter than one code, the next line divides 0 by 0
or a number by 0, and the whole tensor becomes NaN. `zero = "aligned"` skips that candidate instead (S5.7).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.quantizers.arrays import checked_float32, from_library

_MARGIN = np.float32(1e-8)


def authors_ptq(x: Any, bits: int, noise: Any = None) -> Any:
    """Return the float32 values that the authors' code makes of a tensor, numpy or torch; all NaN in its hole.

    noise, in x's shape, is uniform in -0.5..0.5 for stochastic rounding; without it rounding is to nearest even.
    Raises InputError for another type than float32.
    """
    array, restore = from_library(x)
    bins = np.float32(2**bits - 1)
    with np.errstate(all="ignore"):
        low = np.minimum(checked_float32(array).min() - _MARGIN, np.float32(0))
        high = np.maximum(array.max() + _MARGIN, np.float32(0))
        zero_code = np.floor(-low * (bins / (high - low)))
        high = (zero_code - bins) * low / zero_code
        scale = bins / (high - low)
        y = (array - low) * scale
        if noise is not None:
            y = y + checked_float32(from_library(noise)[0])
        codes = np.rint(np.clip(y, np.float32(0), bins))
        return restore(np.asarray(codes / scale + low, dtype=np.float32))
