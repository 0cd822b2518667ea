"""What the rows of the training sweep say: differences to QAT, the hypotheses, the table and the figure."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness
import numpy as np

Row = Mapping[str, Any]
#: recipe -> seed -> row.
Runs = Mapping[str, Mapping[int, Row]]

QUANTIZERS = ("ptq", "psq", "bhq")
BITS = (8, 7, 6, 5, 4)
#: Form of the zero of Q_b2, the quantizer under test -> the suffix of its recipes.
FORMS = {"aligned": "", "float_offset": "_offset"}
#: The authors' zero-aligned gradient PTQ.
AUTHORS = tuple(f"authors_ptq{bits}" for bits in (8, 7, 6, 5, 4))
#: Part of the steps whose mean training loss is compared: mid-training, as the authors' logs show their order.
MIDDLE = (0.25, 0.75)
#: The error says so where the authors' formula has no step (it makes NaN there), which is no divergence.
HOLE = "authors' PTQ has no step"
#: The epoch of the authors' own runs that the table shows: one from which their order is stable.
AUTHORS_EPOCH = 10
AUTHORS_LOGS = Path(__file__).with_name("authors_cifar10.csv")

HYPOTHESES = (
    "Training loss (mid-training): PTQ4 > PTQ5 > PSQ4 > BHQ4, as in the authors' logs; in each column of zero forms, "
    "and in the forms that the authors used (PTQ aligned, PSQ and BHQ float_offset).",
    "PSQ and BHQ of 5 bits or more cannot be told from QAT: every interval of the difference in training loss holds 0 "
    "(family-wise 95 % over the 16 comparisons).",
    "Aligning the zero shrinks the loss that 4-bit PTQ costs.",
)


def name_of(quantizer: str, bits: int, form: str) -> str:
    """Return the shipped recipe."""
    return f"{quantizer}{bits}{FORMS[form]}"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with half its interval (Student's t); no interval for fewer than two seeds."""

    mean: float
    half: float | None
    seeds: int

    @property
    def says(self) -> str:
        """`above`, `below` or `undecided` against 0."""
        if self.half is None or abs(self.mean) <= self.half:
            return "undecided"
        return "above" if self.mean > 0 else "below"

    def show(self, digits: int, sign: bool = True) -> str:
        """Return `mean +- half`."""
        mean = f"{self.mean:+.{digits}f}" if sign else f"{self.mean:.{digits}f}"
        return mean if self.half is None else f"{mean} +- {self.half:.{digits}f}"


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate | None:
    """Return mean and interval of one value a seed; None where there is none."""
    from scipy import stats

    if not values:
        return None
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, len(values))
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return Estimate(mean, float(quantile * np.std(values, ddof=1) / np.sqrt(len(values))), len(values))


def middle_loss(row: Row) -> float | None:
    """Return the mean training loss of the middle half of the steps; None where the run ended before."""
    points = np.array(row["losses"], np.float64).reshape(-1, 2)
    low, high = (part * row["steps"] for part in MIDDLE)
    if not len(points) or points[-1, 0] < high:
        return None
    return float(points[(points[:, 0] > low) & (points[:, 0] <= high), 1].mean())


def last_loss(row: Row) -> float | None:
    """Return the mean training loss of the last quarter of the steps; None for a run that did not end."""
    points = np.array(row["losses"], np.float64).reshape(-1, 2)
    return float(points[points[:, 0] > MIDDLE[1] * row["steps"], 1].mean()) if row["status"] == "done" else None


def accuracy(row: Row) -> float | None:
    """Return the share of test images classified right; None for a run that did not end."""
    return None if row["status"] != "done" else float(row["accuracy"])


def difference(runs: Runs, first: str, second: str, measure: Any = middle_loss, confidence: float = 0.95) -> Any:
    """Return the Estimate of `first` less `second` over the seeds that have both; None where no seed has."""
    pairs = [(measure(row), measure(runs[second][seed])) for seed, row in runs[first].items() if seed in runs[second]]
    return estimate([a - b for a, b in pairs if a is not None and b is not None], confidence)


def ended(rows: Mapping[int, Row]) -> dict[str, list[int]]:
    """Return how runs ended -> their seeds: done, hole (the authors' formula has no step), diverged, failed."""
    found: dict[str, list[int]] = {"done": [], "hole": [], "diverged": [], "failed": []}
    for seed, row in sorted(rows.items()):
        hole = row["status"] == "diverged" and HOLE in row["message"]
        found["hole" if hole else row["status"]].append(seed)
    return found


def orders(runs: Runs) -> list[dict[str, Any]]:
    """Return the links of the expected order of losses, for each column and for the authors' own forms."""
    columns = {
        "aligned": [name_of(*pair, "aligned") for pair in (("ptq", 4), ("ptq", 5), ("psq", 4), ("bhq", 4))],
        "float_offset": [name_of(*pair, "float_offset") for pair in (("ptq", 4), ("ptq", 5), ("psq", 4), ("bhq", 4))],
        "the authors' forms": ["authors_ptq4", "authors_ptq5", "psq4_offset", "bhq4_offset"],
    }
    links = []
    for column, names in columns.items():
        for larger, smaller in pairwise(names):
            if larger in runs and smaller in runs and (found := difference(runs, larger, smaller)):
                links.append(
                    {"column": column, "larger": larger, "smaller": smaller, **asdict(found), "is": found.says}
                )
    return links


def unlike_qat(runs: Runs) -> list[dict[str, Any]]:
    """Return PSQ and BHQ of 5 bits or more against QAT, family-wise."""
    names = [name_of(q, bits, form) for form in FORMS for q in ("psq", "bhq") for bits in BITS if bits >= 5]
    names = [name for name in names if name in runs]
    found = []
    for name in names:
        one = difference(runs, name, "qat", confidence=1 - 0.05 / len(names))
        if one is not None:
            found.append({"recipe": name, **asdict(one), "is": one.says})
    return found


def alignment(runs: Runs) -> list[dict[str, Any]]:
    """Return what float_offset costs beyond aligned, for every quantizer and width."""
    found = []
    for quantizer in QUANTIZERS:
        for bits in BITS:
            plain, aligned = name_of(quantizer, bits, "float_offset"), name_of(quantizer, bits, "aligned")
            if plain in runs and aligned in runs and (one := difference(runs, plain, aligned)):
                found.append({"plain": plain, "aligned": aligned, **asdict(one), "is": one.says})
    return found


def authors_excess(epoch: int = AUTHORS_EPOCH) -> dict[tuple[str, int], float]:
    """Return (quantizer, bits) -> training loss less that of QAT in the authors' logs, after an epoch."""
    with AUTHORS_LOGS.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    at = [row for row in rows if int(row["epoch"]) == epoch]
    qat = next(float(row["train_loss"]) for row in at if row["quantizer"] == "qat")
    return {(row["quantizer"], int(row["bits"])): float(row["train_loss"]) - qat for row in at if row["bits"]}


def recipe_rows(runs: Runs) -> list[dict[str, Any]]:
    """Return one plain row a recipe: loss and accuracy, their differences to QAT, how the runs ended."""
    found = []
    for name, rows in runs.items():
        values = [loss for row in rows.values() if (loss := middle_loss(row)) is not None]
        row: dict[str, Any] = {"recipe": name, "ended": ended(rows), "loss": _plain(estimate(values))}
        shares = [share for one in rows.values() if (share := accuracy(one)) is not None]
        row["accuracy"] = _plain(estimate(shares))
        for key, measure in (("loss", middle_loss), ("last_loss", last_loss), ("accuracy", accuracy)):
            row[f"{key}_less_qat"] = _plain(difference(runs, name, "qat", measure)) if "qat" in runs else None
        row["messages"] = sorted({one["message"] for one in rows.values() if one["message"]})
        found.append(row)
    return found


def _plain(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def shown(found: Mapping[str, Any] | None, digits: int, factor: float = 1.0, sign: bool = True) -> str:
    """Return a plain Estimate as `mean +- half`, or a dash."""
    if found is None:
        return "-"
    half = None if found["half"] is None else factor * found["half"]
    return Estimate(factor * found["mean"], half, found["seeds"]).show(digits, sign)


def _how(ends: Mapping[str, Sequence[int]]) -> str:
    words = {"done": "{} done", "hole": "{} NaN hole", "diverged": "{} diverged", "failed": "{} failed"}
    return ", ".join(words[key].format(len(seeds)) for key, seeds in ends.items() if seeds)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table, one recipe each."""
    theirs = authors_excess()
    lines = [
        "| recipe | zero of Q_b2 | runs | training loss | less QAT | accuracy, % | less QAT, points | authors: loss "
        f"less QAT, epoch {AUTHORS_EPOCH} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["recipe"]
        stem = name.removeprefix("authors_").removesuffix("_offset")
        form = _form(name)
        key = (stem[:-1], int(stem[-1])) if stem[-1].isdigit() and stem[:-1] in QUANTIZERS else None
        # Their gradient PTQ was aligned by their own formula, their PSQ and BHQ had a float offset.
        same = name.startswith("authors_") or (name.endswith("_offset") and not name.startswith("ptq"))
        authors = f"{theirs[key]:+.3f}" if key in theirs and same else ""
        cells = [
            name, form, _how(row["ended"]), shown(row["loss"], 4, sign=False), shown(row["loss_less_qat"], 4),
            shown(row["accuracy"], 2, 100, sign=False), shown(row["accuracy_less_qat"], 2, 100), authors,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _form(name: str) -> str:
    if name in ("fp32", "qat"):
        return "none"
    if name.startswith("authors_"):
        return "the authors' alignment"
    return "float_offset" if name.endswith("_offset") else "aligned"


def figure(runs: Runs, path: Path) -> None:
    """Draw the loss that each quantizer costs against its bits, ours beside the authors'."""
    colours = dict(zip(QUANTIZERS, ("#c44e52", "#4c72b0", "#2e8b57"), strict=True))
    styles = {"aligned": ("-", "o"), "float_offset": ("--", "s")}
    with harness.figure(path, 1, 2, (9.5, 3.8)) as grid:
        _draw(grid[0, 0], grid[0, 1], runs, colours, styles)


def _draw(ours: Any, theirs: Any, runs: Runs, colours: Mapping[str, str], styles: Mapping[str, Any]) -> None:
    for form, (line, marker) in styles.items():
        for quantizer in QUANTIZERS:
            points = [(bits, difference(runs, name, "qat")) for bits in BITS
                      if (name := name_of(quantizer, bits, form)) in runs]  # fmt: skip
            _curve(ours, points, f"{quantizer.upper()}, {form}", colours[quantizer], line, marker)
    points = [(int(name[-1]), difference(runs, name, "qat")) for name in AUTHORS if name in runs]
    _curve(ours, points, "PTQ, the authors' alignment", "#8c6d31", ":", "^")
    excess = authors_excess()
    for quantizer in QUANTIZERS:
        form = "the authors' alignment" if quantizer == "ptq" else "float_offset"
        line, marker = (":", "^") if quantizer == "ptq" else styles["float_offset"]
        values = [excess[quantizer, bits] for bits in BITS]
        label = f"{quantizer.upper()}, {form}"
        theirs.plot(BITS, values, line, marker=marker, color=colours[quantizer], markersize=4, label=label)
    ours.set_title("here: mid-training loss less that of QAT (95 % over paired seeds)", fontsize=9)
    theirs.set_title(f"authors' logs: CIFAR-10, ResNet-56, one run each, epoch {AUTHORS_EPOCH} of 200", fontsize=9)
    for axes in (ours, theirs):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.invert_xaxis()
        axes.set_xticks(BITS)
        axes.set_xlabel("bits of Q_b2")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    ours.set_ylabel("training loss less QAT's")


def _curve(axes: Any, points: Sequence[tuple[int, Any]], label: str, colour: str, line: str, marker: str) -> None:
    points = [(bits, found) for bits, found in points if found is not None]
    if not points:
        return
    # Curves of one width stand beside each other, or their bars would hide one another.
    shift = {"o": -0.06, "s": 0.06, "^": 0.0}[marker]
    axes.errorbar(
        [bits + shift for bits, _ in points], [found.mean for _, found in points],
        yerr=[found.half or 0.0 for _, found in points], label=label, color=colour, linestyle=line, marker=marker,
        markersize=4, linewidth=1.2, capsize=2,
    )  # fmt: skip


def outcomes(links: Sequence[Row], unlike: Sequence[Row], gaps: Sequence[Row]) -> list[str]:
    """Return one line a hypothesis: what came out."""
    columns: dict[str, list[str]] = {}
    for link in links:
        word = {"above": "holds", "below": "is reversed", "undecided": "undecided"}[link["is"]]
        text = f"{link['larger']} > {link['smaller']} {word} ({shown(link, 4)})"
        columns.setdefault(link["column"], []).append(text)
    first = "; ".join(f"{column}: {', '.join(found)}" for column, found in columns.items())
    told = [f"{row['recipe']} {shown(row, 4)}" for row in unlike if row["is"] != "undecided"]
    widest = max((row["half"] or 0.0 for row in unlike), default=0.0)
    second = f"{len(unlike) - len(told)} of {len(unlike)} intervals hold 0, half width at most {widest:.4f}"
    four = [row for row in gaps if row["plain"] == name_of("ptq", 4, "float_offset")]
    gap = [f"{row['plain']} less {row['aligned']} {shown(row, 4)} ({row['is']})" for row in four]
    return [
        f"{first or 'not measured'}.",
        f"{second}{'; not ' + ', '.join(told) if told else ''}.",
        f"{'; '.join(gap) or 'not measured'}.",
    ]


def notes(runs: Runs, chosen: Sequence[tuple[float, Row]]) -> list[str]:
    """Return what the table does not say: how the rate was chosen, which runs stopped, what the authors' column is."""
    lines = []
    if chosen:
        tried = ", ".join(f"{rate}: {last_loss(row) or float('nan'):.4f}" for rate, row in chosen)
        said = "the paper's 0.1 is kept unless fp32 alone, on another seed, clearly trains better by another"
        lines += [f"Learning rate: {said}; mean loss of the last quarter of the steps, by rate: {tried}.", ""]
    for name, rows in runs.items():
        ends = ended(rows)
        for kind, word in (("hole", "the authors' formula has no step (NaN in their code)"), ("diverged", "diverged")):
            if ends[kind]:
                steps = ", ".join(f"seed {seed} at step {rows[seed]['failed_step']}" for seed in ends[kind])
                lines.append(f"- {name}: {word}: {steps}. {rows[ends[kind][0]]['message']}")
    return [
        *lines,
        "",
        "The authors' column is the training loss of their single runs (CIFAR-10, ResNet-56, after epoch "
        f"{AUTHORS_EPOCH} of 200) less that of their QAT run, beside the recipe with their form of the zero: their "
        "gradient PTQ was aligned by a formula of its own, their PSQ and BHQ had a float offset, and Q_b1 had a scale "
        "for each column there. Chance alone moves one of their runs by about 0.01.",
    ]
