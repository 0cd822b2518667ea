"""Golden cases of a scaled linear layer: an integer GEMM and its float32 epilogue (S5.8).

y = float32(float64(acc) * (float64(row step) * float64(column step))), then one float32 addition of the bias. Zero
points are 0, and acc is the accumulator of fprop with its dropped bits restored. Operands aim at what kernels do in
its place: steps multiplied in float32, accumulators rounded first, a fused bias, denormals taken for 0.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from fqtsim.golden.case import Array, Case
from fqtsim.golden.coverage import gemm_coverage, is_counted_by_level, run
from fqtsim.golden.inputs import Draw, Inputs, Plan
from fqtsim.golden.recheck import check_sample, fault
from fqtsim.hw.spec import Hardware
from fqtsim.ref import binary32

CHECKED_OUTPUTS = 200
TINY = float(np.finfo(np.float32).tiny)


def scaled_linear_cases(hardware: Hardware, seed: int) -> list[Case]:
    """Return the cases of kind scaled_linear, on the datapath of fprop."""
    builders: dict[str, Callable[[Plan], Inputs]] = {
        "scaled_linear_random": lambda plan: _random(plan, (9, 67, 13)),
        "scaled_linear_bias": lambda plan: _with_bias(plan, _random(plan, (17, 33, 5))),
        "scaled_linear_one_row": lambda plan: _with_bias(plan, _random(plan, (1, 130, 11))),
        "scaled_linear_one_column": lambda plan: _random(plan, (12, 31, 1)),
        "scaled_linear_long": lambda plan: _random(plan, (3, 4099, 4)),
        "scaled_linear_ends": _ends,
        "scaled_linear_ties": _ties,
        "scaled_linear_denormal": _denormal,
        "scaled_linear_cancelled_bias": _cancelled_bias,
        "scaled_linear_empty_k": lambda plan: _with_bias(plan, _random(plan, (3, 0, 4))),
    }
    path = hardware.datapath_for("fprop")
    return [_case(name, builder(Plan(path, Draw(seed, name))), hardware) for name, builder in builders.items()]


def _layer(operands: Inputs, row_step: Array, column_step: Array) -> Inputs:
    """Return the arguments of a layer from the operands of its GEMM."""
    steps = {"row_step": row_step.astype(np.float32), "column_step": column_step.astype(np.float32)}
    return {"x": operands["a"], "w": np.ascontiguousarray(operands["b"].T), **steps}


def _steps(draw: Draw, count: int, exponent: int = -7) -> Array:
    """Return float32 steps with random bits in all of their 24 places, over a factor of 16."""
    fraction = draw.integers(1 << 23, (1 << 24) - 1, (count,)).astype(np.float64) * 2.0**-23
    return np.asarray(np.ldexp(fraction, exponent - draw.integers(0, 3, (count,))), np.float32)


def _random(plan: Plan, shape: tuple[int, int, int]) -> Inputs:
    return _layer(plan.random(shape), _steps(plan.draw, shape[0]), _steps(plan.draw, shape[2]))


def _with_bias(plan: Plan, inputs: Inputs) -> Inputs:
    """Add a bias of the magnitude of the outputs."""
    outputs = len(inputs["w"])
    bias = plan.draw.integers(-(1 << 23), 1 << 23, (outputs,)) * 2.0**-23
    return {**inputs, "bias": bias.astype(np.float32)}


def _ends(plan: Plan) -> Inputs:
    """One end of the formats along all of k: accumulators as far from 0 as they go, beyond 2**24 where they can."""
    k = 1031
    a, b = np.repeat(np.array([plan.a]).T, k, axis=1), np.repeat(np.array([plan.b]), k, axis=0)
    a, b = np.concatenate([a, a - np.sign(a)]), np.concatenate([b, b - np.sign(b)], axis=1)
    a[:, -1], b[-1] = 1, 1  # so that sums are odd, too
    return _layer(plan.inputs(a, b), _steps(plan.draw, len(a)), _steps(plan.draw, b.shape[1]))


def _single_terms(plan: Plan) -> tuple[Inputs, int]:
    """Return operands whose accumulator [i, j] is one product: codes of x times 1, or a power of two in w."""
    unit = 1 << min(plan.datapath.dropped_bits, plan.b[1].bit_length() - 1)
    low, high = max(plan.a[0], -64), min(plan.a[1], 64)
    codes = np.arange(low, high + 1)
    return plan.inputs(codes[:, None], np.array([[unit, 1, 0, unit]])), len(codes)


def _ties(plan: Plan) -> Inputs:
    """Steps of 13 bits, whose products have 25: outputs exactly half way between two float32."""
    operands, rows = _single_terms(plan)
    odd = 1 + 2.0**-12
    row_step = np.array([odd, odd * 2.0**-9, 1 - 2.0**-12])[np.arange(rows) % 3]
    return _layer(operands, row_step, np.array([odd, odd * 0.5, odd, 1 + 3 * 2.0**-12]))


def _denormal(plan: Plan) -> Inputs:
    """Outputs, steps and their product below the smallest normal float32; none of them is 0."""
    operands, rows = _single_terms(plan)
    row_step = np.array([1.3e-22, 1e-40, 3.7e-38])[np.arange(rows) % 3]
    return _layer(operands, row_step, np.array([1.1e-21, 0.7, 1, 3e-3]))


def _cancelled_bias(plan: Plan) -> Inputs:
    """A bias that takes away one output of each column: 0 is left, but not where the product was not rounded first."""
    inputs = _random(plan, (7, 29, 6))
    path = plan.datapath
    acc = run(_operands(inputs), path).codes.astype(np.int64) << path.dropped_bits
    rows = np.arange(acc.shape[1]) % acc.shape[0]
    return {**inputs, "bias": -epilogue(acc, inputs)[rows, np.arange(acc.shape[1])]}


def _operands(inputs: Inputs) -> Inputs:
    return {"a": inputs["x"], "b": np.ascontiguousarray(inputs["w"].T)}


def _product(acc: Array, inputs: Inputs) -> Array:
    """Return the float64 products that the epilogue rounds."""
    scale = inputs["row_step"].astype(np.float64)[:, None] * inputs["column_step"].astype(np.float64)[None, :]
    return np.asarray(acc.astype(np.float64) * scale)


def epilogue(acc: Array, inputs: Inputs) -> Array:
    """Return y (M, N) float32 of accumulators (M, N) int64, dropped bits restored (S5.8)."""
    values = _product(acc, inputs).astype(np.float32)
    return np.asarray(values + inputs["bias"] if "bias" in inputs else values)


def _case(name: str, inputs: Inputs, hardware: Hardware) -> Case:
    path, operands = hardware.datapath_for("fprop"), _operands(inputs)
    result = run(operands, path, trace=is_counted_by_level(operands))
    check_sample(name, operands, path, result)
    acc = result.codes.astype(np.int64) << path.dropped_bits
    y = epilogue(acc, inputs)
    _check(name, acc, inputs, y)
    events = {key: getattr(result.events, key) for key in ("altered", "out_of_range", "transient")}
    coverage = gemm_coverage(operands, path, result) | _coverage(acc, inputs, y)
    return Case(name, "scaled_linear", {}, inputs, {"y": y}, events, coverage, {})


def _coverage(acc: Array, inputs: Inputs, y: Array) -> dict[str, int]:
    """Return how often the epilogue met a tie or rounded, and how many outputs each usual shortcut gets wrong."""
    exact = _product(acc, inputs)
    with np.errstate(under="ignore"):
        plain = exact.astype(np.float32)
        beside = np.nextafter(plain, np.where(exact > plain, np.inf, -np.inf).astype(np.float32))
        halves = (exact - plain == beside - exact) & (exact != plain)
        steps = inputs["row_step"][:, None] * inputs["column_step"][None, :]
        in_float32 = acc.astype(np.float32) * steps
        row_first = acc.astype(np.float32) * inputs["row_step"][:, None] * inputs["column_step"][None, :]
        bias = inputs.get("bias", np.zeros(y.shape[1], np.float32))
        fused = (exact + bias.astype(np.float64)).astype(np.float32)
    return {
        "epilogue.ties": int(halves.sum()),
        "epilogue.inexact": int((exact != plain).sum()),
        "epilogue.denormal": int(((np.abs(plain) < TINY) & (plain != 0)).sum()),
        "epilogue.beyond_24_bits": int((np.abs(acc) > 1 << 24).sum()),
        "epilogue.differs_in_float32": int((in_float32 + bias != y).sum()),
        "epilogue.differs_row_step_first": int((row_first + bias != y).sum()),
        "epilogue.differs_with_fused_bias": int((fused != y).sum()),
    }


def _check(name: str, acc: Array, inputs: Inputs, y: Array) -> None:
    """Repeat some outputs with the definition's arithmetic. Raises AssertionError where they differ."""
    for flat in range(0, y.size, max(1, y.size // CHECKED_OUTPUTS)):
        row, column = divmod(flat, y.shape[1])
        scale = float(inputs["row_step"][row]) * float(inputs["column_step"][column])
        value = binary32.nearest(Fraction(float(int(acc[row, column])) * scale))
        if "bias" in inputs:
            value = binary32.add(value, float(inputs["bias"][column]))
        if value != y[row, column]:
            raise fault(name, f"output [{row}, {column}]")
