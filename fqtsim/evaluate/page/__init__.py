"""The report as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fqtsim.cost import RECORDED
from fqtsim.cost.area import BASELINE_WORDS
from fqtsim.cost.traffic import RULE
from fqtsim.errors import InputError
from fqtsim.evaluate.page.environment import environment
from fqtsim.evaluate.statistics import Row
from fqtsim.evaluate.summary import DesignSummary, short_names
from fqtsim.evaluate.table import COLUMNS, area_words, detail_cells
from fqtsim.evaluate.verdict import points_words, short, verdict
from fqtsim.train.rundir import write_text

if TYPE_CHECKING:
    from markupsafe import Markup


def write_page(summaries: Sequence[DesignSummary], rows: Iterable[Row], path: Path, title: str, command: str) -> None:
    """Write the page of a sweep or search; an old one is replaced whole, never in part.

    `rows` are the runs behind the summaries, `command` is what was typed. Raises InputError where the file cannot be
    written, MissingPackage without matplotlib or jinja2.
    """
    text = render(summaries, list(rows), title, command)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; choose another folder or make room") from None


def render(summaries: Sequence[DesignSummary], rows: Sequence[Row], title: str, command: str) -> str:
    """Return the page as HTML. Raises MissingPackage without matplotlib or jinja2."""
    pages = environment("fqtsim.evaluate.page", figures=True)
    pages.filters |= {"signs": _signs, "breaks": _breaks}
    return str(pages.get_template("page.html").render(**_context(summaries, rows, title, command)))


def _signs(text: object) -> str:
    """Return text with the typographic plus-minus and times of a page."""
    return re.sub(r"(?<=\d) x(?=\s|$)", " \N{MULTIPLICATION SIGN}", str(text)).replace("+-", "\N{PLUS-MINUS SIGN}")


def _breaks(text: str) -> Markup:
    """Return a name that a browser may break after its underscores, dots and equals signs."""
    from markupsafe import Markup  # comes with jinja2

    return Markup("<wbr>").join(re.findall(r"[^_.=]*[_.=]?", text))


def _context(summaries: Sequence[DesignSummary], rows: Sequence[Row], title: str, command: str) -> dict[str, Any]:
    from fqtsim.evaluate.page import figures

    names = short_names(summaries)
    return {
        "title": title,
        "command": command,
        "setting": _setting(summaries, rows),
        "verdicts": [(one, verdict(one)) for one in summaries],
        "columns": COLUMNS,
        "summaries": summaries,
        "names": names,
        "problems": [row for row in rows if row["status"] != "done" or row["message"]],
        "area_figure": figures.accuracy_by_area(summaries),
        "difference_figure": figures.differences(summaries, names),
        "heat_map": figures.heat_map(summaries, names),
        "classes": [(0, "none"), *((i, f"up to {end:g} %") for i, end in enumerate(figures.CLASSES, 1))],
        "partial_sums": figures.partial_sums(summaries, names),
        "loss_curves": figures.loss_curves(summaries, names),
        "costs": _costs(summaries),
        "source": RECORDED,
        "area_baseline": BASELINE_WORDS,
        "traffic_rule": RULE,
        "detail_cells": detail_cells,
        "area_words": area_words,
        "short": short,
    }


def _setting(summaries: Sequence[DesignSummary], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return what all designs share, in pairs of a word and its values."""

    def values(key: str) -> str:
        return ", ".join(str(value) for value in dict.fromkeys(row[key] for row in rows)) or "none"

    seeds = sorted({row["seed"] for row in rows})
    return [
        ("designs", str(len(summaries))), ("runs", str(len(rows))), ("model", values("model")),
        ("data", values("data")), ("steps", values("steps")), ("batch", values("batch")),
        ("seeds", ", ".join(map(str, seeds))), ("test images", str(max((row["tested"] for row in rows), default=0))),
        ("tolerance", points_words(summaries[0].tolerance) if summaries else "none"),
    ]  # fmt: skip


def _costs(summaries: Sequence[DesignSummary]) -> list[dict[str, Any]]:
    """Return, for each design, its area with the way it was found, and what one training step computes and moves."""
    found = []
    for one in summaries:
        if one.baseline:
            continue
        results = [gemm.result_bits for gemm in one.gemms]
        widths = sorted({gemm.register_bits for gemm in one.gemms if gemm.register_bits is not None})
        found.append(
            {
                "summary": one,
                "operations": sum(gemm.operations for gemm in one.gemms),
                "operand_bits": sum(gemm.operand_bits for gemm in one.gemms),
                "result_bits": None if None in results else sum(bits or 0.0 for bits in results),
                "register_bits": ", ".join(map(str, widths)) or "exact",
            }
        )
    return found
