"""How every page is made from its template: one setting of jinja2, and one error where a package is missing."""

from __future__ import annotations

import importlib
from typing import Any

from fqtsim.errors import MissingPackage


def environment(package: str, figures: bool) -> Any:
    """Return the jinja2 environment of a package's templates, with the parts that all pages share.

    Raises MissingPackage without jinja2, or without matplotlib where the page has `figures`.
    """
    try:
        jinja2 = importlib.import_module("jinja2")
        if figures:
            importlib.import_module("matplotlib")
    except ImportError as error:
        raise MissingPackage(f"the page needs the package {error.name}; pip install 'fqtsim[evaluate]'") from None
    folders = [jinja2.PackageLoader(name) for name in dict.fromkeys((package, "fqtsim.evaluate.page"))]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(folders), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
