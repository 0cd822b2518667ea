"""S5.4: exp, log, inverse cube root and cos: the kernels equal ref/, and ref/ is nearly always the nearest float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.errors import InputError
from fqtsim.kernels import elementary as kernel
from fqtsim.kernels import exact_sum, quantize, random
from fqtsim.kernels.grid import aligned
from fqtsim.kernels.quantize import Draw
from fqtsim.ref import elementary as ref
from fqtsim.words import Rounding

Float32 = npt.NDArray[np.float32]
DOMAINS = {
    "exp": (-(2.0**127), 2.0**127),
    "log": (0.0, 2.0**127),
    "rcbrt": (0.0, 2.0**127),
    "cos": (-(2.0**20), 2.0**20),
}
EXACT: dict[str, Callable[[Any], Any]] = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "rcbrt": lambda x: 1 / mpmath.cbrt(x),
    "cos": mpmath.cos,
}
SPREAD = {  # the binary exponents, and the signs, of the arguments sampled
    "exp": (range(-26, 7), (1, -1)),
    "log": (range(-149, 128), (1,)),
    "rcbrt": (range(-149, 128), (1,)),
    "cos": (range(-13, 20), (1, -1)),
}


@pytest.mark.parametrize("name", DOMAINS)
@given(st.data())
def test_kernel_equals_definition(name: str, data: st.DataObject) -> None:
    low, high = DOMAINS[name]
    numbers = st.floats(low, high, width=32) | st.floats(max(low, -100), min(high, 100), width=32)
    values = data.draw(st.lists(numbers, min_size=1, max_size=20))
    got = getattr(kernel, name)(np.float32(values))
    expected = np.array([getattr(ref, name)(x) for x in values], np.float32)
    assert got.dtype == np.float32
    assert got.view(np.uint32).tolist() == expected.view(np.uint32).tolist()


def sample(name: str, count: int) -> Float32:
    exponents, signs = SPREAD[name]
    generator = np.random.default_rng(5)
    mantissa = generator.uniform(1, 2, count) * generator.choice(signs, count)
    return np.ldexp(mantissa, generator.integers(exponents.start, exponents.stop, count)).astype(np.float32)


@pytest.mark.parametrize("name", EXACT)
def test_results_are_the_nearest_float32_on_a_sample(name: str) -> None:
    """0 of 3000 here; 0 of 40000 each when the sequences were chosen."""
    x = sample(name, 3000)
    x = x[np.abs(x) < 88] if name == "exp" else x
    with mpmath.workprec(160):
        for argument, result in zip(x.tolist(), getattr(kernel, name)(x), strict=True):
            exact = EXACT[name](mpmath.mpf(argument))
            near = [result, np.nextafter(result, np.float32(-np.inf)), np.nextafter(result, np.float32(np.inf))]
            errors = [abs(exact - mpmath.mpf(float(neighbour))) for neighbour in near]
            assert errors[0] == min(errors), argument


KNOWN = [
    ("exp", 1.0, 0x402DF854),
    ("exp", -1.0, 0x3EBC5AB2),
    ("exp", 88.0, 0x7EF882B7),
    ("exp", -100.0, 0x0000001B),
    ("log", 2.0, 0x3F317218),
    ("log", 0.1, 0xC0135D8E),
    ("rcbrt", 8.0, 0x3F000000),
    ("rcbrt", 2.0, 0x3F4B2FF5),
    ("cos", 1.0, 0x3F0A5140),
    ("cos", 1000.0, 0x3F0FF813),
]


@pytest.mark.parametrize(("name", "x", "bits"), KNOWN)
def test_known_answers(name: str, x: float, bits: int) -> None:
    argument = np.float32(x)
    with mpmath.workprec(100):
        exact = np.float32(float(EXACT[name](mpmath.mpf(float(argument)))))
    assert int(getattr(P, name)(argument).view(np.uint32)) == bits == int(exact.view(np.uint32))


def test_edges() -> None:
    inf, nan = math.inf, math.nan
    cases = {
        "exp": [(-inf, 0.0), (-3e38, 0.0), (-104.0, 0.0), (-103.9, 2.0**-149), (0.0, 1.0), (88.73, inf), (inf, inf)],
        "log": [(0.0, -inf), (-0.0, -inf), (-1.0, nan), (1.0, 0.0), (inf, inf)],
        "rcbrt": [(0.0, inf), (-0.0, inf), (-1.0, nan), (1.0, 1.0), (inf, 0.0), (2.0**-147, 2.0**49)],
        "cos": [(0.0, 1.0)],
    }
    for name, results in cases.items():
        for x, expected in [*results, (nan, nan)]:
            for got in (float(getattr(P, name)(x)), getattr(ref, name)(float(np.float32(x))) if x == x else nan):
                assert got == expected or (math.isnan(got) and math.isnan(expected)), (name, x)


def test_cos_refuses_large_arguments() -> None:
    assert float(P.cos(2.0**20)) == pytest.approx(math.cos(2.0**20))
    with pytest.raises(InputError, match=r"^x: cos is defined for \|x\| <= 1048576 radians; reduce"):
        P.cos(np.float32([1.0, 1048577.0]))


def test_compiled_kernels_hold_no_fused_multiply_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FQTSIM_KERNEL_CACHE", "off")
    x = np.ones((3, 70), np.float32)
    exact_sum.exact_sum64(x, (0,))
    exact_sum.exact_sum64(x, (1,))
    grid = aligned(np.zeros(3, np.float32), np.ones(3, np.float32), 8, False)
    quantize.quantize(x, grid, Rounding.STOCHASTIC, Draw(0, 0, 0, 16), "uint8")
    random.random_words(0, 0, 0, 4)
    compiled = [exact_sum._sum_rows, exact_sum._sum_columns, quantize._quantize, random.fill_blocks]
    for kernel_function in compiled:
        kernel_function.recompile()  # what was loaded from disk has no listing
        listings = list(kernel_function.inspect_asm().values())
        assert listings
        for listing in listings:
            for word in ("vfmadd", "vfmsub", "vfnmadd", "fmadd", "fmsub", "fmla", "fmls"):
                assert word not in listing
