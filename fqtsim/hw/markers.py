"""Field types that check themselves: what a value may be, and an error that says rule and remedy.

Each is the second half of an `Annotated` type; pydantic's check and the JSON schema get the same limits.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fqtsim.strict_yaml import kind


def fault(rule: str, remedy: str, *key: str | int) -> PydanticCustomError:
    """Return the error of the value under validation, or of `key` inside it."""
    return PydanticCustomError("fault", "{rule}; {remedy}", {"rule": rule, "remedy": remedy, "key": key})


def nearest(word: str, words: Iterable[str], also: Mapping[str, str] | None = None) -> str | None:
    """Return the known word that `word` was probably meant to be; `also` maps the words of others to ours."""
    known = {**(also or {}), **{w: w for w in words}}
    longer = sorted(w for w in known if w.startswith(word))
    if longer and word:
        return known[longer[0]]
    close = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1, cutoff=0.6)
    return known[close[0]] if close else None


@dataclass(frozen=True)
class Word:
    """A field that takes one of a few words; the value becomes a member where the words are an enum."""

    words: tuple[str, ...]
    #: Words that others use, and ours for them: only to suggest, never accepted.
    also: tuple[tuple[str, str], ...] = ()
    #: Words of ours that do not belong here, and why.
    unfit: tuple[tuple[str, str], ...] = ()

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: object) -> Any:
            if not isinstance(value, str) or value not in self.words:
                raise self._fault(value)
            return source(value) if isinstance(source, type) and issubclass(source, StrEnum) else value

        return core_schema.no_info_before_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words)}

    def _fault(self, value: object) -> PydanticCustomError:
        if len(self.words) == 1:
            return fault(f"must be {self.words[0]}", f"write {self.words[0]}")
        if not isinstance(value, str):
            return fault(f"must be one of {', '.join(self.words)}, not {kind(value)}", "write one of them")
        if value in dict(self.unfit):
            return fault(dict(self.unfit)[value], f"choose one of {', '.join(self.words)}")
        meant = nearest(value, self.words, dict(self.also))
        remedy = f"did you mean {meant}?" if meant else "write one of them"
        return fault(f"must be one of {', '.join(self.words)}", remedy)


@dataclass(frozen=True)
class Integer:
    """A field that takes an integer in a range, or one word instead (`all`, `call`)."""

    lowest: int
    highest: int
    word: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        number = {"type": "integer", "minimum": self.lowest, "maximum": self.highest}
        return {"anyOf": [number, {"const": self.word, "type": "string"}]} if self.word else number

    def _check(self, value: object) -> int | str:
        if self.word is not None and value == self.word:
            return self.word
        span = f"{self.lowest}" if self.lowest == self.highest else f"{self.lowest}..{self.highest}"
        or_word = f" or {self.word}" if self.word else ""
        if isinstance(value, bool) or not isinstance(value, int):
            remedy = f"write digits without quotes{or_word}"
            raise fault(f"must be an integer {span}{or_word}, not {kind(value)}", remedy)
        if not self.lowest <= value <= self.highest:
            nearest_value = min(max(value, self.lowest), self.highest)
            raise fault(f"must be {span}{or_word}", f"use {nearest_value}{or_word}")
        return value


@dataclass(frozen=True)
class Number:
    """A field that takes a real number in a range; an integer is a number too."""

    lowest: float
    highest: float

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "number", "minimum": self.lowest, "maximum": self.highest}

    def _check(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise fault(f"must be a number, not {kind(value)}", "write a number such as 0.1, without quotes")
        if not self.lowest <= value <= self.highest:
            raise fault(f"must be {self.lowest:g}..{self.highest:g}", "use a number in that range")
        return float(value)


@dataclass(frozen=True)
class Truth:
    """A field that takes true or false."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: object) -> bool:
            if not isinstance(value, bool):
                raise fault(f"must be true or false, not {kind(value)}", "write true or false, without quotes")
            return value

        return core_schema.no_info_before_validator_function(check, core_schema.bool_schema())


@dataclass(frozen=True)
class Text:
    """A field that takes text of a given form."""

    #: Regular expression of the whole text; empty for any text that is not blank.
    pattern: str = ""
    rule: str = "must be a sentence"
    remedy: str = "write one, in quotes if it looks like a number"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: object) -> str:
            if not isinstance(value, str):
                raise fault(f"{self.rule}, not {kind(value)}", self.remedy)
            if not (re.fullmatch(self.pattern, value) if self.pattern else value.strip()):
                raise fault(self.rule, self.remedy)
            return value

        return core_schema.no_info_plain_validator_function(check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^({self.pattern})$" if self.pattern else r"\S"}


@dataclass(frozen=True)
class Listing:
    """A field that takes a list with at least one item; it becomes a tuple."""

    #: What one item is called.
    item: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: object) -> tuple[Any, ...]:
            if not isinstance(value, list | tuple):
                raise fault(f"must be a list of {self.item}s, not {kind(value)}", "start each item with '- '")
            if not value:
                raise fault("is an empty list", f"write at least one {self.item}")
            return tuple(value)

        return core_schema.no_info_before_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "minItems": 1}
