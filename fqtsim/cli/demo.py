"""`fqtsim demo`: what the project does, in under four minutes."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the runs [runs/demo-N].")
@click.option(
    "--epochs", type=click.IntRange(min=1), default=6, show_default=True, help="Passes over the digits per run."
)
def demo(out: Path | None, epochs: int) -> int:
    """Train a network on hypothetical hardware, cross-check it against this CPU, and give a verdict."""
    from rich.console import Console

    from fqtsim.demo.story import Story, next_folder
    from fqtsim.train.rundir import RunDir

    folder = out or next_folder(Path("runs"))
    RunDir(folder).refuse_existing()
    return 0 if Story(Console(), folder, epochs).tell() else 1
