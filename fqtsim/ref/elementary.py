"""exp, log, inverse cube root and cos: the fixed sequences of binary64 operations (S5.4).

A Python float is a binary64 number and every operation on it is rounded once, so the lines below are the definition.
Arguments and results are binary32 values.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction

from fqtsim.ref.binary32 import nearest

LOG2_E = float.fromhex("0x1.71547652b82fep+0")
LN2_HIGH = float.fromhex("0x1.62e42feep-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
HALF_PI = [float.fromhex(part) for part in ("0x1.921fb544p+0", "0x1.0b4611a6p-34", "0x1.3198a2e037073p-69")]
ROOT_HALF_BITS = 0x3FE6A09E667F3BCD
RCBRT_SEED = 0x553EF0FF289DD796


def _bits64(x: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", x))[0])


def _from_bits64(pattern: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", pattern))[0])


def _horner(coefficients: list[float], r: float) -> float:
    """Return the polynomial, coefficients of the highest power first: multiply, then add."""
    p = coefficients[0]
    for coefficient in coefficients[1:]:
        p = p * r
        p = p + coefficient
    return p


def _binary32(value: float) -> float:
    return nearest(Fraction(value)) if math.isfinite(value) else value


def exp(x: float) -> float:
    """Return e**x: 2**n times a Taylor polynomial of degree 11 in the rest, |rest| <= ln 2 / 2 (Cody and Waite)."""
    if math.isnan(x):
        return x
    x = min(max(x, -110.0), 90.0)
    n = float(round(x * LOG2_E))
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = _horner([1.0 / math.factorial(k) for k in range(11, -1, -1)], r)
    return _binary32(p * 2.0**n)


def log(x: float) -> float:
    """Return ln x: exponent times ln 2, plus the series of 2 artanh(f / (2 + f)), 1 + f in [sqrt(1/2), sqrt(2))."""
    if x == 0:
        return -math.inf
    if not 0 < x < math.inf:
        return x if x > 0 else math.nan
    exponent = (_bits64(x) - ROOT_HALF_BITS) >> 52
    f = _from_bits64(_bits64(x) - (exponent << 52)) - 1.0
    s = f / (f + 2.0)
    z = s * s
    twice = s + s
    series = twice * (z * _horner([1.0 / odd for odd in range(19, 1, -2)], z))
    n = float(exponent)
    return _binary32(n * LN2_HIGH + (twice + (series + n * LN2_LOW)))


def rcbrt(x: float) -> float:
    """Return x**(-1/3): a seed from the bit pattern, good to 4 %, and four Newton steps."""
    if x == 0:
        return math.inf
    if not 0 < x < math.inf:
        return 0.0 if x > 0 else math.nan
    y = _from_bits64(RCBRT_SEED - _bits64(x) // 3)
    for _ in range(4):
        d = 1.0 - ((x * y) * y) * y
        y = y + (y * d) * (1.0 / 3.0)
    return _binary32(y)


def cos(x: float) -> float:
    """Return cos x, |x| <= 2**20: the Taylor polynomial of the quadrant in the rest, |rest| <= pi / 4."""
    n = float(round(x * TWO_OVER_PI))
    r = ((x - n * HALF_PI[0]) - n * HALF_PI[1]) - n * HALF_PI[2]
    z = r * r
    quadrant = int(n) % 4
    if quadrant % 2:
        sine = [(-1.0) ** (k // 2) / math.factorial(k) for k in range(17, 1, -2)]
        value = r + (r * z) * _horner(sine, z)
    else:
        value = _horner([(-1.0) ** (k // 2) / math.factorial(k) for k in range(16, -1, -2)], z)
    return _binary32(-value if quadrant in (1, 2) else value)
