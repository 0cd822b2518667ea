"""Field types of the hardware file, and the one rule that levels and output registers share (S4)."""

from __future__ import annotations

from typing import Annotated

from fqtsim.hw.markers import Integer, Text, Word, fault
from fqtsim.words import Overflow, Rounding, ZeroPoint

MAX_REGISTER_BITS = 62
MAX_OPERAND_BITS = 16
MAX_RANDOM_BITS = 32

ROUNDING_ELSEWHERE = (
    ("nearest_even", "ties_to_even"), ("half_even", "ties_to_even"), ("rne", "ties_to_even"),
    ("convergent", "ties_to_even"), ("half_up", "ties_to_positive"), ("rnu", "ties_to_positive"),
    ("half_away", "ties_to_away"), ("half_down", "ties_to_negative"), ("floor", "toward_negative"),
    ("truncate", "toward_zero"), ("ceil", "toward_positive"), ("jam", "to_odd"), ("rod", "to_odd"),
)  # fmt: skip
_OVERFLOW_ELSEWHERE = (("clamp", "saturate"), ("clip", "saturate"), ("modulo", "wrap"), ("truncate", "wrap"))
FIXED_ROUNDINGS = tuple(r.value for r in Rounding if r is not Rounding.STOCHASTIC)
_OVERFLOWS = tuple(o.value for o in Overflow)


def _format(lowest: int, highest: int, word: str = "") -> Text:
    widths = "|".join(
        f"{tens or ''}[{max(lowest, 10 * tens) % 10}-{min(highest, 10 * tens + 9) % 10}]"
        for tens in range(lowest // 10, highest // 10 + 1)
    )
    rule = f"must be int{lowest}..int{highest}, uint{lowest}..uint{highest}" + (f" or {word}" if word else "")
    return Text(
        f"u?int({widths})" + (f"|{word}" if word else ""),
        rule,
        "for example int8 or uint8" if highest == MAX_OPERAND_BITS else "for example int32",
    )


_NOT_HERE = (("stochastic", "a datapath of schema 1 has no random bits inside"),)
FixedRounding = Annotated[Rounding, Word(FIXED_ROUNDINGS, ROUNDING_ELSEWHERE, _NOT_HERE)]
OverflowWord = Annotated[Overflow, Word(_OVERFLOWS, _OVERFLOW_ELSEWHERE)]
ZeroPointWord = Annotated[ZeroPoint, Word(tuple(z.value for z in ZeroPoint))]
Operand = Annotated[str, _format(2, MAX_OPERAND_BITS)]
Count = Annotated[int, Integer(1, (1 << 31) - 1)]
Lanes = Annotated[int, Integer(1, 1 << 20)]  # each lane is a register, all of them held at once
Register = Annotated[str, _format(2, MAX_REGISTER_BITS, "exact")]
StageRegister = Annotated[str, _format(2, MAX_REGISTER_BITS)]
Sentence = Annotated[str, Text()]
Name = Annotated[
    str,
    Text(
        "[a-z][a-z0-9_]{0,63}",
        "must be a-z, 0-9 and _, starting with a letter, at most 64",
        "for example my_mac",
    ),
]


def check_overflow(register: str, overflow: Overflow | None) -> None:
    """Refuse an overflow word that is missing, does nothing or makes no sense for this register."""
    if register == "exact" and overflow is not None:
        raise fault("does nothing on an exact register", "remove it, or give the register a width", "overflow")
    if register != "exact" and overflow is None:
        raise fault("is required and has no default", f"choose one of {', '.join(_OVERFLOWS)}", "overflow")
    if register.startswith("u") and overflow is Overflow.SATURATE_SYMMETRIC:
        rule = f"needs a signed register, not {register}"
        raise fault(rule, f"use saturate, or {register[1:]}", "overflow")
