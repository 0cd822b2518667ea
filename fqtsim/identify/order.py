"""Changes of the order in which products are added: order of k, groups, lanes, parts, tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from fqtsim.hw.spec import Datapath, Level
from fqtsim.identify.change import Array, Change, Problem
from fqtsim.identify.registers import make_level, with_levels
from fqtsim.identify.splits import items_of, split_changes
from fqtsim.words import Overflow

GROUPS = (2, 4, 8, 16, 32, 64, 128)
STRIDES = (2, 4, 8, 16, 32, 64)
REMAINDERS = (4, 8, 16, 32, 64, 128)


def order_changes(datapath: Datapath) -> Iterator[Change]:
    """Yield every change of the order of additions."""
    yield Change("k runs from last to first", "order of k", operands=_reordered(lambda k: k[::-1]), common=True)
    yield from _groupings(datapath)
    yield from split_changes(datapath)
    group = items_of(datapath)
    for text, order in _orders("k"):
        usual = "halves" in text or text.endswith("strides of 2")
        yield Change(text, "order of k", operands=_reordered(order), common=usual)
    for n in STRIDES[:-1]:
        for text, order in (
            (f"k runs through {n} streams that take turns", partial(_streams, count=n)),
            (f"k runs in strides of {n}", partial(_strided, step=n)),
        ):
            yield Change(f"{text}, where K is a multiple of {n}", "order of k", operands=_reordered(order, multiple=n))
    for n in (n for n in REMAINDERS if group and n % group == 0):
        # Whole tiles first, and a masked remainder last, is the datapath; a peeled remainder comes first.
        move = partial(_remainder_first, tile=n, group=group or 1)
        yield Change(f"the k beyond the last multiple of {n} come first", "order of k", operands=move)
    if group is not None and group > 1:
        yield Change("the groups of products come from last to first", "order of k",
                     operands=_reordered(lambda k: k[::-1], group=group), common=True)  # fmt: skip
        for text, order in _orders("groups of products"):
            yield Change(text, "order of k", operands=_reordered(order, group=group))


Order = Callable[[Array], Array]


def _orders(what: str) -> Iterator[tuple[str, Order]]:
    """Yield orders of k, or of the groups that are added as one, with what a message calls them."""
    yield f"the two halves of {'k' if what == 'k' else f'the {what}'} take turns", _interleaved_halves
    verb = "runs" if what == "k" else "run"
    yield from ((f"{what} {verb} in strides of {n}", partial(_strided, step=n)) for n in STRIDES)
    yield from ((f"{what} {verb} through {n} streams that take turns", partial(_streams, count=n)) for n in STRIDES[1:])
    yield from ((f"tiles of {n} {what} come in reverse", partial(_tiles_reversed, size=n)) for n in (*STRIDES, 128))
    yield from (
        (f"{what} {verb} backwards inside tiles of {n}", partial(_reversed_tiles, size=n)) for n in (*STRIDES, 128)
    )


def _reordered(order: Order, multiple: int = 1, group: int = 1) -> Callable[[Problem], Problem | None]:
    """Return a change of the order of groups of k; a K that is no multiple of `multiple` keeps its order."""

    def change(problem: Problem) -> Problem | None:
        if problem.k <= group or problem.k % multiple:
            return None
        whole = padded(problem, group)
        ks = (order(np.arange(whole.k // group))[:, None] * group + np.arange(group)).ravel()
        return whole._replace(a=whole.a[:, ks], b=whole.b[ks])

    return change


def _remainder_first(problem: Problem, tile: int, group: int) -> Problem | None:
    rest = problem.k % tile
    if rest in (0, problem.k):
        return None
    whole = padded(problem, group)
    ks = np.roll(np.arange(whole.k), whole.k - (problem.k - rest))
    return whole._replace(a=whole.a[:, ks], b=whole.b[ks])


def padded(problem: Problem, group: int) -> Problem:
    """Return the problem with zeros at the end of k, up to a multiple of a group: they add nothing to its sum."""
    more = -problem.k % group
    if not more:
        return problem
    return problem._replace(a=np.pad(problem.a, ((0, 0), (0, more))), b=np.pad(problem.b, ((0, more), (0, 0))))


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
