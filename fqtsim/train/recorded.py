"""Training steps recorded once on a device and replayed: one launch instead of thousands (CUDA graphs).

A step of one shape of batch runs the same kernels on the same memory every time: what changes (batch, labels, learning
rate, step index) is copied to where the recording reads it, and nothing on the way waits for the device. The first
step of a shape runs kernel by kernel; the second too, and is then recorded and replayed, and both must agree in every
bit before a replay counts.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from fqtsim.errors import BackendRefused
from fqtsim.kernels.gpu.launch import bits
from fqtsim.train.gemm_layers import GemmLayer
from fqtsim.train.loss import check_labels
from fqtsim.train.module import FQTModule
from fqtsim.train.operands import Array
from fqtsim.train.optimizer import Sgd
from fqtsim.train.tally import Counted, Tally

MOST_SHAPES = 2
"""Shapes of batches whose steps are kept: each holds all tensors of a step."""


class NextState(NamedTuple):
    """What a step leads to, before anything but running statistics has changed."""

    loss: Any
    parameters: dict[str, Array]
    momentum: dict[str, Array]


def assign(places: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Copy values to their places; on a device by a few kernels, however many there are."""
    if places:
        with torch.no_grad():
            torch._foreach_copy_(list(places), list(values))


@dataclass(frozen=True)
class _Outcome:
    """All that a recorded step leaves behind, in memory of its own."""

    state: NextState
    #: Logits' shape, for which labels are checked.
    shape: tuple[int, ...]
    ties: Any
    clamps: list[Any]
    counted: Counted | None
    #: What the checks of the step found, where somebody checks it.
    checked: Any
    sites: list[str]

    def tensors(self) -> list[torch.Tensor]:
        """Return everything that two runs of one step must agree in, beside the running statistics."""
        counts = [] if self.counted is None else [self.counted.counts]
        numbers = [x for x in (self.ties, *self.clamps) if isinstance(x, torch.Tensor)]
        numbers += [] if self.checked is None else self.checked.tensors()
        return [self.state.loss, *self.state.parameters.values(), *self.state.momentum.values(), *numbers, *counts]


@dataclass(frozen=True)
class _Inputs:
    """Where a recorded step reads what changes."""

    x: torch.Tensor
    #: int64 (N,), float32 (1,) and int64 (1,).
    labels: torch.Tensor
    rate: torch.Tensor
    clock: torch.Tensor

    def fill(self, x: torch.Tensor, labels: Array, rate: np.float32, step: int) -> None:
        self.x.copy_(x)
        self.labels.copy_(torch.from_numpy(labels.astype(np.int64)))
        self.rate.fill_(float(rate))
        self.clock.fill_(step)


@dataclass(frozen=True)
class _Recording:
    inputs: _Inputs
    outcome: _Outcome
    replay: Callable[[], None]


class Steps(Protocol):
    """What recordings need of a trainer."""

    net: FQTModule
    sgd: Sgd
    label_smoothing: float

    def next_state(
        self, x: torch.Tensor, labels: Array, rate: Array, tell: Callable[[tuple[int, ...]], None] | None = None
    ) -> NextState: ...


class RecordedSteps:
    """The recorded steps of one trainer on one backend."""

    def __init__(self, trainer: Steps) -> None:
        self.net, self.backend = trainer.net, trainer.net.backend
        self._trainer = weakref.ref(trainer)  # which owns this: a circle would keep the device's memory
        #: By what a recording depends on: None where a step of it has run but none is recorded yet.
        self._known: dict[Hashable, _Recording | None] = {}
        self._refused = False
        #: Steps that were replayed, beside those that a recording was compared with.
        self.replayed = 0

    @property
    def trainer(self) -> Steps:
        """The trainer whose steps these are."""
        trainer = self._trainer()
        if trainer is None:
            raise RuntimeError("the trainer of these steps is gone")
        return trainer

    def next_state(self, x: torch.Tensor, labels: Array, rate: np.float32) -> NextState | None:
        """Return the next state by a replay; None where the caller has to compute it.

        Raises BackendRefused where a replay differs from the step that it was recorded from.
        """
        net = self.net
        if self._refused or net.observers or net.watchers or net.trace or not net.training or _has_hooks(net):
            return None
        if net.checks is not None and not net.checks.recordable:
            return None
        if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
            return None  # the step itself says what is wrong
        key = self._key(x, labels)
        if key not in self._known:
            while len(self._known) >= MOST_SHAPES:
                self._known.pop(next(iter(self._known)))
            self._known[key] = None
            return None
        recording = self._known[key]
        if recording is None:
            return self._recorded(key, x, labels, rate)
        check_labels(recording.outcome.shape, labels, self.trainer.label_smoothing)
        recording.inputs.fill(x, labels, rate, net.step_index)
        recording.replay()
        self.replayed += 1
        self._count(recording.outcome)
        self.backend.primitives.faults.expect(recording.outcome.sites, net.step_index)
        return recording.outcome.state

    def _key(self, x: torch.Tensor, labels: Array) -> Hashable:
        trainer = self.trainer
        places = [*self.net.parameters(), *self.net.buffers(), *trainer.sgd.momentum.values()]
        memory = tuple((place.data_ptr(), tuple(place.shape)) for place in places)
        needed = tuple(parameter.requires_grad for parameter in self.net.parameters())
        rule = repr((trainer.sgd.settings, sorted(trainer.sgd.exempt), trainer.label_smoothing))
        layers = tuple(map(_settings, self.net.modules()))
        checks = _Same(self.net.checks)
        return tuple(x.shape), x.stride(), labels.shape, memory, needed, self.net.seed, layers, rule, checks

    def _layers(self) -> list[GemmLayer]:
        return [layer for layer in self.net.modules() if isinstance(layer, GemmLayer)]

    def _recorded(self, key: Hashable, x: torch.Tensor, labels: Array, rate: np.float32) -> NextState | None:
        """Compute a step kernel by kernel, record it, and compare a replay with it."""
        net = self.net
        buffers = list(net.buffers())
        before = [buffer.clone() for buffer in buffers]
        p: Any = self.backend.primitives
        inputs = _Inputs(
            torch.empty_like(p.array(x)), torch.empty(labels.shape, dtype=torch.int64, device=p.device),
            torch.empty(1, dtype=torch.float32, device=p.device), torch.empty(1, dtype=torch.int64, device=p.device),
        )  # fmt: skip
        inputs.fill(x, labels, rate, net.step_index)
        # The recorded program itself, once: a kernel that is first met while it is recorded could not be loaded there.
        try:
            expected = self._program(inputs, labels)
        except torch.OutOfMemoryError as error:  # checks keep more of such a step than of any other
            self._refuse(error)
            assign(buffers, before)
            net.forget_backward()
            return None
        after, noted = [buffer.clone() for buffer in buffers], p.faults.flags.clone()
        net.zero_grad(set_to_none=True)
        try:
            recording = self._record(inputs)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            self._refuse(error)
        else:
            assign(buffers, before)
            recording.replay()
            pairs = zip((*expected.tensors(), *after), (*recording.outcome.tensors(), *buffers), strict=True)
            if not all(torch.equal(bits(ours), bits(theirs)) for ours, theirs in pairs):
                raise BackendRefused(
                    f"{self.backend.name}@{self.backend.device}: a replayed step gives other bits than its kernels "
                    "one by one; use backend emulator@cpu"
                )
            self._known[key] = recording
        assign([*buffers, p.faults.flags], [*after, noted])
        self._count(expected)
        p.faults.expect(expected.sites, net.step_index)
        return expected.state

    def _refuse(self, error: BaseException) -> None:
        """Record nothing from now on, and say why."""
        self._refused = True
        while error.__context__ is not None:  # the end of a capture that failed fails, too
            error = error.__context__
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            f"steps are launched kernel by kernel, slower and with the same bits: recording one failed ({reason})",
            stacklevel=3,
        )

    def _program(self, inputs: _Inputs, labels: Array | None = None) -> _Outcome:
        """Compute a step from what lies in the inputs: to record it, or, with labels to check, as any step."""
        p: Any = self.backend.primitives
        run = self.net._run
        run.clock, p.recording, run.differentiated = inputs.clock, labels is None, None
        try:
            return self._outcome(inputs, labels)
        finally:
            run.clock, p.recording = None, False

    def _record(self, inputs: _Inputs) -> _Recording:
        if self.backend.recorder is None:
            raise RuntimeError("this backend records nothing")
        outcome, replay = self.backend.recorder(lambda: self._program(inputs))
        self.net.zero_grad(set_to_none=True)
        return _Recording(inputs, outcome, replay)

    def _outcome(self, inputs: _Inputs, labels: Array | None) -> _Outcome:
        """Compute the next state with all counts apart from those of the run."""
        run, layers, trainer = self.net._run, self._layers(), self.trainer
        kept = run.ties, [layer.activation_clamps_so_far for layer in layers], run.tally
        run.ties, run.tally = 0, Tally()
        for layer in layers:
            layer.activation_clamps_so_far = 0
        shapes: list[tuple[int, ...]] = []

        def told(shape: tuple[int, ...]) -> None:
            shapes.append(shape)
            if labels is not None:
                check_labels(shape, labels, trainer.label_smoothing)

        p: Any = self.backend.primitives
        try:
            apart = nullcontext() if run.checks is None else run.checks.apart()
            with p.faults.recording() as sites, apart as checked:
                state = trainer.next_state(inputs.x, inputs.labels, inputs.rate, told)
            return _Outcome(
                state, shapes[0], run.ties, [layer.activation_clamps_so_far for layer in layers], run.tally.take(),
                checked, sites,
            )  # fmt: skip
        finally:
            run.ties, clamps, run.tally = kept
            for layer, count in zip(layers, clamps, strict=True):
                layer.activation_clamps_so_far = count

    def _count(self, outcome: _Outcome) -> None:
        """Add what one step counted to the counts of the run."""
        run = self.net._run
        run.ties = run.ties + outcome.ties
        for layer, clamps in zip(self._layers(), outcome.clamps, strict=True):
            layer.activation_clamps_so_far = layer.activation_clamps_so_far + clamps
        if run.checks is not None:
            run.checks.merge(outcome.checked)
        if outcome.counted is not None:
            run.tally.end_step()  # what an evaluation left comes before
            run.tally.merge(outcome.counted)


class _Same:
    """An object by its identity, which it keeps as long as this lives."""

    def __init__(self, thing: object) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


_COUNTS = ("activation_clamps_so_far",)


def _settings(module: torch.nn.Module) -> tuple[Hashable, ...]:
    """Return a layer's attributes, which decide what it computes: rates, ranges, whether it trains, its hardware."""
    # What begins with a line is torch's own: parameters, buffers and hooks, which are looked at elsewhere.
    return tuple(_setting(value) for key, value in vars(module).items() if key[0] != "_" and key not in _COUNTS)


def _setting(value: Any) -> Hashable:
    if value is None or isinstance(value, bool | int | float | str | np.number):
        return type(value), value
    if isinstance(value, tuple | list):
        return tuple(map(_setting, value))
    if isinstance(value, dict):
        return tuple((key, _Same(held)) for key, held in value.items() if not isinstance(held, torch.Tensor))
    return _Same(value)


_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_post_accumulate_grad_hooks",
)  # fmt: skip


def _has_hooks(net: torch.nn.Module) -> bool:
    """Tell whether somebody hooked into a layer or parameter, whom a replay would not call."""
    return any(getattr(one, name, None) for one in (*net.modules(), *net.parameters()) for name in _HOOKS)
