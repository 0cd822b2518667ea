"""The summaries as a terminal table, and a verdict line for each design."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fqtsim.cost import Ratio
from fqtsim.evaluate.statistics import Accuracy, Difference
from fqtsim.evaluate.summary import DesignSummary, GemmSummary, short_names
from fqtsim.evaluate.verdict import percent, short, verdict

STYLES = {"trains": "green", "loses": "yellow", "undecided": "yellow", "baseline": "dim"}


@dataclass(frozen=True)
class Column:
    """One column of the table of designs."""

    title: str
    cell: Callable[[DesignSummary], str]
    #: One sentence on what it holds.
    meaning: str


def accuracy_words(accuracy: Accuracy | None) -> str:
    """Return an accuracy with its interval in percent: `94.2 [91.3, 96.2]`; "" for None."""
    if accuracy is None:
        return ""
    return f"{100 * accuracy.mean:.1f} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def difference_words(difference: Difference | None) -> str:
    """Return a difference in points: `-0.2 +- 0.9`; "" for None."""
    if difference is None:
        return ""
    half = "" if difference.half is None else f" +- {100 * difference.half:.1f}"
    marked = " *" if difference.diverged else ""
    return f"{100 * difference.mean:+.1f}{half}{marked}"


def share_words(count: int, outputs: int) -> str:
    """Return a count with its share: `41 (< 0.01 %)`; "" where there are no outputs."""
    if not outputs:
        return ""
    return f"{short(count)} ({percent(count / outputs)})" if count else "0"


def bits_words(summary: DesignSummary) -> str:
    """Return the widest accumulator needed and where: `22 wgrad of conv1`."""
    widest = summary.widest
    return f"{widest.bits_needed} {widest.gemm} of {widest.layer}" if widest else ""


def area_words(area: Ratio) -> str:
    """Return a relative area: `0.70 x`, `~0.70 x` where it is no recorded figure, `unknown`."""
    if area.value is None:
        return "unknown"
    return f"{'' if area.exact else '~'}{area.value:.2f} x"


def _worst(summary: DesignSummary, key: str) -> str:
    return f"{max(getattr(line, key) for line in summary.gradients):.2g}" if summary.gradients else ""


def _runs(summary: DesignSummary) -> str:
    counts = [(len(summary.with_status(status)), status) for status in ("done", "diverged", "failed")]
    return ", ".join(f"{count} {status}" for count, status in counts if count)


COLUMNS = (
    Column("runs", _runs, "Runs by how they ended; one per seed."),
    Column(
        "accuracy, %",
        lambda one: accuracy_words(one.accuracy),
        "Share of test images right with its 95 % interval: over seeds, or over images where there is one seed.",
    ),
    Column(
        "against fp32",
        lambda one: difference_words(one.against_fp32),
        "Points of accuracy against fp32 with the same seeds; * where a run that diverged counts as guessing.",
    ),
    Column("against QAT", lambda one: difference_words(one.against_qat), "The same against the QAT runs."),
    Column(
        "loss",
        lambda one: "" if one.loss is None else f"{one.loss:.3g}",
        "Training loss over the last twentieth of the steps.",
    ),
    Column("altered", lambda one: share_words(one.altered, one.outputs), "GEMM outputs that the hardware changed."),
    Column(
        "transient",
        lambda one: share_words(one.transient, one.outputs),
        "Those among them that would have fitted the accumulator.",
    ),
    Column("bits needed", bits_words, "Width that holds every result of the GEMM that needs most."),
    Column(
        "gradient bias",
        lambda one: _worst(one, "bias"),
        "Squared bias of the weight gradient over its squared norm, in the worst layer; below 0 by chance only.",
    ),
    Column("variance", lambda one: _worst(one, "variance"), "Its variance over its squared norm, likewise."),
    Column(
        "area",
        lambda one: "" if one.baseline else area_words(one.area),
        "Area of a MAC over that of 8 x 8 bits with a wrapping 32-bit accumulator; ~ where it is not a recorded one.",
    ),
    Column("time", lambda one: f"{one.seconds:.1f} s", "Seconds of a run, on average."),
)


def show(console: Console, summaries: Sequence[DesignSummary], detail: bool = False) -> None:
    """Print the table of designs and the verdicts; with `detail`, every GEMM and gradient of every layer."""
    for part, columns in enumerate(_parts(console, summaries)):
        console.print(_table(summaries, columns, named=not part))
        console.print()
    if any(summary.with_status("diverged") for summary in summaries):
        console.print("* a run that diverged counts as guessing", highlight=False)
    if detail:
        for summary in summaries:
            _detail(console, summary)
    console.print(Text("Verdict", style="bold"))
    for summary in summaries:
        judged = verdict(summary)
        console.print(Text(f"  {summary.number} {judged}", style=STYLES.get(judged.kind, "red")), soft_wrap=True)


def _parts(console: Console, summaries: Sequence[DesignSummary]) -> list[list[Column]]:
    """Return the columns in as few tables as the terminal has room for, in order; only the first names designs."""
    parts: list[list[Column]] = [[]]
    unlimited = console.options.update(max_width=10_000)
    for column in COLUMNS:
        wider = [*parts[-1], column]
        table = _table(summaries, wider, named=len(parts) == 1)
        if parts[-1] and console.measure(table, options=unlimited).maximum > console.width:
            parts.append([column])
        else:
            parts[-1] = wider
    return parts


def _table(summaries: Sequence[DesignSummary], columns: Sequence[Column], named: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    names = short_names(summaries)
    table.add_column("", justify="right")
    if named:
        table.add_column("design", overflow="fold", min_width=min(36, max(map(len, names.values()), default=0)))
    for column in columns:
        table.add_column(column.title, justify="right", overflow="fold")
    for summary in summaries:
        name = [names[summary.number]] if named else []
        cells = [str(summary.number), *name, *(column.cell(summary) for column in columns)]
        table.add_row(*map(Text, cells))
    return table


def _detail(console: Console, summary: DesignSummary) -> None:
    """Print what each GEMM of each layer did, and the gradients' noise."""
    if not summary.gemms:
        return
    console.print(Text(f"{summary.number} {summary.label}", style="bold"))
    table = Table(box=None, pad_edge=False)
    titles = ("layer", "GEMM", "m x n x k", "accumulator", "altered", "transient", "bits needed", "area", "MACs a step")
    for title in titles:
        table.add_column(title, justify="left" if title in ("layer", "GEMM", "accumulator") else "right")
    for gemm in summary.gemms:
        table.add_row(*map(Text, detail_cells(gemm)))
    console.print(table)
    if summary.gradients:
        noise = Table(box=None, pad_edge=False)
        for title in ("layer", "gradient bias", "variance"):
            noise.add_column(title, justify="left" if title == "layer" else "right")
        for line in summary.gradients:
            noise.add_row(Text(line.layer), f"{line.bias:.2g}", f"{line.variance:.2g}")
        console.print(noise)
    console.print()


def detail_cells(gemm: GemmSummary) -> tuple[str, ...]:
    """Return one GEMM's line of the detail table."""
    return (
        gemm.layer, gemm.gemm, f"{gemm.m} x {gemm.n} x {gemm.k}", gemm.accumulator,
        share_words(gemm.altered, gemm.outputs), share_words(gemm.transient, gemm.outputs), str(gemm.bits_needed),
        area_words(gemm.area), short(gemm.operations),
    )  # fmt: skip
