"""Requantization: the `output` stages from an accumulator code to an output code (S4 "Requantization")."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from fqtsim.hw.fields import (
    FIXED_ROUNDINGS,
    MAX_REGISTER_BITS,
    FixedRounding,
    OverflowWord,
    StageRegister,
    check_overflow,
)
from fqtsim.hw.markers import Integer, Listing, Word, fault
from fqtsim.hw.validate import StrictModel
from fqtsim.words import IntFormat

KINDS = ("multiply", "shift", "round", "add", "register")
_COMPANION = {"shift": "rounding", "register": "overflow"}


def _stage_schema(schema: dict[str, Any]) -> None:
    """In an editor: one kind of stage, with the word that belongs to it."""
    schema["oneOf"] = [{"required": [kind]} for kind in KINDS]
    pairs = [*_COMPANION.items(), *((companion, kind) for kind, companion in _COMPANION.items())]
    schema["dependentRequired"] = {key: [other] for key, other in pairs}


class Stage(StrictModel):
    """One step of requantization: exactly one of multiply, shift, round, add, register."""

    model_config = ConfigDict(json_schema_extra=_stage_schema)

    multiply: Annotated[Literal["integer", "float32"], Word(("integer", "float32"))] | None = Field(
        default=None,
        description="By the call's integer multiplier; or float32(code) times its float32 scale, a float32.",
    )
    shift: Annotated[int | Literal["call"], Integer(1, MAX_REGISTER_BITS, "call")] | None = Field(
        default=None,
        description="Bits shifted right, rounded; `call` is the call's, to the left where negative.",
    )
    rounding: FixedRounding | None = Field(default=None, description="How `shift` rounds.")
    round: FixedRounding | None = Field(default=None, description="How a float32 becomes an integer.")
    add: Annotated[Literal["zero_point"], Word(("zero_point",))] | None = Field(
        default=None, description="Add the call's zero point."
    )
    register_word: StageRegister | None = Field(
        default=None, alias="register", description="Bring the integer into this format by `overflow`."
    )
    overflow: OverflowWord | None = Field(default=None, description="What `register` does outside its format.")

    @model_validator(mode="after")
    def _one_kind(self) -> Stage:
        given = [kind for kind in KINDS if self._get(kind) is not None]
        if not given:
            raise fault("does nothing", f"add one of {', '.join(KINDS)}")
        if len(given) > 1:
            raise fault(f"has {' and '.join(given)}", "make each a stage of its own", given[1])
        for owner, companion in _COMPANION.items():
            if owner != given[0] and self._get(companion) is not None:
                raise fault(f"does nothing beside {given[0]}", f"remove it; it belongs to {owner}", companion)
        if self.shift is not None and self.rounding is None:
            words = ", ".join(FIXED_ROUNDINGS)
            raise fault("is required and has no default", f"choose one of {words}", "rounding")
        if self.register_word is not None:
            check_overflow(self.register_word, self.overflow)
        return self

    def _get(self, key: str) -> object:
        return getattr(self, "register_word" if key == "register" else key)

    @property
    def kind(self) -> str:
        """Which of multiply, shift, round, add, register this stage is."""
        return next(kind for kind in KINDS if self._get(kind) is not None)

    @property
    def register_format(self) -> IntFormat | None:
        """The register's format, None for the other kinds."""
        return None if self.register_word is None else IntFormat.parse(self.register_word)


def _chain(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Refuse an order that has no meaning: an integer stage on a float32, a second multiplier, and so on."""
    is_float = False
    seen: set[str] = set()
    for index, stage in enumerate(stages):
        kind = stage.kind
        if kind == "round" and not is_float:
            raise fault("the value is already an integer here", "remove it, or multiply: float32 before it", index)
        if kind != "round" and is_float:
            raise fault("needs an integer, but the value is a float32 here", "add {round: ...} before it", index)
        argument = "shift: call" if stage.shift == "call" else kind
        if argument in ("multiply", "add", "shift: call"):
            if argument in seen:
                raise fault(f"is a second `{argument}`, but a call has one value for it", "remove one", index)
            seen.add(argument)
        is_float = stage.multiply == "float32"
    return stages


Output = Annotated[tuple[Stage, ...], AfterValidator(_chain), Listing("stage")]
