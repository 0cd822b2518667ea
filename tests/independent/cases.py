"""Random datapaths and operands that make registers overflow: every case is a function of its number alone.

Widths are chosen around what the sums of a datapath need, operands favour corners, rails and runs that go out
and come back, so that a good share of outputs is altered and some of the alterations are transient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from .bits import DETERMINISTIC, parse_format

MAX_K = 4096
EXACT_LIMIT = 1 << 61
"""Loose bound on what an exact register may hold at K = 4096: well inside the 63 bits of the schema."""

Array = NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """One GEMM: operands (M x K) and (K x N), start values (M x N) or none, and a datapath as in YAML."""

    number: int
    datapath: dict[str, Any]
    a: Array
    b: Array
    c: Array | None


def cases(count: int, first: int = 0, datapaths: int = 2500) -> Iterator[Case]:
    """Yield cases first..first+count-1 over the first `datapaths` datapaths in turn."""
    for number in range(first, first + count):
        yield case(number, datapaths)


def case(number: int, datapaths: int = 2500) -> Case:
    """Return the case of that number."""
    random = RandomState(1_000_000 + number)
    path = datapath(number % datapaths)
    m, n, k = random.randint(1, 4), random.randint(1, 5), depth(random)
    lines = [operand_range(path, name) for name in ("a", "b")]
    a, b = PATTERNS[random.randint(len(PATTERNS))](random, (m, k, n), *lines)
    return Case(number, path, a, b, start_values(random, (m, n), path["levels"][-1]))


def depth(random: RandomState) -> int:
    """Return K: mostly tens, sometimes nothing, rarely thousands."""
    low, high = [(0, 1), (1, 2), (2, 17), (2, 65), (65, 257), (257, 1025), (1025, MAX_K + 1)][
        random.choice(7, p=[0.02, 0.03, 0.4, 0.4, 0.12, 0.025, 0.005])
    ]
    return MAX_K if high > MAX_K and random.rand() < 0.3 else int(random.randint(low, high))


# ---- datapaths -------------------------------------------------------------------------------------------


def datapath(number: int) -> dict[str, Any]:
    """Return the datapath of that number: one to four levels, the last over all terms."""
    random = RandomState(number)
    path: dict[str, Any] = {name: operand_name(random) for name in ("a", "b")}
    path["zero_point"] = ("none", "before_multiply", "after_accumulate")[random.randint(3)]
    peaks = [max(abs(edge) for edge in operand_range(path, name)) for name in ("a", "b")]
    growth = Growth(random, peak=peaks[0] * peaks[1], typical_items=2 ** random.randint(1, 8))
    depth_of_chain = random.choice(4, p=[0.3, 0.35, 0.2, 0.15]) + 1
    path["levels"] = [growth.level(last=i == depth_of_chain - 1) for i in range(depth_of_chain)]
    return path


def operand_name(random: RandomState) -> str:
    bits = (8, 8, 4, random.randint(2, 17))[random.randint(4)]
    return f"{'u' * (random.rand() < 0.35)}int{bits}"


def operand_range(path: dict[str, Any], name: str) -> tuple[int, int]:
    """Return lowest and highest code that may enter the multiplier."""
    bits, signed = parse_format(path[name])
    if path["zero_point"] == "before_multiply":
        bits, signed = bits + 1, True
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class Growth:
    """Builds levels from the multipliers outwards and follows how large their codes can be."""

    def __init__(self, random: RandomState, peak: int, typical_items: int) -> None:
        self.random = random
        self.bound, self.items = peak, MAX_K  # loose, for the exact registers
        self.typical_peak, self.typical_items = peak, typical_items  # what operands will really reach

    def level(self, last: bool) -> dict[str, Any]:
        """Return the next level."""
        result: dict[str, Any] = {"terms": "all"} if last else self.grouping()
        if self.random.rand() < 0.3:
            result["item"] = self.item()
        per_register, emitted = self.split(result, self.items)
        typical, typical_emitted = self.split(result, self.typical_items)
        loose, needed = self.bound * per_register, max(1, self.typical_peak * typical)
        result |= self.register(loose + (2**40 if last else 0), needed.bit_length() + 1)
        self.items, self.typical_items = emitted, typical_emitted
        if result["register"] == "exact":
            self.bound, self.typical_peak = loose, needed
        else:
            self.bound = 2 ** parse_format(result["register"])[0]
            self.typical_peak = min(needed, self.bound)
        return result

    def grouping(self) -> dict[str, Any]:
        kind = ("terms", "terms", "parts", "lanes")[self.random.randint(4)]
        choices = (1, 1, 2, 2, 3, 4, 4, 5, 7, 8, 16, 33) if kind == "terms" else (1, 2, 3, 4, 5, 8, 16)
        if kind == "terms" and self.random.rand() < 0.07:
            return {"terms": "all"}
        return {kind: int(self.random.choice(choices))}

    def item(self) -> dict[str, Any]:
        most = (3, 8, 20)[self.random.choice(3, p=[0.6, 0.35, 0.05])]
        bits = int(self.random.randint(1, most + 1))
        self.bound, self.typical_peak = (self.bound >> bits) + 1, (self.typical_peak >> bits) + 1
        return {"drop_bits": bits, "rounding": str(self.random.choice(DETERMINISTIC))}

    def register(self, loose: int, needed_bits: int) -> dict[str, Any]:
        """Return register and overflow: mostly a little narrower than needed, sometimes anything at all."""
        if self.random.rand() < 0.2 and loose < EXACT_LIMIT:
            return {"register": "exact"}
        narrower = int(self.random.choice((-1, 0, 1, 1, 2, 2, 3, 4, 5)))
        bits = self.random.randint(2, 63) if self.random.rand() < 0.08 else needed_bits - narrower
        name = f"{'u' * (self.random.rand() < 0.12)}int{min(max(bits, 2), 62)}"
        words = ("wrap", "saturate") + ("saturate", "saturate_symmetric") * (not name.startswith("u"))
        return {"register": name, "overflow": str(self.random.choice(words))}

    @staticmethod
    def split(level: dict[str, Any], items: int) -> tuple[int, int]:
        """Return the largest number of items of one register, and how many registers are emitted."""
        if level.get("terms") == "all":
            return max(1, items), 1
        if "lanes" in level:
            return max(1, -(-items // level["lanes"])), level["lanes"]
        run = level["terms"] if "terms" in level else max(1, -(-items // level["parts"]))
        return run, max(1, -(-items // run))


# ---- operands --------------------------------------------------------------------------------------------

Range = tuple[int, int]
Shape = tuple[int, int, int]


def corners(random: RandomState, shape: tuple[int, ...], ends: Range) -> Array:
    """Return codes from the ends, their neighbours, zero, one and powers of two."""
    low, high = ends
    powers = [sign * 2**p for p in range(17) for sign in (-1, 1)]
    special = [low, low, low + 1, high, high, high - 1, 0, 1, -1, powers[random.randint(len(powers))]]
    return random.choice(np.clip(special, low, high), shape).astype(np.int64)


def uniform(random: RandomState, shape: tuple[int, ...], ends: Range) -> Array:
    return random.randint(ends[0], ends[1] + 1, shape).astype(np.int64)


def spread(random: RandomState, shape: Shape, ends_a: Range, ends_b: Range) -> tuple[Array, Array]:
    m, k, n = shape
    return uniform(random, (m, k), ends_a), uniform(random, (k, n), ends_b)


def cornered(random: RandomState, shape: Shape, ends_a: Range, ends_b: Range) -> tuple[Array, Array]:
    m, k, n = shape
    return corners(random, (m, k), ends_a), corners(random, (k, n), ends_b)


def mostly_small(random: RandomState, shape: Shape, ends_a: Range, ends_b: Range) -> tuple[Array, Array]:
    """Codes near zero with a few corners: sums walk along and are kicked."""
    m, k, n = shape

    def draw(size: tuple[int, int], ends: Range) -> Array:
        near = np.clip(np.rint(random.standard_normal(size) * 2), *ends).astype(np.int64)
        return np.where(random.rand(*size) < 0.1, corners(random, size, ends), near)

    return draw((m, k), ends_a), draw((k, n), ends_b)


def one_way(random: RandomState, shape: Shape, ends_a: Range, ends_b: Range) -> tuple[Array, Array]:
    """All products large and of one sign per output."""
    m, k, n = shape
    a = np.repeat(random.choice(ends_a, (m, 1)), k, axis=1) // random.choice((1, 1, 2, 5))
    b = np.repeat(random.choice(ends_b, (1, n)), k, axis=0)
    return np.clip(a, *ends_a).astype(np.int64), b.astype(np.int64)


def out_and_back(random: RandomState, shape: Shape, ends_a: Range, ends_b: Range) -> tuple[Array, Array]:
    """Push a register out of its range, then bring it back: transients, and rails reached from inside."""
    m, k, n = shape
    period = int(random.choice((1, 2, 3, 4, 8, max(1, k // 2), max(1, k // 3))))
    back = (np.arange(k) // period % 2 == 1)[:, None]
    a = uniform(random, (m, k), (ends_a[1] // 2, ends_a[1]))
    b = np.where(back, uniform(random, (k, n), (ends_b[0], ends_b[0] // 2)), uniform(random, (k, n), (0, ends_b[1])))
    return (a, b) if random.rand() < 0.7 else (a, np.where(back, ends_b[0], ends_b[1]) + np.zeros((k, n), np.int64))


def single_steps(random: RandomState, shape: Shape, ends_a: Range, ends_b: Range) -> tuple[Array, Array]:
    """Products of -1, 0, 1, for start values at a rail: every rail is met exactly."""
    m, k, n = shape
    draw = [np.clip(random.randint(-1, 2, size), *ends) for size, ends in (((m, k), ends_a), ((k, n), ends_b))]
    return draw[0].astype(np.int64), draw[1].astype(np.int64)


PATTERNS = (spread, cornered, cornered, mostly_small, one_way, out_and_back, out_and_back, single_steps)


def start_values(random: RandomState, shape: tuple[int, int], accumulator: dict[str, Any]) -> Array | None:
    """Return c inside the accumulator: none, at its rails, beside them, or anywhere."""
    if random.rand() < 0.5:
        return None
    if accumulator["register"] == "exact":
        low, high = -(2**40), 2**40
    else:
        bits, signed = parse_format(accumulator["register"])
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        low += accumulator["overflow"] == "saturate_symmetric"
    rails = [low, high, min(low + 1, high), max(high - 1, low), max(low, 0), (low + high) // 2]
    if random.rand() < 0.6:
        return random.choice(np.array(rails, np.int64), shape)
    near = random.randint(0, min(high - low, 2**16) + 1, shape)
    return (low + near if random.rand() < 0.5 else high - near).astype(np.int64)
