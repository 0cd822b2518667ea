"""How sure an accuracy and a difference are, from runs with several seeds or from the test images of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fqtsim.errors import MissingPackage
from fqtsim.train.intervals import paired_difference, wilson

Row = Mapping[str, Any]
Over = Literal["seeds", "images"]
CONFIDENCE = 0.95
#: Classes of a row that does not say: all data sets that come with fqtsim have ten.
CLASSES = 10


@dataclass(frozen=True)
class Accuracy:
    """A share of test images, averaged over seeds, with its 95 % interval; all in 0..1."""

    mean: float
    low: float
    high: float
    #: What the interval is over: seeds, or the test images where seeds cannot tell.
    over: Over


@dataclass(frozen=True)
class Difference:
    """Accuracy less that of a baseline with the same seed, averaged over seeds; a share, not points."""

    mean: float
    #: Half the width of its 95 % interval; None where nothing tells.
    half: float | None
    over: Over
    #: Pairs of runs with equal seeds.
    pairs: int
    #: How many of them count as chance because the design's run diverged.
    diverged: int

    @property
    def low(self) -> float | None:
        """The lower end of the interval."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """The upper end of the interval."""
        return None if self.half is None else self.mean + self.half


def chance(row: Row) -> float:
    """Return the accuracy of guessing."""
    return 1.0 / int(row.get("classes", CLASSES))


def accuracy_of(row: Row) -> float | None:
    """Return a run's accuracy; chance where it diverged, None where it failed."""
    if row["status"] == "diverged":
        return chance(row)
    return float(row["accuracy"]) if row["status"] == "done" else None


def right_of(row: Row) -> NDArray[np.bool_] | None:
    """Return whether each test image was classified right, None where the run did not say."""
    if row["status"] != "done" or not row["right"]:
        return None
    packed = np.frombuffer(bytes.fromhex(row["right"]), np.uint8)
    return np.unpackbits(packed, count=int(row["tested"])).astype(bool)


def mean_accuracy(rows: Sequence[Row]) -> Accuracy | None:
    """Return the accuracy over the seeds of one design, None where no run ended with one.

    The interval is Student's t over seeds; with one seed, or where all agree, Wilson's over the images of one run.
    """
    shares = [share for row in rows if (share := accuracy_of(row)) is not None]
    if not shares:
        return None
    mean = float(np.mean(shares))
    half = t_half_width(shares)
    if half is not None:
        return Accuracy(mean, max(0.0, mean - half), min(1.0, mean + half), "seeds")
    tested = next((int(row["tested"]) for row in rows if row["tested"]), 0)
    low, high = wilson(round(mean * tested), tested) if tested else (0.0, 1.0)
    return Accuracy(mean, low, high, "images")


def paired(rows: Sequence[Row], baseline: Sequence[Row]) -> Difference | None:
    """Return the difference to the baseline's runs with the same seeds, None where no seed has both.

    The interval is Student's t over seeds; with one seed, or where all differ by the same, that of the paired
    test images. A baseline that diverged is nothing to compare with.
    """
    by_seed = {row["seed"]: row for row in baseline if row["status"] == "done"}
    pairs = [(row, by_seed[row["seed"]]) for row in rows if accuracy_of(row) is not None and row["seed"] in by_seed]
    if not pairs:
        return None
    differences = [(accuracy_of(ours) or 0.0) - float(theirs["accuracy"]) for ours, theirs in pairs]
    diverged = sum(ours["status"] == "diverged" for ours, _ in pairs)
    mean, half = float(np.mean(differences)), t_half_width(differences)
    if half is not None:
        return Difference(mean, half, "seeds", len(pairs), diverged)
    images = [found for ours, theirs in pairs if (found := _over_images(ours, theirs)) is not None]
    if not images:
        return Difference(mean, None, "images", len(pairs), diverged)
    # The seeds share their test images, so more of them do not narrow this interval.
    mean, half = max(images, key=lambda found: found[1])
    return Difference(mean, half, "images", len(pairs), diverged)


def t_half_width(values: Sequence[float]) -> float | None:
    """Return half the 95 % interval of the mean by Student's t, None for one value or equal ones."""
    if len(values) < 2 or np.ptp(values) < 1e-12:
        return None
    try:
        from scipy import stats
    except ImportError:
        raise MissingPackage("intervals over seeds need the package scipy; pip install 'fqtsim[evaluate]'") from None
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))


def _over_images(ours: Row, theirs: Row) -> tuple[float, float] | None:
    a, b = right_of(ours), right_of(theirs)
    return None if a is None or b is None or len(a) != len(b) else paired_difference(a, b)
