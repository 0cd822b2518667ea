"""explain: every product and addition of one output, as the reference performs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
MOST_ALIKE = 3
"""Additions that may each make up a difference; more of them would be chance."""
LAST = "the last steps: nothing overflows, and no single step makes up the difference"


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
    #: What each product stands for where k is not enough, and the title of that column: of a convolution.
    terms: tuple[str, ...] = ()
    terms_title: str = ""
    #: What the table is called; "" for row and column.
    title: str = ""
    #: The addition that the table is shown around, and why; None: the first that overflows.
    focus: int | None = None
    why: str = ""

    def focused(self, observed: int, other: Sequence[Step] | None = None) -> Explanation:
        """Return the same, shown around the addition that tells most about an observed code, and why it is that one.

        other: the additions of a computation that gives the observed code, where one is known. Otherwise the first
        overflow, an addition whose item is the difference, the addition up to which the sums agree, or the last ones.
        """
        if not self.steps:
            return self
        found = self._first_difference(other) or self._first_overflow() or self._missing_item(observed)
        focus, why = found or self._stopped(observed) or (len(self.steps) - 1, LAST)
        return replace(self, focus=focus, why=why)

    def _first_difference(self, other: Sequence[Step] | None) -> tuple[int, str] | None:
        if other is None:
            return None
        for number, step in enumerate(self.steps):
            if number >= len(other):
                return number, f"step {number} is the first that the first suggestion leaves out"
            if other[number] != step:
                change = other[number]
                there = f"there {change.before} + {change.item} gives {change.after}"
                return number, f"step {number} is the first that differs under the first suggestion: {there}"
        more = len(other) - len(self.steps)
        last = len(self.steps) - 1
        return (last, f"the first suggestion has {more} more steps after step {last}") if more else None

    def _first_overflow(self) -> tuple[int, str] | None:
        overflows = [number for number, step in enumerate(self.steps) if step.event]
        if not overflows:
            return None
        count = "the only" if len(overflows) == 1 else f"the first of {len(overflows)}"
        return overflows[0], f"step {overflows[0]} is {count} that overflows"

    def _missing_item(self, observed: int) -> tuple[int, str] | None:
        """Return the addition whose item makes up the difference; nothing where several could be it by chance."""
        ways = {1: "without its item", -1: "with its item added twice", 2: "with its item subtracted"}
        for factor, way in ways.items():
            fitting = [
                n for n, step in enumerate(self.steps) if step.item and factor * step.item == self.code - observed
            ]
            if 1 <= len(fitting) <= MOST_ALIKE:
                which = "" if len(fitting) == 1 else f" (or step {', '.join(map(str, fitting[:-1]))})"
                return fitting[-1], f"step {fitting[-1]}{which}: {way} the sum is the observed code"
        return None

    def _stopped(self, observed: int) -> tuple[int, str] | None:
        last = len(self.datapath.levels) - 1
        at = [number for number, step in enumerate(self.steps) if step.level == last and step.before == observed]
        return (at[-1], f"the observed code is the sum before step {at[-1]}") if at else None

    def table(self, limit: int | None = SHOWN) -> Table:
        """Return the steps as a table, where there are more than limit around the focus, or the first overflow."""
        levels = self.datapath.levels
        table = Table(title=self.title or f"output [{self.row}, {self.col}]", title_justify="left")
        for name in ("step", "level", "register", "item", "before", "exact sum", "after", "event"):
            if name == "item" and self.terms:
                table.add_column(self.terms_title)
            table.add_column(name, justify="left" if name in ("register", "event") else "right")
        first, end = self._window(limit)
        for number in range(first, end):
            step = self.steps[number]
            register = levels[step.level].register
            style = "bold red" if step.event else ""
            cells = [number, step.level, f"{register}[{step.register}]", self._item(number, step)]
            cells += [step.before, step.exact, step.after, self._event(step)]
            if self.terms:
                cells.insert(3, self.terms[number] if step.level == 0 and number < len(self.terms) else "")
            table.add_row(*(Text(str(cell)) for cell in cells), style=style)
        hidden = len(self.steps) - (end - first)
        if hidden:
            more = "1 more addition" if hidden == 1 else f"{hidden} more additions"
            table.caption = f"{more}; steps {first}..{end - 1} of {len(self.steps)} shown"
        return table

    def _window(self, limit: int | None) -> tuple[int, int]:
        if limit is None or len(self.steps) <= limit:
            return 0, len(self.steps)
        around = self.focus
        if around is None:
            around = next((number for number, step in enumerate(self.steps) if step.event), 0)
        first = max(0, min(around - limit // 2, len(self.steps) - limit))
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


def steps_under(change: Any, problem: Any, row: int, col: int) -> tuple[Step, ...] | None:
    """Return the additions of one output under a Change of fqtsim.identify; None where it is none of additions.

    problem: a Problem of fqtsim.identify.change, with all of its rows and columns.
    """
    if change.run or change.table or change.codes or change.reach == "outputs":
        return None
    changed = problem.part([row], [col]) if change.reach == "output" else problem
    if change.operands is not None:
        changed = change.operands(changed) or changed
    if change.reach == "operands":
        changed = changed.part([row], [col])
    datapath = changed.datapath if change.datapath is None else change.datapath(changed.datapath) or changed.datapath
    a, b = changed.a[0].tolist(), changed.b[:, 0].tolist()
    return dot(a, b, datapath.levels, int(changed.start[0, 0])).steps
