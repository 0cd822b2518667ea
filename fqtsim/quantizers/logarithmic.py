"""LUQ: codes that are zero or powers of two, rounded at random within their octave (docs/quantizers.md, Q9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fqtsim.backends.primitives import Primitives
from fqtsim.errors import InputError
from fqtsim.kernels.grid import Grid, about_zero
from fqtsim.kernels.luq import top_code
from fqtsim.kernels.quantize import Draw
from fqtsim.quantizers.base import Step, Zero
from fqtsim.quantizers.per_tensor import PerTensorQuantizer
from fqtsim.words import IntFormat, Rounding

Array = np.ndarray[Any, Any]
MOST_BITS = 4
"""Of a sign and an exponent: 4 bits are codes up to 64, 5 would be codes up to 2**14."""


def checked_bits(bits: int) -> int:
    """Return the width of the logarithmic code. Raises InputError over 4."""
    if bits > MOST_BITS:
        raise InputError(f"bits = {bits}: luq has 2..{MOST_BITS}, codes up to 64; use fewer, or ptq")
    return bits


@dataclass(frozen=True)
class LogarithmicQuantizer(PerTensorQuantizer):
    """One step for the tensor; codes 0, and plus or minus 1, 2, 4, ... 2**(2**(bits - 1) - 2)."""

    def __post_init__(self) -> None:
        top = top_code(checked_bits(self.bits))
        if self.rounding is not Rounding.STOCHASTIC:
            raise InputError(f"rounding = {self.rounding}: luq rounds at random within octaves; use stochastic")
        if self.zero is not Zero.SYMMETRIC:
            raise InputError(f"zero = {self.zero}: luq has code 0 for zero and codes of both signs; use symmetric")
        if not self.format.signed or self.format.maximum < top:
            raise InputError(f"format = {self.format}: {self.bits}-bit luq has codes -{top}..{top}; use int8")

    @staticmethod
    def port(bits: int) -> IntFormat:
        return IntFormat(2 ** (checked_bits(bits) - 1), signed=True)

    @property
    def code_bits(self) -> int:
        return 1 << (self.bits - 1)

    def _grid(self, minimum: Array, maximum: Array) -> Grid:
        grid = about_zero(minimum, maximum, top_code(self.bits), signed=True)
        return grid if self.step is Step.FREE else self._coarse(grid)

    def _codes(self, rows: Array, grid: Grid, draw: Draw, primitives: Primitives) -> tuple[Array, int, int]:
        codes, clamps = primitives.log_codes(rows, grid, draw, self.format.storage)
        return codes, clamps, 0
