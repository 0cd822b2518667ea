"""The vocabulary: integer formats, rounding and overflow words (S3). Imports nothing of the project but errors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from fqtsim.errors import InputError

GEMMS = ("fprop", "dgrad", "wgrad")
"""The three matrix products of training."""


class Rounding(StrEnum):
    """How a number between two neighbouring integers becomes one of them (IEEE 754 words)."""

    #: The nearest; a tie goes to the even neighbour.
    TIES_TO_EVEN = "ties_to_even"
    #: The nearest; a tie goes to the odd neighbour.
    TIES_TO_ODD = "ties_to_odd"
    #: The nearest; a tie goes to the neighbour of larger magnitude.
    TIES_TO_AWAY = "ties_to_away"
    #: The nearest; a tie goes to the neighbour of smaller magnitude.
    TIES_TO_ZERO = "ties_to_zero"
    #: The nearest; a tie goes up: add one half, then floor.
    TIES_TO_POSITIVE = "ties_to_positive"
    #: The nearest; a tie goes down.
    TIES_TO_NEGATIVE = "ties_to_negative"
    #: Drop the fraction of the magnitude.
    TOWARD_ZERO = "toward_zero"
    #: Any fraction moves to the neighbour of larger magnitude.
    AWAY_FROM_ZERO = "away_from_zero"
    #: Ceiling.
    TOWARD_POSITIVE = "toward_positive"
    #: Floor: what dropping bits of a two's complement code does.
    TOWARD_NEGATIVE = "toward_negative"
    #: Any fraction moves to the odd neighbour (jamming).
    TO_ODD = "to_odd"
    #: Up with a probability equal to the fraction, from random bits given as an integer (S5.6).
    STOCHASTIC = "stochastic"


class Overflow(StrEnum):
    """What a register does with a sum outside its format."""

    #: Keep the low bits (two's complement, modulo 2**bits).
    WRAP = "wrap"
    #: The nearer of minimum and maximum.
    SATURATE = "saturate"
    #: As saturate, with the most negative code unused: int8 is [-127, 127].
    SATURATE_SYMMETRIC = "saturate_symmetric"


class ZeroPoint(StrEnum):
    """Where zero points enter a datapath (S4, "Zero points")."""

    NONE = "none"
    BEFORE_MULTIPLY = "before_multiply"
    AFTER_ACCUMULATE = "after_accumulate"


_FORMAT = re.compile(r"(u?)int([1-9][0-9]?)")


@dataclass(frozen=True)
class IntFormat:
    """Width and signedness of a code."""

    #: Number of bits, 1..64.
    bits: int
    #: Two's complement when true.
    signed: bool

    @classmethod
    @lru_cache(maxsize=256)
    def parse(cls, name: str) -> IntFormat:
        """Return the format called `name` ("int8", "uint12"). Raises InputError for any other text."""
        match = _FORMAT.fullmatch(name)
        if match is None or int(match[2]) > 64:
            raise InputError(f"format = {name!r}: must be intN or uintN with N in 1..64; for example int8")
        return cls(int(match[2]), not match[1])

    @property
    def name(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}"

    def __str__(self) -> str:
        return self.name

    @property
    def minimum(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def maximum(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    def rails(self, overflow: Overflow | None) -> tuple[int, int]:
        """Return the lowest and highest code that a register with this overflow word can hold."""
        return self.minimum + (overflow is Overflow.SATURATE_SYMMETRIC), self.maximum

    @property
    def storage(self) -> str:
        """The name of the narrowest numpy integer type that holds every code."""
        bits = next(width for width in (8, 16, 32, 64) if width >= self.bits)
        return f"{'' if self.signed else 'u'}int{bits}"
