"""How one code or number that is no sum of a GEMM comes about, line by line: quantized, requantized, scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from fqtsim.golden.case import Array
from fqtsim.hw.stages import Stage
from fqtsim.ref import householder
from fqtsim.ref import quantize as definition
from fqtsim.ref import requantize as stages_of
from fqtsim.ref.stochastic import round_value
from fqtsim.words import IntFormat, Rounding

MOST_ROWS = 6
"""Rows of a group that are listed."""


@dataclass(frozen=True)
class Derivation:
    """The way to one output element."""

    title: str
    #: What was computed, its value, and what to know about it ("" mostly).
    steps: tuple[tuple[str, str, str], ...]
    why: str = ""
    #: What was expected, in words; "" for the value of the last step.
    result: str = ""

    def table(self, limit: int | None = None) -> Table:
        """Return every step as a table; there are never many, so that no limit is needed."""
        table = Table(title=self.title, title_justify="left")
        for name, side in (("stage", "left"), ("value", "right"), ("note", "left")):
            table.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
        for step in self.steps:
            table.add_row(*map(Text, step))
        return table

    def summary(self) -> str:
        """Return the result in one line."""
        return f"expected {self.result or self.steps[-1][1]}"


def single(value: float) -> tuple[str, str]:
    """Return a float32 in words, and its bits."""
    return f"{np.float32(value)!s}", f"0x{int(np.float32(value).view(np.uint32)):08x}"


def of_quantizer(
    x: Array, index: tuple[int, ...], parameters: dict[str, Any], words: Array | None, step: Array, zero: Array
) -> Derivation | None:
    """Return how the code at an index of x comes about from the grid of its row; None for an unknown quantizer."""
    if parameters["quantizer"] == "bhq":
        return _of_mixed(x, index, parameters, words)
    if parameters["quantizer"] not in ("ptq", "psq"):
        return None
    per_row = parameters["quantizer"] == "psq"
    row = index[0] if per_row and index else 0
    values = x[row] if per_row else x
    signed, zero_word = IntFormat.parse(parameters["format"]).signed, parameters["zero"]
    grid = definition.GRIDS[zero_word](float(values.min()), float(values.max()), parameters["bits"], signed)
    whose = f"of row {row}" if per_row else "of the tensor"
    spread = f"{np.float32(values.min())!s}..{np.float32(values.max())!s}"
    lines = [(f"range {whose}", spread, ""), ("step", *single(grid.step)), ("zero point", str(grid.zero_point), "")]
    if len(index) != x.ndim:  # the step or zero point itself is wrong
        return _grid_only(f"grid {whose}", lines, grid)
    value = float(x[index])
    lines.append(("x", *single(value)))
    lines += _coded("x", value, grid, parameters, None if words is None else int(words[index]))
    return Derivation(f"code of x{list(index)}", tuple(lines))


def _grid_only(title: str, lines: Sequence[tuple[str, str, str]], grid: definition.Grid) -> Derivation:
    """Return the derivation of what is one for a row."""
    result = f"step {single(grid.step)[0]}, zero point {grid.zero_point}"
    return Derivation(title, tuple(lines), "the first wrong output is of the grid", result)


def _coded(
    name: str, value: float, grid: definition.Grid, parameters: dict[str, Any], drawn: int | None
) -> list[tuple[str, str, str]]:
    """Return the way from a value to its code on a grid. drawn: the random word, None where none is needed."""
    rounding, bits = Rounding(parameters["rounding"]), int(parameters["random_bits"] or 0)
    quotient = definition.quotient(value, grid)
    rest = Fraction(quotient) % 1
    lines = [(f"{name} / step, float32", single(quotient)[0], "a tie" if rest * 2 == 1 else "")]
    if drawn is not None:
        lines.append(("random word", f"0x{drawn:0{-(-bits // 4)}x}", f"of {bits} bits: {drawn / (1 << bits):.4f}"))
    rounded = round_value(quotient, rounding, drawn or 0, bits)
    code, clamped = definition.code(value, grid, rounding, drawn or 0, bits)
    return [
        *lines,
        (f"rounded, {rounding}", str(rounded), f"rest {float(rest):.6g}"),
        ("plus the zero point", str(rounded + grid.zero_point), ""),
        (f"clamped to {grid.low}..{grid.high}", str(code), "clamped" if clamped else ""),
    ]


def _of_mixed(x: Array, index: tuple[int, ...], parameters: dict[str, Any], words: Array | None) -> Derivation:
    """Return how a code of bhq comes about (S5.12): its group of rows, their factors, the mixed row, its grid."""
    rows = x.reshape(len(x), -1).astype(np.float64)
    least, greatest = rows.min(axis=1), rows.max(axis=1)
    ranges = (greatest - least).tolist()
    integers = householder.integer_ranges(ranges)
    groups = householder.group_rows(integers)
    factors = householder.scales(groups, ranges, np.maximum(greatest, -least).tolist())
    row = index[0] if index else 0
    group = next(group for group in groups if row in group)
    others = list(zip(*(rows[member].tolist() for member in group), strict=True))
    place = [list(range(len(group)))]
    # A group is mixed by itself, so that its rows alone give the same sums.
    mixed = [householder.mix(list(column), place, [factors[member] for member in group])[group.index(row)]
             for column in others]  # fmt: skip
    signed = IntFormat.parse(parameters["format"]).signed
    grid = definition.GRIDS[parameters["zero"]](min(mixed) + 0.0, max(mixed) + 0.0, parameters["bits"], signed)
    followers = f"rows {_few(group[1:])}" if len(group) > 1 else "none"
    role = "the leader" if row == group[0] else "a follower"
    lines = [
        (f"range of row {row}, integer", str(integers[row]), f"{ranges[row]:.9g}"),
        ("groups of rows", str(len(groups)), ""),
        (f"group of row {row}", f"leader {group[0]}", f"of {len(group)} rows; followers: {followers}"),
        (f"factor of row {row}", *single(factors[row])),
        (f"range of mixed row {row}", f"{np.float32(min(mixed))!s}..{np.float32(max(mixed))!s}", role),
        ("step", *single(grid.step)), ("zero point", str(grid.zero_point), ""),
    ]  # fmt: skip
    if len(index) != x.ndim:
        return _grid_only(f"grid of mixed row {row}", lines, grid)
    column = int(np.ravel_multi_index(index[1:], x.shape[1:]))
    value = mixed[column]
    lines += [(f"x{list(index)}", *single(float(x[index]))), ("mixed value", *single(value))]
    if any(mixed):
        lines += _coded("mixed value", value, grid, parameters, None if words is None else int(words[index]))
    else:  # a row of zeros is not rounded
        lines.append(("code of 0", str(grid.zero_point), "the mixed row is 0"))
    return Derivation(f"code of mixed row {row}, column {column}", tuple(lines))


def _few(rows: Sequence[int]) -> str:
    """Return row numbers, of many only the first."""
    shown = ", ".join(map(str, rows[:MOST_ROWS]))
    return shown if len(rows) <= MOST_ROWS else f"{shown} and {len(rows) - MOST_ROWS} more"


def of_stages(code: int, place: str, stages: Sequence[Stage], arguments: dict[str, Any]) -> Derivation:
    """Return every output stage of one accumulator code. arguments: multiplier, shift, scale, zero_point."""
    exact = (
        {**arguments, "scale": Fraction(float(np.float32(arguments["scale"])))} if "scale" in arguments else arguments
    )
    lines, value = [("accumulator", str(code), hexadecimal(code))], Fraction(code)
    for number, stage in enumerate(stages):
        entering: Any = value if value.denominator > 1 else int(value)
        after = Fraction(stages_of.requantize(entering, [stage], **exact))
        note = ""
        if stage.kind == "multiply":
            name = "multiplier" if stage.multiply == "integer" else "scale"
            what = f"{stage.multiply} multiply by {arguments[name]}"
        elif stage.kind == "shift":
            shift = int(arguments["shift"]) if stage.shift == "call" else int(stage.shift or 0)
            what = f"shift by {shift}, {stage.rounding}"
            note = _rest(value / Fraction(2) ** shift)
        elif stage.kind == "round":
            what, note = f"round {stage.round}", _rest(value)
        elif stage.kind == "add":
            what = f"add zero point {arguments.get('zero_point', 0)}"
        else:
            what, note = f"register {stage.register_format} {stage.overflow}", "changed" if after != value else ""
        lines.append((f"{number}: {what}", _plain(after), note))
        value = after
    return Derivation(f"output {place}", tuple(lines))


def _plain(value: Fraction) -> str:
    return str(int(value)) if value.denominator == 1 else repr(float(value))


def _rest(value: Fraction) -> str:
    rest = value % 1
    if not rest:
        return "exact"
    return f"of {float(value):.10g}{', a tie' if rest * 2 == 1 else ''}"


def hexadecimal(code: int) -> str:
    """Return a code as 32-bit two's complement."""
    return f"0x{code & 0xFFFFFFFF:08x}"


def of_scaling(
    place: str, acc: int, row: float, column: float, bias: float | None, before: Sequence[tuple[str, str, str]] = ()
) -> Derivation:
    """Return how float32(acc * (row * column)), and a bias, give one output (S5.8)."""
    scale = float(np.float64(row) * np.float64(column))
    scaled = float(np.float64(acc) * scale)
    lines = [*before, ("accumulator" if not before else "sum without zero points", str(acc), hexadecimal(acc)),
             ("step of the row", *single(row)), ("step of the column", *single(column)),
             ("their product, float64", repr(scale), ""), ("scaled, float64", repr(scaled), ""),
             ("rounded to float32", *single(scaled))]  # fmt: skip
    if bias is not None:
        total = np.float32(scaled) + np.float32(bias)
        lines += [("bias", *single(bias)), ("sum, float32", *single(float(total)))]
    return Derivation(f"output {place}", tuple(lines))
