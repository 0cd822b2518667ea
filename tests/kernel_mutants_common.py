"""Shared by the kernel_mutants files: the registry, the exact arithmetic and the builders of inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Kernel = Callable[..., Array]
Inputs = tuple[Array, Array, Array | None]
Entry = tuple[str, str, Kernel, str]

LO20, HI20 = -(1 << 19), (1 << 19) - 1

CORRECT: list[Entry] = []
MUTANTS: list[Entry] = []
WITNESSES: dict[str, Callable[[], Inputs]] = {}


def correct(reference: str, how: str) -> Callable[[Kernel], Kernel]:
    """Register a kernel that equals its reference on every valid input; `how` says in which way it computes."""

    def register(kernel: Kernel) -> Kernel:
        CORRECT.append((kernel.__name__, reference, kernel, how))
        return kernel

    return register


def mutant(reference: str, wrong: str, witness: Callable[[], Inputs]) -> Callable[[Kernel], Kernel]:
    """Register a kernel with one bug; `witness` builds an input on which it differs from its reference."""

    def register(kernel: Kernel) -> Kernel:
        MUTANTS.append((kernel.__name__, reference, kernel, wrong))
        WITNESSES[kernel.__name__] = witness
        return kernel

    return register


def mm(a: Array, b: Array) -> Array:
    """The exact product in int64 (float64 holds every sum of K < 2^37 products of codes)."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def wrap(x: Array) -> Array:
    """The low 32 bits as int32."""
    return x.astype(np.int64).astype(np.int32)


def narrow(x: Array, bits: int) -> Array:
    """The low `bits` bits of x as a two's complement number, in int64."""
    half = 1 << (bits - 1)
    return ((x.astype(np.int64) + half) & ((1 << bits) - 1)) - half


def clip20(x: Array) -> Array:
    """Saturate to 20 bits."""
    return np.clip(x, LO20, HI20)


def start(a: Array, b: Array, c: Array | None) -> Array:
    """A fresh int64 accumulator: a copy of c, or zeros."""
    if c is None:
        return np.zeros((a.shape[0], b.shape[1]), np.int64)
    return c.astype(np.int64)


def runs(a: Array, b: Array, n: int = 4) -> Iterator[Array]:
    """The exact sums of runs of n consecutive products, in order of k, each (M, N)."""
    for k in range(0, a.shape[1], n):
        yield mm(a[:, k : k + n], b[k : k + n])


def scan20(a: Array, b: Array, acc: Array) -> Array:
    """The right saturating chain, from acc; for the parts of a mutant that are not its bug."""
    for s in runs(a, b):
        acc = clip20(acc + s)
    return acc


def sat20(a: Array, b: Array, c: Array | None) -> Array:
    """The right `sat20` kernel."""
    return scan20(a, b, start(a, b, c)).astype(np.int32)


def rand(m: int, k: int, n: int, *, signed: bool = False, c: int = 0, seed: int = 1) -> Inputs:
    """Random codes; c > 0 adds start values in -c..c-1."""
    g = np.random.default_rng(seed)
    a = g.integers(-128, 128, (m, k)).astype(np.int8) if signed else g.integers(0, 256, (m, k)).astype(np.uint8)
    b = g.integers(-128, 128, (k, n)).astype(np.int8)
    return a, b, g.integers(-c, c, (m, n)).astype(np.int32) if c else None


def full(m: int, k: int, n: int, av: int, bv: int, *, signed: bool = False, c: int | None = None) -> Inputs:
    """Constant operands, and a constant c where one is given."""
    a = np.full((m, k), av, np.int8 if signed else np.uint8)
    return a, np.full((k, n), bv, np.int8), None if c is None else np.full((m, n), c, np.int32)


def line(b: list[int], *, av: int = 255, c: int | None = None, m: int = 1, n: int = 1, signed: bool = False) -> Inputs:
    """A constant a against one column of codes, repeated n times."""
    a, _, start_values = full(m, len(b), n, av, 0, signed=signed, c=c)
    return a, np.repeat(np.array(b, np.int8)[:, None], n, 1), start_values
