"""Codes less their zero points: one for each row, or one for all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fqtsim.kernels import threads
from fqtsim.kernels.differences import differences


@pytest.mark.parametrize("zeros", [0, -128, 127, 3])
@pytest.mark.parametrize("shape", [(), (1,), (5,)])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_differences(kind: Any, shape: tuple[int, ...], zeros: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SMALLEST_PART", 2)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 3)
    ends, random = np.iinfo(kind), np.random.default_rng(0)
    codes = random.integers(ends.min, ends.max + 1, (5, 3, 7, 4)).astype(kind)
    points = np.full(shape, zeros, np.int16)
    if shape == (5,):
        points += np.arange(5, dtype=np.int16)
    expected = codes.astype(np.int64) - points.astype(np.int64).reshape(-1, 1, 1, 1)
    for layout in (codes, np.asfortranarray(codes)):
        found = differences(layout, points)
        assert found.dtype == np.int16
        assert np.array_equal(found, expected)


def test_zero_points_that_are_not_those_of_the_rows() -> None:
    with pytest.raises(ValueError, match="zeros of shape"):
        differences(np.zeros((5, 2), np.int8), np.zeros(4, np.int16))
    assert differences(np.zeros((0, 3), np.int8), np.zeros(0, np.int16)).shape == (0, 3)
