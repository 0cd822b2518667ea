"""Evaluation of a checkpoint: its accuracy, what was clamped and altered, and the command."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from short_run import ARGUMENTS, CONFIG, activations, evaluated, trained_in

from fqtsim.cli import main
from fqtsim.data import load_dataset
from fqtsim.errors import InputError
from fqtsim.evaluate.accuracy import evaluate_checkpoint
from fqtsim.models import build_model
from fqtsim.train.config import build_trainer, resolve
from fqtsim.train.convert import fully_quantize
from fqtsim.train.ranges import Ranges, calibrate
from fqtsim.train.weights import read_weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    return trained_in(tmp_path_factory.mktemp("runs") / "run")


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
    from fqtsim.train.ranges import activation_layers

    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2, track_running_stats=False))
    net = fully_quantize(model, "ptq8", "int8_acc20_tree4")
    for layer in activation_layers(net).values():
        layer.activation_range = (0.0, 1.0)
    assert _why_batch_matters(net) == ("batch norm without running statistics uses those of the batch",)


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
