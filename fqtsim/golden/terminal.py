"""A verdict on a terminal, and as plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fqtsim.golden.case import Case
from fqtsim.golden.check import CaseResult, Verdict, shapes_of

STEPS = 8
"""Additions shown around the first that overflows."""
WIDE = 110
"""Columns of a terminal from which tables have frames."""
UNLIMITED = 1000
MOST_LISTED = 12
"""Failing cases that are listed; the rest is counted."""
MOST_FAULTS = 4
"""Different faults that are listed."""


def show(verdict: Verdict, console: Console | None = None) -> None:
    """Print a verdict: what failed, the first mismatch of the smallest such case, patterns, suggestions."""
    console = console or Console(highlight=False)
    console.print(Text(headline(verdict), style="bold green" if verdict.passed else "bold red"))
    console.print(Text(setting(verdict)))
    for name, outputs in _not_compared(verdict).items():
        console.print(Text(f"not compared: {outputs} of {name}, which the kernel did not return", style="yellow"))
    if verdict.passed:
        return
    console.print()
    console.print(_listed(verdict))
    _show_list("gave nothing to compare", _faults(verdict), console)
    if verdict.shown is not None:
        _show_case(verdict.shown, console)
    _show_list("over all cases", verdict.patterns, console)
    _show_list(suggested(verdict.causes), merged(verdict.causes), console)


def _show_list(title: str, sentences: Sequence[str], console: Console) -> None:
    if sentences:
        console.print(Text(f"{title}:", style="bold"))
    for sentence in sentences:
        row = Table.grid(padding=(0, 1))  # so that a long sentence goes on beside its dash
        row.add_row("-", Text(sentence, overflow="fold"))
        console.print(Padding(row, (0, 0, 0, 2), expand=False))


def merged(causes: Sequence[str]) -> tuple[str, ...]:
    """Return the suggestions with those in one line that differ in nothing but one number of bits, or size of a tile.

    "has 33 bits and not 32" and "has 34 bits and not 32" become "has 33 or 34 bits and not 32".
    """
    found: dict[tuple[str, str], list[str]] = {}
    for cause in causes:
        parts = _VARIED.match(cause)
        start, number, end = parts.groups() if parts else (cause, "", "")
        found.setdefault((start, end), []).append(number)
    lines = []
    for (start, end), numbers in found.items():
        *others, last = dict.fromkeys(numbers)
        lines.append(f"{start}{', '.join(others)}{' or ' * bool(others)}{last}{end}")
    return tuple(lines)


_VARIED = re.compile(r"(.*?(?: has | tiles of | last multiple of | last tile of ))(\d+)((?! products).*)", re.DOTALL)
"""What stands before and after a number in which suggestions of one kind differ."""


def _faults(verdict: Verdict) -> list[str]:
    """Return what kernels did in place of giving outputs, once each, with the cases in which they did."""
    cases: dict[str, list[str]] = {}
    for result in verdict.failures:
        if result.fault is not None:
            cases.setdefault(result.fault, []).append(result.name)
    lines = []
    for fault, (first, *others) in cases.items():
        more = f" and {len(others)} more case{'s' * (len(others) > 1)}" if others else ""
        lines.append(f"{first}{more}: {fault}")
    hidden = len(lines) - MOST_FAULTS
    return [*lines[:MOST_FAULTS], *([f"and {hidden} more faults"] if hidden > 0 else [])]


def plain(verdict: Verdict, width: int = WIDE) -> str:
    """Return the same as text without colours."""
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        show(verdict, console)
    return _without_blanks(capture.get()).rstrip()


def headline(verdict: Verdict) -> str:
    """Return the verdict in one line."""
    total = len(verdict.results)
    if verdict.passed:
        return f"EQUAL TO THE BIT: all {total} cases"
    differing = sum(result.mismatch is not None for result in verdict.failures)
    faulty = len(verdict.failures) - differing
    parts = [f"{differing} of {total} cases differ"] if differing else []
    parts += [f"{faulty} of {total} gave nothing to compare"] if faulty else []
    return f"NOT EQUAL: {', '.join(parts)}"


def setting(verdict: Verdict) -> str:
    """Return kernel, hardware and set in one line."""
    golden = verdict.golden
    return (
        f"kernel {verdict.kernel}; hardware {golden.hardware.name}, SHA-256 {golden.hardware_sha256[:16]}...; "
        f"set of seed {golden.seed}, version {golden.version}"
    )


def suggested(causes: Sequence[str]) -> str:
    """Return the title of the causes: a suggestion each, since other computations may give the same outputs."""
    from fqtsim.identify.search import NONE_OF_THESE

    fits = any(cause != NONE_OF_THESE for cause in causes)
    return "suggestions, the outputs are what comes out where" if fits else "suggestions"


def shape_words(case: Case) -> str:
    """Return the shapes of a case's inputs: "a 5x67, b 67x8, c 5x8"."""
    return ", ".join(
        f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in sorted(shapes_of(case).items())
    )


def what_happened(result: CaseResult) -> str:
    """Return the outcome of one case in a few words."""
    if result.fault is not None:
        return result.fault
    if result.mismatch is None:
        return "equal"
    first = result.mismatch
    return f"{first.mismatches} of {first.outputs} differ"


def _not_compared(verdict: Verdict) -> dict[str, str]:
    return {result.name: ", ".join(result.not_compared) for result in verdict.results if result.not_compared}


def _listed(verdict: Verdict) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("case", "inputs", "outcome", "first at"):
        table.add_column(name)
    failures = verdict.failures
    for result in failures[:MOST_LISTED]:
        place = "" if result.mismatch is None else str(list(result.mismatch.index))
        outcome = what_happened(result) if result.fault is None else "nothing to compare"
        table.add_row(*map(Text, (result.name, shape_words(result.case), outcome, place)))
    if len(failures) > MOST_LISTED:
        table.caption = f"and {len(failures) - MOST_LISTED} more"
        table.caption_justify = "left"
    return table


def _show_case(result: CaseResult, console: Console) -> None:
    console.print()
    console.print(Text(f"case {result.name} ({shape_words(result.case)})", style="bold"))
    for line in case_lines(result):
        console.print(Text(f"  {line}"))
    if result.explanation is not None and result.explanation.steps:
        console.print(Text("  expected from:"))
        console.print(_narrowed(result.explanation.table(STEPS), console))
        console.print(Text(result.explanation.summary()))
        if result.explanation.why:
            console.print(Text(f"shown: {result.explanation.why}"))
    _show_list("patterns", result.patterns, console)


def _narrowed(table: Table, console: Console) -> Table:
    """Return a table of additions without its frame, and an empty last column, where they would cost digits."""
    if console.width < WIDE:
        table.box, table.pad_edge = None, False
        for column in table.columns:
            column.no_wrap, column.overflow = column.header not in ("stage", "note"), "fold"
        table.collapse_padding = True
        if Measurement.get(console, console.options.update(max_width=UNLIMITED), table).maximum > console.width:
            table.columns = [one for one in table.columns if one.header != "event" or any(map(str, one.cells))]
    return table


def case_lines(result: CaseResult) -> list[str]:
    """Return the first mismatch of a case, or its fault, in lines."""
    if result.mismatch is None:
        return [result.fault or "equal"]
    return result.mismatch.lines()


def case_text(result: CaseResult, causes: Sequence[str] = (), width: int = WIDE) -> str:
    """Return one case as text without colours: first mismatch, additions around it, patterns, suggestions."""
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        _show_case(result, console)
        _show_list(suggested(causes), merged(causes), console)
    return _without_blanks(capture.get()).strip()


def _without_blanks(text: str) -> str:
    """Return lines without the blanks that tables fill them up with."""
    return "\n".join(line.rstrip() for line in text.split("\n"))
