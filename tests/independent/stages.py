"""Requantization (section 4): the `output` stages, one value at a time, by bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .bits import Number, add, constant, differ, drop, fits, into_register, multiply, parse_format, unpack
from .floats import from_integer, product, to_integer

Stage = Mapping[str, Any]


def requantize(
    acc: int | Sequence[int],
    stages: Sequence[Stage],
    multiplier: int | Sequence[int] | None = None,
    shift: int | Sequence[int] | None = None,
    scale: float | Sequence[float] | None = None,
    zero_point: int | Sequence[int] = 0,
) -> tuple[list[int], dict[str, int]]:
    """Return the output codes of accumulator codes, and events; arguments are one for all or one each."""
    codes = [acc] if isinstance(acc, int) else list(acc)
    result, events = [], {"altered": 0, "out_of_range": 0, "transient": 0}
    for index, code in enumerate(codes):
        call = {
            "multiplier": pick(multiplier, index),
            "shift": pick(shift, index),
            "scale": pick(scale, index),
            "zero_point": pick(zero_point, index),
        }
        number = run_stages(constant(code), stages, call, limited=True)
        unlimited = run_stages(constant(code), stages, call, limited=False)
        result.append(unpack(number, 1)[0])
        altered, outside = bool(differ(number, unlimited)), not in_output(unlimited, stages[-1])
        for name, happened in (
            ("altered", altered),
            ("out_of_range", outside),
            ("transient", altered and not outside),
        ):
            events[name] += happened
    return result, events


def pick(values: Any, index: int) -> Any:
    return values if values is None or isinstance(values, int | float) else values[index]


def in_output(number: Number, stage: Stage) -> bool:
    """Say whether the last stage, if it is a register, can hold the number."""
    if "register" not in stage:
        return True
    return bool(fits(number, *parse_format(stage["register"]), stage["overflow"] == "saturate_symmetric"))


def run_stages(number: Number, stages: Sequence[Stage], call: Mapping[str, Any], limited: bool) -> Number:
    real: float | None = None  # set while the value is a float32
    for stage in stages:
        if (real is not None) != ("round" in stage):
            raise ValueError(f"{dict(stage)}: a float32 must be rounded, and only a float32 can be")
        if real is not None:
            number, real = to_integer(real, stage["round"]), None
        elif stage.get("multiply") == "float32":
            real = product(from_integer(number), call["scale"])
        else:
            number = integer_stage(number, stage, call, limited)
    if real is not None:
        raise ValueError("the last stage leaves a float32")
    return number


def integer_stage(number: Number, stage: Stage, call: Mapping[str, Any], limited: bool) -> Number:
    if "multiply" in stage:
        return multiply(number, constant(call["multiplier"]))
    if "shift" in stage:
        return drop(number, call["shift"] if stage["shift"] == "call" else stage["shift"], stage["rounding"])
    if "add" in stage:
        return add(number, constant(call["zero_point"]))
    if not limited:
        return number
    return into_register(number, *parse_format(stage["register"]), stage["overflow"])
