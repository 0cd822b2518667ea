"""Variance against bits, as in the paper's figure: PTQ, PSQ, BHQ x {8..4} bits, both zero forms, and mini-batches.

A pre-activation ResNet-20 after 2 epochs of Fashion-MNIST, batch norm in eval mode, 10 repeats a batch, squared
distances summed over the convolutions of the blocks. What is expected was written down before (variance_report.py).
Resumable: the same command goes on where it ended.

    python examples/paper/variance.py --out runs/paper_variance --publish docs/results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import variance_report as report
from harness import command, measure
from publishing import Page, data_spec, without_traceback
from variance_measure import BETWEEN, BITS, ZEROS, Task, points

from fqtsim.train.config import TrainConfig
from fqtsim.train.loop import run as train

HARDWARE = "int8_acc32_wrap"
#: What the network was trained with: every GEMM on integers, so that the checkpoint has one digest everywhere.
RECIPE = "psq8"


def checkpoint(config: TrainConfig, out: Path) -> tuple[Path, str]:
    """Train what is left of the network; return the file of its state and the digest."""
    print(f"training {config.model} in {out}")
    result = train(config, out, resume=out.exists())
    if result.interrupted:
        raise SystemExit("interrupted and saved; the same command goes on")
    return out / "checkpoint.safetensors", result.digest


def page(parts: report.Parts, config: TrainConfig, digest: str, numbers: dict[str, int], words: str) -> Page:
    """Return the page of all parts."""
    plain = {
        "model": config.model, "data": config.data, "recipe": config.recipe, "hardware": list(config.hardware),
        "batch": config.batch, "seed": config.seed, "checkpoint_digest": digest, **numbers,
    }  # fmt: skip
    rows = [
        {"point": list(point), **{k: v for k, v in part.items() if k != "settings"}} for point, part in parts.items()
    ]
    dataset = config.data.partition(":")[0]
    trained = f"{config.epochs} epochs" if config.steps is None else f"{config.steps} steps"
    return Page(
        title="Variance of the gradient against bits",
        setting=(
            f"`{config.model}` after {trained} of {dataset} ({config.recipe}, seed {config.seed}, "
            f"digest `{digest}`), batch norm in eval mode, {numbers['batches']} batches of {config.batch} "
            f"images, {numbers['repeats']} repeats each: mean squared distance to the gradient of the same batch and "
            "forward codes without gradient quantizers, summed over the convolutions of the blocks. The line is the "
            f"variance between {numbers['lines']} batches. Intervals are 95 %, Student's t over batches."
        ),
        command=words,
        hypotheses=report.HYPOTHESES,
        outcomes=report.outcomes(parts),
        body=[*report.table(parts), "", *report.notes(parts)],
        data={
            "setting": plain, "ratios": report.ratios(parts), "comparisons": report.comparisons(parts), "parts": rows,
        },
        draw=lambda path: report.figure(parts, path),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and of what is measured")
    parser.add_argument("--publish", type=Path, help="folder for paper_variance.md, .json and .svg [that of --out]")
    parser.add_argument("--data", default="fashion-mnist", help="as in fqtsim train [%(default)s, fetched if missing]")
    parser.add_argument("--model", default="resnet20", help="as in fqtsim train [%(default)s; the paper's: resnet56]")
    parser.add_argument("--epochs", type=int, default=2, help="of training before the measurement [%(default)s]")
    parser.add_argument("--steps", type=int, help="train so many steps instead of epochs")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=5, help="for the variance of the quantizers [%(default)s]")
    parser.add_argument("--lines", type=int, default=30, help="for the variance between batches [%(default)s]")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--zeros", nargs="+", default=list(ZEROS), choices=ZEROS, help="[%(default)s]")
    parser.add_argument("--bits", nargs="+", type=int, default=list(BITS), choices=BITS, help="only these [all]")
    parser.add_argument("--workers", type=int, help="processes [one a core]")
    options = parser.parse_args(arguments)
    config = TrainConfig(
        options.model, data_spec(options.data), RECIPE, (HARDWARE,), batch=options.batch, steps=options.steps,
        epochs=None if options.steps else options.epochs,
    )  # fmt: skip
    file, digest = checkpoint(config, options.out / "checkpoint")
    numbers = {"batches": options.batches, "lines": options.lines, "repeats": options.repeats}
    at = replace(config, start=str(file))
    wanted = [
        # The line, the variance between batches, is over more of them.
        Task(at, point, options.lines if point[0] == BETWEEN else options.batches, options.repeats)
        for point in points(options.zeros, options.bits)
    ]
    results = measure(wanted, options.out / "parts", options.workers)
    parts = {task.point: results[task.name] for task in wanted}
    written = page(parts, config, digest, numbers, command("variance.py", arguments))
    print(written.write("paper_variance", options.publish or options.out))
    return 0


if __name__ == "__main__":
    sys.exit(without_traceback(main))
