"""Does a candidate hold on fresh seeds? The whole 95 % interval of what it loses must lie within the tolerance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fqtsim.evaluate.shrink.runs import Row
from fqtsim.evaluate.shrink.search import Outcome
from fqtsim.evaluate.statistics import Difference, accuracy_of, paired

#: A search trial ends at the first seed that loses this many tolerances.
HOPELESS = 3.0


@dataclass(frozen=True)
class Check:
    """A design's runs on fresh seeds against the file's own widths, and against fp32."""

    difference: Difference
    against_fp32: Difference | None
    #: True where every run is the same as on the file's own widths, to the bit.
    same: bool
    confirmed: bool

    @property
    def words(self) -> str:
        """The difference in points, with its interval."""
        if self.same:
            return "the same training to the bit, +0.0 points"
        return points(self.difference)


def points(difference: Difference | None) -> str:
    """Return a difference in points of accuracy with its 95 % interval."""
    if difference is None:
        return "not compared"
    half = "" if difference.half is None else f" +- {100 * difference.half:.1f}"
    diverged = f", {difference.diverged} of {difference.pairs} diverged" if difference.diverged else ""
    return f"{100 * difference.mean:+.1f}{half} points{diverged}"


def check(rows: Sequence[Row], own: Sequence[Row], fp32: Sequence[Row], tolerance: float) -> Check:
    """Judge runs against the file's own widths with the same seeds; `tolerance` in points.

    Fewer rows than `own` has are a check that was given up, and never confirm anything.
    """
    difference = paired(rows, own)
    if difference is None:
        return Check(Difference(0.0, None, "seeds", 0, 0), None, False, False)
    complete = len(rows) == len(own)
    same = complete and all(
        ours["status"] == "done" and (ours["digest"], ours["right"]) == (theirs["digest"], theirs["right"])
        for ours, theirs in zip(rows, own, strict=False)
    )
    low = difference.low
    held = complete and not difference.diverged and low is not None and 100 * low >= -tolerance
    return Check(difference, paired(rows, fp32), same, same or held)


def hopeless(row: Row, own: Row, tolerance: float) -> bool:
    """Tell whether one seed decides: it diverges, or loses more than three tolerances."""
    share = accuracy_of(row) or 0.0
    return row["status"] != "done" or 100 * (share - float(own["accuracy"])) < -HOPELESS * tolerance


def try_candidate(
    run: Callable[[Sequence[int]], Sequence[Row]], own: Sequence[Row], tolerance: float, together: int = 1
) -> Outcome:
    """Run a candidate on `together` seeds at a time, as far as they leave a doubt, and return how it did.

    It is within tolerance where every seed trains and the mean difference loses no more than `tolerance` points.
    """
    shares: list[float] = []
    differences: list[float] = []
    given_up = False
    for first in range(0, len(own), together):
        part = own[first : first + together]
        for row, theirs in zip(run([int(row["seed"]) for row in part]), part, strict=True):
            shares.append(accuracy_of(row) or 0.0)
            differences.append(100 * (shares[-1] - float(theirs["accuracy"])))
            given_up = hopeless(row, theirs, tolerance)
            if given_up:  # also of later ones that ran beside it: the outcome must not depend on `together`
                break
        if given_up:
            break
    mean = float(np.mean(differences))
    # A thousandth of a point: shares are fractions that binary floats round.
    within = not given_up and mean >= -tolerance - 1e-3
    return Outcome(float(np.mean(shares)), mean / 100, within, len(shares))
