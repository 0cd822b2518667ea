"""What a reproducer file shows: the operation done again here, beside what the two backends gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fqtsim.api.explain import Explanation
from fqtsim.backends import get_backend
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.crosscheck.locate import hex_code, register_bits
from fqtsim.crosscheck.primitives import first_unequal, show
from fqtsim.errors import FqtsimError, InputError
from fqtsim.kernels.grid import Grid
from fqtsim.kernels.quantize import Draw
from fqtsim.ref.gemm import dot
from fqtsim.train.products import scaled
from fqtsim.train.reproducer import Reproducer, read
from fqtsim.words import Rounding

__all__ = ["Reproducer", "explanation", "read", "summary"]

HERE = ("stepwise", "emulator", "native")
"""Backends that do a GEMM again."""


def explanation(found: Reproducer) -> Explanation | None:
    """Return every addition of the output in doubt; None for a primitive."""
    if found.kind == "primitive":
        return None
    a, b, datapath = found.operands["a"], found.operands["b"], found.datapath
    row, col = found.place["row"], found.place["col"]
    start = _start(found)
    codes = [int(x) for x in a[row]], [int(x) for x in b[:, col]]
    output = dot(*codes, datapath.levels, start)
    products = tuple(zip(*codes, strict=True))
    return Explanation(row, col, output.steps, output.code, output.unlimited, output, datapath, products)


def _start(found: Reproducer) -> int:
    c = found.operands.get("c")
    row, col = found.place["row"], found.place["col"]
    return 0 if c is None else int(np.broadcast_to(c, next(iter(found.results.values())).shape)[row, col])


def summary(found: Reproducer) -> str:
    """Return where it happened, what each backend gave there, and what the backends here give now."""
    place = found.place
    where = [f"step {place['step']}"] if "step" in place else []
    where += [f"layer {place['layer']}"] if place.get("layer") else []
    where += [f"group {place['group']}"] if place.get("group") else []
    if "cut_from" in place:
        where.append(f"row {place['cut_from'][0]}, column {place['cut_from'][1]} of the whole GEMM")
    lines = [f"where      {', '.join([*where, found.name])}"]
    lines += {"gemm": _gemm_lines, "product": _product_lines, "primitive": _primitive_lines}[found.kind](found)
    return "\n".join([*lines, "made by    " + ", ".join(f"{key} {value}" for key, value in found.notes.items())])


def _gemm_lines(found: Reproducer) -> list[str]:
    row, col, bits = found.place["row"], found.place["col"], register_bits(found.datapath)
    expected = explanation(found)
    right = 0 if expected is None else expected.code
    lines = [f"reference  {hex_code(right, bits)}"]
    for name, codes in found.results.items():
        code = int(codes[row, col])
        lines.append(f"in the file, {name}: {hex_code(code, bits)}  {'equal' if code == right else 'WRONG'}")
    for name in HERE:
        try:
            a, b = (np.ascontiguousarray(found.operands[key]) for key in "ab")
            code = int(get_backend(name).gemm(a, b, found.datapath, found.operands.get("c")).codes[row, col])
        except FqtsimError as error:
            lines.append(f"here, {name}: {error}")
            continue
        lines.append(f"here, {name}: {hex_code(code, bits)}  {'equal' if code == right else 'WRONG'}")
    return lines


def _product_lines(found: Reproducer) -> list[str]:
    """Return the float32 numbers of a layer's product, and what its accumulators mean by the reference."""
    row, col, datapath = found.place["row"], found.place["col"], found.datapath
    part, expected = found.part, explanation(found)
    code = 0 if expected is None else expected.code
    right = _meant(np.full(part.found.shape, code), found)
    lines = [f"reference  {show(right)}, from the accumulator {hex_code(code, register_bits(datapath))}"]
    for name, values in found.results.items():
        lines.append(_compared(f"in the file, {name}", values[row, col], right))
    for name in HERE:
        try:
            a, b = (np.ascontiguousarray(codes) for codes in (part.a, part.b))
            codes = get_backend(name).gemm(a, b, datapath).codes
        except FqtsimError as error:
            lines.append(f"here, {name}: {error}")
            continue
        lines.append(_compared(f"here, {name}", _meant(codes, found), right))
    return lines


def _meant(codes: Any, found: Reproducer) -> Any:
    """Return the float32 number of the output in doubt, where these are the accumulators."""
    return scaled(codes, found.part, found.datapath.dropped_bits)[found.place["row"], found.place["col"]]


def _compared(who: str, value: Any, right: Any) -> str:
    return f"{who}: {show(value)}  {'equal' if first_unequal(value, right) is None else 'WRONG'}"


def _primitive_lines(found: Reproducer) -> list[str]:
    results: Mapping[str, Any] = found.results
    (first, x), (second, y) = list(results.items())[:2]
    at = first_unequal(x, y)
    lines = []
    if at is not None:
        for key, operand in found.operands.items():
            if operand.shape == x.shape:
                lines.append(f"operand {key} at {list(at)}: {show(operand[at])}")
            elif operand.ndim == 0:
                lines.append(f"operand {key}: {show(operand)}")
        lines += [f"in the file, {name}: {show(value[at])}" for name, value in ((first, x), (second, y))]
    try:
        again = _again(found)
    except (FqtsimError, TypeError, AttributeError, ValueError, KeyError, IndexError) as error:
        return [*lines, f"here: cannot be done again ({error})"]
    if at is not None:
        lines.append(f"here, {DEFAULT_PRIMITIVES.name}: {show(again[at])}")
    for name, value in results.items():
        lines.append(f"{name}: {'equal to' if first_unequal(again, value) is None else 'WRONG against'} what is here")
    return lines


def _with_tuples(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with the fields of a grid and a draw (`1.Grid.step`) put together again."""
    flat = {key: value for key, value in given.items() if "." not in key}
    fields: dict[tuple[str, str], dict[str, Any]] = {}
    for key, value in given.items():
        if "." in key:
            argument, kind, name = key.split(".")
            fields.setdefault((argument, kind), {})[name] = value
    kinds: dict[str, Any] = {"Grid": Grid, "Draw": Draw}
    return flat | {argument: kinds[kind](**values) for (argument, kind), values in fields.items()}


def _again(found: Reproducer) -> Any:
    function = getattr(DEFAULT_PRIMITIVES, found.name, None)
    if function is None or found.name.startswith("_") or found.name == "prove":
        raise InputError(f"{found.name} is no primitive here")
    given = _with_tuples({**found.parameters, **found.operands})
    args = [given[str(i)] for i in range(sum(key.isdecimal() for key in given))]
    # JSON has one kind of sequence: axes are tuples, the groups of a reflection are lists.
    args = [tuple(arg) if isinstance(arg, list) and found.name != "reflect" else arg for arg in args]
    if found.name == "quantize":
        args[2] = Rounding(args[2])
    result = function(*args, **{key: value for key, value in given.items() if not key.isdecimal()})
    return np.asarray(result[found.place["part"]] if isinstance(result, tuple) else result)
