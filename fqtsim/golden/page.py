"""A verdict as one HTML file that needs nothing else: no network, no other file, light and dark."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fqtsim.api.explain import Explanation
from fqtsim.evaluate.page.environment import environment
from fqtsim.golden.case import Array
from fqtsim.golden.check import CaseResult, Verdict, differs
from fqtsim.golden.files import replace_file
from fqtsim.golden.terminal import STEPS, headline, merged, shape_words, suggested, what_happened

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_SHOWN = 12
"""Failing cases shown with a map, those that the terminal shows first; all are in the table."""
MOST_CELLS = 64
"""Cells of a map along each side; a larger output has several elements in a cell."""
SIDE, LARGEST_CELL, MARGIN = 360, 36, 30
"""Pixels."""


def write_page(verdict: Verdict, path: str | os.PathLike[str]) -> None:
    """Write the page, whole or not at all. Raises InputError for a bad path, MissingPackage without jinja2."""
    replace_file(Path(path), render(verdict).encode())


def render(verdict: Verdict) -> str:
    """Return the page as HTML. Raises MissingPackage without jinja2."""
    template = environment("fqtsim.golden", figures=False).get_template("verdict.html")
    return str(template.render(**_context(verdict)))


def _context(verdict: Verdict) -> dict[str, Any]:
    golden = verdict.golden
    shown = verdict.shown
    # Those that are explained before the larger ones, of which there is only the map.
    failures = sorted(verdict.failures, key=lambda result: (result is not shown, result.explanation is None))
    return {
        "title": f"{verdict.kernel} against {golden.hardware.name}",
        "headline": headline(verdict),
        "passed": verdict.passed,
        "setting": [
            ("kernel", verdict.kernel), ("hardware", golden.hardware.name), ("SHA-256", golden.hardware_sha256[:16]),
            ("cases", str(len(verdict.results))), ("seed", str(golden.seed)), ("version", golden.version),
        ],
        "patterns": verdict.patterns,
        "causes": merged(verdict.causes),
        "causes_title": suggested(verdict.causes).capitalize(),
        "fits": suggested(verdict.causes) != suggested(()),
        "not_compared": [(one.name, ", ".join(one.not_compared)) for one in verdict.results if one.not_compared],
        "shown": [_shown(result) for result in failures[:MOST_SHOWN]],
        "cases": [_row(result) for result in verdict.results],
    }  # fmt: skip


def _row(result: CaseResult) -> tuple[str, str, str, bool, str]:
    reached = ", ".join(f"{count} {name}" for name, count in result.case.events.items() if count)
    return result.name, shape_words(result.case), what_happened(result), result.equal, reached


def _shown(result: CaseResult) -> dict[str, Any]:
    first, explanation = result.mismatch, result.explanation
    shown: dict[str, Any] = {
        "name": result.name, "inputs": shape_words(result.case), "fault": result.fault, "patterns": result.patterns,
        "map": None, "map_words": "", "first": None, "steps": [], "heads": [], "summary": "", "why": "", "sum": True,
    }  # fmt: skip
    if first is not None:
        wrong = _as_matrix(differs(result.case.expected[first.output], result.observed[first.output]))
        shown["map"], shown["map_words"] = mismatch_map(wrong, f"Wrong elements of {first.output} of {result.name}")
        lines = first.lines()
        shown["first"] = {
            "place": f"{first.output}[{', '.join(map(str, first.index))}]",
            "count": f"{first.mismatches} of {first.outputs} differ",
            "codes": [_code_cells(line) for line in lines[1:]],
        }
    if explanation is not None:
        table, is_sum = explanation.table(STEPS), isinstance(explanation, Explanation)
        columns = [[str(cell) for cell in column.cells] for column in table.columns]
        rows = list(zip(*columns, strict=True))
        shown["heads"], shown["why"] = [str(column.header) for column in table.columns], explanation.why
        shown["steps"] = [(row, is_sum and bool(row[-1])) for row in rows]
        left = len(explanation.steps) - len(rows)
        hidden = f"{left} more addition{'s' * (left > 1)}; " if left else ""
        shown["summary"] = hidden + explanation.summary()
        shown["sum"] = is_sum
    return shown


def _code_cells(line: str) -> tuple[str, str, str]:
    """Return word, code and hexadecimal of a line of a mismatch."""
    word, code, rest = line.split(maxsplit=2)
    return word, code, rest.replace("(", "", 1).replace(")", "", 1)


def _as_matrix(wrong: Array) -> Array:
    """Return an output of any dimensions as rows and columns: the first dimension by all others."""
    if wrong.ndim == 2:
        return wrong
    if wrong.ndim < 2:
        width = max(1, int(np.ceil(np.sqrt(wrong.size))))
        padded = np.zeros(-(-wrong.size // width) * width, bool)
        padded[: wrong.size] = wrong.ravel()
        return padded.reshape(-1, width)
    return wrong.reshape(wrong.shape[0] * wrong.shape[1], -1)


def mismatch_map(wrong: Array, description: str) -> tuple[Markup, str]:
    """Return the map of a matrix of wrong elements as SVG, and in words what a cell of it is.

    Cells with no wrong element are pale; the others are the stronger, the larger the share of wrong ones.
    """
    from markupsafe import Markup

    rows, cols = wrong.shape
    tall, wide = -(-rows // MOST_CELLS), -(-cols // MOST_CELLS)
    down, across = -(-rows // tall), -(-cols // wide)
    side = min(LARGEST_CELL, SIDE / max(down, across))
    # Long and thin outputs get cells that are no squares, so that they can be seen at all.
    high, broad = max(side, min(LARGEST_CELL, 60 / down)), max(side, min(LARGEST_CELL, 60 / across))
    width, height = MARGIN + broad * across + 8, MARGIN + high * down + 8
    gap = 0.08 * min(high, broad)
    parts = [
        f'<svg role="img" aria-label="{escape(description)}" viewBox="0 0 {width:.1f} {height:.1f}" '
        f'style="max-width: {width:.0f}px">',
        f'<rect x="{MARGIN}" y="{MARGIN}" width="{broad * across:.2f}" height="{high * down:.2f}" '
        'style="fill: var(--heat-0); stroke: var(--grid)"/>',
    ]
    for row in range(down):
        for col in range(across):
            cell = wrong[row * tall : (row + 1) * tall, col * wide : (col + 1) * wide]
            share = float(cell.mean())
            if share:
                x, y = MARGIN + col * broad + gap / 2, MARGIN + row * high + gap / 2
                parts.append(
                    f'<rect x="{x:.2f}" y="{y:.2f}" width="{broad - gap:.2f}" height="{high - gap:.2f}" '
                    f'style="fill: var(--bad); opacity: {0.35 + 0.65 * share:.2f}"/>'
                )
    parts += _labels(rows, cols, broad * across, high * down)
    words = "" if tall == wide == 1 else f"in cells of {tall} x {wide} elements"
    return Markup("".join([*parts, "</svg>"])), words


def _labels(rows: int, cols: int, width: float, height: float) -> list[str]:
    """Return the numbers of the first and last row and column."""
    found = [f'<text x="{MARGIN}" y="{MARGIN - 8}">0</text>']
    if cols > 1:
        found.append(f'<text x="{MARGIN + width:.1f}" y="{MARGIN - 8}" text-anchor="end">{cols - 1}</text>')
    found.append(f'<text x="{MARGIN - 6}" y="{MARGIN + 10}" text-anchor="end">0</text>')
    if rows > 1:
        found.append(f'<text x="{MARGIN - 6}" y="{MARGIN + height:.1f}" text-anchor="end">{rows - 1}</text>')
    return found
