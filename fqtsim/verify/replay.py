"""Replay a published run and compare every published digest; at the first that differs, narrow down to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fqtsim.backends import get_backend
from fqtsim.backends.base import Backend
from fqtsim.crosscheck.locate import label
from fqtsim.crosscheck.lockstep import compare_from
from fqtsim.crosscheck.report import Difference
from fqtsim.errors import InputError
from fqtsim.train.config import Resolved, TrainConfig, build_trainer, resolve
from fqtsim.train.loop import StepRecord, run
from fqtsim.verify.published import EVERY, PublishedRun


class _Differs(Exception):
    """Leaves the training loop at a digest that is not the published one, before the state is saved."""


@dataclass(frozen=True)
class Verdict:
    """How a replay ended."""

    name: str
    backend: str
    #: Steps done and the steps asked for.
    step: int
    steps: int
    #: Published digests compared, all equal but perhaps the last.
    compared: int
    #: The last step whose state is equal and the first whose digest differs; None where all are equal.
    block: tuple[int, int] | None = None
    #: The first difference to another backend on this machine within the block.
    difference: Difference | None = None
    #: What was compared with, and how that ended, in words.
    narrowed: str = ""
    #: Tensors of the last step whose published SHA-256 differs.
    tensors: tuple[str, ...] = ()
    interrupted: bool = False
    #: What differs from the published description of hardware, recipe or data.
    digest: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything asked for was compared and is equal."""
        return self.block is None and not self.interrupted

    def __str__(self) -> str:
        lines = [f"run        {self.name} on {self.backend}", f"steps      {self.step} of {self.steps}"]
        if self.block is None:
            lines.append(f"digest     {self.digest}")
            lines.append(f"{'equal' if self.compared else 'nothing'}      {self.compared} published digests")
            return "\n".join(lines)
        last, first = self.block
        lines.append(f"DIFFERENT  equal up to step {last}, another state at step {first}")
        if self.tensors:
            lines.append(f"tensors    {', '.join(self.tensors)}")
        if self.narrowed:
            lines.append(f"narrowed   {self.narrowed}")
        if self.difference is not None:
            lines.append(str(self.difference))
        return "\n".join(lines)


def replay_config(published: PublishedRun, backend: str, data: Path | None, steps: int | None) -> TrainConfig:
    """Return the published configuration with this machine's backend and data. Raises InputError beyond its end."""
    if steps is not None and not 1 <= steps <= published.steps:
        raise InputError(f"--steps {steps}: must be 1..{published.steps}, the steps that are published; ask for fewer")
    config = published.config
    if data is not None:
        if config.data == "digits":
            raise InputError(f"--data {data}: {published.name} trains on digits, which ship with fqtsim; leave it out")
        config = replace(config, data=f"{config.data}:{data}")
    # Evaluation has no part in the state.
    return replace(config, backend=backend, steps=steps or published.steps, eval_every=1 << 30, save_every=EVERY)


def check_inputs(published: PublishedRun, resolved: Resolved) -> None:
    """Raise InputError where hardware, recipe or data are not the published ones: the replay would prove nothing."""
    ours = resolved.as_plain()
    for section, value in published.sections.items():
        if ours[section] != value:
            keys = [key for key in value if ours[section].get(key) != value[key]] or [section]
            raise InputError(
                f"{published.name}: {section}.{keys[0]} is not what was published; use the files that ship with fqtsim"
            )


def replay(
    published: PublishedRun,
    backend: str,
    out: Path,
    data: Path | None = None,
    steps: int | None = None,
    resume: bool = False,
    on_start: Callable[[int, int], None] | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> Verdict:
    """Train as published, in the folder `out`, and compare. Ctrl-C stops after a step; `resume` goes on."""
    config = replay_config(published, backend, data, steps)
    resolved = resolve(config)
    check_inputs(published, resolved)
    compared: list[int] = []

    def check(record: StepRecord) -> None:
        if on_step is not None:
            on_step(record)
        expected = published.digests.get(record.step)
        if expected is not None:
            compared.append(record.step)
            if record.digest != expected:
                raise _Differs

    try:
        result = run(config, out, resume, on_start, check)
    except _Differs:
        return _narrow(published, resolved, out, compared, backend)
    # Lines of an earlier part of a resumed run count as compared: each passed, or the run had ended there.
    done = [step for step in published.digests if step <= result.step]
    return Verdict(
        published.name, backend, result.step, result.steps, len(done), interrupted=result.interrupted,
        digest=result.digest,
    )  # fmt: skip


def _narrow(published: PublishedRun, resolved: Resolved, out: Path, compared: list[int], backend: str) -> Verdict:
    """Look within the block, from the last saved state, for the first bit that another backend here does not have."""
    first = compared[-1]
    last = max((step for step in published.digests if step < first), default=0)
    trainer, checkpoint = build_trainer(resolved), out / "checkpoint.safetensors"
    saved = checkpoint if checkpoint.is_file() else None
    if saved is not None:
        trainer.load(saved)
    under_test, witness = get_backend(backend), get_backend("emulator")
    if label(under_test) == "emulator":
        witness = get_backend("stepwise")
    difference, state = compare_from(resolved, (witness, under_test), saved, first - trainer.step_index)
    text = _narrowed(difference, label(witness), state, published.digests[first])
    tensors: tuple[str, ...] = ()
    if difference is None and first == published.steps:
        tensors = _different_tensors(published, resolved, under_test, saved, first)
    return Verdict(
        published.name, backend, first, resolved.steps, len(compared), (last, first), difference, text, tensors
    )


def _narrowed(difference: Difference | None, witness: str, state: str, expected: str) -> str:
    if difference is not None:
        return f"against {witness} on this machine, from the last saved state:"
    if state == expected:
        return f"done again beside {witness} the block ends in the published state: the fault comes and goes"
    return (
        f"{witness} on this machine gives the same state as the run: what differs from the published run is shared by "
        "both, a float primitive, a version or the machine"
    )


def _different_tensors(
    published: PublishedRun, resolved: Resolved, backend: Backend, saved: Path | None, last: int
) -> tuple[str, ...]:
    from fqtsim.crosscheck.lockstep import state_after

    ours = state_after(resolved, backend, saved, last)
    names = sorted(ours.tensors.keys() | published.tensors.keys())
    return tuple(name for name in names if ours.tensors.get(name) != published.tensors.get(name))
