"""exp, log, inverse cube root and cos of float32 arrays (S5.4). The twin of ref/elementary.py.

Each line below is one float64 operation per element, done by one NumPy call: nothing can be fused or reordered, so
the sequence is the same on every machine. The last step rounds once to float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

# ln 2 and pi/2 in parts short enough that a small integer times any but the last is exact (fdlibm's constants).
LOG2_E = float.fromhex("0x1.71547652b82fep+0")
LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
HALF_PI_1 = float.fromhex("0x1.921fb544p+0")
HALF_PI_2 = float.fromhex("0x1.0b4611a6p-34")
HALF_PI_3 = float.fromhex("0x1.3198a2e037073p-69")
COS_LIMIT = 2.0**20

# Taylor coefficients, each the float64 nearest to the fraction, highest power first.
_EXP = tuple(1.0 / f for f in (39916800, 3628800, 362880, 40320, 5040, 720, 120, 24, 6, 2, 1, 1))
_LOG = tuple(1.0 / odd for odd in (19, 17, 15, 13, 11, 9, 7, 5, 3))
_COS = tuple(
    1.0 / f for f in (20922789888000, -87178291200, 479001600, -3628800, 40320, -720, 24, -2, 1)
)  # powers 16, 14, ..., 0 of r, that is 8..0 of r * r
_SIN = tuple(1.0 / f for f in (355687428096000, -1307674368000, 6227020800, -39916800, 362880, -5040, 120, -6))
_ROOT_HALF_BITS = 0x3FE6A09E667F3BCD
_RCBRT_SEED = 0x553EF0FF289DD796  # Moroz et al. 2021, "Fast calculation of cube and inverse cube roots"
_THIRD = 1.0 / 3.0
_BLOCK = 1 << 14


def _horner(coefficients: tuple[float, ...], r: Any) -> Any:
    p = np.full_like(r, coefficients[0])
    for coefficient in coefficients[1:]:
        p = p * r
        p = p + coefficient
    return p


def _exp(x: Any) -> Any:
    n = np.rint(x * LOG2_E)
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    return _horner(_EXP, r) * ((n.astype(np.int64) + 1023) << 52).view(np.float64)


def _log(x: Any) -> Any:
    bits = x.view(np.int64)
    exponent = (bits - _ROOT_HALF_BITS) >> 52
    f = (bits - (exponent << 52)).view(np.float64) - 1.0  # mantissa in [sqrt 1/2, sqrt 2)
    s = f / (f + 2.0)
    z = s * s
    twice = s + s
    n = exponent.astype(np.float64)
    return n * LN2_HIGH + (twice + (twice * (z * _horner(_LOG, z)) + n * LN2_LOW))


def _rcbrt(x: Any) -> Any:
    y = (_RCBRT_SEED - x.view(np.int64) // 3).view(np.float64)
    for _ in range(4):
        d = 1.0 - ((x * y) * y) * y
        y = y + (y * d) * _THIRD
    return y


def _cos(x: Any) -> Any:
    n = np.rint(x * TWO_OVER_PI)
    r = ((x - n * HALF_PI_1) - n * HALF_PI_2) - n * HALF_PI_3
    z = r * r
    sine = r + (r * z) * _horner(_SIN, z)
    quadrant = n.astype(np.int64) & 3
    value = np.where(quadrant & 1, sine, _horner(_COS, z))
    return np.where((quadrant == 1) | (quadrant == 2), -value, value)


def _apply(function: Callable[[Any], Any], x: Float32, inside: Any, outside: Any) -> Float32:
    """Return float32(function(x)) where `inside` holds and `outside` elsewhere, in blocks that fit a cache."""
    out = np.empty(x.size, np.float32)
    flat, good = x.reshape(-1), inside.reshape(-1)
    with np.errstate(over="ignore"):
        for i in range(0, x.size, _BLOCK):
            block = np.where(good[i : i + _BLOCK], flat[i : i + _BLOCK], np.float32(1)).astype(np.float64)
            out[i : i + _BLOCK] = function(block).astype(np.float32)
    return np.where(inside, out.reshape(x.shape), outside).astype(np.float32, copy=False)


def exp(x: Float32) -> Float32:
    """Return e**x: 0 and infinity where that is what the exact value rounds to; NaN for NaN."""
    clipped = np.clip(x, np.float32(-110), np.float32(90))  # beyond these the result is 0 or infinity already
    return _apply(_exp, clipped, x == x, x)


def log(x: Float32) -> Float32:
    """Return the natural logarithm: -infinity at 0, NaN below, infinity at infinity."""
    outside = np.where(x == 0, np.float32(-np.inf), np.where(x > 0, x, np.float32(np.nan)))
    return _apply(_log, x, (x > 0) & (x < np.inf), outside)


def rcbrt(x: Float32) -> Float32:
    """Return x**(-1/3): infinity at 0, 0 at infinity, NaN below 0."""
    outside = np.where(x == 0, np.float32(np.inf), np.where(x > 0, np.float32(0), np.float32(np.nan)))
    return _apply(_rcbrt, x, (x > 0) & (x < np.inf), outside)


def cos(x: Float32) -> Float32:
    """Return the cosine of |x| <= COS_LIMIT radians; NaN beyond."""
    return _apply(_cos, x, np.abs(x) <= COS_LIMIT, np.float32(np.nan))
