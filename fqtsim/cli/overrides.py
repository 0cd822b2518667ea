"""`--set OWNER.KEY=VALUE`: the one way to change a key of a hardware or recipe file from the command line."""

from __future__ import annotations

from fqtsim.errors import InputError


def split_overrides(
    overrides: tuple[str, ...], owners: tuple[str, ...] = ("hardware", "recipe")
) -> dict[str, dict[str, str]]:
    """Return {owner: {key: value}} of "OWNER.KEY=VALUE" texts. Raises InputError for any other form."""
    parts: dict[str, dict[str, str]] = {owner: {} for owner in owners}
    for text in overrides:
        path, equals, value = text.partition("=")
        owner, dot, key = path.partition(".")
        if not (equals and dot and key and owner in parts):
            forms = " or ".join(f"{name}.KEY=VALUE" for name in owners)
            raise InputError(f"--set {text}: must be {forms}; for example hardware.datapath.levels.-1.register=int20")
        if key in parts[owner]:
            raise InputError(f"--set {text}: {path} is set twice; keep one")
        parts[owner][key] = value
    return parts
