"""Recorded steps: nothing in a step waits for the device, and every step is the same program."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels then run on CPU tensors

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from recorded_steps import DATA, SATURATE, TREE, WRAP, Recorder, checked, device, outcome, train, trainer_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fqtsim.backends.device import DeviceEmulator, DeviceNative
from fqtsim.backends.torch_primitives import TorchPrimitives
from fqtsim.kernels.gpu.launch import has_triton, through_interpreter


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
