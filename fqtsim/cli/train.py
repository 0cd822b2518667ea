"""`fqtsim train`: run the training loop with a progress bar and say how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fqtsim.cli.options import config_of, given_options, run_options

if TYPE_CHECKING:
    from fqtsim.train.config import TrainConfig
    from fqtsim.train.loop import RunResult


@click.command()
@run_options
@click.option(
    "--backend",
    default="emulator",
    show_default=True,
    help="reference, stepwise, emulator or native, each with @cpu or @cuda.",
)
@click.option("--eval-every", type=click.IntRange(min=0), default=0, help="Steps between evaluations [each epoch].")
@click.option(
    "--save-every",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Steps between checkpoints.",
)
@click.option("--from", "start", metavar="FILE", help="Weights to start from: .safetensors, or a torch state dict.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for run.yaml, metrics.jsonl, checkpoint.safetensors and events.json.",
)
@click.option(
    "--check",
    metavar="sample:F,freivalds[:F]",
    help="Check GEMMs as they run: recompute a share F of all outputs with stepwise; Freivalds on wrapping ones.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the checkpoint in --out; options left out are those of that run.",
)
@click.pass_context
def train(ctx: click.Context, /, out: Path, resume: bool, **options: Any) -> int:
    """Train a model on described hardware, bit for bit."""
    from rich.console import Console

    from fqtsim.train.loop import run
    from fqtsim.train.rundir import RunDir

    if not resume:
        RunDir(out).refuse_existing()
    config = _resumed_config(out, options, given_options(ctx)) if resume else config_of(options)
    console = Console(stderr=True)
    with _progress(console) as bar:
        task = bar.add_task("training", total=None, loss="", accuracy="")

        def on_step(record: Any) -> None:
            shown = {"loss": f"loss {record.loss:.4f}"}
            if record.accuracy is not None:
                shown["accuracy"] = f"accuracy {100 * record.accuracy:.1f} %"
            bar.update(task, completed=record.step, **shown)

        result = run(
            config, out, resume, on_start=lambda done, total: bar.update(task, completed=done, total=total),
            on_step=on_step,
        )  # fmt: skip
    return _say(result)


def _progress(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[accuracy]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _resumed_config(out: Path, options: dict[str, Any], given: set[str]) -> TrainConfig:
    """Return the folder's own configuration with the options on the command line put over it.

    A difference is then found, and named, where the loop compares the two.
    """
    from dataclasses import replace

    from fqtsim.cli.overrides import split_overrides
    from fqtsim.train.config import TrainConfig
    from fqtsim.train.rundir import RunDir

    before = TrainConfig.from_plain(RunDir(out).read_run().data["config"])
    changes = {name: options[name] for name in given if name in options and name != "overrides"}
    if "overrides" in given:
        overrides = split_overrides(options["overrides"])
        changes |= {"set_hardware": overrides["hardware"], "set_recipe": overrides["recipe"]}
    return replace(before, **changes)


def _say(result: RunResult) -> int:
    from fqtsim.train.check_report import check_lines
    from fqtsim.train.intervals import show_share

    for note in result.notes:
        click.echo(f"weights    {note}", err=True)
    events = json.loads((result.out / "events.json").read_text(encoding="utf-8"))
    layers = events["layers"]
    if result.accuracy is not None:
        share = show_share(round(result.accuracy * result.tested), result.tested)
        click.echo(f"accuracy   {share} of {result.tested} test images (95 % interval)")
    click.echo(f"steps      {result.step} of {result.steps}")
    click.echo(f"digest     {result.digest}")
    totals = {key: sum(row[key] for row in layers) for key in ("outputs", "altered", "out_of_range", "transient")}
    click.echo(
        f"hardware   altered {totals['altered']} of {totals['outputs']} outputs "
        f"({totals['out_of_range']} out of range, {totals['transient']} transient)"
    )
    for line in check_lines(events.get("checks", {})):
        click.echo(line)
    click.echo(f"folder     {result.out}")
    if not result.interrupted:
        return 0
    click.echo(f"interrupted and saved; go on with: fqtsim train --out {result.out} --resume", err=True)
    return 130
