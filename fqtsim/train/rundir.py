"""A run's folder: run.yaml, metrics.jsonl, checkpoint.safetensors, events.json; every write survives a kill.

A file is replaced whole (write aside, fsync, rename) or appended by the line; on resume the lines after the
checkpoint are cut, so that the folder of a resumed run equals that of an uninterrupted one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fqtsim import strict_yaml
from fqtsim.errors import FileError, InputError
from fqtsim.strict_yaml import Document, KeyPath

RUN = "run.yaml"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.safetensors"
EVENTS = "events.json"
#: Types of the keys of `config` in run.yaml, as TrainConfig.as_plain writes them; a key of no value is left out.
_CONFIG: dict[str, tuple[type, ...]] = {
    "model": (str,), "data": (str,), "recipe": (str,), "hardware": (list,), "backend": (str,), "seed": (int, str),
    "steps": (int, type(None)), "epochs": (int, type(None)), "batch": (int,), "eval_every": (int,),
    "save_every": (int,), "set_hardware": (dict,), "set_recipe": (dict,), "start": (str, type(None)),
    "check": (str, type(None)),
}  # fmt: skip
#: Sections of run.yaml that decide the result; the others (versions, platform) are for the reader.
DECISIVE = ("config", "hardware", "recipe", "data")


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` make a file beside `path`, force it to disk, and put it in place in one move."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # The rename itself is on disk only when the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Replace a text file whole."""
    replace_file(path, lambda partial: _write(partial, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


class RunDir:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def exists(self) -> bool:
        """Whether the folder has anything but half-written files in it."""
        return self.path.is_dir() and any(not _is_partial(file) for file in self.path.iterdir())

    def refuse_existing(self) -> None:
        """Raise InputError where the folder already holds something."""
        if self.exists or self.path.is_file():
            raise InputError(f"{self.path}: already exists; continue it with --resume, or name another folder")

    def create(self, description: Mapping[str, Any]) -> None:
        """Make the folder and write run.yaml. Raises InputError where it already holds something."""
        self.refuse_existing()
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / RUN, _dump(description))

    def read_run(self) -> Document:
        """Return run.yaml with its lines. Raises FileError or InputError where there is none to read."""
        file = self.path / RUN
        if not file.is_file():
            raise InputError(f"{file}: no such file: --resume needs the folder of an earlier run; check --out")
        document = strict_yaml.read(strict_yaml.read_text(file), strict_yaml.display_name(file))
        for section in DECISIVE:
            if not isinstance(document.data.get(section), dict):
                raise document.error((section,), "must be a mapping", "start the run again in another folder")
        for key, kinds in _CONFIG.items():
            if not _is_option(document.value(("config", key)), kinds):
                rule = "is not what a run writes there"
                raise document.error(("config", key), rule, "restore the file, or start another folder")
        return document

    def check_same(self, description: Mapping[str, Any]) -> None:
        """Raise FileError naming the first key in which this run differs from the one in the folder."""
        before = self.read_run()
        # Through the same text, so that both sides are what YAML makes of them.
        ours = strict_yaml.read(_dump(description), RUN).data
        for section in DECISIVE:
            for key, new in _differences((section,), before.data[section], ours[section]):
                raise before.error(
                    key,
                    f"a resumed run must not change it, and now it is {strict_yaml.shown(new) or 'absent'}",
                    "resume with the same options, or start another folder",
                )

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def last_accuracy(self) -> float | None:
        """Return the accuracy of the last evaluation, or None where there was none."""
        if not self.metrics.is_file():
            return None
        records = [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
        return next((record["accuracy"] for record in reversed(records) if "accuracy" in record), None)

    def sync_metrics(self) -> None:
        """Force metrics.jsonl to disk: a checkpoint must not outlive the lines before it."""
        if self.metrics.is_file():
            with self.metrics.open("rb") as stream:
                os.fsync(stream.fileno())

    def cut_metrics(self, step: int) -> None:
        """Drop the lines after `step` and a last one that a kill cut in two. Raises FileError otherwise."""
        if not self.metrics.is_file():
            return
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = []
        for number, line in enumerate(lines, start=1):
            at = _step_of(line)
            if at is None:
                if number == len(lines):
                    break
                raise FileError(
                    str(self.metrics), number, "step", None, "must be one JSON object with a step per line",
                    "restore the file, or start another folder",
                )  # fmt: skip
            if at <= step:
                kept.append(line)
        write_text(self.metrics, "".join(line if line.endswith("\n") else line + "\n" for line in kept))

    def write_events(self, step: int, rows: list[dict[str, Any]], checks: Mapping[str, Any] | None = None) -> None:
        """Replace events.json: the report of net.report() up to `step`, and what the checks of the run saw."""
        plain = {"step": step, "layers": rows} | ({} if checks is None else {"checks": dict(checks)})
        write_text(self.path / EVENTS, json.dumps(plain, indent=1) + "\n")


def _step_of(line: str) -> int | None:
    """Return the step of a line of metrics.jsonl, None where it has none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    at = record.get("step") if isinstance(record, dict) else None
    return at if type(at) is int else None


def _is_option(value: Any, kinds: tuple[type, ...]) -> bool:
    """Tell whether a value of run.yaml is of these types; lists and mappings hold text, and text for int is digits."""
    if type(value) not in kinds:
        return False
    if isinstance(value, str):
        return int not in kinds or value.isdecimal()
    texts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(isinstance(text, str) for text in texts)


def _is_partial(file: Path) -> bool:
    return file.name.startswith(".") and file.name.endswith(".partial")


def _dump(description: Mapping[str, Any]) -> str:
    """Return a mapping as strict YAML, which has no word for "no value": such keys are left out."""
    return yaml.safe_dump(_without_none(dict(description)), sort_keys=False, width=110, allow_unicode=True)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _differences(key: KeyPath, old: Any, new: Any) -> Iterator[tuple[KeyPath, Any]]:
    """Yield each key at which two trees differ, with the new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*new, *(name for name in old if name not in new)]:
            yield from _differences((*key, name), old.get(name), new.get(name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences((*key, index), before, after)
    elif type(old) is not type(new) or old != new:
        yield key, new
