"""Changes of the order in which products are added: order of k, groups, lanes, parts, tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from fqtsim.hw.spec import Datapath, Level
from fqtsim.identify.change import Array, Change, Problem
from fqtsim.identify.registers import make_level, with_levels
from fqtsim.words import Overflow

GROUPS = (2, 4, 8, 16, 32, 64, 128)
LANES = (2, 4, 8, 16, 32, 64)
PARTS = (2, 4, 8, 3, 16)
TILES = (32, 64, 128, 16, 8, 256, 512, 1024)
STRIDES = (2, 4, 8, 16, 32, 64)


def order_changes(datapath: Datapath) -> Iterator[Change]:
    """Yield every change of the order of additions."""
    yield Change("k runs from last to first", "order of k", operands=_reordered(lambda k: k[::-1]), common=True)
    yield from _groupings(datapath)
    yield from _splits(datapath)
    orders: list[tuple[str, Callable[[Array], Array]]] = [
        ("the two halves of k take turns", _interleaved_halves),
        *((f"k runs in strides of {n}", partial(_strided, step=n)) for n in STRIDES),
        *((f"k runs through {n} streams that take turns", partial(_streams, count=n)) for n in STRIDES[1:]),
        *((f"tiles of {n} k come in reverse", partial(_tiles_reversed, size=n)) for n in (*STRIDES, 128)),
        *((f"k runs backwards inside tiles of {n}", partial(_reversed_tiles, size=n)) for n in (*STRIDES, 128)),
    ]
    for text, order in orders:
        usual = "halves" in text or text.endswith("strides of 2")
        yield Change(text, "order of k", operands=_reordered(order), common=usual)


def _reordered(order: Callable[[Array], Array]) -> Callable[[Problem], Problem | None]:
    def change(problem: Problem) -> Problem | None:
        if problem.k < 2:
            return None
        ks = order(np.arange(problem.k))
        return problem._replace(a=problem.a[:, ks], b=problem.b[ks])

    return change


def _interleaved_halves(k: Array) -> Array:
    return _streams(k, 2)


def _strided(k: Array, step: int) -> Array:
    """0, step, 2 step, ..., 1, step + 1, ..."""
    return k[np.lexsort((k, k % step))]


def _streams(k: Array, count: int) -> Array:
    """The first of each of `count` contiguous runs, then the second of each, ..."""
    run = -(-k.size // count)
    return k[np.lexsort((k, k % run))]


def _tiles_reversed(k: Array, size: int) -> Array:
    return k[np.lexsort((k, -(k // size)))]


def _reversed_tiles(k: Array, size: int) -> Array:
    return k[np.lexsort((-k, k // size))]


def _groupings(datapath: Datapath) -> Iterator[Change]:
    first = datapath.levels[0]
    grouped = len(datapath.levels) > 1 and first.grouping != "all"
    if grouped:
        for count in (*GROUPS, 1):
            if first.grouping != "terms" or count != first.count:
                update: dict[str, object] = {"terms": count, "parts": None, "lanes": None}
                change = partial(_first_level, update=update)
                text = f"{count} products are summed at a time and not {first.grouping}: {first.count}"
                yield Change(text, "groups", datapath=change, common=count in (2, 4, 8, 1))
        return
    for count in GROUPS:
        level = make_level("exact", terms=count)
        text = f"{count} products are summed exactly before overflow acts"
        change = partial(_prefixed, levels=(level,))
        yield Change(text, "groups", datapath=change, common=count in (2, 4, 8), order=1)
    yield from _pairs_of_bytes()


def _pairs_of_bytes() -> Iterator[Change]:
    """What the byte instructions of x86 do: two products into 16 bits."""
    for word, verb in ((Overflow.SATURATE, "saturate"), (Overflow.WRAP, "wrap")):
        levels = (make_level("exact", terms=2), make_level("int16", word, terms=1))
        text = f"pairs of products {verb} at 16 bits (as pmaddubsw does) before they are added"
        if word is Overflow.WRAP:
            text = "pairs of products wrap at 16 bits before they are added"
        yield Change(text, "groups", datapath=partial(_prefixed, levels=levels), common=True, order=1)


def _first_level(datapath: Datapath, update: dict[str, object]) -> Datapath:
    first, *rest = datapath.levels
    return with_levels(datapath, [first.model_copy(update=update), *rest])


def _prefixed(datapath: Datapath, levels: tuple[Level, ...]) -> Datapath:
    return with_levels(datapath, [*levels, *datapath.levels])


def _splits(datapath: Datapath) -> Iterator[Change]:
    """Several accumulators, added at the end."""
    splits: list[tuple[str, dict[str, int], bool]] = [
        *((f"K is split into {n} parts", {"parts": n}, n in (2, 4)) for n in PARTS),
        *((f"{n} accumulators take the items in turn", {"lanes": n}, n in (2, 4)) for n in LANES),
        *((f"K is cut into tiles of {n}, each with an accumulator of its own", {"terms": n}, n in (32, 64))
          for n in TILES),
    ]  # fmt: skip
    for text, grouping, usual in splits:
        yield Change(text, "split", datapath=partial(_split, grouping=grouping), common=usual, order=1)
    if datapath.accumulator.register_format is None:
        return
    word = datapath.accumulator.overflow
    others = [Overflow.WRAP] if word is not Overflow.WRAP else [Overflow.SATURATE]
    for text, grouping, _ in splits:
        for other in others:
            how = "the partial sums are added wrapping" if other is Overflow.WRAP else "their sum saturates"
            change = partial(_split, grouping=grouping, last=other)
            yield Change(f"{text}, and {how}", "split", datapath=change, order=1)
        wide = partial(_split, grouping=grouping, wide=True)
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
