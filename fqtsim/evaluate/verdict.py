"""The answer in words: does a design train, how far from the baseline, what was altered, what it costs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fqtsim.evaluate.statistics import Difference
from fqtsim.evaluate.summary import DesignSummary

Kind = Literal["baseline", "trains", "loses", "undecided", "does not train", "diverges", "failed"]
#: A design that learns less than this part of what its baseline learns above chance does not train.
TRAINS = 0.5


@dataclass(frozen=True)
class Verdict:
    """One design judged."""

    kind: Kind
    #: The judgement: `trains`, `loses more than 1 points`, ...
    words: str
    #: What it rests on, part by part; without the judgement.
    facts: tuple[str, ...]
    label: str

    def __str__(self) -> str:
        head, *rest = self.facts or ("",)
        first = f"{self.words}, {head}" if head else self.words
        return "; ".join([f"{self.label}: {first}", *rest])


def verdict(summary: DesignSummary) -> Verdict:
    """Return the verdict of one design."""
    kind, words = _judge(summary)
    return Verdict(kind, words, tuple(_facts(summary)), summary.label)


def _judge(summary: DesignSummary) -> tuple[Kind, str]:
    done, diverged = summary.with_status("done"), summary.with_status("diverged")
    if not done and not diverged:
        messages = sorted({row["message"] for row in summary.rows})
        return "failed", f"no result ({'; '.join(messages)})"
    if diverged:
        step = min(row["failed_step"] for row in diverged)
        cause = re.search("NaN or infinity|NaN|infinity", diverged[0]["message"])
        count = f"{len(diverged)} of {len(done) + len(diverged)} seeds"
        return "diverges", f"diverges ({cause[0] if cause else 'stopped'} at step {step}, {count})"
    if summary.baseline:
        return "baseline", "baseline"
    if _below_half(summary):
        return "does not train", "does not train"
    against = summary.against
    if against is None:
        return "undecided", "undecided (no fp32 or qat run with its seeds; add one)"
    return _within(against[1], summary.tolerance)


def _below_half(summary: DesignSummary) -> bool:
    """Whether a design learns less than half of what its baseline learns; without one, nothing for certain."""
    if summary.accuracy is None:
        return False
    if summary.baseline_accuracy is None:
        return summary.accuracy.low <= summary.chance
    above = summary.baseline_accuracy - summary.chance
    return summary.accuracy.mean - summary.chance < TRAINS * above


def _within(difference: Difference, tolerance: float) -> tuple[Kind, str]:
    """Judge by where the whole interval lies: not only its middle."""
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "undecided", "undecided (no interval; more seeds)"
    if 100 * low >= -tolerance:
        return "trains", "trains"
    if 100 * high < -tolerance:
        return "loses", f"loses more than {points_words(tolerance)}"
    return "undecided", f"undecided (between {100 * low:+.1f} and {100 * high:+.1f} points; more seeds)"


def _facts(summary: DesignSummary) -> list[str]:
    facts = []
    if summary.against is not None:
        name, difference = summary.against
        facts.append(f"{points(difference)} against {name}")
    elif summary.accuracy is not None:
        facts.append(f"{100 * summary.accuracy.mean:.1f} % right")
    failed = len(summary.with_status("failed"))
    if 0 < failed < len(summary.rows):
        facts.append(f"{failed} of {len(summary.rows)} runs failed")
    if summary.outputs:
        facts.append(f"{short(summary.altered)} of {short(summary.outputs)} outputs altered")
    if summary.widest is not None:
        facts.append(f"{summary.widest.gemm} of {summary.widest.layer} needs {summary.widest.bits_needed} bits")
    if not summary.baseline:
        facts.append(f"area {summary.area}")
    return facts


def points(difference: Difference | None) -> str:
    """Return a difference in points with its interval: `-0.2 +- 0.9 points`; "" for None."""
    if difference is None:
        return ""
    half = "" if difference.half is None else f" +- {100 * difference.half:.1f}"
    return f"{100 * difference.mean:+.1f}{half} points"


def points_words(count: float) -> str:
    """Return a number of points: `1 point`, `0.5 points`."""
    return f"{count:g} point{'s' * (count != 1)}"


def percent(share: float) -> str:
    """Return a share of 0..1 in percent with at most two digits behind the first: `41 %`, `0.13 %`, `< 0.01 %`."""
    value = 100 * share
    if 0 < value < 0.01:
        return "< 0.01 %"
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.2g} %"


def short(count: float) -> str:
    """Return a count in at most five characters and a unit: 41, 12.3 k, 3.1 G."""
    for size, unit in ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f}"
