"""Eight accumulators of 12 to 32 bits, judged twice: `fqtsim sweep` on five seeds, and again on five others.

Writes docs/results/accumulator_widths.md and .html. Resumable; about ten minutes on two cores.

    python benchmarks/accumulator_widths.py
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from fqtsim.cli import main as fqtsim
from fqtsim.evaluate.statistics import Difference
from fqtsim.evaluate.store import Store
from fqtsim.evaluate.summary import DesignSummary, summarize
from fqtsim.evaluate.verdict import percent, verdict

SEEDS = ("0..4", "5..9")
COMMAND = [
    "sweep", "--hardware", "int8_acc16_saturate",
    "--set", "hardware.datapath.levels.-1.register=int12,int14,int16,int18,int20,int24,int28,int32",
    "--set", "recipe.optimizer.lr=0.05", "--recipe", "bhq5", "--model", "cnn", "--data", "digits", "--epochs", "10",
    "--batch", "64", "--tolerance", "1",
]  # fmt: skip
RESULTS = Path(__file__).parents[1] / "docs" / "results"


def summaries(seeds: str, out: Path) -> list[DesignSummary]:
    """Run, or go on with, the sweep over some seeds; return its designs."""
    folder = out / f"seeds-{seeds}"
    if fqtsim([*COMMAND, "--seeds", seeds, "--out", str(folder)]):
        raise SystemExit(f"the sweep over seeds {seeds} did not finish")
    shutil.copyfile(folder / "report.html", RESULTS / f"accumulator_widths_{seeds.replace('..', '_')}.html")
    with Store.read(folder / "results.sqlite") as store:
        return summarize(store.rows().values(), 1.0)


def lines_of(designs: list[list[DesignSummary]]) -> list[str]:
    """Return the table: one line per design, both sweeps side by side."""
    lines = [
        "| design | " + " | ".join(f"seeds {seeds}: verdict, points against fp32, altered" for seeds in SEEDS) + " |"
    ]
    lines.append("|---" * (1 + len(SEEDS)) + "|")
    for pair in zip(*designs, strict=True):
        cells = []
        for one in pair:
            against = one.against
            points = "" if against is None or one.recipe == "fp32" else f", {points_of(against[1])}"
            altered = "" if one.recipe == "fp32" else f", {percent(one.altered / max(one.outputs, 1))}"
            cells.append(f"{verdict(one).words}{points}{altered}")
        lines.append(f"| {pair[0].label} | " + " | ".join(cells) + " |")
    return lines


def points_of(difference: Difference) -> str:
    """Return a difference of accuracies in points, with its 95 % interval."""
    return f"{100 * difference.mean:+.1f} +- {100 * (difference.half or 0):.1f}"


def digests(pair: tuple[DesignSummary, ...]) -> str:
    """Return the first half of each run's digest, with its seed."""
    return " ".join(f"{row['seed']}: `{row['digest'][:16]}`" for one in pair for row in one.rows)


def main() -> None:
    """Run both sweeps and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/accumulator_widths"))
    out = parser.parse_args().out
    designs = [summaries(seeds, out) for seeds in SEEDS]
    kinds = [[verdict(one).kind for one in group] for group in designs]
    differ = [one.label for one, *pair in zip(designs[0], *kinds, strict=True) if len(set(pair)) > 1]
    links = ", ".join(f"[seeds {seeds}](accumulator_widths_{seeds.replace('..', '_')}.html)" for seeds in SEEDS)
    text = [
        "# Eight accumulators, judged twice", "",
        "Small CNN on digits, 5-bit BHQ, 10 epochs of batch 64; one saturating register in all three GEMMs, zero "
        "points subtracted before the multiplier. `python benchmarks/accumulator_widths.py` reruns both sweeps:", "",
        "```sh", "fqtsim " + " ".join([*COMMAND, "--seeds", SEEDS[0], "--out", "DIR"]), "```", "",
        f"The whole pages: {links}.", "",
        *lines_of(designs), "",
        f"Verdicts that differ between the two: {', '.join(differ) or 'none'}.", "",
        "## Digests", "", "State after the last step, by seed.", "", "| design | digests |", "|---|---|",
        *(f"| {pair[0].label} | {digests(pair)} |" for pair in zip(*designs, strict=True)),
    ]  # fmt: skip
    (RESULTS / "accumulator_widths.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    sys.stdout.write(f"{RESULTS / 'accumulator_widths.md'}\n")


if __name__ == "__main__":
    main()
