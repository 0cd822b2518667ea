"""Exact products of bytes, and the bounds on their partial sums: against sums that NumPy forms one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agreement import summary
from hypothesis import given, settings
from hypothesis import strategies as st
from mac import chain, datapath

from fqtsim.backends import byte_products, emulator, exact, get_backend
from fqtsim.backends.byte_products import Limits, Product, byte_offset, byte_product
from fqtsim.backends.exact import exact_product, operand_range
from fqtsim.hw.lower import Range
from fqtsim.kernels import byte_gemm as kernels
from fqtsim.kernels import tile as tiles
from fqtsim.kernels.ends import extremes

pytestmark = pytest.mark.skipif(not tiles.HAS_DOT, reason="this CPU has no VNNI: nobody multiplies bytes here")

#: Codes that span a byte: type, lowest and highest.
FORMS = {
    "int8": (np.int8, -128, 127), "uint8": (np.uint8, 0, 255), "difference": (np.int16, -141, 114),
    "positive difference": (np.int16, 0, 255), "far difference": (np.int16, -255, 0), "wide type": (np.int64, -3, 200),
}  # fmt: skip
LAYOUTS = ("rows", "columns", "strided", "reversed")
SHAPES = [
    (1, 1, 1),
    (5, 7, 3),
    (17, 130, 70),
    (100, 64, 33),
    (64, 2100, 16),
    (49, 2049, 48),
    (48, 63, 16),
    (16, 65, 97),
]


@pytest.fixture(autouse=True)
def smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest product be worth its kernels."""
    monkeypatch.setattr(byte_products, "SMALLEST", 0)


def codes(rng: Any, form: str, shape: tuple[int, int], layout: str = "rows") -> Any:
    """Return random codes of a form, its ends among them, laid out in memory in one of several ways."""
    kind, low, high = FORMS[form]
    x = rng.integers(low, high, shape, endpoint=True).astype(kind)
    x.flat[0], x.flat[-1] = low, high
    if layout == "columns":
        return np.asfortranarray(x)
    if layout == "strided":
        room = np.zeros((2 * shape[0], 3 * shape[1]), kind)
        room[::2, ::3] = x
        return room[::2, ::3]
    return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1] if layout == "reversed" else x


def multiplied(a: Any, b: Any, limits: Limits | None = None) -> Product:
    product = byte_product(a, b, (operand_range(a), operand_range(b)), limits)
    assert product is not None
    return product


def prefixes(a: Any, b: Any) -> Any:
    """Return every partial sum in the order of k, 0 first: (K + 1, M, N)."""
    products = a.T[:, :, None].astype(np.int64) * b[:, None, :].astype(np.int64)
    return np.concatenate([np.zeros((1, *products.shape[1:]), np.int64), products.cumsum(axis=0)])


@pytest.mark.parametrize("left", FORMS)
@pytest.mark.parametrize("right", FORMS)
def test_every_pair_of_forms(left: str, right: str) -> None:
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        m, k, n = shape
        a, b = codes(rng, left, (m, k)), codes(rng, right, (k, n))
        expected = a.astype(np.int64) @ b.astype(np.int64)
        for limits in (None, Limits(-(1 << 23), (1 << 23) - 1), Limits(-40000, 30000), Limits(magnitude=1 << 20)):
            product = multiplied(a, b, limits)
            assert product.total.dtype == np.int32
            assert np.array_equal(product.total, expected)
            assert product.ends == Range(int(expected.min()), int(expected.max()))


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("shape", [(33, 70, 17), (17, 70, 33)])
def test_every_layout(left: str, right: str, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    m, k, n = shape
    a, b = codes(rng, "int8", (m, k), left), codes(rng, "difference", (k, n), right)
    assert np.array_equal(multiplied(a, b).total, a.astype(np.int64) @ b.astype(np.int64))


def test_codes_that_span_more_than_a_byte_are_refused() -> None:
    wide, narrow = np.array([[0, 256]], np.int16), np.ones((2, 1), np.int8)
    assert byte_product(wide, narrow, (Range(0, 256), Range(1, 1))) is None
    assert byte_product(narrow.T, wide.T, (Range(1, 1), Range(0, 256))) is None
    assert byte_offset(True, Range(900, 901)) is None  # sums of squares must stay in int32
    assert byte_offset(True, Range(0, 255)) == -128
    assert byte_offset(False, Range(-255, 0)) == 255


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("size", [1, 255, 256, 257, 1023, 5000])
def test_extremes_of_every_type(kind: Any, size: int) -> None:
    info, rng = np.iinfo(kind), np.random.default_rng(size)
    for place in {0, size // 2, size - 1}:
        x = rng.integers(info.min // 2, info.max // 2 + 1, size).astype(kind)
        assert extremes(x) == (int(x.min()), int(x.max()))
        x[place] = info.max
        assert extremes(x)[1] == info.max
        x[place] = info.min
        assert extremes(x)[0] == info.min


# --- what is proven --------------------------------------------------------------------------------------------------


def check(a: Any, b: Any, limits: Limits) -> int:
    """Compare what is proven with all partial sums; return how many outputs are proven."""
    product = multiplied(a, b, limits)
    sums = prefixes(a, b)
    stays = (sums.min(axis=0) >= limits.low) & (sums.max(axis=0) <= limits.high)
    products = np.abs(a.astype(np.int64)) @ np.abs(b.astype(np.int64))
    both = (products + np.abs(sums[-1])) // 2  # the larger of the sums of all positive and of all negative products
    stays &= both <= limits.magnitude
    proven = ~np.logical_and.outer(product.rows, product.columns)
    assert stays[proven].all()
    if product.fits:
        assert np.array_equal(product.total, sums[-1])
    return int(proven.sum())


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_proven_is_true(data: st.DataObject) -> None:
    m, n = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 60))
    k = data.draw(st.integers(1, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    a, b = (codes(rng, data.draw(st.sampled_from(list(FORMS))), size) for size in ((m, k), (k, n)))
    b = (b * (rng.random((k, n)) < data.draw(st.sampled_from([1.0, 0.1, 0.01])))).astype(b.dtype)
    largest = int(np.abs(prefixes(a, b)).max())
    scale = data.draw(st.sampled_from([0.3, 0.9, 1.0, 1.1, 2.0, 8.0]))
    high, low = int(largest * scale) + data.draw(st.integers(0, 1)), -int(largest * scale)
    limits = data.draw(st.sampled_from([Limits(low, high), Limits(0, high), Limits(magnitude=high)]))
    check(a, b, limits)


@pytest.mark.parametrize("span", kernels.SPANS)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_bound_at_its_limit(span: int, sign: int, swapped: bool) -> None:
    """Constant operands meet Cauchy-Schwarz exactly: the last sum of a span is the bound."""
    largest = span * 100 * 90
    a, b = np.full((3, span), 100, np.int8), np.full((span, 20), 90 * sign, np.int8)
    operands = (b.T, a.T) if swapped else (a, b)
    for room, proven in ((largest + 1, 60), (largest - 1, 0)):
        ends = (-room, 4 * largest) if sign < 0 else (-4 * largest, room)
        assert check(*operands, Limits(*ends)) == proven


@pytest.mark.parametrize("left", FORMS)
@pytest.mark.parametrize("right", FORMS)
def test_sums_that_grow_span_by_span(left: str, right: str) -> None:
    """Constant rows and columns over many spans, of codes whose bytes are moved: the last sum decides."""
    for k in (8 * 64, 8 * 64 - 5):
        a, b = (np.empty(shape, FORMS[form][0]) for form, shape in ((left, (9, k)), (right, (k, 70))))
        a[:], b[:] = np.resize([*FORMS[left][1:], FORMS[left][1] + 1], 9)[:, None], np.resize([FORMS[right][1:]], 70)
        last = np.abs(a.astype(np.int64) @ b.astype(np.int64))
        for share in (0.1, 0.5, 0.97, 1):
            top = int(last.max() * share) - 1
            for limits in (Limits(-top, top), Limits(magnitude=top)):
                check(a, b, limits)
            check(a[:8], b[:, :1], Limits(-top, top))
            check(a[::3], b[:, ::2], Limits(-top, top))
            check(a[::3], b[:, ::2], Limits(magnitude=top))
        if k % 4 == 0:  # else the bound counts bytes behind the last k
            assert check(a, b, Limits(-int(last.max()) - 1, int(last.max()) + 1)) == last.size


def test_sums_that_leave_and_come_back() -> None:
    """Within a span, and over several: the sum at the end, and at every look, is small."""
    for run in (8, 32, 64, 200):
        a = np.full((9, 4 * run), 100, np.int8)
        b = np.tile(np.repeat(np.array([90, -90], np.int8), run), 2)[:, None] * np.ones((1, 50), np.int8)
        top = run * 9000
        assert check(a, b, Limits(-top, top - 1)) == 0
        assert check(a, b, Limits(-(1 << 31), (1 << 31) - 1)) == 450
        loud = b.copy()
        loud[:, 1:] = 1  # only one column leaves
        assert 0 < check(a, loud, Limits(-top, top - 1)) < 450


def test_only_the_loud_outputs_are_open() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(-5, 6, (40, 500)).astype(np.int8), rng.integers(-5, 6, (500, 90)).astype(np.int8)
    a[3], b[:, 61] = 127, 127
    product = multiplied(a, b, Limits(-(1 << 20), (1 << 20) - 1))
    assert np.flatnonzero(product.rows).tolist() == [3]
    assert np.flatnonzero(product.columns).tolist() == [61]


def test_sums_beyond_int32() -> None:
    """K products of rails wrap modulo 2**32; the wrapped sums must prove nothing, and the wide product be right."""
    k = 140_000
    a, b = np.full((2, k), 255, np.uint8), np.full((k, 3), -128, np.int8)
    product = multiplied(a, b, Limits(-(1 << 40), 1 << 40))
    assert product.columns.all()
    assert not product.fits
    assert (exact_product(a, b, np.int64) == -128 * 255 * k).all()
    a[:, ::2] = 1
    b[:, 0] = 1
    assert np.array_equal(exact_product(a, b, np.int64), a.astype(np.int64) @ b.astype(np.int64))
    for register in ("int33 saturate", "int32 saturate", "int24 saturate", "int40 wrap"):
        path = datapath(*chain(register), a="uint8")
        assert summary(get_backend("emulator").gemm(a, b, path)) == summary(get_backend("stepwise").gemm(a, b, path))


# --- in the emulator -------------------------------------------------------------------------------------------------


CHAINS = (
    "int{} saturate", "int{} saturate_symmetric", "terms 4 exact, int{} saturate", "parts 3 exact, int{} saturate",
    "lanes 2 int32 wrap, int{} saturate",
)  # fmt: skip


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_the_emulator_around_its_bounds(data: st.DataObject) -> None:
    """Registers chosen so that some outputs of random walks pass a rail, and some do not."""
    m, n, k = (data.draw(st.integers(1, top)) for top in (40, 60, 700))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    spread = data.draw(st.sampled_from([3, 20, 127]))
    a = rng.integers(-spread, spread, (m, k), endpoint=True).astype(np.int8)
    b = rng.integers(-spread, spread, (k, n), endpoint=True).astype(np.int8)
    largest = int(np.abs(prefixes(a, b)).max())
    bits = max(2, min(40, largest.bit_length() + data.draw(st.integers(-1, 2))))
    path = datapath(*chain(data.draw(st.sampled_from(CHAINS)).format(bits)))
    c = data.draw(st.sampled_from([None, "row", "whole"]))
    start = None
    if c is not None:
        half = (1 << (bits - 1)) - 1
        start = rng.integers(-half, half, (m if c == "whole" else 1, n), endpoint=True) // 4
    expected = summary(get_backend("stepwise").gemm(a, b, path, start))
    assert summary(get_backend("emulator").gemm(a, b, path, start)) == expected


def test_a_proof_spares_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the wgrad of a convolution: norms prove nothing, sums in the order of k everything."""
    monkeypatch.setattr(emulator, "stepwise_codes", lambda *_: pytest.fail("a proven output was computed stepwise"))
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 256, (40, 20_000)).astype(np.uint8), rng.integers(-90, 91, (20_000, 16)).astype(np.int8)
    path = datapath(*chain("int24 saturate"), a="uint8")
    found = get_backend("emulator").gemm(a, b, path)
    assert np.array_equal(found.codes, a.astype(np.int64) @ b.astype(np.int64))
    assert found.events.altered == 0


# --- ways to the exact product ----------------------------------------------------------------------------------------

WAYS = {"numpy": (1 << 60, 1 << 60), "bytes": (0, 0), "wider kernels": (0, 1 << 60)}
"""Products from which kernels multiply, and from which those over bytes do."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kinds", [("int8", "int8"), ("uint8", "int8"), ("int16", "int8"), ("int16", "int16"),
                                   ("int32", "int16"), ("int32", "int32")])  # fmt: skip
def test_every_way_to_the_exact_product(way: str, kinds: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the ends of the formats, for so many products that int32 and float64 no longer hold the sums."""
    monkeypatch.setattr(exact, "SMALLEST", WAYS[way][0])
    monkeypatch.setattr(byte_products, "SMALLEST", WAYS[way][1])
    rng = np.random.default_rng(7)
    bits = sum(np.iinfo(kind).bits for kind in kinds)
    for k in {1, 5, 70, 1100, 1 << max(0, min(17, 63 - bits))}:
        a, b = (
            rng.choice([np.iinfo(kind).min, np.iinfo(kind).max, 1], shape, p=[0.6, 0.3, 0.1]).astype(kind)
            for kind, shape in zip(kinds, ((3, k), (k, 2)), strict=True)
        )
        a[0], b[:, 0] = np.iinfo(kinds[0]).min, np.iinfo(kinds[1]).min
        if bits + (k - 1).bit_length() > 64:
            continue
        expected = np.array([[sum(int(x) * int(y) for x, y in zip(row, column, strict=True)) for column in b.T]
                             for row in a], np.int64)  # fmt: skip
        assert np.array_equal(exact_product(a, b, np.int64), expected)
        if np.abs(expected).max() < 1 << 31:
            assert np.array_equal(exact_product(a, b, np.int32), expected)
