"""Find, read and check recipe files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fqtsim.hw.load import find_file
from fqtsim.hw.validate import validate
from fqtsim.recipe.spec import Recipe
from fqtsim.strict_yaml import Document, display_name, read, read_text

_FOLDER = Path(__file__).parent / "files"
_START = "start from one that ships: `fqtsim recipe show bhq5`"


def load_recipe(recipe: str | os.PathLike[str] | Recipe, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe called by the name of a shipped one or by the path of a file.

    `overrides` maps dotted keys to new values, as `--set recipe.KEY=V` does: {"optimizer.lr": "0.05"}.
    Raises InputError naming file, line, key, value, rule and remedy.
    """
    if isinstance(recipe, Recipe):
        return _check(recipe._document, overrides) if overrides else recipe
    path = find_file(recipe, _FOLDER, "recipe", recipe_names)
    return parse_recipe(read_text(path), display_name(path), overrides)


def parse_recipe(text: str, origin: str = "<text>", overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe that YAML `text` describes; messages call the text `origin`."""
    return _check(read(text, origin, _START), overrides)


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with fqtsim."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def _check(document: Document, overrides: Mapping[str, object] | None) -> Recipe:
    return validate(Recipe, document.override(overrides, "recipe") if overrides else document)
