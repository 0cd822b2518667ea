"""Make a golden set: inputs from the library, codes from the emulator, a sample of each case from the definition."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fqtsim.backends.base import code_dtype
from fqtsim.backends.plans import tile_plan
from fqtsim.backends.stepwise import prepare
from fqtsim.errors import InputError
from fqtsim.golden.case import SCHEMA, Array, Case, Deferred, GoldenSet, description_of
from fqtsim.golden.coverage import gemm_coverage, is_counted_by_level, run
from fqtsim.golden.inputs import LARGE, Builder, Draw, Inputs, Plan, large_cases, random_cases
from fqtsim.golden.recheck import check_sample
from fqtsim.golden.sums import sum_cases
from fqtsim.golden.traps import trap_cases
from fqtsim.golden.vacuity import refuse_vacuous
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Datapath, Hardware
from fqtsim.words import GEMMS

VERSION = "2"
"""Of the generator: another one may give other inputs for the same seed."""
KINDS = ("gemm", "conv", "quantize", "requantize", "scaled_linear", "linear")
"""Kinds to ask for; conv is its three GEMMs, scaled_linear a layer with its epilogue, linear a whole layer step."""
HELD_BYTES = 1 << 19
"""A case of more bytes is large: a file holds a seed and digests in its place."""
TRACED_REGISTERS = 1 << 15


def hardware_sha256(hardware: Hardware) -> str:
    """Return the SHA-256 of what a hardware file says: comments, layout and order of keys do not count."""
    content = hardware.model_dump(mode="json", by_alias=True, exclude_none=True)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def make_golden(
    hardware: Hardware | str,
    gemm: str = "fprop",
    kinds: Sequence[str] = ("gemm",),
    seed: int = 0,
    trace: bool = False,
    start: bool = True,
    large: bool = True,
) -> GoldenSet:
    """Return the golden set of a hardware: always the same for the same arguments and VERSION.

    gemm: whose datapath the cases of kind gemm run on. trace: also hold every level's registers. start: also cases
    with start values c. large: also cases of more than HELD_BYTES (K = 131,071 and more, sizes of 4096), which hold a
    seed and digests in place of arrays.
    Raises InputError for an unknown kind or GEMM, a kind that the hardware does not have, and a set that would prove
    nothing.
    """
    described = load_hardware(hardware)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or gemm not in GEMMS or not 0 <= seed < 1 << 64:
        name, value, rule = ("kind", unknown[0], f"must be one of {', '.join(KINDS)}") if unknown else (
            ("gemm", gemm, f"must be one of {', '.join(GEMMS)}") if gemm not in GEMMS else
            ("seed", seed, "must be 0..2**64 - 1"))  # fmt: skip
        raise InputError(f"{name} = {value!r}: {rule}; use one of those")
    cases: list[Case] = []
    if "gemm" in kinds:
        cases += gemm_cases(described, gemm, seed, trace, start, large)
    for kind, makers in _makers().items():
        for maker in makers if kind in kinds else ():
            cases += maker(described, seed)
    golden = GoldenSet(described, hardware_sha256(described), seed, VERSION, SCHEMA, tuple(cases))
    refuse_vacuous(golden)
    return golden


def _makers() -> dict[str, tuple[Callable[[Hardware, int], list[Case]], ...]]:
    """Return what makes the cases of each kind but gemm."""
    from fqtsim.golden.aims import aimed_conv_cases, aimed_linear_cases
    from fqtsim.golden.codes import quantize_cases, requantize_cases
    from fqtsim.golden.layers import conv_cases, linear_cases
    from fqtsim.golden.mixed import mixed_cases
    from fqtsim.golden.scaled import scaled_linear_cases

    return {
        "conv": (conv_cases, aimed_conv_cases),
        "quantize": (quantize_cases, mixed_cases),
        "requantize": (requantize_cases,),
        "scaled_linear": (scaled_linear_cases,),
        "linear": (linear_cases, aimed_linear_cases),
    }


def builders(datapath: Datapath, large: bool = True) -> dict[str, Builder]:
    """Return the builder of every GEMM case of a datapath, by name."""
    found = {**random_cases(), **trap_cases(), **sum_cases(datapath)}
    return found | large_cases(_is_quick(datapath)) if large else found


def _is_quick(datapath: Datapath) -> bool:
    """Tell whether the emulator runs a GEMM of size 4096 on it in seconds, not minutes, on any CPU."""
    form_a, form_b = datapath.multiplier_format("a"), datapath.multiplier_format("b")
    a = np.full((1, LARGE), form_a.minimum, form_a.storage)
    b = np.full((LARGE, 1), form_b.minimum, form_b.storage)
    a[0, 0], b[0, 0] = form_a.maximum, form_b.maximum
    try:
        lowered = prepare(a, b, datapath, None)
    except InputError:  # more than 63 bits: no case of this size can be made at all
        return False
    return lowered.never_overflows or lowered.order_free_wrap or tile_plan(lowered, dot=False) is not None


def gemm_cases(
    hardware: Hardware, gemm: str, seed: int, trace: bool = False, start: bool = True, large: bool = True
) -> list[Case]:
    """Return the cases of one GEMM, smallest first among the large."""
    datapath = hardware.datapath_for(gemm)
    cases = []
    for name, builder in builders(datapath, large).items():
        if name.startswith("start") and not start:
            continue
        inputs = builder(Plan(datapath, Draw(seed, name)))
        if inputs is None or (not large and not _is_held(inputs, datapath)):
            continue
        case = _gemm_case(name, inputs, hardware, gemm, seed, trace)
        cases += [case] if case is not None else []
    return cases


def _is_held(inputs: Inputs, datapath: Datapath) -> bool:
    """Tell whether a file holds the operands and codes of a GEMM as they are."""
    codes = inputs["a"].shape[0] * inputs["b"].shape[1] * np.dtype(code_dtype(datapath)).itemsize
    return bool(sum(array.nbytes for array in inputs.values()) + codes <= HELD_BYTES)


def _gemm_case(name: str, inputs: Inputs, hardware: Hardware, gemm: str, seed: int, trace: bool) -> Case | None:
    """Return one case; None where this datapath refuses its sums (an exact register of more than 63 bits)."""
    datapath = hardware.datapath_for(gemm)
    try:
        result = run(inputs, datapath, trace=is_counted_by_level(inputs))
    except InputError:
        return None
    check_sample(name, inputs, datapath, result)
    held = _is_held(inputs, datapath)
    expected = {"codes": result.codes}
    events = {key: getattr(result.events, key) for key in ("altered", "out_of_range", "transient")}
    coverage = gemm_coverage(inputs, datapath, result)
    traced = {f"level{index}": level.registers for index, level in enumerate(result.trace or ())}
    small = trace and held and sum(array.size for array in traced.values()) <= TRACED_REGISTERS
    arguments = (name, "gemm", {"gemm": gemm})
    if held:
        return Case(*arguments, inputs, expected, events, coverage, traced if small else {})
    seeded = {
        "builder": name,
        "inputs": {key: description_of(array) for key, array in inputs.items()},
        "expected": {key: description_of(array) for key, array in expected.items()},
    }
    return Case(*arguments, *deferred(hardware, gemm, seed, VERSION, seeded), events, coverage, {}, seeded)


def deferred(
    hardware: Hardware, gemm: str, seed: int, version: str, seeded: Mapping[str, Any]
) -> tuple[Deferred, Deferred]:
    """Return inputs and expected outputs of a seeded case, made and checked against their digests on first use.

    Asking for an array raises InputError where this version makes others than those that the file was made from.
    """
    name = seeded["builder"]
    datapath = hardware.datapath_for(gemm)

    def produce_inputs() -> Mapping[str, Array]:
        if version != VERSION:
            raise InputError(
                f"case {name}: was seeded by generator version {version}, and this is version {VERSION}; "
                "make the set again, or use the fqtsim that made it"
            )
        builder = builders(datapath).get(name)
        made = None if builder is None else builder(Plan(datapath, Draw(seed, name)))
        return _as_described(name, made or {}, seeded["inputs"])

    inputs = Deferred(tuple(seeded["inputs"]), produce_inputs)

    def produce_expected() -> Mapping[str, Array]:
        return _as_described(name, {"codes": run(dict(inputs), datapath).codes}, seeded["expected"])

    return inputs, Deferred(tuple(seeded["expected"]), produce_expected)


def _as_described(name: str, arrays: Mapping[str, Array], described: Mapping[str, Any]) -> Mapping[str, Array]:
    found = {key: description_of(array) for key, array in arrays.items()}
    if found != described:
        raise InputError(
            f"case {name}: the seed does not give the arrays whose digests the set holds: the set was changed, or "
            "made by another fqtsim; make it again"
        )
    return arrays
