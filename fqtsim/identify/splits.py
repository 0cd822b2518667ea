"""Split K: several accumulators, whose codes are added at the end, and where the start value enters them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import numpy as np

from fqtsim.hw.spec import Datapath
from fqtsim.identify.change import Array, Change, Problem, datapath_codes
from fqtsim.identify.registers import with_levels
from fqtsim.kernels import fixed
from fqtsim.words import Overflow

LANES = (2, 4, 8, 16, 32, 64)
PARTS = (2, 4, 8, 3, 16)
TILES = (32, 64, 128, 16, 8, 256, 512, 1024)
MOST_PARTS = 64
"""Accumulators up to which a start value in the first of them is tried: each is a run of its own."""

Way = Literal["parts", "lanes", "terms"]


def items_of(datapath: Datapath) -> int | None:
    """Return how many consecutive products one addition to the accumulator takes; None where it is not a number."""
    inner = datapath.levels[:-1]
    if any(level.grouping != "terms" for level in inner):
        return None
    return int(np.prod([level.count or 1 for level in inner], dtype=np.int64))


def split_changes(datapath: Datapath) -> Iterator[Change]:
    """Yield every split of K into several accumulators."""
    group = items_of(datapath) or 1
    tiles = [(n, n // group) for n in TILES if n % group == 0 and n > group]
    splits: list[tuple[str, Way, int, bool]] = [
        *((f"K is split into {n} parts", "parts", n, n in (2, 4)) for n in PARTS),
        *((f"{n} accumulators take the items in turn", "lanes", n, n in (2, 4)) for n in LANES),
        *((f"K is cut into tiles of {k}, each with an accumulator of its own", "terms", n, k in (32, 64))
          for k, n in tiles),
    ]  # fmt: skip
    for text, way, n, usual in splits:
        yield Change(text, "split", datapath=partial(_split, grouping={way: n}), common=usual, order=1)
    if datapath.accumulator.register_format is None:
        return
    if items_of(datapath) is not None:
        yield from _with_start(datapath, splits)
    word = datapath.accumulator.overflow
    other = Overflow.WRAP if word is not Overflow.WRAP else Overflow.SATURATE
    how = "the partial sums are added wrapping" if other is Overflow.WRAP else "their sum saturates"
    for text, way, n, _ in splits:
        change = partial(_split, grouping={way: n}, last=other)
        yield Change(f"{text}, and {how}", "split", datapath=change, order=1)
        wide = partial(_split, grouping={way: n}, wide=True)
        yield Change(f"{text}, and the partial sums are added without a limit", "split", datapath=wide, order=1)


def _split(datapath: Datapath, grouping: dict[str, int], last: Overflow | None = None, wide: bool = False) -> Datapath:
    """Return the chain with several accumulators, whose codes one more register adds."""
    *inner, accumulator = datapath.levels
    fields = {"terms": None, "parts": None, "lanes": None, **grouping}
    several = accumulator.model_copy(update=fields)
    update: dict[str, object] = {"item": None}
    if last is not None:
        update["overflow"] = last
    if wide:
        update |= {"register_word": "exact", "overflow": None}
    return with_levels(datapath, [*inner, several, accumulator.model_copy(update=update)])


def _with_start(datapath: Datapath, splits: list[tuple[str, Way, int, bool]]) -> Iterator[Change]:
    """Yield the splits whose first accumulator begins with the start value, where a level's last register does."""
    if datapath.accumulator.overflow is Overflow.WRAP:  # wraps in any order alike
        return
    for pairwise in (False, True):
        for text, way, n, _ in splits:
            if pairwise and (way == "terms" or n < 4):
                continue
            said = f"{text}, the first begins with the start value" + ", and they are added in pairs" * pairwise
            run = partial(_apart, way=way, count=n, pairwise=pairwise)
            yield Change(said, "split", run=run)


def _apart(problem: Problem, way: Way, count: int, pairwise: bool) -> Array | None:
    """Run every accumulator by itself, the first from the start value, and add their codes."""
    group = items_of(problem.datapath)
    accumulator = problem.datapath.accumulator
    form = accumulator.register_format
    if group is None or form is None:
        return None
    items = np.arange(problem.k) // group
    amount = -(-problem.k // group)
    if way == "parts":
        owner = items // max(1, -(-amount // count))
    else:
        owner = items % count if way == "lanes" else items // count
    several = int(owner.max(initial=0)) + 1
    if several > MOST_PARTS:
        return None
    codes = []
    for index in range(several):
        ks = np.flatnonzero(owner == index)
        c = problem.start if index == 0 else None
        codes.append(datapath_codes(problem._replace(a=problem.a[:, ks], b=problem.b[ks], c=c)))
    while pairwise and len(codes) > 1:
        paired = [fixed.into_register(one + other, form, accumulator.overflow)
                  for one, other in zip(codes[::2], codes[1::2], strict=False)]  # fmt: skip
        codes = paired + codes[len(codes) // 2 * 2 :]
    total: Array = codes[0]
    for more in codes[1:]:
        total = fixed.into_register(total + more, form, accumulator.overflow)
    return total
