"""fqtsim/kernels/gpu/freivalds.py: Triton's interpreter, torch operations and the kernels of the CPU sum alike."""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from convolutions import GEOMETRIES, geometries
from hypothesis import given, settings
from hypothesis import strategies as st
from test_products import conv_cases, on_device

from fqtsim.backends.checksum import row_words
from fqtsim.backends.direct import Walk
from fqtsim.kernels import freivalds as on_host
from fqtsim.kernels.gpu import freivalds
from fqtsim.kernels.gpu.launch import through_interpreter
from fqtsim.train.expected_sums import expected_sums
from fqtsim.train.geometry import Window
from fqtsim.train.lowering import backward_walk, forward_walk

#: Triton reads it when it is imported, which another test may do before those below.
os.environ["TRITON_INTERPRET"] = "1"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install 'fqtsim[triton]'"
)


def words(rng: np.random.Generator, *shape: int) -> Any:
    """Random words, half of them at the ends: uint32."""
    ends = rng.choice(np.array([0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1], np.uint32), shape)
    return np.where(rng.random(shape) < 0.5, rng.integers(0, 1 << 32, shape, np.uint64).astype(np.uint32), ends)


def tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array).view(np.int32))


def all_forms(function: Any, *arguments: Any) -> Any:
    """Return what the Triton form and its composed twin both give, as uint32."""
    composed = function(*arguments)
    with through_interpreter(), np.errstate(over="ignore"):
        fused = function(*arguments)
    assert composed.dtype == fused.dtype == torch.int32
    assert torch.equal(composed, fused)
    return fused.numpy().view(np.uint32)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 300), (3000, 3), (129, 65)])
def test_sums_of_matrices(rows: int, columns: int, kind: Any) -> None:
    rng = np.random.default_rng(rows)
    ends = np.iinfo(kind)
    matrix = rng.choice(np.array([ends.min, ends.max, 1, 3], kind), (rows, columns))
    weights = words(rng, 2, rows)
    expected = on_host.combine(weights, matrix)
    wide = np.stack((matrix, matrix), axis=2)
    for given_ in (torch.from_numpy(matrix), torch.from_numpy(wide)[:, :, 1]):
        assert np.array_equal(all_forms(freivalds.combine, tensor(weights), given_), expected)
        assert np.array_equal(all_forms(freivalds.combine_rows, tensor(weights), given_.t()), expected)
    assert np.array_equal(on_host.combine_rows(weights, np.ascontiguousarray(matrix.T)), expected)


def test_matrices_of_groups_beside_each_other() -> None:
    rng = np.random.default_rng(2)
    matrix, weights = rng.integers(-128, 128, (3, 40, 7)).astype(np.int8), words(rng, 2, 3, 40)
    expected = np.concatenate([on_host.combine(np.ascontiguousarray(weights[:, g]), matrix[g]) for g in range(3)], 1)
    spread = tensor(weights.transpose(2, 0, 1)).permute(1, 2, 0)
    assert not spread.is_contiguous()
    last = torch.from_numpy(np.ascontiguousarray(matrix.transpose(1, 2, 0))).permute(2, 0, 1)
    for given_ in (torch.from_numpy(matrix), last):
        assert np.array_equal(all_forms(freivalds.combine, spread, given_), expected)
        assert np.array_equal(all_forms(freivalds.combine_rows, spread, given_.transpose(1, 2)), expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("window", "size"), GEOMETRIES)
def test_what_products_must_sum_to(window: Window, size: tuple[int, int], groups: int, channels: int) -> None:
    """One channel a group and kernels of 1 x 1 leave sums in strides that no other case has."""
    rng = np.random.default_rng(3)
    for product, _ in conv_cases(rng, window, size, groups, False, channels):
        m = product.shape[0]
        outer = math.prod(window.kernel) if product.names[1] == "wgrad" else len(product.a.codes)
        drawn = words(rng, 2 * (outer + m // outer))
        expected = expected_sums(product, row_words(drawn.copy(), outer, m // outer))
        there, own = on_device(product), row_words(tensor(drawn.copy()), outer, m // outer)
        assert np.array_equal(all_forms(expected_sums, there, own), expected)


def test_a_code_that_every_row_shares() -> None:
    weights = words(np.random.default_rng(1), 2, 70)
    one = torch.tensor(-3).reshape(1, 1).expand(70, 1)
    expected = [-3 * int(row.sum(dtype=np.uint64)) % (1 << 32) for row in weights]
    assert all_forms(freivalds.combine, tensor(weights), one)[:, 0].tolist() == expected


def test_nothing_sums_to_nothing() -> None:
    for rows, columns in ((0, 3), (3, 0)):
        found = all_forms(
            freivalds.combine, torch.zeros((2, rows), dtype=torch.int32), torch.zeros((rows, columns), dtype=torch.int8)
        )
        assert found.tolist() == [[0] * columns] * 2


@settings(max_examples=25, deadline=None)
@given(geometry=geometries(), backwards=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_what_convolutions_meet(geometry: tuple[Window, tuple[int, int]], backwards: bool, seed: int) -> None:
    rng, (window, size), channels = np.random.default_rng(seed), geometry, 3
    walk: Walk = (backward_walk if backwards else forward_walk)(window, size)
    source = window.positions(size) if backwards else size
    grid = on_host.grid_of(walk.outputs, walk.taps, walk.step, walk.tap, walk.offset, walk.hole)
    images, fill, inner = words(rng, 2, channels, *source), words(rng, 2), words(rng, 2, *walk.outputs)
    expected = on_host.tap_sums(images, fill, grid, inner, walk.taps)
    last = tensor(images.transpose(0, 2, 3, 1))
    found = all_forms(freivalds.tap_sums, last, tensor(fill), walk, tensor(inner.reshape(2, -1)))
    assert np.array_equal(found.transpose(0, 2, 1), expected)

    samples, groups = 2, 2
    x = rng.integers(-128, 128, (samples, groups * channels, *source)).astype(np.int8)
    zeros, dh = rng.integers(-128, 128, samples).astype(np.int8), rng.integers(-128, 128, (samples, 4, *walk.outputs))
    tap_words, channel_words = words(rng, 2, *walk.taps), words(rng, 2, channels)
    expected = on_host.gradient_sums(x, zeros, grid, tap_words, channel_words, dh.astype(np.int8), groups)
    sums = on_host.combine(channel_words, x.reshape(samples * groups, channels, -1).transpose(1, 0, 2).reshape(3, -1))
    sums = sums.reshape(2, samples, groups, *source).transpose(0, 1, 3, 4, 2)
    blank = channel_words.sum(1, np.uint32)[:, None] * zeros.astype(np.uint32)
    met = all_forms(freivalds.patch_sums, tensor(sums), tensor(blank), walk, tensor(tap_words.reshape(2, -1)))
    columns = dh.transpose(0, 2, 3, 1).reshape(met.shape[1], groups, 2).astype(np.int8)
    parts = [on_host.combine(np.ascontiguousarray(met[:, :, g]), columns[:, g]) for g in range(groups)]
    assert np.array_equal(np.concatenate(parts, 1), expected)
