"""Ways in which quantizers are usually wrong, each tried on every code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fqtsim.golden.case import Array
from fqtsim.kernels import fixed
from fqtsim.ref import quantize as definition
from fqtsim.words import IntFormat, Rounding

FAR = float(1 << 20)
"""Quotients beyond it are brought to it: far outside every format, so that their codes stay the same."""


class Call(NamedTuple):
    """One tensor to quantize: values (rows, D), a step and zero point for each row, and the rest of the rule."""

    x: Array
    step: Array
    zero: Array
    form: IntFormat
    bits: int
    rounding: Rounding
    words: Array | None
    random_bits: int
    word: str

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        signed = self.form.signed
        if self.word == "symmetric":
            top = 2 ** (self.bits - 1) - 1 if signed else 2**self.bits - 1
            return (-top if signed else 0), top
        shift = 2 ** (self.bits - 1) if signed else 0
        return -shift, 2**self.bits - 1 - shift


Outputs = dict[str, Array]
Flaw = Callable[[Call], Outputs | None]


def prepared(x: Array, parameters: dict[str, Any], words: Array | None, step: Array, zero: Array) -> Call | None:
    """Return a call for the right grid of every row; None for quantizers that mix rows."""
    if parameters["quantizer"] not in ("ptq", "psq") or parameters["zero"] == "float_offset":
        return None
    rows = len(x) if parameters["quantizer"] == "psq" else 1
    return Call(
        x.reshape(rows, -1), np.asarray(step, np.float32).reshape(rows, 1), np.asarray(zero, np.int64).reshape(rows, 1),
        IntFormat.parse(parameters["format"]), int(parameters["bits"]), Rounding(parameters["rounding"]),
        None if words is None else words.reshape(rows, -1), int(parameters["random_bits"] or 0), parameters["zero"],
    )  # fmt: skip


def quantized(call: Call, quotient: Array | None = None) -> Array:
    """Return the codes of a call, int64 (rows, D), from its quotients or from others."""
    low, high = call.ends
    codes: Array = np.clip(_rounded(call, quotient) + call.zero, low, high)
    return codes


def _rounded(call: Call, quotient: Array | None = None) -> Array:
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        value = call.x / call.step if quotient is None else quotient
    value = np.clip(np.nan_to_num(value), -FAR, FAR)
    if call.rounding is Rounding.STOCHASTIC and call.words is not None:
        whole = np.floor(value.astype(np.float64) * (1 << call.random_bits)).astype(np.int64)
        found: Array = (whole + (1 << call.random_bits) - 1 - call.words.astype(np.int64)) >> call.random_bits
        return found
    nearest: Array = fixed.round_float(value, call.rounding)
    return nearest


def flaws(call: Call) -> Iterator[tuple[str, Flaw]]:
    """Yield what may be wrong with a quantizer of this rounding, the usual first: words and function."""
    for word in Rounding:
        if word is not call.rounding and word is not Rounding.STOCHASTIC:
            yield f"codes are rounded {word} and not {call.rounding}", _codes(_with(rounding=word, words=None))
    if call.words is not None:
        yield from _random_words()
    yield "the zero point is added before rounding, in float32", _zero_first
    yield "x is multiplied by the float32 inverse of the step", _codes_of(lambda c: c.x * (np.float32(1) / c.step))
    yield "x is divided in float64", _codes_of(lambda c: c.x.astype(np.float64) / c.step.astype(np.float64))
    yield "the step is rounded to nearest, and not upwards", _stepped(lambda exact: exact.astype(np.float32))
    yield "the step is rounded down, and not upwards", _stepped(_down)
    yield "the step is (maximum - minimum) / (2^bits - 1), and the zero point rounded from it", _usual_grid
    yield "the step is one float32 larger", _codes(lambda c: c._replace(step=np.nextafter(c.step, np.float32(np.inf))))
    yield "all rows share one grid", _one_grid
    yield "the zero point is ignored", _codes(lambda c: c._replace(zero=c.zero * 0))
    yield "the zero point is subtracted", _codes(lambda c: c._replace(zero=-c.zero))
    yield "codes wrap where they should be clamped", _wrapped
    yield "the most negative code is unused", lambda c: {"codes": np.maximum(quantized(c), -c.ends[1])}
    yield "codes are of the other signedness", lambda c: {"codes": quantized(c) ^ (1 << (c.bits - 1))}
    yield "x or a step below 2^-126 is flushed to 0", _flushed


def _with(**fields: Any) -> Callable[[Call], Call]:
    return lambda call: call._replace(**fields)


def _codes(edit: Callable[[Call], Call]) -> Flaw:
    return lambda call: {"codes": quantized(edit(call))}


def _codes_of(quotient: Callable[[Call], Array]) -> Flaw:
    def flaw(call: Call) -> Outputs:
        with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
            return {"codes": quantized(call, quotient(call))}

    return flaw


def _random_words() -> Iterator[tuple[str, Flaw]]:
    edits: list[tuple[str, Callable[[Array, int], Array]]] = [
        ("each code takes the random word of the element before", lambda w, _: np.roll(w.ravel(), 1).reshape(w.shape)),
        ("each code takes the random word of the element after", lambda w, _: np.roll(w.ravel(), -1).reshape(w.shape)),
        ("random words are taken column by column", lambda w, _: w.reshape(w.shape[::-1]).T),
        ("every row takes the random words of the first", lambda w, _: np.broadcast_to(w[:1], w.shape)),
        ("every code takes the first random word", lambda w, _: np.full_like(w, w.flat[0])),
        ("random words are taken from the end", lambda w, _: w.ravel()[::-1].reshape(w.shape)),
        (
            "random words count the other way (2^bits - 1 - word)",
            lambda w, bits: ((1 << bits) - 1) - w.astype(np.int64),
        ),
    ]
    for text, edit in edits:

        def flaw(call: Call, edit: Callable[[Array, int], Array] = edit) -> Outputs | None:
            if call.words is None:
                return None
            return {"codes": quantized(call._replace(words=edit(call.words, call.random_bits)))}

        yield text, flaw


def _zero_first(call: Call) -> Outputs:
    with np.errstate(over="ignore", under="ignore"):
        moved = (call.x / call.step).astype(np.float32) + call.zero.astype(np.float32)
    return {"codes": np.clip(_rounded(call, moved), *call.ends)}


def _extremes(call: Call) -> tuple[Array, Array]:
    """Return how far each row reaches below and above 0, float64."""
    low = -np.minimum(call.x.min(axis=1, keepdims=True), 0).astype(np.float64)
    return low, np.maximum(call.x.max(axis=1, keepdims=True), 0).astype(np.float64)


def _stepped(to_single: Callable[[Array], Array]) -> Flaw:
    """Return a flaw that rounds the exact step in its own way; a row of zeros keeps its step of 1."""

    def flaw(call: Call) -> Outputs:
        low, high = _extremes(call)
        bottom, top = call.ends
        with np.errstate(divide="ignore", invalid="ignore"):
            exact = np.maximum(np.nan_to_num(low / (call.zero - bottom), posinf=0),
                               np.nan_to_num(high / (top - call.zero), posinf=0))  # fmt: skip
        step = np.where(exact > 0, to_single(exact), call.step).astype(np.float32)
        return {"codes": quantized(call._replace(step=step)), "step": step}

    return flaw


def _down(exact: Array) -> Array:
    nearest = exact.astype(np.float32)
    lower: Array = np.where(nearest > exact, np.nextafter(nearest, np.float32(0)), nearest)
    return lower


def _usual_grid(call: Call) -> Outputs | None:
    if call.word != "aligned":
        return None
    low, high = _extremes(call)
    bottom, top = call.ends
    step = np.where(low + high > 0, (low + high) / (top - bottom), 1).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        zero = np.where(low + high > 0, np.rint(np.nan_to_num(low / step)) + bottom, call.zero).astype(np.int64)
    return {"codes": quantized(call._replace(step=step, zero=zero)), "step": step, "zero_point": zero}


def _one_grid(call: Call) -> Outputs | None:
    if len(call.x) == 1:
        return None
    grid = definition.GRIDS[call.word](float(call.x.min()), float(call.x.max()), call.bits, call.form.signed)
    step, zero = np.full_like(call.step, grid.step), np.full_like(call.zero, grid.zero_point)
    return {"codes": quantized(call._replace(step=step, zero=zero))}


def _wrapped(call: Call) -> Outputs:
    bottom = call.form.minimum
    return {"codes": (_rounded(call) + call.zero - bottom) % (1 << call.form.bits) + bottom}


def _flushed(call: Call) -> Outputs:
    least = np.float32(2.0**-126)
    x = np.where(np.abs(call.x) < least, np.float32(0), call.x)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(x == 0, np.float32(0), x / np.where(call.step < least, np.float32(0), call.step))
    return {"codes": quantized(call, quotient)}


def gives_right(call: Call, got: Outputs) -> bool:
    """Tell whether what somebody got is what the rule gives."""
    return _gives(lambda _: None, call, got)


def fitting(seen: Sequence[tuple[Call, Outputs]]) -> list[str]:
    """Return the flaws that give every output seen, of calls with what somebody got for each of their outputs."""
    # A case that the plain rule above does not cover (a row of zeros) cannot tell flaws apart.
    return [text for text, flaw in flaws(seen[0][0]) if all(_gives(flaw, call, got) for call, got in seen)]


def _gives(flaw: Flaw, call: Call, got: Outputs) -> bool:
    found = flaw(call) or {"codes": quantized(call)}
    right = {"codes": quantized(call), "step": call.step, "zero_point": call.zero} | found
    return all(np.array_equal(right[name].ravel(), observed.ravel()) for name, observed in got.items() if name in right)
