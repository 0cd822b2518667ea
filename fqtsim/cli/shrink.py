"""`fqtsim shrink`: the narrowest accumulators and the fewest random bits that still train."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from fqtsim.cli.overrides import split_overrides
from fqtsim.errors import InputError


@click.command()
@click.argument("hardware", metavar="HW")
@click.option("--tolerance", type=float, default=1.0, show_default=True, help="Points of accuracy that may be lost.")
@click.option("--model", default="cnn", show_default=True, help="A shipped model, or FILE.py:FUNCTION.")
@click.option("--data", default="digits", show_default=True, help="digits, fashion-mnist[:FOLDER] or cifar10:PATH.")
@click.option("--recipe", help="A shipped recipe (fqtsim recipe list) or a file.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps of each run; or give --epochs.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training set; or give --steps.")
@click.option("--batch", type=click.IntRange(min=1), default=128, show_default=True, help="Images per step.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="First seed of the search.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Seeds of each trial.")
@click.option(
    "--confirm-seeds", type=click.IntRange(min=1), default=5, show_default=True,
    help="Fresh seeds that the answer must hold on.",
)  # fmt: skip
@click.option("--trials", type=click.IntRange(min=1), default=30, show_default=True, help="Candidates to try.")
@click.option(
    "--per", type=click.Choice(["layer", "gemm"]), default="layer", show_default=True,
    help="One width per layer and GEMM, or one per GEMM for all layers.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True,
    help="Processes that run the seeds of a candidate side by side.",
)  # fmt: skip
@click.option("--backend", default="emulator", show_default=True, help="Who executes; results do not depend on it.")
@click.option(
    "--set", "overrides", multiple=True, metavar="hardware.KEY=V | recipe.KEY=V",
    help="Change one key of the hardware or the recipe before shrinking.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True,
    help="Folder for the files; the same command again goes on there.",
)  # fmt: skip
def shrink(
    hardware: str, tolerance: float, recipe: str | None, seeds: int, confirm_seeds: int, trials: int, per: str,
    workers: int, overrides: tuple[str, ...], out: Path, **options: Any,
) -> int:  # fmt: skip
    """Find the narrowest accumulators, per layer and GEMM, and the fewest random bits that still train.

    HW is a shipped name or a file. Beside each width stand what bounds guarantee and what one run needed.
    """
    from rich.console import Console

    from fqtsim.evaluate.shrink.plan import Plan
    from fqtsim.evaluate.shrink.plan import shrink as shrink_hardware
    from fqtsim.evaluate.shrink.table import answer_lines, answer_table
    from fqtsim.train.config import TrainConfig

    if not recipe:
        raise InputError("--recipe: is required, there is no default; choose one of fqtsim recipe list")
    changes = split_overrides(overrides)
    config = TrainConfig(
        recipe=recipe, hardware=(hardware,), set_hardware=changes["hardware"], set_recipe=changes["recipe"], **options
    )
    plan = Plan(config, tolerance, seeds, confirm_seeds, trials, per == "layer", workers=workers)
    command = shlex.join(["fqtsim", *sys.argv[1:]])
    answer = shrink_hardware(plan, out, command, lambda line: click.echo(line, err=True))
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(answer_table(answer))
    for line in answer_lines(answer):
        click.echo(line)
    return 0
