"""Recorded steps: replays give what kernels one by one give, and nothing in a step waits for the device.

A recorder that runs the program again stands in for a CUDA graph: it keeps the promise of Recorder, no more.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels then run on CPU tensors

import gc
import warnings
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fqtsim
from fqtsim.backends.device import DeviceEmulator, DeviceNative
from fqtsim.backends.torch_primitives import TorchPrimitives
from fqtsim.data import load_dataset
from fqtsim.data.batches import training_batch
from fqtsim.errors import BackendRefused, InputError, TrainingStopped
from fqtsim.hw.load import load_hardware
from fqtsim.kernels.gpu.launch import has_triton, through_interpreter
from fqtsim.models import build_model
from fqtsim.train import on_device
from fqtsim.train.check_report import parse_checks
from fqtsim.train.checks import Checker, CheckFailed

DATA = load_dataset("digits")
WRAP, SATURATE, TREE = "int8_acc32_wrap", "int8_acc24_saturate", "int8_acc20_tree4"
RULE = dict(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
COSINE = dict(name="cosine")


class Recorder:
    """Runs a program anew for each replay and copies what it gives to where the recording left it."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, program: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.recorded += 1
        outcome = program()
        places = outcome.tensors()
        for place in places:
            place.fill_(77)  # a graph computes nothing while it is captured

        def replay() -> None:
            self.replayed += 1
            for place, value in zip(places, program().tensors(), strict=True):
                place.copy_(value)

        return outcome, replay


def device(kind: type[DeviceNative] | type[DeviceEmulator], recorder: Any) -> Any:
    backend = kind("cpu")
    backend.recorder = recorder
    return backend


class WithDropout(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(1, 6, 3, stride=2), torch.nn.BatchNorm2d(6)
        self.drop, self.last = torch.nn.Dropout(0.3), torch.nn.Linear(6 * 9, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.flatten(self.drop(torch.relu(self.norm(self.conv(x)))), 1))


def trainer_of(model: str, recipe: str, hardware: str, backend: Any) -> fqtsim.Trainer:
    torch.manual_seed(0)
    module = WithDropout() if model == "dropout" else build_model(model, DATA.info, 0)
    net = fqtsim.fully_quantize(module, recipe, hardware, backend, seed=2)
    return fqtsim.Trainer(net, RULE, COSINE, total_steps=9)


def train(trainer: fqtsim.Trainer, batches: list[int], checker: Checker | None = None) -> list[float]:
    losses = []
    for size in batches:
        x, y = training_batch(DATA, 0, trainer.step_index, size)
        with nullcontext() if checker is None else checker.watching():
            losses.append(trainer.step(torch.from_numpy(x), torch.from_numpy(y)))
    return losses


def outcome(trainer: fqtsim.Trainer) -> tuple[Any, ...]:
    clamps = [layer.activation_clamps for layer in trainer.net.modules() if hasattr(layer, "activation_clamps")]
    return trainer.digest().hex, trainer.net.report(), trainer.net.ties, clamps


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


def train_once(trainer: fqtsim.Trainer) -> None:
    x, y = training_batch(DATA, 0, trainer.step_index, 8)
    trainer.step(torch.from_numpy(x), torch.from_numpy(y))


def checked(trainer: fqtsim.Trainer, asked: str) -> Checker:
    return Checker(trainer.net, parse_checks(asked))


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


# --- nothing waits for the device ------------------------------------------------------------------------------------


class Log(TorchDispatchMode):
    """Every operation with the shapes of its tensors and the values of all else."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls.append(f"{function} {self._shown(args)} {self._shown(tuple(kwargs.items()))}")
        return function(*args, **kwargs)

    def _shown(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.stride(), value.dtype
        return tuple(map(self._shown, value)) if isinstance(value, tuple | list) else repr(value)


class Unreadable(DeviceEmulator):
    """A device whose numbers nobody can read: they are fake tensors, and reading one is an error."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.primitives = TorchPrimitives("cpu")
        self.primitives._proven = True


@pytest.mark.parametrize(
    ("model", "recipe", "hardware"),
    [
        ("resnet8", "bhq5", WRAP), ("dropout", "psq5", WRAP), ("cnn", "bhq5", SATURATE), ("mlp", "ptq8", TREE),
        ("cnn", "psq5", "int8_acc16_saturate"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("asked", ["", "freivalds"])
def test_no_number_of_a_step_is_read_and_every_step_is_the_same_program(
    model: str, recipe: str, hardware: str, asked: str
) -> None:
    """By torch operations. A CUDA graph of a step with a number of the host in it would repeat that number for ever."""
    trainer = trainer_of(model, recipe, hardware, DeviceEmulator("cpu"))
    logs = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        made: dict[int, Any] = {}
        for module in trainer.net.modules():
            for own in (module._parameters, module._buffers):
                for name, x in own.items():
                    if x is None:
                        continue
                    fake = torch.empty(x.shape, dtype=x.dtype)
                    like = torch.nn.Parameter(fake) if isinstance(x, torch.nn.Parameter) else fake
                    own[name] = made.setdefault(id(x), like)  # type: ignore[assignment]
        trainer.net._run.backend = Unreadable()
        trainer.sgd.start(trainer._parameters(), trainer.net.backend.primitives)
        run, p = trainer.net._run, trainer.net.backend.primitives
        x, labels = torch.empty(4, *DATA.train_x.shape[1:]), torch.zeros(4, dtype=torch.int64)
        rate, clock = torch.empty(1), torch.empty(1, dtype=torch.int64)
        for step in range(3):
            trainer.net.step_index, run.clock = step, clock
            p.recording = step > 0  # what comes from the host once is kept
            trainer.net.forget_backward()
            checker = checked(trainer, asked) if asked else None
            trainer.net.checks = checker
            with p.faults.recording(), Log() as log, nullcontext() if checker is None else checker.apart() as found:
                trainer.next_state(x, labels, rate)
            if found is not None:
                assert len(found.checks) == found.counts.products == found.counts.wrapping
                assert bool(found.tensors()) == bool(found.checks)
                assert hardware != WRAP or len(found.checks) == found.counts.gemms
            trainer.net.end_step()
            logs.append(log.calls)
    assert len(logs[1]) > 500
    assert logs[1] == logs[2]


@pytest.mark.skipif(not has_triton(), reason="triton is not installed")
@pytest.mark.parametrize("asked", ["", "freivalds"])
def test_fused_kernels_are_launched_with_the_same_numbers_every_step(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpretedFunction

    launches: list[str] = []
    run = InterpretedFunction.run

    def logged(self: Any, *args: Any, **settings: Any) -> Any:
        shown = [tuple(x.shape) if isinstance(x, torch.Tensor) else repr(x) for x in args]
        named = {key: x for key, x in settings.items() if not callable(x)}  # a grid may be a function of the rest
        launches.append(f"{self.__name__} {shown} {sorted(named.items(), key=str)}")
        return run(self, *args, **settings)

    monkeypatch.setattr(InterpretedFunction, "run", logged)
    recorder, logs = Recorder(), []
    ours = trainer_of("dropout", "bhq5", WRAP, device(DeviceNative, recorder))
    theirs = trainer_of("dropout", "bhq5", WRAP, "emulator")
    checker = checked(ours, asked) if asked else None
    with through_interpreter(), np.errstate(all="ignore"):  # NumPy stands in for the device, and warns
        for size in (3, 3, 3):
            launches.clear()
            train(ours, [size], checker)
            logs.append(list(launches))
    train(theirs, [3, 3, 3])
    assert outcome(ours) == outcome(theirs)
    assert checker is None or checker.counts.products == 3 * 5
    assert (recorder.recorded, recorder.replayed) == (1, 2)
    # Recording, its replay and the next one: three runs of one program.
    count = len(logs[2])
    assert count > 30
    assert logs[1][-2 * count :] == logs[2] * 2
