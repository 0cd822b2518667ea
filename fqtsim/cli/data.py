"""`fqtsim data`: get data sets."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Get data sets."""


@data.command()
@click.argument("name", type=click.Choice(["fashion-mnist"]))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to put the files in.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Folder of the four IDX files, gzipped or not.")
def fetch(name: str, out: Path, source: Path | None) -> None:
    """Put a data set into a folder, checked by content.

    fashion-mnist comes from Debian's package (apt-get download and dpkg -x, no root needed), or from the
    folder that --from names.
    """
    from fqtsim.data.fashion_mnist import fetch as fetch_fashion_mnist

    for path in fetch_fashion_mnist(out, source):
        click.echo(str(path))
    click.echo(f"use it with: --data {name}:{out}")
