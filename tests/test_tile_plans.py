"""How registers stand in vector lanes: scaled words of int16, raised int16, float32; all against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import summary
from hypothesis import given
from hypothesis import strategies as st
from mac import chain, datapath

from fqtsim.backends import exact, get_backend, plans, stepwise
from fqtsim.backends.exact import exact_product
from fqtsim.hw.lower import Range
from fqtsim.kernels import ends as ends_kernels
from fqtsim.kernels import gemm as kernels
from fqtsim.kernels import threads
from fqtsim.kernels import tile as tiles
from fqtsim.testing import operands
from fqtsim.words import IntFormat

DOTS = [pytest.param(True, marks=pytest.mark.skipif(not tiles.HAS_DOT, reason="this CPU has no 16-bit dot product")),
        False]  # fmt: skip
FORMATS = [("int4", "int4"), ("int8", "int8"), ("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8"),
           ("int9", "int9"), ("int12", "uint5"), ("int16", "int16")]  # fmt: skip


def ends(form: str) -> list[int]:
    codes = IntFormat.parse(form)
    return [codes.minimum, codes.maximum, 0, 1, codes.maximum - 1, -1 if codes.signed else 2]


def matrices(a: str, b: str) -> tuple[Any, Any]:
    """Return (6, 7) and (7, 9): rows that climb, fall, turn and stay, of the ends of both formats."""
    low, high, none, one, near, small = ends(a)
    rows = [[high] * 7, [low] * 7, [high, low] * 3 + [one], [one, small, none] * 2 + [high], [near, small] * 3 + [one],
            [none, none, high, high, low, low, small]]  # fmt: skip
    random = np.random.RandomState(7)
    columns = np.array([[code] * 7 for code in ends(b)] + [random.choice(ends(b), 7) for _ in range(3)])
    storage = IntFormat.parse(a).storage, IntFormat.parse(b).storage
    return np.array(rows).astype(storage[0]), np.ascontiguousarray(columns.T.astype(storage[1]))


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize("forms", FORMATS, ids="-".join)
@pytest.mark.parametrize("word", ["saturate", "saturate_symmetric", "wrap"])
def test_every_register_at_its_rails(
    dot: bool, forms: tuple[str, str], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "HAS_DOT", dot)
    a, b = matrices(*forms)
    used = set()
    signs = ("",) if word == "saturate_symmetric" else ("", "u")
    for register in [f"{sign}int{bits}" for bits in range(2, 33) for sign in signs]:
        path = datapath(*chain(f"{register} {word}"), a=forms[0], b=forms[1])
        low, high = path.accumulator.register_format.rails(path.accumulator.overflow)
        for c in (None, np.array([[low, high, 0, low + 1, high - 1, 0, high, low, max(low, -1)]])):
            expected = summary(get_backend("reference").gemm(a, b, path, c))
            for name in ("stepwise", "emulator"):
                assert summary(get_backend(name).gemm(a, b, path, c)) == expected, (register, name, c)
        plan = plans.tile_plan(stepwise.prepare(a, b, path, None))
        used.add(None if plan is None else plan.driver.run)
    dots = {kernels.DOT_SATURATE.run, kernels.DOT_SATURATE_ABOVE.run, kernels.DOT_WRAP.run}
    assert bool(used & dots) == dot


@given(st.data(), st.sampled_from(FORMATS), st.integers(2, 32), st.sampled_from(["saturate", "wrap"]), st.booleans())
def test_any_operands(data: st.DataObject, forms: tuple[str, str], bits: int, word: str, dot: bool) -> None:
    path = datapath(*chain(f"int{bits} {word}"), a=forms[0], b=forms[1])
    a, b, c = data.draw(operands(path, max_m=9, max_k=40, max_n=9))
    expected = summary(get_backend("reference").gemm(a, b, path, c))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "HAS_DOT", dot and tiles.HAS_DOT)
        assert summary(get_backend("stepwise").gemm(a, b, path, c)) == expected


@pytest.mark.skipif(not tiles.HAS_DOT, reason="this CPU has no 16-bit dot product")
@pytest.mark.parametrize(
    ("register", "forms", "driver"),
    [
        ("int16 saturate", ("int8", "int8"), kernels.INT16_SATURATE),
        ("uint16 saturate", ("uint8", "int8"), kernels.INT16_SATURATE),
        ("int16 saturate_symmetric", ("uint8", "int8"), kernels.INT16_SATURATE_ABOVE),
        ("int12 saturate", ("int8", "int8"), kernels.INT16_SATURATE_ABOVE),
        ("int16 saturate", ("uint8", "uint8"), kernels.DOT_SATURATE_ABOVE),
        ("int17 saturate", ("uint8", "uint8"), kernels.DOT_SATURATE),
        ("uint17 saturate", ("uint8", "uint8"), kernels.DOT_SATURATE),
        ("int24 saturate", ("int8", "int8"), kernels.DOT_SATURATE),
        ("int32 saturate", ("int16", "int16"), kernels.DOT_SATURATE),
        ("int24 saturate_symmetric", ("int8", "int8"), kernels.DOT_SATURATE_ABOVE),
        ("uint32 saturate", ("int8", "int8"), None),
        ("int15 wrap", ("int8", "int8"), kernels.DOT_WRAP),
        ("int14 wrap", ("int8", "int8"), kernels.INT_SIGN_WRAP),
    ],
)
def test_which_lanes_a_register_gets(register: str, forms: tuple[str, str], driver: kernels.Driver | None) -> None:
    path = datapath(*chain(register), a=forms[0], b=forms[1])
    a, b = matrices(*forms)
    plan = plans.tile_plan(stepwise.prepare(a, b, path, None))
    assert (plan and plan.driver) is driver


def test_words_hold_a_product_scaled_by_up_to_the_room_of_both_codes() -> None:
    least = {("int8", "int8"): 15, ("uint8", "int8"): 16, ("uint8", "uint8"): 17, ("int4", "int4"): 7}
    for forms, width in [(forms, width) for forms in least for width in range(2, 33)]:
        a, b = matrices(*forms)
        path = datapath(*chain(f"int{width} wrap"), a=forms[0], b=forms[1])
        plan = plans._dot_plan(stepwise.prepare(a, b, path, None))
        assert (plan is not None) == (width >= least[forms])
        if plan is not None:
            lane = plan.lane
            assert lane.in_words + lane.doubled == lane.shift == 32 - width
            a_shift, b_shift = lane.shifts(False)
            assert a_shift + b_shift == lane.in_words
            assert sum(lane.shifts(True)) == lane.in_words
            for codes, shift in ((a, a_shift), (b, b_shift), (b, lane.shifts(True)[0]), (a, lane.shifts(True)[1])):
                scaled = codes.astype(np.int64) << shift
                assert np.array_equal(scaled.astype(np.int16), scaled)


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize(("code", "other"), [(-32768, -32768), (-32768, 32767), (32767, 32767), (255, -128), (1, 1)])
@pytest.mark.parametrize("k", [1, 2, 3, 4099])
def test_exact_products_at_the_limit_of_int32(
    dot: bool, code: int, other: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of words pass 2**31 within two products of the widest codes, and after 65538 of the usual ones."""
    monkeypatch.setattr(tiles, "HAS_DOT", dot)
    a, b = np.full((3, k), code, np.int16), np.full((k, 20), other, np.int16)
    a[1, ::2], b[:, 3] = 0, np.arange(k) % 7
    assert (exact_product(a, b, np.int64) == a.astype(np.int64) @ b.astype(np.int64)).all()
    assert (exact_product(b.T, a.T, np.int64) == b.T.astype(np.int64) @ a.T.astype(np.int64)).all()


@pytest.mark.parametrize("dot", DOTS)
def test_exact_products_beyond_one_run_of_int32(dot: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "HAS_DOT", dot)
    a, b = np.full((2, 140_001), -255, np.int16), np.full((140_001, 3), 255, np.int16)
    assert (exact_product(a, b, np.int64) == -140_001 * 255 * 255).all()


@pytest.mark.parametrize("code", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("lane", [np.int16, np.int32, np.float32])
@pytest.mark.parametrize("shape", [(100, 37), (33, 16), (16, 48), (5, 70), (70, 5)])
def test_packing_transposes(code: type, lane: type, shape: tuple[int, int]) -> None:
    top = min(np.iinfo(code).max, np.iinfo(lane).max if lane is not np.float32 else 1 << 24)
    source = np.random.RandomState(0).randint(np.iinfo(code).min, top + 1, shape).astype(code)
    for first, start, width in ((0, 0, 6), (0, 0, 48), (4, 3, 64), (0, 1, 32)):
        expected = np.zeros((shape[1] - start, width), lane)
        block = source[first : first + width, start:].T
        expected[:, : block.shape[1]] = block
        for array, along in ((source, False), (source.T.copy(), True), (np.asfortranarray(source), False)):
            out = np.full_like(expected, 77)
            kernels.pack(array, along, out, first, start, shape[1])
            assert (out == expected).all()


@pytest.mark.parametrize("layout", ["C", "F", "cut"])
def test_the_range_of_codes_in_blocks_and_threads(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_PART", 4)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 3)
    monkeypatch.setattr(ends_kernels, "FEW", 0)
    for place in range(60):
        codes = np.zeros((6, 10), np.int16)
        codes.flat[place], codes.flat[(place + 29) % 60] = -300, 7
        array = {"C": codes, "F": np.asfortranarray(codes), "cut": np.tile(codes, 2)[:, :10]}[layout]
        assert exact.operand_range(array) == Range(-300, 7)
