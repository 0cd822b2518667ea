"""Weights from files, and training that starts from them (`train --from`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from short_run import ARGUMENTS, CONFIG, saved, trained_in

from fqtsim.cli import main
from fqtsim.data import load_dataset
from fqtsim.errors import FileError, InputError
from fqtsim.models import build_model
from fqtsim.train.config import TrainConfig, build_trainer, resolve
from fqtsim.train.loop import run
from fqtsim.train.rundir import RunDir
from fqtsim.train.weights import read_weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    return trained_in(tmp_path_factory.mktemp("runs") / "run")


def ordinary_model(seed: int = 5) -> torch.nn.Module:
    """A float network with running statistics that are not those of a fresh one."""
    model = build_model("cnn", load_dataset("digits").info, seed)
    with torch.no_grad():
        model.bn1.running_mean.fill_(0.25)
    return model


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
