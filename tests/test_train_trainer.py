"""Trainer: the update rule, schedules, stopping without a trace, exact resume, and every refusal's whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fqtsim
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES as P
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.train.module import FQTModule
from fqtsim.train.optimizer import Sgd, as_optimizer
from fqtsim.train.schedule import Rate, as_schedule
from fqtsim.train.trainer import Trainer

HARDWARE = "int8_acc32_wrap"


def network(seed: int = 1, recipe: str = "psq6", width: int = 4, hardware: str = HARDWARE) -> FQTModule:
    model = nn.Sequential(
        nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.1), nn.Linear(width, 3),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape)).astype(np.float32)))
    return fqtsim.fully_quantize(model, recipe, hardware, seed=seed)


def batch(step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(step)
    x = rng.standard_normal((6, 2, 5, 5)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(rng.integers(0, 3, 6))


def trainer(net: FQTModule | None = None, **changes: Any) -> Trainer:
    rule = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3} | changes
    return Trainer(net or network(), rule)


def test_step_lowers_the_loss_and_counts() -> None:
    tr = trainer()
    losses = [tr.step(*batch()) for _ in range(20)]
    assert tr.step_index == 20
    assert all(isinstance(loss, float) for loss in losses)
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is None for parameter in tr.net.parameters())


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torch_within_rounding(momentum: float, nesterov: bool) -> None:
    if nesterov and not momentum:
        return
    rule = as_optimizer({"name": "sgd", "lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.01})
    rng = np.random.default_rng(0)
    w = rng.standard_normal(50).astype(np.float32)
    theirs = torch.from_numpy(w.astype(np.float64)).requires_grad_()
    optimizer = torch.optim.SGD([theirs], 0.1, momentum, weight_decay=0.01, nesterov=nesterov)
    sgd, ours = Sgd(rule, set()), {"w": w}
    sgd.start(ours)
    for _ in range(5):
        g = rng.standard_normal(50).astype(np.float32)
        theirs.grad = torch.from_numpy(g.astype(np.float64))
        optimizer.step()
        ours, sgd.momentum = sgd.update(ours, {"w": g}, np.float32(0.1), P)
    np.testing.assert_allclose(ours["w"], theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_sgd_is_the_written_sequence_of_float32_operations() -> None:
    rng = np.random.default_rng(3)
    w, g, v = (rng.standard_normal(1000).astype(np.float32) for _ in range(3))
    f = np.float32
    sgd = Sgd(as_optimizer({"name": "sgd", "lr": 1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}), set())
    sgd.momentum = {"w": v}
    new, momentum = sgd.update({"w": w}, {"w": g}, f(0.3), P)
    decayed = g + f(1e-4) * w
    moved = f(0.9) * v + decayed
    assert np.array_equal(momentum["w"], moved)
    assert np.array_equal(new["w"], w - f(0.3) * (decayed + f(0.9) * moved))


def test_norm_parameters_may_be_exempt_from_decay() -> None:
    assert trainer(decay_norm=False).sgd.exempt == {"1.weight", "1.bias"}
    assert trainer(decay_norm=True).sgd.exempt == set()
    # Plain SGD with decay 1 and rate 1 removes what it decays, and keeps what is exempt but for its gradient.
    ends = []
    for decay_norm in (False, True):
        tr = trainer(lr=1.0, momentum=0.0, weight_decay=1.0, decay_norm=decay_norm)
        before = tr.net.get_parameter("1.weight").clone()
        tr.step(*batch())
        ends.append(tr.net.get_parameter("1.weight") - before)
    difference = (ends[0] - ends[1]) / before
    torch.testing.assert_close(difference, torch.ones(4), rtol=1e-4, atol=1e-4)


def rates(schedule: dict[str, Any], steps: int, **more: Any) -> list[float]:
    rate = Rate(0.4, as_schedule(schedule), **more)
    return [float(rate.at(step, P)) for step in range(steps)]


def test_schedules() -> None:
    assert rates({"name": "constant"}, 3) == [float(np.float32(0.4))] * 3
    np.testing.assert_allclose(
        rates({"name": "step", "milestones": [2, 3], "factor": 0.1}, 5), [0.4, 0.4, 0.04, 0.004, 0.004], rtol=1e-6
    )
    cosine = [0.2 * (1 + np.cos(np.pi * t / 8)) for t in range(8)]
    np.testing.assert_allclose(rates({"name": "cosine", "steps": 8}, 10), [*cosine, 0, 0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(rates({"name": "cosine"}, 8, total=8), cosine, rtol=1e-6)
    per_epoch = rates({"name": "cosine"}, 8, total=8, steps_per_epoch=4)
    np.testing.assert_allclose(per_epoch, [cosine[0]] * 4 + [cosine[4]] * 4, rtol=1e-6)
    np.testing.assert_allclose(
        rates({"name": "constant", "warmup_steps": 4}, 6), [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6
    )


def test_cosine_needs_a_length() -> None:
    with pytest.raises(InputError) as caught:
        Trainer(network())
    assert str(caught.value) == (
        "schedule.steps: a cosine schedule needs the number of steps; add steps to the schedule, or give total_steps"
    )
    tr = Trainer(network(), total_steps=10)
    assert tr.learning_rate == pytest.approx(0.1)
    assert tr.sgd.settings.weight_decay == 1e-4


@pytest.mark.parametrize(
    ("optimizer", "schedule", "message"),
    [
        ({"name": "sgd", "lr": 0.1, "momentun": 0.9}, None, "optimizer.momentun: is not a key; did you mean momentum?"),
        ({"name": "adam", "lr": 0.1}, None, "optimizer.name: must be sgd; write sgd"),
        ({"name": "sgd"}, None, "optimizer.lr: is required; add lr: 0.1"),
        ({"name": "sgd", "lr": 0.1, "nesterov": True}, None,
         "optimizer.nesterov: does nothing without momentum; set nesterov: false, or a momentum"),
        ({"name": "sgd", "lr": 0.1}, {"name": "step", "milestones": [5]},
         "schedule.factor: is required; add factor: 0.1"),
    ],
)  # fmt: skip
def test_refuses_settings(optimizer: dict[str, Any], schedule: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Trainer(network(), optimizer, schedule)
    assert str(caught.value) == message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_batch_stops_the_step_and_leaves_no_trace(bad: float) -> None:
    tr = trainer()
    tr.step(*batch())
    before = tr.digest()
    counts = int(tr.net.get_buffer("1.num_batches_tracked"))
    x, labels = batch(1)
    x[2, 1, 0, 0] = bad
    with pytest.raises(TrainingStopped, match=r"^step 1: layer '0', activation: "):
        tr.step(x, labels)
    assert tr.digest() == before
    assert int(tr.net.get_buffer("1.num_batches_tracked")) == counts
    assert tr.step_index == 1
    # The run goes on as if the bad batch had never been.
    clean = trainer()
    for step in range(2):
        clean.step(*batch(step))
    tr.step(*batch(1))
    assert tr.digest() == clean.digest()


def test_a_bad_gradient_or_update_stops_the_step() -> None:
    tr = trainer(lr=1e4, weight_decay=0.0)
    tr.sgd.momentum["6.weight"][:] = np.float32(3e38)
    before = tr.digest()
    with pytest.raises(TrainingStopped) as caught:
        tr.step(*batch())
    assert str(caught.value) == "step 0: the new 6.weight: NaN or infinity; lower the learning rate"
    assert tr.digest() == before


def test_statistics_move_back_after_a_failed_backward() -> None:
    tr = trainer()
    before = tr.digest()

    def fail(layer: str, gemm: str, *_: Any) -> None:
        if gemm == "wgrad":
            raise KeyboardInterrupt

    tr.net.observers.append(fail)
    with pytest.raises(KeyboardInterrupt):
        tr.step(*batch())
    assert tr.digest() == before
    tr.net.observers.clear()
    tr.step(*batch())
    clean = trainer()
    clean.step(*batch())
    assert tr.digest() == clean.digest()


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_resume_is_exact(tmp_path: Path, momentum: float) -> None:
    whole, first = trainer(momentum=momentum), trainer(momentum=momentum)
    for step in range(4):
        whole.step(*batch(step))
    for step in range(2):
        first.step(*batch(step))
    first.save(tmp_path / "state.safetensors")
    second = trainer(momentum=momentum)
    second.load(tmp_path / "state.safetensors")
    assert second.digest() == first.digest()
    for step in range(2, 4):
        second.step(*batch(step))
    assert second.step_index == 4
    assert second.digest() == whole.digest()
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def refusal(tr: Trainer, path: Path) -> str:
    before = tr.digest()
    with pytest.raises(InputError) as caught:
        tr.load(path)
    assert tr.digest() == before
    return str(caught.value)


def test_load_refuses_another_run(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    saved = trainer()
    saved.save(path)
    assert refusal(trainer(network(seed=2)), path) == (f"{path}: seed = 1: this run has 2; resume with the same seed")
    for key, other in (
        ("recipe", trainer(network(recipe="psq5"))),
        ("hardware", trainer(network(hardware="int8_acc24_saturate"))),
        ("update", trainer(lr=0.2)),
    ):
        message = refusal(other, path)
        assert message.startswith(f"{path}: {key} = ")
        assert message.endswith(f"; resume with the same {key}")
    assert refusal(trainer(network(width=5)), path) == (
        f"{path}: tensor '0.bias' is torch.float32 (4,), not torch.float32 (5,); load it into the network that wrote it"
    )
    assert refusal(trainer(), tmp_path / "absent") == (
        f"{tmp_path / 'absent'}: no such file; give a file that Trainer.save wrote"
    )


def test_load_refuses_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    tr = trainer()
    tr.save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert refusal(trainer(), path) == (
        f"{path}: the tensors do not have the digest it states; the file is damaged, use another"
    )
    path.write_bytes(b"text")
    assert refusal(trainer(), path).startswith(f"{path}: not a safetensors file (")
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(1)}, path)
    assert refusal(trainer(), path) == f"{path}: not a training state; give a file that Trainer.save wrote"


@pytest.mark.parametrize(
    ("old", "new"), [(b'"digest"', b'"digesu"'), (b'"step":"0"', b'"stop":"0"'), (b'"step":"0"', b'"step":"x"')]
)
def test_load_refuses_damaged_metadata(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "state.safetensors"
    tr = trainer()
    tr.save(path)
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    assert refusal(trainer(), path) == f"{path}: does not state its step and digest; the file is damaged, use another"


def test_save_names_the_file_that_it_cannot_write(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "state.safetensors"
    with pytest.raises(InputError, match=r"\); check the folder and the space on its disk$") as error:
        trainer().save(path)
    assert str(error.value).startswith(f"{path}: cannot be written (")


def test_digest_marks_the_platform() -> None:
    assert not trainer().digest().platform
    assert trainer(network(recipe="qat")).digest().platform
    assert str(trainer(network(recipe="fp32")).digest()).endswith(" (platform)")


def test_bad_labels_leave_no_trace() -> None:
    tr = trainer()
    before = tr.digest()
    with pytest.raises(InputError, match=r"^label = 3: must be 0\.\.2"):
        tr.step(batch()[0], torch.full((6,), 3))
    assert tr.digest() == before
    tr.step(*batch())
