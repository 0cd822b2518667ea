"""What a shrink may change: accumulator widths per layer and GEMM, and the number of random bits."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.recipe.spec import PORTS, Recipe
from fqtsim.train.module import integer_gemms
from fqtsim.words import GEMMS, Rounding

#: A layer and one of its GEMMs.
Place = tuple[str, str]
#: Name of each variable -> bits.
Candidate = dict[str, int]
RANDOM_BITS = "random bits"


@dataclass(frozen=True)
class Variable:
    """One width that is searched."""

    #: "LAYER GEMM", "GEMM" where all layers share one width, or RANDOM_BITS.
    name: str
    #: Accumulators that have this width; none for random bits.
    places: tuple[Place, ...]
    #: Narrowest width tried, and widest.
    floor: int
    ceiling: int
    #: Width in the file that is shrunk.
    own: int


@dataclass(frozen=True)
class Space:
    """Everything that is searched, over one hardware file."""

    hardware: Hardware
    variables: tuple[Variable, ...]
    #: True for one width per layer and GEMM, False for one per GEMM.
    per_layer: bool

    @property
    def places(self) -> tuple[Place, ...]:
        """Every accumulator in use."""
        return tuple(place for variable in self.variables for place in variable.places)

    def seen(self) -> Candidate:
        """Return the widths that held every sum of the instrumented run."""
        return {variable.name: variable.ceiling for variable in self.variables}

    def own(self) -> Candidate:
        """Return the widths of the file itself."""
        return {variable.name: variable.own for variable in self.variables}

    def widths(self, candidate: Candidate) -> dict[Place, int]:
        """Return the accumulator width of each layer and GEMM."""
        return {place: candidate[v.name] for v in self.variables for place in v.places}

    def widest(self, candidate: Candidate) -> dict[str, int]:
        """Return the accumulator width of each GEMM that all layers can share."""
        widest: dict[str, int] = {}
        for (_, gemm), width in self.widths(candidate).items():
            widest[gemm] = max(width, widest.get(gemm, 0))
        return widest

    def describe(self, candidate: Candidate) -> dict[str, Hardware]:
        """Return the hardware of a candidate by pattern of layer names."""
        bits = candidate.get(RANDOM_BITS)
        if not self.per_layer:
            return {"*": narrowed(self.hardware, self.widest(candidate), bits)}
        by_layer: dict[str, dict[str, int]] = {}
        for (layer, gemm), width in self.widths(candidate).items():
            by_layer.setdefault(layer, {})[gemm] = width
        return {glob.escape(layer): narrowed(self.hardware, widths, bits) for layer, widths in by_layer.items()}


def cost(candidate: Candidate) -> int:
    """Return the bits of all searched registers and of the random source together."""
    return sum(candidate.values())


def register_word(hardware: Hardware, gemm: str, width: int) -> str:
    """Return the accumulator's format at another width, in its own signedness."""
    form = hardware.datapath_for(gemm).accumulator.register_format
    return f"{'' if form is None or form.signed else 'u'}int{width}"


def own_width(hardware: Hardware, gemm: str) -> int:
    """Return the accumulator's width. Raises InputError for `exact`, which has none."""
    form = hardware.datapath_for(gemm).accumulator.register_format
    if form is None:
        count = len(hardware.datapath_for(gemm).levels)
        where = hardware.datapath_location(gemm, f"levels.{count - 1}.register")
        raise InputError(
            f"{where} = exact: an accumulator without a width cannot be shrunk; "
            "give it one and an overflow word, for example {terms: all, register: int32, overflow: saturate}"
        )
    return form.bits


def narrowed(hardware: Hardware, widths: Mapping[str, int], random_bits: int | None) -> Hardware:
    """Return the hardware with other accumulator widths by GEMM and, where given, another number of random bits."""
    changes: dict[str, object] = {}
    for gemm, width in widths.items():
        levels = [_plain(level) for level in hardware.datapath_for(gemm).levels]
        levels[-1]["register"] = register_word(hardware, gemm, width)
        changes[f"gemms.{gemm}.levels"] = levels
    if random_bits is not None:
        changes["random.bits"] = random_bits
    return load_hardware(hardware, changes)


def _plain(level: Any) -> dict[str, Any]:
    plain: dict[str, Any] = level.model_dump(mode="json", by_alias=True, exclude_none=True)
    return plain


def searched_gemms(hardware: Hardware, recipe: Recipe) -> tuple[str, ...]:
    """Return the GEMMs that run on the hardware. Raises InputError where none does, or one has no width to shrink."""
    gemms = integer_gemms(recipe)
    if not gemms:
        raise InputError(f"recipe = {recipe.name}: no GEMM runs on the hardware; use a recipe that quantizes, as bhq5")
    for gemm in gemms:
        own_width(hardware, gemm)
    return tuple(gemm for gemm in GEMMS if gemm in gemms)


def draws_random_bits(recipe: Recipe) -> bool:
    """Tell whether any quantizer of the recipe rounds stochastically."""
    specs = (recipe.port(port) for port in PORTS)
    return any(spec is not None and spec.rounding is Rounding.STOCHASTIC for spec in specs)


def space_of(
    hardware: Hardware, recipe: Recipe, needed: Mapping[Place, int | None], floor: int, per_layer: bool
) -> Space:
    """Return what to search, given the width that each accumulator needed in the instrumented run.

    The search starts at that width, or at the file's own where that is narrower, and goes down to `floor`.
    """
    ceilings: dict[Place, int] = {}
    for (layer, gemm), bits in needed.items():
        own = own_width(hardware, gemm)
        ceilings[layer, gemm] = own if bits is None else min(bits, own)
    groups: dict[str, list[Place]] = {}
    for layer, gemm in in_order(ceilings):
        groups.setdefault(f"{layer} {gemm}" if per_layer else gemm, []).append((layer, gemm))
    variables = []
    for name, places in groups.items():
        ceiling = max(ceilings[place] for place in places)
        variables.append(Variable(name, tuple(places), min(floor, ceiling), ceiling, own_width(hardware, places[0][1])))
    if draws_random_bits(recipe) and hardware.random is not None:
        variables.append(Variable(RANDOM_BITS, (), 1, hardware.random.bits, hardware.random.bits))
    return Space(hardware, tuple(variables), per_layer)


def in_order(places: Iterable[Place]) -> list[Place]:
    """Return layers in the order of the forward pass, each with its GEMMs in the order of the vocabulary."""
    layers: dict[str, list[str]] = {}
    for layer, gemm in places:
        layers.setdefault(layer, []).append(gemm)
    return [(layer, gemm) for layer, gemms in layers.items() for gemm in sorted(gemms, key=GEMMS.index)]
