"""`shrink` from beginning to end: instrumented run, search, confirmation, files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fqtsim.errors import InputError, TrainingStopped
from fqtsim.evaluate.job import Job
from fqtsim.evaluate.shrink.answer import (
    Original,
    hardware_options,
    read_original,
    write_answer,
)
from fqtsim.evaluate.shrink.bounds import NARROWEST
from fqtsim.evaluate.shrink.confirm import Check, check, hopeless, points, try_candidate
from fqtsim.evaluate.shrink.instrument import Seen, as_plain, from_plain, instrumented_run
from fqtsim.evaluate.shrink.runs import UNMEASURED, Row, Runs
from fqtsim.evaluate.shrink.search import Outcome, Trial, after_refusal, require_optuna, search, within_tolerance
from fqtsim.evaluate.shrink.space import (
    RANDOM_BITS,
    Candidate,
    Space,
    cost,
    in_order,
    narrowed,
    searched_gemms,
    space_of,
)
from fqtsim.recipe.load import load_recipe
from fqtsim.train.config import TrainConfig
from fqtsim.train.rundir import write_text

PLAN, SEEN, STUDY, ROWS = "plan.json", "seen.json", "study.sqlite", "results.sqlite"


@dataclass(frozen=True)
class Plan:
    """What a shrink is asked to do."""

    #: The run: one hardware file, its recipe, model and data; its seed is the first one of the search.
    config: TrainConfig
    #: Points of accuracy that may be lost against the file's own widths.
    tolerance: float = 1.0
    #: Seeds of the search, and fresh ones of the confirmation.
    seeds: int = 3
    confirm_seeds: int = 5
    trials: int = 30
    per_layer: bool = True
    #: Narrowest accumulator tried.
    floor: int = NARROWEST
    #: Processes; results do not depend on it.
    workers: int = 1

    def checked(self) -> Plan:
        """Return the plan. Raises InputError where a number is out of range, or more than one hardware is given."""
        if len(self.config.hardware) != 1 or "=" in self.config.hardware[0]:
            raise InputError(f"hardware = {self.config.hardware}: must be one name or file; shrink one at a time")
        if not 0 < self.tolerance <= 100:
            raise InputError(f"tolerance = {self.tolerance}: must be above 0 and at most 100 points; for example 1.0")
        for name, least in (("seeds", 1), ("confirm_seeds", 1), ("trials", 1), ("workers", 1), ("floor", NARROWEST)):
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least {least}; use {least}")
        return self

    @property
    def search_seeds(self) -> range:
        """Seeds of the search."""
        return range(self.config.seed, self.config.seed + self.seeds)

    @property
    def fresh_seeds(self) -> range:
        """Seeds that the search has not used."""
        return range(self.search_seeds.stop, self.search_seeds.stop + self.confirm_seeds)


@dataclass(frozen=True)
class Answer:
    """What a shrink found."""

    space: Space
    seen: tuple[Seen, ...]
    candidate: Candidate
    #: On fresh seeds: the candidate, and one array for all layers (the same where the search was per GEMM).
    check: Check
    shared_check: Check
    trials: tuple[Trial, ...]
    #: Candidates that the search held to be within tolerance, and the fresh seeds did not.
    refuted: int
    #: One array for all layers, and each layer's own.
    shared_file: Path
    layer_files: dict[str, Path]

    @property
    def narrower(self) -> bool:
        """Whether anything got narrower than in the file."""
        return cost(self.candidate) < cost(self.space.own())

    @property
    def options(self) -> str:
        """The `--hardware` options that train on the answer."""
        return hardware_options(self.layer_files) if self.layer_files else f"--hardware {self.shared_file}"


def shrink(
    plan: Plan, out: Path, command: str = "fqtsim shrink", say: Callable[[str], None] = lambda _: None
) -> Answer:
    """Find the narrowest accumulators and the fewest random bits that still train, and write them to `out`.

    The same call again goes on where an earlier one was killed. `say` is told what happens, line by line. Raises
    InputError for bad input and for a folder of another shrink, TrainingStopped where the file's own widths diverge.
    """
    require_optuna()
    recipe = load_recipe(plan.checked().config.recipe, plan.config.set_recipe)
    original = read_original(plan.config.hardware[0], plan.config.set_hardware)
    gemms = searched_gemms(original.hardware, recipe)
    _open_folder(plan, out)
    with Runs(out / ROWS, plan.config, plan.workers) as runs, _writable(out):
        by_place = {one.place: one for one in _instrumented(plan, out, runs, say) if one.gemm in gemms}
        seen = [by_place[place] for place in in_order(by_place)]
        needed = {one.place: one.seen_bits for one in seen}
        space = space_of(original.hardware, recipe, needed, plan.floor, plan.per_layer)
        own = _trained(runs.own(plan.search_seeds))
        say(f"search: {plan.trials} trials of up to {plan.seeds} runs, from {cost(space.seen())} bits as seen")

        def evaluate(candidate: Candidate) -> Outcome:
            run = partial(runs.candidate, space, candidate)
            return try_candidate(run, own, plan.tolerance, plan.workers)

        trials = search(space, plan.trials, evaluate, out / STUDY, plan.config.seed, lambda t: say(_trial_line(t)))
        return _Confirmation(plan, out, runs, space, original, say).answer(seen, trials, command)


class _Confirmation:
    """Candidates against fresh seeds, cheapest first, and the files of the first that holds."""

    def __init__(
        self, plan: Plan, out: Path, runs: Runs, space: Space, original: Original, say: Callable[[str], None]
    ) -> None:
        self.plan, self.out, self.runs, self.space, self.original, self.say = plan, out, runs, space, original, say
        self.own = _trained(runs.own(plan.fresh_seeds))
        self.fp32 = runs.fp32(plan.fresh_seeds)

    def answer(self, seen: list[Seen], trials: list[Trial], command: str) -> Answer:
        """Return the cheapest candidate that fresh seeds confirm; the file's own widths always are."""
        ends = [self.space.seen(), self.space.own()]
        queue = [one for one in within_tolerance(trials) if one not in ends] + ends
        refuted = 0
        while queue:
            candidate = queue[0]
            # The file's own widths have been run.
            run = (
                self.runs.own if candidate == self.space.own() else partial(self.runs.candidate, self.space, candidate)
            )
            checked = self._check(run)
            self.say(f"confirm: {cost(candidate)} bits: {checked.words}{'' if checked.confirmed else ': refuted'}")
            if checked.confirmed:
                return self._write(seen, trials, candidate, checked, refuted, command)
            refuted += 1
            queue = after_refusal(queue, candidate)
        raise TrainingStopped("the file's own widths gave different results in two runs; report this")

    def _check(self, run: Callable[[Sequence[int]], list[Row]]) -> Check:
        """Run the fresh seeds, as far as they leave a doubt, and judge them."""
        rows: list[Row] = []
        seeds = list(self.plan.fresh_seeds)
        for first in range(0, len(seeds), self.plan.workers):
            rows += run(seeds[first : first + self.plan.workers])
            if any(hopeless(ours, own, self.plan.tolerance) for ours, own in zip(rows, self.own, strict=False)):
                break
        return check(rows, self.own, self.fp32, self.plan.tolerance)

    def _write(
        self, seen: list[Seen], trials: list[Trial], candidate: Candidate, checked: Check, refuted: int, command: str
    ) -> Answer:
        shared = checked
        widest, bits = self.space.widest(candidate), candidate.get(RANDOM_BITS)
        if self.space.per_layer and any(w != widest[gemm] for (_, gemm), w in self.space.widths(candidate).items()):
            hardware = narrowed(self.original.hardware, widest, bits)
            changes = {gemm: str(width) for gemm, width in widest.items()}
            shared = self._check(partial(self.runs.on, {"*": hardware}, changes))
            self.say(f"confirm: one array for all layers: {shared.words}")
        remarks = _remarks(self.plan, self.original, checked, shared, command)
        path, layers = write_answer(self.original, self.space, candidate, self.out, remarks)
        return Answer(
            self.space, tuple(seen), candidate, checked, shared, tuple(trials), refuted, path, layers
        )  # fmt: skip


def _remarks(plan: Plan, original: Original, checked: Check, shared: Check, command: str) -> list[str]:
    config, seeds = plan.config, plan.fresh_seeds
    one = f" (one array for all layers: {shared.words})" if shared is not checked else ""
    return [
        f"From {original.hardware.name} by: {command}",
        f"{config.model} on {config.data}, recipe {config.recipe}, tolerance {plan.tolerance:g} points, "
        f"seeds {seeds.start}..{seeds.stop - 1}:",
        f"against the widths before: {checked.words}{one};",
        f"against fp32: {points(checked.against_fp32)}.",
    ]


def _trial_line(trial: Trial) -> str:
    outcome = trial.outcome
    word = "within tolerance" if outcome.within else "not within tolerance"
    runs = f"{outcome.seeds} run{'s' * (outcome.seeds != 1)}"
    return f"trial {trial.number + 1}: {trial.cost} bits, {100 * outcome.difference:+.1f} points, {runs}: {word}"


def _trained(rows: list[Row]) -> list[Row]:
    for row in rows:
        if row["status"] != "done":
            raise TrainingStopped(
                f"seed {row['seed']} on the file's own widths: {row['message']}; nothing to shrink to"
            )
    return rows


def _instrumented(plan: Plan, out: Path, runs: Runs, say: Callable[[str], None]) -> list[Seen]:
    path = out / SEEN
    if path.is_file():
        return from_plain(json.loads(path.read_text(encoding="utf-8")))
    job = runs.job(plan.config.seed)
    say(f"instrumented run: {job.plain['steps']} steps on the file's own widths")
    seen = instrumented_run(job)
    write_text(path, json.dumps(as_plain(seen), indent=1))
    return seen


def _open_folder(plan: Plan, out: Path) -> None:
    """Make the folder, or find it to be that of the same shrink. Raises InputError."""
    path = out / PLAN
    run = Job.of(plan.config, UNMEASURED).key
    asked = {
        "run": run, "tolerance": plan.tolerance, "seeds": plan.seeds,
        "confirm_seeds": plan.confirm_seeds, "trials": plan.trials, "per_layer": plan.per_layer, "floor": plan.floor,
    }  # fmt: skip
    if not path.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise InputError(f"{out}: is not empty and holds no shrink; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asked, indent=1))
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path}: is not the plan of a shrink; choose another --out") from None
    other = [key for key, value in asked.items() if before.get(key) != value and key != "trials"]
    if other:
        names = ", ".join("model, data, recipe, hardware, seed or steps" if key == "run" else key for key in other)
        raise InputError(f"{out}: was begun with another {names}; repeat its command, or choose another --out")


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    """Turn a full disk into one line; what is finished stands."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror}); finished runs stand, repeat the command"
        ) from None
