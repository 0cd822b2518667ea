"""The hardware description as frozen data: what a file may say and how its parts fit together (S4).

These models are the single source of the file format: the loader checks with them and the JSON schema is
generated from them. Descriptions are what editors show; what a register or rounding *does* is in ref/.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from fqtsim.errors import InputError
from fqtsim.hw.fields import (
    MAX_RANDOM_BITS,
    MAX_REGISTER_BITS,
    Count,
    FixedRounding,
    Lanes,
    Name,
    Operand,
    OverflowWord,
    Register,
    Sentence,
    ZeroPointWord,
    check_overflow,
)
from fqtsim.hw.markers import Integer, Listing, Word, fault
from fqtsim.hw.stages import Output, Stage
from fqtsim.hw.validate import FileModel, StrictModel
from fqtsim.words import GEMMS, IntFormat, ZeroPoint

__all__ = ["Datapath", "DatapathChange", "Gemms", "Hardware", "Item", "Level", "RandomSource", "Stage"]


def _item_schema(schema: dict[str, Any]) -> None:
    """In an editor: dropping nothing is written without a rounding, dropping bits with one."""
    schema["properties"]["drop_bits"]["minimum"] = 0
    schema["required"] = ["drop_bits"]
    schema["if"] = {"properties": {"drop_bits": {"const": 0}}}
    schema["then"] = {"not": {"required": ["rounding"]}}
    schema["else"] = {"required": ["rounding"]}


def _level_schema(schema: dict[str, Any]) -> None:
    """In an editor: one grouping, and an overflow word wherever the register has a width."""
    schema["oneOf"] = [{"required": [key]} for key in ("terms", "parts", "lanes")]
    schema["if"] = {"properties": {"register": {"const": "exact"}}}
    schema["then"] = {"not": {"required": ["overflow"]}}
    schema["else"] = {"required": ["overflow"]}


class Item(StrictModel):
    """What happens to each item before it is added: x becomes x / 2**drop_bits, rounded to an integer."""

    model_config = ConfigDict(json_schema_extra=_item_schema)

    drop_bits: Annotated[int, Integer(1, MAX_REGISTER_BITS)] = Field(
        description="Number of low bits dropped from each item.", examples=[4]
    )
    rounding: FixedRounding = Field(
        description="How the item without its dropped bits becomes an integer.",
    )


def _without_inert_item(value: Any) -> Any:
    """Zero dropped bits are no item; a rounding beside them would do nothing and is refused."""
    if not isinstance(value, dict) or value.get("drop_bits") != 0 or isinstance(value.get("drop_bits"), bool):
        return value
    if "rounding" in value:
        raise fault("does nothing where drop_bits is 0", "remove it, or drop at least one bit", "rounding")
    return None if len(value) == 1 else value


class Level(StrictModel):
    """One stage of summation: a grouping of items, what happens to each, and the register that sums them."""

    model_config = ConfigDict(json_schema_extra=_level_schema)

    terms: Annotated[int | Literal["all"], Integer(1, (1 << 31) - 1, "all")] | None = Field(
        default=None, description="Sum runs of this many consecutive items; `all` sums every item."
    )
    parts: Count | None = Field(default=None, description="Sum this many contiguous runs of ceil(items/parts).")
    lanes: Lanes | None = Field(default=None, description="Item t goes to register t mod lanes.")
    item: Annotated[Item | None, BeforeValidator(_without_inert_item)] = Field(
        default=None, description="What happens to each item before it is added."
    )
    register_word: Register = Field(
        alias="register",
        description="Format of the register, or `exact`: it never overflows.",
        examples=["int32"],
    )
    overflow: OverflowWord | None = Field(
        default=None, description="What the register does with a sum outside its format; none for `exact`."
    )

    @model_validator(mode="after")
    def _one_grouping(self) -> Level:
        given = [key for key in ("terms", "parts", "lanes") if getattr(self, key) is not None]
        if not given:
            raise fault("has no grouping", "add one of terms, parts, lanes")
        if len(given) > 1:
            raise fault(f"has {' and '.join(given)}", f"keep one of {', '.join(given)}", given[1])
        return self

    @model_validator(mode="after")
    def _overflow_where_it_acts(self) -> Level:
        check_overflow(self.register_word, self.overflow)
        return self

    @property
    def register(self) -> str:
        """The register as written: a format or `exact`."""
        return self.register_word

    @property
    def grouping(self) -> Literal["all", "terms", "parts", "lanes"]:
        """Which grouping this level has; `all` is `terms: all`."""
        if self.terms is not None:
            return "all" if self.terms == "all" else "terms"
        return "parts" if self.parts is not None else "lanes"

    @property
    def count(self) -> int | None:
        """The number of the grouping, None for `all`."""
        number = self.terms or self.parts or self.lanes
        return number if isinstance(number, int) else None

    @property
    def register_format(self) -> IntFormat | None:
        """The register's format, None for `exact`."""
        return None if self.register_word == "exact" else IntFormat.parse(self.register_word)

    @property
    def dropped_bits(self) -> int:
        """Bits that this level drops from its items."""
        return self.item.drop_bits if self.item else 0


def _chain(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    if levels[-1].grouping != "all":
        rule = "the last level must be `terms: all`: its register is the accumulator"
        raise fault(rule, "add a level {terms: all, register: ..., overflow: ...}", len(levels) - 1)
    if sum(level.dropped_bits for level in levels) > MAX_REGISTER_BITS:
        raise fault(f"drop more than {MAX_REGISTER_BITS} bits together", "drop fewer")
    return levels


Levels = Annotated[tuple[Level, ...], AfterValidator(_chain), Listing("level")]


class Datapath(StrictModel):
    """What one GEMM does to codes: operand formats and the chain of levels behind the multipliers."""

    a: Operand = Field(description="Format of the left operand's codes.", examples=["int8"])
    b: Operand = Field(description="Format of the right operand's codes.", examples=["int8"])
    zero_point: ZeroPointWord = Field(
        description="Where zero points enter: none, before_multiply or after_accumulate.",
    )
    levels: Levels = Field(
        description="Stages of summation, multipliers first; the last register is the accumulator.",
        examples=["[{terms: all, register: int32, overflow: wrap}]"],
    )

    @property
    def a_format(self) -> IntFormat:
        """The format of the left operand's codes."""
        return IntFormat.parse(self.a)

    @property
    def b_format(self) -> IntFormat:
        """The format of the right operand's codes."""
        return IntFormat.parse(self.b)

    def multiplier_format(self, side: Literal["a", "b"]) -> IntFormat:
        """Return what the multiplier takes: codes, or differences one bit wider and signed (`before_multiply`)."""
        declared = self.a_format if side == "a" else self.b_format
        return IntFormat(declared.bits + 1, True) if self.zero_point is ZeroPoint.BEFORE_MULTIPLY else declared

    @property
    def dropped_bits(self) -> int:
        """Bits dropped on the way: an accumulator code means `code * 2**dropped_bits`."""
        return sum(level.dropped_bits for level in self.levels)

    @property
    def accumulator(self) -> Level:
        """The last level, whose register is the accumulator."""
        return self.levels[-1]


class DatapathChange(StrictModel):
    """Keys that replace those of `datapath` for one GEMM, each as a whole."""

    a: Operand | None = Field(default=None, description="Replaces datapath.a.")
    b: Operand | None = Field(default=None, description="Replaces datapath.b.")
    zero_point: ZeroPointWord | None = Field(default=None, description="Replaces datapath.zero_point.")
    levels: Levels | None = Field(default=None, description="Replaces datapath.levels, all of them.")


class Gemms(StrictModel):
    """What differs in each of the three GEMMs of training."""

    fprop: DatapathChange | None = Field(default=None, description="Q_f(X) Q_w(W): a is X, b is W.")
    dgrad: DatapathChange | None = Field(default=None, description="Q_b2(dH) Q_w(W)^T: a is dH, b is W.")
    wgrad: DatapathChange | None = Field(default=None, description="Q_f(X)^T Q_b1(dH): a is X, b is dH.")


class RandomSource(StrictModel):
    """Where stochastic rounding gets its bits."""

    generator: Annotated[Literal["philox4x32-10"], Word(("philox4x32-10",))] = Field(
        description="The generator.", examples=["philox4x32-10"]
    )
    bits: Annotated[int, Integer(1, MAX_RANDOM_BITS)] = Field(
        description="Random bits for one rounding, 1..32.", examples=[16]
    )


class Hardware(FileModel):
    """One hardware file: datapaths of the three GEMMs, requantization, random bits, and where it is from."""

    schema_version: Annotated[int, Integer(1, 1)] = Field(
        alias="schema", description="Version of this format: 1.", examples=[1]
    )
    name: Name = Field(description="Name of the hardware, as its file is called.", examples=["my_hardware"])
    summary: Sentence = Field(description="What it is, in one sentence.", examples=["one sentence"])
    source: Sentence = Field(
        description="Document, RTL file or measurement behind every number; or `hypothetical`.",
        examples=["hypothetical"],
    )
    checked_against: Sentence = Field(description="Oracle, vectors and date; or `nothing`.", examples=["nothing"])
    datapath: Datapath = Field(
        description="The MAC array.", examples=["{a: ..., b: ..., zero_point: ..., levels: ...}"]
    )
    gemms: Gemms | None = Field(default=None, description="What differs for fprop, dgrad and wgrad.")
    output: Output | None = Field(
        default=None, description="Stages from accumulator code to output code, for integer results."
    )
    random: RandomSource | None = Field(
        default=None, description="Source of random bits; needed by recipes that round stochastically."
    )

    def datapath_for(self, gemm: str) -> Datapath:
        """Return the datapath of "fprop", "dgrad" or "wgrad". Raises InputError for another word."""
        if gemm not in GEMMS:
            raise InputError(f"gemm = {gemm!r}: must be one of {', '.join(GEMMS)}; use one of them")
        change: DatapathChange | None = getattr(self.gemms, gemm, None)
        if change is None:
            return self.datapath
        given = {key: value for key in DatapathChange.model_fields if (value := getattr(change, key)) is not None}
        return self.datapath.model_copy(update=given)

    def datapath_location(self, gemm: str, key: str) -> str:
        """Return "FILE:LINE: key.path" of a datapath key, in `gemms` where that GEMM replaces it."""
        change = getattr(self.gemms, gemm, None)
        replaced = change is not None and getattr(change, key.split(".")[0]) is not None
        full = f"gemms.{gemm}.{key}" if replaced else f"datapath.{key}"
        return f"{self.location(full)}: {full}"
