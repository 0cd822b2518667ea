"""The training loop: a run is a folder, and a run killed at any moment and resumed equals one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fqtsim.data import load_dataset
from fqtsim.errors import FileError, InputError, TrainingStopped
from fqtsim.train import loop, rundir
from fqtsim.train.config import TrainConfig, build_trainer, resolve
from fqtsim.train.intervals import paired_difference, wilson
from fqtsim.train.loop import merge_events, run
from fqtsim.train.rundir import RunDir
from fqtsim.train.trainer import Trainer

CONFIG = TrainConfig(
    model="mlp", data="digits", recipe="bhq5", hardware=("int8_acc20_tree4",), seed=3, steps=8, batch=32,
    eval_every=3, save_every=3, set_recipe={"optimizer.lr": "0.05"},
)  # fmt: skip


class Killed(BaseException):
    """Stands for a kill: nothing in the loop may catch it."""


def folder_content(out: Path) -> dict[str, object]:
    """Everything in a run's folder that must not depend on how often it was killed."""
    return {
        "metrics": (out / "metrics.jsonl").read_bytes(),
        "events": (out / "events.json").read_bytes(),
        "state": {name: tensor.tobytes() for name, tensor in load_file(out / "checkpoint.safetensors").items()},
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = run(CONFIG, out)
    assert (result.step, result.steps, result.interrupted) == (8, 8, False)
    return out


def test_metrics_have_a_line_per_step(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["step"] for line in lines if "accuracy" in line] == [3, 6, 8]
    assert all(len(line["digest"]) == 64 and np.isfinite(line["loss"]) for line in lines)
    assert len({line["digest"] for line in lines}) == 8
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_epochs_are_counted_by_whole_passes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(replace(CONFIG, steps=None, epochs=2, batch=700, eval_every=0, recipe="ptq8"), out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert result.steps == 4
    assert [(line["step"], line["epoch"], "accuracy" in line) for line in lines] == [
        (1, 0, False), (2, 1, True), (3, 1, False), (4, 2, True),
    ]  # fmt: skip


def test_events_are_those_of_training_alone(whole: Path) -> None:
    events = json.loads((whole / "events.json").read_text())
    assert events["step"] == 8
    rows = {(row["layer"], row["gemm"]): row for row in events["layers"]}
    # Layers 1, 3 and 5 of the MLP; the first runs no dgrad.
    assert sorted(rows) == [
        ("1", "fprop"),
        ("1", "wgrad"),
        *((layer, g) for layer in "35" for g in ("dgrad", "fprop", "wgrad")),
    ]
    assert rows["1", "fprop"]["outputs"] == 8 * 32 * 128


def test_run_yaml_says_what_ran(whole: Path) -> None:
    described = RunDir(whole).read_run().data
    assert described["config"]["seed"] == 3
    assert described["recipe"]["optimizer"]["lr"] == 0.05
    assert described["hardware"]["*"]["name"] == "int8_acc20_tree4"
    assert described["data"]["sha256"] == load_dataset("digits").hash
    assert {"fqtsim", "python", "torch", "numpy", "numba"} == set(described["versions"])
    assert TrainConfig.from_plain(described["config"]) == CONFIG


def test_digests_do_not_depend_on_evaluation(whole: Path, tmp_path: Path) -> None:
    result = run(replace(CONFIG, eval_every=100, save_every=100), tmp_path / "run")
    assert result.digest == json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])["digest"]


@pytest.mark.parametrize("recipe", ["fp32", "qat"])
def test_float_baselines_run_and_are_marked(tmp_path: Path, recipe: str) -> None:
    result = run(replace(CONFIG, recipe=recipe, steps=2), tmp_path / "run")
    assert result.digest.endswith(" (platform)")
    assert run(replace(CONFIG, recipe=recipe, steps=2), tmp_path / "run", resume=True).digest == result.digest


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6, 7])
def test_a_run_killed_after_any_line_resumes_exactly(whole: Path, tmp_path: Path, at: int) -> None:
    out = tmp_path / "run"

    def kill(record: loop.StepRecord) -> None:
        if record.step == at:
            raise Killed

    with pytest.raises(Killed):
        run(CONFIG, out, on_step=kill)
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')  # what a kill inside a write leaves
    starts: list[int] = []
    run(CONFIG, out, resume=True, on_start=lambda done, total: starts.append(done))
    assert starts == [(at - 1) // 3 * 3]  # the last multiple of save_every before the kill
    assert folder_content(out) == folder_content(whole)


@pytest.mark.parametrize("victim", ["save", "write_events", "create"])
def test_a_run_killed_while_it_writes_resumes_exactly(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    out = tmp_path / "run"
    owner = Trainer if victim == "save" else RunDir
    genuine = getattr(owner, victim)
    calls = 0

    def dies_the_second_time(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == (1 if victim == "create" else 2):
            if victim == "save":
                (out / ".checkpoint.safetensors.partial").write_bytes(b"half a file")
            if victim == "create":
                out.mkdir()
                (out / ".run.yaml.partial").write_bytes(b"config:")
            raise Killed
        genuine(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, victim, dies_the_second_time)
        with pytest.raises(Killed):
            run(CONFIG, out)
    run(CONFIG, out, resume=True)
    assert folder_content(out) == folder_content(whole)


def test_resuming_a_finished_run_changes_nothing(whole: Path) -> None:
    before = folder_content(whole)
    result = run(CONFIG, whole, resume=True)
    assert folder_content(whole) == before
    assert result.accuracy is not None
    assert not result.interrupted


def command(out: Path, *more: str) -> list[str]:
    arguments = [
        "train", "--model", "mlp", "--data", "digits", "--recipe", "bhq5", "--hardware", "int8_acc20_tree4", "--seed",
        "3", "--steps", "300", "--batch", "32", "--eval-every", "50", "--save-every", "7", "--out", str(out), *more,
    ]  # fmt: skip
    return [sys.executable, "-m", "fqtsim", *arguments]


def wait_for_lines(process: subprocess.Popen[str], metrics: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run never got going"
        time.sleep(0.005)


def test_sigkill_and_ctrl_c_resume_to_the_uninterrupted_digest(tmp_path: Path) -> None:
    env = os.environ | {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    out = tmp_path / "run"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    first = subprocess.Popen(command(out), **pipes)  # type: ignore[call-overload]
    wait_for_lines(first, out / "metrics.jsonl", 20)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = subprocess.Popen([*command(out)[:4], "--out", str(out), "--resume"], **pipes)  # type: ignore[call-overload]
    wait_for_lines(second, out / "metrics.jsonl", (out / "metrics.jsonl").read_bytes().count(b"\n") + 10)
    second.send_signal(signal.SIGINT)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 130, errors
    assert f"interrupted and saved; go on with: fqtsim train --out {out} --resume" in errors
    config = TrainConfig.from_plain(RunDir(out).read_run().data["config"])
    assert run(config, out, resume=True).step == 300
    run(config, tmp_path / "uninterrupted")
    assert folder_content(out) == folder_content(tmp_path / "uninterrupted")


def test_an_existing_folder_needs_resume(whole: Path) -> None:
    with pytest.raises(InputError, match=r"whole: already exists; continue it with --resume, or name another folder"):
        run(CONFIG, whole)


def test_resume_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: no such folder: --resume needs the folder of an earlier run"):
        run(CONFIG, tmp_path / "none", resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "config.seed = 3: a resumed run must not change it, and now it is 4; resume with the same"),
        ({"steps": 9}, "config.steps = 8"),
        ({"hardware": ("int8_acc24_saturate",)}, "config.hardware.0 = int8_acc20_tree4"),
        ({"set_recipe": {"optimizer.lr": "0.1"}}, "config.set_recipe.optimizer.lr = '0.05'"),
        ({"set_hardware": {"random.bits": "8"}}, "config.set_hardware.random.bits: a resumed run must not change"),
    ],
)
def test_resume_names_the_key_that_differs(whole: Path, change: dict[str, object], message: str) -> None:
    before = folder_content(whole)
    with pytest.raises(FileError) as caught:
        run(replace(CONFIG, **change), whole, resume=True)  # type: ignore[arg-type]
    assert str(caught.value).split(":")[0].endswith("run.yaml")
    assert message in str(caught.value)
    assert folder_content(whole) == before


def test_resume_sees_a_hardware_file_that_was_edited(tmp_path: Path) -> None:
    import fqtsim

    file = tmp_path / "mine.yaml"
    file.write_text(
        Path(fqtsim.load_hardware("int8_acc20_tree4").origin).read_text().replace("int8_acc20_tree4", "mine")
    )
    config = replace(CONFIG, hardware=(str(file),), steps=2)
    run(config, tmp_path / "run")
    file.write_text(file.read_text().replace("register: int20", "register: int22"))
    with pytest.raises(FileError, match=r"hardware.\*.datapath.levels.1.register = int20: .* now it is int22"):
        run(config, tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = replace(CONFIG, steps=3)
    run(config, out)
    trainer = build_trainer(resolve(config))
    trainer.save(out / "checkpoint.safetensors")
    with pytest.raises(InputError, match="has no events of its run"):
        run(config, out, resume=True)
    (out / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="not a safetensors file"):
        run(config, out, resume=True)


def test_a_damaged_line_before_the_last_is_an_error(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    folder.metrics.write_text('{"step": 1}\n{"step": 2\n{"step": 3}\n')
    with pytest.raises(FileError, match=r"metrics.jsonl:2: step: must be one JSON object with a step per line"):
        folder.cut_metrics(3)


@pytest.mark.parametrize("step", ['"x"', "null", "true"])
def test_a_step_that_is_no_number_is_an_error(tmp_path: Path, step: str) -> None:
    folder = RunDir(tmp_path)
    folder.metrics.write_text(f'{{"step": {step}}}\n{{"step": 2}}\n')
    with pytest.raises(FileError, match=r"metrics.jsonl:1: step: must be one JSON object with a step per line"):
        folder.cut_metrics(3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  hardware:\n  - int8_acc20_tree4\n", "", "run.yaml:1: config.hardware: is not what"),
        ("  hardware:\n  - int8_acc20_tree4\n", "  hardware: [3]\n", "run.yaml:5: config.hardware = [3]: is not what"),
        ("  seed: 3\n", "  seed: abc\n", "config.seed = abc: is not what a run writes there"),
        ("  steps: 8\n", "  steps: eight\n", "config.steps = eight: is not what a run writes there"),
        ("  batch: 32\n", "  batch: 3.5\n", "config.batch = 3.5: is not what a run writes there"),
        ("  model: mlp\n", "", "config.model: is not what a run writes there"),
        ("  set_hardware: {}\n", "  set_hardware: [a]\n", "config.set_hardware = [a]: is not what a run writes there"),
    ],
)
def test_a_damaged_run_yaml_is_an_error_with_its_line(
    whole: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (whole / "run.yaml").read_text()
    assert text.count(old) == 1
    (tmp_path / "run.yaml").write_text(text.replace(old, new))
    with pytest.raises(FileError) as error:
        RunDir(tmp_path).read_run()
    assert message in str(error.value)


def test_run_yaml_is_checked_for_every_option() -> None:
    assert rundir._CONFIG.keys() == TrainConfig.__dataclass_fields__.keys()


def test_damaged_events_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = replace(CONFIG, steps=3)
    run(config, out)
    content = (out / "checkpoint.safetensors").read_bytes()
    (out / "checkpoint.safetensors").write_bytes(content.replace(b"altered", b"alteref", 1))
    with pytest.raises(InputError, match="the events of its run are damaged; resume from a file that"):
        run(config, out, resume=True)


def test_an_evaluation_that_stops_leaves_the_step_done(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is at the step whose evaluation stopped: its line and its events, once, belong to it."""

    def stops(trainer: Trainer, *_: object) -> float:
        genuine(trainer, *_)  # type: ignore[arg-type]
        raise TrainingStopped("layer 1, activation: NaN")

    genuine = loop.evaluate
    with monkeypatch.context() as patched:
        patched.setattr(loop, "evaluate", stops)
        with pytest.raises(TrainingStopped):
            run(CONFIG, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    expected = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()[:3]]
    del expected[2]["accuracy"]
    assert [json.loads(line) for line in lines] == expected
    run(CONFIG, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "events.json").read_bytes() == (whole / "events.json").read_bytes()


def test_training_that_stops_keeps_the_last_good_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Trainer.step

    def stops(self: Trainer, *args: object) -> float:
        if self.step_index == 4:
            raise TrainingStopped("layer 1, weight, step 4: NaN")
        return genuine(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "step", stops)
    with pytest.raises(TrainingStopped):
        run(CONFIG, tmp_path / "run")
    trainer = build_trainer(resolve(CONFIG))
    trainer.load(tmp_path / "run" / "checkpoint.safetensors")
    assert trainer.step_index == 4
    assert (
        trainer.digest().hex == json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["digest"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "steps = None, epochs = None: exactly one must be given"),
        ({"epochs": 1}, "steps = 8, epochs = 1: exactly one must be given"),
        ({"batch": 2000}, "batch = 2000: must be 1..1437"),
        ({"batch": 0}, "batch = 0: must be at least 1"),
        ({"save_every": 0}, "save_every = 0: must be at least 1"),
        ({"model": "vgg"}, "model = vgg: must be one of"),
        ({"recipe": "bhq9"}, "recipe = bhq9"),
        ({"hardware": ("int8_acc20_tree5",)}, "did you mean int8_acc20_tree4?"),
        ({"hardware": ()}, "hardware: none given"),
        ({"hardware": ("int8_acc20_tree4", "int8_acc24_saturate")}, "must be PATTERN=NAME where several are given"),
        ({"hardware": ("a=int8_acc20_tree4", "a=int8_acc24_saturate")}, "pattern a is given twice"),
        ({"hardware": ("1=int8_acc20_tree4",)}, "no pattern of '1' matches layer '3'"),
    ],
)
def test_bad_configurations_are_named_and_leave_no_folder(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        run(replace(CONFIG, **change), tmp_path / "run")  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_hardware_by_layer_reaches_its_layers(tmp_path: Path) -> None:
    names = ("5=int8_acc24_saturate", "*=int8_acc20_tree4")
    trainer = build_trainer(resolve(replace(CONFIG, hardware=names)))
    assert {layer: hw.name for layer, hw in trainer.net.hardware.items()} == {
        "1": "int8_acc20_tree4", "3": "int8_acc20_tree4", "5": "int8_acc24_saturate",
    }  # fmt: skip


def test_merge_events_adds_counts_and_widens_extremes() -> None:
    row = {"layer": "a", "gemm": "fprop", "m": 4, "n": 2, "k": 3, "outputs": 8, "altered": 1, "out_of_range": 1,
           "transient": 0, "minimum": -5, "maximum": 3, "bits_needed": 4}  # fmt: skip
    later = row | {"m": 2, "outputs": 4, "altered": 2, "minimum": -2, "maximum": 90, "bits_needed": 8}
    other = row | {"layer": "b"}
    assert merge_events([row, other], [later]) == [
        row | {"m": 2, "outputs": 12, "altered": 3, "out_of_range": 2, "maximum": 90, "bits_needed": 8}, other,
    ]  # fmt: skip
    assert merge_events([], [later]) == [later]


def test_wilson_is_the_published_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
                                    (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert [round(end, 4) for end in wilson(right, total)] == [low, high]


def test_paired_difference_sees_only_images_on_which_the_two_differ() -> None:
    ours = np.array([True] * 90 + [False] * 10)
    same, width = paired_difference(ours, ours)
    assert same == 0
    assert 0 < width < 0.03
    baseline = ours.copy()
    baseline[:6], baseline[90:92] = False, True
    difference, wider = paired_difference(ours, baseline)
    assert difference == pytest.approx(4 / 102)
    assert wider > width
    assert paired_difference(baseline, ours)[0] == -difference
