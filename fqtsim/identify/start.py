"""Changes of the start values: left out, counted again, added elsewhere, or brought through a narrower port."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from fqtsim.hw.spec import Datapath
from fqtsim.identify.change import Array, Change, Problem, datapath_codes
from fqtsim.identify.floats import rounded_to
from fqtsim.kernels import fixed
from fqtsim.words import IntFormat, Overflow

PARTS = (2, 3, 4, 8, 16)
TILES = (32, 64, 128, 256, 16, 512, 1024)


def start_changes(datapath: Datapath) -> Iterator[Change]:
    """Yield every change of the start values."""

    def times(problem: Problem, factor: int) -> Problem | None:
        return None if problem.c is None else problem._replace(c=_entered(problem.c * factor, problem.datapath))

    def without(problem: Problem) -> Problem | None:
        return None if problem.c is None else problem._replace(c=None)

    def apart(problem: Problem) -> Array | None:
        if problem.c is None:
            return None
        accumulator = problem.datapath.accumulator
        total = datapath_codes(problem._replace(c=None)) + problem.c
        form = accumulator.register_format
        return total if form is None else fixed.into_register(total, form, accumulator.overflow)

    kind = "start value"
    yield Change("the start value is ignored", kind, operands=without, common=True)
    yield Change("the start value is added last and not first", kind, run=apart, common=True)
    yield Change("the start value counts twice", kind, operands=partial(times, factor=2))
    yield Change("the start value is subtracted", kind, operands=partial(times, factor=-1))
    for count in PARTS[1:]:
        text = f"the start value counts {count} times (once in each of {count} parts)"
        yield Change(text, kind, operands=partial(times, factor=count))
    yield Change("the start value of column 0 is taken for every column", kind, reach="operands",
                 operands=partial(_one_start, place=(slice(None), slice(0, 1))))  # fmt: skip
    yield Change("the start value of row 0 is taken for every row", kind, reach="operands",
                 operands=partial(_one_start, place=(slice(0, 1), slice(None))))  # fmt: skip
    yield from _narrow_starts(datapath)
    for tile in TILES:
        yield Change(f"the start value counts once in each tile of {tile} k", kind,
                     operands=partial(_once_a_tile, tile=tile))  # fmt: skip


def _narrow_starts(datapath: Datapath) -> Iterator[Change]:
    """Yield start values that come through a narrower port."""
    form = datapath.accumulator.register_format
    if form is None:
        return
    near = (form.bits - less for less in range(1, 9))
    for bits in dict.fromkeys((*near, 8, 12, 16, 20, 24, 32)):
        if not 2 <= bits < form.bits:
            continue
        for word, verb in ((Overflow.SATURATE, "saturates"), (Overflow.WRAP, "wraps")):
            change = partial(_through_port, form=IntFormat(bits, form.signed), word=word)
            yield Change(f"the start value {verb} at {bits} bits", "start value", operands=change)
    for name in ("float32", "bfloat16", "float16"):
        change = partial(_through_float, name=name, form=form, word=datapath.accumulator.overflow)
        yield Change(f"the start value is rounded to {name}", "start value", operands=change)


def _through_port(problem: Problem, form: IntFormat, word: Overflow) -> Problem | None:
    return None if problem.c is None else problem._replace(c=fixed.into_register(problem.c, form, word))


def _through_float(problem: Problem, name: str, form: IntFormat, word: Overflow | None) -> Problem | None:
    if problem.c is None:
        return None
    return problem._replace(c=fixed.into_register(rounded_to(problem.c, name), form, word))


def _once_a_tile(problem: Problem, tile: int) -> Problem | None:
    if problem.c is None or problem.k <= tile:
        return None
    return problem._replace(c=_entered(problem.c * -(-problem.k // tile), problem.datapath))


def _entered(start: Array, datapath: Datapath) -> Array:
    """Return start values as the accumulator holds them: what counts more than once may leave its format."""
    form = datapath.accumulator.register_format
    return start if form is None else fixed.into_register(start, form, datapath.accumulator.overflow)


def _one_start(problem: Problem, place: tuple[slice, slice]) -> Problem | None:
    if problem.c is None:
        return None
    return problem._replace(c=np.broadcast_to(problem.c[place], problem.shape).astype(np.int64))
