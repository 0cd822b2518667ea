"""The meaning of a datapath (section 4), simulated gate by gate over the plain dictionaries of YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .bits import (
    DETERMINISTIC,
    HIGH,
    LOW,
    Number,
    add,
    constant,
    differ,
    drop,
    fits,
    into_register,
    multiply,
    pack,
    parse_format,
    subtract,
    unpack,
    wires,
)
from .randomness import drop_stochastic, philox, random_bits, stochastic_round
from .stages import requantize
from .summation import exact_sum, exact_sum64

__all__ = [
    "DETERMINISTIC", "correct_zero_points", "dot", "dropped_bits", "exact_sum", "exact_sum64", "gemm",
    "operand_format", "outcomes", "philox", "random_bits", "requantize", "round_shift", "stochastic_round",
]  # fmt: skip

Matrix = Sequence[Sequence[int]]
Level = Mapping[str, Any]
Datapath = Mapping[str, Any]


def gemm(
    a: Matrix, b: Matrix, datapath: Datapath, c: Matrix | int | None = None
) -> tuple[list[list[int]], dict[str, int]]:
    """Return codes (M x N) and events `altered`, `out_of_range`, `transient` of a (M x K) times b (K x N).

    c: M x N start values of the accumulator, or one for all; at K = 0 its columns are the output's.
    Raises ValueError for an operand code outside its format or a start value outside the accumulator.
    """
    codes, altered, outside = outcomes(a, b, datapath, c)
    changed, out = sum(map(sum, altered)), sum(map(sum, outside))
    both = sum(p and q for rows in zip(altered, outside, strict=True) for p, q in zip(*rows, strict=True))
    return codes, {"altered": changed, "out_of_range": out, "transient": changed - both}


def dot(a: Sequence[int], b: Sequence[int], datapath: Datapath, c: int = 0) -> tuple[int, dict[str, int]]:
    """Return the code and the events of one output."""
    codes, events = gemm([list(a)], [[code] for code in b], datapath, c)
    return codes[0][0], events


def outcomes(
    a: Matrix, b: Matrix, datapath: Datapath, c: Matrix | int | None = None
) -> tuple[list[list[int]], list[list[bool]], list[list[bool]]]:
    """Return, each M x N: the codes; which differ from the unlimited result; where that does not fit."""
    terms, rows = len(a[0]), len(a)
    columns = len(b[0]) if terms else len(c[0]) if isinstance(c, Sequence) else 1
    check_operand(a, operand_format(datapath, "a"))
    check_operand(b, operand_format(datapath, "b"))
    lanes = rows * columns
    start = pack([v for row in c for v in row]) if isinstance(c, Sequence) else pack([c or 0] * lanes)
    accumulator = datapath["levels"][-1]
    if not all(unpack_flags(in_rails(start, accumulator), lanes)):
        raise ValueError("c: a start value is outside the accumulator")
    items = products(a, b, rows, columns, terms)
    result = run_chain(items, datapath["levels"], start, limited=True)
    unlimited = run_chain(items, datapath["levels"], start, limited=False)
    flat = (
        unpack(result, lanes),
        unpack_flags(differ(result, unlimited), lanes),
        unpack_flags(~in_rails(unlimited, accumulator), lanes),
    )
    codes, altered, outside = ([line[i * columns :][:columns] for i in range(rows)] for line in flat)
    return codes, altered, outside  # type: ignore[return-value]


def unpack_flags(plane: int, lanes: int) -> list[bool]:
    return [wire == "1" for wire in wires(plane, lanes)]


def operand_format(datapath: Datapath, operand: str) -> tuple[int, bool]:
    """Return (bits, signed) of what enters the multiplier: one bit wider and signed for differences."""
    bits, signed = parse_format(datapath[operand])
    return (bits + 1, True) if datapath["zero_point"] == "before_multiply" else (bits, signed)


def check_operand(matrix: Matrix, form: tuple[int, bool]) -> None:
    flat = [code for row in matrix for code in row]
    if not all(unpack_flags(fits(pack(flat), *form), len(flat))):
        raise ValueError(f"an operand code is outside its format {form}")


def products(a: Matrix, b: Matrix, rows: int, columns: int, terms: int) -> list[Number]:
    """Return the exact products in order of k, each with lane i * columns + j for output (i, j)."""
    lanes = rows * columns
    left = pack(a[i][k] for k in range(terms) for i in range(rows) for _ in range(columns))
    right = pack(b[k][j] for k in range(terms) for _ in range(rows) for j in range(columns))
    every = multiply(left, right)  # one multiplier per (k, i, j), all at once
    cables = [wires(plane, lanes * terms)[::-1] for plane in every]
    end = lanes * terms
    return [[int(cable[end - lanes * (k + 1) : end - lanes * k], 2) for cable in cables] for k in range(terms)]


# ---- levels ----------------------------------------------------------------------------------------------


def run_chain(items: list[Number], levels: Sequence[Level], start: Number, limited: bool) -> Number:
    """Return the accumulator after all levels; without `limited` every register is as wide as it needs."""
    for level in levels[:-1]:
        items = [run_register(group, level, [LOW], limited) for group in groups(items, level)]
    (group,) = groups(items, levels[-1])
    return run_register(group, levels[-1], start, limited)


def groups(items: list[Number], level: Level) -> list[list[Number]]:
    """Return the items of each register of a level, in the order in which the registers are emitted."""
    if "lanes" in level:
        return [items[register :: level["lanes"]] for register in range(level["lanes"])]
    if level.get("terms") == "all":
        return [items]
    run = level["terms"] if "terms" in level else max(1, -(-len(items) // level["parts"]))
    return [items[first : first + run] for first in range(0, len(items), run)]


def run_register(items: list[Number], level: Level, start: Number, limited: bool) -> Number:
    """Return a register after every item: exact sum first, then into the register, once per addition."""
    register = start
    shortening = level.get("item") or {"drop_bits": 0, "rounding": ""}
    for item in items:
        total = add(register, drop(item, shortening["drop_bits"], shortening["rounding"]))
        register = total if not limited or level["register"] == "exact" else hold(total, level)
    return register


def hold(total: Number, level: Level) -> Number:
    return into_register(total, *parse_format(level["register"]), level["overflow"])


def in_rails(number: Number, level: Level) -> int:
    """Return the plane of lanes whose number the level's register can hold."""
    if level["register"] == "exact":
        return HIGH
    return fits(number, *parse_format(level["register"]), level["overflow"] == "saturate_symmetric")


# ---- beside the chain ------------------------------------------------------------------------------------


def dropped_bits(datapath: Datapath) -> int:
    """Return how many bits the levels drop in all: a code means code * 2**dropped."""
    return sum((level.get("item") or {"drop_bits": 0})["drop_bits"] for level in datapath["levels"])


def correct_zero_points(
    codes: Matrix, a: Matrix, b: Matrix, zero_a: Sequence[int], zero_b: Sequence[int], dropped: int = 0
) -> list[list[int]]:
    """Return acc * 2**dropped - za * sum(b) - zb * sum(a) + K * za * zb, za per row and zb per column."""
    result = []
    for i, row in enumerate(codes):
        sum_a = total_of([constant(code) for code in a[i]])
        line = []
        for j, code in enumerate(row):
            za, zb = constant(zero_a[i]), constant(zero_b[j])
            sum_b = total_of([constant(codes_b[j]) for codes_b in b])
            value = subtract(drop(constant(code), -dropped, ""), multiply(za, sum_b))
            value = subtract(value, multiply(zb, sum_a))
            line.append(unpack(add(value, multiply(constant(len(a[i])), multiply(za, zb))), 1)[0])
        result.append(line)
    return result


def total_of(numbers: Sequence[Number]) -> Number:
    total: Number = [LOW]
    for number in numbers:
        total = add(total, number)
    return total


def round_shift(
    codes: int | Sequence[int], shift: int, rounding: str, rand_bits: int | Sequence[int] = 0, n_bits: int = 0
) -> list[int]:
    """Return codes / 2**shift rounded to integers; `stochastic` takes n-bit integers, one or one each."""
    codes = [codes] if isinstance(codes, int) else list(codes)
    if rounding != "stochastic":
        return unpack(drop(pack(codes), shift, rounding), len(codes))
    random = constant(rand_bits) if isinstance(rand_bits, int) else pack(rand_bits)
    return unpack(drop_stochastic(pack(codes), shift, random, n_bits), len(codes))
