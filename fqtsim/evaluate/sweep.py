"""A sweep: every design of a grid and the baselines, over the same seeds, into one results file and its report."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from fqtsim.errors import InputError
from fqtsim.evaluate.engine import Row, cores, run_jobs
from fqtsim.evaluate.job import BASELINES, Design, Job, Measure
from fqtsim.evaluate.store import Store
from fqtsim.recipe.load import load_recipe
from fqtsim.train.config import TrainConfig, build_trainer, resolve
from fqtsim.train.loop import interruptible

if TYPE_CHECKING:
    from rich.console import Console

RESULTS, PAGE = "results.sqlite", "report.html"
#: What the baselines' forward runs on: wide enough that no sum of a usual network reaches its ends.
BASELINE_HARDWARE = "int8_acc32_wrap"
#: Sections of a recipe that say how a network trains, which baselines must share with the designs.
_TRAINING = ("optimizer", "schedule")


@dataclass(frozen=True)
class Plan:
    """What a sweep is asked to run and how to judge it."""

    designs: Sequence[Design]
    model: str
    data: str
    #: Every design and baseline trains once per seed: same initialisation, same order of data.
    seeds: Sequence[int]
    #: Exactly one of steps and epochs.
    steps: int | None = None
    epochs: int | None = None
    #: Images per step.
    batch: int = 128
    backend: str = "emulator"
    #: Points of accuracy that a design may lose.
    tolerance: float = 1.0
    #: The command line, for the report.
    command: str = ""
    measure: Measure | None = None

    def config(self, design: Design, seed: int) -> TrainConfig:
        """Return the run of one design with one seed."""
        return TrainConfig(
            self.model, self.data, design.recipe, design.hardware, self.backend, seed, self.steps, self.epochs,
            self.batch, set_hardware=dict(design.set_hardware), set_recipe=dict(design.set_recipe),
        )  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands, for whoever shows it."""

    #: Runs in the file, of all runs of the plan.
    done: int
    total: int
    running: int
    #: Estimate of the seconds that the rest takes; None before the first run has finished.
    left: float | None
    #: True once Ctrl-C asked for the end, which comes when the running ones have finished.
    stopping: bool


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    out: Path
    #: Runs of the plan, those found finished at the start, and those of this call by status.
    total: int
    found: int
    ran: Mapping[str, int]
    #: Runs in the file that belong to other plans, and so to no report of this one.
    others: int
    #: True where Ctrl-C ended it early; finished runs stand.
    interrupted: bool


def baselines(plan: Plan) -> list[Design]:
    """Return fp32 and qat with the optimizer and schedule of the plan's designs.

    Raises InputError where two designs train differently: no baseline could then be compared with both.
    """
    wanted: dict[str, Any] = {}
    for design in plan.designs:
        with _naming(design):
            training = _training(design.recipe, design.set_recipe)
        if wanted and training != wanted:
            keys = [key for key in {**wanted, **training} if wanted.get(key) != training.get(key)]
            rule = f"differs from {plan.designs[0].label} in {', '.join(keys)}, and fp32 and qat train one way"
            raise InputError(f"design {design.label}: {rule}; run one sweep for each")
        wanted = training
    found = []
    for recipe in BASELINES:
        own = _training(recipe, {})
        changes = {key: _text(value) for key, value in wanted.items() if own.get(key) != value}
        found.append(Design(recipe, (BASELINE_HARDWARE,), {}, changes))
    return found


def _training(recipe: str, overrides: Mapping[str, str]) -> dict[str, Any]:
    """Return dotted key -> value of what a recipe says of the update."""
    plain = load_recipe(recipe, overrides).model_dump(mode="json", exclude_none=True)
    return {f"{section}.{key}": value for section in _TRAINING for key, value in plain[section].items()}


def _text(value: Any) -> str:
    """Return a value as the text of --set."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def make_jobs(plan: Plan) -> list[Job]:
    """Return every run of the plan: baselines first, then the designs, a seed of all before the next seed.

    Everything is read and checked, so that no run can fail later for what is known now. Raises InputError that
    names the design.
    """
    if not plan.designs or not plan.seeds:
        raise InputError("sweep: needs at least one design and one seed; name --hardware, --recipe and --seeds")
    if len(set(plan.seeds)) < len(plan.seeds):
        raise InputError(f"seeds = {list(plan.seeds)}: one is given twice; runs of one seed are the same run")
    first = baselines(plan)
    jobs = []
    for group in (first, plan.designs):
        for design in group:
            _check(plan, design)
        jobs += [_job(plan, design, seed) for seed in plan.seeds for design in group]
    labels: dict[str, str] = {}
    for job in jobs:
        label = labels.setdefault(job.key, job.design.label)
        if label != job.design.label:
            raise InputError(f"design {job.design.label}: is the same as {label}; keep one")
    return jobs


def _job(plan: Plan, design: Design, seed: int) -> Job:
    return Job.of(plan.config(design, seed), plan.measure)


def _check(plan: Plan, design: Design) -> None:
    """Build the design's network once. Raises InputError that names the design."""
    with _naming(design):
        build_trainer(resolve(plan.config(design, plan.seeds[0])))


@contextmanager
def _naming(design: Design) -> Iterator[None]:
    """Put the design's name before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"design {design.label}: {error}") from None


class Times:
    """Seconds that finished runs took, and from them those that the others will take."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def add(self, row: Row) -> None:
        """Take note of a run that was not cut short."""
        if row["status"] == "done":
            for name in self._names(row["design"]["label"], row["design"]["recipe"]):
                self._seconds[name].append(row["seconds"])

    def left(self, waiting: Sequence[Job], workers: int) -> float | None:
        """Return the seconds that `waiting` takes on so many workers; None before the first run is known.

        A run is expected to take as long as the others of its design, else of its recipe, else of all.
        """
        if not self._seconds:
            return None
        total = 0.0
        for job in waiting:
            names = self._names(job.design.label, job.design.recipe)
            total += mean(next(self._seconds[name] for name in names if name in self._seconds))
        return total / max(1, min(workers, len(waiting)))

    @staticmethod
    def _names(label: str, recipe: str) -> tuple[tuple[str, ...], ...]:
        return ("design", label), ("recipe", recipe), ()


def sweep(
    plan: Plan,
    out: Path,
    workers: int | None = None,
    scheduler: str | None = None,
    on_start: Callable[[int, int], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Run what of the plan is not in OUT/results.sqlite yet, and write each row there as it finishes.

    `on_start` is told the runs found finished and the runs of the plan. The first Ctrl-C waits for the running
    ones, the second drops them. Raises InputError for anything wrong in the plan, for a file that cannot be written
    and for a scheduler that goes away: finished rows stand, and the same call goes on.
    """
    jobs = make_jobs(plan)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{out}: is a file; --out names a folder") from None
    with _alone(out), Store.create(out / RESULTS) as store:
        store.write_plan(_plan_record(plan, jobs))
        part = _Part(jobs, store, workers or cores(), on_progress)
        if on_start is not None:
            on_start(part.found, len(jobs))
        with interruptible() as stop:
            for job, row in run_jobs(
                list(part.waiting.values()), workers, scheduler, stop, lambda running: part.tell(running, stop)
            ):
                part.keep(job, row)
            part.tell(0, stop)
        others = len(set(store.status()) - {job.key for job in jobs})
    return Outcome(out, len(jobs), part.found, part.ran, others, bool(part.waiting))


class _Part:
    """What one call does of a sweep."""

    def __init__(
        self, jobs: Sequence[Job], store: Store, workers: int, on_progress: Callable[[Progress], None] | None
    ) -> None:
        self._store, self._workers, self._on_progress = store, workers, on_progress
        status = store.status()
        self.total = len(jobs)
        #: Key -> job of what has no row yet, or one that failed.
        self.waiting = {job.key: job for job in jobs if status.get(job.key, "failed") == "failed"}
        self.found = len(jobs) - len(self.waiting)
        self.ran: Counter[str] = Counter()
        self._times = Times()
        ours = {job.key for job in jobs}
        for key, row in store.rows().items() if self.found else ():
            if key in ours:
                self._times.add(row)

    def keep(self, job: Job, row: Row) -> None:
        """Write a finished run."""
        self._store.add(row)
        self._times.add(row)
        self.ran[row["status"]] += 1
        del self.waiting[job.key]

    def tell(self, running: int, stop: threading.Event) -> None:
        """Say where the sweep stands."""
        if self._on_progress is not None:
            left = self._times.left(list(self.waiting.values()), max(self._workers, running))
            done = self.total - len(self.waiting)
            self._on_progress(Progress(done, self.total, running, left, stop.is_set()))


def _alone(out: Path) -> Any:
    """Return a lock on the folder, which its process cannot outlive. Raises InputError where another sweep has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another sweep writes here; wait for it, or name another folder") from None


def _plan_record(plan: Plan, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return what a report needs to know: which rows are of this plan, in order, and how to judge them."""
    return {
        "model": plan.model, "data": plan.data, "seeds": [str(seed) for seed in plan.seeds],
        "tolerance": plan.tolerance, "command": plan.command, "keys": [job.key for job in jobs],
    }  # fmt: skip


def report(out: Path, console: Console, detail: bool = False, tolerance: float | None = None) -> list[Row]:
    """Write OUT/report.html from OUT/results.sqlite and print the table; return the rows that it shows.

    `tolerance` judges by other points than the sweep asked for. Raises InputError where there are no rows.
    """
    from fqtsim.evaluate import page, summary, table

    with Store.read(out / RESULTS) as store:
        plan, stored = store.plan(), store.rows()
    rows = [stored[key] for key in plan["keys"] if key in stored]
    if not rows:
        raise InputError(f"{out / RESULTS}: holds no finished run yet; give the sweep's command again")
    summaries = summary.summarize(rows, plan["tolerance"] if tolerance is None else tolerance)
    table.show(console, summaries, detail=detail)
    title = f"{plan['model']} on {plan['data']}"
    page.write_page(summaries, rows, out / PAGE, title, plan["command"])
    return rows
