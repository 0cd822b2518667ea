"""The figures of the page, each drawn by matplotlib from summaries."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from fqtsim.evaluate.page.svg import COLOURS, inline, style
from fqtsim.evaluate.statistics import Row
from fqtsim.evaluate.summary import FP32, DesignSummary, pareto
from fqtsim.evaluate.verdict import percent, verdict

#: Upper ends, in percent, of the classes of altered outputs after class 0, which is none.
CLASSES = (0.01, 0.1, 1.0, 10.0, 50.0, 100.0)
#: Classes from here on are strong enough for the other colour of text.
STRONG = 4
#: Tolerances shown on either side of zero, in the figure of differences; what lies outside is an arrow.
REACH = 5.0


@dataclass(frozen=True)
class Panel:
    """One small figure of a group, with what it shows."""

    title: str
    note: str
    svg: Markup


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _wrapped(one: DesignSummary, short_names: Mapping[int, str], width: int) -> str:
    """Return number and name in at most two lines; the number finds the rest in the table."""
    return textwrap.fill(f"{one.number}  {short_names[one.number]}", width, max_lines=2, placeholder=" ...")


def accuracy_by_area(summaries: Sequence[DesignSummary]) -> Markup | None:
    """Draw accuracy against area with the Pareto front; None where no design has both."""
    designs = [one for one in summaries if one.accuracy and one.area.value is not None]
    if not designs:
        return None
    with style("area"):
        figure = _figure(5.2, 3.6)
        axes = figure.subplots()
        points = [(_area(one), 100 * _mean(one)) for one in designs]
        floor = _floor(designs, summaries)
        front = [points[index] for index in pareto(points) if points[index][1] >= floor]
        if front:
            end = (1.03 * max(x for x, _ in points), front[-1][1])
            line = zip((front[0][0], floor), *front, end, strict=True)
            axes.step(*line, where="post", color=COLOURS["accent"], linewidth=1, alpha=0.6)
        for one, (x, y) in zip(designs, points, strict=True):
            _point(axes, one, x, y, floor)
        edge = 0
        for x, y, label in sorted(_labels(designs, points, floor)):
            at_edge = y <= floor  # these carry their accuracy too, and would lie on one another
            axes.annotate(label, (x, y), (6, 5 + 12 * edge * at_edge), textcoords="offset points", fontsize=9)
            edge += at_edge
        _baselines(axes, summaries)
        axes.set(xlabel="area of a MAC, relative", ylabel="accuracy, %")
        axes.margins(x=0.12, y=0.08)
        return inline(figure, "area", "Accuracy of each design against its area, with the Pareto front")


def _mean(one: DesignSummary) -> float:
    return one.accuracy.mean if one.accuracy else 0.0


def _area(one: DesignSummary) -> float:
    return one.area.value or 0.0


def _floor(designs: Sequence[DesignSummary], summaries: Sequence[DesignSummary]) -> float:
    """Return the accuracy below which a design stands at the edge, so that the others can be told apart."""
    trained = [one for one in designs if verdict(one).kind not in ("does not train", "diverges")]
    shown = [100 * one.accuracy.low for one in [*trained, *summaries] if one.accuracy and _kept(one, trained)]
    return min(shown) - 1 if trained else 0.0


def _kept(one: DesignSummary, trained: Sequence[DesignSummary]) -> bool:
    return one.baseline or one in trained


def _point(axes: Any, one: DesignSummary, x: float, y: float, floor: float) -> None:
    colour = COLOURS["accent"]
    fill = colour if one.area.exact else COLOURS["surface"]
    if y < floor:
        axes.plot([x], [floor], "v", color=COLOURS["bad"], markersize=7, clip_on=False)
    elif one.accuracy:
        errors = [[y - 100 * one.accuracy.low], [100 * one.accuracy.high - y]]
        axes.errorbar([x], [y], errors, color=colour, linewidth=1, capsize=2)
        axes.plot([x], [y], "o", color=colour, markerfacecolor=fill, markersize=6)


def _labels(
    designs: Sequence[DesignSummary], points: Sequence[tuple[float, float]], floor: float
) -> list[tuple[float, float, str]]:
    """Return (x, y, numbers), points that lie on one another with one label."""
    grouped: dict[tuple[float, float], list[tuple[float, float, str]]] = {}
    span = max(max(y for _, y in points) - floor, 1e-9)
    for one, (x, y) in zip(designs, points, strict=True):
        below = y < floor
        text = f"{one.number} ({y:.0f} %)" if below else str(one.number)
        place = (round(x, 2), -1.0 if below else round(y / span * 16))
        grouped.setdefault(place, []).append((x, max(y, floor), text))
    return [(*entries[0][:2], ", ".join(text for _, _, text in entries)) for entries in grouped.values()]


def _baselines(axes: Any, summaries: Sequence[DesignSummary]) -> None:
    """Draw the baselines as lines, named at the right end, apart from one another."""
    lines = [one for one in summaries if one.baseline and one.accuracy]
    for place, one in enumerate(sorted(lines, key=_mean)):
        axes.axhline(100 * _mean(one), color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            one.label.split()[0], (0, 100 * _mean(one)), (3, 3 if place else -9), color=COLOURS["muted"],
            xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8,
        )  # fmt: skip


def differences(summaries: Sequence[DesignSummary], short_names: Mapping[int, str]) -> Markup | None:
    """Draw each design's difference to the baseline with its interval, beside the tolerance."""
    shown = [(one, one.against[1]) for one in summaries if one.against and not one.baseline]
    if not shown:
        return None
    tolerance = shown[0][0].tolerance
    reach = max(REACH * tolerance, 5.0)
    labels = [_wrapped(one, short_names, 34) for one, _ in shown]
    with style("differences"):
        figure = _figure(5.2, 0.8 + 0.17 * sum(1.6 + label.count("\n") for label in labels))
        axes = figure.subplots()
        axes.axvspan(-tolerance, reach, color=COLOURS["accent"], alpha=0.12, linewidth=0)
        axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        for place, (one, difference) in enumerate(shown):
            middle = 100 * difference.mean
            colour = COLOURS["accent"] if verdict(one).kind == "trains" else COLOURS["bad"]
            if middle < -reach:
                axes.plot([-reach], [place], "<", color=colour, clip_on=False)
                axes.annotate(f"{middle:+.0f}", (-reach, place), (8, -3), textcoords="offset points", fontsize=8)
                continue
            if difference.half is not None:
                axes.errorbar([middle], [place], xerr=[100 * difference.half], color=colour, linewidth=1.6, capsize=2.5)
            axes.plot([middle], [place], "o", color=colour, markersize=5)
        axes.set_yticks(range(len(shown)), labels, color=COLOURS["ink"], fontsize=8)
        axes.set(xlim=(-reach, reach), ylim=(len(shown) - 0.4, -0.6), xlabel="points of accuracy against fp32")
        if any(one.against and one.against[0] != FP32 for one, _ in shown):
            axes.set_xlabel("points of accuracy against the baseline")
        axes.grid(axis="y", visible=False)
        return inline(figure, "differences", "Difference of each design to its baseline, with 95 % intervals")


def heat_class(altered: int, outputs: int) -> int:
    """Return the class of a share of altered outputs: 0 is none, then by CLASSES."""
    percent = 100 * altered / max(1, outputs)
    return 0 if not altered else 1 + next(index for index, end in enumerate(CLASSES) if percent <= end)


def heat_map(summaries: Sequence[DesignSummary], short_names: Mapping[int, str]) -> Markup | None:
    """Draw the share of altered outputs, a row for each GEMM of each layer, a column for each design."""
    designs = [one for one in summaries if one.gemms and not one.baseline]
    rows = list(dict.fromkeys((gemm.layer, gemm.gemm) for one in designs for gemm in one.gemms))
    if not rows:
        return None
    from matplotlib.colors import ListedColormap

    shares = [{(gemm.layer, gemm.gemm): gemm for gemm in one.gemms} for one in designs]
    labels = [_wrapped(one, short_names, 32) for one in designs]
    with style("heat"):
        tall = max(len(line) for label in labels for line in label.split("\n")) * 0.07
        figure = _figure(max(3.4, 1.5 + 0.46 * len(designs)), 0.4 + tall + 0.24 * len(rows))
        axes = figure.subplots()
        classes = np.full((len(rows), len(designs)), np.nan)
        for column, found in enumerate(shares):
            for line, key in enumerate(rows):
                if key in found:
                    level = heat_class(found[key].altered, found[key].outputs)
                    classes[line, column] = level
                    _cell(axes, column, line, found[key].altered, found[key].outputs, level)
        heat = ListedColormap([COLOURS[f"heat-{index}"] for index in range(len(CLASSES) + 1)])
        axes.pcolormesh(classes, cmap=heat, vmin=-0.5, vmax=len(CLASSES) + 0.5, edgecolor=COLOURS["surface"])
        axes.set_xticks(np.arange(len(designs)) + 0.5, labels, rotation=90, color=COLOURS["ink"], fontsize=8)
        axes.set_yticks(np.arange(len(rows)) + 0.5, [f"{layer} {gemm}" for layer, gemm in rows], fontsize=8)
        axes.xaxis.tick_top()
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        return inline(figure, "heat", "Share of altered outputs of every GEMM on every design", shrinks=False)


def _cell(axes: Any, column: int, line: int, altered: int, outputs: int, level: int) -> None:
    """Write a cell's percentage; at most three characters of it fit."""
    percent = 100 * altered / max(1, outputs)
    text = "0" if not altered else "<.01" if percent < 0.01 else f"{percent:.2g}" if percent < 10 else f"{percent:.0f}"
    colour = COLOURS["on-high" if level >= STRONG else "on-low"]
    axes.text(column + 0.5, line + 0.52, text, ha="center", va="center", fontsize=8, color=colour)


def partial_sums(summaries: Sequence[DesignSummary], short_names: Mapping[int, str]) -> list[Panel]:
    """Draw, for each design, the partial sums of the GEMM most of whose sums lie outside the rails."""
    panels = []
    for one in summaries:
        lines = [line for row in one.rows for line in row["partial_sums"] if sum(line["counts"])]
        if one.baseline or not lines:
            continue
        pressed = max(lines, key=lambda line: (outside(line), _filling(line)))
        same = [line for line in lines if (line["layer"], line["gemm"]) == (pressed["layer"], pressed["gemm"])]
        title = f"{one.number}  {short_names[one.number]}"
        share = f"{percent(outside(pressed))} of the sums outside" if pressed["rails"] else "no rails"
        note = f"{pressed['gemm']} of {pressed['layer']}: {share}"
        panels.append(Panel(title, note, _histogram(f"sums{one.number}", same, f"Partial sums, {title}, {note}")))
    return panels


def outside(line: Mapping[str, Any]) -> float:
    """Return the share of partial sums in bins beyond the rails."""
    if line["rails"] is None:
        return 0.0
    beyond = sum(count for count, out in zip(line["counts"], _beyond(line), strict=True) if out)
    return float(beyond / max(1, sum(line["counts"])))


def _beyond(line: Mapping[str, Any]) -> list[bool]:
    """Return which bins lie beyond the rails: those that start above the highest code or end at or below the lowest."""
    if line["rails"] is None:
        return [False] * len(line["counts"])
    low, high = line["rails"]
    edges = line["edges"]
    return [start > high or end <= low for start, end in pairwise(edges)]


def _filling(line: Mapping[str, Any]) -> float:
    """Return how much of the room between the rails the sums take."""
    room = 2.0**63 if line["rails"] is None else line["rails"][1]
    return float(max(abs(line["edges"][0]), abs(line["edges"][-1])) / room)


def _histogram(name: str, lines: Sequence[Mapping[str, Any]], description: str) -> Markup:
    """Draw one panel; the seeds' counts are added, bin by bin."""
    counts: dict[tuple[float, float], int] = {}
    beyond: dict[tuple[float, float], bool] = {}
    for line in lines:
        for bin_, count, out in zip(pairwise(line["edges"]), line["counts"], _beyond(line), strict=True):
            counts[bin_] = counts.get(bin_, 0) + count
            beyond[bin_] = out
    total = sum(counts.values())
    rails = lines[0]["rails"]
    reach = max(max(abs(start), abs(end)) for start, end in counts)
    farthest = max(reach, *(abs(rail) for rail in rails)) if rails else reach
    with style(name):
        figure = _figure(3.4, 1.8)
        axes = figure.subplots()
        for (start, end), count in counts.items():
            colour = COLOURS["bad" if beyond[start, end] else "accent"]
            axes.bar(start, 100 * count / total, end - start, align="edge", color=colour, linewidth=0)
        for rail in rails or ():
            axes.axvline(rail, color=COLOURS["ink"], linewidth=1.2)
        axes.set_xscale("symlog", base=2, linthresh=1, linscale=1)
        exponent = max(1, int(np.ceil(np.log2(farthest))))
        apart = 4 * int(np.ceil(exponent / 12))
        ticks = list(range(apart, exponent + 1, apart)) or [exponent]
        places = [-(2.0**power) for power in reversed(ticks)] + [0.0] + [2.0**power for power in ticks]
        words = [f"\N{MINUS SIGN}{_power(power)}" for power in reversed(ticks)] + ["0", *map(_power, ticks)]
        axes.set_xticks(places, words)
        axes.minorticks_off()
        axes.set(xlim=(-(2.0 ** (exponent + 1)), 2.0 ** (exponent + 1)), ylabel="% of sums")
        axes.grid(axis="x", visible=False)
        return inline(figure, name, description)


def _power(exponent: int) -> str:
    return "2" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def loss_curves(summaries: Sequence[DesignSummary], short_names: Mapping[int, str]) -> list[Panel]:
    """Draw the loss of each design, mean and range over seeds, with fp32 behind it."""
    shown = [one for one in summaries if any(row["losses"] for row in one.rows)]
    # Designs that do not train may pass any number; the others say what is worth seeing.
    telling = [one for one in shown if verdict(one).kind not in ("does not train", "diverges")] or shown
    values = [point[1] for one in telling for row in one.rows for point in row["losses"] if 0 < point[1] < np.inf]
    if not values:
        return []
    limits = (float(np.quantile(values, 0.005)) / 1.3, max(values) * 2)
    panels = []
    for one in shown:
        behind = next((other for other in shown if other.recipe == FP32 and _comparable(other, one)), None)
        title = f"{one.number}  {short_names[one.number]}"
        counts = len(one.with_status("done")), len(one.with_status("diverged"))
        note = " and ".join(f"{n} {word}" for n, word in zip(counts, ("done", "diverged"), strict=True) if n)

        def draw(axes: Any, one: DesignSummary = one, behind: DesignSummary | None = behind) -> None:
            if behind is not None and behind is not one:
                _curve(axes, behind.with_status("done"), COLOURS["muted"], band=False)
            _curve(axes, one.with_status("done"), COLOURS["accent"], band=True)
            _ends(axes, one.with_status("diverged"))

        panels.append(Panel(title, note, _loss_panel(f"loss{one.number}", draw, limits, f"Loss, {title}")))
    return panels


def _comparable(one: DesignSummary, other: DesignSummary) -> bool:
    return (one.model, one.data, one.rows[0]["steps"]) == (other.model, other.data, other.rows[0]["steps"])


def _loss_panel(name: str, draw: Callable[[Any], None], limits: tuple[float, float], description: str) -> Markup:
    from matplotlib.ticker import FuncFormatter, LogLocator

    with style(name):
        figure = _figure(3.4, 1.8)
        axes = figure.subplots()
        draw(axes)
        axes.set(yscale="log", ylim=limits, xlabel="step", ylabel="loss")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if limits[1] < 1000 * limits[0] else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        return inline(figure, name, description)


def _curve(axes: Any, rows: Sequence[Row], colour: str, band: bool) -> None:
    by_step: dict[float, list[float]] = {}
    for row in rows:
        for step, loss in row["losses"]:
            by_step.setdefault(step, []).append(loss)
    if not by_step:
        return
    steps = sorted(by_step)
    if band:
        low, high = ([end(by_step[step]) for step in steps] for end in (min, max))
        axes.fill_between(steps, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(steps, [float(np.mean(by_step[step])) for step in steps], color=colour, linewidth=1.3)


def _ends(axes: Any, rows: Sequence[Row]) -> None:
    """Draw each run that diverged on its own, up to a cross."""
    for row in rows:
        points = [point for point in row["losses"] if np.isfinite(point[1])]
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, color=COLOURS["bad"], linewidth=0.9)
            axes.plot(steps[-1:], losses[-1:], "x", color=COLOURS["bad"], markersize=6)
