"""One page, one JSON file and one figure for an experiment, and where its data set lies."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
#: Where Fashion-MNIST is put if it is nowhere else.
FASHION = Path(".data") / "fashion-mnist"


def data_spec(given: str) -> str:
    """Return the data set to use for --data: `fashion-mnist` alone is looked for, and fetched where it is missing.

    Raises InputError where it can neither be found nor fetched.
    """
    from fqtsim.data import fashion_mnist

    if given != "fashion-mnist" or fashion_mnist.SYSTEM_FOLDER.is_dir():
        return given
    if not FASHION.is_dir():
        fashion_mnist.fetch(FASHION)
    return f"fashion-mnist:{FASHION.as_posix()}"


def script(name: str) -> str:
    """Return the path of a file beside this one as seen from here, so that results name no folder of one machine."""
    return os.path.relpath(Path(__file__).with_name(name)).replace(os.sep, "/")


def without_traceback(main: Callable[[], int]) -> int:
    """Return the exit code of a script; bad input is one line and code 2, as everywhere in fqtsim."""
    from fqtsim.errors import InputError

    try:
        return main()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


@dataclass(frozen=True)
class Page:
    """What an experiment found, ready to be written."""

    title: str
    #: How it was measured: network, data, batch, steps, seeds.
    setting: str
    command: str
    #: What was expected before the runs, and what came out, in pairs.
    hypotheses: Sequence[str]
    outcomes: Sequence[str]
    body: Sequence[str]
    data: Mapping[str, Any]
    draw: Callable[[Path], None]

    def write(self, name: str, folder: Path) -> Path:
        """Write NAME.md, NAME.json and NAME.svg into the folder, each in one move; return the page."""
        from fqtsim import __version__

        folder.mkdir(parents=True, exist_ok=True)
        page = folder / f"{name}.md"
        versions = {"fqtsim": __version__, "python": platform.python_version()}
        plain = {"title": self.title, "command": self.command, "hypotheses": list(self.hypotheses),
                 "outcomes": list(self.outcomes), "versions": versions, **self.data}  # fmt: skip
        _move(folder / f"{name}.json", lambda path: path.write_text(_compact(plain), encoding="utf-8"))
        _move(folder / f"{name}.svg", self.draw)
        _move(page, lambda path: path.write_text(self._markdown(name), encoding="utf-8"))
        return page

    def _markdown(self, name: str) -> str:
        lines = [f"# {self.title}", "", self.setting, "", "```", self.command, "```", ""]
        lines += ["Expected, written down before the runs, and what came out:", ""]
        for number, (said, found) in enumerate(zip(self.hypotheses, self.outcomes, strict=True), 1):
            lines += [f"{number}. {said}", f"   **{found}**"]
        return "\n".join([*lines, "", f"![{self.title}]({name}.svg)", "", *self.body, ""])


def _compact(plain: Mapping[str, Any]) -> str:
    """Return JSON with one line for each entry of the top level's lists and mappings."""
    parts = []
    for key, value in plain.items():
        if isinstance(value, list) and value and not isinstance(value[0], str):
            lines = ",\n  ".join(json.dumps(entry) for entry in value)
            parts.append(f"{json.dumps(key)}: [\n  {lines}\n ]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _move(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".partial-{path.name}")
    write(partial)
    os.replace(partial, path)
