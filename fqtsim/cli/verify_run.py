"""`fqtsim verify-run`: replay a published training run here; exit code 1 where a digest differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fqtsim.errors import InputError


@click.command("verify-run")
@click.argument("name", required=False)
@click.option("--list", "listing", is_flag=True, help="List the published runs.")
@click.option(
    "--backend", default="native", show_default=True, help="Who is tested: native, native@cuda, emulator, stepwise."
)
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the data set, where the run needs one.")
@click.option("--steps", type=click.IntRange(min=1), help="Only the first steps: fast, and it proves less.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the replay [runs/verify-NAME-BACKEND]."
)
@click.option("--resume", is_flag=True, help="Go on where an interrupted replay stopped.")
def verify_run(
    name: str | None, listing: bool, backend: str, data: Path | None, steps: int | None, out: Path | None, resume: bool
) -> int:
    """Replay a published run on this machine and say that it is equal, or where it is not."""
    from fqtsim.verify.published import load_published, published_names
    from fqtsim.verify.replay import replay

    if listing:
        for known in published_names():
            _say(load_published(known))
        return 0
    if name is None:
        raise InputError(f"NAME: none given; use one of {', '.join(published_names())}")
    published = load_published(name)
    folder = out or Path("runs") / "-".join(
        ["verify", name, backend.replace("@", "-"), *([str(steps)] if steps else [])]
    )
    with _progress() as bar:
        task = bar.add_task("replaying", total=None)
        verdict = replay(
            published, backend, folder, data, steps, resume,
            on_start=lambda done, total: bar.update(task, completed=done, total=total),
            on_step=lambda record: bar.update(task, completed=record.step),
        )  # fmt: skip
    click.echo(str(verdict))
    found = None if verdict.difference is None else verdict.difference.reproducer
    if found is not None:
        path = found.save(folder / found.file_name)
        click.echo(f"reproducer {path}; look at it with: fqtsim explain {path}")
    if verdict.interrupted:
        click.echo("interrupted and saved; go on with the same command and --resume", err=True)
        return 130
    return 0 if verdict.passed else 1


def _progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


def _say(published: Any) -> None:
    config, last = published.config, published.digests[published.steps]
    click.echo(
        f"{published.name:<24}{published.steps:>5} steps, batch {config.batch}, {config.recipe} on "
        f"{', '.join(config.hardware)}; {len(published.digests)} digests, last {last[:16]}"
    )
