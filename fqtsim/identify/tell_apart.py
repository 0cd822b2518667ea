"""Inputs that tell changes apart which the outputs at hand do not: made, run, and shown to differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fqtsim.hw.spec import Datapath
from fqtsim.identify.change import Array, Change, Problem, outputs
from fqtsim.words import IntFormat

SIZES = (1, 2, 3, 4, 5, 7, 9, 16, 17, 33, 40, 64, 65, 100, 129, 260, 515, 1030, 2052)
MOST_QUESTIONS = 8
Answer = Callable[[Problem], "Array | None"]


class Question(NamedTuple):
    """Operands whose outputs differ between groups of changes (indices into what was asked about)."""

    a: Array
    b: Array
    c: Array | None
    #: Changes that give the same outputs; the groups' outputs differ from one another.
    groups: tuple[tuple[int, ...], ...]
    #: (M, N) outputs of each group.
    answers: tuple[Array, ...]

    def __str__(self) -> str:
        shape = f"a {self.a.shape[0]}x{self.a.shape[1]}, b {self.b.shape[0]}x{self.b.shape[1]}"
        start = "" if self.c is None else ", with start values"
        first = np.argwhere(self.answers[0] != self.answers[1])[0]
        row, col = int(first[0]), int(first[1])
        codes = ", ".join(
            f"{' = '.join(str(member + 1) for member in group)} gives {int(answer[row, col])}"
            for group, answer in zip(self.groups, self.answers, strict=True)
        )
        return f"{shape}{start}; output [{row}, {col}]: {codes}"


def tell_apart(changes: Sequence[Change], datapath: Datapath, seed: int = 0) -> list[Question]:
    """Return few, small inputs whose outputs tell these changes apart, smallest K first; changes count from 0.

    Changes that stay in one group of every question gave the same outputs on everything tried: they may be the same.
    """
    answers: list[Answer] = [lambda problem, change=change: outputs(change, problem) for change in changes]  # type: ignore[misc]
    return questions(answers, datapath, seed)


def questions(answers: Sequence[Answer], datapath: Datapath, seed: int = 0) -> list[Question]:
    """Return inputs that tell computations apart, each given as a function from a problem to codes."""
    found: list[Question] = []
    classes: list[tuple[int, ...]] = [tuple(range(len(answers)))]
    for problem in _inputs(datapath, seed):
        if all(len(group) == 1 for group in classes) or len(found) == MOST_QUESTIONS:
            break
        codes = [_answered(answer, problem) for answer in answers]
        split = [part for group in classes for part in _parts(group, codes)]
        if len(split) > len(classes):
            groups = tuple(_parts(tuple(range(len(answers))), codes))
            shown = tuple(codes[group[0]] for group in groups)
            form_a, form_b = datapath.multiplier_format("a"), datapath.multiplier_format("b")
            a, b = problem.a.astype(form_a.storage), problem.b.astype(form_b.storage)
            found.append(Question(a, b, problem.c, groups, shown))
            classes = split
    return found


def _answered(answer: Answer, problem: Problem) -> Array:
    codes = answer(problem)
    if codes is None:  # beyond 63 bits here: a question that others answer
        codes = outputs(Change("", ""), problem)
    return np.zeros(problem.shape, np.int64) if codes is None else codes


def _parts(group: tuple[int, ...], codes: Sequence[Array]) -> list[tuple[int, ...]]:
    """Split a group by what its members give."""
    parts: dict[tuple[Any, ...], list[int]] = {}
    for member in group:
        parts.setdefault((codes[member].shape, codes[member].tobytes()), []).append(member)
    return [tuple(part) for part in parts.values()]


def _inputs(datapath: Datapath, seed: int) -> Iterator[Problem]:
    """Yield problems from small to large: random codes, rails of one sign, swings between rails, with start values."""
    rng = np.random.default_rng(seed)
    form_a, form_b = datapath.multiplier_format("a"), datapath.multiplier_format("b")
    register = datapath.accumulator.register_format or IntFormat(40, True)
    low, high = register.rails(datapath.accumulator.overflow)
    for k in SIZES:
        for m, n in ((1, 1), (2, 2), (3, 5)):
            for pattern in (_random, _rails, _runs, _swings, _small):
                a, b = pattern(rng, form_a, (m, k)), pattern(rng, form_b, (n, k)).T
                c = rng.integers(low // 2, high // 2 + 1, (m, n)) if rng.integers(3) == 0 else None
                yield Problem(a.astype(np.int32), b.astype(np.int32), c, datapath)


Shape = tuple[int, int]


def _random(rng: np.random.Generator, form: IntFormat, shape: Shape) -> Array:
    return rng.integers(form.minimum, form.maximum + 1, shape)


def _small(rng: np.random.Generator, form: IntFormat, shape: Shape) -> Array:
    return rng.integers(max(form.minimum, -2), 4, shape)


def _rails(rng: np.random.Generator, form: IntFormat, shape: Shape) -> Array:
    return rng.choice([form.minimum, form.maximum, form.maximum - 1], shape)


def _runs(rng: np.random.Generator, form: IntFormat, shape: Shape) -> Array:
    """One rail along k, with a code of its own now and then."""
    line = np.broadcast_to(rng.choice([form.minimum, form.maximum], (shape[0], 1)), shape)
    return np.where(rng.random(shape) < 0.1, _random(rng, form, shape), line)


def _swings(rng: np.random.Generator, form: IntFormat, shape: Shape) -> Array:
    """One rail for a stretch of k, then the other: sums leave a register and come back."""
    edge = rng.integers(0, shape[1] + 1)
    line = np.where(np.arange(shape[1]) < edge, form.maximum, form.minimum)
    return np.where(rng.random(shape) < 0.1, _random(rng, form, shape), line)
