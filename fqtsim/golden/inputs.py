"""Operands of golden GEMMs: random at several magnitudes, shapes, rails and markers, for any datapath.

What aims at a sum (limits, ties, transients, order) is in sums.py. A builder takes a Plan and gives a (M, K), b (K, N)
and, for some, start values c (M, N); it gives None where this datapath cannot reach what the case is about.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import numpy as np

from fqtsim.api.requantize import random_bits
from fqtsim.hw.spec import Datapath
from fqtsim.words import ZeroPoint

Array = np.ndarray[Any, Any]
Inputs = dict[str, Array]

EDGES = (1, 2, 3, 4, 31, 32, 33, 63, 64, 65, 127, 128, 129)
"""K at and beside the sizes of tiles."""
LONG = (131_071, 131_072)
"""K at which 2**31 is the limit of 8-bit products, and one below."""
LARGE = 4096
CHUNK = 1 << 20
WIDEST_START = 1 << 40
"""Largest start value of an exact accumulator."""


class Draw:
    """Random integers of one case: Philox words of (seed, name of the case, number of the call)."""

    def __init__(self, seed: int, name: str) -> None:
        self._seed, self._stream, self._calls = seed, zlib.crc32(name.encode()), 0

    def words(self, count: int) -> Array:
        """Return uint32 words; each call gives new ones."""
        self._calls += 1
        return random_bits(self._seed, self._stream, self._calls, count, 32)

    def integers(self, low: int, high: int, shape: tuple[int, ...], storage: str = "int64") -> Array:
        """Return integers in low..high, as good as uniform, span below 2**63."""
        span, size = high - low + 1, int(np.prod(shape))
        if span > 1 << 31:
            words = self.words(2 * size).astype(np.uint64)
            wide = (words[::2] << np.uint64(32) | words[1::2]) % np.uint64(span)
            return (wide.astype(np.int64) + low).reshape(shape).astype(storage)
        out, words = np.empty(size, storage), self.words(size)
        for first in range(0, size, CHUNK):  # in parts: eight bytes a word would be most of the memory
            part = words[first : first + CHUNK].astype(np.uint64) * np.uint64(span) >> np.uint64(32)
            out[first : first + CHUNK] = part.astype(np.int64) + low
        return out.reshape(shape)

    def choices(self, values: list[int], shape: tuple[int, ...]) -> Array:
        """Return elements of a list, int64."""
        return np.array(values, np.int64)[self.integers(0, len(values) - 1, shape)]


@dataclass(frozen=True)
class Plan:
    """What a builder knows: the datapath, and its own random integers."""

    datapath: Datapath
    draw: Draw
    #: (lowest, highest) code of a and of b, where fewer than all can enter the multiplier.
    within: tuple[tuple[int, int], tuple[int, int]] | None = None
    #: (lowest, highest) code that can enter the multiplier.
    a: tuple[int, int] = field(init=False)
    b: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        ends = self.within or (extent(self.datapath, "a"), extent(self.datapath, "b"))
        object.__setattr__(self, "a", ends[0])
        object.__setattr__(self, "b", ends[1])

    def inputs(self, a: Array, b: Array, c: Array | None = None) -> Inputs:
        """Return operands in their formats' storage types, c as int64."""
        left = np.ascontiguousarray(a).astype(self.datapath.multiplier_format("a").storage)
        right = np.ascontiguousarray(b).astype(self.datapath.multiplier_format("b").storage)
        start = {} if c is None else {"c": np.ascontiguousarray(c, np.int64)}
        return {"a": left, "b": right, **start}

    def random(self, shape: tuple[int, int, int], largest: int | None = None) -> Inputs:
        """Return random operands of (M, K, N), of magnitude up to `largest`."""
        m, k, n = shape
        (a_low, a_high), (b_low, b_high) = (_within(ends, largest) for ends in (self.a, self.b))
        storage_a = self.datapath.multiplier_format("a").storage
        storage_b = self.datapath.multiplier_format("b").storage
        a = self.draw.integers(a_low, a_high, (m, k), storage_a)
        return {"a": a, "b": self.draw.integers(b_low, b_high, (k, n), storage_b)}

    @property
    def accumulator(self) -> tuple[int, int]:
        """Lowest and highest code of the accumulator; of an exact one, those that start values are drawn from."""
        level = self.datapath.accumulator
        form = level.register_format
        return (-WIDEST_START, WIDEST_START) if form is None else form.rails(level.overflow)


Builder = Callable[[Plan], Inputs | None]


def extent(datapath: Datapath, side: str) -> tuple[int, int]:
    """Return the lowest and highest code of an operand as it enters the multiplier.

    A difference from a zero point spans one code less than its format: int8 less int8 is -255..255.
    """
    form = datapath.a_format if side == "a" else datapath.b_format
    if datapath.zero_point is ZeroPoint.BEFORE_MULTIPLY:
        return form.minimum - form.maximum, form.maximum - form.minimum
    return form.minimum, form.maximum


def _within(ends: tuple[int, int], largest: int | None) -> tuple[int, int]:
    return ends if largest is None else (max(ends[0], -largest), min(ends[1], largest))


def _random(m: int, k: int, n: int, shift: int = 0) -> Builder:
    """Random codes, `shift` bits smaller than the formats allow."""
    return lambda plan: plan.random((m, k, n), max(1, min(plan.a[1], plan.b[1]) >> shift) if shift else None)


def _tiny(plan: Plan) -> Inputs:
    return plan.random((24, 64, 20), 3)


def _scaled(plan: Plan) -> Inputs:
    """Codes of a magnitude at which about half of the sums of this K pass the accumulator's rails."""
    k = 256
    largest = isqrt(3 * min(plan.accumulator[1], 1 << 60) << plan.datapath.dropped_bits) // isqrt(isqrt(k))
    return plan.random((21, k, 19), max(1, min(largest, max(plan.a[1], plan.b[1]))))


def _sparse(plan: Plan) -> Inputs:
    inputs = plan.random((17, 100, 23))
    inputs["a"][plan.draw.integers(0, 9, (17, 100)) > 0] = 0
    return inputs


def _corners(plan: Plan) -> Inputs:
    """Codes at and beside the ends and zero, in any mixture."""
    a, b = (plan.draw.choices(_ends(*ends), shape) for ends, shape in ((plan.a, (14, 77)), (plan.b, (77, 22))))
    return plan.inputs(a, b)


def _ends(low: int, high: int) -> list[int]:
    return sorted({code for code in (low, low + 1, -1, 0, 1, high // 2, high - 1, high) if low <= code <= high})


def _rails(plan: Plan) -> Inputs:
    """K = 1: every product of ends with ends, most negative times most negative among them."""
    return plan.inputs(np.array([_ends(*plan.a)]).T, np.array([_ends(*plan.b)]))


def _rail_runs(plan: Plan) -> Inputs:
    """One end along the whole of k, so that every product pushes the same way."""
    k = 67
    return plan.inputs(
        np.repeat(np.array([_ends(*plan.a)]).T, k, axis=1), np.repeat(np.array([_ends(*plan.b)]), k, axis=0)
    )


def _most_negative(plan: Plan) -> Inputs:
    """Row i has i + 1 products of the two most negative codes, the rest is 0."""
    return plan.inputs(np.tri(24, 24, dtype=np.int64) * plan.a[0], np.full((24, 2), plan.b[0]))


def _markers(k: int) -> Builder:
    """Row i of a is 1 at k = i alone, and row k of b names k: each output tells which k was read, and the last."""

    def build(plan: Plan) -> Inputs:
        span = plan.b[1] - plan.b[0] + 1
        numbers = np.arange(1, k + 1)
        columns = [plan.b[0] + numbers * step // part % span for step, part in ((1, 1), (7, 1), (1, span), (3, 2))]
        return plan.inputs(np.eye(k, dtype=np.int64), np.stack(columns, axis=1))

    return build


def _last_term(plan: Plan) -> Inputs:
    """Zeros but for the last term of rows of growing length, and the first: a lost end leaves 0."""
    k = 130
    a = np.zeros((k - 1, k), np.int64)
    a[np.arange(k - 1), np.arange(1, k)] = plan.a[1]
    a[:, 0] = 1
    return plan.inputs(a, plan.draw.integers(1, plan.b[1], (k, 2)))


def _long_rails(plan: Plan) -> Inputs:
    """All terms at their ends over the longest K: past 2**31 with 8-bit operands."""
    k = LONG[1]
    a, b = np.array([plan.a]).T, np.array([plan.b])
    return plan.inputs(np.repeat(a, k, axis=1), np.repeat(b, k, axis=0))


def _start(m: int, k: int, n: int) -> Builder:
    """Random operands on start values from all of the accumulator."""

    def build(plan: Plan) -> Inputs:
        return {**plan.random((m, k, n)), "c": plan.draw.integers(*plan.accumulator, (m, n))}

    return build


def _start_empty_k(plan: Plan) -> Inputs:
    """K = 0: no product, so that the start values come out; small ones, which no conversion rounds."""
    low, high = (min(max(end, -100), 100) for end in plan.accumulator)
    return {**plan.random((4, 0, 3)), "c": plan.draw.integers(low, high, (4, 3))}


def _start_ends(plan: Plan) -> Inputs:
    """Start values at and beside the rails, and small sums of either sign that stay, touch and pass."""
    low, high = plan.accumulator
    starts = [low, low + 1, low + 2, -1, 0, 1, high - 2, high - 1, high]
    starts = [min(max(code, low), high) for code in starts]
    inputs = plan.random((len(starts), 5, 24), 2)
    inputs["b"][:, 0] = 0  # the start value comes out as it is
    return {**inputs, "c": np.repeat(np.array([starts]).T, 24, axis=1)}


def random_cases() -> dict[str, Builder]:
    """Return the builders of this module by name; those of start values begin with "start", seeded sizes come last."""
    shapes = {"one_output": (1, 100, 1), "one_row": (1, 67, 37), "one_column": (41, 67, 1), "square": (48, 48, 48),
              "tile_edges": (129, 35, 65), "tile_edges_below": (31, 63, 127), "odd_shape": (19, 53, 7)}  # fmt: skip
    return {
        "random_full": _random(33, 129, 17),
        "random_half": _random(19, 257, 23, 1),
        "random_quarter": _random(29, 75, 26, 2),
        "random_small": _tiny,
        "random_scaled": _scaled,
        "random_sparse": _sparse,
        "random_long": _random(5, 2049, 3),
        "corners": _corners,
        "rails": _rails,
        "rail_runs": _rail_runs,
        "most_negative": _most_negative,
        "markers": _markers(64),
        "markers_odd": _markers(97),
        "last_term": _last_term,
        **{name: _random(*shape) for name, shape in shapes.items()},
        "empty_k": _random(5, 0, 3),
        **{f"k_{k}": _random(5, k, 3) for k in EDGES},
        "start_empty_k": _start_empty_k,
        "start_random": _start(9, 37, 11),
        "start_ends": _start_ends,
        **{f"k_{k}": _random(2, k, 3) for k in LONG},
        "k_131072_rails": _long_rails,
    }


def large_cases(quick: bool) -> dict[str, Builder]:
    """Return the seeded cases of size 4096; not quick: where each addition is performed slowly, fewer outputs."""
    side = LARGE if quick else 96
    return {
        f"large_{side}x{LARGE}x{side}": _random(side, LARGE, side),
        f"large_{LARGE}x65x33": _random(LARGE, 65, 33),
        f"large_33x65x{LARGE}": _random(33, 65, LARGE),
    }
