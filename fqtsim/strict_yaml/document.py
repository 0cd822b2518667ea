"""A YAML document that still knows its lines: reading, overriding, writing."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fqtsim.errors import FileError, InputError
from fqtsim.strict_yaml.events import build
from fqtsim.strict_yaml.wording import KeyPath, dotted, kind, plain, printable, short, shown

MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Document:
    """Plain data with the place of every value: a line of `origin`, or the override that set it."""

    #: The top-level mapping; str, int, float, bool, list and dict only.
    data: dict[str, Any]
    #: Line of the key (of a list item: of its first character), counted from 1.
    lines: dict[KeyPath, int]
    #: What error messages call the file.
    origin: str
    #: Values that did not come from the file, each with the words that set it.
    overrides: dict[KeyPath, str] = field(default_factory=dict)

    def location(self, path: KeyPath) -> str:
        """Return "FILE:LINE", or the override, of the nearest value that encloses `path`."""
        known = self._known(path)
        return self.overrides.get(known) or f"{self.origin}:{self.lines.get(known, 1)}"

    def error(self, path: KeyPath, rule: str, remedy: str) -> InputError:
        """Return the error for one key: `FILE:LINE: key.path = value: rule; remedy`."""
        known = self._known(path)
        key, value = dotted(path), shown(self.value(path))
        if known in self.overrides:
            subject = f"{key} = {value}" if value is not None else key
            return InputError(f"{self.overrides[known]}: {subject}: {rule}; {remedy}")
        if self.overrides:
            rule += f" (with {', '.join(self.overrides.values())})"
        return FileError(self.origin, self.lines.get(known, 1), key, value, rule, remedy)

    def value(self, path: KeyPath) -> Any:
        """Return the value at `path`, or None where there is none."""
        node: Any = self.data
        for part in path:
            try:
                node = node[part]
            except (KeyError, IndexError, TypeError):
                return None
        return node

    def override(self, changes: Mapping[str, object], prefix: str) -> Document:
        """Return this document with `changes` made: dotted key (list indices may be negative) to new value.

        A value that is text is read as YAML. Raises InputError that names the change as `--set PREFIX.KEY=V`.
        """
        changed = Document(copy.deepcopy(self.data), dict(self.lines), self.origin, dict(self.overrides))
        for key, value in changes.items():
            label = f"--set {prefix}.{short(key)}={short(value) if isinstance(value, str) else shown(value)}"
            try:
                new = build(value, label)[0] if isinstance(value, str) else copy.deepcopy(value)
            except FileError as error:
                raise InputError(f"{label}: {error.rule}; {error.remedy}") from None
            path = _assign(changed.data, key, new, label)
            for places in (changed.lines, changed.overrides):
                for stale in [place for place in places if place[: len(path)] == path]:
                    del places[stale]
            changed.overrides[path] = label
        return changed

    def _known(self, path: KeyPath) -> KeyPath:
        prefixes = (path[:length] for length in range(len(path), -1, -1))
        return next((p for p in prefixes if p in self.overrides or p in self.lines), ())


def read(text: str, origin: str, start_from: str = "write a mapping of `key: value` lines") -> Document:
    """Return the one document in `text`. Raises FileError with line, rule and remedy for all else."""
    if not re.sub(r"#.*", "", text).strip():
        rule = "the file is empty, but for comments" if text.strip() else "the file is empty"
        raise FileError(origin, 1, "", None, rule, start_from)
    data, lines = build(text, origin)
    if not isinstance(data, dict):
        raise FileError(origin, 1, "", None, f"must be a mapping, not {kind(data)}", start_from)
    return Document(data, lines, origin)


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a file. Raises InputError where it cannot be read, is too long or is not UTF-8."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{printable(str(path))}: cannot be read ({reason}); check the path") from None
    name = display_name(path)
    if len(raw) > MAX_BYTES:
        raise FileError(name, 1, "", None, f"is longer than {MAX_BYTES} bytes", "remove what is not needed")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        rule = f"byte 0x{raw[error.start]:02x} is not UTF-8"
        raise FileError(name, line, "", None, rule, "save the file as UTF-8") from None


class _Writer(yaml.SafeDumper):
    """Write text in quotes wherever `read` would take it for something else, and never an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if plain(data) == data else "'")


_Writer.add_representer(str, _Writer.represent_text)


def write(data: Mapping[str, object]) -> str:
    """Return YAML text that `read` turns into equal data; short mappings and lists take one line."""
    return str(yaml.dump(dict(data), Dumper=_Writer, sort_keys=False, allow_unicode=True, width=110,
                         default_flow_style=None))  # fmt: skip


def display_name(path: str | os.PathLike[str]) -> str:
    """Return how messages call a file: relative where it lies below the current directory."""
    full = Path(path)
    if full.is_absolute() and full.is_relative_to(Path.cwd()):
        full = full.relative_to(Path.cwd())
    return printable(str(full))


def _assign(data: dict[str, Any], key: str, value: object, label: str) -> KeyPath:
    """Set `key` in place, creating mappings on the way; return its path with real list indices."""
    node: Any = data
    path: list[str | int] = []
    parts = key.split(".")
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        index: str | int = part
        if isinstance(node, list):
            if not re.fullmatch(r"-?[0-9]{1,6}", part) or not -len(node) <= int(part) < len(node):
                rule = f"{dotted(tuple(path))} has {len(node)} items"
                raise InputError(f"{label}: {rule}; use an index 0..{len(node) - 1} or -1..-{len(node)}")
            index = int(part) % len(node)
        elif not isinstance(node, dict):
            what = f"{dotted(tuple(path))} is {kind(node)}, which has no key {printable(part)}"
            raise InputError(f"{label}: {what}; set {dotted(tuple(path))} itself")
        elif part not in node and not last:
            if re.fullmatch(r"-?[0-9]+", parts[position + 1]):
                rule = f"{dotted((*path, part))} is not in the file, so it has no items"
                raise InputError(f"{label}: {rule}; set the whole list")
            node[part] = {}
        path.append(index)
        if last:
            node[index] = value
        else:
            node = node[index]
    return tuple(path)
