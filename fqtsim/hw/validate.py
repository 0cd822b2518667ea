"""Files as models: exactly the declared keys, and errors that name the line of what is wrong.

Every refusal is a `fault` that carries its own words and the key it is about; `validate` turns the one that
stands first in the file into an error with file and line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from fqtsim.errors import InputError
from fqtsim.hw.markers import Word, fault, nearest
from fqtsim.strict_yaml import Document, KeyPath, kind, printable

_File = TypeVar("_File", bound="FileModel")


class StrictModel(BaseModel):
    """A mapping of exactly the keys declared, all required but those whose default is None."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _exact_keys(cls, data: Any) -> Any:
        if isinstance(data, cls):
            return data
        fields = {info.alias or name: info for name, info in cls.model_fields.items()}
        if not isinstance(data, dict):
            raise fault(f"must be a mapping, not {kind(data)}", f"write its keys: {', '.join(fields)}")
        for key in data:
            if key not in fields:
                meant = nearest(str(key), fields)
                remedy = f"did you mean {meant}?" if meant else f"the keys here are {', '.join(fields)}"
                raise fault("is not a key", remedy, key)
        for key, info in fields.items():
            if info.is_required() and key not in data:
                raise _missing(key, info)
        return data


def _missing(key: str, info: FieldInfo) -> PydanticCustomError:
    words = next((marker.words for marker in info.metadata if isinstance(marker, Word)), ())
    if len(words) > 1:
        return fault("is required and has no default", f"choose one of {', '.join(words)}", key)
    return fault("is required", f"add {key}: {words[0] if words else (info.examples or ['...'])[0]}", key)


class FileModel(StrictModel):
    """A whole file, which still knows where each key came from."""

    _document: Document = PrivateAttr(default_factory=lambda: Document({}, {}, "<python>"))

    @property
    def origin(self) -> str:
        """What messages call the file that this came from."""
        return self._document.origin

    def location(self, key: str) -> str:
        """Return "FILE:LINE" of a dotted key, or of the nearest key that encloses it."""
        return self._document.location(key_path(key))

    def error(self, key: str, rule: str, remedy: str) -> InputError:
        """Return the error about one dotted key of this file."""
        return self._document.error(key_path(key), rule, remedy)


def key_path(key: str) -> KeyPath:
    """Return the path of a dotted key; a part of digits is a list index."""
    return tuple(int(part) if part.isdecimal() else part for part in key.split(".")) if key else ()


def validate(model: type[_File], document: Document) -> _File:
    """Return the model that a document describes. Raises InputError at the line of the first fault."""
    version = document.data.get("schema", 1)
    if type(version) is int and version != 1:
        raise document.error(("schema",), "must be 1", "use schema: 1, or a newer fqtsim")
    try:
        file = model.model_validate(document.data)
        file._document = document
        return file
    except ValidationError as error:
        faults = [(_path(e["loc"], e.get("ctx", {})), e) for e in error.errors(include_url=False)]
    path, first = min(faults, key=lambda found: _line(document, found[0]))
    context = first.get("ctx", {})
    raise document.error(
        path, context.get("rule", printable(first["msg"])), context.get("remedy", "see docs/hwconfig.md")
    )


def _path(loc: tuple[str | int, ...], context: Mapping[str, Any]) -> KeyPath:
    return (*loc, *context.get("key", ()))


def _line(document: Document, path: KeyPath) -> int:
    known = (path[:length] for length in range(len(path), -1, -1))
    return next((document.lines[p] for p in known if p in document.lines), 1)
