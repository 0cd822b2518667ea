"""Training steps recorded once on a device and replayed: one launch instead of thousands (CUDA graphs).

A step of one shape of batch runs the same kernels on the same memory every time: what changes (batch, labels, learning
rate, step index) is copied to where the recording reads it, and nothing on the way waits for the device. The first
step of a shape runs kernel by kernel; the second too, and is then recorded and replayed, and both must agree in every
bit before a replay counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from fqtsim.errors import BackendRefused
from fqtsim.train.gemm_layers import GemmLayer
from fqtsim.train.loss import check_labels
from fqtsim.train.module import FQTModule
from fqtsim.train.operands import Array
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
    sites: list[str]

    def tensors(self) -> list[torch.Tensor]:
        """Return everything that two runs of one step must agree in, beside the running statistics."""
        counts = [] if self.counted is None else [self.counted.counts]
        numbers = [x for x in (self.ties, *self.clamps) if isinstance(x, torch.Tensor)]
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


class RecordedSteps:
    """The recorded steps of one network and update rule on one backend.

    compute(x, labels, rate, tell): as Trainer.next_state. held: momentum, and whatever constants a step depends on.
    """

    def __init__(
        self, net: FQTModule, smoothing: float, compute: Callable[..., NextState],
        held: Callable[[], tuple[dict[str, Array], Hashable]],
    ) -> None:  # fmt: skip
        self.net, self.backend, self.smoothing = net, net.backend, smoothing
        self._compute, self._held = compute, held
        #: By what a recording depends on: None where a step of it has run but none is recorded yet.
        self._known: dict[Hashable, _Recording | None] = {}
        self._refused = False
        #: Steps that were replayed, beside those that a recording was compared with.
        self.replayed = 0

    def next_state(self, x: torch.Tensor, labels: Array, rate: np.float32) -> NextState | None:
        """Return the next state by a replay; None where the caller has to compute it.

        Raises BackendRefused where a replay differs from the step that it was recorded from.
        """
        net = self.net
        if self._refused or net.observers or net.watchers or net.trace or not net.training:
            return None
        key = self._key(x, labels)
        if key not in self._known:
            while len(self._known) >= MOST_SHAPES:
                self._known.pop(next(iter(self._known)))
            self._known[key] = None
            return None
        recording = self._known[key]
        if recording is None:
            return self._recorded(key, x, labels, rate)
        check_labels(recording.outcome.shape, labels, self.smoothing)
        recording.inputs.fill(x, labels, rate, net.step_index)
        recording.replay()
        self.replayed += 1
        self._count(recording.outcome)
        self.backend.primitives.faults.expect(recording.outcome.sites, net.step_index)
        return recording.outcome.state

    def _key(self, x: torch.Tensor, labels: Array) -> Hashable:
        momentum, settings = self._held()
        places = [*self.net.parameters(), *self.net.buffers(), *momentum.values()]
        memory = tuple((place.data_ptr(), tuple(place.shape)) for place in places)
        needed = tuple(parameter.requires_grad for parameter in self.net.parameters())
        layers = tuple(map(_settings, self.net.modules()))
        return tuple(x.shape), x.stride(), labels.shape, memory, needed, self.net.seed, layers, settings

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
        expected = self._program(inputs)
        check_labels(expected.shape, labels, self.smoothing)
        after, noted = [buffer.clone() for buffer in buffers], p.faults.flags.clone()
        net.zero_grad(set_to_none=True)
        try:
            recording = self._record(inputs)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            self._refused = True
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"steps are launched kernel by kernel, slower and with the same bits: recording one failed ({reason})",
                stacklevel=2,
            )
        else:
            assign(buffers, before)
            recording.replay()
            pairs = zip((*expected.tensors(), *after), (*recording.outcome.tensors(), *buffers), strict=True)
            if not all(torch.equal(_bits(ours), _bits(theirs)) for ours, theirs in pairs):
                raise BackendRefused(
                    f"{self.backend.name}@{self.backend.device}: a replayed step gives other bits than its kernels "
                    "one by one; use backend emulator@cpu"
                )
            self._known[key] = recording
        assign([*buffers, p.faults.flags], [*after, noted])
        self._count(expected)
        p.faults.expect(expected.sites, net.step_index)
        return expected.state

    def _program(self, inputs: _Inputs, recording: bool = False) -> _Outcome:
        """Compute a step from what lies in the inputs."""
        p: Any = self.backend.primitives
        run = self.net._run
        run.clock, p.recording, run.differentiated = inputs.clock, recording, None
        try:
            return self._outcome(inputs.x, inputs.labels, inputs.rate)
        finally:
            run.clock, p.recording = None, False

    def _record(self, inputs: _Inputs) -> _Recording:
        if self.backend.recorder is None:
            raise RuntimeError("this backend records nothing")
        outcome, replay = self.backend.recorder(lambda: self._program(inputs, recording=True))
        self.net.zero_grad(set_to_none=True)
        return _Recording(inputs, outcome, replay)

    def _outcome(self, x: torch.Tensor, labels: Array, rate: Array) -> _Outcome:
        """Compute the next state with all counts apart from those of the run."""
        run, layers = self.net._run, self._layers()
        kept = run.ties, [layer.activation_clamps_so_far for layer in layers], run.tally
        run.ties, run.tally = 0, Tally()
        for layer in layers:
            layer.activation_clamps_so_far = 0
        shapes: list[tuple[int, ...]] = []
        try:
            with self.backend.primitives.faults.recording() as sites:
                state = self._compute(x, labels, rate, shapes.append)
            return _Outcome(
                state, shapes[0], run.ties, [layer.activation_clamps_so_far for layer in layers], run.tally.take(),
                sites,
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
        if outcome.counted is not None:
            run.tally.merge(outcome.counted)


def _settings(module: torch.nn.Module) -> tuple[Hashable, ...]:
    """Return what of a layer's attributes decides what it computes: rates, ranges, whether it trains."""
    chosen = {key: value for key, value in vars(module).items() if key != "activation_clamps_so_far"}
    plain = tuple(value for value in chosen.values() if isinstance(value, bool | int | float | str))
    return *plain, chosen.get("activation_range")


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32) if x.dtype == torch.float32 else x
