"""Write primitive_vectors.npz: `python -m fqtsim.backends.make_primitive_vectors`.

The operands are what hardware and libraries get wrong: subnormal operands and results (flushed), ties and near-ties
(a fused, approximate or reciprocal division; an approximate root), exact cancellation and negative zero, the edges of
the range. The results come from ref/. A test holds that this writes what is shipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np

from fqtsim.backends.primitive_vectors import FILE, GROUPS, QUANTIZED, SUMS, WORDS
from fqtsim.ref import binary32, elementary, quantize
from fqtsim.ref.exact_sum import exact_sum64
from fqtsim.ref.householder import reflect
from fqtsim.ref.random import random_bits, random_word
from fqtsim.words import Rounding

Array = np.ndarray[Any, Any]

_PAIRS_TO: dict[str, Callable[[float, float], float]] = {
    "add": binary32.add,
    "subtract": binary32.subtract,
    "multiply": binary32.multiply,
    "divide": binary32.divide,
    "maximum": binary32.maximum,
}
_SINGLE_TO: dict[str, tuple[Callable[[float], float], float, float]] = {
    # name -> definition, smallest and largest operand
    "sqrt": (binary32.sqrt, 0.0, math.inf),
    "exp": (elementary.exp, -110.0, 90.0),
    "log": (elementary.log, 2.0**-149, math.inf),
    "rcbrt": (elementary.rcbrt, 2.0**-149, math.inf),
    "cos": (elementary.cos, -(2.0**20), 2.0**20),
}


def _corners() -> list[float]:
    """Return finite numbers at the edges: of the range, of precision, of simple fractions; both signs."""
    patterns = [
        0x00000000, 0x00000001, 0x00000003, 0x007FFFFF, 0x00800000, 0x00800001, 0x0CFFFFFF, 0x1FFFFFFF, 0x33800000,
        0x3EAAAAAB, 0x3F000000, 0x3F7FFFFF, 0x3F800000, 0x3F800001, 0x3FFFFFFF, 0x40400000, 0x40E00000, 0x437F0000,
        0x4B7FFFFF, 0x4B800000, 0x5E800003, 0x7E800000, 0x7EFFFFFF, 0x7F7FFFFE, 0x7F7FFFFF,
    ]  # fmt: skip
    return [binary32.from_bits(sign | pattern) for pattern in patterns for sign in (0, 0x80000000)]


def _scattered(count: int, stream: int) -> list[float]:
    """Return finite numbers of random bit patterns."""
    words = (random_word(0, stream, 0, i) for i in range(10 * count))
    return [binary32.from_bits(word) for word in words if word & 0x7F800000 != 0x7F800000][:count]


def _pairs() -> Iterator[tuple[float, float]]:
    yield from product(_corners(), repeat=2)
    yield from zip(_scattered(200, 0), _scattered(200, 1), strict=True)
    for i in range(600):  # significands that make near-ties of quotients and products
        x, y = (0x3F800000 | random_word(0, 2, 0, 2 * i + j) >> 9 for j in (0, 1))
        yield binary32.from_bits(x), binary32.from_bits(y)


def _singles(smallest: float, largest: float) -> list[float]:
    close = [binary32.nearest(Fraction(math.pi) * k / 4) for k in range(1, 40)]
    near_one = [binary32.from_bits(0x3F800000 + k) for k in range(-20, 20)]
    roots = [binary32.from_bits(0x3F800000 | k * 0x9E3779 % 2**23) for k in range(99)]
    squares = [binary32.multiply(root, root) for root in roots]
    spread = [binary32.from_bits(0x3F800000 + k * 0x01234567 % 0x08000000) for k in range(200)]
    every = [*_corners(), *_scattered(200, 3), *close, *near_one, *squares, *spread]
    return [x for x in [*every, *(-x for x in every)] if smallest <= x <= largest]


def _patterns(values: list[float]) -> Array:
    return np.array([binary32.bits_of(x) if math.isfinite(x) else _infinity(x) for x in values], np.uint32)


def _infinity(x: float) -> int:
    return 0x7F800000 if x > 0 else 0xFF800000


def generate() -> dict[str, Array]:
    """Return all vectors by name: operands and results of ref/, as bit patterns."""
    vectors: dict[str, Array] = {}
    pairs = list(_pairs())
    vectors["pairs"] = np.stack([_patterns([x for x, _ in pairs]), _patterns([y for _, y in pairs])])
    for name, function in _PAIRS_TO.items():
        kept = [(x, y) if name != "divide" or y else (x, 1.0) for x, y in pairs]
        vectors[name] = _patterns([function(x, y) for x, y in kept])
    for name, (single, smallest, largest) in _SINGLE_TO.items():
        operands = _singles(smallest, largest)
        vectors[name] = np.stack([_patterns(operands), _patterns([single(x) for x in operands])])
    for i, shape in enumerate(SUMS):
        terms = np.array(_scattered(math.prod(shape), 4 + i)).reshape(shape)
        terms[::2] *= 2.0**-20
        narrow = np.ldexp(np.frexp(terms)[0], np.frexp(terms)[1] // 8).astype(np.float32)
        columns = narrow.reshape(shape[0], -1).T.astype(float).tolist()
        vectors[f"sum{i}"] = narrow.view(np.uint32)
        vectors[f"sum{i} result"] = np.array([exact_sum64(column) for column in columns]).view(np.uint64)
    for i, key in enumerate(WORDS):
        vectors[f"words{i}"] = np.array([random_word(*key, index) for index in range(18)], np.uint32)
    rows = [_singles(-math.inf, math.inf)[i::6][:35] for i in range(6)]
    rows = [[math.ldexp(math.frexp(x)[0], math.frexp(x)[1] // 8) for x in row] for row in rows]
    rows = [[binary32.nearest(Fraction(x)) for x in row] for row in rows]
    vectors["rows"] = np.stack([_patterns(row) for row in rows])
    vectors["reflect"] = np.stack([_patterns(reflect(list(u), GROUPS)) for u in zip(*rows, strict=True)], axis=1)
    for i, (zero, rounding, bits) in enumerate(QUANTIZED):
        vectors[f"codes{i}"] = np.array([_codes(i, row, zero, rounding, bits) for i, row in enumerate(rows)], np.int8)
    return vectors


def _codes(index: int, row: list[float], zero: str, rounding: Rounding, bits: int) -> list[int]:
    """Return the 5-bit codes of row number `index`, each with its own random bits."""
    grid = quantize.GRIDS[zero](min(row) + 0.0, max(row) + 0.0, 5, True)
    draws = [random_bits(1, 2, 3, index * len(row) + j, bits) if bits else 0 for j in range(len(row))]
    return [quantize.code(x, grid, rounding, r, bits)[0] for x, r in zip(row, draws, strict=True)]


if __name__ == "__main__":
    np.savez_compressed(FILE, **generate())  # type: ignore[arg-type]
