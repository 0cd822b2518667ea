"""Find, read and check hardware files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import fqtsim
from fqtsim.errors import InputError
from fqtsim.hw.markers import nearest
from fqtsim.hw.spec import Hardware
from fqtsim.hw.validate import validate
from fqtsim.strict_yaml import Document, display_name, printable, read, read_text, shown, write

_START = "`fqtsim new NAME` writes a commented file to start from"


def load_hardware(
    hardware: str | os.PathLike[str] | Hardware, overrides: Mapping[str, object] | None = None
) -> Hardware:
    """Return the hardware called by a name under hwconfigs/ or by the path of a file.

    `overrides` maps dotted keys to new values, as `--set hardware.KEY=V` does; list indices may be negative:
    {"datapath.levels.-1.register": "int16"}. Raises InputError naming file, line, key and remedy.
    """
    if isinstance(hardware, Hardware):
        return _check(hardware._document, overrides) if overrides else hardware
    path = find_file(hardware, hwconfigs_dir(), "hardware", hardware_names)
    return parse_hardware(read_text(path), display_name(path), overrides)


def parse_hardware(text: str, origin: str = "<text>", overrides: Mapping[str, object] | None = None) -> Hardware:
    """Return the hardware that YAML `text` describes; messages call the text `origin`."""
    return _check(read(text, origin, _START), overrides) if overrides else _parsed(text, origin)


@lru_cache(maxsize=64)
def _parsed(text: str, origin: str) -> Hardware:
    """Return the hardware of a text; kept, since a GEMM called by a hardware's name parses it every time."""
    return _check(read(text, origin, _START), None)


def hardware_names() -> list[str]:
    """Return the names of the hardware files that ship with fqtsim."""
    return sorted(path.stem for path in hwconfigs_dir().glob("*.yaml") if path.stem != "template")


def hwconfigs_dir() -> Path:
    """Return the folder of shipped hardware files: inside an installed package, beside it in a checkout."""
    package = Path(fqtsim.__file__).parent
    inside = package / "hwconfigs"
    return inside if inside.is_dir() else package.parent / "hwconfigs"


def template_text(name: str) -> str:
    """Return a commented hardware file called `name` to start from. Raises InputError for an unfit name."""
    text = read_text(hwconfigs_dir() / "template.yaml")
    text = re.sub(r"^name: \w+", lambda _: f"name: {name}", text, count=1, flags=re.MULTILINE)
    parse_hardware(text, f"{printable(name)}.yaml")
    return text


def dump_hardware(hardware: Hardware) -> str:
    """Return YAML text that loads to equal hardware, overrides included."""
    return write(hardware.model_dump(mode="json", by_alias=True, exclude_none=True))


def find_file(wanted: str | os.PathLike[str], folder: Path, what: str, names: Callable[[], list[str]]) -> Path:
    """Return the file that a user named: a path if it looks like one, else `folder`/NAME.yaml."""
    if not isinstance(wanted, str) or re.search(r"[/\\]|\.ya?ml$", wanted):
        return Path(wanted)
    if re.fullmatch("[a-z0-9_]+", wanted) and (folder / f"{wanted}.yaml").is_file():
        return folder / f"{wanted}.yaml"
    known = names()
    meant = nearest(wanted, known)
    hint = f"did you mean {meant}" if meant else f"use one of {', '.join(known)}"
    rule = "is not the name of a shipped file, nor a path (with / or ending in .yaml)"
    raise InputError(f"{what} = {shown(wanted)}: {rule}; {hint}{'?' if meant else ''}")


def _check(document: Document, overrides: Mapping[str, object] | None) -> Hardware:
    if overrides:
        document = document.override(overrides, "hardware")
    return validate(Hardware, document)
