"""Ranges of steps before: replayed in plain Python, resumed, evaluated, refused (docs/quantizers.md, Q1.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fqtsim
from fqtsim.analysis.tape import gemm_layers
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.backends.torch_primitives import TorchPrimitives
from fqtsim.cli import main
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.quantizers.base import Quantizer
from fqtsim.recipe.load import load_recipe
from fqtsim.train.moving_range import NONE_YET, from_steps_before
from fqtsim.train.weights import read_weights

F = np.float32
BUFFERS = {"activation_hindsight", "grad_for_wgrad_hindsight", "grad_for_dgrad_hindsight"}


def network(recipe: Any = "ptq8_hindsight") -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    return fqtsim.fully_quantize(model, recipe, "int8_acc32_wrap")


def trainer(net: Any) -> fqtsim.Trainer:
    return fqtsim.Trainer(net, {"name": "sgd", "lr": 0.1, "momentum": 0.9})


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(step)
    x = rng.normal(size=(16, 6)) * 3.0 ** rng.integers(-2, 3)
    return torch.from_numpy(x.astype(F)), torch.from_numpy(rng.integers(0, 4, 16))


def test_the_ranges_are_those_of_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    met: dict[int, list[tuple[Any, Any, int]]] = {}
    original = Quantizer.quantize

    def watched(self: Any, x: Any, *rest: Any) -> Any:
        tensor = original(self, x, *rest)
        if rest[-1] is not None:
            met.setdefault(rest[1], []).append((x, rest[-1], tensor.clamps))
        return tensor

    monkeypatch.setattr(Quantizer, "quantize", watched)
    one = trainer(network())
    for step in range(12):
        one.step(*batch(step))
    assert len(met) == 5  # two layers, three ports, and no dgrad of the first layer
    clamped = 0
    for tensors in met.values():
        assert len(tensors) == 12
        low = high = None
        for x, used, clamps in tensors:
            own = F(x.min()), F(x.max())
            low, high = own if low is None else (low, high)
            assert used == (float(low), float(high))
            outside = np.count_nonzero((x < low) | (x > high))
            assert clamps <= outside
            clamped += clamps
            low, high = (F(r + F(F(0.1) * F(end - r))) for r, end in zip((low, high), own, strict=True))
    assert clamped > 100


def test_they_are_state_and_a_resumed_run_has_them(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    straight = trainer(network())
    for step in range(6):
        straight.step(*batch(step))
        if step == 2:
            straight.save(path)
    resumed = trainer(network())
    resumed.load(path)
    for step in range(3, 6):
        resumed.step(*batch(step))
    assert resumed.digest().hex == straight.digest().hex
    names = {name.rpartition(".")[2] for name, _ in straight.net.named_buffers()}
    assert names == BUFFERS
    assert not dict(network("ptq8").named_buffers())
    weights = read_weights(path)
    assert {name.rpartition(".")[2] for name in weights.ranges} == BUFFERS
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        weights.copy_into(model)
    plain, hindsight = network("ptq8"), network()
    weights.copy_ranges_into(plain)
    weights.copy_ranges_into(hindsight)
    before = trainer(network())
    before.load(path)
    assert {n: b.tolist() for n, b in hindsight.named_buffers()} == {
        n: b.tolist() for n, b in before.net.named_buffers()
    }


def test_evaluation_and_a_step_that_stops_leave_them() -> None:
    one = trainer(network())
    one.step(*batch(0))
    before = {name: buffer.tolist() for name, buffer in one.net.named_buffers()}
    assert [b for name, b in before.items() if name != "0.grad_for_dgrad_hindsight"].count(list(NONE_YET)) == 0
    assert before["0.grad_for_dgrad_hindsight"] == list(NONE_YET)
    one.net.eval()
    with torch.no_grad():
        wide = one.net(batch(1)[0] * 100)
    low, high = before["0.activation_hindsight"]
    assert gemm_layers(one.net)[0].activation_range_in_use == (low, high)
    with torch.no_grad():
        assert (wide == one.net((batch(1)[0] * 100).clamp(low, high))).all()  # clamped to the range of steps before
    one.net.train()
    x, labels = batch(1)
    x[3, 2] = np.nan
    with pytest.raises(TrainingStopped, match="step 1: layer '0', activation: row 0, element 20 = nan"):
        one.step(x, labels)
    assert {name: buffer.tolist() for name, buffer in one.net.named_buffers()} == before


def test_eval_uses_those_of_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "mlp", "--data", "digits", "--recipe", "ptq8_hindsight", "--hardware", "int8_acc32_wrap"]
    assert main(["train", *words, "--steps", "12", "--out", str(tmp_path / "run")]) == 0
    trained = capsys.readouterr().out
    assert main(["eval", *words, "--checkpoint", str(tmp_path / "run" / "checkpoint.safetensors")]) == 0
    out, err = capsys.readouterr()
    assert "took 9 hindsight ranges from it" in err
    assert "ranges     hindsight: those that training left in the checkpoint" in out
    assert "the accuracy does not depend on the batch" in out
    accuracy = next(line for line in trained.splitlines() if line.startswith("accuracy"))
    assert accuracy in out


def test_luq_takes_them_too() -> None:
    recipe = load_recipe("luq4", {"grad_for_dgrad.range": "hindsight", "grad_for_wgrad.range": "hindsight"})
    one = trainer(network(recipe))
    losses = [one.step(*batch(0)) for _ in range(30)]
    assert losses[-1] < 0.75 * losses[0]


def test_what_has_no_steps_before_is_refused() -> None:
    with pytest.raises(InputError, match="range = 'hindsight': must be one of current, mean_of_rows"):
        fqtsim.quantizer("ptq", 8, "ties_to_even", range="hindsight")
    with pytest.raises(InputError, match="range = hindsight: moving ranges have no form on a device"):
        from_steps_before(torch.tensor(NONE_YET), torch.ones(3), True, TorchPrimitives("cpu"))
    with pytest.raises(TrainingStopped, match="their distance is beyond float32"):
        from_steps_before(torch.tensor([-3e38, -2e38]), np.float32([3e38]), True, DEFAULT_PRIMITIVES)
