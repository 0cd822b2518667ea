"""The figures of an analysis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from fqtsim.analysis.result import Analysis, Bias, Histogram
from fqtsim.analysis.table import SOURCES
from fqtsim.evaluate.page.svg import COLOURS, inline, style

#: Histograms drawn; a large network has hundreds, all of them in analysis.json.
MOST_HISTOGRAMS = 24
#: Inches of a line of a figure with a line per layer.
LINE = 0.19


def _axes(rows: int, panels: int = 1, share_y: bool = True) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * panels + 1.8, LINE * rows + 0.9), layout="constrained")
    return figure, figure.subplots(1, panels, sharey=share_y, squeeze=False)[0]


def _lines(axes: Any, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", labelsize=7, length=0)


def _logarithmic(axis: Any, base: int = 10) -> None:
    """Label an axis with plain numbers, few enough to stand side by side."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=base, numticks=5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def intervals(analysis: Analysis) -> Markup:
    """Draw every bias with its interval, in margins; empty where there is none."""
    rows = [row for row in analysis.biases if row.reference > 0 and row.source in SOURCES]
    labels = list(dict.fromkeys((row.layer, row.gemm) for row in rows))
    if not labels:
        return Markup()
    places = {label: number for number, label in enumerate(labels)}
    margin = float(analysis.settings["margin"])
    with style("intervals"):
        figure, panels = _axes(len(labels), len(SOURCES))
        for axes, source in zip(panels, SOURCES, strict=True):
            axes.set_xscale("symlog", linthresh=0.1, linscale=0.5)
            _few_ticks(axes, rows, margin)
            axes.axvspan(-1, 1, color=COLOURS["grid"], alpha=0.35, linewidth=0)
            for row in (row for row in rows if row.source == source):
                _interval(axes, row, places[row.layer, row.gemm], margin)
            axes.set(title=source, xlabel="bias, in margins")
            _lines(axes, [f"{layer} {gemm}" for layer, gemm in labels])
        return inline(figure, "intervals", "Bias of each gradient with its interval, by source", shrinks=False)


def _few_ticks(axes: Any, rows: Sequence[Bias], margin: float) -> None:
    """Mark powers of ten on either side as far as an interval reaches; those of every panel are the same."""
    reach = max(math.sqrt(max(abs(row.low), abs(row.high)) / row.reference) / margin for row in rows)
    last = max(1, math.ceil(math.log10(max(reach, 1.0))))
    ends = [10.0**power for power in range(0, last + 1, max(1, last // 2))]
    places = [-1.0, 0.0, *ends]
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.tick_params(axis="x", labelsize=7)
    axes.minorticks_off()


def _interval(axes: Any, row: Bias, place: int, margin: float) -> None:
    """Draw squared biases as signed roots: an estimate may be negative by chance."""
    low, mean, high = (
        math.copysign(math.sqrt(abs(value) / row.reference) / margin, value)
        for value in (row.low, row.squared, row.high)
    )
    colour = COLOURS["bad" if row.verdict == "biased" else "accent" if row.verdict == "negligible" else "muted"]
    marker = {"biased": "D", "negligible": "o", "undecided": "s"}[row.verdict]
    axes.plot([low, high], [place, place], color=colour, linewidth=1.2)
    axes.plot([mean], [place], marker, color=colour, markersize=3.5)


def variances(analysis: Analysis) -> Markup:
    """Draw the variance by random bits beside that by mini-batches, a line a layer; empty where all are 0."""
    rows = analysis.variances
    if not any(row.quantization > 0 or row.minibatch > 0 for row in rows):
        return Markup()
    with style("variances"):
        figure, (axes,) = _axes(len(rows))
        axes.set_xscale("log")
        _logarithmic(axes.xaxis)
        for place, row in enumerate(rows):
            if row.quantization > 0:
                low = max(row.low, row.quantization * 1e-3)
                axes.plot([low, row.high], [place, place], color=COLOURS["accent"], linewidth=1.2)
                axes.plot([row.quantization], [place], "o", color=COLOURS["accent"], markersize=3.5)
            if row.minibatch > 0:
                axes.plot([row.minibatch], [place], "|", color=COLOURS["ink"], markersize=9)
        axes.plot([], [], "o", color=COLOURS["accent"], markersize=3.5, label="random bits")
        axes.plot([], [], "|", color=COLOURS["ink"], markersize=9, label="mini-batches")
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
        axes.set(xlabel="variance of the weight's gradient (gradient squared)")
        _lines(axes, [row.layer for row in rows])
        return inline(figure, "variances", "Variance by random bits beside variance by mini-batches")


def curve(analysis: Analysis) -> Markup:
    """Draw variance against bits, the line being that of the mini-batches; empty without a curve."""
    points = [point for point in analysis.curve if not point.stopped and point.variance > 0]
    if not points:
        return Markup()
    from matplotlib.figure import Figure

    colours = {"ptq": "bad", "psq": "accent", "bhq": "ink"}
    styles = {"aligned": ("-", "o"), "float_offset": ("--", "s")}
    with style("curve"):
        figure = Figure(figsize=(6.2, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.set_yscale("log")
        _logarithmic(axes.yaxis)
        for name, zero in dict.fromkeys((point.quantizer, point.zero) for point in points):
            line = sorted((p for p in points if (p.quantizer, p.zero) == (name, zero)), key=lambda p: -p.bits)
            bits, middle = [p.bits for p in line], [p.variance for p in line]
            errors = [[p.variance - max(p.low, p.variance * 1e-3) for p in line], [p.high - p.variance for p in line]]
            dash, marker = styles.get(zero, (":", "^"))
            look: dict[str, Any] = {
                "color": COLOURS[colours.get(name, "muted")],
                "linestyle": dash,
                "marker": marker,
                "markersize": 4,
            }
            axes.errorbar(bits, middle, errors, linewidth=1.2, capsize=2, label=f"{name}, {zero}", **look)
        if analysis.minibatch > 0:
            axes.axhline(analysis.minibatch, color=COLOURS["muted"], linewidth=1.6, label="QAT: mini-batches")
        axes.invert_xaxis()
        axes.set_xticks(sorted({point.bits for point in points}))
        axes.set(xlabel="bits of Q_b2", ylabel="variance, all weights")
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        return inline(figure, "curve", "Variance of the gradient against bits of the gradient quantizer")


def bounds(analysis: Analysis) -> Markup:
    """Draw each quantizer's variance as a share of its bound; empty where there is none."""
    rows = [row for row in analysis.bounds if row.bound > 0]
    if not rows:
        return Markup()
    with style("bounds"):
        figure, (axes,) = _axes(len(rows))
        for place, row in enumerate(rows):
            colour = COLOURS["accent" if row.measured <= row.bound else "bad"]
            axes.plot([0, row.measured / row.bound], [place, place], color=colour, linewidth=3, alpha=0.8)
        axes.axvline(1, color=COLOURS["ink"], linewidth=1)
        axes.set_xlim(left=0)
        axes.set(xlabel="measured variance over its bound")
        _lines(axes, [f"{row.layer} {row.port}" for row in rows])
        return inline(figure, "bounds", "Variance of each gradient quantizer over its bound")


def histograms(analysis: Analysis) -> Markup:
    """Draw the codes and the step sizes of the first gradient quantizers; empty where there is none."""
    shown = [one for one in analysis.histograms[:MOST_HISTOGRAMS] if one.counts]
    if not shown:
        return Markup()
    from matplotlib.figure import Figure

    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with style("histograms"):
        figure = Figure(figsize=(2.7 * columns, 1.7 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, one in zip(panels, shown, strict=False):
            _histogram(axes, one)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        return inline(figure, "histograms", "Histograms of codes and step sizes", shrinks=False)


def _histogram(axes: Any, one: Histogram) -> None:
    if one.kind == "steps" and one.edges[0] > 0:
        axes.set_xscale("log", base=2)
        _logarithmic(axes.xaxis, 2)
    axes.stairs(one.counts, one.edges, fill=True, color=COLOURS["accent"])
    axes.set_title(f"{one.layer} {one.port}", fontsize=7)
    axes.set_xlabel("code" if one.kind == "codes" else "step size (gradient)", fontsize=7)
    axes.set_ylabel("elements", fontsize=7)
    axes.tick_params(labelsize=6)
