"""What a datapath means: corner values pinned, laws of section 4, and levels traced addition by addition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mac import chain, datapath, level

from fqtsim.backends import BACKENDS, Events, GemmResult, get_backend
from fqtsim.hw.spec import Datapath
from fqtsim.ref.gemm import dot
from fqtsim.testing import codes, datapaths, operands

EVERY = ["reference", "stepwise", "emulator"]
Array = np.ndarray[Any, Any]


def column(values: list[int], dtype: str = "int64") -> Array:
    return np.array(values, dtype).reshape(-1, 1)


def one(a: list[int], b: list[int], path: Datapath, c: int | None = None, backend: str = "stepwise") -> GemmResult:
    left = column(a).T.astype(path.multiplier_format("a").storage)
    right = column(b).astype(path.multiplier_format("b").storage)
    return get_backend(backend).gemm(left, right, path, None if c is None else np.array([[c]]))


# --- one output, worked by hand --------------------------------------------------------------------------------------

TIES = [6, -6, 2, -2, 10, -10]  # quarters of which are ties: 1.5, -1.5, 0.5, -0.5, 2.5, -2.5
SMALL = [100, -100, 50], [127, 127, -128]  # products 12700, -12700, -6400
ALTERED, TRANSIENT = Events(1, 1, 0), Events(1, 0, 1)
CASES: list[tuple[str, list[int], list[int], str, int | None, int, Events]] = [
    ("inner 16 bits wrap", [127] * 8, [127] * 8, "terms 8 int16 wrap, int24 wrap", None, -2040, TRANSIENT),
    ("12 bits stick at the rail", [64] * 3, [32] * 3, "int12 saturate", None, 2047, ALTERED),
    ("12 bits come back", [64, 64, -64, -1], [32] * 4, "int12 saturate", None, -33, TRANSIENT),
    ("12 bits come back from below", [-64, -64, 64], [32, 33, 64], "int12 saturate", None, 2047, TRANSIENT),
    ("smallest squared", [-128] * 2, [-128] * 2, "int16 saturate", None, 32767, ALTERED),
    ("smallest squared wraps", [-128] * 2, [-128] * 2, "int16 wrap", None, -32768, ALTERED),
    ("rail met exactly", [1], [1], "int8 saturate", 126, 127, Events()),
    ("one past the rail", [1], [1], "int8 saturate", 127, 127, ALTERED),
    ("symmetric rail met", [1], [-1], "int8 saturate_symmetric", -126, -127, Events()),
    ("symmetric rail passed", [1], [-1], "int8 saturate_symmetric", -127, -127, ALTERED),
    ("unsigned under zero", [1], [-1], "uint8 saturate", 0, 0, ALTERED),
    ("unsigned wraps", [1], [-1], "uint8 wrap", 0, 255, ALTERED),
    ("unsigned under zero and back", [1, 2], [-1, 1], "uint8 saturate", 0, 2, TRANSIENT),
    ("item wider than register", [127], [127], "int8 wrap", None, 1, ALTERED),
    ("items are never narrowed", [127, -127], [127, 127], "int8 saturate", 1, -128, TRANSIENT),
    ("lanes beyond K", [3, 5], [7, 11], "lanes 5 int8 saturate, int8 saturate", None, 76, Events()),
    ("parts beyond items", [3, 5], [7, 11], "parts 5 int8 saturate, int8 saturate", None, 76, Events()),
    ("lanes interleave", [100, 1, 100, 1], [1] * 4, "lanes 2 int8 saturate, int9 wrap", None, 129, TRANSIENT),
    ("parts are contiguous", [100, 1, 99, 1, 1], [1] * 5, "parts 2 int8 saturate, int9 wrap", None, 129, TRANSIENT),
    ("parts leave out empty runs", [5] * 5, [9] * 5, "parts 4 int7 saturate, int9 wrap", None, 171, TRANSIENT),
    ("short last group", [80] * 3, [1] * 3, "terms 2 int8 saturate, int9 wrap", None, 207, TRANSIENT),
    ("a tie each", TIES, [1] * 6, "drop 2 ties_to_even int8 wrap", None, 0, Events()),
    ("ties away", [6, 2, 10], [1] * 3, "drop 2 ties_to_away int8 wrap", None, 6, Events()),
    ("-5 by 4, floor", [-5], [1], "drop 2 toward_negative int8 wrap", None, -2, Events()),
    ("-5 by 4, toward zero", [-5], [1], "drop 2 toward_zero int8 wrap", None, -1, Events()),
    ("all bits dropped", [-128], [127], "drop 40 toward_negative int8 wrap", None, -1, Events()),
    ("c keeps its units", [4], [1], "drop 2 toward_zero int8 wrap", 5, 6, Events()),
    ("no products give c", [], [], "lanes 3 int4 wrap, int8 wrap", -7, -7, Events()),
    ("no products, no c", [], [], "int8 wrap", None, 0, Events()),
    ("checked once a group", [90, 90, -90], [91] * 3, "terms 3 exact, int14 saturate", None, 8190, Events()),
    ("checked at each product", [90, 90, -90], [91] * 3, "int14 saturate", None, 1, TRANSIENT),
    ("62 bits at the rail", [3], [1], "int62 saturate", 2**61 - 3, 2**61 - 1, ALTERED),
    ("62 bits meet the rail", [2], [1], "int62 saturate", 2**61 - 3, 2**61 - 1, Events()),
    ("62 bits wrap", [3], [1], "int62 wrap", 2**61 - 3, -(2**61), ALTERED),
    ("62 bits unsigned", [1], [-1], "uint62 wrap", 0, 2**62 - 1, ALTERED),
    ("62 bits unsigned hold", [-1], [1], "uint62 saturate", 2**62 - 1, 2**62 - 2, Events()),
    # float64 would see room for 768 here.
    ("62 bits with room for 700", [74], [10], "int62 saturate", 2**61 - 701, 2**61 - 1, ALTERED),
    # Registers wider than the lanes that hold the sums.
    ("40 bits", *SMALL, "int40 saturate", None, -6400, Events()),
    ("40 bits wrap", *SMALL, "int40 wrap", None, -6400, Events()),
    ("40 bits wrap behind exact", *SMALL, "terms 2 exact, int40 wrap", None, -6400, Events()),
    ("40 bits inside 8", *SMALL, "terms 2 int40 saturate, int8 saturate", None, -128, ALTERED),
    ("8 bits inside 40", *SMALL, "terms 2 int8 saturate, int40 saturate", None, -256, TRANSIENT),
    ("32 bits unsigned", [100, -100], [1, 1], "uint32 saturate", None, 0, Events()),
]  # fmt: skip


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize(
    ("a", "b", "levels", "c", "code", "events"), [one[1:] for one in CASES], ids=[c[0] for c in CASES]
)
def test_worked_by_hand(
    a: list[int], b: list[int], levels: str, c: int | None, code: int, events: Events, backend: str
) -> None:
    result = one(a, b, datapath(*chain(levels)), c, backend)
    assert result.codes.tolist() == [[code]]
    assert result.events == events


@pytest.mark.parametrize("backend", EVERY)
def test_widest_operands(backend: str) -> None:
    wide = datapath(*chain("int31 saturate"), a="int16", b="int16")
    result = one([-32768] * 2, [-32768] * 2, wide, None, backend)
    assert (result.codes.tolist(), result.maximum, result.events) == ([[2**30 - 1]], 2**31, ALTERED)
    differences = datapath(*chain("int33 saturate"), a="uint16", b="uint16", zero_point="before_multiply")
    result = one([-65536] * 2, [65535] * 2, differences, None, backend)
    assert (result.codes.tolist(), result.minimum, result.events) == ([[-(2**32)]], -(2**33) + 2**17, ALTERED)


def test_codes_are_int32_where_the_accumulator_fits() -> None:
    for register, dtype in (("int32", np.int32), ("uint31", np.int32), ("uint32", np.int64), ("int33", np.int64)):
        for backend in BACKENDS:
            path = datapath(level(register, "wrap"))
            assert one([1], [1], path, None, backend).codes.dtype == dtype, (register, backend)
    assert one([1], [1], datapath(level("exact"))).codes.dtype == np.int64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0), (2, 0, 2), (0, 0, 0)])
def test_empty_operands_give_the_start_values(backend: str, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    path = datapath(level("int20", "wrap"))
    c = np.arange(m * n).reshape(m, n) if not k else None
    result = get_backend(backend).gemm(np.zeros((m, k), np.int8), np.zeros((k, n), np.int8), path, c, trace=True)
    expected = np.zeros((m, n)) if c is None else c
    assert result.codes.tolist() == expected.tolist()
    assert result.events == Events()
    assert result.trace is not None
    (last,) = result.trace
    assert (last.minimum, last.maximum, last.additions, last.overflows) == (0, 0, 0, 0)
    assert last.registers[:, :, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("backend", EVERY)
def test_at_rail_and_extremes_of_the_unlimited_result(backend: str) -> None:
    path = datapath(level("int8", "saturate"))
    result = get_backend(backend).gemm(column([1, 50, 100, -128], "int8"), column([1, 2, -1], "int8").T, path)
    assert result.codes.tolist() == [[1, 2, -1], [50, 100, -50], [100, 127, -100], [-128, -128, 127]]
    assert result.events == Events(3, 3, 0)
    assert (result.minimum, result.maximum, result.at_rail) == (-256, 200, 4)


# --- laws of section 4 -----------------------------------------------------------------------------------------------


@given(st.data(), datapaths(max_levels=1), st.integers(1, 5), st.sampled_from(EVERY))
def test_split_of_k_at_a_group_boundary_chains_through_c(
    data: st.DataObject, path: Datapath, run: int, backend: str
) -> None:
    inner = data.draw(st.sampled_from(["exact", "int9 saturate", "uint11 wrap", "drop 3 to_odd int8 wrap"]))
    grouped = (*datapath(*chain(f"terms {run} {inner}, int8 wrap")).levels[:1], *path.levels)
    path = path.model_copy(update={"levels": grouped if run > 1 else path.levels})
    a, b, c = data.draw(operands(path, max_k=30))
    split = run * data.draw(st.integers(0, a.shape[1] // run))
    executor = get_backend(backend)
    whole = executor.gemm(a, b, path, c).codes
    head = executor.gemm(a[:, :split], b[:split], path, c).codes
    assert np.array_equal(executor.gemm(a[:, split:], b[split:], path, head).codes, whole)


@given(st.data(), st.integers(2, 40), st.booleans(), st.sampled_from(EVERY))
def test_a_single_wrapping_level_has_no_order(data: st.DataObject, bits: int, signed: bool, backend: str) -> None:
    path = datapath(level(f"{'' if signed else 'u'}int{bits}", "wrap"), a="uint8")
    a, b, c = data.draw(operands(path))
    order = data.draw(st.permutations(range(a.shape[1])))
    executor = get_backend(backend)
    result = executor.gemm(a[:, order], b[list(order)], path, c)
    assert result == result_with(result, executor.gemm(a, b, path, c).codes)
    exact = a.astype(np.int64) @ b.astype(np.int64) + (0 if c is None else c)
    assert not ((exact - result.codes) % (1 << bits)).any()


def result_with(result: GemmResult, expected: Array) -> GemmResult:
    """Return the result after its codes, which dataclass equality cannot compare, were compared."""
    assert np.array_equal(result.codes, expected)
    return result


@given(st.data(), st.integers(8, 40))
def test_wide_enough_registers_change_nothing(data: st.DataObject, bits: int) -> None:
    path = datapath(level(f"int{bits}", data.draw(st.sampled_from(["wrap", "saturate"]))))
    a, b, _ = data.draw(operands(path, max_k=7, start=False))
    exact = a.astype(np.int64) @ b.astype(np.int64)
    limit = int((np.abs(a.astype(np.int64)) @ np.abs(b.astype(np.int64))).max(initial=0))
    assume(limit < 1 << (bits - 1))
    for backend in EVERY:
        result = get_backend(backend).gemm(a, b, path)
        assert np.array_equal(result.codes, exact)
        assert result.events == Events()


@given(st.data(), datapaths(), st.sampled_from(EVERY))
def test_events_are_about_the_unlimited_result(data: st.DataObject, path: Datapath, backend: str) -> None:
    a, b, c = data.draw(operands(path))
    result = get_backend(backend).gemm(a, b, path, c)
    wide = Datapath.model_validate(
        {
            **path.model_dump(by_alias=True, exclude_none=True, mode="json"),
            "levels": [unlimited(one) for one in path.levels],
        }
    )
    unbounded = get_backend("reference").gemm(a, b, wide, c).codes
    register = path.accumulator.register_format
    low, high = register.rails(path.accumulator.overflow) if register else (-(1 << 63), 1 << 63)
    altered, outside = result.codes != unbounded, (unbounded < low) | (unbounded > high)
    assert result.events == Events(int(altered.sum()), int(outside.sum()), int((altered & ~outside).sum()))
    assert (result.minimum, result.maximum) == (unbounded.min(), unbounded.max())
    assert result.at_rail == (np.isin(result.codes, (low, high)).sum() if register else 0)


def unlimited(one: Any) -> dict[str, Any]:
    plain = one.model_dump(by_alias=True, exclude_none=True, mode="json")
    plain.pop("overflow", None)
    return {**plain, "register": "exact"}


@given(codes("int8"), codes("int8"), codes("int24"))
def test_one_product_of_corner_codes(x: int, y: int, c: int) -> None:
    for overflow, expected in (
        ("saturate", min(max(c + x * y, -(2**23)), 2**23 - 1)),
        ("wrap", wrapped(c + x * y, 24)),
    ):
        for backend in EVERY:
            assert one([x], [y], datapath(level("int24", overflow)), c, backend).codes[0, 0] == expected


def wrapped(value: int, bits: int) -> int:
    return (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


# --- traces ----------------------------------------------------------------------------------------------------------


@given(st.data(), datapaths(), st.sampled_from(EVERY))
def test_traces_are_the_additions_of_the_definition(data: st.DataObject, path: Datapath, backend: str) -> None:
    a, b, c = data.draw(operands(path, max_m=2, max_n=2, max_k=20))
    result = get_backend(backend).gemm(a, b, path, c, trace=True)
    assert result.trace is not None
    assert len(result.trace) == len(path.levels)
    outputs = {
        (i, j): dot(a[i].tolist(), b[:, j].tolist(), path.levels, 0 if c is None else int(c[i, j]))
        for i in range(a.shape[0])
        for j in range(b.shape[1])
    }
    for index, traced in enumerate(result.trace):
        steps = {place: [step for step in output.steps if step.level == index] for place, output in outputs.items()}
        sums = [step.exact for found in steps.values() for step in found]
        assert (traced.minimum, traced.maximum) == (min(sums, default=0), max(sums, default=0))
        assert traced.additions == len(sums)
        assert traced.overflows == sum(step.event != "" for found in steps.values() for step in found)
        for (i, j), found in steps.items():
            last = {step.register: step.after for step in found}
            registers = traced.registers[i, j].tolist()
            start = outputs[i, j].code if index == len(path.levels) - 1 else 0
            assert registers == [last.get(number, start) for number in range(len(registers))]
            assert len(registers) > max(last, default=-1)


def test_a_trace_shows_registers_before_the_next_level_drops_bits() -> None:
    path = datapath(level("int16", "wrap", terms=2), level("int20", "saturate", drop=(2, "toward_negative")))
    trace = (
        get_backend("stepwise")
        .gemm(column([1, 2, 3, 4], "int8").T, column([5, 6, 7, 8], "int8"), path, trace=True)
        .trace
    )
    assert trace is not None
    assert [one.registers.tolist() for one in trace] == [[[[17, 53]]], [[[17]]]]


def test_a_trace_names_registers_and_overflows() -> None:
    path = datapath(level("int8", "saturate", lanes=2), level("int9", "wrap"))
    trace = (
        get_backend("stepwise")
        .gemm(column([100, 1, 100, 1], "int8").T, column([1] * 4, "int8"), path, trace=True)
        .trace
    )
    assert trace is not None
    inner, last = trace
    assert (inner.minimum, inner.maximum, inner.additions, inner.overflows) == (1, 200, 4, 1)
    assert inner.registers.tolist() == [[[127, 2]]]
    assert (last.minimum, last.maximum, last.additions, last.overflows) == (127, 129, 2, 0)
    assert last.registers.tolist() == [[[129]]]
