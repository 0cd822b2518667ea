"""Evaluation of a checkpoint: fixed ranges (S5.7), where they come from, weights from files, and `train --from`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
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
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.cli import main
from fqtsim.data import load_dataset
from fqtsim.data.batches import epoch_order
from fqtsim.errors import FileError, InputError, TrainingStopped
from fqtsim.evaluate.accuracy import Evaluation, evaluate_checkpoint
from fqtsim.models import build_model
from fqtsim.quantizers import quantizer
from fqtsim.ref import binary32
from fqtsim.ref import quantize as ref
from fqtsim.ref.random import random_bits
from fqtsim.train.config import TrainConfig, build_trainer, resolve
from fqtsim.train.convert import fully_quantize
from fqtsim.train.loop import run
from fqtsim.train.ranges import MOMENTUM, MovingExtremes, Ranges, activation_layers, calibrate, observed
from fqtsim.train.rundir import RunDir
from fqtsim.train.weights import read_weights
from fqtsim.words import IntFormat, Rounding

Float32 = npt.NDArray[np.float32]
SAFE = 2.0**20
NUMBERS = st.one_of(
    st.sampled_from([k / 8 for k in range(-24, 25)]), st.floats(width=32, allow_nan=False, allow_infinity=False)
)
CONFIG = TrainConfig(
    model="cnn", data="digits", recipe="ptq8", hardware=("int8_acc20_tree4",), seed=3, steps=6, batch=64,
    set_recipe={"optimizer.lr": "0.05"},
)  # fmt: skip


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
    out = tmp_path_factory.mktemp("runs") / "run"
    run(CONFIG, out)
    return out


def evaluated(trained: Path, ranges: str, images: int | None = None, **changes: Any) -> Evaluation:
    config = replace(CONFIG, start=str(trained / "checkpoint.safetensors"), **changes)
    return evaluate_checkpoint(config, ranges, images)


def activations(net: Any, images: Float32, batch: int) -> dict[str, list[Float32]]:
    """Return each GEMM layer's input, batch by batch, by a way of its own."""
    inputs: dict[str, list[Float32]] = {name: [] for name in activation_layers(net)}
    hooks = [
        layer.register_forward_pre_hook(lambda module, x: inputs[module.name].append(x[0].numpy().copy()))
        for layer in activation_layers(net).values()
    ]
    net.eval()
    with torch.no_grad():
        for first in range(0, len(images), batch):
            net(torch.from_numpy(images[first : first + batch]))
    for hook in hooks:
        hook.remove()
    return inputs


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


# Accuracy


def test_batch_ranges_give_what_the_training_loop_measured(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    result = evaluated(trained, "batch")
    assert result.accuracy == lines[-1]["accuracy"]
    assert result.calibration is None
    assert result.batch_matters == ("each batch is quantized by its own ranges",)
    assert result.notes == ("read the weights of a training state at step 6, without its momentum",)
    assert result.checkpoint_sha256 == hashlib.sha256((trained / "checkpoint.safetensors").read_bytes()).hexdigest()


def test_fixed_ranges_make_logits_independent_of_the_batch_and_batch_ranges_do_not(trained: Path) -> None:
    for ranges in ("calibrated", "running"):
        one, other = (evaluated(trained, ranges, 200, batch=batch) for batch in (37, 360))
        assert one.digest.hex == other.digest.hex
        for ours, theirs in zip(one.layers, other.layers, strict=True):
            assert (ours.range, ours.clamped, ours.activations) == (theirs.range, theirs.clamped, theirs.activations)
        assert one.batch_matters == ()
        assert [layer.range for layer in one.layers] != [layer.range for layer in evaluated(trained, "batch").layers]
    digests = {evaluated(trained, "batch", batch=batch).digest.hex for batch in (37, 360)}
    assert len(digests) == 2


def test_layers_say_what_was_clamped_and_altered(trained: Path) -> None:
    wide, narrow = (
        evaluated(trained, "calibrated", 8, set_hardware={"datapath.levels.-1.register": register})
        for register in ("int32", "int12")
    )
    trainer = build_trainer(resolve(CONFIG))
    trainer.load(trained / "checkpoint.safetensors")
    data = load_dataset("digits")
    calibrate(trainer.net, data, Ranges.CALIBRATED, 3, 8)
    met = activations(trainer.net, data.test_x, 64)
    for layer in wide.layers:
        low, high = layer.range
        values = np.concatenate([x.ravel() for x in met[layer.name]])
        assert layer.activations == values.size
        # ptq8 rounds to nearest: a clamp begins half a step beyond an end, and the step is at most a bit more
        # than the range by 255.
        beyond = int(np.sum((values < low) | (values > high)))
        well = (high - low) / 100
        assert int(np.sum((values < low - well) | (values > high + well))) <= layer.clamped <= beyond
    assert any(layer.clamped for layer in wide.layers)
    events = [[layer.events or {} for layer in result.layers] for result in (wide, narrow)]
    assert [row["gemm"] for row in events[0]] == ["fprop"] * 3
    assert [row["outputs"] for row in events[0]] == [360 * 16 * 64, 360 * 32 * 16, 360 * 10]
    assert sum(row["altered"] for row in events[0]) == 0
    assert all(row["altered"] > 0 for row in events[1])
    assert wide.digest.hex != narrow.digest.hex


def test_two_backends_agree_on_every_logit(trained: Path) -> None:
    digests = {evaluated(trained, "running", 128, backend=name).digest.hex for name in ("emulator", "stepwise")}
    assert len(digests) == 1


@pytest.mark.parametrize(("recipe", "platform"), [("fp32", True), ("qat", False)])
def test_float_recipes(trained: Path, recipe: str, platform: bool) -> None:
    result = evaluated(trained, "batch", recipe=recipe, set_recipe={})
    assert result.digest.platform is platform
    assert len(result.layers) == (0 if platform else 3)
    assert result.batch_matters == (() if platform else ("each batch is quantized by its own ranges",))
    if platform:
        with pytest.raises(InputError, match="ranges = calibrated: recipe fp32 quantizes no activation"):
            evaluated(trained, "calibrated", recipe=recipe, set_recipe={})
        # The same sums by torch itself.
        model = build_model("cnn", load_dataset("digits").info, 0)
        read_weights(trained / "checkpoint.safetensors").copy_into(model)
        logits = model.eval()(torch.from_numpy(load_dataset("digits").test_x))
        assert np.mean(logits.argmax(1).numpy() == result.predictions) > 0.99


def test_stochastic_activations_are_named_as_a_reason(trained: Path) -> None:
    result = evaluated(trained, "calibrated", 64, set_recipe={"activation.rounding": "stochastic"})
    assert result.batch_matters == ("activations are rounded by random bits of their place in the batch",)


def test_batch_norm_without_running_statistics_is_named_as_a_reason() -> None:
    from fqtsim.evaluate.accuracy import _why_batch_matters

    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2, track_running_stats=False))
    net = fully_quantize(model, "ptq8", "int8_acc20_tree4")
    assert _why_batch_matters(net, Ranges.RUNNING) == ("batch norm without running statistics uses those of the batch",)


@pytest.mark.parametrize(
    ("ranges", "images", "changes", "message"),
    [
        ("fixed", None, {}, "ranges = fixed: must be one of batch, calibrated, running"),
        ("batch", 10, {}, "calibration images = 10: ranges = batch reads none"),
        ("running", 1438, {}, r"calibration images = 1438: must be 1\.\.1437"),
        ("running", 0, {}, r"calibration images = 0: must be 1\.\.1437"),
        ("batch", None, {"batch": 0}, "batch = 0: must be at least 1"),
        ("batch", None, {"model": "mlp"}, "does not fit the model: missing 1.weight"),
    ],
)
def test_bad_evaluations_are_named(
    trained: Path, ranges: str, images: int | None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluated(trained, ranges, images, **changes)


def test_a_checkpoint_has_to_be_named() -> None:
    with pytest.raises(InputError, match="checkpoint: none given"):
        evaluate_checkpoint(CONFIG)


# Weights from files


def ordinary_model(seed: int = 5) -> torch.nn.Module:
    """A float network with running statistics that are not those of a fresh one."""
    model = build_model("cnn", load_dataset("digits").info, seed)
    with torch.no_grad():
        model.bn1.running_mean.fill_(0.25)
    return model


def saved(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def same_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    mine = model.state_dict()
    return all(torch.equal(mine[name], state[name]) for name in mine if not name.endswith("num_batches_tracked"))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.of_no_kind"])
def test_an_ordinary_models_weights_come_in(tmp_path: Path, name: str) -> None:
    state, model = ordinary_model().state_dict(), ordinary_model(6)
    weights = read_weights(saved(tmp_path / name, state))
    assert not same_state(model, state)
    weights.copy_into(model)
    assert same_state(model, state)
    assert weights.notes == []


def test_the_older_torch_format_comes_in(tmp_path: Path) -> None:
    state, model = ordinary_model().state_dict(), ordinary_model(6)
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    read_weights(tmp_path / "w.pt").copy_into(model)
    assert same_state(model, state)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "left the prefix module. out of every name"),
        (lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()}, "left the prefix _orig_mod. out of every name"),
        (lambda s: {"state_dict": s, "epoch": 3}, "took the entry 'state_dict' and left epoch out"),
        (lambda s: {"model": s}, "took the entry 'model'"),
        (lambda s: {k: v.double() for k, v in s.items()}, "converted 14 tensors from float64 to float32, rounded"),
        (lambda s: {k: v for k, v in s.items() if "num_batches" not in k}, None),
        (lambda s: {**s, "extra.num_batches_tracked": torch.tensor(4)}, None),
    ],
)
def test_usual_wrappings_are_taken_off_and_noted(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], note: str | None
) -> None:
    state, model = ordinary_model().state_dict(), ordinary_model(6)
    weights = read_weights(saved(tmp_path / "w.pt", change(state)))
    weights.copy_into(model)
    weights.copy_into(ordinary_model(7))  # a second network adds no second note
    assert same_state(model, state)
    if note is None:
        assert weights.notes == []
    else:
        assert weights.notes.count(note) == 1


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_half_precision_is_converted_with_a_note(tmp_path: Path, kind: torch.dtype, name: str) -> None:
    half = {k: v.to(kind) if v.is_floating_point() else v for k, v in ordinary_model().state_dict().items()}
    weights, model = read_weights(saved(tmp_path / name, half)), ordinary_model(6)
    weights.copy_into(model)
    assert same_state(model, {k: v.float() for k, v in half.items()})
    count = sum(v.is_floating_point() for v in half.values())
    assert weights.notes == [f"converted {count} tensors from {str(kind).removeprefix('torch.')} to float32"]


def without(state: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "fc.bias"), r"does not fit the model: missing fc\.bias; give"),
        (
            lambda s: {**without(s, "conv1.weight"), "conv.weight": s["conv1.weight"]},
            r"missing conv1\.weight \(nearest: conv\.weight\); unexpected conv\.weight \(nearest: conv1\.weight\)",
        ),
        (lambda s: {**s, "fc.bias": torch.zeros(3)}, r"of another shape fc\.bias 3, not 10"),
        (lambda s: {**s, "fc.bias": torch.zeros(10, dtype=torch.int8)}, r"of another type fc\.bias int8, not float32"),
        (lambda s: {**s, "fc.bias": torch.zeros(10) / 0}, r"NaN or infinity in fc\.bias"),
        (lambda s: {**s, "fc.bias": torch.full((10,), 1e300, dtype=torch.float64)}, r"NaN or infinity in fc\.bias"),
        (lambda s: {**s, "fc.bias": torch.zeros(10).to_sparse()}, r"fc\.bias: must be dense tensors with values"),
        (lambda s: {**s, "fc.bias": "text", 3: s["fc.bias"]}, r"fc\.bias, 3: must be named tensors"),
        (lambda s: {f"x{i}": torch.zeros(1) for i in range(11)}, r"unexpected x0, .*x7 and 3 more"),
        (lambda s: [s], "a list: must be a state dict"),
        (lambda s: {}, "an empty one: must be a state dict"),
        (lambda s: {"state_dict": {}}, "an empty one: must be a state dict"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    model = ordinary_model(6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        read_weights(saved(tmp_path / "w.pt", change(ordinary_model().state_dict()))).copy_into(model)
    assert str(caught.value).startswith(str(tmp_path / "w.pt"))
    assert same_state(model, before)


class Intruder:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_file_is_run(tmp_path: Path, zipped: bool) -> None:
    state = {**ordinary_model().state_dict(), "fc.bias": Intruder(tmp_path / "made")}
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"w\.pt: .*; save the weights alone: torch\.save") as caught:
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "made").exists()
    assert "mkdir" in str(caught.value) or not zipped
    # The file is what it is said to be.
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("part", [0, 5, 40, 0.5, 0.999])
def test_a_file_cut_short_is_an_error(tmp_path: Path, name: str, part: float) -> None:
    path = saved(tmp_path / name, ordinary_model().state_dict())
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content)) if part < 1 else int(part)])
    with pytest.raises(InputError, match=r"w\.(pt|safetensors): "):
        read_weights(path)


def test_what_is_no_file_of_weights_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match="no such file"):
            read_weights(path)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(InputError, match=r"holds torch\.nn\.modules\.linear\.Linear, which would run code to load"):
        read_weights(tmp_path / "module.pt")
    (tmp_path / "text").write_text("weights: none\n")
    with pytest.raises(InputError, match="neither safetensors nor a torch state dict"):
        read_weights(tmp_path / "text")


def test_a_damaged_training_state_is_refused(trained: Path, tmp_path: Path) -> None:
    with safe_open(trained / "checkpoint.safetensors", framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(trained / "checkpoint.safetensors")
    save_file(tensors, tmp_path / "same", metadata=metadata)
    assert not any(name.endswith(".momentum") for name in read_weights(tmp_path / "same").tensors)
    tensors["fc.bias"][0] += 1
    save_file(tensors, tmp_path / "changed", metadata=metadata)
    with pytest.raises(InputError, match="the tensors do not have the digest it states"):
        read_weights(tmp_path / "changed")
    for damage in ({"seed": "x"}, {"step": "7"}, {"digest": ""}):
        save_file(load_file(tmp_path / "same"), tmp_path / "changed", metadata=metadata | damage)
        with pytest.raises(InputError, match="the tensors do not have the digest it states"):
            read_weights(tmp_path / "changed")


# Starting a run from weights


SHORT = replace(CONFIG, model="mlp", steps=4, save_every=2)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Weights of an MLP as seed 9 makes them."""
    return saved(tmp_path / "start.pt", build_model("mlp", load_dataset("digits").info, 9).state_dict())


def digests(out: Path) -> list[str]:
    return [json.loads(line)["digest"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_from_its_own_initialisation_is_the_run_without(tmp_path: Path) -> None:
    own = saved(tmp_path / "own.pt", build_model("mlp", load_dataset("digits").info, 3).state_dict())
    run(replace(SHORT, start=str(own)), tmp_path / "with")
    run(SHORT, tmp_path / "without")
    assert digests(tmp_path / "with") == digests(tmp_path / "without")
    assert "start" not in (tmp_path / "without" / "run.yaml").read_text()


def test_a_run_from_weights_starts_there(start: Path, tmp_path: Path) -> None:
    config = replace(SHORT, start=str(start))
    trainer = build_trainer(resolve(config))
    expected = build_model("mlp", load_dataset("digits").info, 9).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in trainer.net.state_dict().items())
    run(config, tmp_path / "with")
    run(SHORT, tmp_path / "without")
    assert digests(tmp_path / "with") != digests(tmp_path / "without")
    described = RunDir(tmp_path / "with").read_run().data["config"]
    assert described["start_sha256"] == hashlib.sha256(start.read_bytes()).hexdigest()
    assert TrainConfig.from_plain(described) == config


@pytest.mark.parametrize("at", [1, 3])
def test_a_run_from_weights_resumes_exactly(start: Path, tmp_path: Path, at: int) -> None:
    """Before the first checkpoint from the weights again, later from the checkpoint."""
    config = replace(SHORT, start=str(start))
    run(config, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(record: Any) -> None:
        if record.step == at:
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "killed", on_step=kill)
    run(config, tmp_path / "killed", resume=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_resumed_run_must_have_the_same_weights(start: Path, tmp_path: Path) -> None:
    config = replace(SHORT, start=str(start))
    run(config, tmp_path / "run")
    run(config, tmp_path / "run", resume=True)
    with pytest.raises(FileError, match=r"config\.start = .*: a resumed run must not change it"):
        run(replace(config, start=None), tmp_path / "run", resume=True)
    saved(start, build_model("mlp", load_dataset("digits").info, 10).state_dict())
    with pytest.raises(FileError, match=r"config\.start_sha256 = [0-9a-f]{64}: a resumed run must not change it"):
        run(config, tmp_path / "run", resume=True)
    start.unlink()
    with pytest.raises(InputError, match=r"start\.pt: no such file"):
        run(config, tmp_path / "run", resume=True)


def test_a_run_from_weights_that_do_not_fit_leaves_no_folder(tmp_path: Path) -> None:
    bad = saved(tmp_path / "bad.pt", {"1.weight": torch.zeros(128, 64)})
    with pytest.raises(InputError, match="does not fit the model"):
        run(replace(SHORT, start=str(bad)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The command line


ARGUMENTS = ["--recipe", "ptq8", "--hardware", "int8_acc20_tree4", "--batch", "64"]


def test_eval_says_what_it_did(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(trained / "checkpoint.safetensors")
    assert main(["eval", "--checkpoint", checkpoint, *ARGUMENTS]) == 0
    out, err = capsys.readouterr()
    expected = evaluated(trained, "batch")
    assert f"{100 * expected.accuracy:.1f} % [" in out
    assert "of 360 test images (95 % interval)" in out
    assert "ranges     batch: minimum and maximum of each batch" in out
    assert "the accuracy depends on the batch: each batch is quantized by its own ranges" in out
    assert f"digest     {expected.digest.hex}\n" in out
    assert "read the weights of a training state at step 6" in err
    table = out.partition("\n\n")[2].splitlines()
    assert [line.split()[0] for line in table] == ["layer", "conv1", "conv2", "fc"]

    fixed = ["--ranges", "running", "--calibration-images", "256", "--seed", "3"]
    assert main(["eval", "--checkpoint", checkpoint, *ARGUMENTS, *fixed]) == 0
    out, _ = capsys.readouterr()
    assert "running: momentum 0.01 per batch over 256 training images in batches of 128, in the order of seed 3" in out
    assert "the accuracy does not depend on the batch" in out
    assert f"digest     {evaluated(trained, 'running', 256).digest.hex}\n" in out

    assert main(["eval", "--checkpoint", checkpoint, "--recipe", "fp32", "--hardware", "int8_acc20_tree4"]) == 0
    out, _ = capsys.readouterr()
    assert "ranges     none: the recipe quantizes no activation" in out
    assert "(platform)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", *ARGUMENTS], "Missing option '--checkpoint'"),
        (["eval", "--checkpoint", "/no/such", *ARGUMENTS], "/no/such: no such file"),
        (["eval", "--checkpoint", "x", "--hardware", "int8_acc20_tree4"], "--recipe: is required"),
        (["eval", "--checkpoint", "x", *ARGUMENTS, "--ranges", "fixed"], "'fixed' is not one of"),
        (["eval", "--checkpoint", "x", *ARGUMENTS, "--calibration-images", "5"], "ranges = batch reads none"),
        (["eval", "--checkpoint", "x", *ARGUMENTS, "--set", "hardware.a=int3"], "hardware"),
    ],
)
def test_eval_refuses_in_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert "Traceback" not in out + err


def test_train_from_weights_on_the_command_line(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = saved(tmp_path / "half.pt", {name: t.half() for name, t in torch.load(start).items()})
    out = ["--out", str(tmp_path / "run")]
    arguments = ["--model", "mlp", "--steps", "2", "--save-every", "1", *ARGUMENTS, *out]
    assert main(["train", "--from", str(half), *arguments]) == 0
    assert "weights    converted 6 tensors from float16 to float32" in capsys.readouterr().err
    assert main(["train", "--resume", *out]) == 0
    assert main(["train", "--resume", "--from", str(start), *out]) == 2
    assert "config.start" in capsys.readouterr().err
