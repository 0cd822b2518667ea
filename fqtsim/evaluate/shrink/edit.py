"""Change values in the text of a YAML file and leave everything else, comments included, as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from fqtsim.strict_yaml import KeyPath

_WIDE = 1 << 20


def edited(text: str, changes: Mapping[KeyPath, object]) -> str:
    """Return the text with each value put at its key path; mappings on the way are made where they are missing.

    Values are written on one line. The caller reads the result back and compares: in a text where a line cannot
    be added (behind a document end marker, say) the result may be no YAML at all, or ValueError is raised.
    """
    try:
        for path, value in changes.items():
            text = _put(text, path, value)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    return text


def flow(value: object) -> str:
    """Return a value as YAML on one line."""
    line: str = yaml.safe_dump(value, default_flow_style=True, width=_WIDE, sort_keys=False, allow_unicode=True)
    return line.strip().removesuffix("...").strip()


def _put(text: str, path: KeyPath, value: object) -> str:
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, part in enumerate(path):
        child = _child(node, part)
        if child is None:
            missing: object = value
            for key in reversed(path[depth + 1 :]):
                missing = {key: missing}
            return _insert(text, node, str(part), missing, root=depth == 0)
        node = child
    return text[: node.start_mark.index] + flow(value) + text[_end(node) :]


def _child(node: Any, part: str | int) -> Any:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    return node.value[part]


def _end(node: Any) -> int:
    """Return where the text of a node ends; a block ends with its last value, not with the comments behind it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _insert(text: str, node: Any, key: str, value: object, *, root: bool) -> str:
    """Return the text with one more key at the end of a mapping."""
    entry = f"{key}: {flow(value)}"
    if node.flow_style:
        end = node.end_mark.index - 1
        before = text[:end].rstrip()
        comma = "" if before.endswith(("{", ",")) else ","
        return f"{before}{comma} {entry}{text[end:]}" if before[-1] != "{" else f"{before}{entry}{text[end:]}"
    if root:
        lines = [f"  {name}: {flow(inner)}" for name, inner in value.items()] if isinstance(value, dict) else []
        entry = "\n".join([f"{key}:", *lines]) if lines else entry
        return f"{text.rstrip()}\n{entry}\n"
    end_of_line = text.find("\n", _end(node))
    place = len(text) if end_of_line < 0 else end_of_line
    return f"{text[:place]}\n{' ' * node.start_mark.column}{entry}{text[place:]}"
