"""explain: every product and addition of one output, as the reference performs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fqtsim.api.arrays import checked_operands, checked_start
from fqtsim.api.multiply import chosen_datapath
from fqtsim.errors import InputError
from fqtsim.hw.spec import Datapath, Hardware
from fqtsim.ref.gemm import Output, Step, dot

SHOWN = 24
"""Rows printed around what matters; the rest is counted."""


@dataclass(frozen=True)
class Explanation:
    """One output, addition by addition."""

    row: int
    col: int
    #: Every addition: level, register, item, before, exact, after, event.
    steps: tuple[Step, ...]
    #: The accumulator's code.
    code: int
    #: The result with every register unlimited.
    unlimited: int
    output: Output
    datapath: Datapath
    #: The operand codes, for the first level's products.
    products: tuple[tuple[int, int], ...]

    def table(self, limit: int | None = SHOWN) -> Table:
        """Return the steps as a table, around the first addition that overflows where there are more than limit."""
        levels = self.datapath.levels
        table = Table(title=f"output [{self.row}, {self.col}]", title_justify="left")
        for name in ("step", "level", "register", "item", "before", "exact sum", "after", "event"):
            table.add_column(name, justify="left" if name in ("register", "event") else "right")
        first, end = self._window(limit)
        for number in range(first, end):
            step = self.steps[number]
            register = levels[step.level].register
            style = "bold red" if step.event else ""
            cells = [number, step.level, f"{register}[{step.register}]", self._item(number, step)]
            cells += [step.before, step.exact, step.after, self._event(step)]
            table.add_row(*(Text(str(cell)) for cell in cells), style=style)
        hidden = len(self.steps) - (end - first)
        if hidden:
            table.caption = f"{hidden} more additions; steps {first}..{end - 1} of {len(self.steps)} shown"
        return table

    def _window(self, limit: int | None) -> tuple[int, int]:
        if limit is None or len(self.steps) <= limit:
            return 0, len(self.steps)
        overflows = [number for number, step in enumerate(self.steps) if step.event]
        first = max(0, min((overflows[0] if overflows else 0) - limit // 2, len(self.steps) - limit))
        return first, first + limit

    def _item(self, number: int, step: Step) -> str:
        if step.level == 0 and number < len(self.products):
            a, b = self.products[number]
            product = f"{a} * {b}"
            return product if a * b == step.item else f"{product} -> {step.item}"
        return str(step.item)

    def _event(self, step: Step) -> str:
        return f"{self.datapath.levels[step.level].overflow}" if step.event else ""

    def summary(self) -> str:
        """Return the result in one line."""
        if self.code == self.unlimited:
            return f"code {self.code}: unaltered"
        kind = "transient" if self.output.transient else "out of range"
        return f"code {self.code}, unlimited registers {self.unlimited}: altered ({kind})"

    def __str__(self) -> str:
        console = Console(width=110, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get() + self.summary()


def explain(
    a: Any, b: Any, hw: Hardware | str, row: int = 0, col: int = 0, gemm: str = "fprop", c: Any = None
) -> Explanation:
    """Return every product and addition of output [row, col] of a (M, K) times b (K, N), starting at c.

    Raises InputError for operands that gemm() refuses and for an output outside (M, N).
    """
    datapath = chosen_datapath(hw, gemm)
    left, right = checked_operands(a, b, datapath)
    m, n = left.shape[0], right.shape[1]
    for name, index, size in (("row", row, m), ("col", col, n)):
        if not 0 <= index < size:
            raise InputError(f"{name} = {index}: must be 0..{size - 1}; the output is {m} x {n}")
    start = checked_start(c, datapath, (m, n))
    codes_a, codes_b = [int(x) for x in left[row]], [int(x) for x in right[:, col]]
    output = dot(codes_a, codes_b, datapath.levels, 0 if start is None else int(start[row, col]))
    products = tuple(zip(codes_a, codes_b, strict=True))
    return Explanation(row, col, output.steps, output.code, output.unlimited, output, datapath, products)
