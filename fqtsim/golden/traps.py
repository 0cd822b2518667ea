"""Operands that set traps for shortcuts: start values by shape, zeros in runs, swings between the rails, tall shapes.

Each was found by a kernel that all other cases let pass: paths for one row, for rows of zeros, for constant start
values, for sparse panels, for 64 rows and more, counters of few bits, and rails reached by one output and not by its
neighbour.
"""

from __future__ import annotations

import numpy as np

from fqtsim.golden.inputs import Array, Builder, Inputs, Plan

LONGEST_RUN = 600
"""Terms up to which a run of products of one sign may have to go on to pass a rail."""
RUNS = 8


def _random(m: int, k: int, n: int) -> Builder:
    return lambda plan: plan.random((m, k, n))


def _start(m: int, k: int, n: int, largest: int | None = None) -> Builder:
    """Random operands, up to `largest`, on start values from half of the accumulator: most sums stay inside."""

    def build(plan: Plan) -> Inputs:
        low, high = plan.accumulator
        return {**plan.random((m, k, n), largest), "c": plan.draw.integers(low // 2, high // 2, (m, n))}

    return build


def _start_zeros(plan: Plan) -> Inputs:
    """Rows of a and columns of b that are all 0, or all one code: their start values must come out all the same."""
    inputs = _start(9, 37, 7)(plan) or {}
    inputs["a"][[0, 3, 8]] = 0
    inputs["a"][5] = plan.a[1]
    inputs["b"][:, [0, 6]] = 0
    inputs["b"][:, 3] = plan.b[0]
    return inputs


def _start_as_bias(plan: Plan) -> Inputs:
    """First and last rows, and columns, of the start values agree; those between do not."""
    inputs = _start(7, 21, 6)(plan) or {}
    inputs["c"][-1] = inputs["c"][0]
    inputs["c"][:, -1] = inputs["c"][:, 0]
    return inputs


def _zero_runs(plan: Plan) -> Inputs:
    """Long runs of zeros in a row, a column, or both, with codes before and behind; lengths beside 256 and 512."""
    k, lengths = 1100, (15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 257, 511, 512, 513, 1000)
    inputs = plan.random((len(lengths), k, len(lengths)))
    for index, length in enumerate(lengths):
        first = 3 + 5 * index
        inputs["b"][first : first + length, index] = 0
        inputs["a"][len(lengths) - 1 - index, first : first + length] = 0
    return inputs


def _panels(plan: Plan) -> Inputs:
    """Two of four codes are 0 in the first 64 terms, none behind: what a probe finds there does not hold for all."""
    inputs = plan.random((11, 149, 9))
    inputs["b"][:64].reshape(16, 4, 9)[:, 2:] = 0
    inputs["a"][:, :64].reshape(11, 16, 4)[:, :, :2] = 0
    return inputs


def _zero_sums(plan: Plan) -> Inputs:
    """Codes of opposite signs in pairs, fours and eights, whose sums are 0, but whose products are not."""
    k = 96
    inputs = plan.random((12, k, 10))
    for name, axis, ends in (("a", 1, plan.a), ("b", 0, plan.b)):
        if ends[0] >= 0:
            continue
        codes = np.moveaxis(inputs[name], axis, -1)
        for place in range(0, k, 16):
            half = 1 << (place // 16 % 3)
            for first in range(place, place + 16, 2 * half):
                first_half = np.maximum(codes[:, first : first + half], -ends[1])
                codes[:, first : first + half] = first_half
                codes[:, first + half : first + 2 * half] = -first_half
    return inputs


def _swings(m: int, n: int, from_start: bool = False) -> Builder:
    """Runs of large products of one sign, then of the other, elsewhere in every row and column.

    Sums pass one rail, come back and pass the other, so that what one output does on the way its neighbour does not.
    None where a run would need more than LONGEST_RUN terms.
    """

    def build(plan: Plan) -> Inputs | None:
        if plan.datapath.accumulator.register_format is None or (plan.a[0] >= 0 and plan.b[0] >= 0):
            return None
        low, high = plan.accumulator
        item = max(-plan.a[0], plan.a[1]) * max(-plan.b[0], plan.b[1]) >> plan.datapath.dropped_bits
        run = (high - low) // max(1, item) + 4
        if run > LONGEST_RUN:
            return None
        k = RUNS * run + 3
        a, b = _runs(plan, plan.a, m, k, run), _runs(plan, plan.b, n, k, run).T
        c = plan.draw.integers(low, high, (m, n)) if from_start else None
        return plan.inputs(a, b, c)

    return build


def _start_near_rails(plan: Plan) -> Inputs | None:
    """Start values so near a rail that the order of the first few large products decides what is lost."""
    if plan.datapath.accumulator.register_format is None:
        return None
    low, high = plan.accumulator
    item = max(-plan.a[0], plan.a[1]) * max(-plan.b[0], plan.b[1]) >> plan.datapath.dropped_bits
    shape = (8, 9)
    beside = np.minimum(plan.draw.integers(0, 4 * item + 1, shape), (high - low) // 2)
    c = np.where(plan.draw.integers(0, 1, shape) == 1, low + beside, high - beside)
    return plan.inputs(_runs(plan, plan.a, shape[0], 27, 4), _runs(plan, plan.b, shape[1], 27, 4).T, c)


def _runs(plan: Plan, ends: tuple[int, int], lines: int, k: int, run: int) -> Array:
    """Return large codes (lines, k): runs of about `run` of either sign, or of 0 where the format has no sign."""
    low, high = ends
    lengths = plan.draw.integers(max(1, run // 2), 2 * run, (lines, 3 * RUNS))
    edges = np.cumsum(lengths, axis=1) - plan.draw.integers(0, run, (lines, 1))
    number = (np.arange(k)[None, None] >= edges[:, :, None]).sum(axis=1) + plan.draw.integers(0, 1, (lines, 1))
    upper = plan.draw.integers(high - high // 4, high, (lines, k))
    lower = plan.draw.integers(low, low - low // 4, (lines, k))
    return np.where(number % 2 == 1, upper, lower)


def trap_cases() -> dict[str, Builder]:
    """Return the builders of this module by name; those of start values begin with "start"."""
    return {
        "whole_tiles": _random(64, 128, 96),
        "zero_runs": _zero_runs,
        "zero_sums": _zero_sums,
        "half_zero_panels": _panels,
        "swings": _swings(5, 7),
        "swings_tall": _swings(67, 3),
        "tall": _random(2051, 5, 2),
        "wide": _random(2, 5, 2051),
        "outputs_past_65536": _random(263, 3, 257),
        "start_one_row": _start(1, 19, 13),
        "start_one_column": _start(13, 19, 1),
        "start_one_term": _start(6, 1, 5),
        "start_zeros": _start_zeros,
        "start_as_bias": _start_as_bias,
        "start_long": _start(3, 1031, 4, 15),
        "start_tall": _start(1030, 3, 2),
        "start_wide": _start(2, 3, 1030),
        "start_swings": _swings(6, 9, from_start=True),
        "start_near_rails": _start_near_rails,
    }
