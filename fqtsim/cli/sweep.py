"""`fqtsim sweep` and `fqtsim report`: train a grid of designs, and judge each against its baselines."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fqtsim.errors import InputError, MissingPackage

if TYPE_CHECKING:
    from fqtsim.evaluate.sweep import Outcome, Plan, Progress

#: Options that take every value up to the next option.
_MANY = ("--hardware", "--recipe", "--set")
_COMMAND = "fqtsim.command"


class _ManyValues(click.Command):
    """A command whose --hardware, --recipe and --set take several values each: `--hardware a.yaml b.yaml`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_COMMAND] = shlex.join(["fqtsim", str(ctx.info_name), *args])
        return super().parse_args(ctx, _repeated(args))


def _repeated(arguments: list[str]) -> list[str]:
    """Return arguments in which an option of _MANY stands before each of its values."""
    found: list[str] = []
    option, values = "", 0
    for argument in arguments:
        if argument.startswith("-"):
            option, values = argument.partition("=")[0], int("=" in argument)
        elif option in _MANY:
            values += 1
            if values > 1:
                found.append(option)
        found.append(argument)
    return found


@click.command(cls=_ManyValues)
@click.option(
    "--hardware",
    multiple=True,
    metavar="NAME...",
    help="Shipped descriptions (fqtsim hardware list) or files, each a design; PATTERN=NAME,PATTERN=NAME is one "
    "design, matched against layer names.",
)
@click.option("--recipe", multiple=True, metavar="NAME...", help="Shipped recipes (fqtsim recipe list) or files.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="hardware.KEY=V | recipe.KEY=V...",
    help="Sweep one key: hardware.datapath.levels.-1.register=int16..int32, int12..int32/4 for steps of 4, or a list "
    "as in hardware.datapath.levels.0.terms=1,4,16.",
)
@click.option("--model", default="cnn", show_default=True, help="A shipped model, or FILE.py:FUNCTION.")
@click.option("--data", default="digits", show_default=True, help="digits, fashion-mnist[:FOLDER] or cifar10:PATH.")
@click.option("--steps", type=click.IntRange(min=1), help="Training steps; or give --epochs.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training set; or give --steps.")
@click.option("--batch", type=click.IntRange(min=1), default=128, show_default=True, help="Images per step.")
@click.option(
    "--seeds", default="3", show_default=True, help="How many, from 0; or which: 3,7,9 or 10..14. Designs share them."
)
@click.option("--backend", default="emulator", show_default=True, help="reference, stepwise, emulator or native.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 100, min_open=True),
    default=1.0,
    show_default=True,
    help="Points of accuracy that a design may lose and still be said to train.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes of this machine [one a core].")
@click.option("--scheduler", metavar="ADDRESS", help="Run on the workers of this Dask scheduler instead.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for results.sqlite and report.html; the same command again goes on.",
)
@click.option("--detail", is_flag=True, help="Print every layer and GEMM too.")
@click.pass_context
def sweep(ctx: click.Context, /, **options: Any) -> int:
    """Train a grid of designs and the fp32 and QAT baselines over the same seeds, and judge each design."""
    if options["workers"] and options["scheduler"]:
        raise InputError("--workers, --scheduler: the scheduler's workers do the runs; give one of the two")
    from rich.console import Console

    from fqtsim.evaluate.sweep import report
    from fqtsim.evaluate.sweep import sweep as run

    _need_packages()
    plan = _plan(options, ctx.meta[_COMMAND])
    with _Bar(Console(stderr=True)) as bar:
        outcome = run(plan, options["out"], options["workers"], options["scheduler"], bar.start, bar.show)
    if outcome.interrupted:
        _say(outcome)
        done = outcome.found + sum(outcome.ran.values())
        click.echo(f"interrupted, {done} of {outcome.total} runs are saved; the same command goes on", err=True)
        return 130
    report(outcome.out, Console(), options["detail"])
    _say(outcome)
    return 1 if outcome.ran.get("failed") else 0


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--detail", is_flag=True, help="Print every layer and GEMM too.")
@click.option(
    "--tolerance", type=click.FloatRange(0, 100, min_open=True), help="Points to judge by [those of the sweep]."
)
def report(folder: Path, detail: bool, tolerance: float | None) -> int:
    """Print a sweep's table again and write its page, from FOLDER/results.sqlite."""
    from rich.console import Console

    from fqtsim.evaluate.sweep import PAGE
    from fqtsim.evaluate.sweep import report as render

    _need_packages()
    rows = render(folder, Console(), detail, tolerance)
    click.echo(f"page       {folder / PAGE}")
    return 1 if any(row["status"] == "failed" for row in rows) else 0


def _need_packages() -> None:
    """Refuse before hours of training, not after, where a package that the report needs is missing."""
    for package in ("scipy", "jinja2", "matplotlib"):
        if find_spec(package) is None:
            raise MissingPackage(f"a report needs {package}; run: pip install 'fqtsim[evaluate]'")


def _plan(options: dict[str, Any], command: str) -> Plan:
    from fqtsim.evaluate.grid import designs
    from fqtsim.evaluate.sweep import Plan

    same = {name: options[name] for name in ("model", "data", "steps", "epochs", "batch", "backend", "tolerance")}
    found = designs(options["hardware"], options["recipe"], options["sets"])
    return Plan(designs=found, seeds=parse_seeds(options["seeds"]), command=command, **same)


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of `5` (0..4), `3,7,9` or `10..14`. Raises InputError for any other text."""
    from fqtsim.evaluate.grid import values

    what = f"--seeds {text}"
    found = values(text, what)
    if not all(value.isascii() and value.isdecimal() and int(value) < 2**64 for value in found):
        raise InputError(f"{what}: must be a number of seeds, or seeds below 2**64 as in 3,7,9 or 10..14")
    if len(found) > 1 or ".." in text:
        return [int(value) for value in found]
    if not 1 <= int(text) <= 1000:
        raise InputError(f"{what}: must be 1..1000 seeds; for the one seed {text} write {text}..{text}")
    return list(range(int(text)))


class _Bar:
    """The progress of a sweep on a terminal."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), console=console,
        )  # fmt: skip
        self._task = self._bar.add_task("runs", total=None, note="")

    def start(self, found: int, total: int) -> None:
        if found:
            self._console.print(f"found {found} of {total} runs finished; they are not run again", highlight=False)
        self._bar.update(self._task, completed=found, total=total)

    def show(self, progress: Progress) -> None:
        left = "" if progress.left is None else f", about {duration(progress.left)} left"
        note = f"{progress.running} running{left}"
        if progress.stopping:
            note = f"stopping when {progress.running} running have finished; Ctrl-C again drops them"
        self._bar.update(self._task, completed=progress.done, total=progress.total, note=note)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def duration(seconds: float) -> str:
    """Return a time in words of two units at most: 40 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _say(outcome: Outcome) -> None:
    from fqtsim.evaluate.sweep import PAGE, RESULTS

    parts = [f"{outcome.total} in the plan", f"{outcome.found} found finished"]
    parts += [f"{count} {status}" for status, count in sorted(outcome.ran.items())]
    click.echo(f"runs       {', '.join(parts)}")
    if outcome.others:
        click.echo(f"kept       {outcome.others} rows of other plans, which are not in this report")
    click.echo(f"results    {outcome.out / RESULTS}")
    if not outcome.interrupted:
        click.echo(f"page       {outcome.out / PAGE}")
