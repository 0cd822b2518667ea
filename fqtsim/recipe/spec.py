"""A training recipe as frozen data: which quantizer feeds which operand, and the update (S5.7).

The paper's Q_f is `activation`, Q_theta `weight`, Q_b1 `grad_for_wgrad` and Q_b2 `grad_for_dgrad`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from fqtsim.hw.fields import ROUNDING_ELSEWHERE, Name
from fqtsim.hw.markers import Integer, Listing, Number, Truth, Word, fault, nearest
from fqtsim.hw.validate import FileModel, StrictModel
from fqtsim.strict_yaml import kind
from fqtsim.words import Rounding

PORTS = ("activation", "weight", "grad_for_wgrad", "grad_for_dgrad")
QUANTIZERS = ("ptq", "psq", "bhq", "luq")
ZEROS = ("aligned", "symmetric", "float_offset", "authors")
STEPS = ("free", "power_of_two")
RANGES = ("current", "mean_of_rows", "hindsight")
SCALES = ("per_row", "per_group")
_ZERO_ELSEWHERE = (("asymmetric", "aligned"), ("affine", "aligned"))
SCHEDULES = ("constant", "step", "cosine")
#: Keys added after version 0.1.0, with their defaults.
_LATER = (("step", "free"), ("range", "current"), ("scale", "per_row"))
_ROUNDINGS = tuple(r.value for r in Rounding)
_QUANTIZER_EXAMPLE = "{quantizer: ptq, bits: 8, rounding: ties_to_even, zero: aligned}, or float"


class QuantizerSpec(StrictModel):
    """How one tensor becomes codes."""

    quantizer: Annotated[Literal["ptq", "psq", "bhq", "luq"], Word(QUANTIZERS)] = Field(
        description="Per tensor, per sample (a row of dimension 0), block Householder or LUQ (powers of two)."
    )
    bits: Annotated[int, Integer(2, 8)] = Field(description="Width of the codes, 2..8.", examples=[8])
    rounding: Annotated[Rounding, Word(_ROUNDINGS, ROUNDING_ELSEWHERE)] = Field(
        description="How x / step becomes an integer."
    )
    zero: Annotated[Literal["aligned", "symmetric", "float_offset", "authors"], Word(ZEROS, _ZERO_ELSEWHERE)] = Field(
        description="Real zero is a code, or code 0, or no code (the paper's form), or a code by the authors' formula.",
    )
    step: Annotated[Literal["free", "power_of_two"], Word(STEPS)] = Field(
        default="free", description="Any step, or only powers of two."
    )
    range: Annotated[Literal["current", "mean_of_rows", "hindsight"], Word(RANGES)] = Field(
        default="current",
        description="The tensor's own, or two that clamp: the mean of its rows (ptq), or of steps before (ptq, luq).",
    )
    scale: Annotated[Literal["per_row", "per_group"], Word(SCALES)] = Field(
        default="per_row", description="bhq only: a grid for each mixed row, or one for those of a group (the paper)."
    )
    per_channel: Annotated[bool, Truth()] = Field(
        default=False,
        description="One step per output channel: weight (in fprop; one per tensor in dgrad) or grad_for_wgrad.",
    )

    @property
    def code_bits(self) -> int:
        """Width of the codes; those of luq are powers of two, one for each pattern of its bits."""
        return 2 ** (self.bits - 1) if self.quantizer == "luq" else self.bits

    @model_serializer(mode="wrap")
    def _later_keys_only_where_they_act(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out a key that older versions lack at its default: their runs and digests stay."""
        written: dict[str, Any] = write(self)
        return {key: value for key, value in written.items() if (key, value) not in _LATER}


@dataclass(frozen=True)
class _Port:
    """A field that takes `float` or a quantizer."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any, inner: Any) -> QuantizerSpec | str:
            if value == "float":
                return "float"
            if isinstance(value, str):
                meant = "did you mean float?" if nearest(value, ("float",)) else f"write {_QUANTIZER_EXAMPLE}"
                raise fault("must be float or a quantizer", meant)
            if not isinstance(value, dict | QuantizerSpec):
                raise fault(f"must be float or a quantizer, not {kind(value)}", f"write {_QUANTIZER_EXAMPLE}")
            return inner(value)  # type: ignore[no-any-return]

        def write(value: Any, inner: Any) -> Any:
            return value if value == "float" else inner(value)

        return core_schema.no_info_wrap_validator_function(
            check,
            handler.generate_schema(QuantizerSpec),
            serialization=core_schema.wrap_serializer_function_ser_schema(write),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"const": "float", "type": "string"}]}


Port = Annotated[QuantizerSpec | Literal["float"], _Port()]


class Optimizer(StrictModel):
    """The update rule (S5.11)."""

    name: Annotated[Literal["sgd"], Word(("sgd",))] = Field(description="The rule.")
    lr: Annotated[float, Number(0, 1e4)] = Field(description="Learning rate before the schedule.", examples=[0.1])
    momentum: Annotated[float, Number(0, 1)] = Field(description="mu of v = mu*v + g.", examples=[0.9])
    nesterov: Annotated[bool, Truth()] = Field(description="Step by g + mu*v, not v.", examples=["false"])
    weight_decay: Annotated[float, Number(0, 1e4)] = Field(description="wd of g = g + wd*w.", examples=["1e-4"])
    decay_norm: Annotated[bool, Truth()] = Field(
        description="Whether batch norm's gamma and beta decay too.", examples=["false"]
    )

    @model_validator(mode="after")
    def _nesterov_acts(self) -> Optimizer:
        if self.nesterov and self.momentum == 0:
            raise fault("does nothing without momentum", "set nesterov: false, or a momentum", "nesterov")
        return self


_Count = Annotated[int, Integer(1, (1 << 31) - 1)]
_BELONGS = {"steps": "cosine", "milestones": "step", "factor": "step"}


class Schedule(StrictModel):
    """How the learning rate changes, as a factor on `optimizer.lr`; steps count from 0."""

    name: Annotated[Literal["constant", "step", "cosine"], Word(SCHEDULES)] = Field(
        description="constant; step: times `factor` from each milestone on; cosine: (1 + cos(pi t/steps))/2.",
    )
    steps: _Count | None = Field(
        default=None, description="cosine: steps until the rate is 0; without it, the length of the run."
    )
    milestones: Annotated[tuple[_Count, ...], Listing("step")] | None = Field(
        default=None, description="step: the steps at which the rate is multiplied, ascending."
    )
    factor: Annotated[float, Number(0, 1)] | None = Field(default=None, description="step: the multiplier.")
    warmup_steps: _Count | None = Field(
        default=None, description="The rate of step t < warmup_steps is also times (t + 1)/warmup_steps."
    )

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> Schedule:
        for key, owner in _BELONGS.items():
            given = getattr(self, key) is not None
            if given and self.name != owner:
                raise fault(f"does nothing in a {self.name} schedule", f"remove it, or use name: {owner}", key)
            if not given and self.name == owner == "step":
                raise fault("is required", f"add {key}: {'0.1' if key == 'factor' else '[1000, 2000]'}", key)
        if self.milestones is not None and list(self.milestones) != sorted(set(self.milestones)):
            raise fault("must ascend", "sort the steps and drop repetitions", "milestones")
        return self


class Recipe(FileModel):
    """One recipe file."""

    schema_version: Annotated[int, Integer(1, 1)] = Field(
        alias="schema", description="Version of this format: 1.", examples=[1]
    )
    name: Name = Field(description="Name of the recipe, as its file is called.", examples=["my_recipe"])
    activation: Port = Field(description="Q_f of X, for fprop and wgrad.", examples=[_QUANTIZER_EXAMPLE])
    weight: Port = Field(description="Q_theta of W, for fprop and dgrad.", examples=[_QUANTIZER_EXAMPLE])
    grad_for_wgrad: Port = Field(description="Q_b1 of dH, for wgrad.", examples=[_QUANTIZER_EXAMPLE])
    grad_for_dgrad: Port = Field(description="Q_b2 of dH, for dgrad.", examples=[_QUANTIZER_EXAMPLE])
    optimizer: Optimizer = Field(
        description="The update rule.",
        examples=["{name: sgd, lr: 0.1, momentum: 0.9, nesterov: false, weight_decay: 1e-4, decay_norm: false}"],
    )
    schedule: Schedule = Field(description="The learning rate over time.", examples=["{name: constant}"])

    @model_validator(mode="after")
    def _ports_fit_their_gemms(self) -> Recipe:
        for port in PORTS:
            spec = self.port(port)
            if spec is None:
                continue
            if port != "grad_for_dgrad" and spec.quantizer in ("psq", "bhq"):
                rule = f"gives every row its own step, which would vary along K of {_contracted(port)}"
                raise fault(rule, "use ptq here", port, "quantizer")
            self._range_is_of_a_tensor(port, spec)
            if spec.scale != "per_row" and spec.quantizer != "bhq":
                raise fault("is for bhq only: other quantizers have no groups", "remove it", port, "scale")
            self._log_codes_are_whole(port, spec)
            self._channels_are_columns(port, spec)
        self._float_in_pairs()
        return self

    def _range_is_of_a_tensor(self, port: str, spec: QuantizerSpec) -> None:
        if spec.range == "mean_of_rows" and spec.quantizer != "ptq":
            raise fault("is for ptq only: others take the range as it is", "remove it", port, "range")
        if spec.range == "hindsight" and spec.quantizer not in ("ptq", "luq"):
            raise fault("is for ptq and luq: others have a range for each row", "remove it", port, "range")
        if spec.range == "hindsight" and spec.per_channel:
            raise fault("keeps one range, and each channel has its own", "remove one of the two", port, "range")

    def _channels_are_columns(self, port: str, spec: QuantizerSpec) -> None:
        if not spec.per_channel:
            return
        if port not in ("weight", "grad_for_wgrad"):
            raise fault("is for weight and grad_for_wgrad only", "remove it", port, "per_channel")
        if spec.quantizer != "ptq":
            raise fault(f"is for ptq: {spec.quantizer} has no form per channel", "remove it", port, "per_channel")
        if port == "grad_for_wgrad" and spec.range != "current":
            raise fault("does nothing where each channel has its own range", "remove it", port, "range")

    def _log_codes_are_whole(self, port: str, spec: QuantizerSpec) -> None:
        if spec.quantizer != "luq":
            return
        if spec.bits > 4:
            raise fault("is over 4, beyond which codes of luq pass 64", "use 2..4 bits, or ptq", port, "bits")
        if spec.rounding is not Rounding.STOCHASTIC:
            raise fault("is not what luq does: it rounds at random in octaves", "use stochastic", port, "rounding")
        if spec.zero != "symmetric":
            raise fault("is not what luq has: zero is code 0", "use symmetric", port, "zero")

    def _float_in_pairs(self) -> None:
        """A GEMM is integer or float: no operand is quantized for one whose other operand is float."""
        partners = (
            ("activation", "weight", "fprop"),
            ("weight", "activation", "fprop"),
            ("grad_for_wgrad", "activation", "wgrad"),
            ("grad_for_dgrad", "weight", "dgrad"),
        )
        for port, partner, gemm in partners:
            if self.port(port) is not None and self.port(partner) is None:
                rule = f"is multiplied by {partner} in {gemm}, which is float"
                raise fault(rule, f"quantize {partner} too, or set both to float", port)
        if (self.port("grad_for_wgrad") is None) != (self.port("grad_for_dgrad") is None):
            rule = "float gradients come from the platform's GEMM, in dgrad and wgrad or in neither"
            raise fault(rule, "set both gradient ports to float, or quantize both", "grad_for_dgrad")

    def port(self, name: str) -> QuantizerSpec | None:
        """Return the quantizer of a port, None where it is float."""
        spec = getattr(self, name)
        return spec if isinstance(spec, QuantizerSpec) else None


def _contracted(port: str) -> str:
    return "dgrad" if port == "weight" else "wgrad"
