"""Numbers as lists of wires: ripple-carry adders, shift-and-add multipliers, guard and sticky rounding.

A *plane* is one wire in every lane at once: bit j of the Python int is that wire in lane j, and gates are
`& | ^ ~`. The constants are 0 (low in every lane) and -1 (high in every lane). With one lane this is the
textbook bit list. A *number* is a list of planes, least significant first, the last one the two's complement
sign. Every operation is exact: results have the planes they need; superfluous copies of the sign are trimmed.
"""

from __future__ import annotations

from collections.abc import Iterable

Number = list[int]
LOW, HIGH = 0, -1


# ---- in and out: the only places where a Python integer's value is looked at -----------------------------


def constant(value: int) -> Number:
    """Return `value` in every lane."""
    return [HIGH if value >> position & 1 else LOW for position in range(value.bit_length() + 1)]


def pack(values: Iterable[int]) -> Number:
    """Return the number whose lane j holds the j-th value (lanes beyond hold 0)."""
    values = list(values)
    width = max((value.bit_length() for value in values), default=0) + 1
    planes = []
    for position in range(width):
        wires = "".join("1" if value >> position & 1 else "0" for value in reversed(values))
        planes.append(int(wires or "0", 2))
    return planes


def unpack(number: Number, lanes: int) -> list[int]:
    """Return the integers in lanes 0..lanes-1."""
    columns = zip(*(wires(plane, lanes) for plane in reversed(number)), strict=True)
    signed = (("".join(column), 2 ** len(column)) for column in columns)
    return [int(text, 2) - (modulus if text[0] == "1" else 0) for text, modulus in signed]


def wires(plane: int, lanes: int) -> str:
    """Return the plane as characters, lane 0 first."""
    return f"{plane & ((1 << lanes) - 1):0{lanes}b}"[::-1] if lanes else ""


def count(plane: int, lanes: int) -> int:
    """Return in how many of the first `lanes` lanes the plane is high."""
    return wires(plane, lanes).count("1")


# ---- wiring ----------------------------------------------------------------------------------------------


def extend(number: Number, width: int) -> Number:
    """Return `number` sign-extended to at least `width` planes."""
    return number + [number[-1]] * (width - len(number))


def trim(number: Number) -> Number:
    """Return `number` without superfluous copies of its sign plane."""
    while len(number) > 1 and number[-1] == number[-2]:
        number = number[:-1]
    return number


def select(condition: int, when_high: Number, when_low: Number) -> Number:
    """Return a multiplexer: per lane, one number or the other."""
    width = max(len(when_high), len(when_low))
    pairs = zip(extend(when_high, width), extend(when_low, width), strict=True)
    return trim([condition & yes | ~condition & no for yes, no in pairs])


def any_high(planes: Iterable[int]) -> int:
    """Return the OR of planes."""
    result = LOW
    for plane in planes:
        result |= plane
    return result


def differ(x: Number, y: Number) -> int:
    """Return the plane of lanes where x and y are different numbers."""
    width = max(len(x), len(y))
    return any_high(p ^ q for p, q in zip(extend(x, width), extend(y, width), strict=True))


# ---- arithmetic ------------------------------------------------------------------------------------------


def add(x: Number, y: Number, carry: int = LOW) -> Number:
    """Return x + y + carry, by a chain of full adders one plane wider than the wider operand."""
    width = max(len(x), len(y)) + 1
    total = []
    for p, q in zip(extend(x, width), extend(y, width), strict=True):
        half_sum = p ^ q
        total.append(half_sum ^ carry)
        carry = p & q | half_sum & carry
    return trim(total)


def subtract(x: Number, y: Number) -> Number:
    """Return x - y: add the complement and one."""
    return add(x, [~plane for plane in y], HIGH)


def multiply(x: Number, y: Number) -> Number:
    """Return x * y by shift and add; the sign plane of y has negative weight, so its row is subtracted."""
    total: Number = [LOW]
    for position, wire in enumerate(y):
        row = [LOW] * position + [plane & wire for plane in x]
        total = subtract(total, row) if position == len(y) - 1 else add(total, row)
    return total


# ---- leaving planes out ----------------------------------------------------------------------------------


def drop(number: Number, places: int, rounding: str) -> Number:
    """Return number / 2**places rounded to an integer; negative places shift left, exactly."""
    if places <= 0:
        return trim([LOW] * -places + number)
    number = extend(number, places + 1)
    kept = number[places:]
    guard, sticky = number[places - 1], any_high(number[: places - 1])
    odd, negative, inexact = kept[0], number[-1], guard | sticky
    # `kept` is the floor; each word says in which lanes the neighbour above it is taken.
    upward = {
        "toward_negative": LOW,
        "toward_positive": inexact,
        "toward_zero": inexact & negative,
        "away_from_zero": inexact & ~negative,
        "to_odd": inexact & ~odd,
        "ties_to_negative": guard & sticky,
        "ties_to_positive": guard,
        "ties_to_even": guard & (sticky | odd),
        "ties_to_odd": guard & (sticky | ~odd),
        "ties_to_zero": guard & (sticky | negative),
        "ties_to_away": guard & (sticky | ~negative),
    }[rounding]
    return add(kept, [LOW], upward)


DETERMINISTIC = (
    "ties_to_even", "ties_to_odd", "ties_to_away", "ties_to_zero", "ties_to_positive", "ties_to_negative",
    "toward_zero", "away_from_zero", "toward_positive", "toward_negative", "to_odd",
)  # fmt: skip


def low_planes(number: Number, places: int, signed: bool) -> Number:
    """Return the low `places` planes read as a code of that width: what a wrapping register keeps."""
    kept = extend(number, places)[:places]
    return trim(kept if signed else [*kept, LOW])


def fits(number: Number, places: int, signed: bool, symmetric: bool = False) -> int:
    """Return the plane of lanes whose number is a code of intN / uintN (`symmetric`: but the lowest)."""
    number = extend(number, places + 1)
    sign = number[-1]
    outside = any_high(plane ^ sign for plane in number[places - signed :]) | (LOW if signed else sign)
    lowest = sign & ~any_high(number[: places - 1]) if symmetric else LOW
    return ~outside & ~lowest


def into_register(number: Number, places: int, signed: bool, overflow: str) -> Number:
    """Return what an intN / uintN register holds after being given `number`."""
    if overflow == "wrap":
        return low_planes(number, places, signed)
    if overflow not in ("saturate", "saturate_symmetric"):
        raise ValueError(f"overflow = {overflow!r}")
    symmetric = overflow == "saturate_symmetric"
    top = [HIGH] * (places - signed) + [LOW]
    bottom = [LOW] * (places - 1) + [HIGH] if signed else [LOW]
    if symmetric:
        bottom = [HIGH, *bottom[1:]] if places > 1 else bottom
    rail = select(number[-1], bottom, top)
    return select(fits(number, places, signed, symmetric), number, rail)


def parse_format(name: str) -> tuple[int, bool]:
    """Return (bits, signed) of "int8" or "uint8"."""
    return (int(name[4:]), False) if name.startswith("uint") else (int(name[3:]), True)
