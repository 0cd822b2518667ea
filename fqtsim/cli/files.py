"""`fqtsim new` and `fqtsim validate`: write a hardware file to start from, check files."""

from __future__ import annotations

from pathlib import Path

import click

from fqtsim.errors import InputError


@click.command()
@click.argument("name")
def new(name: str) -> None:
    """Write NAME.yaml: a hardware file with every key and what it means, ready to edit."""
    from fqtsim.hw.load import template_text

    text = template_text(name)
    path = Path(f"{name}.yaml")
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise InputError(f"{path}: already exists; choose another name or remove the file") from None
    click.echo(f"{path}: edit it, then run: fqtsim validate {path}")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
def validate(files: tuple[Path, ...]) -> int:
    """Check hardware and recipe files; say what is wrong with each."""
    failed = 0
    for path in files:
        try:
            click.echo(f"{path}: {_check(path)}")
        except InputError as error:
            failed += 1
            click.echo(str(error), err=True)
    return 2 if failed else 0


def _check(path: Path) -> str:
    """Return what a valid file is. Raises InputError for any other."""
    from fqtsim.hw.load import parse_hardware
    from fqtsim.recipe.load import parse_recipe
    from fqtsim.strict_yaml import display_name, read, read_text

    text, origin = read_text(path), display_name(path)
    # Only a recipe says what feeds an operand; everything else is held to the rules of hardware.
    if {"activation", "optimizer"} & set(read(text, origin).data):
        return f"ok, recipe {parse_recipe(text, origin).name}"
    hardware = parse_hardware(text, origin)
    return f"ok, hardware {hardware.name}: {hardware.summary}"
