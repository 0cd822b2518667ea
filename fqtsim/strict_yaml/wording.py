"""How keys and values read in a message, and what a word of YAML without quotes denotes."""

from __future__ import annotations

import re

#: Keys and list indices from the top of a file to one value.
KeyPath = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
NOTHING = ("", "~", "null", "Null", "NULL")


def dotted(path: KeyPath) -> str:
    """Return a key path as users write it: `datapath.levels.1.register`."""
    return ".".join(printable(str(part)) for part in path)


def shown(value: object) -> str | None:
    """Return a value as YAML would write it in a line, shortened; None for no value."""
    if value is None:
        return None
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > 256:
        text = f"an integer of {value.bit_length()} bits"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{printable(str(k))}: {shown(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(str(shown(v)) for v in value) + "]"
    elif isinstance(value, str) and (value != value.strip() or plain(value) != value):
        text = repr(value)
    else:
        text = printable(str(value))
    return short(text)


def short(text: str) -> str:
    """Return text fit for a message: printable and at most 80 characters."""
    return printable(text if len(text) <= 80 else text[:77] + "...")


def printable(text: str) -> str:
    """Return `text` with every character that a terminal cannot show written as an escape."""
    return text if text.isprintable() else ascii(text)


def kind(value: object) -> str:
    """Return what a user would call the type of a value."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "an integer"}
    return names.get(type(value), "a decimal number" if isinstance(value, float) else type(value).__name__)


def plain(text: str) -> str | bool | int | float | None:
    """Return what text without quotes denotes; a number too long to be meant is 0."""
    if text in NOTHING:
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) < 100 else 0
    return float(text) if _DECIMAL.fullmatch(text) else text
