"""The authors' zero and power-of-two steps: against definition and the authors' float code (Q4a, Q4b)."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import nn

import fqtsim
from fqtsim.analysis.bounds import Meter
from fqtsim.analysis.tape import gemm_layers
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.kernels import grid as kernel
from fqtsim.quantizers.authors_ptq import authors_ptq
from fqtsim.recipe.load import load_recipe
from fqtsim.ref import quantize as ref
from fqtsim.words import Rounding

HOLE = "the authors' PTQ has no step here"


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.floats(0.05, 20), st.floats(1e-6, 1e6))
def test_values_are_those_of_the_authors_code(seed: int, bits: int, lean: float, size: float) -> None:
    x = np.random.default_rng(seed).normal(size=64).astype(np.float32)
    x = (np.where(x < 0, x, lean * x) * size).astype(np.float32)
    theirs = authors_ptq(x, bits)
    try:
        ours = fqtsim.quantizer("ptq", bits, "ties_to_even", zero="authors").quantize(x)
    except TrainingStopped:
        assert np.isnan(theirs).all()
        return
    # Their float32 arithmetic moves quotients by about 2**-20 of a code: a code may differ only beside a tie.
    step = float(ours.step)
    beside_a_tie = np.abs(np.abs(x.astype(np.float64) / step % 1) - 0.5) < 1e-3
    assert np.abs(ours.dequantize() - theirs)[~beside_a_tie].max(initial=0) <= 1e-4 * step
    assert np.abs(ours.dequantize() - theirs).max() <= 1.001 * step


@pytest.mark.parametrize("signed", [False, True])
def test_the_hole_is_where_the_negative_side_is_shorter_than_a_code(signed: bool) -> None:
    port = "int8" if signed else "uint8"
    one = fqtsim.quantizer("ptq", 4, "ties_to_even", zero="authors", format=port)
    x = np.float32([-1.0, 14.0])  # 15 steps of 1: the negative side is one code long, but for the margins of 1e-8
    with pytest.raises(TrainingStopped, match=HOLE):
        one.quantize(np.float32([-1.0, 14.5]))
    with pytest.raises(TrainingStopped, match=HOLE):
        one.quantize(np.float32([0.0, 1.0]))
    assert np.isnan(authors_ptq(np.float32([0.0, 1.0]), 4)).all()
    t = one.quantize(x)
    assert (float(t.step), int(t.zero_point)) == (1.0, 1 - 8 * signed)
    assert one.quantize(np.zeros(3, np.float32)).codes.tolist() == [0, 0, 0]


@example(1.0, "aligned")
@example(2.0**-149, "aligned")
@example(0.75, "symmetric")
@given(st.floats(2.0**-149, 2.0**125, width=32), st.sampled_from(["aligned", "symmetric", "float_offset", "authors"]))
def test_power_of_two_steps_equal_the_definition_and_hold_the_range(reach: float, zero: str) -> None:
    low, high = -reach / 2 if zero != "symmetric" else 0.0, reach
    low = float(np.float32(low)) + 0.0
    free = kernel.GRIDS[zero](np.float32([low]), np.float32([high]), 5, False)
    got, want = kernel.power_of_two(free), ref.power_of_two(ref.GRIDS[zero](low, high, 5, False))
    assert float(got.step[0]) == want.step
    assert got.step.dtype == np.float32
    assert float(free.step[0]) <= want.step < 2 * float(free.step[0])
    assert np.frexp(want.step)[0] == 0.5
    assert int(got.zero_point[0]) == want.zero_point
    assume(zero in ("aligned", "symmetric"))
    for value in (low, high):
        assert not ref.code(value, want, Rounding.AWAY_FROM_ZERO)[1]


def test_a_power_of_two_beyond_float32_is_refused() -> None:
    huge = np.float32([-3e38, 3e38])
    with pytest.raises(InputError, match=r"step = power_of_two: the step .* no power of two above it in float32"):
        fqtsim.quantizer("ptq", 2, "ties_to_even", step="power_of_two").quantize(huge)
    with pytest.raises(InputError, match=r"step = 'log': must be one of free, power_of_two"):
        fqtsim.quantizer("ptq", 2, "ties_to_even", step="log")


@pytest.mark.parametrize("name", ["psq", "bhq"])
def test_every_row_has_a_power_of_two(name: str) -> None:
    x = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    t = fqtsim.quantizer(name, 6, "stochastic", 24, step="power_of_two").quantize(x)
    assert (np.frexp(t.step)[0] == 0.5).all()
    assert t.clamps == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(2, 8), st.sampled_from(["aligned", "float_offset"]))
def test_the_mean_range_of_rows_is_that_of_exact_sums(seed: int, rows: int, bits: int, zero: str) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, 3, 5)) * 10.0 ** rng.integers(-20, 20, (rows, 1, 1))).astype(np.float32)
    got = fqtsim.quantizer("ptq", bits, "ties_to_even", zero=zero, range="mean_of_rows").quantize(x)
    flat = x.reshape(rows, -1)
    ends = [float(sum(map(Fraction, end.tolist()))) / rows for end in (flat.min(1), flat.max(1))]
    low, high = (float(np.float32(end)) for end in ends)
    grid = ref.GRIDS[zero](low, high, bits, False)
    want = [ref.code(float(value), grid, Rounding.TIES_TO_EVEN) for value in x.ravel()]
    assert (float(got.step), int(got.zero_point)) == (grid.step, grid.zero_point)
    assert got.codes.ravel().tolist() == [code for code, _ in want]
    assert got.clamps == sum(clamped for _, clamped in want)


def test_a_mean_range_clamps_and_is_for_ptq_only() -> None:
    x = np.float32([[-1, 1], [-3, 5]])
    one = fqtsim.quantizer("ptq", 4, "ties_to_even", range="mean_of_rows")
    t = one.quantize(x)
    assert t.clamps == 2
    assert t.dequantize().tolist()[1] == [t.dequantize().min(), t.dequantize().max()]
    assert one.quantize(x, range=(-3, 5)).clamps == 0
    assert one.quantize(np.float32([[-2, -2], [2, 2]])).clamps == 4  # a mean range of 0 alone
    with pytest.raises(InputError, match="range = mean_of_rows: is for ptq"):
        fqtsim.quantizer("psq", 4, "ties_to_even", range="mean_of_rows")
    with pytest.raises(InputError, match="shape \\(\\) has no rows"):
        one.quantize(np.ones((), np.float32))
    with pytest.raises(InputError, match=r"grad_for_dgrad.range = mean_of_rows: is for ptq only"):
        load_recipe("psq5", {"grad_for_dgrad.range": "mean_of_rows"})


def test_the_rows_of_a_group_share_a_grid_and_only_bhq_has_groups() -> None:
    x = (np.random.default_rng(0).normal(size=(9, 20)) * np.float32([[9], *[[0.1]] * 3, [7], *[[0.2]] * 4])).astype(
        "f4"
    )
    t = fqtsim.quantizer("bhq", 5, "stochastic", 16, scale="per_group").quantize(x)
    assert [len(group) > 1 for group in t.groups] == [True, True]
    assert all(len(set(t.step[group].tolist())) == 1 for group in t.groups)
    assert len(set(t.step.tolist())) == 2
    assert t.clamps == 0
    with pytest.raises(InputError, match="scale = per_group: psq has no groups; use bhq"):
        fqtsim.quantizer("psq", 4, "ties_to_even", scale="per_group")
    with pytest.raises(InputError, match=r"grad_for_dgrad.scale = per_group: is for bhq only"):
        load_recipe("psq5", {"grad_for_dgrad.scale": "per_group"})


def network(recipe: str, backend: str = "emulator") -> fqtsim.QuantizedNet:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    return fqtsim.fully_quantize(model, recipe, "int8_acc32_wrap", backend)


@pytest.mark.parametrize(
    "recipe",
    [
        "ptq5_pow2",
        "ptq5_banner",
        "bhq5_group",
        "luq4",
        "psq5_channel",
        "ptq8_hindsight",
        "authors_ptq8",
        "authors_ptq4",
    ],
)
def test_training(recipe: str) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((32, 2, 6, 6)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 4, 32))
    digests = {}
    for backend, steps in (("stepwise", 2), ("emulator", 2), ("emulator", 20)):
        trainer = fqtsim.Trainer(network(recipe, backend), {"name": "sgd", "lr": 0.05, "momentum": 0.9})
        losses = [trainer.step(x, labels) for _ in range(steps)]
        digests[backend, steps] = trainer.digest().hex
    assert digests["stepwise", 2] == digests["emulator", 2]
    assert losses[-1] < 0.5 * losses[0]


def test_the_hole_stops_a_step_by_name() -> None:
    outputs = network("authors_ptq5")(torch.ones(4, 2, 6, 6))
    with pytest.raises(TrainingStopped, match=f"layer '3', .*{HOLE}"):
        outputs.sum().backward()  # every gradient is 1: no negative side


def test_the_analysis_measures_one_step_a_channel() -> None:
    net = network("psq5_channel")
    layer = gemm_layers(net)[0]
    rng = np.random.default_rng(0)
    dy = (rng.normal(size=(32, 8, 6, 6)) * 2.0 ** np.arange(8).reshape(8, 1, 1)).astype(np.float32)
    meter = Meter(first_draw=100, draws=40)
    meter(layer, dy, ("grad_for_wgrad",))
    (key, (variance, bound)), *others = meter.bounds.items()
    assert (key[1], others) == ("grad_for_wgrad", [])
    steps = np.ptp(dy, axis=(0, 2, 3)) / 255  # Q_b1 has 8 bits
    assert bound == pytest.approx(np.sum(steps**2) * 32 * 36 / 4, rel=0.1)
    assert 0.5 * bound < variance < 0.8 * bound
    assert np.count_nonzero(meter.counts[key][1]) >= 6  # steps of one scale would share a class or two
