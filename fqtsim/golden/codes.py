"""Golden cases of a quantizer (S5.6, S5.7) and of the `output` stages (S4.9), each code repeated by the definition."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from fqtsim.api.requantize import random_bits, requantize
from fqtsim.backends.base import code_dtype
from fqtsim.errors import InputError
from fqtsim.golden.case import Array, Case
from fqtsim.golden.inputs import WIDEST_START, Draw
from fqtsim.golden.recheck import fault
from fqtsim.hw.spec import Hardware
from fqtsim.hw.stages import Stage
from fqtsim.quantizers import QTensor, quantizer
from fqtsim.ref import quantize as definition
from fqtsim.ref import requantize as stages_of
from fqtsim.words import IntFormat, Rounding, ZeroPoint

MULTIPLIERS = (1 << 30, 1_583_594_044, (1 << 31) - 1, 1_431_655_765)
"""As TFLite has them, in 2**30..2**31 - 1: a power of two meets every tie, the others few."""
TOTAL_SHIFTS = (9, 4, 14)
"""Bits between accumulator and output, before what a multiplier of 31 fraction bits adds."""
SCALES = (2.0**-9, float(np.float32(1 / 300)), float(np.float32(0.0117)), 2.0**-14)
MOST_TERMS = 40


# Quantizers.


def quantize_cases(hardware: Hardware, seed: int) -> list[Case]:
    """Return the cases of ptq and psq for the ports of a hardware, stochastic ones where it has random bits."""
    path = hardware.datapath_for("fprop")
    port, zero = path.a_format, zero_word(hardware)
    cases = []
    for name, values in _values(port, seed).items():
        if zero == "symmetric" and not port.signed:
            values = np.abs(values)
        for kind in ("ptq", "psq") if values.shape[0] > 1 else ("ptq",):
            cases.append(_quantize_case(f"quantize_{kind}_{name}", kind, values, hardware, Rounding.TIES_TO_EVEN, seed))
            if hardware.random is not None and name in ("random", "ties", "rows"):
                cases.append(
                    _quantize_case(f"quantize_{kind}_{name}_stochastic", kind, values, hardware, Rounding.STOCHASTIC,
                                   seed)
                )  # fmt: skip
    return cases


def zero_word(hardware: Hardware, gemm: str = "fprop") -> str:
    """Return "aligned", or "symmetric" where the datapath has no zero points."""
    return "symmetric" if hardware.datapath_for(gemm).zero_point is ZeroPoint.NONE else "aligned"


def random_values(draw: Draw, shape: tuple[int, ...], scale: float = 1.0) -> Array:
    """Return float32 numbers in -scale..scale, more of them small than large."""
    first, second = (draw.integers(-(1 << 24), 1 << 24, shape).astype(np.float64) * 2.0**-24 for _ in range(2))
    return (first * second * scale).astype(np.float32)


def _values(port: IntFormat, seed: int) -> dict[str, Array]:
    """Return float32 tensors by name: ties on a grid of step 2**-4, ranges of one side, blank and tiny ones."""
    draw = Draw(seed, "quantize")
    top = (1 << port.bits) - 1
    below = top // 3
    grid = np.arange(-below, top - below + 1, dtype=np.float32) * np.float32(2**-4)
    codes = grid if len(grid) < 600 else grid[:: len(grid) // 300]
    ties = codes[:-1] + np.float32(2**-5)
    beside = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    ends = np.array([grid[0], grid[-1], 0.0, -0.0, 1e-40, -1e-40], np.float32)
    rows = random_values(draw, (6, 40)) * np.array([[1e-20], [1], [1000], [3e30], [0], [0.01]], np.float32)
    return {
        "random": random_values(draw, (9, 37)),
        "ties": np.concatenate([ends, codes, ties, *beside]).reshape(1, -1),
        "rows": rows,
        "positive": np.abs(random_values(draw, (5, 23))) + np.float32(0.5),
        "negative": -np.abs(random_values(draw, (5, 23))) - np.float32(0.5),
        "zeros": np.zeros((3, 5), np.float32),
        "one": np.array([[0.3]], np.float32),
        "tiny": random_values(draw, (4, 9), 1e-39),
    }


def _quantize_case(name: str, kind: str, x: Array, hardware: Hardware, rounding: Rounding, seed: int) -> Case:
    path = hardware.datapath_for("fprop")
    bits = hardware.random.bits if rounding is Rounding.STOCHASTIC and hardware.random is not None else None
    made = quantizer(kind, path.a_format.bits, rounding, bits, zero_word(hardware), path.a_format)
    tensor = made.quantize(x, seed, 0, 0)
    inputs = {"x": x}
    if bits is not None:
        inputs["rand_bits"] = random_bits(seed, 0, 0, x.size, bits).reshape(x.shape)
    parameters = {
        "quantizer": kind, "bits": path.a_format.bits, "rounding": rounding.value, "random_bits": bits,
        "zero": zero_word(hardware), "format": path.a_format.name,
    }  # fmt: skip
    check_codes(name, x, tensor, parameters, inputs.get("rand_bits"))
    expected = {"codes": tensor.codes, "step": tensor.step, "zero_point": tensor.zero_point}
    events = {"altered": tensor.clamps, "out_of_range": tensor.clamps, "transient": 0}
    coverage = {"outputs": x.size, "quantizer.ties": tensor.ties, "quantizer.clamps": tensor.clamps}
    return Case(name, "quantize", parameters, inputs, {key: np.asarray(value) for key, value in expected.items()},
                events, coverage, {})  # fmt: skip


def check_codes(name: str, x: Array, tensor: QTensor, parameters: dict[str, Any], words: Array | None) -> None:
    """Repeat grid and codes of every row with the definition. Raises AssertionError where they differ."""
    codes = np.asarray(tensor.codes)
    rows = len(x) if parameters["quantizer"] == "psq" else 1
    signed = IntFormat.parse(parameters["format"]).signed
    rounding, n_bits = Rounding(parameters["rounding"]), parameters["random_bits"] or 0
    make_grid = definition.GRIDS[parameters["zero"]]
    for row in range(rows):
        values, found = x.reshape(rows, -1)[row], codes.reshape(rows, -1)[row]
        drawn = np.zeros(values.size, int) if words is None else words.reshape(rows, -1)[row]
        grid = make_grid(float(values.min()), float(values.max()), parameters["bits"], signed)
        if grid.zero_point != np.asarray(tensor.zero_point).reshape(rows)[row]:
            raise fault(name, f"zero point of row {row}")
        for index in range(0, values.size, max(1, values.size // 400)):
            code, _ = definition.code(float(values[index]), grid, rounding, int(drawn[index]), n_bits)
            if not (values == 0).all() and code != found[index]:
                raise fault(name, f"code {index} of row {row}")


# The output stages.


def requantize_cases(hardware: Hardware, seed: int) -> list[Case]:
    """Return the cases of the `output` stages. Raises InputError for a hardware without any."""
    if hardware.output is None:
        raise InputError(
            f"kind = requantize: hardware {hardware.name} has no output stages; leave requantize out, or add `output`"
        )
    return [
        _requantize_case(f"requantize_{number}", hardware, arguments, seed)
        for number, arguments in enumerate(_arguments(hardware.output))
    ]


def _arguments(stages: tuple[Stage, ...]) -> list[dict[str, Any]]:
    """Return what calls pass: multipliers, shifts and scales in turn, each with other zero points."""
    integer = any(stage.multiply == "integer" for stage in stages)
    floating = any(stage.multiply == "float32" for stage in stages)
    call = any(stage.shift == "call" for stage in stages)
    fixed = sum(stage.shift for stage in stages if isinstance(stage.shift, int))
    last = stages[-1].register_format
    ends = (0, 5, -3) if last is None else (0, last.minimum, last.maximum, (last.minimum + last.maximum) // 3)
    zero_points = ends if any(stage.kind == "add" for stage in stages) else (None,)
    scalings: list[dict[str, Any]] = [{}]
    if floating:
        scalings = [{"scale": scale} for scale in SCALES]
    elif integer or call:
        scalings = [
            ({"multiplier": multiplier} if integer else {})
            | ({"shift": max(-62, min(62, total + 31 * integer - fixed))} if call else {})
            for multiplier in (MULTIPLIERS if integer else (None,))
            for total in (TOTAL_SHIFTS if call else (0,))
        ]
    count = max(len(scalings), len(zero_points))
    chosen = [scalings[index % len(scalings)] for index in range(count)]
    given = [zero_points[index % len(zero_points)] for index in range(count)]
    return [
        scaling if zero is None else {**scaling, "zero_point": zero}
        for scaling, zero in zip(chosen, given, strict=True)
    ]


def _requantize_case(name: str, hardware: Hardware, arguments: dict[str, Any], seed: int) -> Case:
    stages = hardware.output or ()
    exact = {**arguments, "scale": Fraction(arguments["scale"])} if "scale" in arguments else arguments
    path = hardware.datapath_for("fprop")
    form = path.accumulator.register_format
    low, high = (-WIDEST_START, WIDEST_START) if form is None else form.rails(path.accumulator.overflow)
    codes = {low, low + 1, low + 2, -2, -1, 0, 1, 2, high - 2, high - 1, high}
    codes |= {
        sign * (1 << bit) + beside for bit in range(high.bit_length()) for sign in (-1, 1) for beside in (-1, 0, 1)
    }
    draw = Draw(seed, name)
    for bits in (8, 12, 16, 24, high.bit_length()):
        codes |= {int(code) for code in draw.integers(-(1 << bits) + 1, (1 << bits) - 1, (40,))}
    codes |= {code + beside for code in _aimed(stages, exact, low, high) for beside in (-2, -1, 0, 1, 2)}
    inside = sorted(code for code in codes if low <= code <= high)
    order = np.argsort(draw.integers(0, 1 << 40, (len(inside),)), kind="stable")  # a shift by one must show
    acc: Array = np.array(inside, code_dtype(path))[order]
    scale = {"scale": np.float32(arguments["scale"])} if "scale" in arguments else {}
    result = requantize(acc, hardware, **{**arguments, **scale})
    coverage = {"outputs": acc.size} | _stage_coverage(name, acc, result.codes, stages, exact)
    events = {key: getattr(result.events, key) for key in ("altered", "out_of_range", "transient")}
    return Case(name, "requantize", arguments, {"acc": acc}, {"codes": result.codes}, events, coverage, {})


def _aimed(stages: tuple[Stage, ...], arguments: dict[str, Any], low: int, high: int) -> set[int]:
    """Return accumulators that meet ties of every rounding stage, and sums at the last register's rails."""
    found: set[int] = set()
    near = [*range(-MOST_TERMS // 2, MOST_TERMS // 2), 63, 127, 128, 200, 255, -64, -127, -128, -129, -200, 1001, -1001]
    for index, stage in enumerate(stages):
        shift = _shift(stage, arguments)
        if stage.round is None and shift <= 0:
            continue
        ties = [Fraction(2 * q + 1, 2) * (1 << max(shift, 0)) for q in near]
        found |= {_first(_prefix(stages, index, arguments), tie, low, high) for tie in ties}
    register = stages[-1].register_format
    if register is not None:
        last = _prefix(stages, len(stages), arguments)
        ends = register.rails(stages[-1].overflow)
        found |= {_first(last, Fraction(end + more), low, high) for end in ends for more in (-1, 0, 1, 2)}
    return found | _exact_ties(stages, arguments, low, high)


def _shift(stage: Stage, arguments: dict[str, Any]) -> int:
    return int(arguments["shift"]) if stage.shift == "call" else int(stage.shift or 0)


def _prefix(stages: tuple[Stage, ...], count: int, arguments: dict[str, Any]) -> Callable[[int], Fraction]:
    return lambda code: Fraction(stages_of.requantize(code, stages[:count], limited=False, **arguments))


def _first(value: Callable[[int], Fraction], target: Fraction, low: int, high: int) -> int:
    """Return the first code of a rising function that reaches the target, by halving."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if value(middle) >= target else (middle + 1, high)
    return low


def _exact_ties(stages: tuple[Stage, ...], arguments: dict[str, Any], low: int, high: int) -> set[int]:
    """Return accumulators whose integer product is exactly half way at the first shift, by modular inverse."""
    if len(stages) < 2 or stages[0].multiply != "integer" or stages[1].shift is None:
        return set()
    shift, multiplier = _shift(stages[1], arguments), int(arguments["multiplier"])
    twos = (multiplier & -multiplier).bit_length() - 1
    if shift - 1 < twos:
        return set()
    period = 1 << (shift - twos)
    code = pow(multiplier >> twos, -1, period) * (1 << (shift - 1 - twos)) % period
    return {code + turn * period for turn in range(-6, 6) if low <= code + turn * period <= high}


def _stage_coverage(
    name: str, acc: Array, codes: Array, stages: tuple[Stage, ...], arguments: dict[str, Any]
) -> dict[str, int]:
    """Return how often each stage met a tie or changed a code. Raises AssertionError where the definition differs."""
    counts: dict[str, int] = {}
    for code, found in zip(acc.tolist(), codes.tolist(), strict=True):
        value: int | Fraction = code
        for index, stage in enumerate(stages):
            after = stages_of.requantize(value, [stage], **arguments)  # type: ignore[arg-type]
            shift = _shift(stage, arguments)
            if stage.round is not None or shift > 0:
                key = f"stage{index}.ties"
                counts[key] = counts.get(key, 0) + (Fraction(value) / (1 << max(shift, 0)) % 1 == Fraction(1, 2))
            if stage.kind == "register":
                key = f"stage{index}.overflows"
                counts[key] = counts.get(key, 0) + (after != value)
            value = after
        if value != Fraction(found):
            raise fault(name, f"output of accumulator {code}")
    return counts
