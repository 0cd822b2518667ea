"""The search: fewest bits that still train, kept in an Optuna study so that a killed search goes on.

Three trials of four narrow the cheapest candidate within tolerance: all accumulators, those of one GEMM, or one,
by 1, 2, 4, ... bits, and by half of what is open once a failure ends that. A failure rules out everything that is
nowhere wider. That holds for saturating registers but for noise; the other trials, Optuna's, do not assume it and
trade bits between layers. Each proposal is a function of the finished trials alone.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fqtsim.errors import InputError, MissingPackage
from fqtsim.evaluate.shrink.space import RANDOM_BITS, Candidate, Space, Variable, cost

#: Every how many trials the sampler proposes.
SAMPLED = 4
#: Bits of an accumulator above and below the cheapest candidate that the sampler may go.
SLACK = 2
STUDY_NAME = "shrink"


@dataclass(frozen=True)
class Outcome:
    """What the runs of a candidate gave."""

    #: Mean accuracy over the seeds run, a share.
    accuracy: float
    #: Mean difference to the file's own widths over the same seeds, a share.
    difference: float
    #: Whether all seeds were run and lose no more than the tolerance on average.
    within: bool
    #: Seeds run; fewer than asked for where the first ones already decide.
    seeds: int


@dataclass(frozen=True)
class Trial:
    """A candidate that was tried."""

    number: int
    candidate: Candidate
    outcome: Outcome

    @property
    def cost(self) -> int:
        """Bits of all registers and of the random source."""
        return cost(self.candidate)


def search(
    space: Space,
    trials: int,
    evaluate: Callable[[Candidate], Outcome],
    storage: Path,
    seed: int = 0,
    on_trial: Callable[[Trial], None] | None = None,
) -> list[Trial]:
    """Try candidates until `trials` are finished, those in the study at `storage` included; return all of them.

    `on_trial` is told each trial that this call finishes. Raises InputError where the study cannot be read or
    written, MissingPackage without Optuna.
    """
    with _optuna_errors(storage):
        study = _study(storage)
        while len(history := finished(study)) < trials:
            trial = _ask(study, space, history, seed)
            candidate = {v.name: int(trial.params[v.name]) for v in space.variables}
            outcome = evaluate(candidate)
            for key, value in vars(outcome).items():
                trial.set_user_attr(key, value)
            study.tell(trial, [cost(candidate), outcome.accuracy])
            if on_trial is not None:
                on_trial(Trial(len(history), candidate, outcome))
        return history


def within_tolerance(trials: Sequence[Trial]) -> list[Candidate]:
    """Return the candidates within tolerance, cheapest first, of equal ones the more accurate first."""
    within = sorted((t for t in trials if t.outcome.within), key=lambda t: (t.cost, -t.outcome.accuracy, t.number))
    return [trial.candidate for trial in within]


def after_refusal(queue: Sequence[Candidate], refuted: Candidate) -> list[Candidate]:
    """Return the candidates still worth confirming: somewhere wider than the refuted one, without the cheapest quarter.

    A search on a few seeds picks what was lucky on them, so that close neighbours of a refuted one rarely hold.
    """
    wider = [candidate for candidate in queue if not _nowhere_wider(candidate, refuted)]
    return wider[min(len(wider) // 4, max(0, len(wider) - 2)) :]


def proposal(space: Space, history: Sequence[Trial]) -> Candidate | None:
    """Return the candidate that saves most among the next steps of every unit, None where nothing is open."""
    if history and not any(trial.outcome.within for trial in history):
        wider = _widened(space, 1 << (len(history) - 1))
        if wider != space.own():
            return wider
    best = _cheapest(space, history)
    failures = [trial.candidate for trial in history if not trial.outcome.within]
    chosen: Candidate | None = None
    for unit in _units(space):
        steps = _open_steps(best, unit, failures)
        if steps:
            stepped = _shifted(best, unit, min(_stride(best, unit), (steps + 1) // 2))
            if chosen is None or cost(stepped) < cost(chosen):
                chosen = stepped
    return chosen


def finished(study: Any) -> list[Trial]:
    """Return the finished trials of a study, in order."""
    import optuna

    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return [
        Trial(number, {name: int(bits) for name, bits in trial.params.items()}, Outcome(**trial.user_attrs))
        for number, trial in enumerate(done)
    ]


def _cheapest(space: Space, history: Sequence[Trial]) -> Candidate:
    within = [trial for trial in history if trial.outcome.within]
    return min(within, key=lambda t: (t.cost, t.number)).candidate if within else space.own()


def _units(space: Space) -> Iterator[tuple[Variable, ...]]:
    """Yield what may get narrower together: all accumulators, those of each GEMM, each variable."""
    widths = tuple(v for v in space.variables if v.name != RANDOM_BITS)
    yield widths
    for gemm in dict.fromkeys(gemm for v in widths for _, gemm in v.places):
        yield tuple(v for v in widths if v.places[0][1] == gemm)
    yield from ((v,) for v in space.variables)


def _widened(space: Space, bits: int) -> Candidate:
    """Return the widths seen and `bits` more, as far as the file's own go: what one run saw may not be enough."""
    return {v.name: min(v.own, v.ceiling + bits) for v in space.variables}


def _shifted(best: Candidate, unit: Sequence[Variable], bits: int) -> Candidate:
    return best | {v.name: max(v.floor, best[v.name] - bits) for v in unit}


def _stride(best: Candidate, unit: Sequence[Variable]) -> int:
    """Return a step one longer than all before it together, so that steps double: 1, 2, 4, ...

    Random bits start in the middle: a few of them are often enough, one accumulator bit is often too many.
    """
    if unit[0].name == RANDOM_BITS:
        return unit[0].ceiling
    return 1 + min(max(0, v.ceiling - best[v.name]) for v in unit)


def _open_steps(best: Candidate, unit: Sequence[Variable], failures: Sequence[Candidate]) -> int:
    """Return how many bits narrower a unit may get before its floor, or before a failure rules it out."""
    most = max((best[v.name] - v.floor for v in unit), default=0)
    for bits in range(1, most + 1):
        candidate = _shifted(best, unit, bits)
        if any(_nowhere_wider(candidate, failure) for failure in failures):
            return bits - 1
    return most


def _nowhere_wider(candidate: Mapping[str, int], other: Mapping[str, int]) -> bool:
    return all(bits <= other[name] for name, bits in candidate.items())


def _ask(study: Any, space: Space, history: Sequence[Trial], seed: int) -> Any:
    """Return the next trial of the study, its parameters set."""
    import optuna

    number = len(history)
    planned = space.seen() if number == 0 else None
    if number and (number % SAMPLED or not any(past.outcome.within for past in history)):
        planned = proposal(space, history)
    if planned is not None:
        study.enqueue_trial(planned)
    # Seeded anew for each trial: a search that was killed then goes on as if it had not been.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls constraints experimental
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + number, n_startup_trials=SAMPLED, constraints_func=_constraint
        )
        trial = study.ask()
    best = _cheapest(space, history)
    failures = [t.candidate for t in history if not t.outcome.within]
    for v in space.variables:
        low, high = v.floor, max(v.ceiling, v.own)
        if planned is None:
            steps = _open_steps(best, (v,), failures)
            low = best[v.name] - (steps if v.name == RANDOM_BITS else min(steps, SLACK))
            high = max(low, min(max(v.ceiling, best[v.name]), best[v.name] + SLACK))
        trial.suggest_int(v.name, low, high)
    return trial


def _constraint(trial: Any) -> tuple[float]:
    """Return a number above 0 where the trial is not within tolerance."""
    return (0.0 if trial.user_attrs.get("within") else 1.0,)


def require_optuna() -> None:
    """Raise MissingPackage, naming the extra, where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingPackage("shrink needs the package optuna; pip install 'fqtsim[evaluate]'")


@contextmanager
def _optuna_errors(storage: Path) -> Iterator[None]:
    """Turn what Optuna and its database raise into one line."""
    require_optuna()
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, OptunaError) as error:
        first = str(error).splitlines()[0]
        raise InputError(
            f"{storage}: cannot be used as a study ({first}); make room and repeat the command, or choose another --out"
        ) from None


def _study(storage: Path) -> Any:
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    study = optuna.create_study(
        storage=f"sqlite:///{storage}", study_name=STUDY_NAME, directions=["minimize", "maximize"], load_if_exists=True
    )
    _close(study)
    return study


def _close(study: Any) -> None:
    """End the trials of a search that was killed: they are proposed again."""
    from optuna.trial import TrialState

    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study.ask()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
