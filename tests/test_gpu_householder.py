"""fqtsim/kernels/gpu/householder.py: groups, scales and mixing, in both forms, equal those of the CPU's quantizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from device_forms import FORMS, called, no_flags, same, wide
from hypothesis import given, settings
from hypothesis import strategies as st

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.kernels.gpu import householder
from fqtsim.kernels.gpu.launch import Fault
from fqtsim.quantizers.block_householder import Householder, group_rows, integer_ranges, scales

Ranges = np.ndarray[Any, Any]


def _ranges(n: int, kind: str, seed: int = 0) -> Ranges:
    generator = np.random.default_rng(seed)
    spread = {"even": 0.0, "alike": 0.1, "usual": 1.0, "wide": 20.0}.get(kind, 1.0)
    values = np.exp(generator.standard_normal(n) * spread)
    if kind == "ties":
        values = np.ceil(values)
    if kind == "dominant":
        values[n // 2] = 1e12
    if kind == "zeros":
        values *= generator.random(n) < 0.3
    if kind == "blank":
        values *= 0
    return values.astype(np.float32).astype(np.float64)


KINDS = ["even", "alike", "usual", "wide", "ties", "dominant", "zeros", "blank"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 33, 129])
def test_groups_and_scales(form: str, kind: str, n: int) -> None:
    ranges = _ranges(n, kind)
    groups = group_rows(integer_ranges(ranges))
    got = called(form, householder.group_rows, torch.from_numpy(ranges))
    assert got.lists() == groups
    peaks = (ranges * np.random.default_rng(1).random(n)).astype(np.float32)
    same(
        scales(groups, ranges, peaks, P),
        called(form, householder.scales, got, torch.from_numpy(ranges), torch.from_numpy(peaks)).numpy(),
    )


@pytest.mark.parametrize("kind", ["even", "usual", "wide"])
@pytest.mark.parametrize("n", [4095, 4096, 4097, 20000])
def test_many_rows(kind: str, n: int) -> None:
    """Beyond 4096 rows a share no longer fits one int64 product."""
    ranges = _ranges(n, kind)
    assert householder.composed_group_rows(torch.from_numpy(ranges)).lists() == group_rows(integer_ranges(ranges))


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("kind", ["even", "usual"])
def test_many_rows_fused(form: str, kind: str) -> None:
    ranges = torch.from_numpy(_ranges(600, kind))
    assert called(form, householder.group_rows, ranges).lists() == group_rows(integer_ranges(ranges.numpy()))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=40))
def test_any_ranges(values: list[float]) -> None:
    ranges = np.array(values)
    assert householder.composed_group_rows(torch.from_numpy(ranges)).lists() == group_rows(integer_ranges(ranges))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_ranges_that_are_not_finite_give_groups_all_the_same(form: str, bad: float) -> None:
    """The fault is noted by extremes; the indices that follow must stay within the tensor."""
    ranges = torch.from_numpy(_ranges(19, "usual"))
    ranges[4] = bad
    groups = called(form, householder.group_rows, ranges).lists()
    assert sorted(row for group in groups for row in group) == list(range(19))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "length"), [(1, 4), (2, 3), (6, 300), (40, 17)])
def test_mix_and_unmix(form: str, n: int, length: int) -> None:
    x, flags = wide((n, length), spread=2), no_flags()
    ranges = (x.max(1).astype(np.float64) - x.min(1)).clip(0)
    groups = group_rows(integer_ranges(ranges))
    s = scales(groups, ranges, np.abs(x).max(1), P)
    mixing, on_device = Householder(groups, s), householder.composed_group_rows(torch.from_numpy(ranges))
    tensor, factors = torch.from_numpy(x), torch.from_numpy(s)
    same(P.reflect(x, groups), called(form, householder.reflect, tensor, on_device, flags).numpy())
    same(mixing.apply(x, P), called(form, householder.mix, tensor, on_device, factors, flags).numpy())
    same(mixing.undo(x, P), called(form, householder.unmix, tensor, on_device, factors, flags).numpy())
    assert not flags.item()


@pytest.mark.parametrize("form", FORMS)
def test_groups_that_the_host_gives_and_faults(form: str) -> None:
    lists = [[3, 0, 5], [1, 4], [2]]
    groups, x, flags = householder.groups_of(lists, "cpu"), wide((6, 20)), no_flags()
    assert groups.lists() == lists
    same(P.reflect(x, lists), called(form, householder.reflect, torch.from_numpy(x), groups, flags).numpy())
    x[2, 3] = np.nan  # a lone row is not touched
    called(form, householder.reflect, torch.from_numpy(x), groups, flags)
    assert not flags.item()
    x[1, 3] = x[4, 3] = 3e38
    called(form, householder.reflect, torch.from_numpy(x), groups, flags)
    assert flags.item() == Fault.BEYOND_FLOAT32
    flags.zero_()
    x[0, 3] = np.inf
    x[1, 3] = 0
    called(form, householder.reflect, torch.from_numpy(x), groups, flags)
    assert flags.item() == Fault.NOT_FINITE
