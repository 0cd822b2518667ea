"""A change: how a computation differs from what the datapath says, as functions that can be run on operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from fqtsim.backends import get_backend
from fqtsim.backends.exact import run_chain
from fqtsim.backends.stepwise import prepare
from fqtsim.errors import InputError
from fqtsim.hw.spec import Datapath

Array = np.ndarray[Any, Any]
Table = np.ndarray[Any, Any]

SMALL = 1 << 24
"""Products up to which the general kernel is used: it is compiled once for every change and every format."""


class Problem(NamedTuple):
    """One GEMM to run: a (M, K) and b (K, N) int32 codes, c (M, N) int64 start values or None, and the datapath."""

    a: Array
    b: Array
    c: Array | None
    datapath: Datapath

    @property
    def shape(self) -> tuple[int, int]:
        return self.a.shape[0], self.b.shape[1]

    @property
    def k(self) -> int:
        return int(self.a.shape[1])

    @property
    def work(self) -> int:
        """Number of products."""
        return int(self.a.shape[0] * self.a.shape[1] * self.b.shape[1])

    @property
    def start(self) -> Array:
        """The start values, zeros where there are none; (M, N) int64."""
        return np.zeros(self.shape, np.int64) if self.c is None else self.c

    def part(self, rows: Any, cols: Any) -> Problem:
        """Return the problem of some rows of a and columns of b (indices)."""
        c = None if self.c is None else self.c[np.ix_(rows, cols)]
        return Problem(self.a[rows], self.b[:, cols], c, self.datapath)


@dataclass(frozen=True)
class Change:
    """What is different, in words and as functions; a function returns None where a problem leaves it nothing to do."""

    #: Completes "the outputs are what comes out where ...".
    text: str
    #: What it is about; two changes of one kind are never combined.
    kind: str
    #: Changes what is read: other operands, another order of k, other start values.
    operands: Callable[[Problem], Problem | None] | None = None
    #: Changes registers and groupings.
    datapath: Callable[[Datapath], Datapath | None] | None = None
    #: Changes limits of registers that no file can write: edits the lowered table in place.
    table: Callable[[Table], None] | None = None
    #: Takes the place of the MAC array: (M, N) codes of a problem.
    run: Callable[[Problem], Array | None] | None = None
    #: Changes what is written: (codes, the problem as it was computed) to codes.
    codes: Callable[[Array, Problem], Array | None] | None = None
    #: What must be at hand: one output's row and column, all operands, or all outputs.
    reach: Literal["output", "operands", "outputs"] = "output"
    #: Whether it is usual enough to be tried together with others.
    common: bool = False
    #: Insertions of levels come after changes of levels, when two changes are combined.
    order: int = 0
    #: How many changes this is.
    count: int = 1


def combined(one: Change, other: Change) -> Change:
    """Return both changes as one; the caller has seen to it that they are not about the same thing."""
    first, second = sorted((one, other), key=lambda change: change.order)
    return Change(
        text=f"{one.text}, and {other.text}",
        kind=f"{one.kind} and {other.kind}",
        operands=_in_turn(first.operands, second.operands),
        datapath=_in_turn(first.datapath, second.datapath),
        table=first.table or second.table,
        run=first.run or second.run,
        codes=_codes_in_turn(first.codes, second.codes),
        reach=max(first.reach, second.reach, key=("output", "operands", "outputs").index),
        count=one.count + other.count,
    )


def _in_turn(first: Callable[[Any], Any] | None, second: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
    if first is None or second is None:
        return first or second
    one, other = first, second

    def both(value: Any) -> Any:
        value = one(value) or value
        return other(value) or value

    return both


Codes = Callable[[Array, Problem], Array | None]


def _codes_in_turn(first: Codes | None, second: Codes | None) -> Codes | None:
    if first is None or second is None:
        return first or second
    one, other = first, second

    def both(codes: Array, problem: Problem) -> Array | None:
        changed = one(codes, problem)
        codes = codes if changed is None else changed
        changed = other(codes, problem)
        return codes if changed is None else changed

    return both


def outputs(change: Change, problem: Problem, rows: Array | None = None, cols: Array | None = None) -> Array | None:
    """Return the (M, N) int64 codes of a changed computation, or those of some rows and columns (indices).

    None where it cannot be computed: an unlimited register would need more than 63 bits.
    """
    part = rows is not None and cols is not None
    changed = problem.part(rows, cols) if part and change.reach == "output" else problem
    if change.operands is not None:
        changed = change.operands(changed) or changed
    if part and change.reach == "operands":
        changed = changed.part(rows, cols)
    if change.datapath is not None:
        changed = changed._replace(datapath=change.datapath(changed.datapath) or changed.datapath)
    try:
        codes = change.run(changed) if change.run else None
        if codes is None:
            codes = datapath_codes(changed, change.table)
    except InputError:
        return None
    if change.codes is not None:
        written = change.codes(codes, changed)
        codes = codes if written is None else written
    if part and change.reach == "outputs":
        codes = codes[np.ix_(rows, cols)]  # type: ignore[arg-type]
    return codes.astype(np.int64, copy=False)


def datapath_codes(problem: Problem, table: Callable[[Table], None] | None = None) -> Array:
    """Return what a datapath gives, int64, with an edit of its lowered table where there is one.

    Raises InputError where an exact register would need more than 63 bits.
    """
    if not problem.k:
        return problem.start
    if problem.work > SMALL and table is None:
        left, right = narrowest(problem.a), narrowest(problem.b)
        return get_backend("emulator").gemm(left, right, problem.datapath, problem.c).codes.astype(np.int64)
    lowered = prepare(problem.a, problem.b, problem.datapath, problem.c)
    if table is not None:
        table(lowered.table)
    left = np.ascontiguousarray(problem.a, np.int32)
    return run_chain(left, problem.b, problem.c, lowered.table, 64)


def narrowest(codes: Array) -> Array:
    """Return codes as bytes where they fit, so that a large product may run on byte instructions."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    for kind in (np.int8, np.uint8):
        limits = np.iinfo(kind)
        if limits.min <= low and high <= limits.max:
            return codes.astype(kind)
    return codes
