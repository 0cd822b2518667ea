"""Recorded steps: replays give what kernels one by one give, and whatever a step depends on is another recording."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels then run on CPU tensors

import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recorded_steps import DATA, SATURATE, TREE, WRAP, Recorder, checked, device, outcome, train, train_once, trainer_of

from fqtsim.backends.device import DeviceEmulator, DeviceNative
from fqtsim.data.batches import training_batch
from fqtsim.errors import BackendRefused, InputError, TrainingStopped
from fqtsim.hw.load import load_hardware
from fqtsim.train import on_device
from fqtsim.train.checks import CheckFailed


@pytest.mark.parametrize(
    ("model", "recipe", "hardware"),
    [("mlp", "bhq5", WRAP), ("dropout", "psq5", WRAP), ("dropout", "bhq5", SATURATE), ("cnn", "ptq8", TREE)],
)
def test_replays_are_the_steps_they_were_recorded_from(model: str, recipe: str, hardware: str) -> None:
    sizes = [8, 8, 8, 5, 8, 5, 5, 8]
    recorder = Recorder()
    ours = trainer_of(model, recipe, hardware, device(DeviceEmulator, recorder))
    theirs = trainer_of(model, recipe, hardware, "emulator")
    assert train(ours, sizes) == train(theirs, sizes)
    assert outcome(ours) == outcome(theirs)
    # The second step of each of two shapes is recorded and compared with a replay; two more of each are replays.
    assert (recorder.recorded, recorder.replayed) == (2, 2 + 4)
    assert ours.replayed_steps == 4
    ours.net.reset_report()
    theirs.net.reset_report()
    assert train(ours, [8]) == train(theirs, [8])
    assert outcome(ours)[:3] == outcome(theirs)[:3]
    assert recorder.replayed == 7


def test_checked_steps_are_replayed_and_a_wrong_one_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, theirs = Recorder(), trainer_of("dropout", "psq5", WRAP, "emulator")
    ours = trainer_of("dropout", "psq5", WRAP, device(DeviceNative, recorder))
    checker, other = checked(ours, "freivalds"), checked(theirs, "freivalds")
    sizes = [8, 8, 8, 5, 8]
    assert train(ours, sizes, checker) == train(theirs, sizes, other)
    assert outcome(ours) == outcome(theirs)
    assert (ours.replayed_steps, recorder.recorded) == (2, 1)
    assert checker.report() == other.report()
    assert checker.counts.products == checker.counts.gemms == 5 * (2 + 3)
    # An unchecked step is another program, which goes on from the same state.
    assert train(ours, [8, 8, 8]) == train(theirs, [8, 8, 8])
    assert (ours.replayed_steps, recorder.recorded) == (3, 2)
    honest = on_device.convolution.conv_wgrad

    def wrong(x: torch.Tensor, *rest: Any, **settings: Any) -> torch.Tensor:
        x = x.clone()
        x[2, 0, 4, 4] ^= 1
        return honest(x, *rest, **settings)

    monkeypatch.setattr(on_device.convolution, "conv_wgrad", wrong)
    train(ours, [8])
    # Seen by the look of whoever looks, in a step that was recorded while the kernel was right.
    with pytest.raises(CheckFailed, match=r"step 10, layer 'conv', wgrad, "):
        train(ours, [8], checker)

    def wrong_first() -> None:
        with checker.watching():
            train_once(ours)
            monkeypatch.setattr(on_device.convolution, "conv_wgrad", honest)
            train_once(ours)

    with pytest.raises(CheckFailed, match=r"step 11, layer 'conv', wgrad, "):
        wrong_first()


@pytest.mark.parametrize("asked", ["sample:0.5", "freivalds:0.5", "freivalds,sample:0.1"])
def test_a_check_of_a_share_is_another_one_every_step(asked: str) -> None:
    trainer = trainer_of("mlp", "psq5", WRAP, device(DeviceNative, Recorder()))
    train(trainer, [8, 8, 8], checked(trainer, asked))
    assert not trainer.replayed_steps


def test_what_stops_a_replayed_step_is_named_and_leaves_the_state(tmp_path: Any) -> None:
    recorder = Recorder()
    trainer = trainer_of("dropout", "psq5", WRAP, device(DeviceNative, recorder))
    train(trainer, [8, 8, 8])
    before, state = trainer.digest().hex, trainer.step_index
    x, y = training_batch(DATA, 0, trainer.step_index, 8)
    x[3, 0, 2, 2] = np.nan
    with pytest.raises(TrainingStopped, match=r"step 3: layer 'conv', activation: NaN or infinity"):
        trainer.step(torch.from_numpy(x), torch.from_numpy(y))
    with pytest.raises(InputError, match=r"label = 10"):
        trainer.step(torch.from_numpy(np.zeros_like(x)), torch.full((8,), 10))
    assert (trainer.digest().hex, trainer.step_index) == (before, state)
    assert recorder.replayed == 3
    trainer.save(tmp_path / "state.safetensors")
    train(trainer, [8])
    after = trainer.digest().hex
    trainer.load(tmp_path / "state.safetensors")
    train(trainer, [8])
    assert trainer.digest().hex == after
    assert recorder.recorded == 1
    expected = trainer_of("dropout", "psq5", WRAP, "emulator")
    train(expected, [8, 8, 8, 8])
    assert expected.digest().hex == after


def test_a_replay_of_other_bits_is_refused() -> None:
    def wrong(program: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        outcome, replay = Recorder()(program)

        def spoiled() -> None:
            replay()
            bits = next(iter(outcome.state.parameters.values())).view(torch.int32)
            bits.view(-1)[0] ^= 1

        return outcome, spoiled

    trainer = trainer_of("mlp", "psq5", WRAP, device(DeviceNative, wrong))
    train(trainer, [8])
    before = trainer.digest().hex
    with pytest.raises(BackendRefused, match="a replayed step gives other bits"):
        train(trainer, [8])
    assert trainer.digest().hex == before


def test_a_device_that_cannot_record_says_so_and_goes_on() -> None:
    def none(program: Callable[[], Any]) -> Any:
        program()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    trainer = trainer_of("dropout", "bhq5", WRAP, device(DeviceNative, none))
    with pytest.warns(UserWarning, match=r"kernel by kernel.*not permitted when stream is capturing\)$"):
        train(trainer, [8, 8])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(trainer, [8, 8])
    other = trainer_of("dropout", "bhq5", WRAP, device(DeviceNative, none))
    train(other, [8])
    with (
        pytest.raises(TrainingStopped, match="step 1: layer 'conv'"),
        pytest.warns(UserWarning, match="kernel by kernel"),
    ):
        other.step(torch.full((8, 1, 8, 8), float("inf")), torch.zeros(8, dtype=torch.int64))
    expected = trainer_of("dropout", "bhq5", WRAP, "emulator")
    train(expected, [8] * 4)
    assert outcome(trainer) == outcome(expected)


def test_a_step_that_does_not_fit_beside_its_checks_goes_on_without_a_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder, theirs = Recorder(), trainer_of("dropout", "psq5", WRAP, "emulator")
    ours = trainer_of("dropout", "psq5", WRAP, device(DeviceNative, recorder))
    checker, compute = checked(ours, "freivalds"), ours.next_state

    def too_large(*args: Any) -> Any:
        compute(*args)
        raise torch.OutOfMemoryError("CUDA out of memory")

    train(ours, [8], checker)
    monkeypatch.setattr(ours, "next_state", lambda *args: too_large(*args) if len(args) > 3 else compute(*args))
    with pytest.warns(UserWarning, match=r"recording one failed \(CUDA out of memory\)"):
        train(ours, [8, 8], checker)
    train(theirs, [8, 8, 8])
    assert outcome(ours) == outcome(theirs)
    assert (recorder.recorded, checker.counts.products) == (0, 3 * 5)


def test_observed_and_changed_steps_are_not_replayed() -> None:
    recorder = Recorder()
    trainer = trainer_of("mlp", "psq5", WRAP, device(DeviceNative, recorder))
    train(trainer, [8, 8, 8])
    assert recorder.replayed == 2
    trainer.net.watchers.append(lambda product: None)
    train(trainer, [8])
    trainer.net.watchers.clear()
    assert recorder.replayed == 2
    next(iter(trainer.net.parameters())).requires_grad_(False)
    train(trainer, [8])  # another program
    assert recorder.replayed == 2


def test_a_changed_layer_is_another_program() -> None:
    recorder = Recorder()
    ours, theirs = (trainer_of("dropout", "psq5", WRAP, b) for b in (device(DeviceNative, recorder), "emulator"))
    for trainer in (ours, theirs):
        train(trainer, [8, 8, 8])
        modules = dict(trainer.net.named_modules())
        modules["drop"].rate = 0.5  # type: ignore[assignment]
        train(trainer, [8])
        modules["norm"].eval()
        train(trainer, [8, 8])
        modules["last"].activation_range = (0.0, 1.0)  # type: ignore[assignment]
        train(trainer, [8])
    assert outcome(ours) == outcome(theirs)
    # The shape of steps 3 and 4 is new each time; the sixth is recorded.
    assert (recorder.recorded, recorder.replayed) == (2, 3)


@pytest.mark.parametrize("change", ["smoothing", "hardware", "a number of numpy", "a list"])
def test_whatever_a_step_depends_on_is_another_program(change: str) -> None:
    recorder = Recorder()
    trainers = [trainer_of("dropout", "psq5", WRAP, b) for b in (device(DeviceEmulator, recorder), "emulator")]
    for trainer in trainers:
        train(trainer, [8, 8, 8])
        modules: dict[str, Any] = dict(trainer.net.named_modules())
        if change == "smoothing":
            trainer.label_smoothing = 0.1
        elif change == "hardware":
            modules["last"].hardware = load_hardware("int8_acc12_saturate")
        elif change == "a list":
            modules["last"].activation_range = [0.0, 1.0]
        else:
            modules["drop"].rate = np.float32(0.5)
        train(trainer, [8, 8])
    assert outcome(trainers[0]) == outcome(trainers[1])
    assert recorder.recorded == 2


def test_hooks_and_bad_batches_are_not_replayed() -> None:
    trainer = trainer_of("dropout", "psq5", WRAP, device(DeviceNative, Recorder()))
    train(trainer, [8, 8, 8])
    called: list[str] = []
    module = next(m for m in trainer.net.modules() if hasattr(m, "activation_clamps"))
    handle = module.register_forward_hook(lambda *_: called.append("layer"))
    train(trainer, [8])
    handle.remove()
    handle = next(trainer.net.parameters()).register_hook(lambda g: called.append("gradient"))
    train(trainer, [8])
    handle.remove()
    assert called == ["layer", "gradient"]
    assert trainer.replayed_steps == 1
    with pytest.raises(InputError, match=r"input of torch\.float64"):
        trainer.step(torch.zeros(8, 1, 8, 8, dtype=torch.float64), torch.zeros(8, dtype=torch.int64))
    for _ in range(2):  # a shape of labels whose second step would be recorded
        with pytest.raises(InputError, match="labels of shape"):
            trainer.step(torch.zeros(8, 1, 8, 8), torch.zeros(7, dtype=torch.int64))


def test_what_an_evaluation_left_comes_before_a_replay() -> None:
    trainers = [trainer_of("mlp", "ptq8", WRAP, b) for b in (device(DeviceNative, Recorder()), "emulator")]
    reports = []
    for trainer in trainers:
        train(trainer, [8, 8, 8])
        trainer.net.eval()
        trainer.net(torch.from_numpy(DATA.test_x[:18]))
        trainer.net.train()
        train(trainer, [8])
        reports.append(trainer.net.report())
    assert reports[0] == reports[1]
    assert reports[0][0]["m"] == 8


def test_a_fault_of_a_program_that_failed_stops_nothing_later() -> None:
    trainer = trainer_of("mlp", "psq5", WRAP, device(DeviceNative, Recorder()))
    train(trainer, [8])
    with pytest.raises(InputError, match="label = 10"):
        trainer.step(torch.full((8, 1, 8, 8), float("nan")), torch.full((8,), 10))
    trainer.net.eval()
    assert torch.isfinite(trainer.net(torch.from_numpy(DATA.test_x[:4]))).all()


def test_no_circle_keeps_the_memory_of_a_recording() -> None:
    once = device(DeviceNative, lambda program: (program(), lambda: None))  # as a graph, it forgets the program
    trainer = trainer_of("mlp", "psq5", WRAP, once)
    train(trainer, [8, 8])
    steps = weakref.ref(trainer._recorded)  # type: ignore[arg-type]
    gc.collect()
    gc.disable()
    try:
        del trainer
        assert steps() is None
    finally:
        gc.enable()
