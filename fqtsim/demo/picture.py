"""The demo's picture: loss curves, and the share of altered outputs of every GEMM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fqtsim.demo.runs import Outcome

#: Steps over which a loss is averaged before it is drawn.
WINDOW = 10


def draw(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Write the picture; return whether matplotlib is there to do it."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for outcome in outcomes:
        losses = np.array(outcome.losses)
        size = min(WINDOW, len(losses))
        smooth = np.convolve(losses, np.ones(size) / size, mode="valid")
        left.plot(np.arange(len(smooth)) + size, smooth, label=outcome.label, linewidth=1.2)
    left.set(title=f"training loss (mean of {WINDOW} steps)", xlabel="step", ylabel="loss", yscale="log")
    left.legend(fontsize=8)
    _bars(right, [outcome for outcome in outcomes if outcome.total("altered")])
    figure.savefig(path, dpi=120)
    return True


def _bars(axes: Any, outcomes: Sequence[Outcome]) -> None:
    """Draw one group of bars per GEMM, one bar per hardware that altered anything."""
    axes.set(title="outputs altered by the hardware, %")
    if not outcomes:
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
        return
    names = [f"{row['layer']}\n{row['gemm']}" for row in outcomes[0].events]
    places = np.arange(len(names))
    width = 0.8 / len(outcomes)
    for index, outcome in enumerate(outcomes):
        shares = [100 * row["altered"] / max(1, row["outputs"]) for row in outcome.events]
        axes.bar(places + index * width, shares, width, label=outcome.hardware)
    axes.set_xticks(places + 0.4 - width / 2, names, fontsize=8)
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])  # room for the legend above full bars
    axes.legend(fontsize=8, loc="upper right")
