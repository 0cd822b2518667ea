"""explain_mismatch: try changes of a datapath on wrong and right outputs, and keep those that reproduce all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from fqtsim.api.arrays import checked_operands, checked_start, to_numpy
from fqtsim.errors import InputError
from fqtsim.hw.spec import Datapath
from fqtsim.identify.candidates import pairs, single_changes
from fqtsim.identify.change import Array, Change, Problem, datapath_codes, outputs
from fqtsim.identify.fitted import fitted_changes

NONE_OF_THESE = "none of the changes tried reproduces these outputs"
MOST_CAUSES = 12
"""Changes that are listed where the outputs cannot tell them apart."""
ENOUGH_FOR_PAIRS = 3
"""Wrong outputs, of different codes, below which pairs would be found by chance."""
MOST_WORK = 1 << 32
"""Products up to which a change is run on all of a GEMM; beyond, on as many rows and columns as this allows."""
MOST_STEPPED_WORK = 1 << 27
"""The same for changes that have no fast kernel."""
SCREEN_WORK, SCREEN_LOOKS = 1 << 16, 3
"""Products of the looks, and looks, that must show a change to help before it can be called a part of a fault."""
LONG_K = 1 << 14
"""K beyond which few outputs are looked at before a change is run in full."""
LONGEST_K_OF_PAIRS = 1 << 13
"""Longest K at which pairs are tried, of the smallest GEMM with a wrong output."""


class Observation(NamedTuple):
    """Operands a (M, K) and b (K, N), what somebody got for them (M, N), and the start values, if any."""

    a: Any
    b: Any
    observed: Any
    c: Any = None


@dataclass(frozen=True)
class Cause:
    """A change of the datapath that gives the observed outputs: a suggestion, since others may give them as well."""

    #: Completes "the outputs are what comes out where ...".
    text: str
    #: Wrong outputs that it reproduces, and wrong outputs.
    explained: int
    wrong: int
    #: Outputs that it was compared with: all of them, or of a very large GEMM the rows and columns that were run.
    outputs: int
    #: Whether every one of them is reproduced, wrong and right ones.
    reproduces_all: bool
    #: 1 for a single change, 2 for a pair.
    count: int
    #: The change itself, for tell_apart().
    change: Any = field(repr=False, compare=False)

    def __str__(self) -> str:
        if self.reproduces_all:
            return f"{self.text} (reproduces all {self.outputs} outputs, {self.wrong} of them wrong)"
        return f"{self.text} (reproduces {self.explained} of {self.wrong} wrong outputs, so at most a part of it)"


@dataclass(frozen=True)
class _Case:
    """An observation made ready: the problem, what should have come out and what did."""

    problem: Problem
    expected: Array
    observed: Array

    @property
    def wrong(self) -> Array:
        found: Array = self.expected != self.observed
        return found


class _Look(NamedTuple):
    """Some outputs of one case: rows and columns, as indices."""

    case: _Case
    rows: Array
    cols: Array

    @property
    def work(self) -> int:
        return int(len(self.rows) * len(self.cols) * self.case.problem.k)


def explain_mismatch(
    a: Any, b: Any, datapath: Datapath, observed: Any, c: Any = None, *, with_pairs: bool = True, partial: bool = False
) -> list[Cause]:
    """Return the changes of a datapath that reproduce all observed outputs (M, N), simplest and most usual first.

    An empty list: no output is wrong, or none of the changes tried reproduces them. Changes that these outputs
    cannot tell apart are all listed, at most MOST_CAUSES; tell_apart() makes inputs that can. partial: where nothing
    reproduces all of them, also return changes that reproduce wrong outputs and break no right one.

    Raises InputError for operands that gemm() refuses and observed codes of another shape or of floats.
    """
    return explain_mismatches([Observation(a, b, observed, c)], datapath, with_pairs=with_pairs, partial=partial)


def explain_mismatches(
    observations: Iterable[Observation], datapath: Datapath, *, with_pairs: bool = True, partial: bool = False
) -> list[Cause]:
    """Return the changes that reproduce all outputs of all observations of one datapath; see explain_mismatch."""
    cases = [prepared(observation, datapath) for observation in observations]
    faulty = sorted((case for case in cases if case.wrong.any()), key=lambda case: case.problem.work)
    if not faulty:
        return []
    looks = [*(_tiny(case) for case in faulty[:1]), *sorted(map(_sample, cases), key=lambda look: look.work)]
    # What is wrong tells changes apart sooner than what is right, but not where it takes a long K to be wrong.
    looks.sort(key=lambda look: (look.work > SCREEN_WORK, not look.case.wrong.any(), look.work))
    singles = [*single_changes(datapath), *fitted_changes(faulty[0].problem, faulty[0].expected, faulty[0].observed)]
    found = _survivors(singles, looks, cases)
    if not found and with_pairs and _enough_for_pairs(faulty):
        found = _survivors(pairs(singles), looks, cases)
    if not found and partial:
        return _partial(singles, cases, looks)
    return found


def prepared(observation: Observation, datapath: Datapath) -> _Case:
    """Return an observation with what the datapath gives for it. Raises InputError as explain_mismatch does."""
    left, right = checked_operands(observation.a, observation.b, datapath)
    shape = (left.shape[0], right.shape[1])
    observed = to_numpy(observation.observed, "observed")
    if observed.shape != shape:
        raise InputError(f"observed.shape = {observed.shape}: must be {shape}, rows of a by columns of b; reshape it")
    if observed.dtype == np.uint64:
        observed = observed.astype(np.int64)
    start = checked_start(observation.c, datapath, shape)
    problem = Problem(left.astype(np.int32), right.astype(np.int32), start, datapath)
    return _Case(problem, datapath_codes(problem), observed.astype(np.int64, copy=False))


def _enough_for_pairs(faulty: Sequence[_Case]) -> bool:
    if faulty[0].problem.k > LONGEST_K_OF_PAIRS:
        return False
    seen = {
        (int(code), int(found))
        for case in faulty
        for code, found in zip(case.expected[case.wrong][:99], case.observed[case.wrong][:99], strict=True)
    }
    return len(seen) >= ENOUGH_FOR_PAIRS


def _tiny(case: _Case) -> _Look:
    """Two wrong outputs and what lies between their rows and columns."""
    places = np.argwhere(case.wrong)[[0, -1]]
    return _Look(case, np.unique(places[:, 0]), np.unique(places[:, 1]))


def _sample(case: _Case) -> _Look:
    """A few rows and columns with wrong outputs, and the corners, which may be right."""
    m, n = case.problem.shape
    places = np.argwhere(case.wrong)
    if len(places) and case.problem.k > LONG_K:
        return _tiny(case)
    chosen = places[np.linspace(0, len(places) - 1, min(len(places), 5)).astype(int)] if len(places) else places
    return _Look(case, np.unique(np.r_[chosen[:, 0], _ends(m)]), np.unique(np.r_[chosen[:, 1], _ends(n)]))


def _ends(size: int) -> list[int]:
    return sorted({0, size // 2, size - 1}) if size else []


def _survivors(changes: Iterable[Change], looks: Sequence[_Look], cases: Sequence[_Case]) -> list[Cause]:
    found: list[Cause] = []
    for change in changes:
        if len(found) < MOST_CAUSES and all(_agrees(change, look) for look in looks):
            cause = _judged(change, cases)
            if cause is not None and cause.reproduces_all:
                found.append(cause)
    return found


def _agrees(change: Change, look: _Look) -> bool:
    """Tell whether a change gives the observed codes of some outputs."""
    case = look.case
    if change.reach == "outputs" and case.problem.work > MOST_STEPPED_WORK:
        return False
    codes = _codes(change, case, look.rows, look.cols)
    return bool(np.array_equal(codes, case.observed[np.ix_(look.rows, look.cols)]))


def _codes(change: Change, case: _Case, rows: Array, cols: Array) -> Array:
    """Return the codes of a change; where it cannot be computed, those that are expected."""
    codes = outputs(change, case.problem, rows, cols)
    return case.expected[np.ix_(rows, cols)] if codes is None else codes


def _judged(change: Change, cases: Sequence[_Case]) -> Cause | None:
    """Run a change on everything and count."""
    explained = wrong = total = 0
    every = True
    for case in cases:
        rows, cols = _affordable(change, case)
        codes, place = _codes(change, case, rows, cols), np.ix_(rows, cols)
        agreed, faulty = codes == case.observed[place], case.wrong[place]
        every = every and bool(agreed.all())
        explained += int((agreed & faulty).sum())
        wrong += int(faulty.sum())
        total += codes.size
    return Cause(change.text, explained, wrong, total, every, change.count, change)


def _affordable(change: Change, case: _Case) -> tuple[Array, Array]:
    """Return the rows and columns on which a change is run: all of them unless there are too many products."""
    m, n = case.problem.shape
    limit = MOST_STEPPED_WORK if change.run or change.table else MOST_WORK
    rows, cols = np.arange(m), np.arange(n)
    if case.problem.work <= limit or change.reach == "outputs":
        return rows, cols
    side = max(8, int((limit / case.problem.k) ** 0.5))
    look = _sample(case)
    return _filled(look.rows, m, side), _filled(look.cols, n, side)


def _filled(chosen: Array, size: int, side: int) -> Array:
    return np.unique(np.r_[chosen, np.linspace(0, size - 1, min(side, size)).astype(int)])


def _partial(singles: Iterable[Change], cases: Sequence[_Case], looks: Sequence[_Look]) -> list[Cause]:
    """Return the three changes that reproduce most wrong outputs, of those that break no right one.

    Most changes do nothing for most faults, so a few small wrong looks must show a change to help before it is run on
    the others.
    """
    wrong = [look for look in looks if look.work <= SCREEN_WORK and look.case.wrong.any()][:SCREEN_LOOKS]
    found = []
    for change in singles:
        if not any(_helps(change, look) for look in wrong) or any(_breaks(change, look) for look in looks):
            continue
        cause = _judged(change, cases)
        if cause is not None and 2 * cause.explained >= cause.wrong and not _breaks_any(change, cases):
            found.append(cause)
    return sorted(found, key=lambda cause: -cause.explained)[:3]


def _helps(change: Change, look: _Look) -> bool:
    place = np.ix_(look.rows, look.cols)
    codes = _codes(change, look.case, look.rows, look.cols)
    return bool(((codes == look.case.observed[place]) & look.case.wrong[place]).any())


def _breaks(change: Change, look: _Look) -> bool:
    place = np.ix_(look.rows, look.cols)
    codes = _codes(change, look.case, look.rows, look.cols)
    return bool(((codes != look.case.observed[place]) & ~look.case.wrong[place]).any())


def _breaks_any(change: Change, cases: Sequence[_Case]) -> bool:
    return any(_breaks(change, _Look(case, *_affordable(change, case))) for case in cases)


def suggestions(causes: Sequence[Cause]) -> tuple[str, ...]:
    """Return what to tell a person, one sentence a cause; the first says so where none reproduces everything."""
    said = tuple(str(cause) for cause in causes)
    return said if any(cause.reproduces_all for cause in causes) else (NONE_OF_THESE, *said)
