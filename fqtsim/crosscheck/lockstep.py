"""Train on several backends side by side and stop at the first bit that differs.

One step runs on the first backend, whose GEMMs are kept, then on each other backend, whose GEMMs are compared
as they happen; after the step the digests are compared. Memory: operands and results of one step's GEMMs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fqtsim.backends import get_backend
from fqtsim.backends.base import Array, Backend, GemmResult
from fqtsim.crosscheck.locate import expected_code, first_wrong_sum, hex_code, label, register_bits
from fqtsim.crosscheck.primitives import find_primitive, first_unequal, on_host, show
from fqtsim.crosscheck.report import Coverage, Difference, Report
from fqtsim.data.batches import training_batch
from fqtsim.errors import FqtsimError, InputError
from fqtsim.hw.spec import Datapath
from fqtsim.train.config import Resolved, TrainConfig, build_trainer, resolve
from fqtsim.train.digest import Digest
from fqtsim.train.reproducer import of_gemm
from fqtsim.train.trainer import MOMENTUM, Trainer
from fqtsim.words import GEMMS


class Call(NamedTuple):
    """One GEMM as an observer sees it."""

    layer: str
    gemm: str
    a: Array
    b: Array
    datapath: Datapath
    c: Array | None
    result: GemmResult

    @classmethod
    def seen(cls, *call: object) -> Call:
        """Return a call with its tensors, if it has any, as arrays."""
        layer, gemm, a, b, datapath, c, result = call
        codes = on_host(result.codes)  # type: ignore[attr-defined]
        result = result if codes is result.codes else replace(result, codes=codes)  # type: ignore[attr-defined, type-var]
        return cls(layer, gemm, on_host(a), on_host(b), datapath, on_host(c), result)  # type: ignore[arg-type]


class _Side(NamedTuple):
    """One of the runs."""

    backend: Backend
    trainer: Trainer


class _Comparison:
    """One step's GEMMs of another backend, held against those of the first."""

    def __init__(self, first: Backend, other: Backend, calls: list[Call], step: int, coverage: Coverage) -> None:
        self.first, self.other, self.calls, self.step, self.coverage = first, other, calls, step, coverage
        self.position = 0
        self.difference: Difference | None = None

    def observe(self, *call: object) -> None:
        """Compare one GEMM, unless an earlier one already differs."""
        if self.difference is not None:
            return
        theirs = Call.seen(*call)
        if self.position < len(self.calls):
            self.difference = self._compare(self.calls[self.position], theirs)
        else:
            self.difference = self._order(None, theirs)
        self.position += 1

    def finish(self) -> Difference | None:
        """Return the difference, or the first GEMM that the other backend never did."""
        if self.difference is None and self.position < len(self.calls):
            self.difference = self._order(self.calls[self.position], None)
        return self.difference

    def _order(self, ours: Call | None, theirs: Call | None) -> Difference:
        some = ours or theirs
        values = {
            label(backend): f"{call.gemm} of {call.layer}, {call.a.shape} x {call.b.shape}" if call else "no GEMM"
            for backend, call in ((self.first, ours), (self.other, theirs))
        }
        return Difference(
            self.step, "order", f"GEMM {self.position + 1} of the step is not the same one", values,
            some.layer if some else "", some.gemm if some else "",
        )  # fmt: skip

    def _compare(self, ours: Call, theirs: Call) -> Difference | None:
        shapes = [(call.layer, call.gemm, call.a.shape, call.b.shape) for call in (ours, theirs)]
        if shapes[0] != shapes[1]:
            return self._order(ours, theirs)
        for name in ("a", "b"):
            if not np.array_equal(getattr(ours, name), getattr(theirs, name)):
                return self._operand(ours, theirs, name)
        if not np.array_equal(ours.result.codes, theirs.result.codes):
            return self._codes(ours, theirs)
        for name in ("events", "minimum", "maximum", "at_rail"):
            values = [getattr(call.result, name) for call in (ours, theirs)]
            if values[0] != values[1]:
                shown = {label(backend): str(value) for backend, value in zip(self._sides(), values, strict=True)}
                return Difference(self.step, "report", f"codes agree, {name} differ", shown, ours.layer, ours.gemm)
        self.coverage.add(ours.gemm, ours.result)
        return None

    def _sides(self) -> tuple[Backend, Backend]:
        return self.first, self.other

    def _operand(self, ours: Call, theirs: Call, name: str) -> Difference:
        codes = getattr(ours, name), getattr(theirs, name)
        row, col = _first_unequal(*codes)
        port = ours.datapath.multiplier_format("a" if name == "a" else "b")
        values = {
            label(backend): hex_code(int(code[row, col]), port.bits)
            for backend, code in zip(self._sides(), codes, strict=True)
        }
        return Difference(
            self.step, "operand",
            f"operand {name} differs before the GEMM: a quantizer or float operation is the cause",
            values, ours.layer, ours.gemm, row, col,
        )  # fmt: skip

    def _codes(self, ours: Call, theirs: Call) -> Difference:
        row, col = _first_unequal(ours.result.codes, theirs.result.codes)
        a, b, datapath = ours.a[row], np.ascontiguousarray(ours.b[:, col]), ours.datapath
        start = 0 if ours.c is None else int(np.broadcast_to(ours.c, ours.result.codes.shape)[row, col])
        expected = expected_code(a, b, datapath, start)
        found = {
            label(backend): int(call.result.codes[row, col])
            for backend, call in zip(self._sides(), (ours, theirs), strict=True)
        }
        wrong = [backend for backend in self._sides() if found[label(backend)] != expected]
        bits = register_bits(datapath)
        results = {
            label(backend): call.result.codes for backend, call in zip(self._sides(), (ours, theirs), strict=True)
        }
        operands = {"a": ours.a, "b": ours.b} | ({} if ours.c is None else {"c": ours.c})
        place = {"step": self.step, "layer": ours.layer, "row": row, "col": col}
        values = {name: hex_code(code, bits) for name, code in (found | {"reference": expected}).items()}
        return Difference(
            self.step, "codes", "same operands, another code", values,
            ours.layer, ours.gemm, row, col, tuple(label(backend) for backend in wrong),
            tuple(first_wrong_sum(backend, a, b, datapath, start) for backend in wrong),
            reproducer=of_gemm(place, ours.gemm, datapath, operands, results),
        )  # fmt: skip


def _first_unequal(ours: Array, theirs: Array) -> tuple[int, int]:
    row, col = np.unravel_index(int(np.argmax(ours != theirs)), ours.shape)
    return int(row), int(col)


def _check_pairs(backends: Sequence[Backend]) -> None:
    if len(backends) < 2:
        raise InputError("backends: one alone has nothing to agree with; give at least two, as stepwise,native")
    for first, other in combinations(backends, 2):
        shared = [one for one in (first.executor, other.executor) if one in first.executor and one in other.executor]
        if shared:
            raise InputError(
                f"backends {label(first)}, {label(other)}: both multiply by {shared[0]}, so agreement would "
                "prove nothing; pair stepwise or reference with native"
            )


def _compare_step(sides: Sequence[_Side], resolved: Resolved, coverage: Coverage, before: Path) -> Difference | None:
    """Do one step on every side. Return the first difference; `before` is a file for the state to start again from."""
    config, first = resolved.config, sides[0]
    step = first.trainer.step_index + 1
    images, labels = training_batch(resolved.data, config.seed, step - 1, config.batch)
    first.trainer.save(before)
    calls: list[Call] = []
    _step(first, images, labels, lambda *call: calls.append(Call.seen(*call)))
    for other in sides[1:]:
        comparison = _Comparison(first.backend, other.backend, calls, step, coverage)
        try:
            _step(other, images, labels, comparison.observe)
        except FqtsimError:
            if comparison.difference is None:
                raise
            # What follows from a wrong bit may stop the step; the bit is what was looked for.
        difference = comparison.finish() or _compare_ties(first, other, step) or _compare_state(first, other, step)
        if difference is not None and difference.kind in ("operand", "state", "report"):
            return _with_primitive(difference, (first, other), before, images, labels)
        if difference is not None:
            return difference
    coverage.steps += 1
    coverage.ties = first.trainer.net.ties
    return None


def _with_primitive(
    difference: Difference, sides: tuple[_Side, _Side], before: Path, images: Array, labels: Array
) -> Difference:
    """Do the step again on both sides, from the state before it, and name the primitive that parted them."""

    def again(side: _Side) -> Callable[[], None]:
        def step() -> None:
            side.trainer.load(before)
            _step(side, images, labels, lambda *call: None)

        return step

    names = [label(side.backend) for side in sides]
    culprit = find_primitive([side.backend for side in sides], names, [again(side) for side in sides])
    culprit = culprit.at(difference.step, difference.layer)
    return replace(difference, primitive=culprit.text, reproducer=culprit.reproducer)


def _step(side: _Side, images: Array, labels: Array, observe: Callable[..., None]) -> None:
    side.trainer.net.observers.append(observe)
    try:
        # A copy: nothing that one side does to its batch may reach the other.
        side.trainer.step(torch.from_numpy(images.copy()), torch.from_numpy(labels.copy()))
    finally:
        side.trainer.net.observers.remove(observe)


def _compare_ties(first: _Side, other: _Side, step: int) -> Difference | None:
    if first.trainer.net.ties == other.trainer.net.ties:
        return None
    values = {label(side.backend): str(side.trainer.net.ties) for side in (first, other)}
    return Difference(step, "report", "every GEMM agrees, the ties that quantizers counted do not", values)


def _compare_state(first: _Side, other: _Side, step: int) -> Difference | None:
    ours, theirs = first.trainer.digest(), other.trainer.digest()
    if ours.hex == theirs.hex:
        return None
    names = sorted(ours.tensors.keys() | theirs.tensors.keys())
    name = next(name for name in names if ours.tensors.get(name) != theirs.tensors.get(name))
    tensors = [_tensor(side.trainer, name) for side in (first, other)]
    ours_now, theirs_now = tensors
    at = None if ours_now is None or theirs_now is None else first_unequal(ours_now, theirs_now)
    values = {
        label(side.backend): digest.tensors.get(name, "absent") if at is None or tensor is None else show(tensor[at])
        for side, digest, tensor in ((first, ours, tensors[0]), (other, theirs, tensors[1]))
    }
    place = "" if at is None else f" at {list(at)}"
    return Difference(
        step, "state",
        f"every GEMM agrees, tensor {name} does not{place}: a float operation of the backward or update", values,
    )  # fmt: skip


def _tensor(trainer: Trainer, name: str) -> Array | None:
    """Return a tensor of the state by its name in the digest; None for step and seed."""
    momentum = trainer.sgd.momentum.get(name.removesuffix(MOMENTUM)) if name.endswith(MOMENTUM) else None
    found = trainer.net.state_dict().get(name) if momentum is None else momentum
    array: Array | None = on_host(found)
    return array


def crosscheck(
    config: TrainConfig,
    backends: Sequence[str | Backend],
    on_step: Callable[[int, int], None] | None = None,
) -> Report:
    """Train as `config` says on every backend in lockstep and compare every GEMM and every state.

    `on_step` is told the steps done and the steps of the run. Raises InputError where a comparison would
    prove nothing: one backend, two that share an executor, a recipe outside the promise, no output.
    """
    chosen = [get_backend(backend) for backend in backends]
    _check_pairs(chosen)
    resolved = resolve(config)
    sides = [_Side(backend, build_trainer(resolved, backend)) for backend in chosen]
    if any(side.trainer.digest().platform for side in sides):
        raise InputError(
            f"recipe = {config.recipe}: trains with the platform's own float GEMM, whose bits depend on "
            "the machine; cross-check a recipe whose operands are all quantized, for example bhq8"
        )
    coverage, digest = Coverage(), sides[0].trainer.digest().hex
    difference = None
    with tempfile.TemporaryDirectory(prefix="fqtsim-") as folder:
        for done in range(1, resolved.steps + 1):
            difference = _compare_step(sides, resolved, coverage, Path(folder) / "before.safetensors")
            if difference is not None:
                break
            digest = sides[0].trainer.digest().hex
            if on_step is not None:
                on_step(done, resolved.steps)
    if difference is None and not coverage.outputs:
        raise InputError(
            f"model = {config.model}: the run compared no output of a GEMM, which is no pass; "
            "choose a model with linear or convolutional layers on the hardware"
        )
    return Report({label(backend): _executors(backend, resolved) for backend in chosen}, coverage, difference, digest)


def compare_from(
    resolved: Resolved, backends: tuple[Backend, Backend], saved: Path | None, steps: int
) -> tuple[Difference | None, str]:
    """Do `steps` steps on two backends from a saved state (None: step 0). Return the first difference and the digest.

    The two may share an executor: what is looked for is where they part, not a proof that they agree.
    """
    sides = [_Side(backend, build_trainer(resolved, backend)) for backend in backends]
    for side in sides if saved is not None else ():
        side.trainer.load(saved)  # type: ignore[arg-type]
    difference = None
    with tempfile.TemporaryDirectory(prefix="fqtsim-") as folder:
        for _ in range(steps):
            difference = _compare_step(sides, resolved, Coverage(), Path(folder) / "before.safetensors")
            if difference is not None:
                break
    return difference, sides[0].trainer.digest().hex


def state_after(resolved: Resolved, backend: Backend, saved: Path | None, step: int) -> Digest:
    """Return the digest after `step` steps, from a saved state (None: step 0)."""
    side = _Side(backend, build_trainer(resolved, backend))
    if saved is not None:
        side.trainer.load(saved)
    while side.trainer.step_index < step:
        images, labels = training_batch(
            resolved.data, resolved.config.seed, side.trainer.step_index, resolved.config.batch
        )
        _step(side, images, labels, lambda *call: None)
    return side.trainer.digest()


def _executors(backend: Backend, resolved: Resolved) -> str:
    """Return everybody who multiplies for a backend in this run."""
    hardware = resolved.hardware.values() if isinstance(resolved.hardware, dict) else [resolved.hardware]
    datapaths = [one.datapath_for(gemm) for one in hardware for gemm in GEMMS]
    return ", ".join(sorted({backend.executor_of(datapath) for datapath in datapaths}))
