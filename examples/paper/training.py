"""Training sweep: exact, QAT and {PTQ, PSQ, BHQ} x {8..4} bits, both zero forms.

What is expected was written down before the runs (HYPOTHESES in training_report.py); the page says what came out.
Resumable: the same command goes on where it ended, and finished runs are read, not repeated.

    python examples/paper/training.py --out runs/paper_training --publish docs/results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import training_report as report
from harness import command, finish
from publishing import Page, data_spec, script, without_traceback
from training_report import AUTHORS, BITS, FORMS, QUANTIZERS, name_of

from fqtsim.evaluate.job import Job, Measure
from fqtsim.train.config import TrainConfig

#: Wide enough that no sum of this network reaches its ends: what differs is the quantizers.
HARDWARE = "int8_acc32_wrap"
#: The rate is chosen on fp32 alone, with a seed that no run of the comparison has.
SEED_OF_THE_RATE, RATES = 100, (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Setting:
    """What every run of the sweep shares."""

    model: str
    data: str
    seeds: Sequence[int]
    steps: int
    batch: int
    rate: float


def recipes() -> list[str]:
    """Return the shipped recipes of the sweep, baselines first."""
    found = ["fp32", "qat"]
    found += [name_of(name, bits, form) for form in FORMS for bits in BITS for name in QUANTIZERS]
    return [*found, *AUTHORS]


def job(setting: Setting, recipe: str, seed: int, rate: float) -> Job:
    """Return one run of the sweep. Raises InputError for a recipe, model or data set that cannot be had."""
    config = TrainConfig(
        setting.model, setting.data, recipe, (HARDWARE,), seed=seed, steps=setting.steps, batch=setting.batch,
        set_recipe={"optimizer.lr": str(rate)},
    )  # fmt: skip
    return Job.of(config, Measure(batches=0, outputs=0))


def rates(setting: Setting) -> list[Job]:
    """Return the runs that choose the learning rate."""
    return [job(setting, "fp32", SEED_OF_THE_RATE, rate) for rate in RATES]


def comparison(setting: Setting, names: Sequence[str]) -> list[Job]:
    """Return every run of the comparison, all recipes of a seed before the next seed."""
    return [job(setting, name, seed, setting.rate) for seed in setting.seeds for name in names]


def page(setting: Setting, found: dict[str, dict[int, Any]], chosen: Sequence[tuple[float, Any]], words: str) -> Page:
    """Return the page of the rows, recipe -> seed -> row, and of the runs that chose the rate."""
    plain = {**asdict(setting), "seeds": list(setting.seeds), "hardware": HARDWARE}
    links, unlike, gaps = report.orders(found), report.unlike_qat(found), report.alignment(found)
    summary = report.recipe_rows(found)
    runs = [
        {"recipe": name, "seed": seed, "status": row["status"], "message": row["message"], "accuracy": row["accuracy"],
         "middle_loss": report.middle_loss(row), "last_loss": report.last_loss(row), "digest": row["digest"]}
        for name, rows in found.items() for seed, row in sorted(rows.items())
    ]  # fmt: skip
    return Page(
        title="Training sweep: which gradient quantizer, how many bits, which zero",
        setting=(
            f"`{Path(setting.model).name}` (pre-activation ResNet-20, images of 2x2 means, stem of stride 2: "
            f"networks.py) on {setting.data.partition(':')[0]}, {setting.steps} steps of "
            f"{setting.batch} images, learning rate {setting.rate} with cosine decay, {len(setting.seeds)} seeds, "
            "which all recipes share (initialisation, order of the images). Only Q_b2, the quantizer of dgrad's output "
            "gradient, differs; Q_b1 is 8-bit aligned PTQ in all of them. Training loss is the mean over the middle "
            "half of the steps; intervals are 95 %, Student's t over seeds, differences paired."
        ),
        command=words,
        hypotheses=report.HYPOTHESES,
        outcomes=report.outcomes(links, unlike, gaps),
        body=[*report.table(summary), "", *report.notes(found, chosen)],
        data={
            "setting": plain, "summary": summary, "order": links, "psq_bhq_less_qat": unlike,
            "offset_less_aligned": gaps, "runs": runs,
            "rates": [{"rate": rate, "last_loss": report.last_loss(row), "digest": row["digest"]}
                      for rate, row in chosen],
        },
        draw=lambda path: report.figure(found, path),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished runs")
    parser.add_argument("--publish", type=Path, help="folder for paper_training.md, .json and .svg [that of --out]")
    parser.add_argument("--data", default="fashion-mnist", help="as in fqtsim train [%(default)s, fetched if missing]")
    parser.add_argument("--model", default=f"{script('networks.py')}:quarter_resnet20")
    parser.add_argument("--recipes", nargs="*", help="only these; qat is what they are compared with [all]")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--workers", type=int, help="processes [one a core]")
    options = parser.parse_args(arguments)
    setting = Setting(
        options.model, data_spec(options.data), range(options.seeds), options.steps, options.batch, options.rate
    )
    names = recipes() if options.recipes is None else options.recipes
    jobs = [*rates(setting), *comparison(setting, names)]
    rows = finish(jobs, options.out, options.workers)
    found: dict[str, dict[int, Any]] = {name: {} for name in names}
    chosen = []
    for one in jobs:
        row = rows[one.key]
        if row["seed"] == SEED_OF_THE_RATE:
            chosen.append((float(one.design.set_recipe["optimizer.lr"]), row))
        else:
            found[one.design.recipe][row["seed"]] = row
    written = page(setting, found, chosen, command("training.py", arguments))
    print(written.write("paper_training", options.publish or options.out))
    return 0


if __name__ == "__main__":
    sys.exit(without_traceback(main))
