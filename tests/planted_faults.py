"""Faulty kernels of a small datapath, in NumPy and plain Python, and operands on which they show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fqtsim.hw.load import parse_hardware
from fqtsim.hw.spec import Datapath
from fqtsim.identify import Observation

Array = np.ndarray[Any, Any]
Kernel = Callable[[Array, Array, "Array | None"], Array]
FILE = """
schema: 1
name: mine
summary: test
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: none
  levels: [{terms: all, register: int16, overflow: saturate}]
"""
SATURATING = parse_hardware(FILE).datapath
WRAPPING = parse_hardware(FILE.replace("saturate", "wrap").replace("int16", "int32")).datapath
BYTES = parse_hardware(
    FILE.replace("saturate", "wrap").replace("int16", "int32").replace("a: int8", "a: uint8")
).datapath
GROUPED = parse_hardware(FILE.replace("[{", "[{terms: 4, register: exact}, {")).datapath
DROPPING = parse_hardware(
    FILE.replace("{terms: all", "{terms: all, item: {drop_bits: 3, rounding: ties_to_even}")
).datapath
SHAPES = [(5, 70, 6), (4, 33, 7), (3, 300, 3), (7, 5, 2), (6, 64, 6), (19, 130, 18), (4, 8, 4)]


def clamp(value: Array, low: int, high: int) -> Array:
    return np.minimum(np.maximum(value, low), high)


def wrap(value: Array, bits: int) -> Array:
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


def step16(total: Array) -> Array:
    return clamp(total, -32768, 32767)


def chain(a: Array, b: Array, c: Array | None, step: Callable[[Array], Array] = step16, group: int = 1) -> Array:
    """Add products in order of k, `group` at a time, with step() after every addition."""
    total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c.astype(np.int64)
    for k in range(0, a.shape[1], group):
        total = step(total + a[:, k : k + group].astype(np.int64) @ b[k : k + group].astype(np.int64))
    return total


def exact(a: Array, b: Array, c: Array | None) -> Array:
    return chain(a, b, c, lambda total: total)


def operands(datapath: Datapath, shape: tuple[int, int, int], seed: int) -> tuple[Array, Array, Array | None]:
    """Random codes, with rails that push registers over their limits and back, and start values now and then."""
    rng = np.random.default_rng(seed)
    m, k, n = shape
    forms = datapath.multiplier_format("a"), datapath.multiplier_format("b")
    a, b = (rng.integers(f.minimum, f.maximum + 1, size) for f, size in zip(forms, ((m, k), (k, n)), strict=True))
    rails = rng.random(m) < 0.4
    a[rails] = np.where(np.arange(k) < k // 2, forms[0].maximum, forms[0].minimum)
    b[:, rng.random(n) < 0.4] = forms[1].maximum
    b[0, 0], a[0, 0] = forms[1].minimum, forms[0].minimum
    c = rng.integers(-20000, 20000, (m, n)) if seed % 2 else None
    return a, b, c


def observations(datapath: Datapath, kernel: Kernel) -> list[Observation]:
    seen = []
    for seed, shape in enumerate(SHAPES):
        a, b, c = operands(datapath, shape, seed)
        seen.append(Observation(a, b, kernel(a, b, c), c))
    return seen


def shuffled(order: Callable[[int], Any]) -> Kernel:
    return lambda a, b, c: chain(a[:, order(a.shape[1])], b[order(a.shape[1])], c)


def split_k(a: Array, b: Array, c: Array | None) -> Array:
    half = -(-a.shape[1] // 2)
    one, two = chain(a[:, :half], b[:half], None), chain(a[:, half:], b[half:], None)
    start = 0 if c is None else c
    return step16(step16(start + one) + two)


def pairs_of_bytes(a: Array, b: Array, c: Array | None) -> Array:
    total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c
    for k in range(0, a.shape[1], 2):
        total = wrap(total + step16(a[:, k : k + 2].astype(np.int64) @ b[k : k + 2].astype(np.int64)), 32)
    return total


def half_precision(a: Array, b: Array, c: Array | None) -> Array:
    return exact(a, b, c).astype(np.float32).astype(np.int64)


def float_sums(a: Array, b: Array, c: Array | None) -> Array:
    total = (np.zeros((a.shape[0], b.shape[1])) if c is None else c).astype(np.float32)
    for k in range(a.shape[1]):
        total = total + (a[:, k, None] * b[k]).astype(np.float32)
    return total.astype(np.int64)


def wrong_stride(a: Array, b: Array, c: Array | None) -> Array:
    flat, width = a.ravel(), a.shape[1]
    read = [[flat[(i * (width + 1) + k) % flat.size] for k in range(width)] for i in range(a.shape[0])]
    return chain(np.array(read), b, c)


def sticky(a: Array, b: Array, c: Array | None) -> Array:
    total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c.astype(np.int64)
    for i, j in np.ndindex(total.shape):
        for x, y in zip(a[i], b[:, j], strict=True):
            total[i, j] += int(x) * int(y)
            if not -32768 <= total[i, j] <= 32767:
                total[i, j] = -32768 if total[i, j] < 0 else 32767
                break
    return total


def bfloat16(code: int) -> int:
    """Round an integer to 8 significant bits, ties to even, in integers."""
    drop = max(abs(code).bit_length() - 8, 0)
    return (1 if code >= 0 else -1) * (round(abs(code) / (1 << drop)) << drop)


def floors(a: Array, b: Array, c: Array | None) -> Array:
    total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c
    for k in range(a.shape[1]):
        total = step16(total + ((a[:, k, None] * b[k]) >> 3))
    return total


def xor_sum(a: Array, b: Array, c: Array | None) -> Array:
    return exact(a, b, c) ^ 1


DOUBLE = "tflite_double"
RANDOM = np.random.default_rng(3)
ACC = np.r_[RANDOM.integers(-30000, 30000, 400), 7984, -7984, 2**20, -(2**20)]
#: Half of them are 1/2, so that there are ties.
MULTIPLIER = np.r_[np.full(200, 2**30), RANDOM.integers(2**30, 2**31, 200), 1583594044, 1583594044, 2**30, 2**30]
SHIFT = np.r_[RANDOM.integers(6, 12, 400), 9, 9, 8, 8]
