"""One code at a time: rounding a ratio to an integer, and bringing an integer into a register (S4)."""

from __future__ import annotations

from fqtsim.errors import InputError
from fqtsim.words import IntFormat, Overflow, Rounding


def round_shift(code: int, shift: int, rounding: Rounding, rand_bits: int = 0, n_bits: int = 0) -> int:
    """Return code / 2**shift rounded to an integer. A negative shift multiplies, exactly.

    For `stochastic`, rand_bits is an integer in 0..2**n_bits - 1 (S5.6).
    """
    if shift <= 0:
        return code << -shift
    if rounding is Rounding.STOCHASTIC:
        scaled = (code << n_bits) >> shift
        return (scaled + (1 << n_bits) - 1 - rand_bits) >> n_bits
    floor = code >> shift
    twice_fraction = ((code - (floor << shift)) << 1) - (1 << shift)  # sign: below, at or above one half
    if code == floor << shift:
        return floor
    return floor + _rounds_up(floor, twice_fraction, rounding)


def _rounds_up(floor: int, twice_fraction: int, rounding: Rounding) -> bool:
    """Tell whether an inexact number, floor plus a fraction, goes to floor + 1."""
    negative, odd = floor < 0, floor % 2 == 1
    directed = {
        Rounding.TOWARD_NEGATIVE: False,
        Rounding.TOWARD_POSITIVE: True,
        Rounding.TOWARD_ZERO: negative,
        Rounding.AWAY_FROM_ZERO: not negative,
        Rounding.TO_ODD: not odd,
    }
    if rounding in directed:
        return directed[rounding]
    at_tie = {
        Rounding.TIES_TO_EVEN: odd,
        Rounding.TIES_TO_ODD: not odd,
        Rounding.TIES_TO_AWAY: not negative,
        Rounding.TIES_TO_ZERO: negative,
        Rounding.TIES_TO_POSITIVE: True,
        Rounding.TIES_TO_NEGATIVE: False,
    }
    return twice_fraction > 0 or (twice_fraction == 0 and at_tie[rounding])


def into_register(value: int, register: IntFormat | None, overflow: Overflow | None) -> int:
    """Bring an exact integer into a register; None is the exact register, which holds anything."""
    if register is None:
        return value
    if overflow is Overflow.WRAP:
        low_bits = value & ((1 << register.bits) - 1)
        return low_bits - (1 << register.bits) if low_bits > register.maximum else low_bits
    if overflow is None:
        raise InputError(f"register = {register}: needs an overflow word; use wrap or saturate")
    lowest, highest = register.rails(overflow)
    return min(max(value, lowest), highest)
