"""A verdict on a terminal, and as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fqtsim.golden.case import Case
from fqtsim.golden.check import CaseResult, Verdict, shapes_of

STEPS = 8
"""Additions shown around the first that overflows."""
WIDE = 110
"""Columns of a terminal from which tables have frames."""
MOST_LISTED = 12
"""Failing cases that are listed; the rest is counted."""


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
    if verdict.shown is not None:
        _show_case(verdict.shown, console)
    _show_list("over all cases", verdict.patterns, console)
    _show_list(suggested(verdict.causes), verdict.causes, console)


def _show_list(title: str, sentences: Sequence[str], console: Console) -> None:
    if sentences:
        console.print(Text(f"{title}:", style="bold"))
    for sentence in sentences:
        console.print(Text(f"  - {sentence}"))


def plain(verdict: Verdict, width: int = WIDE) -> str:
    """Return the same as text without colours."""
    console = Console(width=width, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        show(verdict, console)
    return capture.get().rstrip()


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
        table.add_row(*map(Text, (result.name, shape_words(result.case), what_happened(result), place)))
    if len(failures) > MOST_LISTED:
        table.caption = f"and {len(failures) - MOST_LISTED} more"
        table.caption_justify = "left"
    return table


def _show_case(result: CaseResult, console: Console) -> None:
    console.print()
    console.print(Text(f"case {result.name} ({shape_words(result.case)})", style="bold"))
    for line in case_lines(result):
        console.print(Text(f"  {line}"))
    if result.explanation is not None:
        console.print(Text("  expected from:"))
        console.print(_narrowed(result.explanation.table(STEPS), console.width))
        console.print(Text(result.explanation.summary()))
    _show_list("patterns", result.patterns, console)


def _narrowed(table: Table, width: int) -> Table:
    """Return a table of additions without its frame where the frame would cost digits of the codes."""
    if width < WIDE:
        table.box, table.pad_edge = None, False
        for column in table.columns:
            column.no_wrap, column.overflow = True, "fold"
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
        _show_list(suggested(causes), causes, console)
    return capture.get().strip()
