"""YAML events to plain data and lines: the strict part of YAML, one refusal for everything else."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from fqtsim.errors import FileError
from fqtsim.strict_yaml.wording import NOTHING, KeyPath, dotted, plain, printable, short

MAX_DEPTH = 12
MAX_NODES = 10_000

_TAB_INDENT = re.compile(r"^ *\t[ \t]*[^\s#]", re.MULTILINE)
_TEXT_BREAK = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]")
_REMEDIES = (
    ("'\\t'", "replace the tab by spaces"),
    ("mapping values are not allowed", "check the indentation, and put quotes around text that contains ': '"),
    ("could not find expected ':'", "write `key: value`"),
    ("character U+", "remove it; only printable text is allowed"),
)


@dataclass
class _Open:
    """A mapping or list whose end has not been read yet."""

    value: dict[str, Any] | list[Any]
    path: KeyPath
    key: str | None = None


class _Builder:
    """Turn YAML events into plain data; a stack instead of recursion, so depth is ours to limit."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.root: Any = None
        self.lines: dict[KeyPath, int] = {}
        self.stack: list[_Open] = []
        self.documents = 0
        self.nodes = 0
        self.line = 1

    def refuse(
        self, event: yaml.Event, rule: str, remedy: str, path: KeyPath = (), value: str | None = None
    ) -> FileError:
        return FileError(self.origin, _line(event), dotted(path), value, rule, remedy)

    def feed(self, event: yaml.Event) -> None:
        self.line = _line(event)
        if isinstance(event, yaml.DocumentStartEvent):
            self._start_document(event)
        elif isinstance(event, yaml.AliasEvent):
            rule = f"alias *{printable(str(event.anchor))} is not supported"
            parent = self.stack[-1] if self.stack else None
            raise self.refuse(event, rule, "write the value again", self._path(parent))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            self._node(event)

    def _start_document(self, event: yaml.DocumentStartEvent) -> None:
        self.documents += 1
        if self.documents > 1:
            raise self.refuse(event, "a second document starts here", "keep one document in a file")
        if event.version or event.tags:
            raise self.refuse(event, "directives (%YAML, %TAG) are not supported", "remove the line")

    def _node(self, event: Any) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.refuse(event, f"has more than {MAX_NODES} values", "remove what is not needed")
        parent = self.stack[-1] if self.stack else None
        path = self._path(parent)
        if event.anchor is not None:
            rule = f"anchor &{printable(str(event.anchor))} is not supported"
            raise self.refuse(event, rule, "remove it and write values out", path)
        if event.tag is not None:
            raise self.refuse(event, f"tag {printable(event.tag)} is not supported", "remove it", path)
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            parent.key = self._key(event, parent)
            return
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path)
        else:
            if len(self.stack) == MAX_DEPTH:
                raise self.refuse(event, f"is nested more than {MAX_DEPTH} deep", "remove the inner brackets", path)
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._attach(event, parent, path, value)
        if isinstance(value, dict | list):
            self.stack.append(_Open(value, path))

    def _path(self, parent: _Open | None) -> KeyPath:
        if parent is None:
            return ()
        if isinstance(parent.value, list):
            return (*parent.path, len(parent.value))
        return parent.path if parent.key is None else (*parent.path, parent.key)

    def _attach(self, event: yaml.Event, parent: _Open | None, path: KeyPath, value: Any) -> None:
        if parent is None:
            self.root = value
            self.lines[()] = _line(event)
        elif isinstance(parent.value, list):
            parent.value.append(value)
            self.lines[path] = _line(event)
        else:
            parent.value[str(parent.key)] = value
            parent.key = None

    def _key(self, event: yaml.Event, parent: _Open) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise self.refuse(event, "a key must be one word", "remove the brackets around the key", parent.path)
        key = str(event.value)
        path = (*parent.path, key)
        if key == "<<":
            raise self.refuse(event, "merge keys are not supported", "write the keys out", path)
        if not key.isprintable() or not 0 < len(key) <= 80:
            rule = "a key must be 1 to 80 printable characters"
            raise self.refuse(event, rule, "write it in plain letters", parent.path)
        if path in self.lines:
            rule = f"is given twice, first in line {self.lines[path]}"
            raise self.refuse(event, rule, "remove one of them", path)
        self.lines[path] = _line(event)
        return key

    def _scalar(self, event: yaml.ScalarEvent, path: KeyPath) -> Any:
        text = str(event.value)
        if not text.replace("\n", "").isprintable():
            raise self.refuse(event, "holds a character that cannot be printed", "remove it", path, short(text))
        if not event.implicit[0]:  # quoted or block text
            return text
        if text in NOTHING:
            raise self.refuse(event, "has no value", "write one or remove the key", path)
        value = plain(text)
        if isinstance(value, int) and len(text) > 19:
            raise self.refuse(event, "has more than 18 digits", "use a smaller number", path, short(text))
        if isinstance(value, float) and not (len(text) <= 60 and math.isfinite(value)):
            raise self.refuse(event, "is beyond a float64", "use a smaller number", path, short(text))
        return value


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def build(text: str, origin: str) -> tuple[Any, dict[KeyPath, int]]:
    """Return what the one document in `text` denotes, and the line of every key and item. Raises FileError."""
    tab = _TAB_INDENT.search(text)
    if tab:
        line = len(_TEXT_BREAK.findall(text, 0, tab.start())) + 1
        raise FileError(origin, line, "", None, "a tab in the indentation", "indent with spaces")
    builder = _Builder(origin)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.feed(event)
    except yaml.MarkedYAMLError as error:
        problem = str(error.problem or error.context)
        ended = "end of stream" in problem or "<stream end>" in problem
        mark = error.context_mark if ended and error.context_mark else error.problem_mark
        raise _not_yaml(origin, mark.line + 1 if mark else 1, problem) from None
    except yaml.reader.ReaderError as error:
        line = len(_TEXT_BREAK.findall(text, 0, error.position)) + 1
        raise _not_yaml(origin, line, f"character U+{ord(text[error.position]):04X}") from None
    except FileError:
        raise
    except (ValueError, OverflowError):  # what PyYAML's scanner lets through, such as "\Uffffffff"
        raise _not_yaml(origin, builder.line, "a number or escape out of range") from None
    if builder.documents == 0:
        raise FileError(origin, 1, "", None, "holds no value", "write one")
    return builder.root, builder.lines


def _not_yaml(origin: str, line: int, problem: str) -> FileError:
    remedy = next((r for words, r in _REMEDIES if words in problem), "check indentation, brackets and quotes")
    return FileError(origin, line, "", None, f"not valid YAML: {printable(problem)}", remedy)
