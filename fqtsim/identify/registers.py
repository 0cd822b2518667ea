"""Changes of registers: what they do outside their format, how wide they are, when their limits act."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from fqtsim.hw.lower import CLAMP, HIGH, LOW, MODE
from fqtsim.hw.spec import Datapath, Level
from fqtsim.identify.change import Change, Table
from fqtsim.words import IntFormat, Overflow

WIDEST, NARROWEST = 62, 2
USUAL_WIDTHS = (8, 12, 16, 18, 20, 22, 24, 28, 32, 40, 48)
EXACT_WIDTHS = (32, 24, 20, 16, *(width for width in range(8, 32) if width not in (24, 20, 16)))
"""Tried in place of an exact register."""
FAR = 1 << 61
"""A rail that no sum reaches."""


def make_level(register: str, overflow: Overflow | str | None = None, **grouping: int | str) -> Level:
    """Return a level; its grouping is terms=, parts= or lanes=."""
    fields = {**grouping, "register": register}
    return Level.model_validate(fields if overflow is None else {**fields, "overflow": str(overflow)})


def with_levels(datapath: Datapath, levels: list[Level]) -> Datapath:
    """Return the datapath with other levels."""
    return datapath.model_copy(update={"levels": tuple(levels)})


def replaced(datapath: Datapath, place: int, **update: object) -> Datapath:
    """Return the datapath with fields of one level replaced; place is negative, from the accumulator inwards."""
    levels = list(datapath.levels)
    levels[place] = levels[place].model_copy(update=update)
    return with_levels(datapath, levels)


def called(datapath: Datapath, place: int) -> str:
    """Return what a message calls the register of a level; place is negative."""
    return "the accumulator" if place == -1 else f"the register of level {len(datapath.levels) + place}"


def register_changes(datapath: Datapath) -> Iterator[Change]:
    """Yield every change of one register."""
    places = range(-1, -len(datapath.levels) - 1, -1)
    for place in places:
        yield from _overflow_changes(datapath, place)
    if datapath.accumulator.register_format is not None:
        yield Change(
            "overflow is applied once, to the whole sum, and not after every addition",
            "when overflow acts", datapath=_once, common=True, order=2,
        )  # fmt: skip
    for place in places:
        yield from _width_changes(datapath, place)
    for place in places:
        yield from _format_changes(datapath, place)
        yield from _limit_changes(datapath, place)
    yield from _narrowed_items(datapath)


def _overflow_changes(datapath: Datapath, place: int) -> Iterator[Change]:
    level, name = datapath.levels[place], called(datapath, place)
    if level.register_format is None:
        for width in EXACT_WIDTHS:
            for word in (Overflow.WRAP, Overflow.SATURATE):
                change = partial(replaced, place=place, register_word=f"int{width}", overflow=word)
                text = f"{name} has {width} bits and {_verb(word)}, and is not exact"
                yield Change(text, f"register {place}", datapath=change, common=width in (16, 32))
        return
    for word in Overflow:
        if word is level.overflow or (word is Overflow.SATURATE_SYMMETRIC and not level.register_format.signed):
            continue
        text = f"{name} {_verb(word)} and does not {_plain(level.overflow)}"
        change = partial(replaced, place=place, overflow=word)
        yield Change(text, f"overflow {place}", datapath=change, common=True)
    change = partial(replaced, place=place, register_word="exact", overflow=None)
    yield Change(f"{name} is unlimited", f"register {place}", datapath=change, common=True)


def _verb(word: Overflow | None) -> str:
    return {
        Overflow.WRAP: "wraps",
        Overflow.SATURATE: "saturates",
        Overflow.SATURATE_SYMMETRIC: "saturates symmetrically (most negative code unused)",
    }.get(word, "is exact")  # type: ignore[arg-type]


def _plain(word: Overflow | None) -> str:
    return {
        Overflow.WRAP: "wrap",
        Overflow.SATURATE: "saturate with every code in use",
        Overflow.SATURATE_SYMMETRIC: "leave the most negative code unused",
    }.get(word, "stay exact")  # type: ignore[arg-type]


def _width_changes(datapath: Datapath, place: int) -> Iterator[Change]:
    level, name = datapath.levels[place], called(datapath, place)
    form = level.register_format
    if form is None:
        return
    near = [form.bits + sign * more for more in range(1, 9) for sign in (-1, 1)]
    wanted = dict.fromkeys([*near[:2], *USUAL_WIDTHS, *near[2:]])
    for bits in (width for width in wanted if NARROWEST <= width <= WIDEST and width != form.bits):
        change = partial(resized, place=place, bits=bits)
        text = f"{name} has {bits} bits and not {form.bits}"
        usual = bits in (*near[:2], 16, 24, 32)
        yield Change(text, f"width {place}", datapath=change, common=usual)


def resized(datapath: Datapath, place: int, bits: int) -> Datapath | None:
    """Return the datapath with a register of another width; place is negative. None where it is exact."""
    form = datapath.levels[place].register_format
    return None if form is None else replaced(datapath, place, register_word=IntFormat(bits, form.signed).name)


def _format_changes(datapath: Datapath, place: int) -> Iterator[Change]:
    form = datapath.levels[place].register_format
    if form is None:
        return
    kind = "unsigned" if form.signed else "signed"
    other = IntFormat(form.bits, not form.signed).name

    def change(changed: Datapath) -> Datapath | None:
        symmetric = changed.levels[place].overflow is Overflow.SATURATE_SYMMETRIC
        return None if symmetric else replaced(changed, place, register_word=other)

    yield Change(f"{called(datapath, place)} is {kind}", f"width {place}", datapath=change)


def _limit_changes(datapath: Datapath, place: int) -> Iterator[Change]:
    """Rails that no file can describe: one off, or only one of them."""
    level, name = datapath.levels[place], called(datapath, place)
    if level.overflow in (None, Overflow.WRAP) or level.register_format is None:
        return
    low, high = level.register_format.rails(level.overflow)
    edits: list[tuple[str, int, int]] = [
        (f"{name} saturates at {high + 1} and not at {high}", 0, 1),
        (f"{name} saturates at {high - 1} and not at {high}", 0, -1),
        (f"{name} saturates at {low - 1} and not at {low}", -1, 0),
        (f"{name} saturates at {low + 1} and not at {low}", 1, 0),
        (f"{name} saturates upwards only", -FAR, 0),
        (f"{name} saturates downwards only", 0, FAR),
    ]
    for text, below, above in edits:
        yield Change(text, f"limits {place}", table=_moved_rails(place, below, above))


def _moved_rails(place: int, below: int, above: int) -> Callable[[Table], None]:
    def edit(table: Table) -> None:
        if table[place, MODE] == CLAMP:
            table[place, LOW] += below
            table[place, HIGH] += above

    return edit


def _once(datapath: Datapath) -> Datapath:
    """Return the chain with every sum unlimited until the accumulator gets it, in one addition."""
    *inner, last = datapath.levels
    whole = last.model_copy(update={"register_word": "exact", "overflow": None})
    return with_levels(datapath, [*inner, whole, last.model_copy(update={"item": None})])


def _narrowed_items(datapath: Datapath) -> Iterator[Change]:
    """What is added is brought into a narrower format first."""
    accumulator = datapath.accumulator
    product = datapath.a_format.bits + datapath.b_format.bits
    forms = dict.fromkeys((accumulator.register, "int16", f"int{product - 1}", f"int{product}", "int8"))
    for form in forms:
        bits = 64 if form == "exact" else IntFormat.parse(form).bits
        if bits > max(product + 2, 16):
            continue
        for word in (Overflow.WRAP, Overflow.SATURATE):
            level = make_level(form, word, terms=1)
            text = f"every product {_verb(word)} at {bits} bits before it is added"

            def change(changed: Datapath, level: Level = level) -> Datapath:
                return with_levels(changed, [level, *changed.levels])

            yield Change(text, "products", datapath=change, common=form == "int16", order=3)
