"""Tiles that hold the registers of all levels, and registers walked in turn; all against the general kernels."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from agreement import summary
from mac import chain, datapath

from fqtsim.backends import chains, exact, get_backend
from fqtsim.backends.stepwise import prepare, start_values
from fqtsim.hw.lower import without_overflow
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import tile as tiles
from fqtsim.words import Rounding

Array = np.ndarray[Any, Any]
needs_pairs = pytest.mark.skipif(not tiles.HAS_MULTIPLY_ADD, reason="this CPU has no product of 16-bit pairs")
DOTS = [pytest.param(True, marks=pytest.mark.skipif(not tiles.HAS_DOT, reason="this CPU has no 16-bit dot product")),
        pytest.param(False, marks=needs_pairs)]  # fmt: skip
CHAINS = {
    "terms 4 exact, int24 saturate": DOTS,
    "terms 3 exact, int12 saturate": DOTS[:1],
    "terms 2 int16 saturate, int32 saturate": DOTS[:1],
    "terms 2 int16 saturate, int30 saturate": DOTS[1:],
    "terms 2 exact, terms 1 int16 saturate, terms 2 exact, int32 wrap": DOTS[:1],
    "terms 4 exact, terms 8 int16 saturate, int24 saturate_symmetric": DOTS[:1],
    "terms 64 int17 wrap, int24 saturate": DOTS[:1],
    "terms 5 drop 2 ties_to_odd uint7 wrap, terms 2 drop 1 ties_to_zero int9 saturate, drop 3 ties_to_away int11 wrap":
        DOTS,
    "terms 7 int12 saturate_symmetric, int13 saturate_symmetric": DOTS[:1],
    "terms 1 int10 saturate, int12 wrap": DOTS[:1],
    "terms 2 exact, drop 3 ties_to_even int18 saturate": DOTS,
    "drop 8 ties_to_even int32 saturate": DOTS[:1],
    "lanes 4 int20 saturate, int24 saturate": DOTS[:1],
    "lanes 3 int9 saturate, lanes 2 int10 wrap, int12 saturate": DOTS[:1],
    "terms 2 exact, terms 4 int16 saturate, lanes 2 exact, int24 saturate": DOTS[:1],
    "terms 2 exact, lanes 300 drop 1 toward_positive int13 wrap, int32 saturate": DOTS[:1],
    "parts 3 int15 saturate, int17 saturate": DOTS[:1],
    "terms 1500 int12 saturate, terms 2 int14 saturate, int15 saturate": DOTS[:1],
}  # fmt: skip
PLAIN = datapath(*chain("int24 saturate"))
SHAPES = [(1, 1, 1), (2, 3, 5), (7, 37, 70), (70, 130, 7), (5, 1100, 50)]


def operands(shape: tuple[int, int, int], path: Datapath) -> tuple[Array, Array, Array]:
    m, k, n = shape
    random = np.random.RandomState(m + k)
    a, b = random.randint(-128, 128, (m, k)).astype(np.int8), random.randint(-128, 128, (k, n)).astype(np.int8)
    a[random.rand(m, k) < 0.1], b[random.rand(k, n) < 0.1] = -128, -128
    register = path.accumulator.register_format
    low, high = register.rails(path.accumulator.overflow)
    c = np.array([low, high, 0, max(low, -3)])[random.randint(0, 4, (m, n))]
    return a, b, c


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest product be worth a kernel of its own, and a register a walk."""
    monkeypatch.setattr(chains, "SMALLEST_WALK", 0)
    monkeypatch.setattr(chains, "SMALLEST_PART", 0)


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize(("words", "dot"), [pytest.param(words, *dot.values, marks=dot.marks)
                                            for words, dots in CHAINS.items() for dot in dots])  # fmt: skip
def test_every_kind_of_chain(words: str, dot: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "HAS_DOT", dot)
    path = datapath(*chain(words))
    general = []
    monkeypatch.setattr(chains, "run_chain", lambda *args: general.append(1) or exact.run_chain(*args))
    for shape in SHAPES:
        a, b, some = operands(shape, path)
        for c in (None, some, some[:1]):
            start = start_values(c, a.shape[0], b.shape[1])
            lowered = prepare(a, b, path, start)
            general.clear()  # U may have needed 64 bits
            codes = chains.stepwise_codes(a, b, lowered, start)
            assert not general, "the strips that this test compares with"
            assert (codes == exact.run_chain(a, b, start, lowered.table, 64)).all(), (shape, c is None)
            both = chains.codes_and_unlimited(a, b, lowered, start)
            assert (both[0] == codes).all()
            assert (both[1] == exact.run_chain(a, b, start, without_overflow(lowered.table), 64)).all(), shape
            if a.size * b.shape[1] < 2000:
                expected = get_backend("reference").gemm(a, b, path, c)
                assert summary(get_backend("stepwise").gemm(a, b, path, c)) == summary(expected)


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize(("rounding", "dot"), [
    *(pytest.param(one.value, True, marks=DOTS[0].marks) for one in Rounding if one is not Rounding.STOCHASTIC),
    *(pytest.param(one, False, marks=DOTS[1].marks) for one in ("ties_to_even", "to_odd")),
])  # fmt: skip
def test_every_product_of_int8_rounded(rounding: str, dot: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirteen bits dropped is the most that leaves the widest product with its bias in int16."""
    monkeypatch.setattr(tiles, "HAS_DOT", dot)
    codes = np.arange(-128, 128, dtype=np.int8)
    for drop, short in ((1, True), (2, True), (7, True), (13, True), (14, False), (15, False)):
        path = datapath(*chain(f"drop {drop} {rounding} int18 saturate"))
        for column, row in ((codes[:, None], codes[None]), (np.stack([codes] * 3, 1), np.stack([codes] * 3))):
            lowered = prepare(column, row, path, None)
            assert chains._words(lowered) == ("short" if short else "single")
            found = chains.codes_and_unlimited(column, row, lowered, None)
            expected = column.shape[1] * rounded(column[:, 0], row[0], drop, rounding)
            assert (found[0] == expected.clip(-(1 << 17), (1 << 17) - 1)).all()
            assert (found[1] == expected).all()


def rounded(column: Array, row: Array, drop: int, rounding: str) -> Array:
    """Return products over 2**drop by exact comparisons of remainders, not by a bias and a shift."""
    exact_products = np.multiply.outer(column.astype(np.int64), row.astype(np.int64))
    floor, rest = np.divmod(exact_products, 1 << drop)
    half, up = (1 << drop) // 2, {
        "toward_negative": lambda: 0 * rest, "toward_positive": lambda: rest > 0,
        "toward_zero": lambda: (rest > 0) & (exact_products < 0),
        "away_from_zero": lambda: (rest > 0) & (exact_products > 0),
        "to_odd": lambda: (rest > 0) & (floor % 2 == 0),
    }  # fmt: skip
    if rounding in up:
        return floor + up[rounding]()
    ties = {"ties_to_positive": 1, "ties_to_negative": 0, "ties_to_away": exact_products > 0,
            "ties_to_zero": exact_products < 0, "ties_to_even": floor % 2, "ties_to_odd": 1 - floor % 2}  # fmt: skip
    return floor + np.where(rest == half, ties[rounding], rest > half)


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize(
    ("words", "a_codes", "b_codes", "expected"),
    [
        # 32767 = 7 * 4681 and -32768 = -8 * 4096 are the last products that int16 holds.
        ("terms 2 int16 saturate, int32 saturate", (7, 1), (4681, 4681), "pairs"),
        ("terms 2 int16 saturate, int32 saturate", (-8, 1), (4096, 4096), "pairs"),
        ("terms 2 int16 saturate, int32 saturate", (8, -8), (4096, 4096), "single"),
        ("terms 2 int16 saturate_symmetric, int32 saturate", (-8, 1), (4096, 4096), "single"),
        ("terms 2 uint15 saturate, int32 saturate", (7, 0), (4681, 4681), "pairs"),
        ("terms 2 uint15 saturate, int32 saturate", (7, -1), (4681, 4681), "single"),
        ("terms 2 exact, int32 saturate", (-181, 181), (181, -181), "pairs"),
        ("terms 2 int17 wrap, int32 saturate", (-181, 181), (181, -181), "pairs"),
    ],
)
def test_two_products_meet_before_a_register_only_where_it_holds_the_first(
    words: str, a_codes: tuple[int, int], b_codes: tuple[int, int], expected: str
) -> None:
    path = datapath(*chain(words), a="int16", b="int16")
    pairs = list(product(product(a_codes, a_codes), product(b_codes, b_codes)))
    a = np.array([left for left, _ in pairs], np.int16)
    b = np.array([right for _, right in pairs], np.int16).T.copy()
    assert chains._words(prepare(a, b, path, None)) == expected
    assert summary(get_backend("stepwise").gemm(a, b, path)) == summary(get_backend("reference").gemm(a, b, path))


@pytest.mark.usefixtures("walks")
@pytest.mark.skipif(not tiles.HAS_DOT, reason="this CPU has no 16-bit dot product")
@pytest.mark.parametrize(
    ("words", "top", "clamp"),
    [
        ("terms 2 exact, int18 saturate", 128, "word"),  # 2 * 128 * 127 = 32512
        ("terms 2 exact, int18 saturate", 129, "rails"),  # 2 * 129 * 127 = 32766, but -129 * -128 * 2 = 33024
        ("terms 2 exact, int17 saturate", 100, "rails"),  # the lane's unit would be 2**15
        ("terms 2 exact, int32 saturate", 128, "word"),
        ("terms 2 exact, uint31 saturate", 128, "word"),
        ("terms 2 exact, int24 saturate_symmetric", 128, "word_above"),
    ],
)
def test_lanes_that_clamp_by_themselves(words: str, top: int, clamp: str) -> None:
    path = datapath(*chain(words), a="int9", b="int8")
    a = np.array([[top, -top] * 3, [top] * 6, [-top] * 6, [1, 0] * 3], np.int16)
    b = np.array([[127, -127 if top == 128 else -128, 0, 1]] * 6, np.int16)
    register = path.accumulator.register_format
    low, high = register.rails(path.accumulator.overflow)
    c = np.array([[low, high, low + 1, high - 1]] * 4)
    plan = chains.chain_plan(chains.simplified(prepare(a, b, path, start_values(c, 4, 4))))
    assert plan is not None
    assert plan.kind.forms[-1].clamp == clamp
    assert summary(get_backend("stepwise").gemm(a, b, path, c)) == summary(get_backend("reference").gemm(a, b, path, c))


@pytest.mark.parametrize(
    ("words", "levels"),
    [
        ("terms 4 exact, terms 2 exact, int20 wrap", 1),
        ("terms 1 exact, int20 saturate", 1),
        ("terms 4 exact, int20 saturate", 2),
        ("terms 4 exact, drop 1 to_odd int20 wrap", 2),
        ("terms 4 exact, lanes 2 exact, int20 wrap", 3),
        ("terms 1 drop 2 to_odd exact, int20 saturate", 2),
        ("terms 2 drop 2 to_odd exact, int20 wrap", 1),
    ],
)
def test_levels_that_change_nothing_are_left_out(words: str, levels: int) -> None:
    a, b = np.full((2, 9), -128, np.int8), np.full((9, 2), -128, np.int8)
    assert len(chains.simplified(prepare(a, b, datapath(*chain(words)), None)).table) == levels


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize("shape", [(9, 40, 3), (3, 40, 9), (300, 5, 2), (2, 5, 300), (6, 2, 6)])
def test_blocks_of_registers(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 256 at least along the longer side; five lanes of fewer products hand on their zeros."""
    monkeypatch.setattr(chains, "BLOCK", 1)
    for words in ("lanes 5 int10 saturate, drop 1 toward_positive int9 wrap",
                  "terms 2 exact, lanes 3 int11 wrap, terms 2 int12 saturate, int12 saturate"):  # fmt: skip
        path = datapath(*chain(words))
        a, b, c = operands(shape, path)
        expected = summary(get_backend("reference").gemm(a, b, path, c))
        assert summary(get_backend("stepwise").gemm(a, b, path, c)) == expected


def test_many_lanes_are_no_walks_of_their_own_nor_many_registers_above_them() -> None:
    many_above = datapath(*chain("lanes 2 int20 saturate, lanes 262144 int20 wrap, int24 wrap"))
    wide = prepare(*operands((64, 64, 64), PLAIN)[:2], many_above, None)
    few, many = (datapath(*chain(f"terms 2 exact, lanes {lanes} int20 saturate, int24 saturate")) for lanes in (16, 17))
    shape = (64, 64, 64)  # 2**18 products
    assert not chains._pays(wide, 0, shape)
    assert chains._pays(prepare(*operands(shape, few)[:2], few, None), 1, shape)
    assert not chains._pays(prepare(*operands(shape, many)[:2], many, None), 1, shape)


def test_the_smallest_walk_and_one_product_less(monkeypatch: pytest.MonkeyPatch) -> None:
    path, used = datapath(*chain("terms 4 exact, terms 8 int16 saturate, int24 saturate_symmetric")), []
    walk = chains._walk
    monkeypatch.setattr(chains, "_walk", lambda *args: used.append(args[0].shape) or walk(*args))
    for k in (63, 64):
        a, b, c = operands((64, k, 64), path)
        start = start_values(c, 64, 64)
        lowered = prepare(a, b, path, start)
        assert (chains.stepwise_codes(a, b, lowered, start) == exact.run_chain(a, b, start, lowered.table, 64)).all()
    assert used == ([(64, 64)] if tiles.HAS_MULTIPLY_ADD else [])
