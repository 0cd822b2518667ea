"""Training runs whose states are known beforehand: the same digest on every backend and device."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gpu_models import CIFAR, synthetic
from gpu_report import DIFFERENT, EQUAL, FAILED, INCOMPLETE, Bench, Row, spread

import fqtsim
from fqtsim.data import Dataset, load_dataset
from fqtsim.data.batches import training_batch
from fqtsim.models import build_model
from fqtsim.train.trainer import Trainer

FORMAT = "fqtsim-gpu-digests-1"
SCHEDULE = 1000
"""Steps of every schedule, so that a longer run begins with the same states."""
MARKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 300)

Batch = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Run:
    """What is trained, and for how long the expected digests go."""

    model: str
    #: digits, or synthetic: images of CIFAR-10's size.
    data: str
    steps: int
    batch: int = 64
    recipe: str = "bhq5"
    hardware: str = "int8_acc32_wrap"
    #: Backends that can run this hardware.
    backends: tuple[str, ...] = ("native", "emulator")
    seed: int = 0


NARROW = ("emulator",)
RUNS: Mapping[str, Run] = {
    "mlp-digits": Run("mlp", "digits", 200),
    "cnn-digits": Run("cnn", "digits", 100),
    "resnet8-digits": Run("resnet8", "digits", 100),
    "resnet20-synthetic": Run("resnet20", "synthetic", 20, 128),
    "cnn-acc16-saturate": Run("cnn", "digits", 50, hardware="int8_acc16_saturate", backends=NARROW),
    "cnn-acc20-tree4": Run("cnn", "digits", 50, hardware="int8_acc20_tree4", backends=NARROW),
    "resnet56-synthetic": Run("resnet56", "synthetic", 3, 128, backends=("native",)),
}


@lru_cache(maxsize=2)
def data_of(name: str) -> Dataset:
    """Return the data of a run."""
    return load_dataset("digits") if name == "digits" else synthetic(CIFAR, 512)


def trainer_of(run: Run, backend: Any) -> tuple[Trainer, Batch]:
    """Return a trainer at step 0 and what gives the batch of a step."""
    data = data_of(run.data)
    net = fqtsim.fully_quantize(
        build_model(run.model, data.info, run.seed), run.recipe, run.hardware, backend, run.seed
    )

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = training_batch(data, run.seed, step, run.batch)
        return torch.from_numpy(x), torch.from_numpy(y)

    return Trainer(net, total_steps=SCHEDULE), batch


def marks(run: Run) -> list[int]:
    """Return the steps after which a run's state is compared."""
    return sorted({*(mark for mark in MARKS if mark < run.steps), run.steps})


def write_digests(path: Path) -> None:
    """Train every run on emulator@cpu and write the digests."""
    from gpu import Report

    runs: dict[str, Any] = {}
    for name, run in RUNS.items():
        began = time.perf_counter()
        trainer, batch = trainer_of(run, "emulator")
        digests = {}
        for step in range(run.steps):
            trainer.step(*batch(step))
            if step + 1 in marks(run):
                digests[str(step + 1)] = trainer.digest().hex
        plain = {key: value for key, value in asdict(run).items() if key not in ("backends", "steps")}
        runs[name] = {"run": plain, "digests": digests}
        print(
            f"{name}: {run.steps} steps, {time.perf_counter() - began:.0f} s, {digests[str(run.steps)][:12]}",
            flush=True,
        )
    report = Report(path, {}, {})
    report.content = {
        "format": FORMAT,
        "made_by": {"backend": "emulator@cpu", "fqtsim": fqtsim.__version__},
        "runs": runs,
    }
    report.write()


def expected(path: Path, name: str) -> dict[int, str]:
    """Return the digests of a run by step. Raises ValueError where the file describes another run."""
    content = json.loads(path.read_text(encoding="utf-8"))
    told = content["runs"][name]
    ours = {key: value for key, value in asdict(RUNS[name]).items() if key not in ("backends", "steps")}
    if content["format"] != FORMAT or told["run"] != ours:
        raise ValueError(f"{path}: {name} is described otherwise; write it again with --write-digests")
    return {int(step): digest for step, digest in told["digests"].items()}


class Task(NamedTuple):
    """One run on one backend."""

    name: str
    backend: str
    known: dict[int, str]
    bench: Bench


def digests(bench: Bench) -> None:
    """Train every run on every backend that can, side by side, and compare at every mark."""
    plan = [(name, backend) for name, run in RUNS.items() for backend in run.backends]
    if bench.tiny:
        plan = [("mlp-digits", "native"), ("cnn-digits", "native"), ("cnn-acc20-tree4", "emulator"),
                ("resnet8-digits", "native")]  # fmt: skip
    plan.sort(key=lambda run: -RUNS[run[0]].batch)  # the longest first
    until, told = bench.deadline + 10, set()
    # A process of its own cannot report by the pipe of this one: it hands its row back.
    quiet = replace(bench, report=print)
    tasks = [Task(name, backend, expected(bench.options.digests, name), quiet) for name, backend in plan]
    for name, backend, row in spread(_compare, tasks, bench.options.jobs, until):
        told.add((name, backend))
        bench.report(row)
    for name, backend in plan:
        if (name, backend) not in told:
            bench.skip(f"{name} on {backend}@{bench.device}", "the time was up; run again with --resume")


def _compare(task: Task) -> tuple[str, str, Row]:
    """Train one run to its end, or to the end of the time; return its row."""
    work = f"{task.name} on {task.backend}@{task.bench.device}"
    try:
        row = _row(work, RUNS[task.name], task.known, task.bench, task.bench.backend(task.backend))
    except Exception as error:  # one run that fails leaves the others
        row = Row(work, f"{type(error).__name__}: {error}"[:300], FAILED)
    return task.name, task.backend, row


def _row(work: str, run: Run, known: dict[int, str], bench: Bench, backend: Any) -> Row:
    last = min(max(known), bench.size(1 << 30, 1))
    trainer, batch = trainer_of(run, backend)
    times, compared = [], 0
    while trainer.step_index < last and (bench.left > 0 or not compared):
        start = time.perf_counter()
        trainer.step(*batch(trainer.step_index))
        times.append(time.perf_counter() - start)
        step = trainer.step_index
        want = known.get(step)
        if want is None:
            continue
        compared += 1
        found = trainer.digest().hex
        if found != want:
            details = {"step": step, "found": found, "expected": want}
            return Row(work, f"1 of {compared} digests (step {step}) differ", DIFFERENT, None, "one digest", details)
    done, usual = trainer.step_index, sorted(times)[len(times) // 2]
    details = {"steps": done, "median_step_seconds": usual, "digest": trainer.digest().hex}
    measured = f"{compared} digests to step {done} of {max(known)}"
    return Row(work, measured, EQUAL if done == last else INCOMPLETE, None, "one digest", details)


def published(bench: Bench) -> None:
    """Replay the runs that ship with fqtsim as far as the time goes; `fqtsim verify-run` does all of each."""
    from fqtsim.verify.published import load_published, published_names

    with_data = bench.options.data is not None
    names = [name for name in published_names() if name.endswith("digits") or with_data]
    if bench.tiny:
        names = names[:1]
    for name in names:
        run = load_published(name)
        if bench.left < 0:
            bench.skip(f"{name} replayed", "the time was up; run again with --resume, or fqtsim verify-run")
            continue
        began = time.monotonic()
        steps = bench.size(100, 2)
        passed = _replay(bench, run, steps)
        needed = (time.monotonic() - began) * run.steps / steps
        if passed and not bench.tiny and needed < bench.left / 2:
            _replay(bench, run, run.steps)


def _replay(bench: Bench, run: Any, steps: int) -> bool:
    from fqtsim.verify.replay import replay

    backend = "native@cuda" if bench.device == "cuda" else "emulator"
    data = None if run.config.data == "digits" else bench.options.data
    with tempfile.TemporaryDirectory() as folder:
        verdict = replay(run, backend, Path(folder) / "run", data, steps)
    wrong = 0 if verdict.passed else 1
    work = f"{run.name} replayed on {backend}, {steps} of {run.steps} steps"
    bench.equal(work, wrong, f"{verdict.compared} digests", said=str(verdict))
    return not wrong
