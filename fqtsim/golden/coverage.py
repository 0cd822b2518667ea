"""What a case reaches, counted: rails, ties, saturations and wraps of every level, sums beside the limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from fqtsim.backends import GemmResult, get_backend
from fqtsim.errors import InputError
from fqtsim.golden.case import Case
from fqtsim.golden.inputs import Array, Inputs, extent
from fqtsim.hw.spec import Datapath, Level
from fqtsim.words import Overflow

MOST_PRODUCTS = 1 << 23
"""Products of a GEMM up to which every level is counted; beyond it, outputs alone."""


def is_counted_by_level(inputs: Inputs) -> bool:
    """Tell whether a GEMM is small enough to count what every level did."""
    return bool(inputs["a"].size * inputs["b"].shape[1] <= MOST_PRODUCTS)


def gemm_coverage(inputs: Inputs, datapath: Datapath, result: GemmResult) -> dict[str, int]:
    """Return the counts of one GEMM; those per level need its trace.

    - outputs; rails: outputs whose code is a rail
    - landed_on_rail, one_inside, one_beyond: outputs whose unlimited sum is a rail, or one code from it
    - order_dependent: outputs that change when k runs backwards
    - most_negative: pairs of most negative codes that meet, where both sides are signed
    - levelL.saturations or wraps: additions that the register changed
    - levelL.ties, inexact: items with a tie, or with any bit, among those dropped
    """
    counts = {"outputs": result.codes.size, "rails": result.at_rail}
    counts |= _beside_rails(inputs, datapath)
    counts["order_dependent"] = _order_dependent(inputs, datapath, result)
    if extent(datapath, "a")[0] < 0 and extent(datapath, "b")[0] < 0:
        counts["most_negative"] = _most_negative(inputs, datapath)
    items: Array | None = None
    for index, (level, trace) in enumerate(zip(datapath.levels, result.trace or (), strict=False)):
        word = "wraps" if level.overflow is Overflow.WRAP else "saturations"
        counts[f"level{index}.additions"] = trace.additions
        if level.register_format is not None:
            counts[f"level{index}.{word}"] = trace.overflows
        if level.item is not None:
            entering = _products(inputs) if items is None else items
            ties, inexact = _dropped(entering, level)
            counts |= {f"level{index}.ties": ties, f"level{index}.inexact": inexact}
        items = trace.registers
    return counts


def _products(inputs: Inputs) -> Array:
    """Return all products (M, N, K), int64."""
    a, b = inputs["a"].astype(np.int64), inputs["b"].astype(np.int64)
    product: Array = a[:, None, :] * b.T[None, :, :]
    return product


def _dropped(items: Array, level: Level) -> tuple[int, int]:
    bits = level.dropped_bits
    low = items & ((1 << bits) - 1)
    return int(np.count_nonzero(low == 1 << (bits - 1))), int(np.count_nonzero(low))


def _beside_rails(inputs: Inputs, datapath: Datapath) -> dict[str, int]:
    form = datapath.accumulator.register_format
    names = ("landed_on_rail", "one_inside", "one_beyond")
    if form is None or inputs["a"].size * inputs["b"].shape[1] > MOST_PRODUCTS:
        return dict.fromkeys(names, 0) if form is None else {}
    try:
        unlimited = run(inputs, unlimited_datapath(datapath)).codes
    except InputError:  # a sum of more than 63 bits, which no exact register holds
        return {}
    low, high = form.rails(datapath.accumulator.overflow)
    counts = (int(np.isin(unlimited, (low + step, high - step)).sum()) for step in (0, 1, -1))
    return dict(zip(names, counts, strict=True))


def unlimited_datapath(datapath: Datapath) -> Datapath:
    """Return the same datapath with every register exact: its codes are U of S4.8."""
    levels = [level.model_copy(update={"register_word": "exact", "overflow": None}) for level in datapath.levels]
    return datapath.model_copy(update={"levels": tuple(levels)})


def run(inputs: Inputs, datapath: Datapath, trace: bool = False) -> GemmResult:
    """Return what the emulator gives for the operands of a GEMM."""
    return get_backend("emulator").gemm(inputs["a"], inputs["b"], datapath, inputs.get("c"), trace)


def _order_dependent(inputs: Inputs, datapath: Datapath, result: GemmResult) -> int:
    if not is_counted_by_level(inputs):
        return 0
    backwards = {**inputs, "a": np.ascontiguousarray(inputs["a"][:, ::-1])}
    backwards["b"] = np.ascontiguousarray(inputs["b"][::-1])
    return int(np.count_nonzero(run(backwards, datapath).codes != result.codes))


def _most_negative(inputs: Inputs, datapath: Datapath) -> int:
    low_a, low_b = extent(datapath, "a")[0], extent(datapath, "b")[0]
    return int(((inputs["a"] == low_a).sum(axis=0) * (inputs["b"] == low_b).sum(axis=1)).sum())


def total_coverage(cases: Iterable[Case]) -> dict[str, int]:
    """Return the sum of every count over all cases, in order of first appearance."""
    total: Counter[str] = Counter()
    for case in cases:
        total.update(case.coverage)
    return dict(total)


def never_reached(coverage: Mapping[str, int]) -> list[str]:
    """Return the names of what no case reaches, so that a set says what it cannot show."""
    return [name for name, count in coverage.items() if not count]
