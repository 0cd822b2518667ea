"""Backends agree to the bit: with each other, with another model of the hardware."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from agreement import agree, summary
from hypothesis import given
from hypothesis import strategies as st
from mac import chain, datapath

from fqtsim.backends import BACKENDS, chains, get_backend, int8, plans, stepwise
from fqtsim.backends.instructions import matching_instruction
from fqtsim.errors import BackendRefused, InputError
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import gemm as kernels
from fqtsim.kernels import tile
from fqtsim.testing import datapaths, operands

Array = np.ndarray[Any, Any]


def test_500_random_cases() -> None:
    tally = agree(500, reference=lambda number: number % 4 == 0, per_bit=lambda number: number % 16 == 1)
    print(tally)
    assert (tally.reference, tally.per_bit) == (125, 32)
    assert tally.altered >= 125
    assert tally.transient >= 25


@given(st.data(), datapaths())
def test_any_datapath_on_every_backend(data: st.DataObject, path: Datapath) -> None:
    a, b, c = data.draw(operands(path))
    expected = summary(get_backend("reference").gemm(a, b, path, c))
    for backend in ("stepwise", "emulator"):
        assert summary(get_backend(backend).gemm(a, b, path, c)) == expected


NATIVE = ["int32 wrap", "int20 wrap", "uint9 wrap", "terms 3 exact, int16 wrap", "int62 wrap", "exact",
          "int40 saturate", "terms 4 int24 saturate, lanes 2 int30 wrap, int31 saturate"]  # fmt: skip


@given(
    st.data(),
    st.sampled_from(NATIVE),
    st.sampled_from(["int8", "uint8", "int5", "uint3"]),
    st.sampled_from(["int8", "uint8"]),
)
def test_native_gives_what_stepwise_gives(data: st.DataObject, levels: str, a: str, b: str) -> None:
    path = datapath(*chain(levels), a=a, b=b)
    left, right, _ = data.draw(operands(path, max_m=5, max_k=70, max_n=5, start=False))
    c = data.draw(st.none() | st.integers(0, 255))
    native = get_backend("native")
    assert native.refusal(path, left.shape[1]) is None
    start = None if c is None else np.array(c)
    assert summary(native.gemm(left, right, path, start)) == summary(
        get_backend("stepwise").gemm(left, right, path, start)
    )


@pytest.mark.parametrize("a", [np.int8, np.uint8])
@pytest.mark.parametrize("b", [np.int8, np.uint8])
def test_native_in_every_layout(a: type, b: type) -> None:
    """A row taken from a column has strides (1, 1): torch._int_mm then reads beyond it."""
    random = np.random.RandomState(0)
    for m, k, n in ((1, 7, 2), (2, 7, 1), (1, 64, 64), (64, 64, 1), (1, 1, 9), (9, 1, 1), (5, 33, 6)):
        left, right = random.randint(-128, 128, (m, k)).astype(a), random.randint(-128, 128, (k, n)).astype(b)
        expected = left.astype(np.int64) @ right.astype(np.int64)
        for x in (left, left.T.copy("C").T, left.repeat(2, axis=1)[:, ::2]):
            for y in (right, right.T.copy("C").T, right.repeat(2, axis=0)[::2]):
                assert np.array_equal(int8.exact_product(x, y, "cpu"), expected), (m, k, n)


@pytest.mark.parametrize("levels", ["int40 wrap", "int40 saturate", "exact", "int32 wrap", "int34 wrap"])
def test_sums_beyond_32_bits(levels: str) -> None:
    """wgrad of a large convolution: K beyond what int32 holds."""
    k = 140_000
    a, b = np.full((1, k), 255, np.uint8), np.full((k, 2), 127, np.int8)
    b[:, 1] = -128
    path = datapath(*chain(levels), a="uint8")
    results = [summary(get_backend(name).gemm(a, b, path)) for name in ("native", "emulator", "stepwise")]
    assert results[0] == results[1] == results[2]
    if levels == "exact":
        assert results[0][0] == [[255 * 127 * k, -255 * 128 * k]]


@pytest.mark.parametrize(
    ("levels", "a", "b", "k", "c"),
    [("uint32 wrap", 255, 255, 40_000, None), ("uint32 wrap", 255, 255, 40_000, 7),
     ("int32 wrap", -128, 127, 132_105, 20_000)],
)  # fmt: skip
def test_silicon_wraps_where_the_accumulator_does_not(levels: str, a: int, b: int, k: int, c: int | None) -> None:
    """The sum fits the accumulator, by its own range or by c; on the way int32 of the silicon has wrapped."""
    formats = {"a": "uint8", "b": "uint8"} if a > 0 else {}
    path = datapath(*chain(levels), **formats)
    left = np.full((1, k), a, path.multiplier_format("a").storage)
    right = np.full((k, 1), b, path.multiplier_format("b").storage)
    start = None if c is None else np.array(c)
    native, exact = get_backend("native").gemm(left, right, path, start), a * b * k + (c or 0)
    assert native.codes.tolist() == [[exact]]
    assert native.events.altered == 0
    assert summary(native) == summary(get_backend("stepwise").gemm(left, right, path, start))


@pytest.mark.parametrize("name", ["x86_avx2_pmaddubsw", "x86_vnni_saturate"])
def test_native_runs_instructions_that_saturate(name: str) -> None:
    from fqtsim.hw.load import load_hardware

    path = load_hardware(name).datapath
    if matching_instruction(path) is None:
        pytest.skip(f"{name}: this processor has no such instruction")
    native = get_backend("native")
    random, altered = np.random.RandomState(1), 0
    for k in (1, 2, 3, 4, 5, 40, 257):
        a = random.choice([0, 1, 254, 255], (6, k)).astype(np.uint8)
        b = random.choice([-128, -1, 1, 127], (k, 37)).astype(np.int8)
        c = random.choice([-(2**31), 0, 2**31 - 1, 2**31 - 5], (6, 37))
        for start in (None, c):
            found, expected = native.gemm(a, b, path, start), get_backend("stepwise").gemm(a, b, path, start)
            assert summary(found) == summary(expected)
            altered += found.events.altered
    assert altered > 500


# --- refusals --------------------------------------------------------------------------------------------------------

CAN_OVERFLOW = "a register can overflow and INT8 instructions neither saturate nor narrow there"
NO_BACKEND = "must be one of reference, stepwise, emulator, native, optionally @cpu or @cuda"
CPU_ONLY = "stepwise runs on the CPU only; use stepwise@cpu or native@cuda"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (datapath(*chain("int16 saturate")), CAN_OVERFLOW),
        (datapath(*chain("terms 2 int16 wrap, int32 wrap")), CAN_OVERFLOW),
        (datapath(*chain("drop 1 to_odd int32 wrap")), CAN_OVERFLOW),
        (datapath(*chain("uint34 wrap")), CAN_OVERFLOW),
        (datapath(*chain("lanes 4 uint62 wrap, exact")),
         "levels.1.register = exact: needs more than 63 bits for K = 100; use a register with an overflow word, "
         "or split K"),
        (datapath(*chain("int32 wrap"), a="int9"), "operands of int9 do not fit INT8 instructions"),
        (datapath(*chain("int32 wrap"), b="uint16"), "operands of uint16 do not fit INT8 instructions"),
        (datapath(*chain("int32 wrap"), zero_point="before_multiply"), "operands of int9 do not fit INT8 instructions"),
    ],
)  # fmt: skip
def test_native_refuses_and_says_why(path: Datapath, reason: str) -> None:
    native = get_backend("native")
    assert native.refusal(path, 100) == reason
    a, b = (np.ones(shape, path.multiplier_format(side).storage) for shape, side in (((1, 100), "a"), ((100, 1), "b")))
    with pytest.raises(BackendRefused) as refusal:
        native.gemm(a, b, path)
    assert str(refusal.value) == f"native@cpu: {reason}; use backend stepwise or emulator"
    assert get_backend("emulator").refusal(path, 100) is None


def test_native_refuses_start_values_that_could_overflow() -> None:
    path = datapath(*chain("int20 saturate"))
    native = get_backend("native")
    a, b = np.ones((1, 3), np.int8), np.ones((3, 1), np.int8)
    assert native.gemm(a, b, path, np.array(7)).codes.tolist() == [[10]]
    with pytest.raises(BackendRefused) as refusal:
        native.gemm(a, b, path, np.array(2**19 - 1))
    assert str(refusal.value) == "native@cpu: a register can overflow from these start values; use backend stepwise"


def test_exact_registers_beyond_63_bits_are_refused_by_all() -> None:
    path = datapath(*chain("lanes 2 int62 wrap, exact"), a="int16", b="int16")
    a, b = np.full((1, 6), -(2**15), np.int16), np.full((6, 1), 2**15 - 1, np.int16)
    wide = datapath(*chain("lanes 4 uint62 wrap, exact"), a="int16", b="int16")
    for backend in ("reference", "stepwise", "emulator"):
        get_backend(backend).gemm(a, b, path)
        with pytest.raises(InputError) as error:
            get_backend(backend).gemm(a, b, wide)
        assert str(error.value) == (
            "levels.1.register = exact: needs more than 63 bits for K = 6; "
            "use a register with an overflow word, or split K"
        )


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("gpu", InputError, f"backend = 'gpu': {NO_BACKEND}"),
        ("native@tpu", InputError, "backend = 'native@tpu': device must be cpu or cuda; use native@cpu"),
        ("stepwise@cuda", BackendRefused, f"backend = 'stepwise@cuda': {CPU_ONLY}"),
    ],
)  # fmt: skip
def test_names_that_are_no_backend(name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        get_backend(name)
    assert str(raised.value) == text


def test_names_are_backends_on_a_device() -> None:
    assert [get_backend(name).name for name in BACKENDS] == list(BACKENDS)
    assert get_backend("emulator@cpu").describe()["device"] == "cpu"
    backend = get_backend("stepwise")
    assert get_backend(backend) is backend
    executors = {get_backend(name).executor for name in BACKENDS}
    assert len(executors) == 4


# --- limits of the float32 lanes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [23, 24, 25, 26, 27])
@pytest.mark.parametrize("grouping", ["", "terms 3 exact, "])
@pytest.mark.parametrize("word", ["saturate", "saturate_symmetric"])
def test_saturating_registers_where_float32_lanes_end(
    bits: int, grouping: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both rails are passed by 1 and by most, in registers around the 24 bits of a float32 significand."""
    monkeypatch.setattr(tile, "HAS_DOT", False)
    path = datapath(*chain(f"{grouping}int{bits} {word}"), a="int9", b="int9")
    low, high = path.accumulator.register_format.rails(path.accumulator.overflow)
    starts = np.array([[low, low + 1, low + 2, high - 2, high - 1, high, 0, low + 65536, high - 65535, high - 65536]])
    rows = [[1, 1, 1, 1], [-1, -1, -1, -1], [255, 255, 255, 255], [-256, -256, -256, -256], [255, -256, 255, -255],
            [-256, 255, 1, 0], [1, -1, 1, -1], [127, 0, 0, -255]]  # fmt: skip
    a = np.array(rows, np.int16)
    for factor in (1, -1, 255, -256):
        b = np.full((4, starts.size), factor, np.int16)
        expected = summary(get_backend("reference").gemm(a, b, path, starts))
        for backend in ("stepwise", "emulator"):
            assert summary(get_backend(backend).gemm(a, b, path, starts)) == expected, factor
    lowered = stepwise.prepare(a, b, path, np.broadcast_to(starts, (8, starts.size)))
    plan = plans.tile_plan(lowered)
    assert plan is not None
    assert plan.driver.dtype is (np.float32 if bits <= 25 else np.int32)
    assert (plan.group, plan.low, plan.high) == (3 if grouping else 1, low, high)


@pytest.mark.parametrize("factor", [1, -1])
def test_group_sums_at_2_to_the_24(factor: int) -> None:
    """Sixteen products of 2**20 are the last group whose sums float32 holds."""
    for a_code, expected in ((1024, np.float32), (1025, None)):
        path = datapath(*chain("terms 16 exact, int24 saturate"), a="int13", b="int13")
        a, b = np.full((2, 33), a_code, np.int16), np.full((33, 3), factor * 1024, np.int16)
        a[1, ::2] -= 1
        result = summary(get_backend("reference").gemm(a, b, path))
        for backend in ("stepwise", "emulator"):
            assert summary(get_backend(backend).gemm(a, b, path)) == result
        plan = plans.tile_plan(stepwise.prepare(a, b, path, None))
        assert plan is not None
        assert (plan.driver.dtype is np.float32) == (expected is np.float32)


@pytest.mark.parametrize("levels", ["int12 saturate", "terms 5 exact, int15 saturate", "int13 wrap", "int30 saturate",
                                    "terms 1500 exact, int21 saturate"])  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 2050, 3), (7, 1024, 65), (70, 1025, 2), (13, 3, 130)])
def test_tiles_of_every_ragged_size(levels: str, shape: tuple[int, int, int]) -> None:
    """K beyond a chunk of 1024, rows and columns beside multiples of a tile; the general kernel is another opinion."""
    assert kernels.CHUNK == 1024, "choose shapes around the new chunk"
    m, k, n = shape
    random = np.random.RandomState(k)
    a, b = random.randint(-128, 128, (m, k)).astype(np.int8), random.randint(-128, 128, (k, n)).astype(np.int8)
    c = random.randint(-2000, 2000, (m, n))
    path = datapath(*chain(levels))
    # A cast in front of the accumulator changes nothing but the kernel.
    general = datapath(*chain(levels if "," in levels else f"terms 1 exact, {levels}"))
    general = general.model_copy(
        update={"levels": (*general.levels[:-1], *chain_of("terms 1 exact"), general.levels[-1])}
    )
    assert plans.tile_plan(stepwise.prepare(a, b, path, c)) is not None
    assert plans.tile_plan(stepwise.prepare(a, b, general, c)) is None
    expected = summary(get_backend("stepwise").gemm(a, b, general, c))
    for backend in ("stepwise", "emulator"):
        assert summary(get_backend(backend).gemm(a, b, path, c)) == expected


def chain_of(text: str) -> tuple[Any, ...]:
    return datapath(*chain(f"{text}, exact")).levels[:1]


# --- proofs of the emulator ------------------------------------------------------------------------------------------


def test_outputs_that_cannot_overflow_are_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """One loud row and one loud column: only where they meet is anything computed step by step."""
    from fqtsim.backends import emulator

    asked: list[tuple[int, int]] = []

    def counted(a: Array, b: Array, lowered: Any, start: Array | None) -> Array:
        asked.append((a.shape[0], b.shape[1]))
        return chains.stepwise_codes(a, b, lowered, start)

    monkeypatch.setattr(emulator, "stepwise_codes", counted)
    random = np.random.RandomState(0)
    a, b = random.randint(-5, 6, (20, 60)).astype(np.int8), random.randint(-5, 6, (60, 20)).astype(np.int8)
    a[3], b[:, 11] = 127, 127
    path = datapath(*chain("int16 saturate"))
    found = get_backend("emulator").gemm(a, b, path)
    assert asked == [(1, 1)]
    assert summary(found) == summary(get_backend("stepwise").gemm(a, b, path))
    assert found.events.altered == 1


def test_a_code_where_no_unlimited_result_is() -> None:
    """U fits int32 everywhere; an inner register that wraps makes positive what was negative, on top of a large c."""
    path = datapath(*chain("terms 1 int8 wrap, int40 saturate"), b="uint8")
    a, b, c = np.zeros((4, 8), np.int8), np.zeros((8, 4), np.uint8), np.zeros((4, 4), np.int64)
    a[0], b[:, 0], c[0, 0] = -1, 200, 2**31 - 1
    found = get_backend("emulator").gemm(a, b, path, c)
    assert found.codes[0, 0] == 2**31 - 1 + 8 * 56
    assert summary(found) == summary(get_backend("reference").gemm(a, b, path, c))


def test_a_code_may_need_a_wider_type_than_the_unlimited_result() -> None:
    """An inner register that wraps carries a code beyond int32, though all that the proof covers is small."""
    path = datapath(*chain("terms 4 int33 wrap, int40 wrap"), a="int16", b="int16")
    a, b = np.zeros((3, 8), np.int16), np.zeros((8, 3), np.int16)
    a[1], b[:4, 2], b[4:, 2] = -32768, -32768, 32767
    expected = get_backend("reference").gemm(a, b, path)
    assert (expected.codes[1, 2], expected.maximum, expected.events.transient) == (-(2**33) + 2**17, 2**17, 1)
    for backend in ("stepwise", "emulator"):
        assert summary(get_backend(backend).gemm(a, b, path)) == summary(expected)


@given(st.data())
def test_the_bound_is_never_too_generous(data: st.DataObject) -> None:
    """Sums that meet a rail exactly, pass it by 1, or stay 1 below; the bound is tight for parallel vectors."""
    bits = data.draw(st.integers(8, 30))
    k, x = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 127))
    total = k * x * x
    limit = (1 << (bits - 1)) - 1
    sign = data.draw(st.sampled_from([1, -1]))
    start = data.draw(st.sampled_from([limit - total - 1, limit - total, limit - total + 1])) * sign
    path = datapath(*chain(f"int{bits} saturate"))
    low = -limit - 1
    c = np.array([[min(max(start, low), limit)]])
    a, b = np.full((1, k), x, np.int8), np.full((k, 1), sign * x, np.int8)
    assert summary(get_backend("emulator").gemm(a, b, path, c)) == summary(get_backend("reference").gemm(a, b, path, c))


# --- the self-test of the INT8 product -------------------------------------------------------------------------------

SELF_TEST = """
import numpy as np
from fqtsim.backends import get_backend, int8
from mac import chain, datapath
native, emulator = get_backend("native"), get_backend("emulator")
a, b = np.full((3, 300), 255, np.uint8), np.full((300, 70), -128, np.int8)
expected = a.astype(np.int64) @ b.astype(np.int64)
for levels in ("int32 wrap", "int24 wrap", "int40 saturate"):
    path = datapath(*chain(levels), a="uint8")
    codes = get_backend("stepwise").gemm(a, b, path).codes
    assert np.array_equal(native.gemm(a, b, path).codes, codes)
    assert np.array_equal(emulator.gemm(a, b, path).codes, codes)
assert np.array_equal(int8.float_product(a, b, "cpu"), expected)
print(int8.silicon_fault("cpu"), "|", native.executor, "|", emulator.executor)
"""


def self_test(isa: str) -> list[str]:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": os.path.dirname(__file__)}
    found = subprocess.run(
        [sys.executable, "-c", SELF_TEST], capture_output=True, text=True, env=environment, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip().split(" | ")


def test_a_wrong_int8_product_is_found_and_replaced() -> None:
    """oneDNN without VNNI multiplies in pairs that saturate at 16 bits: the silent fault of pytorch issue 136746."""
    fault, native, emulator = self_test("AVX512_CORE")
    if fault == "None":
        pytest.skip("torch._int_mm is right without VNNI here: this processor or torch has no such fault")
    assert fault == "torch._int_mm is wrong for full-range int8 x int8 operands (64, 64, 64)"
    assert native == "exact fp32 chunks (independent oracle, not INT8 silicon)@cpu"
    assert emulator == "numba, and its exact products where order cannot matter"


def test_the_fallback_multiplies_in_exact_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor: with the self-test failed, native is the float oracle, and says so."""
    monkeypatch.setattr(int8, "silicon_fault", lambda device: "a fault for this test")
    monkeypatch.setattr(int8, "_int_mm", lambda *operands: pytest.fail("the distrusted product was used"))
    from fqtsim.backends.emulator import Emulator
    from fqtsim.backends.native import Native

    native = Native()
    assert native.executor == "exact fp32 chunks (independent oracle, not INT8 silicon)@cpu"
    random = np.random.RandomState(2)
    a, b = random.randint(-128, 128, (9, 3000)).astype(np.int8), random.randint(-128, 128, (3000, 5)).astype(np.int8)
    a[0], b[:, 0] = -128, -128
    for levels in ("int32 wrap", "int21 wrap", "int33 saturate"):
        path = datapath(*chain(levels))
        expected = summary(get_backend("stepwise").gemm(a, b, path))
        assert summary(native.gemm(a, b, path)) == expected
        assert summary(Emulator().gemm(a, b, path)) == expected
    with pytest.raises(BackendRefused) as refusal:
        int8.wrapped_product(a, b, "cpu")
    assert str(refusal.value) == "native@cpu: a fault for this test; use backend emulator"


def test_a_machine_without_a_gpu_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    native = get_backend("native@cuda")
    path = datapath(*chain("int32 wrap"))
    assert native.refusal(path, 1) == "torch sees no CUDA device"
    with pytest.raises(
        BackendRefused, match=r"^native@cuda: torch sees no CUDA device; use backend stepwise or emulator$"
    ):
        native.gemm(np.ones((1, 1), np.int8), np.ones((1, 1), np.int8), path)
