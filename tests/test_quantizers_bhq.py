"""S5.12: the grouping, the mixing and its inverse, against ref/ and against their laws."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.backends.primitives import Primitives
from fqtsim.errors import TrainingStopped
from fqtsim.kernels import threads
from fqtsim.quantizers import block_householder as bhq
from fqtsim.quantizers import quantizer
from fqtsim.ref import householder as ref
from fqtsim.ref import quantize as ref_quantize
from fqtsim.ref.random import random_bits
from fqtsim.words import Rounding

Float32 = npt.NDArray[np.float32]
LARGEST = float(np.finfo(np.float32).max)
RANGES = st.lists(st.integers(1, 2**40) | st.integers(1, 20), min_size=1, max_size=60)
VALUES = st.one_of(
    st.floats(-2, 2, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1.0, LARGEST, -LARGEST, 2.0**-149]),
)


def tensors(max_rows: int = 7) -> st.SearchStrategy[Float32]:
    shapes = st.tuples(st.integers(1, max_rows), st.integers(1, 4))
    return shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=VALUES))


def heavy_tailed(rows: int, columns: int, sigma: float, seed: int = 0) -> Float32:
    generator = np.random.default_rng(seed)
    size = np.exp(sigma * generator.standard_normal((rows, 1)))
    return (size * generator.standard_normal((rows, columns))).astype(np.float32)


@given(RANGES)
@example([1])
@example([5, 5])
@example([7] * 128)
@example([2**40, *[1] * 30])
def test_grouping_equals_the_definition(ranges: list[int]) -> None:
    assert bhq.group_rows(ranges) == ref.group_rows(ranges)


@given(RANGES)
def test_groups_partition_the_rows_by_size(ranges: list[int]) -> None:
    groups = bhq.group_rows(ranges)
    assert sorted(row for group in groups for row in group) == list(range(len(ranges)))
    assert all(len(group) >= 2 for group in groups) or len(ranges) == 1
    leaders = [ranges[group[0]] for group in groups]
    followers = [ranges[row] for group in groups for row in group[1:]]
    assert leaders == sorted(leaders, reverse=True)
    assert followers == sorted(followers, reverse=True)
    assert not followers or followers[0] <= leaders[-1]


def test_known_groups() -> None:
    assert len(bhq.group_rows([7] * 128)) == 63  # equal rows: facts of the authors' code
    assert bhq.group_rows([3, 900, 3, 3]) == [[1, 0, 2, 3]]  # one dominant row leads all others
    assert bhq.group_rows([4, 4]) == [[0, 1]]  # ties by row index
    assert bhq.group_rows([6, 5, 3, 2, 1, 1]) == [[0, 2, 3], [1, 4, 5]]
    # k = 4 small rows: 4 * 5 > 11, and not 3 * 3 > 14. Shares 4 * 6 / 11 = 2.2 and 4: 2 followers each.


def test_ranges_become_integers_of_forty_bits() -> None:
    ranges = np.array([1.0, 0.5, 2.0**-40, 0.0, 1.999])
    assert bhq.integer_ranges(ranges) == [2**39, 2**38, 1, 1, round(1.999 * 2**39)]
    assert bhq.integer_ranges(ranges) == ref.integer_ranges(ranges.tolist())
    assert bhq.integer_ranges(np.zeros(3)) == [1, 1, 1]
    assert bhq.integer_ranges(np.array([2.0 * LARGEST, 1.0]))[1] == 1


@given(st.floats(0, 6.8e38), st.floats(0, 6.8e38), st.integers(2, 5000))
@example(0.0, 0.0, 2)
@example(0.0, 1.0, 3)
@example(1.0, 0.0, 3)
@example(1.0, 1e-300, 4)
def test_ratio_equals_the_definition(leader: float, follower: float, n: int) -> None:
    rho = float(bhq.ratios(np.array([leader]), np.array([follower]), np.array([n]), P)[0])
    assert rho == ref.ratio(leader, follower, n)
    assert 1 <= rho <= 2.0**24


@pytest.mark.parametrize("n", range(2, 40))
def test_largest_entry_is_that_of_the_matrix(n: int) -> None:
    v = np.full(n, 1 / np.sqrt(n)) - np.eye(n)[0]
    q = np.eye(n) - 2 * np.outer(v, v) / (v @ v)
    assert ref.largest_entry(n) == pytest.approx(np.abs(q[1:, 1:]).max())
    unit = np.eye(n, dtype=np.float32)
    assert P.reflect(unit, [list(range(n))]) == pytest.approx(q, abs=3e-7)


@pytest.mark.parametrize("scale", ["per_row", "per_group"])
@given(tensors(), st.integers(2, 8), st.integers(1, 32), st.sampled_from(["aligned", "float_offset"]))
def test_codes_and_values_equal_the_definition(scale: str, x: Float32, bits: int, n: int, zero: str) -> None:
    t = quantizer("bhq", bits, "stochastic", n, zero=zero, scale=scale).quantize(x, 3, 2, 1)
    rows = x.tolist()
    ranges = [max(row) - min(row) for row in rows]
    groups = ref.group_rows(ref.integer_ranges(ranges))
    s = ref.scales(groups, ranges, [max(map(abs, row)) for row in rows])
    assert t.groups == groups
    columns = [ref.mix(list(column), groups, s) for column in zip(*rows, strict=True)]
    values = []
    mixed = list(zip(*columns, strict=True))
    for i, row in enumerate(mixed):
        group = next(group for group in groups if i in group) if scale == "per_group" else [i]
        span = [value for member in group for value in mixed[member]]
        grid = ref_quantize.GRIDS[zero](min(span) + 0.0, max(span) + 0.0, bits, False)
        assert float(t.step[i]) == grid.step
        words = [random_bits(3, 2, 1, i * len(row) + j, n) for j in range(len(row))]
        codes = [ref_quantize.code(v, grid, Rounding.STOCHASTIC, r, n)[0] for v, r in zip(row, words, strict=True)]
        assert t.codes[i].tolist() == codes
        values.append([ref_quantize.value(code, grid) for code in codes])
    if np.isfinite(values).all():  # a step rounded up may carry the largest float32 to infinity
        back = np.array([ref.unmix(list(column), groups, s) for column in zip(*values, strict=True)]).T
        assert t.dequantize().tolist() == back.tolist()


@given(tensors(9), st.data())
def test_the_fused_reflection_equals_its_composition(x: Float32, data: Any) -> None:
    order = data.draw(st.permutations(range(len(x))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(x)))) | {len(x)})
    groups = [list(order[i:j]) for i, j in zip([0, *cuts], cuts, strict=False) if i < j]
    try:
        expected = P.composed_reflect(x, groups)
    except TrainingStopped:
        with pytest.raises(TrainingStopped, match=r"^reflect: a row holds NaN or infinity, or a sum is beyond float32"):
            P.reflect(x, groups)
        return
    assert P.reflect(x, groups).view(np.uint32).tolist() == expected.view(np.uint32).tolist()


def test_the_fused_reflection_by_blocks_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 3)
    x = heavy_tailed(9, 5003, 2.0)
    groups = [[3, 1, 4], [0], [8, 2, 5, 6, 7]]
    assert np.array_equal(P.reflect(x, groups), P.composed_reflect(x, groups))
    x[6, 5000] = np.inf
    with pytest.raises(TrainingStopped, match=r"^reflect: "):
        P.reflect(x, groups)


class Permuting(Primitives):
    """Every reduction in another order, in two parts of the memory layout."""

    name = "permuting"

    def exact_sum64(self, x: Float32, axis: Any = None, keepdims: bool = False) -> npt.NDArray[np.float64]:
        generator = np.random.default_rng(x.size)
        for d in range(x.ndim) if axis is None else np.atleast_1d(axis):
            x = np.take(x, generator.permutation(x.shape[d]), axis=d)
        return super().exact_sum64(np.asfortranarray(x), axis, keepdims)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 3.0])
def test_the_order_of_reductions_does_not_matter(sigma: float) -> None:
    x = heavy_tailed(33, 40, sigma)
    q = quantizer("bhq", 5, "stochastic", 16)
    one, other = q.quantize(x), q.quantize(x, primitives=Permuting())
    for field in ("codes", "step", "zero_point"):
        assert np.array_equal(getattr(one, field), getattr(other, field))
    assert np.array_equal(one.dequantize(), other.dequantize())
    y = heavy_tailed(33, 17, 1.0, seed=1)
    assert np.array_equal(one.unmix(y), other.unmix(y))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 17, 64])
@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_unmix_inverts_mix(rows: int, sigma: float) -> None:
    x = heavy_tailed(rows, 50, sigma)
    ranges = x.max(axis=1).astype(np.float64) - x.min(axis=1)
    groups = bhq.group_rows(bhq.integer_ranges(ranges))
    mixing = bhq.Householder(groups, bhq.scales(groups, ranges, np.abs(x).max(axis=1), P))
    mixed, (least, greatest) = mixing.mix(x, P)
    assert np.array_equal(least, mixed.min(1))
    assert np.array_equal(greatest, mixed.max(1))
    for group in groups:
        # float32 rounding of the mixed rows, seen through the inverse
        tolerance = 8 * 2.0**-24 * np.abs(mixed[group]).max() / mixing.s[group]
        assert (np.abs(mixing.undo(mixed, P) - x)[group] <= tolerance[:, None]).all()
    norms = np.linalg.norm((x * mixing.s[:, None]).astype(np.float64)), np.linalg.norm(mixed.astype(np.float64))
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_unmix_is_linear_in_what_was_multiplied() -> None:
    """unmix(T x W) = x W: what the activation gradient relies on."""
    x, w = heavy_tailed(16, 30, 1.0), heavy_tailed(30, 8, 0.0, seed=5)
    t = quantizer("bhq", 16, "ties_to_even").quantize(x)
    mixed = (t.codes.astype(np.int32) - t.zero_point[:, None]).astype(np.float32) * t.step[:, None]
    assert t.unmix((mixed @ w).astype(np.float32)) == pytest.approx(x @ w, abs=2e-3 * float(np.abs(x @ w).max()))


def test_one_row_is_psq() -> None:
    x = heavy_tailed(1, 30, 1.0)
    one = quantizer("bhq", 5, "stochastic", 8).quantize(x)
    other = quantizer("psq", 5, "stochastic", 8).quantize(x)
    assert np.array_equal(one.codes, other.codes)
    assert np.array_equal(one.dequantize(), other.dequantize())
    assert one.groups == [[0]]


def test_mixed_values_stay_within_float32() -> None:
    x = np.float32([[LARGEST, -LARGEST], [LARGEST, LARGEST], [LARGEST, LARGEST], [0, 0]])
    t = quantizer("bhq", 8, "ties_to_even").quantize(x)
    assert np.isfinite(t.step).all()
