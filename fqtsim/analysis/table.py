"""What an analysis found, on a terminal: the verdict in words, then a line per layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from fqtsim.analysis.result import Analysis, Bias

SOURCES = ("gradient quantization", "backward hardware", "forward hardware")


def share(row: Bias, squared: float) -> float:
    """Return a squared bias as a share of the norm of the reference gradient; 0 where it is not positive."""
    return math.sqrt(max(squared, 0.0) / row.reference) if row.reference > 0 else math.inf if squared > 0 else 0.0


def percent(value: float) -> str:
    """Return a share in percent, to two digits: 0.12 %."""
    return f"{100 * value:.2g} %"


def verdict_lines(analysis: Analysis) -> list[str]:
    """Return what each source does to the gradients, a sentence each."""
    margin = percent(float(analysis.settings["margin"]))
    lines = []
    for source in SOURCES:
        rows = [row for row in analysis.biases if row.source == source]
        biased = sorted((row for row in rows if row.verdict == "biased"), key=lambda row: -share(row, row.squared))
        open_rows = [row for row in rows if row.verdict == "undecided"]
        if biased:
            worst = biased[0]
            lines.append(
                f"{source}: biased in {len(biased)} of {len(rows)} gradients, most in {worst.gemm} of {worst.layer}: "
                f"{percent(share(worst, worst.squared))} of its norm "
                f"({percent(share(worst, worst.low))} to {percent(share(worst, worst.high))})"
            )
        elif not rows or not open_rows:
            lines.append(f"{source}: no bias beyond {margin} of the norm in any gradient")
        if open_rows:
            need = max(map(repeats_needed, open_rows, [analysis] * len(open_rows)))
            lines.append(
                f"{source}: {len(open_rows)} of {len(rows)} gradients undecided at a margin of {margin}; "
                f"about {need} repeats would decide"
            )
    return lines


def repeats_needed(row: Bias, analysis: Analysis) -> int:
    """Return about how many repeats shrink the interval of a row to the margin: its width falls as 1 / repeats."""
    room = float(analysis.settings["margin"]) ** 2 * row.reference
    repeats = float(analysis.settings["repeats"])
    return math.ceil(repeats * max(1.0, (row.high - row.squared) / room)) if room > 0 else math.ceil(repeats)


def show(analysis: Analysis, console: Console, detail: bool = False) -> None:
    """Print the verdict and the table; with `detail` every row of bias, contribution, bound and curve."""
    settings = analysis.settings
    console.print(
        f"{settings['batches']} batches of {settings['batch']}, {settings['repeats']} repeats each; reference: "
        f"{settings['estimand']['reference']}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for line in verdict_lines(analysis):
        console.print(f"verdict    {line}", highlight=False, soft_wrap=True)
    console.print(_layers(analysis))
    if detail:
        console.print(_biases(analysis.biases))
        if analysis.contributions:
            console.print(_contributions(analysis))
        console.print(_bounds(analysis))
    if analysis.curve:
        console.print(_curve(analysis))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _layers(analysis: Analysis) -> Table:
    """One line a layer: bias of both gradients by source, and quantization variance over mini-batch variance."""
    found: dict[tuple[str, str, str], Bias] = {(row.source, row.layer, row.gemm): row for row in analysis.biases}

    def cell(source: str, layer: str, gemm: str) -> str:
        row = found.get((source, layer, gemm))
        if row is None:
            return "-"
        mark = {"negligible": "", "biased": " !", "undecided": " ?"}[row.verdict]
        return f"{percent(share(row, row.high if row.verdict == 'undecided' else row.squared))[:-2]}{mark}"

    rows = []
    for one in analysis.variances:
        ratio = f"{one.quantization / one.minibatch:.2g}" if one.minibatch > 0 else "-"
        cells = [f"{cell(source, one.layer, 'wgrad')} / {cell(source, one.layer, 'dgrad')}" for source in SOURCES]
        rows.append([one.layer, *cells, ratio])
    title = "Bias of wgrad / dgrad, % of the gradient's norm; ! biased, ? undecided (upper end)"
    return _table(title, ("layer", "quantization", "backward hw", "forward hw", "variance ratio"), rows)


def _biases(rows: Sequence[Bias]) -> Table:
    return _table(
        "Bias, shares of the norm of the reference gradient, and of the standard deviation",
        ("layer", "gemm", "source", "bias", "from", "to", "of std", "verdict"),
        (
            (
                row.layer, row.gemm, row.source, percent(share(row, row.squared)), percent(share(row, row.low)),
                percent(share(row, row.high)),
                percent(math.sqrt(max(row.squared, 0.0) / row.variance)) if row.variance > 0 else "-", row.verdict,
            )
            for row in rows
        ),
    )  # fmt: skip


def _contributions(analysis: Analysis) -> Table:
    return _table(
        "Variance that one quantizer adds to the weight gradient of a layer (Theorem 2)",
        ("quantizer of", "port", "weight of", "variance", "from", "to"),
        (
            (row.quantizer, row.port, row.layer, f"{row.variance:.3g}", f"{row.low:.3g}", f"{row.high:.3g}")
            for row in analysis.contributions
        ),
    )


def _bounds(analysis: Analysis) -> Table:
    return _table(
        "Variance of each quantizer beside its bound",
        ("layer", "port", "measured", "bound", "share"),
        (
            (row.layer, row.port, f"{row.measured:.3g}", f"{row.bound:.3g}",
             f"{row.measured / row.bound:.2f}" if row.bound > 0 else "-")
            for row in analysis.bounds
        ),
    )  # fmt: skip


def _curve(analysis: Analysis) -> Table:
    def ratio(variance: float) -> str:
        return f"{variance / analysis.minibatch:.3g}" if analysis.minibatch > 0 else "-"

    return _table(
        "Quantization variance over mini-batch variance, all weights; Q_b2 as named, the rest the recipe's",
        ("quantizer", "zero", "bits", "ratio", "from", "to"),
        (
            (row.quantizer, row.zero, str(row.bits), *([row.stopped, "", ""] if row.stopped else
             [ratio(row.variance), ratio(row.low), ratio(row.high)]))
            for row in analysis.curve
        ),
    )  # fmt: skip
