"""An analysis as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fqtsim.analysis.result import Analysis, Bias
from fqtsim.analysis.table import SOURCES, percent, share, verdict_lines
from fqtsim.errors import InputError
from fqtsim.evaluate.page.environment import environment
from fqtsim.train.rundir import write_text

#: Upper ends of the classes of a heat map: shares of the gradient's norm, or of a layer's variance.
CLASSES = (0.001, 0.003, 0.01, 0.03, 0.1)
GEMMS = ("wgrad", "dgrad")
#: Settings of more characters stand at the end of the page.
SHORT = 40


def write_page(analysis: Analysis, path: Path, command: str = "") -> None:
    """Write the page of an analysis; an old one is replaced whole, never in part.

    `command` is what was typed. Raises InputError where the file cannot be written, MissingPackage without matplotlib
    or jinja2.
    """
    text = render(analysis, command)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; choose another folder or make room") from None


def render(analysis: Analysis, command: str = "") -> str:
    """Return the page as HTML. Raises MissingPackage without matplotlib or jinja2."""
    template = environment("fqtsim.analysis.page", figures=True).get_template("analysis.html")
    return str(template.render(**_context(analysis, command)))


def _context(analysis: Analysis, command: str) -> dict[str, Any]:
    from fqtsim.analysis.page import figures

    settings = analysis.settings
    return {
        "title": f"Gradients of {settings.get('model', 'a network')} under {settings.get('recipe', 'a recipe')}",
        "command": command,
        "setting": [(word, text) for word, text in _settings(settings) if len(text) <= SHORT],
        "details": [(word, text) for word, text in _settings(settings) if len(text) > SHORT],
        "estimand": [(str(word), _words(value)) for word, value in dict(settings.get("estimand", {})).items()],
        "verdicts": verdict_lines(analysis),
        "sources": SOURCES,
        "gemms": GEMMS,
        "bias_rows": _bias_rows(analysis.biases),
        "classes": [f"up to {percent(end)}" for end in CLASSES] + ["more"],
        "margin": percent(float(settings["margin"])),
        "intervals": figures.intervals(analysis),
        "variances": figures.variances(analysis),
        "curve": figures.curve(analysis),
        "columns": _columns(analysis),
        "contribution_rows": _contribution_rows(analysis),
        "bounds": figures.bounds(analysis),
        "histograms": figures.histograms(analysis),
        "histograms_left": max(0, len(analysis.histograms) - figures.MOST_HISTOGRAMS),
        **_events(analysis.events),
    }


def _settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that say something, in words."""
    found = [(str(word), _words(value)) for word, value in settings.items() if word != "estimand"]
    return [(word, text) for word, text in found if text not in ("", "None")]


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(one)}" for key, one in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list | tuple) else str(value)


def heat(value: float) -> int:
    """Return the class of a share: 0..5, by CLASSES."""
    return next((number for number, end in enumerate(CLASSES) if abs(value) <= end), len(CLASSES))


def _bias_rows(biases: Sequence[Bias]) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Return a line a layer: a cell for each source and GEMM, None where nothing was measured."""
    found = {(row.source, row.layer, row.gemm): row for row in biases}
    lines = []
    for layer in dict.fromkeys(row.layer for row in biases):
        rows = [found.get((source, layer, gemm)) for source in SOURCES for gemm in GEMMS]  # type: ignore[arg-type]
        lines.append((layer, [None if row is None else _bias_cell(row) for row in rows]))
    return lines


def _bias_cell(row: Bias) -> dict[str, Any]:
    shown = share(row, row.high if row.verdict == "undecided" else row.squared)
    deviation = percent(math.sqrt(max(row.squared, 0.0) / row.variance)) if row.variance > 0 else "none: not random"
    return {
        "text": percent(shown),
        "mark": {"negligible": "", "biased": " !", "undecided": " ?"}[row.verdict],
        "heat": heat(shown),
        "hint": f"{row.source}, {row.gemm} of {row.layer}: {row.verdict}; {percent(share(row, row.squared))} of the "
        f"norm ({percent(share(row, row.low))} to {percent(share(row, row.high))}); "
        f"of the standard deviation: {deviation}",
    }


def _columns(analysis: Analysis) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row.quantizer, row.port) for row in analysis.contributions))


def _contribution_rows(analysis: Analysis) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Return a line a weight: what each quantizer adds, as a share of what they add in all."""
    found = {(row.quantizer, row.port, row.layer): row for row in analysis.contributions}
    lines = []
    for layer in dict.fromkeys(row.layer for row in analysis.contributions):
        total = sum(abs(row.variance) for row in analysis.contributions if row.layer == layer)
        cells: list[dict[str, Any] | None] = []
        for quantizer, port in _columns(analysis):
            row = found.get((quantizer, port, layer))
            part = row.variance / total if row is not None and total > 0 else 0.0
            cells.append(
                None if row is None else {
                    "text": f"{100 * part:.3g}", "mark": "", "heat": heat(part),
                    "hint": f"{port} of {quantizer} adds {row.variance:.3g} ({row.low:.3g} to {row.high:.3g}) to the "
                    f"variance of {layer}",
                }
            )  # fmt: skip
        lines.append((layer, cells))
    return lines


def _events(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the columns and rows of the table of events: what is one word or number in any row."""
    keys = [key for key in dict.fromkeys(key for row in events for key in row) if not _nested(events, key)]
    return {"event_columns": keys, "event_rows": [[_plain(row.get(key)) for key in keys] for row in events]}


def _nested(events: Sequence[dict[str, Any]], key: str) -> bool:
    return any(isinstance(row.get(key), dict | list | tuple) for row in events)


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
