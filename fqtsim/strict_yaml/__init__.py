"""Strict YAML: text to plain data that still knows its lines, with one way to write a thing.

A hardware file decides bits, so nothing in it may be guessed: no anchors, tags, merge keys, duplicate keys,
empty values or YAML 1.1 surprises (`no`, `010`, `1:30` and dates are text). Each refusal names file and line.
"""

from fqtsim.strict_yaml.document import MAX_BYTES, Document, display_name, read, read_text, write
from fqtsim.strict_yaml.wording import KeyPath, dotted, kind, printable, shown

__all__ = [
    "MAX_BYTES",
    "Document",
    "KeyPath",
    "display_name",
    "dotted",
    "kind",
    "printable",
    "read",
    "read_text",
    "shown",
    "write",
]
