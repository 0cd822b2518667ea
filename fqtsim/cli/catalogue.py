"""`fqtsim hardware` and `fqtsim recipe`: what ships, and what a file says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fqtsim.recipe.spec import Recipe


_PORTS = ("activation", "weight", "grad_for_wgrad", "grad_for_dgrad")


def _table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, about in rows:
        click.echo(f"{name:<{width}}  {about}")


@click.group()
def hardware() -> None:
    """List or show hardware descriptions."""


@hardware.command("list")
def list_hardware() -> None:
    """List the descriptions that ship with fqtsim."""
    from fqtsim.hw.load import hardware_names, load_hardware

    _table([(name, load_hardware(name).summary) for name in hardware_names()])


@hardware.command("show")
@click.argument("name")
def show_hardware(name: str) -> None:
    """Print the description NAME (a shipped name or a file), after checking it."""

    from fqtsim.hw.load import load_hardware

    click.echo(Path(load_hardware(name).origin).read_text(encoding="utf-8"), nl=False)


def _about(described: Recipe) -> str:
    """Return the quantizers of a recipe in one line."""
    ports = ((name, described.port(name)) for name in _PORTS)
    return ", ".join(f"{name} {spec.quantizer}{spec.bits}" if spec else f"{name} float" for name, spec in ports)


@click.group()
def recipe() -> None:
    """List or show training recipes."""


@recipe.command("list")
def list_recipes() -> None:
    """List the recipes that ship with fqtsim."""
    from fqtsim.recipe.load import load_recipe, recipe_names

    _table([(name, _about(load_recipe(name))) for name in recipe_names()])


@recipe.command("show")
@click.argument("name")
def show_recipe(name: str) -> None:
    """Print the recipe NAME (a shipped name or a file), after checking it."""
    from fqtsim.recipe.load import load_recipe

    click.echo(Path(load_recipe(name).origin).read_text(encoding="utf-8"), nl=False)
