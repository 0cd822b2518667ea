"""Changes with a number in them that the outputs themselves give: an offset of an operand, a zero point left in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial

import numpy as np

from fqtsim.identify.change import Array, Change, Problem
from fqtsim.identify.operands import with_operand

LARGEST_OFFSET = 512
MOST_LOOKED_AT = 64
KEPT = 2


def fitted_changes(problem: Problem, expected: Array, observed: Array) -> Iterator[Change]:
    """Yield changes that add one number to every code of a or of b, where wrong outputs ask for the same number.

    With a + d for a, an output without overflow is off by d times the sum of its column of b.
    """
    errors = np.unique(observed - expected)
    if errors.size == 1:
        error = int(errors[0])
        text = f"{abs(error)} is {'added to' if error > 0 else 'subtracted from'} every output"
        yield Change(text, "output", codes=lambda codes, _: codes + error)
    places = np.argwhere(expected != observed)[:MOST_LOOKED_AT]
    sums = {"a": problem.b.astype(np.int64).sum(axis=0), "b": problem.a.astype(np.int64).sum(axis=1)}
    for name, other in sums.items():
        votes: Counter[int] = Counter()
        for row, col in places:
            total, error = int(other[col if name == "a" else row]), int(observed[row, col]) - int(expected[row, col])
            if total and error % total == 0 and abs(error // total) <= LARGEST_OFFSET:
                votes[error // total] += 1
        for offset, count in votes.most_common(KEPT):
            if 2 * count >= len(places):
                text = f"{abs(offset)} is {'added to' if offset > 0 else 'subtracted from'} every code of {name}"
                text += " (a zero point that is left in or taken off twice)"
                yield Change(text, f"offset of {name}", operands=partial(_shifted, name=name, by=offset))


def _shifted(problem: Problem, name: str, by: int) -> Problem:
    return with_operand(problem, name, (problem.a if name == "a" else problem.b).astype(np.int64) + by)
