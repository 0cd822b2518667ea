"""Changes of dropped bits, and of what becomes of the sum: storage, clamps, floating point."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from fqtsim.hw.spec import Datapath, Item
from fqtsim.identify.change import Array, Change, Problem
from fqtsim.identify.floats import accumulated, rounded_to
from fqtsim.identify.registers import WIDEST, replaced, resized, with_levels
from fqtsim.kernels import fixed
from fqtsim.words import IntFormat, Overflow, Rounding

DETERMINISTIC = tuple(word for word in Rounding if word is not Rounding.STOCHASTIC)
USUAL_DROPS = (1, 2, 4, 8, 3, 5, 6, 7)


def result_changes(datapath: Datapath) -> Iterator[Change]:
    """Yield every change of dropped bits and outputs."""
    yield from _storage(datapath)
    yield from _dropped_bits(datapath)
    yield from _floats()


def _storage(datapath: Datapath) -> Iterator[Change]:
    form, word = datapath.accumulator.register_format, datapath.accumulator.overflow
    if form is not None and form.signed and word is Overflow.SATURATE:
        text = f"the result is clamped to -{form.maximum}..{form.maximum}: the most negative code is unused"
        yield Change(text, "output", codes=partial(_into, form=form, word=Overflow.SATURATE_SYMMETRIC))
    if form is not None and word is not Overflow.SATURATE:
        text = f"the sum is kept without a limit, and saturates to {form} once, when it is stored"
        yield Change(text, "output", datapath=partial(replaced, place=-1, register_word="exact", overflow=None),
                     codes=partial(_into, form=form, word=Overflow.SATURATE))  # fmt: skip
    if form is not None:
        yield from _stored_narrower(form)
    bits = 64 if form is None else form.bits
    for width in (8, 16, 24, 12, 32):
        if width >= bits:
            continue
        for word, verb in ((Overflow.WRAP, "wraps"), (Overflow.SATURATE, "saturates")):
            change = partial(_into, form=IntFormat(width, True), word=word)
            yield Change(f"the result {verb} to int{width} when it is stored", "output", codes=change)
    yield Change("negative results are 0 (as after a ReLU)", "output", codes=lambda codes, _: np.maximum(codes, 0))
    yield Change("the sign of the result is lost (its magnitude is stored)", "output",
                 codes=lambda codes, _: np.abs(codes))  # fmt: skip
    yield Change("the result is doubled", "output", codes=lambda codes, _: codes * 2)
    yield Change("the result is negated", "output", codes=lambda codes, _: -codes)


def _into(codes: Array, _problem: Problem, form: IntFormat, word: Overflow) -> Array:
    stored: Array = fixed.into_register(codes, form, word)
    return stored


def _stored_narrower(form: IntFormat) -> Iterator[Change]:
    """Yield wider accumulators whose code goes into the described format once, when it is stored."""
    for wider in dict.fromkeys((*range(form.bits + 1, form.bits + 9), 24, 32, 40, 48)):
        if not form.bits < wider <= WIDEST:
            continue
        text = f"the accumulator has {wider} bits and not {form.bits}, and the result"
        for word, verb in ((Overflow.SATURATE, "saturates"), (Overflow.WRAP, "wraps")):
            yield Change(f"{text} {verb} to {form} when it is stored", "width -1",
                         datapath=partial(resized, place=-1, bits=wider),
                         codes=partial(_into, form=form, word=word))  # fmt: skip


def _dropped_bits(datapath: Datapath) -> Iterator[Change]:
    places = range(-1, -len(datapath.levels) - 1, -1)
    for place in places:
        item = datapath.levels[place].item
        if item is None:
            continue
        where = f"level {len(datapath.levels) + place}"
        for rounding in (word for word in DETERMINISTIC if word is not item.rounding):
            change = partial(_with_item, place=place, rounding=rounding)
            text = f"the bits dropped at {where} are rounded {rounding} and not {item.rounding}"
            yield Change(text, f"rounding {place}", datapath=change, common=True)
        for more in (-1, 1, -2, 2, -3, 3, -4, 4):
            if item.drop_bits + more >= 0:
                change = partial(_with_item, place=place, drop=item.drop_bits + more)
                text = f"{where} drops {item.drop_bits + more} bits and not {item.drop_bits}"
                yield Change(text, f"dropped bits {place}", datapath=change)
    if datapath.dropped_bits:
        yield from _drops_elsewhere(datapath)
    else:
        yield from _new_drops(datapath)


def _with_item(datapath: Datapath, place: int, rounding: Rounding | None = None, drop: int | None = None) -> Datapath:
    item = datapath.levels[place].item
    if item is None:
        return datapath
    bits = item.drop_bits if drop is None else drop
    changed = Item(drop_bits=bits, rounding=rounding or item.rounding) if bits else None
    return replaced(datapath, place, item=changed)


def _drops_elsewhere(datapath: Datapath) -> Iterator[Change]:
    total = datapath.dropped_bits

    def without(changed: Datapath) -> Datapath:
        return with_levels(changed, [level.model_copy(update={"item": None}) for level in changed.levels])

    yield Change("no bits are dropped", "dropped bits", datapath=without, common=True)
    for rounding in DETERMINISTIC:
        text = f"bits are dropped once, from the sum, rounded {rounding}, and not from every item"
        yield Change(text, "dropped bits", datapath=without, codes=partial(_shifted, bits=total, rounding=rounding))
    yield Change(f"the result is shifted left by the {total} dropped bits", "output",
                 codes=lambda codes, _: codes << total)  # fmt: skip


def _new_drops(datapath: Datapath) -> Iterator[Change]:
    words = (Rounding.TOWARD_NEGATIVE, Rounding.TOWARD_ZERO, Rounding.TIES_TO_POSITIVE, Rounding.TIES_TO_EVEN,
             Rounding.TIES_TO_AWAY)  # fmt: skip
    for bits in USUAL_DROPS:
        for rounding in words:
            item = Item(drop_bits=bits, rounding=rounding)
            plural = "bit of every product is" if bits == 1 else f"{bits} bits of every product are"
            for restored in (True, False):

                def change(changed: Datapath, item: Item = item) -> Datapath:
                    first, *rest = changed.levels
                    return with_levels(changed, [first.model_copy(update={"item": item}), *rest])

                text = f"the low {plural} dropped, {rounding}, before it is added"
                text += ", and the sum shifted back" if restored else ""
                codes = partial(_shifted_back, bits=bits) if restored else None
                yield Change(text, "dropped bits", datapath=change, codes=codes)
            text = f"the result is shifted right by {bits} bits, rounded {rounding}"
            yield Change(text, "output", codes=partial(_shifted, bits=bits, rounding=rounding))


def _shifted(codes: Array, _problem: Problem, bits: int, rounding: Rounding) -> Array:
    shift = np.full(codes.size, bits)
    rounded: Array = fixed.round_shift(codes.ravel(), shift, rounding, None, 0).reshape(codes.shape)
    return rounded


def _shifted_back(codes: Array, _problem: Problem, bits: int) -> Array:
    return codes << bits


def _floats() -> Iterator[Change]:
    for name in ("float32", "bfloat16", "float16", "tf32"):
        yield Change(f"the result is rounded to {name}", "output", codes=partial(_as_float, name=name),
                     common=name != "tf32")  # fmt: skip
    for name in ("float32", "bfloat16"):
        for saturates, end in ((False, "what int32 cannot hold becomes -2**31, as on x86"),
                               (True, "saturates at int32, as on a GPU")):  # fmt: skip
            change = partial(_through_float, name=name, saturates=saturates)
            yield Change(f"the result is rounded to {name}, and {end}", "output", codes=change)
    for name in ("float32", "float16", "bfloat16"):
        yield Change(f"products are added in {name}", "arithmetic", run=partial(accumulated, name=name, tile=1))
        for tile in (16, 32, 64, 128, 8, 4, 256):
            text = f"exact sums of {tile} products are added in {name}"
            yield Change(text, "arithmetic", run=partial(accumulated, name=name, tile=tile))


def _as_float(codes: Array, _problem: Problem, name: str) -> Array:
    return rounded_to(codes, name)


def _through_float(codes: Array, _problem: Problem, name: str, saturates: bool) -> Array:
    rounded = rounded_to(codes, name)
    low, high = -(1 << 31), (1 << 31) - 1
    kept: Array = np.clip(rounded, low, high) if saturates else np.where(abs(rounded) <= high, rounded, low)
    return kept
