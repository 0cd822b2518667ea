"""S5.6 and S5.7: values to codes. The kernels equal ref/ bit for bit; stochastic rounding is exactly unbiased."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fqtsim.kernels import quantize as kernel
from fqtsim.kernels import threads
from fqtsim.kernels.grid import Grid
from fqtsim.kernels.quantize import Draw
from fqtsim.quantizers import quantizer
from fqtsim.ref import quantize as ref
from fqtsim.ref.random import random_bits
from fqtsim.ref.stochastic import round_value
from fqtsim.words import IntFormat, Rounding

Float32 = npt.NDArray[np.float32]
ROUNDINGS = list(Rounding)
SIMPLE = st.sampled_from([k / 8 for k in range(-24, 25)])
VALUES = st.one_of(SIMPLE, st.floats(-3, 3, width=32), st.floats(width=32, allow_nan=False, allow_infinity=False))


def tensors() -> st.SearchStrategy[Float32]:
    return st.tuples(st.integers(1, 5), st.integers(1, 9)).flatmap(lambda s: arrays(np.float32, s, elements=VALUES))


def by_definition(
    x: Float32, rows: Float32, q: Any, seed: int, stream: int, step: int
) -> tuple[Any, Any, Any, int, int]:
    """Return codes, steps, zero points, clamps and ties of rows, one Python number at a time."""
    codes, steps, zeros, clamps, ties = np.empty(rows.shape, np.int64), [], [], 0, 0
    nearest = q.rounding.value.startswith("ties_to")
    for i, row in enumerate(rows.tolist()):
        grid = ref.GRIDS[q.zero](min(row) + 0.0, max(row) + 0.0, q.bits, q.format.signed)
        steps.append(grid.step)
        zeros.append(grid.zero_point)
        for j, value in enumerate(row):
            n = q.random_bits
            r = random_bits(seed, stream, step, i * rows.shape[1] + j, n) if n else 0
            codes[i, j], clamped = ref.code(value, grid, q.rounding, r, n)
            clamps += clamped
            steps_away = ref.quotient(value, grid)
            ties += nearest and math.isfinite(steps_away) and Fraction(steps_away).denominator == 2
    return codes.reshape(x.shape), steps, zeros, clamps, ties


@pytest.mark.parametrize("name", ["ptq", "psq"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@given(
    x=tensors(),
    bits=st.integers(2, 16),
    wider=st.integers(0, 3),
    signed=st.booleans(),
    zero=st.sampled_from(["aligned", "symmetric", "float_offset"]),
    n=st.integers(1, 32),
    key=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
def test_codes_equal_the_definition(
    name: str,
    rounding: Rounding,
    x: Float32,
    bits: int,
    wider: int,
    signed: bool,
    zero: str,
    n: int,
    key: tuple[int, int, int],
) -> None:
    x = np.abs(x) if zero == "symmetric" and not signed else x
    port = IntFormat(min(16, bits + wider), signed)
    q = quantizer(name, bits, rounding, n if rounding is Rounding.STOCHASTIC else None, zero, port)
    t = q.quantize(x, *key)
    codes, steps, zeros, clamps, ties = by_definition(x, x.reshape(1, -1) if name == "ptq" else x, q, *key)
    assert t.codes.dtype == np.dtype(port.storage)
    assert t.codes.tolist() == codes.tolist()
    assert t.step.reshape(-1).tolist() == steps
    assert t.zero_point.reshape(-1).tolist() == zeros
    assert (t.clamps, t.ties) == (clamps, ties)
    assert t.step.shape == t.zero_point.shape == (() if name == "ptq" else (len(x),))


@given(tensors(), st.integers(2, 8), st.sampled_from(["aligned", "float_offset"]))
@example(
    np.float32([[0.0, 3.4028235e38]]), 5, "float_offset"
)  # the step, rounded up, carries the last code to infinity
def test_values_equal_the_definition(x: Float32, bits: int, zero: str) -> None:
    t = quantizer("psq", bits, "ties_to_even", zero=zero).quantize(x)
    for row, codes, got in zip(x.tolist(), t.codes.tolist(), t.dequantize().tolist(), strict=True):
        grid = ref.GRIDS[zero](min(row) + 0.0, max(row) + 0.0, bits, False)
        assert got == [ref.value(code, grid) for code in codes]


def rounded_short(y: Float32, words: np.ndarray[Any, Any], bits: int, limit: float) -> np.ndarray[Any, Any]:
    """Round by the kernel that has int32 only, under a grid of step 1 that clamps nothing."""
    ends, codes = np.iinfo(np.int32), np.empty(y.size, np.int32)
    one, zero, low, high = np.float32(1), np.int32(0), np.int32(ends.min), np.int32(ends.max)
    assert kernel._codes_short(y, one, words, bits, np.float32(limit), zero, low, high, codes) == 0
    return codes


@given(st.floats(-70000, 70000, width=32) | VALUES, st.integers(1, 8))
@example(-(2.0**-149), 8)
@example(-(2.0**-30), 3)
def test_stochastic_rounding_over_all_random_words(y: float, n: int) -> None:
    """The kernel meets S5.6 for every random integer, and the mean is floor(y * 2**n) / 2**n exactly."""
    words = np.arange(2**n, dtype=np.uint32) << np.uint32(32 - n)
    q = np.empty(2**n, np.int32)
    safe = min(max(y, -(2.0**20)), 2.0**20)
    kernel._round_stochastic(np.full(2**n, y, np.float32), words, n, q)
    assert q.tolist() == [round_value(safe, Rounding.STOCHASTIC, r, n) for r in range(2**n)]
    limit = float(kernel._limit(Grid(*[None] * 3, -128, 127, None), n))  # type: ignore[arg-type]
    short = rounded_short(np.full(2**n, y, np.float32), words, n, limit)
    near = min(max(y, -limit), limit)
    assert short.tolist() == [round_value(near, Rounding.STOCHASTIC, r, n) for r in range(2**n)]
    exact = Fraction(safe)
    assert Fraction(sum(q.tolist()), 2**n) == Fraction((exact * 2**n).__floor__(), 2**n)
    assert set(q.tolist()) <= {exact.__floor__(), exact.__ceil__()}


def test_int32_holds_what_the_short_stochastic_rounding_makes() -> None:
    """The largest quotient, with the word that lifts it most and the one that lifts it least, for every n."""
    for n in range(1, 33):
        limit = float(kernel._limit(Grid(*[None] * 3, -128, 127, None), n))  # type: ignore[arg-type]
        assert bool(limit) == (n <= 20)
        if not limit:
            continue
        words = np.array([0, 0xFFFFFFFF] * 4, np.uint32)
        y = np.array([3e38, 3e38, -3e38, -3e38, limit, limit, -limit, -limit], np.float32)
        assert rounded_short(y, words, n, limit).tolist() == [limit, limit, -limit, -limit] * 2
        assert limit > 4 * 128


@given(st.integers(-(2**12), 2**12), st.integers(1, 8))
def test_stochastic_rounding_is_unbiased_where_the_fraction_has_no_more_bits(k: int, n: int) -> None:
    value = k / 2**n
    assert sum(round_value(value, Rounding.STOCHASTIC, r, n) for r in range(2**n)) == k


@pytest.mark.parametrize("rounding", [r for r in ROUNDINGS if r is not Rounding.STOCHASTIC])
def test_all_roundings_on_halves_and_beside_them(rounding: Rounding) -> None:
    halves = np.arange(-9, 10, dtype=np.float32) / 2
    y = np.concatenate([halves, np.nextafter(halves, np.float32(-9)), np.nextafter(halves, np.float32(9))])
    grid = Grid(np.float32([1]), np.int32([0]), None, -100, 100, np.zeros(1, np.bool_))
    codes, clamps, ties = kernel.quantize(y[None], grid, rounding, Draw(0, 0, 0, 0), "int8")
    assert codes[0].tolist() == [round_value(value, rounding) for value in y.tolist()]
    assert clamps == 0
    assert ties == (10 if rounding.value.startswith("ties_to") else 0)


def test_values_outside_the_grid_are_clamped_and_counted() -> None:
    grid = Grid(np.float32([2.0**-149]), np.int32([3]), None, 0, 15, np.zeros(1, np.bool_))
    x = np.float32([[-3e38, -(2.0**-147), 0.0, 12 * 2.0**-149, 13 * 2.0**-149, 3e38]])
    for rounding, bits in ((Rounding.TIES_TO_EVEN, 0), (Rounding.TO_ODD, 0), (Rounding.STOCHASTIC, 32)):
        codes, clamps, _ = kernel.quantize(x, grid, rounding, Draw(0, 0, 0, bits), "uint8")
        assert codes.tolist() == [[0, 0, 3, 15, 15, 15]]
        assert clamps == 4


def test_the_word_of_an_element_is_its_place_in_the_logical_tensor() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    q = quantizer("ptq", 4, "stochastic", 16)
    expected = q.quantize(x, 1, 2, 3).codes
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(q.quantize(channels_last, 1, 2, 3).codes, expected)
    assert np.array_equal(quantizer("psq", 4, "stochastic", 16).quantize(x[:1], 1, 2, 3).codes.shape, (1, 3, 4, 5))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(q.quantize(x, *other).codes, expected)


@pytest.mark.parametrize("shape", [(1, 30001), (7, 3001), (5000, 3)])
def test_blocks_and_threads_do_not_change_codes(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    q = quantizer("psq", 8, "stochastic", 16)
    whole = q.quantize(x, 4, 5, 6)
    monkeypatch.setattr(threads, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 5)
    assert np.array_equal(q.quantize(x, 4, 5, 6).codes, whole.codes)
    for index in (0, 4095, 4096, x.size - 1):
        i, j = divmod(index, shape[1])
        grid = ref.aligned(float(x[i].min()), float(x[i].max()), 8, False)
        r = random_bits(4, 5, 6, index, 16)
        assert int(whole.codes[i, j]) == ref.code(float(x[i, j]), grid, Rounding.STOCHASTIC, r, 16)[0]
