"""Which of fprop, dgrad and wgrad needs how many accumulator bits: digits, 12 to 32 bits, wrap, saturate, chunked.

Each design narrows one GEMM, or all three, of the small CNN trained by 5-bit BHQ; all train on the same seeds. Beside
accuracy: the bias of the weight gradients at common weights. What is expected was written down before
(accumulators_report.py). Resumable: the same command goes on where it ended.

    python examples/paper/accumulators.py --out runs/paper_accumulators --publish docs/results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accumulators_report as report
from accumulators_report import ALL, CHUNK, CHUNKED, FLAT, GEMMS, WIDE, Point
from common_weights import CommonWeights
from harness import command, finish, measure

if TYPE_CHECKING:
    from fqtsim.evaluate.job import Job

#: Zero points are subtracted before the multiplier: stored codes of one sign would reach the rails in every output.
HARDWARE = "int8_acc16_saturate"
LEVEL = "{{terms: {terms}, register: {register}, overflow: {overflow}}}"


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    model: str
    data: str
    recipe: str
    rate: float
    seeds: tuple[int, ...]
    #: Exactly one of both.
    epochs: int | None
    steps: int | None
    batch: int
    #: Step of the 32-bit run at whose weights gradients are compared; batches and draws of that comparison.
    at_step: int
    batches: int
    draws: int


def points(bits: Sequence[int], where: Sequence[str] = (*GEMMS, ALL)) -> list[Point]:
    """Return the designs: 32 bits everywhere first, then flat accumulators, then chunks.

    A chunk of 64 products of 9-bit differences fits 23 bits, so that wider chunk registers are the first design.
    """
    found = [WIDE]
    found += [Point(gemm, n, rule, FLAT) for gemm in where for rule in ("saturate", "wrap") for n in bits if n < 32]
    chunked = [n for n in bits if n < 23]
    return found + [Point(gemm, n, "saturate", CHUNKED) for gemm in where for n in chunked]


def levels(point: Point) -> str:
    """Return the levels of a narrowed GEMM, as YAML."""
    last = LEVEL.format(terms="all", register="int32", overflow="wrap")
    if point == WIDE:
        return f"[{last}]"
    narrow = {"register": f"int{point.bits}", "overflow": point.overflow}
    if point.form == FLAT:
        return f"[{LEVEL.format(terms='all', **narrow)}]"
    return f"[{LEVEL.format(terms=CHUNK, **narrow)}, {last}]"


def overrides(point: Point) -> dict[str, str]:
    """Return what turns HARDWARE into the design."""
    if point in (WIDE, Point(ALL, point.bits, point.overflow, point.form)):
        return {"datapath.levels": levels(point)}
    return {"datapath.levels": levels(WIDE), f"gemms.{point.gemm}.levels": levels(point)}


def job(setting: Setting, point: Point, seed: int) -> Job:
    """Return one training run. Raises InputError for a model, data set or recipe that cannot be had."""
    from fqtsim.evaluate.job import Job, Measure
    from fqtsim.train.config import TrainConfig

    config = TrainConfig(
        setting.model, setting.data, setting.recipe, (HARDWARE,), seed=seed, steps=setting.steps,
        epochs=setting.epochs, batch=setting.batch, set_hardware=overrides(point),
        set_recipe={"optimizer.lr": str(setting.rate)},
    )  # fmt: skip
    return Job.of(config, Measure(setting.batches, setting.draws, outputs=0))


def measurements(setting: Setting, jobs: Mapping[tuple[Point, int], Job]) -> list[CommonWeights]:
    """Return the comparison at common weights, in one part for each seed and narrowed GEMM."""
    tasks = []
    for seed in setting.seeds:
        for gemm in dict.fromkeys(point.gemm for point, _ in jobs):
            others = tuple((point.label, one) for (point, own), one in jobs.items()
                           if own == seed and point.gemm == gemm)  # fmt: skip
            name = f"common-{gemm or 'none'}-{seed}"
            numbers = setting.at_step, setting.batches, setting.draws
            tasks.append(CommonWeights(jobs[WIDE, seed], others, *numbers, name))
    return tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished runs and measurements")
    parser.add_argument("--publish", type=Path, help="folder for paper_accumulators.md, .json, .svg [that of --out]")
    parser.add_argument("--bits", type=int, nargs="*", default=report.BITS)
    parser.add_argument("--gemms", nargs="*", default=(*GEMMS, ALL), help="which to narrow [each, then all]")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--recipe", default="bhq5")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, help="train so many steps instead of epochs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--at-step", type=int, default=44, help="of the 32-bit run: common weights [%(default)s]")
    parser.add_argument("--batches", type=int, default=4, help="for the bias of gradients [%(default)s]")
    parser.add_argument("--draws", type=int, default=8, help="of the random words of a batch [%(default)s]")
    parser.add_argument("--workers", type=int, help="processes; 0: this one [one a core]")
    options = parser.parse_args(arguments)
    setting = Setting(
        options.model, options.data, options.recipe, options.rate, tuple(range(options.seeds)),
        None if options.steps else options.epochs, options.steps, options.batch, options.at_step, options.batches,
        options.draws,
    )  # fmt: skip
    wanted = points(options.bits, options.gemms)
    # All designs of a seed before the next seed: an early look compares equal numbers of seeds.
    jobs = {(point, seed): job(setting, point, seed) for seed in setting.seeds for point in wanted}
    rows = finish(list(jobs.values()), options.out, options.workers)
    parts = measure(measurements(setting, jobs), options.out, options.workers)
    runs = {point: [rows[jobs[point, seed].key] for seed in setting.seeds] for point in wanted}
    noise: dict[Point, list[Mapping[str, Any]]] = {
        point: [parts[f"common-{point.gemm or 'none'}-{seed}"][point.label] for seed in setting.seeds]
        for point in wanted
    }
    page = report.page(asdict(setting), runs, noise, command("accumulators.py", arguments))
    print(page.write("paper_accumulators", options.publish or options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
