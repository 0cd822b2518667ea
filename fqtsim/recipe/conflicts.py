"""Where a recipe and a hardware file contradict each other: one error, both lines (S5 "Who owns what")."""

from __future__ import annotations

from fqtsim.hw.spec import Hardware
from fqtsim.recipe.spec import PORTS, QuantizerSpec, Recipe
from fqtsim.words import Rounding, ZeroPoint

#: The operands that each quantizer feeds: (GEMM, operand of its datapath).
FEEDS: dict[str, tuple[tuple[str, str], ...]] = {
    "activation": (("fprop", "a"), ("wgrad", "a")),
    "weight": (("fprop", "b"), ("dgrad", "b")),
    "grad_for_wgrad": (("wgrad", "b"),),
    "grad_for_dgrad": (("dgrad", "a"),),
}


def check_compatible(recipe: Recipe, hardware: Hardware) -> None:
    """Raise InputError, naming both lines, at the first thing that recipe and hardware disagree about."""
    for port in PORTS:
        spec = recipe.port(port)
        if spec is None:
            continue
        _check_random(recipe, hardware, port, spec)
        for gemm, operand in FEEDS[port]:
            if _runs_here(recipe, gemm):
                _check_width(recipe, hardware, port, spec, gemm, operand)
                _check_zero(recipe, hardware, port, spec, gemm)
        _check_signedness(recipe, hardware, port, spec)


def _runs_here(recipe: Recipe, gemm: str) -> bool:
    """Whether both operands of a GEMM are quantized; the platform's float GEMM does the others."""
    return all(recipe.port(port) for port, feeds in FEEDS.items() for fed, _ in feeds if fed == gemm)


def _check_random(recipe: Recipe, hardware: Hardware, port: str, spec: QuantizerSpec) -> None:
    if spec.rounding is Rounding.STOCHASTIC and hardware.random is None:
        rule = f"needs random bits, but {hardware.location('')} gives no `random`"
        remedy = "add random: {generator: philox4x32-10, bits: 16} there, or round another way"
        raise recipe.error(f"{port}.rounding", rule, remedy)


def _check_width(recipe: Recipe, hardware: Hardware, port: str, spec: QuantizerSpec, gemm: str, operand: str) -> None:
    bits = getattr(hardware.datapath_for(gemm), f"{operand}_format").bits
    if spec.code_bits > bits:
        most = bits.bit_length() if spec.quantizer == "luq" else bits
        where = hardware.datapath_location(gemm, operand)
        rule = f"does not fit the {getattr(hardware.datapath_for(gemm), operand)} of {gemm} at {where}"
        raise recipe.error(f"{port}.bits", rule, f"use at most {most} bits, or a wider operand")


def _check_zero(recipe: Recipe, hardware: Hardware, port: str, spec: QuantizerSpec, gemm: str) -> None:
    if spec.zero != "symmetric" and hardware.datapath_for(gemm).zero_point is ZeroPoint.NONE:
        where = hardware.datapath_location(gemm, "zero_point")
        rule = f"needs a zero point, but {gemm} has none at {where}"
        raise recipe.error(f"{port}.zero", rule, "use zero: symmetric, or another zero_point in the hardware")


def _check_signedness(recipe: Recipe, hardware: Hardware, port: str, spec: QuantizerSpec) -> None:
    """Symmetric codes have zero point 0 in the format they are made for, and 2**(bits-1) in the other."""
    if spec.zero != "symmetric":
        return
    fed = [(gemm, operand) for gemm, operand in FEEDS[port] if _runs_here(recipe, gemm)]
    signed = {getattr(hardware.datapath_for(gemm), f"{operand}_format").signed for gemm, operand in fed}
    places = " and ".join(dict.fromkeys(hardware.datapath_location(gemm, operand) for gemm, operand in fed))
    none = any(hardware.datapath_for(gemm).zero_point is ZeroPoint.NONE for gemm, _ in fed)
    if signed == {False} and port != "activation":
        rule = f"cannot be negative in the unsigned operand at {places}"
        raise recipe.error(f"{port}.zero", rule, "use zero: aligned, or a signed operand")
    if len(signed) > 1 and none:
        rule = f"would need a zero point in one of {places}, which differ in signedness"
        raise recipe.error(f"{port}.zero", rule, "make both operands signed or both unsigned")
