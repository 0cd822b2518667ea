"""The proof that this machine computes the primitives: shipped adversarial vectors (S5.2).

primitive_vectors.npz holds operands and the results of ref/, as bit patterns; make_primitive_vectors.py writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fqtsim.errors import BackendRefused
from fqtsim.kernels.grid import GRIDS, Grid
from fqtsim.kernels.quantize import Draw
from fqtsim.words import Rounding

Array = np.ndarray[Any, Any]
FILE = Path(__file__).with_name("primitive_vectors.npz")

OF_TWO = ("add", "subtract", "multiply", "divide", "maximum")
OF_ONE = ("sqrt", "exp", "log", "rcbrt", "cos")
SUMS = ((7,), (5, 3), (40, 3), (3, 40))
"""Shapes whose first axis is summed: one long sum, few columns, columns, and rows of columns."""
WORDS = (0, 0, 0), (2**64 - 1, 2**32 - 1, 2**32 - 1), (0x299F31D0A4093822, 0x85A308D3, 0x13198A2E)
"""Seed, stream and step whose first words are compared."""
GROUPS = [[3, 0, 5], [1, 4], [2]]
"""Groups of the six rows that are reflected, leaders first."""
QUANTIZED = (
    ("aligned", Rounding.STOCHASTIC, 16),
    ("float_offset", Rounding.TO_ODD, 0),
    ("symmetric", Rounding.STOCHASTIC, 32),
)
"""Zero, rounding and random bits of the 5-bit codes, in a signed port, that are compared."""


class Provable(Protocol):
    """What `prove` needs of a set of primitives, beside one method per name of the vectors."""

    name: str

    def exact_sum64(self, x: Any, axis: Any = None) -> Any:
        """Return the sum as float64."""

    def reflect(self, x: Any, groups: list[list[int]]) -> Any:
        """Return the rows of each group reflected."""

    def extremes(self, x: Any) -> tuple[Any, Any]:
        """Return minimum and maximum of each row."""

    def quantize(self, x: Any, grid: Grid, rounding: Rounding, draw: Draw, storage: str) -> tuple[Any, int, int]:
        """Return the codes of the rows of x, the number of clamps and the number of ties."""

    def random_words(self, seed: int, stream: int, step: int, count: int) -> Any:
        """Return the words of one stream and step."""


def _expect(primitives: Provable, name: str, got: Any, expected: Array, operands: list[Array]) -> None:
    bits = np.ascontiguousarray(got).view(expected.dtype)
    wrong = np.flatnonzero(bits != expected)
    if wrong.size:
        bits, expected, at = bits.reshape(-1), expected.reshape(-1), wrong[0]
        of = ", ".join(f"{operand.view(np.float32)[at]}" for operand in operands)
        raise BackendRefused(
            f"{primitives.name}: primitive {name}({of}) gives bits {int(bits[at]):#x} in place of "
            f"{int(expected[at]):#x}; its results would differ from other machines', use another device"
        )


def prove(primitives: Provable) -> None:
    """Run the vectors through the primitives. Raises BackendRefused naming the first that fails, and its operands."""
    with np.load(FILE) as file:
        vectors = dict(file)
    x, y = vectors["pairs"]
    for name in OF_TWO:
        divisor = np.where(y & 0x7FFFFFFF, y, np.uint32(0x3F800000)) if name == "divide" else y
        result = getattr(primitives, name)(x.view(np.float32), divisor.view(np.float32))
        _expect(primitives, name, result, vectors[name], [x, divisor])
    for name in OF_ONE:
        operand, expected = vectors[name]
        _expect(primitives, name, getattr(primitives, name)(operand.view(np.float32)), expected, [operand])
    for i in range(len(SUMS)):
        total = primitives.exact_sum64(vectors[f"sum{i}"].view(np.float32), axis=0)
        _expect(primitives, "exact_sum", np.atleast_1d(total), vectors[f"sum{i} result"], [])
    for i, key in enumerate(WORDS):
        _expect(primitives, "random_words", primitives.random_words(*key, 18), vectors[f"words{i}"], [])
    rows = vectors["rows"].view(np.float32)
    _expect(primitives, "reflect", primitives.reflect(rows, GROUPS), vectors["reflect"], [])
    for i, (zero, rounding, bits) in enumerate(QUANTIZED):
        grid = GRIDS[zero](*primitives.extremes(rows), 5, True)
        codes, _, _ = primitives.quantize(rows, grid, rounding, Draw(1, 2, 3, bits), "int8")
        _expect(primitives, "quantize", codes, vectors[f"codes{i}"], [])
