"""LUQ: kernel against definition, its law against all random words, what it refuses (docs/quantizers.md, Q9)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import fqtsim
from fqtsim.analysis import laws
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.backends.torch_primitives import TorchPrimitives
from fqtsim.errors import InputError
from fqtsim.kernels import threads
from fqtsim.ref import luq as ref

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def expected(x: np.ndarray[Any, Any], bits: int, n: int, ends: tuple[float, float] | None = None) -> tuple[Any, Any]:
    grid = ref.grid(*(ends or (float(x.min()), float(x.max()))), bits)
    words = DEFAULT_PRIMITIVES.random_words(3, 5, 7, x.size) >> np.uint32(32 - n)
    return grid, [ref.code(float(v), grid, int(r), n) for v, r in zip(x, words, strict=True)]


@example([0.0], 4, 16)
@example([64.0, 1.0, -1.0, 32.0, -32.0, 31.999998, 0.5, -0.5, 1.5, 3.0, -48.0], 4, 1)
@example([2.0**-149, -(2.0**-149)], 4, 32)
@example([3.4028235e38, -1.0, -3.4028235e38], 2, 8)
@given(st.lists(FINITE, min_size=1, max_size=40), st.integers(2, 4), st.integers(1, 32))
def test_the_kernel_is_the_definition(values: list[float], bits: int, n: int) -> None:
    x = np.float32(values)
    t = fqtsim.quantizer("luq", bits, "stochastic", n, "symmetric").quantize(x, 3, 5, 7)
    grid, codes = expected(x, bits, n)
    assert float(t.step) == grid.step
    assert t.codes.tolist() == [code for code, _ in codes]
    assert (t.clamps, int(t.zero_point)) == (sum(clamped for _, clamped in codes), 0) == (0, 0)


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.floats(0.015625, 900, width=32))
def test_a_fixed_range_clamps_and_counts(values: list[float], end: float) -> None:
    x = np.float32(values)
    t = fqtsim.quantizer("luq", 4, "stochastic", 16, "symmetric").quantize(x, 3, 5, 7, range=(-end, end))
    _, codes = expected(x, 4, 16, (-end, end))
    assert (t.codes.tolist(), t.clamps) == ([c for c, _ in codes], sum(clamped for _, clamped in codes))


def test_long_tensors_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 5)
    x = np.random.default_rng(0).laplace(size=20011).astype(np.float32)
    assert len(threads.parts(x.size)) == 5
    t = fqtsim.quantizer("luq", 4, "stochastic", 16, "symmetric").quantize(x, 3, 5, 7)
    assert t.codes.tolist() == [code for code, _ in expected(x, 4, 16)[1]]
    assert set(np.abs(t.codes).tolist()) == {0, 1, 2, 4, 8, 16, 32, 64}
    assert t.codes.dtype == np.int8
    assert (t.with_format("uint8").dequantize() == t.dequantize()).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("n", [1, 4, 7])
def test_the_law_is_the_mean_over_all_random_words(bits: int, n: int) -> None:
    x = np.float32([*np.random.default_rng(bits).normal(size=30), 2.0, -0.25, 0.0]).reshape(3, 11)
    q = fqtsim.quantizer("luq", bits, "stochastic", n, "symmetric")
    grid = ref.grid(float(x.min()), float(x.max()), bits)
    each = np.array([[ref.code(float(v), grid, r, n)[0] for v in x.flat] for r in range(2**n)]) * grid.step
    assert laws.exact_variance(q, x) == pytest.approx(each.var(axis=0).sum(), rel=1e-6)
    # Multiplied out, the quotient differs from x / step by float32 rounding.
    assert laws.exact_bias(q, x) == pytest.approx((each.mean(axis=0) - x.ravel()).reshape(x.shape), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "bits = 5: luq has 2..4"),
        ({"rounding": "ties_to_even", "random_bits": None}, "rounding = ties_to_even: luq"),
        ({"zero": "aligned"}, "zero = aligned: luq"),
        ({"format": "uint8"}, "format = uint8: 4-bit luq has codes -64..64"),
        ({"format": "int7"}, "format = int7: 4-bit luq has codes -64..64"),
        ({"range": "mean_of_rows"}, "range = mean_of_rows: is for ptq"),
    ],
)
def test_what_it_has_no_codes_for_is_refused(change: dict[str, Any], message: str) -> None:
    settings = {"bits": 4, "rounding": "stochastic", "random_bits": 16, "zero": "symmetric"} | change
    with pytest.raises(InputError, match=message):
        fqtsim.quantizer("luq", **settings)


def test_a_device_refuses_it() -> None:
    one = fqtsim.quantizer("luq", 4, "stochastic", 16, "symmetric")
    with pytest.raises(InputError, match=r"luq.*no form on a device"):
        one.quantize(torch.ones(3), primitives=TorchPrimitives("cpu"))
