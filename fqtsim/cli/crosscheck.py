"""`fqtsim crosscheck`: train on two backends in lockstep; exit code 1 at the first bit that differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fqtsim.cli.options import config_of, run_options


@click.command()
@run_options
@click.option(
    "--backends",
    default="stepwise,native",
    show_default=True,
    help="Two or more of reference, stepwise, emulator, native, with commas; each with @cpu or @cuda.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    show_default=True,
    help="Folder for the reproducer of a difference.",
)
def crosscheck(backends: str, save: Path, **options: Any) -> int:
    """Train one run on two or more backends; compare every GEMM's codes and events, and every state."""
    from rich.console import Console
    from rich.progress import Progress

    from fqtsim.crosscheck import crosscheck as check

    config = config_of(options)
    names = [name.strip() for name in backends.split(",") if name.strip()]
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("comparing", total=None)
        report = check(config, names, on_step=lambda done, total: bar.update(task, completed=done, total=total))
    click.echo(str(report))
    found = None if report.difference is None else report.difference.reproducer
    if found is not None:
        save.mkdir(parents=True, exist_ok=True)
        path = found.save(save / found.file_name)
        click.echo(f"reproducer {path}; look at it with: fqtsim explain {path}")
    return 0 if report.passed else 1
