"""exp, log, inverse cube root and cos of float32 tensors (S5.4). The twin of fqtsim/kernels/elementary.py.

Each line is one float64 torch operation, which is one kernel, so that nothing can be fused.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fqtsim.kernels import elementary as cpu
from fqtsim.kernels.gpu.launch import Fault, note

_ROOT_HALF_BITS = cpu._ROOT_HALF_BITS
_RCBRT_SEED = cpu._RCBRT_SEED
_THIRD = cpu._THIRD


def _horner(coefficients: tuple[float, ...], r: torch.Tensor) -> torch.Tensor:
    p = torch.full_like(r, coefficients[0])
    for coefficient in coefficients[1:]:
        p = p * r
        p = p + coefficient
    return p


def _exp(x: torch.Tensor) -> torch.Tensor:
    n = torch.round(x * cpu.LOG2_E)
    r = (x - n * cpu.LN2_HIGH) - n * cpu.LN2_LOW
    return _horner(cpu._EXP, r) * ((n.to(torch.int64) + 1023) << 52).view(torch.float64)


def _log(x: torch.Tensor) -> torch.Tensor:
    bits = x.view(torch.int64)
    exponent = (bits - _ROOT_HALF_BITS) >> 52
    f = (bits - (exponent << 52)).view(torch.float64) - 1.0
    s = f / (f + 2.0)
    z = s * s
    twice = s + s
    n = exponent.to(torch.float64)
    return n * cpu.LN2_HIGH + (twice + (twice * (z * _horner(cpu._LOG, z)) + n * cpu.LN2_LOW))


def _rcbrt(x: torch.Tensor) -> torch.Tensor:
    third = torch.div(x.view(torch.int64), 3, rounding_mode="floor")
    y = (_RCBRT_SEED - third).view(torch.float64)
    for _ in range(4):
        d = 1.0 - ((x * y) * y) * y
        y = y + (y * d) * _THIRD
    return y


def _cos(x: torch.Tensor) -> torch.Tensor:
    n = torch.round(x * cpu.TWO_OVER_PI)
    r = ((x - n * cpu.HALF_PI_1) - n * cpu.HALF_PI_2) - n * cpu.HALF_PI_3
    z = r * r
    sine = r + (r * z) * _horner(cpu._SIN, z)
    quadrant = n.to(torch.int64) & 3
    result = torch.where((quadrant & 1) == 1, sine, _horner(cpu._COS, z))
    return torch.where((quadrant == 1) | (quadrant == 2), -result, result)


def _apply(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, inside: torch.Tensor, outside: torch.Tensor
) -> torch.Tensor:
    """Return float32(function(x)) where `inside` holds and `outside` elsewhere."""
    good = torch.where(inside, x, torch.ones_like(x)).to(torch.float64)
    return torch.where(inside, function(good).to(torch.float32), outside)


def exp(x: torch.Tensor) -> torch.Tensor:
    """Return e**x: 0 and infinity where that is what the exact value rounds to; NaN for NaN."""
    return _apply(_exp, x.clamp(-110.0, 90.0), x == x, x)


def log(x: torch.Tensor) -> torch.Tensor:
    """Return the natural logarithm: -infinity at 0, NaN below, infinity at infinity."""
    outside = torch.where(x > 0, x, torch.full_like(x, math.nan))
    return _apply(_log, x, (x > 0) & (x < math.inf), torch.where(x == 0, torch.full_like(x, -math.inf), outside))


def rcbrt(x: torch.Tensor) -> torch.Tensor:
    """Return x**(-1/3): infinity at 0, 0 at infinity, NaN below 0."""
    outside = torch.where(x > 0, torch.zeros_like(x), torch.full_like(x, math.nan))
    return _apply(_rcbrt, x, (x > 0) & (x < math.inf), torch.where(x == 0, torch.full_like(x, math.inf), outside))


def cos(x: torch.Tensor, flags: torch.Tensor | None = None) -> torch.Tensor:
    """Return the cosine of |x| <= 2**20 radians; NaN beyond, which is noted."""
    inside = x.abs() <= cpu.COS_LIMIT
    note(flags, ~inside & ~torch.isnan(x), Fault.OUT_OF_RANGE)
    return _apply(_cos, x, inside, torch.full_like(x, math.nan))
