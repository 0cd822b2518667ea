"""What the experiments share: runs and measurements that are never repeated, progress, paired comparisons, figures.

Training runs go through the engine of `fqtsim sweep`, and into the same kind of results file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fqtsim.evaluate.engine import attempt, cores, one_thread_for_children, run_jobs
from fqtsim.evaluate.store import Store

if TYPE_CHECKING:
    from fqtsim.evaluate.job import Job
    from fqtsim.evaluate.statistics import Difference

Row = Mapping[str, Any]
#: Points of accuracy that a design may lose and still count as training.
TOLERANCE = 1.0


def finish(jobs: Sequence[Job], out: Path, workers: int | None = None) -> dict[str, Row]:
    """Run what OUT/results.sqlite does not have yet; return key -> row of every job.

    Each row is written as its run ends, so that the same call goes on after a kill. `workers` processes, by default one
    a core; 0: this one. Raises InputError where the file cannot be written, SystemExit where a run failed (other than
    by NaN or infinity, which is a result).
    """
    out.mkdir(parents=True, exist_ok=True)
    with Store.create(out / "results.sqlite") as store:
        rows = store.rows()
        missing = [one for one in jobs if rows.get(one.key, {"status": "failed"})["status"] == "failed"]
        show = Progress("runs", len(jobs), len(jobs) - len(missing))
        for one, row in _run(missing, workers):
            store.add(row)
            rows[one.key] = row
            show.step(f"{one.design.label}, seed {row['seed']}: {row['status']} {row['message']}")
    failed = [rows[one.key] for one in jobs if rows[one.key]["status"] == "failed"]
    if failed:
        first = f"{failed[0]['design']['label']}: {failed[0]['message']}"
        raise SystemExit(f"{len(failed)} of {len(jobs)} runs failed, the first: {first}")
    return {one.key: rows[one.key] for one in jobs}


def _run(jobs: Sequence[Job], workers: int | None) -> Iterator[tuple[Job, dict[str, Any]]]:
    if workers == 0:
        yield from ((one, attempt(one)) for one in jobs)
        return
    yield from run_jobs(jobs, workers)


class Task(Protocol):
    """A measurement that no training run makes; an object that a worker process can be sent."""

    @property
    def name(self) -> str:
        """The name of its file."""

    def settings(self) -> dict[str, Any]:
        """Return what decides its result, as JSON has it."""

    def measure(self) -> Any:
        """Return the result, as JSON has it."""


def measure(tasks: Sequence[Task], out: Path, workers: int | None = None) -> dict[str, Any]:
    """Measure what OUT/NAME.json does not hold yet with the same settings; return name -> result.

    `workers` as for `finish`.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = {task.name: part for task in tasks if (part := _kept(task, out)) is not None}
    missing = [task for task in tasks if task.name not in found]
    show = Progress("measurements", len(tasks), len(found))
    for task, result in _measured(missing, workers):
        found[task.name] = {"settings": task.settings(), "result": result}
        _keep(out / f"{task.name}.json", json.dumps(found[task.name]))
        show.step(task.name)
    return {task.name: found[task.name]["result"] for task in tasks}


def _measured(tasks: Sequence[Task], workers: int | None) -> Iterator[tuple[Task, Any]]:
    if workers == 0 or not tasks:
        yield from ((task, task.measure()) for task in tasks)
        return
    context = get_context("spawn")
    size = min(workers or cores(), len(tasks))
    with one_thread_for_children(), ProcessPoolExecutor(size, context, initializer=_one_thread) as pool:
        running = {pool.submit(task.measure): task for task in tasks}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _kept(task: Task, out: Path) -> Any:
    file = out / f"{task.name}.json"
    if not file.is_file():
        return None
    part = json.loads(file.read_text(encoding="utf-8"))
    return part if part["settings"] == json.loads(json.dumps(task.settings())) else None


def _one_thread() -> None:
    import numba
    import torch

    torch.set_num_threads(1)
    numba.set_num_threads(1)


def _keep(path: Path, text: str) -> None:
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class Progress:
    """One line for each thing that ends, with the time that the others will take."""

    def __init__(self, what: str, total: int, done: int) -> None:
        self._what, self._total, self._done, self._first = what, total, done, done
        self._start = time.monotonic()
        print(f"{what}: {done} of {total} found finished", flush=True)

    def step(self, words: str) -> None:
        """Count one more."""
        self._done += 1
        each = (time.monotonic() - self._start) / (self._done - self._first)
        left = each * (self._total - self._done) / 60
        print(f"{self._what}: {self._done} of {self._total}, {left:.0f} min left: {words}", flush=True)


def judge(rows: Sequence[Row], reference: Sequence[Row]) -> tuple[str, Difference | None]:
    """Return how accuracy compares with that of the reference with the same seeds, and the paired difference.

    `diverges` where a run met NaN or infinity; else by the 95 % interval: `trains` where it lies within TOLERANCE
    points below the reference, `loses` where all of it lies lower, `undecided` otherwise.
    """
    from fqtsim.evaluate.statistics import paired

    found = paired(rows, reference)
    if any(row["status"] == "diverged" for row in rows):
        return "diverges", found
    if found is None or found.low is None or found.high is None:
        return "undecided", found
    if 100 * found.low >= -TOLERANCE:
        return "trains", found
    return ("loses" if 100 * found.high < -TOLERANCE else "undecided"), found


def interval(values: Sequence[float], comparisons: int = 1) -> tuple[float, float | None]:
    """Return the mean and half its interval (Student's t), None for one value.

    The interval is of 95 % for all of so many comparisons together (Bonferroni).
    """
    import numpy as np
    from scipy import stats

    from fqtsim.evaluate.statistics import CONFIDENCE

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    quantile = stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), len(values) - 1)
    return mean, float(quantile * stats.sem(values))


def outcome(found: Sequence[bool | None], details: str) -> str:
    """Return what came of a hypothesis with several parts: each True, False, or None where the runs cannot tell."""
    word = "Refuted" if False in found else "Undecided" if None in found or not found else "Confirmed"
    return f"{word}: {details}"


def points_words(found: Difference | None) -> str:
    """Return a difference of accuracies in points: `-0.2 +- 0.9`."""
    if found is None:
        return "-"
    return f"{100 * found.mean:+.1f}" + ("" if found.half is None else f" +- {100 * found.half:.1f}")


def interval_words(found: tuple[float, float | None], form: str) -> str:
    """Return `mean +- half` in a number format."""
    mean, half = found
    return f"{mean:{form}}" + ("" if half is None else f" +- {half:{form.lstrip('+')}}")


def run_record(row: Row) -> dict[str, Any]:
    """Return what the JSON file keeps of a run."""
    from fqtsim.evaluate.statistics import accuracy_of

    return {
        "design": row["design"]["label"], "seed": row["seed"], "status": row["status"], "message": row["message"],
        "accuracy": accuracy_of(row), "loss": row["loss"], "digest": row["digest"],
        "gradients": [[one["layer"], one["bias"], one["variance"]] for one in row["gradients"]],
        "altered": altered(row), "key": row["key"],
    }  # fmt: skip


def altered(row: Row) -> dict[str, float]:
    """Return GEMM -> share of its outputs that the hardware altered."""
    total: dict[str, list[int]] = {}
    for event in row["events"]:
        counts = total.setdefault(event["gemm"], [0, 0])
        counts[0] += int(event["altered"])
        counts[1] += int(event["outputs"])
    return {gemm: count / outputs for gemm, (count, outputs) in total.items() if outputs}


@contextmanager
def figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """Give axes (rows, columns) to draw on; write them to `path` as SVG, the same bytes for the same drawing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "fqtsim", "svg.fonttype": "none", "font.size": 8}):
        drawn, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
        yield axes
        drawn.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(drawn)


def command(script: str, arguments: Sequence[str] | None) -> str:
    """Return the command line of a run of examples/paper/SCRIPT."""
    import shlex

    return f"python examples/paper/{script} {shlex.join(sys.argv[1:] if arguments is None else arguments)}".rstrip()
