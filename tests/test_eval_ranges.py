"""Fixed ranges of activation quantizers (S5.7) and where they come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from short_run import CONFIG, activations, trained_in

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.data import load_dataset
from fqtsim.data.batches import epoch_order
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.quantizers import quantizer
from fqtsim.ref import binary32
from fqtsim.ref import quantize as ref
from fqtsim.ref.random import random_bits
from fqtsim.train.config import build_trainer, resolve
from fqtsim.train.ranges import MOMENTUM, MovingExtremes, Ranges, activation_layers, calibrate, observed
from fqtsim.words import IntFormat, Rounding

Float32 = npt.NDArray[np.float32]
SAFE = 2.0**20
NUMBERS = st.one_of(
    st.sampled_from([k / 8 for k in range(-24, 25)]), st.floats(width=32, allow_nan=False, allow_infinity=False)
)


# Fixed ranges of a quantizer


def code_by_definition(x: float, grid: ref.Grid, q: Any, word: int) -> tuple[int, bool]:
    """Return code and clamp of one number, in plain Python."""
    away = min(max(ref.quotient(x, grid), -SAFE), SAFE)  # Q5.2: no format reaches that far
    exact = ref.round_value(away, q.rounding, word, q.random_bits) + grid.zero_point
    held = min(max(exact, grid.low), grid.high)
    return held, held != exact


@pytest.mark.parametrize("rounding", list(Rounding))
@given(
    x=arrays(np.float32, st.integers(1, 12), elements=NUMBERS),
    ends=st.tuples(NUMBERS, NUMBERS),
    bits=st.integers(2, 16),
    signed=st.booleans(),
    zero=st.sampled_from(["aligned", "symmetric", "float_offset"]),
)
@example(np.float32([0.0, -0.0, 0.25, -3e38, 1e-45]), (0.0, -0.0), 8, True, "aligned")
@example(np.float32([0.0, -0.0, 0.25, -3e38, 1e-45]), (0.0, 0.0), 8, False, "symmetric")
@example(np.float32([3e38, -3e38, 1.0]), (0.0, 1e-45), 8, True, "aligned")
def test_codes_of_a_fixed_range_equal_the_definition(
    rounding: Rounding, x: Float32, ends: tuple[float, float], bits: int, signed: bool, zero: str
) -> None:
    low, high = min(ends) + 0.0, max(ends) + 0.0
    if zero == "symmetric" and not signed:
        low, high = 0.0, max(high, 0.0)  # the values may be negative nevertheless
    n = 5 if rounding is Rounding.STOCHASTIC else None
    q = quantizer("ptq", bits, rounding, n, zero, IntFormat(bits, signed))
    t = q.quantize(x, 1, 2, 3, range=(low, high))
    grid = ref.GRIDS[zero](low, high, bits, signed)
    assert (float(t.step), int(t.zero_point)) == (grid.step, grid.zero_point)
    if low == high == 0 and zero != "float_offset":  # S5.7: code 0 for all
        expected = [(0, value != 0) for value in x.tolist()]
        assert (float(t.step), int(t.zero_point)) == (1, 0)
        assert not t.with_format(f"{'u' * signed}int{bits}").codes.any()
    else:
        words = [random_bits(1, 2, 3, i, n) if n else 0 for i in range(x.size)]
        expected = [code_by_definition(value, grid, q, r) for value, r in zip(x.tolist(), words, strict=True)]
    assert t.codes.tolist() == [code for code, _ in expected]
    assert t.clamps == sum(clamped for _, clamped in expected)


@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=NUMBERS), st.booleans())
def test_a_tensors_own_range_given_as_fixed_changes_nothing(x: Float32, signed: bool) -> None:
    q = quantizer("ptq", 8, "stochastic", 16, format=IntFormat(8, signed))
    own, fixed = q.quantize(x, 1, 2, 3), q.quantize(x, 1, 2, 3, range=(float(x.min()), float(x.max())))
    assert own.codes.tolist() == fixed.codes.tolist()
    assert (own.step, own.zero_point, own.ties) == (fixed.step, fixed.zero_point, fixed.ties)
    assert own.clamps == fixed.clamps == 0


def test_values_outside_are_clamped_to_the_ends_and_counted() -> None:
    q = quantizer("ptq", 4, "ties_to_even")
    # Step 1, zero point 0, codes 0..15: 15.4 still rounds to 15, 15.6 would be 16.
    t = q.quantize(np.float32([-0.4, -1.0, 15.4, 15.6, 99.0, 7.0]), range=(0.0, 15.0))
    assert t.codes.tolist() == [0, 0, 15, 15, 15, 7]
    assert t.clamps == 3
    assert q.quantize(torch.tensor([20.0]), range=(0.0, 15.0)).codes.tolist() == [15]


@pytest.mark.parametrize("bad", [(1.0, 0.0), (0.0, np.inf), (np.nan, 1.0), (-1e39, 0.0)])
def test_a_bad_range_is_an_error(bad: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"must be two finite float32 in ascending order"):
        quantizer("ptq", 8, "ties_to_even").quantize(np.ones(3, np.float32), range=bad)


@pytest.mark.parametrize("name", ["psq", "bhq"])
def test_only_per_tensor_quantizers_take_a_range(name: str) -> None:
    with pytest.raises(InputError, match="has a range for each row; fix that of a ptq only"):
        quantizer(name, 8, "ties_to_even").quantize(np.ones((2, 3), np.float32), range=(0.0, 1.0))


def test_a_fixed_range_lets_neither_nan_nor_an_unsigned_negative_minimum_pass() -> None:
    with pytest.raises(TrainingStopped, match="element 1 = nan"):
        quantizer("ptq", 8, "ties_to_even").quantize(np.float32([0, np.nan]), range=(0.0, 1.0))
    unsigned = quantizer("ptq", 8, "ties_to_even", zero="symmetric")
    with pytest.raises(InputError, match=r"holds -1\.0, and zero = symmetric"):
        unsigned.quantize(np.ones(2, np.float32), range=(-1.0, 1.0))


# Where ranges come from


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    return trained_in(tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("kind", [Ranges.CALIBRATED, Ranges.RUNNING])
def test_fixed_ranges_are_what_the_training_images_give(trained: Path, kind: Ranges) -> None:
    trainer = build_trainer(resolve(CONFIG))
    trainer.load(trained / "checkpoint.safetensors")
    data, before = load_dataset("digits"), trainer.digest().hex
    images = data.train_x[epoch_order(3, 0, len(data.train_y))[:300]]
    met = activations(trainer.net, images, 128)
    made = calibrate(trainer.net, data, kind, 3, 300)
    assert (made.images, made.batch, made.seed) == (300, 128, 3)
    assert trainer.digest().hex == before  # neither weights nor running statistics moved
    assert list(met) == ["conv1", "conv2", "fc"]
    for name, batches in met.items():
        assert len(batches) == 3
        ends = [(float(b.min()), float(b.max())) for b in batches]
        got = activation_layers(trainer.net)[name].activation_range
        if kind is Ranges.CALIBRATED:
            assert got == (min(low for low, _ in ends), max(high for _, high in ends))
        else:
            assert got == moving_average(ends)
    # The running range of the last layer is no batch's own, nor the widest.
    assert (got in (*ends, (min(low for low, _ in ends), max(high for _, high in ends)))) is (kind is Ranges.CALIBRATED)
    # Making ranges again starts from none.
    calibrate(trainer.net, data, kind, 3, 300)
    assert activation_layers(trainer.net)["fc"].activation_range == got


def moving_average(ends: list[tuple[float, float]]) -> tuple[float, float]:
    """Return S5.7's running range of batch extremes, one rounded Python operation after the other."""
    low, high = ends[0]
    for batch in ends[1:]:
        low, high = (
            binary32.add(old, binary32.multiply(float(MOMENTUM), binary32.add(new, -old)))
            for old, new in zip((low, high), batch, strict=True)
        )
        high = max(low, high)
    return low, high


SMALL = st.floats(-1000, 1000, width=32)


@given(st.lists(st.tuples(SMALL, SMALL), min_size=1, max_size=6))
@example([(1.2675169706344604, 1.26751708984375), (2031.0, 2031.0)])  # ends that would cross
def test_a_running_range_equals_the_definition(batches: list[tuple[float, float]]) -> None:
    ends = [(min(pair) + 0.0, max(pair) + 0.0) for pair in batches]
    running = MovingExtremes()
    for low, high in ends:
        running.add(np.float32([low]), np.float32([high]), DEFAULT_PRIMITIVES)
    assert running.range == moving_average(ends)
    assert running.range is not None
    assert running.range[0] <= running.range[1]


def test_the_default_is_1024_images_or_all() -> None:
    trainer, data = build_trainer(resolve(replace(CONFIG, model="mlp"))), load_dataset("digits")
    assert calibrate(trainer.net, data, Ranges.CALIBRATED, 0).images == 1024
    few = replace(data, train_pixels=data.train_pixels[:50], train_y=data.train_y[:50])
    assert calibrate(trainer.net, few, Ranges.CALIBRATED, 0).images == 50
    with pytest.raises(InputError, match=r"calibration images = 51: must be 1\.\.50"):
        calibrate(trainer.net, few, Ranges.CALIBRATED, 0, 51)


def test_an_observer_sees_nothing_after_its_block() -> None:
    trainer = build_trainer(resolve(replace(CONFIG, model="mlp")))
    x = torch.ones(2, 1, 8, 8)
    with observed(trainer.net) as seen:
        trainer.net(x)
    trainer.net(5 * x)
    assert seen["1"].range == (1.0, 1.0)
    assert seen["1"].values == 128
