"""S5.2: one rounded IEEE operation at a time, and the start-up proof that catches machines that do otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fqtsim.backends.make_primitive_vectors import generate
from fqtsim.backends.primitive_vectors import FILE
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.backends.primitives import Primitives
from fqtsim.errors import BackendRefused, InputError
from fqtsim.kernels import threads
from fqtsim.ref import binary32

Float32 = npt.NDArray[np.float32]
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
OPERATIONS: dict[str, Callable[[float, float], float]] = {
    "add": binary32.add,
    "subtract": binary32.subtract,
    "multiply": binary32.multiply,
    "divide": binary32.divide,
    "maximum": binary32.maximum,
}


def same(got: Float32, expected: float) -> bool:
    return int(got.view(np.uint32)) == int(np.array(expected, np.float32).view(np.uint32))


@pytest.mark.parametrize("name", OPERATIONS)
@example(0.0, -0.0)
@example(-0.0, -0.0)
@example(2.0**-149, 2.0)
@example(1.0, 3.0)
@given(FINITE, FINITE)
def test_operations_on_two_equal_the_definition(name: str, x: float, y: float) -> None:
    if name == "divide" and y == 0:
        return
    assert same(getattr(P, name)(x, y), OPERATIONS[name](x, y))


@given(st.floats(0, 2.0**127, width=32))
def test_sqrt_equals_the_definition(x: float) -> None:
    assert same(P.sqrt(x), binary32.sqrt(x))


@given(FINITE, FINITE)
def test_the_definition_agrees_with_rounding_a_float64_result(x: float, y: float) -> None:
    # binary64 has more than twice the digits of binary32, so rounding twice is harmless above the subnormals.
    for function, wide in ((binary32.add, x + y), (binary32.multiply, x * y)):
        if 2.0**-126 <= abs(wide) < 2.0**128 * (1 - 2.0**-25):
            assert function(x, y) == float(np.float32(wide))


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=3e38))
def test_rounding_upwards(value: float) -> None:
    up = binary32.upwards(value)
    assert float(np.float32(up)) == up >= value
    assert up == 0 or float(np.nextafter(np.float32(up), np.float32(-1))) < value


def test_maximum_is_never_minus_zero() -> None:
    result = P.maximum(np.float32([-0.0, -0.0, -1.0, np.nan]), 0.0)
    assert result[:3].view(np.uint32).tolist() == [0, 0, 0]
    assert math.isnan(result[3])
    assert same(P.maximum(-0.0, -0.0), 0.0)


def test_operands_broadcast_and_numbers_become_float32() -> None:
    x = np.ones((2, 3), np.float32)
    assert P.add(x, 0.1).dtype == np.float32
    assert P.multiply(x, np.ones((2, 1), np.float32)).shape == (2, 3)
    assert P.add(1.0, 2.0).shape == ()
    assert same(P.multiply(1.0, 0.1), float(np.float32(0.1)))


def test_a_result_out_of_range_is_an_infinity_without_a_warning() -> None:
    assert float(P.multiply(3e38, 10.0)) == math.inf
    assert float(P.divide(1.0, 0.0)) == math.inf
    assert math.isnan(float(P.sqrt(-1.0)))


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.float16])
def test_other_types_are_not_converted(dtype: type) -> None:
    with pytest.raises(InputError, match=r"operands must be float32; convert the array with astype\(np\.float32\)"):
        P.add(np.ones(2, dtype), 1.0)  # type: ignore[arg-type]


def test_this_machine_proves_its_primitives() -> None:
    P.prove()


def test_shipped_vectors_are_what_the_generator_writes() -> None:
    made = generate()
    with np.load(FILE) as file:
        assert set(file.files) == set(made)
        for name, expected in made.items():
            assert file[name].dtype == expected.dtype
            assert np.array_equal(file[name], expected), name


def _flushed(x: Any) -> Any:
    return np.where(np.abs(x) < np.float32(2.0**-126), np.float32(0), x)


BROKEN: dict[str, Callable[..., Any]] = {
    "add": lambda x, y: _flushed(np.float32(x) + y),
    "subtract": lambda x, y: np.float32(x) + -_flushed(y),
    "multiply": lambda x, y: (x.astype(np.float64) * y).astype(np.float16).astype(np.float32),
    "divide": lambda x, y: x * (np.float32(1) / y),
    "maximum": lambda x, y: np.where(x > y, x, y),
    "sqrt": lambda x: np.exp2(np.log2(x.astype(np.float64)) / 2).astype(np.float32) * np.float32(1 + 2.0**-23),
    "exp": np.exp,
    "log": np.log,
    "rcbrt": lambda x: np.float32(1) / np.cbrt(x),
    "cos": lambda x: np.cos(x % np.float32(2 * np.pi)),
    "exact_sum64": lambda x, axis=None: x.sum(axis=axis).astype(np.float64),
    "random_words": lambda *key: np.random.default_rng(key[0]).integers(0, 2**32, key[3], np.uint32),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_machine_that_computes_otherwise_is_refused_by_name(name: str) -> None:
    broken = Primitives()
    broken.name = "broken"

    def method(*operands: Any, **options: Any) -> Any:
        with np.errstate(all="ignore"):
            return np.asarray(BROKEN[name](*operands, **options))

    setattr(broken, name, method)
    with pytest.raises(BackendRefused, match=rf"^broken: primitive {name.removesuffix('64')}\("):
        broken.prove()


def test_the_refusal_says_which_operands() -> None:
    broken = Primitives()
    broken.maximum = lambda x, y: np.where(np.asarray(x) > y, x, y)  # type: ignore[method-assign, assignment]
    with pytest.raises(BackendRefused) as caught:
        broken.prove()
    assert str(caught.value) == (
        "numpy: primitive maximum(0.0, -0.0) gives bits 0x80000000 in place of 0x0; "
        "its results would differ from other machines', use another device"
    )


@pytest.mark.parametrize("threads_used", [1, 3])
def test_elementwise_operations_in_threads(threads_used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_PART", 4)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: threads_used)
    random = np.random.default_rng(0)
    x = random.normal(size=(7, 3, 4)).astype(np.float32)
    x[1, 1], x[2, 0, 0], x[3, 0, 0] = -0.0, np.inf, np.nan
    others = (np.float32(0), x[:1], x[0], x[:, :1], x[..., ::-1], np.asfortranarray(x), random.normal(size=3), x[:1, 0])
    for other in others:
        y = np.asarray(other, np.float32).reshape(-1, 1) if np.shape(other) == (3,) else np.asarray(other, np.float32)
        for left, right in ((x, y), (y, x)):
            for name in ("add", "subtract", "multiply", "divide"):
                with np.errstate(all="ignore"):
                    expected = getattr(np, name)(left, right)
                assert same_bits(getattr(P, name)(left, right), expected), (name, y.shape)
            largest = P.maximum(left, right)
            assert same_bits(largest, np.maximum(left, right) + np.float32(0))
    with np.errstate(invalid="ignore"):
        assert same_bits(P.sqrt(x), np.sqrt(x))


def same_bits(x: Any, y: Any) -> bool:
    """Tell whether two float32 arrays are equal to the bit, any NaN like any other."""
    both = x.shape == y.shape and x.dtype == y.dtype == np.float32
    return both and bool(((x.view(np.uint32) == y.view(np.uint32)) | (np.isnan(x) & np.isnan(y))).all())
