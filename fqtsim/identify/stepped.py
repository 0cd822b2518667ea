"""What a register may do on overflow that no hardware file can say: stay there, drop the addition, wrap on one side."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from fqtsim.hw.spec import Datapath
from fqtsim.identify.change import Array, Change, Problem
from fqtsim.identify.splits import items_of
from fqtsim.words import Overflow

MOST_STEPPED = 1 << 26
"""Products beyond which such an overflow is not tried: it has no fast kernel."""


def stepped_changes(datapath: Datapath) -> Iterator[Change]:
    """Yield overflows of the accumulator, where it adds exact sums of as many products each."""
    accumulator = datapath.accumulator
    form, word = accumulator.register_format, accumulator.overflow
    exact = all(level.register_format is None for level in datapath.levels[:-1])
    if form is None or word is None or not exact or items_of(datapath) is None or datapath.dropped_bits:
        return
    low, high = form.rails(word)
    ways = {
        "stay": "a sum that overflows once stays at that rail",
        "zero": "a sum that overflows becomes 0",
        "opposite": "a sum that overflows goes to the opposite rail",
        "skip": "an addition that would overflow is left out",
    }
    if word is not Overflow.WRAP:
        ways |= {
            "up": "the accumulator saturates upwards only, and wraps downwards",
            "down": "the accumulator saturates downwards only, and wraps upwards",
            "symmetric": f"a sum that overflows downwards becomes {low + 1} and not {low}, which is else in use",
            "next": f"a sum that overflows upwards becomes {high - 1} and not {high}, which is else in use",
        }
    for way, text in ways.items():
        yield Change(text, "when overflow acts", run=partial(_stepped, way=way))


def _stepped(problem: Problem, way: str) -> Array | None:
    """Add item after item in one register."""
    accumulator, group = problem.datapath.accumulator, items_of(problem.datapath)
    form = accumulator.register_format
    if form is None or group is None or problem.work > MOST_STEPPED:
        return None
    low, high = form.rails(accumulator.overflow)
    total = problem.start.copy()
    stuck = np.zeros(total.shape, np.bool_)
    a, b = problem.a.astype(np.int64), problem.b.astype(np.int64)
    for k in range(0, problem.k, group):
        item = a[:, k, None] * b[k] if group == 1 else a[:, k : k + group] @ b[k : k + group]
        more = total + item
        over = (more < low) | (more > high)
        if way == "stay":
            total = np.where(stuck, total, np.clip(more, low, high))
        elif over.any():
            total = np.where(over, _instead(way, more, total, low, high), more)
        else:
            total = more
        stuck |= over
    return total


def _instead(way: str, more: Array, before: Array, low: int, high: int) -> Array:
    """Return what a register holds after a sum beyond its rails."""
    if way in ("zero", "skip"):
        return np.zeros_like(more) if way == "zero" else before
    if way == "opposite":
        return np.where(more < low, high, low)
    if way in ("symmetric", "next"):
        return np.where(more < low, low + (way == "symmetric"), high - (way == "next"))
    span = high - low + 1
    wrapped = (more - low) % span + low
    return np.where(more > high, high, wrapped) if way == "up" else np.where(more < low, low, wrapped)
