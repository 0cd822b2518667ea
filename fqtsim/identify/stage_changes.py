"""Changes of requantization: rounding, registers, zero point, scales, single and double rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fqtsim.api.requantize import requantize
from fqtsim.errors import InputError
from fqtsim.hw.spec import Hardware
from fqtsim.hw.stages import Stage
from fqtsim.identify.change import Array
from fqtsim.identify.floats import to_float
from fqtsim.identify.result import DETERMINISTIC
from fqtsim.kernels import fixed
from fqtsim.words import IntFormat, Overflow, Rounding


class Call(NamedTuple):
    """One requantization: flat int64 codes, the hardware, and its arguments, each of the codes' shape or None."""

    acc: Array
    hardware: Hardware
    multiplier: Array | None
    shift: Array | None
    scale: Array | None
    zero_point: Array

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.hardware.output or ()

    def with_stages(self, stages: list[Stage]) -> Call:
        """Return the call with other stages."""
        return self._replace(hardware=self.hardware.model_copy(update={"output": tuple(stages)}))


@dataclass(frozen=True)
class StageChange:
    """What is different, in words and as functions; each returns None where it does not apply."""

    text: str
    kind: str
    edit: Callable[[Call], Call | None] | None = None
    #: Takes the place of all stages.
    run: Callable[[Call], Array | None] | None = None
    #: Changes the output codes.
    codes: Callable[[Array, Call], Array | None] | None = None
    #: Whether an output depends on the arguments of others.
    neighbours: bool = False
    count: int = 1


def stage_outputs(change: StageChange, call: Call) -> Array | None:
    """Return the codes of a changed requantization, int64 (float64 where the stages end in a float)."""
    changed = change.edit(call) if change.edit else call
    if changed is None:
        return None
    try:
        codes = change.run(changed) if change.run else called(changed)
    except InputError:  # beyond float32, or 64 bits
        return None
    if codes is not None and change.codes is not None:
        codes = change.codes(codes, changed)
    return codes


def called(call: Call) -> Array:
    """Return what the stages give, int64, or float64 where they end in a float32."""
    arguments = {"multiplier": call.multiplier, "shift": call.shift, "scale": call.scale}
    adds = any(stage.kind == "add" for stage in call.stages)
    zero_point = call.zero_point if adds else 0
    codes = requantize(call.acc, call.hardware, **arguments, zero_point=zero_point).codes
    wide: Array = codes.astype(np.float64 if codes.dtype.kind == "f" else np.int64)
    return wide


def stage_changes(call: Call) -> Iterator[StageChange]:
    """Yield every change that is tried of a requantization, the more usual first."""
    yield from _single_and_double(call.stages)
    yield from _zero_points(call.stages)
    yield from _arguments(call)
    # The last stages first: what an earlier one rounds or limits shows less often.
    for place, stage in reversed(list(enumerate(call.stages))):
        yield from _of_stage(place, stage)
    yield from _floats(call.stages)
    yield from _codes_before(call)


def combined_stages(one: StageChange, other: StageChange) -> StageChange | None:
    """Return two edits as one; None where they are about the same thing or one replaces the stages."""
    if one.kind == other.kind or not one.edit or not other.edit or one.run or other.run or one.codes or other.codes:
        return None
    at_place = [change.kind[-1].isdigit() for change in (one, other)]
    if any(at_place) and "number of roundings" in (one.kind, other.kind):
        return None  # the places of stages are no longer those that the other change means
    first, second = (other.edit, one.edit) if at_place == [False, True] else (one.edit, other.edit)

    def both(call: Call) -> Call | None:
        changed = first(call)
        return None if changed is None else second(changed)

    return StageChange(f"{one.text}, and {other.text}", f"{one.kind} and {other.kind}", both,
                       neighbours=one.neighbours or other.neighbours, count=2)  # fmt: skip


def _stage(**fields: Any) -> Stage:
    return Stage.model_validate(fields)


def _at(call: Call, place: int, *stages: Stage) -> Call:
    """Return the call with the stage at a place replaced by others."""
    return call.with_stages([*call.stages[:place], *stages, *call.stages[place + 1 :]])


def _of_stage(place: int, stage: Stage) -> Iterator[StageChange]:
    rounding = stage.rounding or stage.round
    if rounding is not None:
        field = "rounding" if stage.rounding else "round"
        for word in (word for word in DETERMINISTIC if word is not rounding):
            edit = partial(_updated, place=place, update={field: word})
            text = f"stage {place} ({stage.kind}) rounds {word} and not {rounding}"
            yield StageChange(text, f"rounding {place}", edit)
    if isinstance(stage.shift, int):
        for more in (-1, 1):
            edit = partial(_updated, place=place, update={"shift": stage.shift + more})
            yield StageChange(
                f"stage {place} shifts by {stage.shift + more} and not {stage.shift}", f"shift {place}", edit
            )
    form = stage.register_format
    if form is None:
        return
    for other in Overflow:
        if other is not stage.overflow and (form.signed or other is not Overflow.SATURATE_SYMMETRIC):
            edit = partial(_updated, place=place, update={"overflow": other})
            yield StageChange(f"stage {place} (register {form}) does {other} and not {stage.overflow}",
                              f"overflow {place}", edit)  # fmt: skip
    others = [IntFormat(bits, form.signed).name for bits in (form.bits - 1, form.bits + 1, 8, 16, 32) if bits > 1]
    for name in dict.fromkeys([IntFormat(form.bits, not form.signed).name, *others]):
        if name != form.name and not (name.startswith("u") and stage.overflow is Overflow.SATURATE_SYMMETRIC):
            edit = partial(_updated, place=place, update={"register_word": name})
            yield StageChange(f"stage {place} has a register of {name} and not {form}", f"register {place}", edit)
    # As wide as registers get, so that the places of other stages stay what they are.
    edit = partial(_updated, place=place, update={"register_word": "int62"})
    yield StageChange(f"stage {place} (register {form}) is left out", f"register {place}", edit)


def _updated(call: Call, place: int, update: dict[str, object]) -> Call | None:
    if place >= len(call.stages):
        return None
    return _at(call, place, call.stages[place].model_copy(update=update))


def _single_and_double(stages: tuple[Stage, ...]) -> Iterator[StageChange]:
    kinds = [stage.kind for stage in stages]
    by_call = [place for place, stage in enumerate(stages) if stage.shift == "call"]
    fixed_shift = [place for place, stage in enumerate(stages) if isinstance(stage.shift, int)]
    if "multiply" not in kinds or not by_call:
        return
    last = by_call[0]
    words = (Rounding.TIES_TO_POSITIVE, Rounding.TIES_TO_AWAY, Rounding.TIES_TO_EVEN, Rounding.TOWARD_NEGATIVE,
             Rounding.TOWARD_ZERO)  # fmt: skip
    if fixed_shift and fixed_shift[0] < last:
        first = fixed_shift[0]
        bits = int(stages[first].shift or 0)
        for word in words:
            edit = partial(_merged, first=first, last=last, bits=bits, rounding=word)
            yield StageChange(f"there is a single rounding, {word}, and not two", "number of roundings", edit)
    elif not fixed_shift:
        for high in (Rounding.TIES_TO_POSITIVE, Rounding.TIES_TO_AWAY):
            for low in (Rounding.TIES_TO_AWAY, Rounding.TIES_TO_POSITIVE, Rounding.TIES_TO_EVEN):
                edit = partial(_doubled, place=last, high=high, low=low)
                text = f"there are two roundings, by 31 bits {high} and then {low}, and not one"
                yield StageChange(text, "number of roundings", edit)


def _merged(call: Call, first: int, last: int, bits: int, rounding: Rounding) -> Call | None:
    if call.shift is None:
        return None
    stage = _stage(shift="call", rounding=rounding)
    merged = call.with_stages([*call.stages[:first], stage, *call.stages[last + 1 :]])
    return merged._replace(shift=call.shift + bits)


def _doubled(call: Call, place: int, high: Rounding, low: Rounding) -> Call | None:
    if call.shift is None:
        return None
    stages = (_stage(shift=31, rounding=high), _stage(register="int32", overflow="saturate"),
              _stage(shift="call", rounding=low))  # fmt: skip
    return _at(call, place, *stages)._replace(shift=call.shift - 31)


def _zero_points(stages: tuple[Stage, ...]) -> Iterator[StageChange]:
    places = [place for place, stage in enumerate(stages) if stage.kind == "add"]
    if not places:
        return
    place, adding = places[0], stages[places[0]]

    def times(call: Call, factor: int) -> Call:
        return call._replace(zero_point=call.zero_point * factor)

    def moved(call: Call, to: int) -> Call:
        rest = [stage for stage in call.stages if stage.kind != "add"]
        return call.with_stages([*rest[:to], adding, *rest[to:]])

    for factor, text in ((0, "ignored"), (-1, "subtracted"), (2, "added twice")):
        yield StageChange(f"the zero point is {text}", "zero point", partial(times, factor=factor))
    is_float = False
    for to, stage in enumerate([stage for stage in stages if stage.kind != "add"]):
        if to != place and not is_float:
            where = f"before stage {to} ({stage.kind})" if to < place else f"after stage {to} ({stage.kind})"
            edit = partial(moved, to=to if to < place else to + 1)
            yield StageChange(f"the zero point is added {where}", "zero point", edit)
        is_float = stage.multiply == "float32"
    last = stages[-1].register_format
    if last is not None and place < len(stages) - 1:

        def after(codes: Array, call: Call) -> Array:
            wrapped: Array = fixed.into_register(codes + call.zero_point, last, Overflow.WRAP)
            return wrapped

        without = partial(times, factor=0)
        yield StageChange(f"the zero point is added after the last register, and the sum wraps at {last}", "zero point",
                          run=lambda call: called(without(call)), codes=after)  # fmt: skip
    yield StageChange("the zero point is added to the float, before rounding", "zero point", run=_added_as_float)


def _added_as_float(call: Call) -> Array | None:
    kinds = [stage.kind for stage in call.stages]
    if call.scale is None or "round" not in kinds:
        return None
    rounding = call.stages[kinds.index("round")].round
    if rounding is None:
        return None
    value = fixed.to_float32(call.acc) * call.scale + call.zero_point.astype(np.float32)
    codes = fixed.round_float(value, rounding)
    return _into_last(codes, call)


def _into_last(codes: Array, call: Call) -> Array:
    stage = call.stages[-1]
    if stage.register_format is None:
        return codes.astype(np.int64)
    held: Array = fixed.into_register(codes, stage.register_format, stage.overflow).astype(np.int64)
    return held


def _arguments(call: Call) -> Iterator[StageChange]:
    def replaced(call: Call, name: str, make: Callable[[Array], Array]) -> Call | None:
        value = getattr(call, name)
        changed: dict[str, Any] = {name: make(value)} if value is not None else {}
        return call._replace(**changed) if changed else None

    edits: list[tuple[str, str, Callable[[Array], Array]]] = [
        ("scale", "the scale is kept in bfloat16", lambda x: to_float(x, "bfloat16")),
        ("scale", "the scale is truncated to bfloat16", _truncated),
        ("scale", "the scale is kept in float16", lambda x: to_float(x, "float16")),
        ("scale", "the scale is doubled", lambda x: x * np.float32(2)),
        ("scale", "the scale is halved", lambda x: x / np.float32(2)),
        ("shift", "the shift is one too large", lambda x: x + 1),
        ("shift", "the shift is one too small", lambda x: x - 1),
        ("shift", "shifts to the left are left out", lambda x: np.maximum(x, 0)),
        ("shift", "the shift has the other sign", lambda x: -x),
        ("multiplier", "the multiplier has 16 bits, rounded", lambda x: (x + (1 << 15)) >> 16 << 16),
        ("multiplier", "the multiplier has 16 bits, truncated", lambda x: x >> 16 << 16),
        ("multiplier", "the multiplier is one too large", lambda x: x + 1),
        ("multiplier", "the multiplier is one too small", lambda x: x - 1),
    ]
    for name in ("multiplier", "shift", "scale", "zero_point"):
        word = name.replace("_", " ")
        edits.append((name, f"the {word} of the first output is taken for every one", lambda x: np.full_like(x, x[0])))
        edits.append((name, f"the {word} is that of the output before", lambda x: np.roll(x, 1)))
        edits.append((name, f"the {word} is that of the output after", lambda x: np.roll(x, -1)))
    for name, text, make in edits:
        if getattr(call, name) is not None:
            kind = "zero point" if name == "zero_point" else name
            others = "of the" in text  # "of the first output", "of the output before"
            yield StageChange(text, kind, partial(replaced, name=name, make=make), neighbours=others)


def _truncated(scale: Array) -> Array:
    bits = np.ascontiguousarray(scale, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    cut: Array = bits.view(np.float32)
    return cut


def _floats(stages: tuple[Stage, ...]) -> Iterator[StageChange]:
    """Another arithmetic for the product: other precisions, an integer multiplier as a float, a division."""
    words = (Rounding.TIES_TO_EVEN, Rounding.TIES_TO_AWAY, Rounding.TIES_TO_POSITIVE, Rounding.TOWARD_ZERO,
             Rounding.TOWARD_NEGATIVE)  # fmt: skip
    ways: list[tuple[str, Callable[[Call], Array | None]]] = [
        ("in float64", lambda call: _real(call, np.float64)),
        ("in float32", lambda call: _real(call, np.float32)),
        ("as a division by the float32 inverse of the scale", _divided),
    ]
    for text, product in ways:
        for word in words:
            yield StageChange(f"the product is taken {text}, rounded {word}", "arithmetic",
                              run=partial(_rounded, product=product, rounding=word))  # fmt: skip


def _real(call: Call, kind: Any) -> Array | None:
    """Return acc times the real scale, in one float format."""
    if call.scale is not None:
        scaled: Array = (call.acc.astype(kind) * call.scale.astype(kind)).astype(kind)
        return scaled
    if call.multiplier is None or call.shift is None:
        return None
    more = sum(int(stage.shift) for stage in call.stages if isinstance(stage.shift, int))
    real = np.ldexp(call.multiplier.astype(np.float64), -(call.shift + more)).astype(kind)
    product: Array = call.acc.astype(kind) * real
    return product


def _divided(call: Call) -> Array | None:
    if call.scale is None:
        return None
    with np.errstate(over="ignore"):
        quotient: Array = fixed.to_float32(call.acc) / (np.float32(1) / call.scale)
    return quotient


def _rounded(call: Call, product: Callable[[Call], Array | None], rounding: Rounding) -> Array | None:
    value = product(call)
    if value is None or not np.isfinite(value).all():
        return None
    adds = any(stage.kind == "add" for stage in call.stages)
    codes = fixed.round_float(value, rounding) + (call.zero_point if adds else 0)
    return _into_last(codes, call)


def _codes_before(call: Call) -> Iterator[StageChange]:
    """The accumulator's code is narrowed on its way to the stages, or its result on the way out."""

    def narrowed(call: Call, form: IntFormat, word: Overflow) -> Call:
        return call._replace(acc=fixed.into_register(call.acc, form, word))

    for bits in (16, 24, 32):
        for word in (Overflow.WRAP, Overflow.SATURATE):
            text = f"the accumulator's code is brought into int{bits} first ({word})"
            yield StageChange(text, "accumulator", partial(narrowed, form=IntFormat(bits, True), word=word))
    for name in ("float32", "bfloat16", "float16"):

        def as_float(call: Call, name: str = name) -> Call | None:
            values = to_float(call.acc, name)
            fits = bool(np.isfinite(values).all())
            return call._replace(acc=values.astype(np.float64).astype(np.int64)) if fits else None

        yield StageChange(f"the accumulator's code is rounded to {name} first", "accumulator", as_float)
    yield StageChange("negative results are the zero point (as after a ReLU)", "output",
                      codes=lambda codes, call: np.maximum(codes, call.zero_point))  # fmt: skip
