"""The training loop: steps, evaluation, metrics, checkpoints and exact resume, all in one folder.

A run killed at any moment and resumed ends in the same state, digest and metrics as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from fqtsim.data import Dataset
from fqtsim.data.batches import training_batch
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.train.check_report import parse_checks
from fqtsim.train.checks import Checker, CheckFailed
from fqtsim.train.config import Resolved, TrainConfig, build_trainer, resolve
from fqtsim.train.module import FQTModule
from fqtsim.train.rundir import RunDir
from fqtsim.train.trainer import Trainer

#: Where a checkpoint keeps the report of the run that it belongs to, and the report's SHA-256.
EVENTS_NOTE, EVENTS_HASH = "events", "events_sha256"
#: Where it keeps the counts of the checks.
CHECKS_NOTE = "checks"


@dataclass(frozen=True)
class StepRecord:
    """One line of metrics.jsonl."""

    #: Steps done, 1 after the first.
    step: int
    #: Whole passes over the training set done before this step.
    epoch: int
    loss: float
    #: Share of test images classified right, 0..1; None where this step was not evaluated.
    accuracy: float | None
    #: SHA-256 of the state after the step (S5.10).
    digest: str

    def as_plain(self) -> dict[str, Any]:
        """Return the fields that have a value."""
        fields = {
            "step": self.step, "epoch": self.epoch, "loss": self.loss, "accuracy": self.accuracy,
            "digest": self.digest,
        }  # fmt: skip
        return {key: value for key, value in fields.items() if value is not None}


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    out: Path
    #: Steps done, and asked for.
    step: int
    steps: int
    digest: str
    #: Share of test images classified right at the last evaluation.
    accuracy: float | None
    #: Test images.
    tested: int
    #: True where Ctrl-C ended it early; the checkpoint is at `step`.
    interrupted: bool
    #: What was done to the weights that it started from, beside copying them.
    notes: tuple[str, ...] = ()


def logits(net: FQTModule, images: np.ndarray, batch: int) -> np.ndarray:
    """Return the logits of images (N, C, H, W) in evaluation mode, float32 (N, classes); `batch` images at a time."""
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            parts = [
                net(torch.from_numpy(images[first : first + batch])).numpy() for first in range(0, len(images), batch)
            ]
    finally:
        net.train(was_training)
    return np.concatenate(parts)


def predictions(trainer: Trainer, images: np.ndarray, batch: int) -> np.ndarray:
    """Return the predicted classes, int64 (N,); every batch is quantized by its own ranges (S5)."""
    # numpy's argmax takes the first of equal logits; torch leaves the choice open.
    predicted: np.ndarray = np.argmax(logits(trainer.net, images, batch), axis=1)
    return predicted


def evaluate(trainer: Trainer, data: Dataset, batch: int) -> float:
    """Return the share of test images classified right."""
    return float(np.mean(predictions(trainer, data.test_x, batch) == data.test_y))


def merge_events(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the report of a run whose first part reported `before` and whose second part reports `now`.

    Counts add up, extremes widen; other fields (the shape) are the latest.
    """
    merged = {(row["layer"], row["gemm"]): row for row in before}
    for row in now:
        key = (row["layer"], row["gemm"])
        merged[key] = _merge_row(merged.get(key, {}), row)
    return list(merged.values())


_COUNTS = ("outputs", "altered", "out_of_range", "transient")
_LARGEST = ("maximum", "bits_needed", "bits_needed_partial")


def _merge_row(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    merged = dict(now)
    for key in set(before) & set(now):
        if key in _COUNTS:
            merged[key] = before[key] + now[key]
        elif key in _LARGEST:
            merged[key] = max(before[key], now[key])
        elif key == "minimum":
            merged[key] = min(before[key], now[key])
    return merged


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C sets, so that no step is cut in two; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)


def describe(resolved: Resolved) -> dict[str, Any]:
    """Return the content of run.yaml: what decides the result, and what ran it."""
    from fqtsim import __version__

    return resolved.as_plain() | {
        "steps": resolved.steps,
        "versions": {
            "fqtsim": __version__, "python": platform.python_version(), "torch": str(torch.__version__),
            "numpy": np.__version__, "numba": _numba_version(),
        },
        "platform": {
            "system": platform.platform(), "machine": platform.machine(), "threads": torch.get_num_threads(),
        },
    }  # fmt: skip


def _numba_version() -> str:
    from importlib.metadata import version

    return version("numba")


class _Run:
    """One process's part of a run."""

    def __init__(self, resolved: Resolved, folder: RunDir) -> None:
        self.resolved, self.folder = resolved, folder
        self.trainer = build_trainer(resolved)
        self.events_before: list[dict[str, Any]] = []
        check = resolved.config.check
        self.checker = None if check is None else Checker(self.trainer.net, parse_checks(check))

    def load(self) -> None:
        """Continue from the checkpoint, if the run lived to write one."""
        checkpoint = self.folder.checkpoint
        if checkpoint.is_file():
            self.trainer.load(checkpoint)
            self.events_before = _events_in(checkpoint)
            if self.checker is not None:
                self.checker.restore(json.loads(_notes(checkpoint)[CHECKS_NOTE]))
        self.folder.cut_metrics(self.trainer.step_index)

    def events(self) -> list[dict[str, Any]]:
        """Return what the hardware did in all training steps of the run so far."""
        return merge_events(self.events_before, self.trainer.net.report())

    def save(self) -> None:
        self.folder.sync_metrics()
        rows = self.events()
        # In one file, so that no kill can leave the state of one step beside the events of another.
        text = json.dumps(rows)
        notes = {EVENTS_NOTE: text, EVENTS_HASH: _sha256(text)}
        if self.checker is not None:
            notes[CHECKS_NOTE] = json.dumps(asdict(self.checker.counts))
        self.trainer.save(self.folder.checkpoint, notes)
        checks = None if self.checker is None else self.checker.report()
        self.folder.write_events(self.trainer.step_index, rows, checks)

    def step(self) -> StepRecord:
        """Do one training step, evaluate where one is due, and write its line."""
        config, data = self.resolved.config, self.resolved.data
        images, labels = training_batch(data, config.seed, self.trainer.step_index, config.batch)
        with nullcontext() if self.checker is None else self.checker.watching():
            loss = float(self.trainer.step(torch.from_numpy(images), torch.from_numpy(labels)))
        done = self.trainer.step_index
        due = done % (config.eval_every or self.resolved.per_epoch) == 0 or done == self.resolved.steps
        record = StepRecord(done, done // self.resolved.per_epoch, loss, None, self.trainer.digest().hex)
        try:
            record = replace(record, accuracy=self._evaluate()) if due else record
        except TrainingStopped:
            # The step is done, and its state will be saved: it keeps its line.
            self.folder.append(record.as_plain())
            raise
        self.folder.append(record.as_plain())
        return record

    def _evaluate(self) -> float:
        """Return the accuracy, and keep the GEMMs of evaluation out of the report of training."""
        self.events_before = self.events()
        try:
            return evaluate(self.trainer, self.resolved.data, self.resolved.config.batch)
        finally:
            self.trainer.net.reset_report()


def _notes(checkpoint: Path) -> dict[str, str]:
    with safe_open(checkpoint, framework="numpy") as file:
        return file.metadata() or {}


def _events_in(checkpoint: Path) -> list[dict[str, Any]]:
    notes = _notes(checkpoint)
    text = notes.get(EVENTS_NOTE)
    if text is None or notes.get(EVENTS_HASH) != _sha256(text):
        rule = "has no events of its run" if text is None else "the events of its run are damaged"
        raise InputError(f"{checkpoint}: {rule}; resume from a file that `fqtsim train` wrote")
    rows: list[dict[str, Any]] = json.loads(text)
    return rows


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _open(resolved: Resolved, out: Path, resume: bool) -> _Run:
    folder = RunDir(out)
    if resume and folder.exists:
        folder.check_same(describe(resolved))
        run_part = _Run(resolved, folder)
        run_part.load()
        return run_part
    if resume and not out.is_dir():
        raise InputError(f"{out}: no such folder: --resume needs the folder of an earlier run; check --out")
    run_part = _Run(resolved, folder)
    folder.create(describe(resolved))
    return run_part


def run(
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    on_start: Callable[[int, int], None] | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
) -> RunResult:
    """Train as `config` says, in the folder `out`; with `resume`, go on from its last checkpoint.

    `on_start` is told the steps already done and the steps of the run, `on_step` each line. Raises InputError
    for a bad configuration, an existing folder without `resume` and a resume that changes anything;
    TrainingStopped where a step meets NaN or infinity, with the state before that step saved; CheckFailed where a
    check finds a wrong GEMM, with a reproducer saved in the folder and the last checkpoint left as it is.
    """
    if not resume:
        RunDir(out).refuse_existing()
    resolved = resolve(config)
    part = _open(resolved, out, resume)
    if on_start is not None:
        on_start(part.trainer.step_index, resolved.steps)
    with interruptible() as asked:
        try:
            while part.trainer.step_index < resolved.steps and not asked.is_set():
                record = part.step()
                if on_step is not None:
                    on_step(record)
                if record.step % config.save_every == 0:
                    part.save()
        except CheckFailed as error:
            error.save(out)
            raise
        except TrainingStopped:
            # The state before the bad step is intact (S5.9); after any other error it may be half a step.
            part.save()
            raise
        part.save()
    done = part.trainer.step_index
    accuracy = part.folder.last_accuracy()
    return RunResult(
        out,
        done,
        resolved.steps,
        str(part.trainer.digest()),
        accuracy,
        len(resolved.data.test_y),
        done < resolved.steps,
        () if resolved.weights is None else tuple(resolved.weights.notes),
    )
