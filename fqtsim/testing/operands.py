"""Hypothesis strategy for operands of a datapath: small matrices that reach a register's rail and come back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from fqtsim.hw.spec import Datapath, Level
from fqtsim.testing.formats import codes
from fqtsim.words import IntFormat

Array = np.ndarray[Any, Any]
EXACT_START = 1 << 40
"""Largest start value drawn for an exact accumulator."""


class Operands(NamedTuple):
    """One GEMM's codes: a (M, K) and b (K, N) in their formats' storage types, c (M, N) int64 or None."""

    a: Array
    b: Array
    c: Array | None


@st.composite
def operands(
    draw: st.DrawFn, datapath: Datapath, max_m: int = 3, max_k: int = 40, max_n: int = 4, start: bool = True
) -> Operands:
    """Return a strategy for operands of a datapath, M, K and N from 0 or 1 up to the limits.

    Five patterns: any codes, corners, runs of one sign (every product pushes the same way), swings (out of the
    register and back: transients), and steps of -1, 0, 1 that meet rails exactly. start: draw start values too,
    half of them at or beside the accumulator's rails. Where zero points come before the multiplier, codes are
    differences, one bit wider and signed.

        @given(st.data())
        def test_mine(data):
            a, b, c = data.draw(operands(datapath))
            fqtsim.testing.assert_bitexact(my_gemm(a, b, c), a, b, hardware, c=c)
    """
    m, n = draw(st.integers(1, max_m)), draw(st.integers(1, max_n))
    k = draw(st.integers(1, max_k) | st.integers(0, min(max_k, 4)))
    form_a, form_b = datapath.multiplier_format("a"), datapath.multiplier_format("b")
    pattern = draw(st.sampled_from([_any, _corners, _runs, _swings, _steps]))
    a, b = draw(pattern(form_a, (m, k), along=1)), draw(pattern(form_b, (k, n), along=0))
    c = draw(_starts(datapath.accumulator, (m, n))) if start and draw(st.booleans()) else None
    return Operands(a.astype(form_a.storage), b.astype(form_b.storage), c)


Shape = tuple[int, int]


def _filled(values: st.SearchStrategy[int], shape: Shape) -> st.SearchStrategy[Array]:
    size = shape[0] * shape[1]
    return st.lists(values, min_size=size, max_size=size).map(lambda found: np.array(found, np.int64).reshape(shape))


def _any(form: IntFormat, shape: Shape, along: int) -> st.SearchStrategy[Array]:
    return _filled(st.integers(form.minimum, form.maximum), shape)


def _corners(form: IntFormat, shape: Shape, along: int) -> st.SearchStrategy[Array]:
    return _filled(codes(form), shape)


def _steps(form: IntFormat, shape: Shape, along: int) -> st.SearchStrategy[Array]:
    return _filled(st.integers(max(form.minimum, -1), 1), shape)


@st.composite
def _runs(draw: st.DrawFn, form: IntFormat, shape: Shape, along: int) -> Array:
    """One code along the whole of k, mostly a rail."""
    across = draw(_filled(st.sampled_from([form.maximum, form.minimum, form.maximum // 2]), (1, shape[1 - along])))
    line = across if along == 0 else across.T
    return np.broadcast_to(line, shape)


@st.composite
def _swings(draw: st.DrawFn, form: IntFormat, shape: Shape, along: int) -> Array:
    """Rails that alternate along k, in blocks."""
    period = draw(st.integers(1, max(1, shape[along] // 2)))
    upper = np.arange(shape[along]) // period % 2 == 0
    line = np.where(upper, form.maximum, form.minimum)
    if draw(st.booleans()):  # the other operand then decides the sign
        line = np.full_like(line, form.maximum)
    return np.broadcast_to(line[None, :] if along == 1 else line[:, None], shape)


def _starts(accumulator: Level, shape: Shape) -> st.SearchStrategy[Array]:
    form = accumulator.register_format
    if form is None:
        return _filled(st.integers(-EXACT_START, EXACT_START), shape)
    low, high = form.rails(accumulator.overflow)
    beside = [code for code in (low, high, low + 1, high - 1, 0) if low <= code <= high]
    return _filled(st.sampled_from(beside) | st.integers(low, high), shape)
