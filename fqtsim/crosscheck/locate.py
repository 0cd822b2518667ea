"""Where inside one dot product a backend departs from the reference.

A backend is a black box here. Its partial sum after k products is what it answers when the products after k
are zero: adding zero changes no register, and the grouping stays that of the whole sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fqtsim.backends.base import Array, Backend
from fqtsim.hw.spec import Datapath
from fqtsim.ref.gemm import Step, register_of_items, run_chain

#: Additions of the reference that one round of the search may cost, about two seconds.
ADDITIONS = 2_000_000


@dataclass(frozen=True)
class PartialSum:
    """The first partial sum in which a backend differs from the reference, or the news that there is none."""

    backend: str
    #: Products summed; None where this row and column alone agree with the reference.
    k: int | None
    #: The codes multiplied last.
    a: int = 0
    b: int = 0
    expected: str = ""
    observed: str = ""
    #: What the reference does with that product, one line per level.
    steps: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.k is None:
            return (
                f"  {self.backend}: this row and column alone agree with the reference: "
                "the fault shows only in the whole matrix, or not every time"
            )
        lines = [
            f"  {self.backend}: first wrong partial sum after product {self.k} (k = {self.k - 1}), "
            f"{self.a} * {self.b} = {self.a * self.b}:",
            f"    expected {self.expected}, {self.backend} has {self.observed}",
        ]
        return "\n".join(lines + [f"    {step}" for step in self.steps])


def label(backend: Backend) -> str:
    """Return what a report calls a backend: its name, with the device where that is not the CPU."""
    return backend.name if backend.device == "cpu" else f"{backend.name}@{backend.device}"


def register_bits(datapath: Datapath) -> int:
    """Return the width of the accumulator, 64 where it is exact."""
    register = datapath.accumulator.register_format
    return 64 if register is None else register.bits


def hex_code(code: int, bits: int) -> str:
    """Return a code as its bits and its number: `0x7fffff (8388607)`."""
    return f"0x{code & ((1 << bits) - 1):0{-(-bits // 4)}x} ({code})"


def expected_code(a: Array, b: Array, datapath: Datapath, c: int = 0) -> int:
    """Return the reference's code of one dot product. Shapes: (K,), both."""
    products = [x * y for x, y in zip(_integers(a), _integers(b), strict=True)]
    return run_chain(products, datapath.levels, c, limited=True)[0]


def first_wrong_sum(backend: Backend, a: Array, b: Array, datapath: Datapath, c: int = 0) -> PartialSum:
    """Return where `backend` first departs from the reference in one dot product. Shapes: (K,), both.

    Every prefix of a sum of up to about 1400 products is tried; a longer one is searched from coarse to fine,
    which passes over a departure that heals between two coarse prefixes.
    """
    low, high = 0, len(a)
    prefixes = max(16, ADDITIONS // max(1, len(a)))
    while True:
        ends = np.unique(np.linspace(low + 1, high, min(prefixes, high - low)).astype(np.int64))
        observed = _prefix_codes(backend, a, b, datapath, c, ends)
        expected = [_prefix_code(a, b, datapath, c, int(end)) for end in ends]
        wrong = [i for i, code in enumerate(expected) if int(observed[i]) != code]
        if not wrong:
            return PartialSum(label(backend), None)
        first = wrong[0]
        low, high = int(ends[first - 1]) if first else low, int(ends[first])
        if high - low == 1:
            bits = register_bits(datapath)
            codes = hex_code(expected[first], bits), hex_code(int(observed[first]), bits)
            trail = _trail(a, b, datapath, c, high)
            return PartialSum(label(backend), high, int(a[high - 1]), int(b[high - 1]), *codes, trail)


def _integers(codes: Array) -> list[int]:
    return [int(code) for code in codes]


def _cut(codes: Array, end: int) -> Array:
    cut = codes.copy()
    cut[end:] = 0
    return cut


def _prefix_code(a: Array, b: Array, datapath: Datapath, c: int, end: int) -> int:
    return expected_code(_cut(a, end), b, datapath, c)


def _prefix_codes(backend: Backend, a: Array, b: Array, datapath: Datapath, c: int, ends: Array) -> Array:
    rows = np.stack([_cut(a, int(end)) for end in ends])
    start: Any = np.full((len(ends), 1), c, dtype=np.int64) if c else None
    return backend.gemm(rows, np.ascontiguousarray(b[:, None]), datapath, start).codes[:, 0]


def _trail(a: Array, b: Array, datapath: Datapath, c: int, end: int) -> tuple[str, ...]:
    """Follow product number `end` through the levels of the reference."""
    products = [x * y for x, y in zip(_integers(_cut(a, end)), _integers(b), strict=True)]
    _, steps = run_chain(products, datapath.levels, c, limited=True)
    trail, item, count = [], end - 1, len(a)
    for index, level in enumerate(datapath.levels):
        at_level = [step for step in steps if step.level == index]
        trail.append(_show(at_level[item]))
        takers = register_of_items(level, count)
        item, count = (
            takers[item],
            level.count if level.grouping == "lanes" and level.count else takers[-1] + 1,
        )
    return tuple(trail)


def _show(step: Step) -> str:
    sums = f"{step.before} + {step.item} = {step.exact} -> {step.after}"
    return f"level {step.level} register {step.register}: {sums}  {step.event}".rstrip()
