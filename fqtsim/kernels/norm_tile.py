"""The passes of batch norm over one channel, in vector registers across its rows. LLVM IR: Numba starts anew each row.

A channel is `rows` runs of `positions` float32, `pitch` bytes apart; addresses are numbers. What stands
at the same place of the next row is asked for, as a row is too short for the CPU to see that it goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels.ends import GREATEST, LEAST
from fqtsim.kernels.tile import INT64, emit_loop
from fqtsim.kernels.transpose import prefetch
from fqtsim.kernels.vectors import (
    FLOAT,
    HALF,
    INT32,
    LANES,
    ONE,
    every,
    first_lanes,
    keys,
    load,
    load_some,
    nearer,
    patterns,
    reduced,
    splat,
    store,
    store_some,
    unpacked,
    vector,
    with_terms,
)


class _Channel:
    """Writes the IR of a pass."""

    def __init__(
        self, builder: Any, places: list[Any], extent: list[Any], numbers: list[Any], binades: list[Any]
    ) -> None:
        self.builder, self.places = builder, places
        self.rows, self.pitch, self.positions = extent
        self.numbers = [splat(builder, number) for number in numbers]
        self.binades = [[splat(builder, number, HALF)] * 2 for number in binades]

    def over(self, n_inputs: int, first: list[Any], body: Callable[..., list[Any]]) -> list[Any]:
        """Emit body(inputs, values, offset, mask) for every vector of the first arrays; return the last values.

        The mask is None for whole vectors; lanes outside of it read as 0.
        """
        builder, at_once = self.builder, ir.Constant(INT64, LANES)
        whole = builder.sub(self.positions, builder.srem(self.positions, at_once))
        mask = first_lanes(builder, builder.sub(self.positions, whole))

        def row(index: Any, values: list[Any]) -> list[Any]:
            start = builder.mul(index, self.pitch)

            def one(lanes: Any, position: Any, values: list[Any]) -> list[Any]:
                offset = builder.add(start, builder.mul(position, ir.Constant(INT64, 4)))
                inputs = []
                for base in self.places[:n_inputs]:
                    at = builder.add(base, offset)
                    prefetch(builder, builder.add(at, self.pitch))
                    inputs.append(load(builder, at, vector(FLOAT)) if lanes is None else load_some(builder, at, lanes))
                return body(inputs, values, offset, lanes)

            values = emit_loop(builder, whole, values, partial(one, None), at_once)
            return emit_loop(builder, self.positions, values, partial(one, mask), at_once, whole)

        return emit_loop(builder, self.rows, first, row, ONE)

    def within(self, mask: Any, x: Any, otherwise: Any) -> Any:
        """Return x, and a constant outside a mask."""
        return x if mask is None else self.builder.select(mask, x, every(x.type, otherwise))

    def totals(self, terms: Callable[..., list[Any]]) -> list[Any]:
        """Return the int64 sums of the bits of t + M (kernels/vectors.py), for each t of terms(inputs) and its M.

        There are as many as vectors have lanes: those outside a mask are M alone.
        """
        builder, count = self.builder, len(self.binades)

        def added(inputs: list[Any], values: list[Any], _offset: Any, mask: Any) -> list[Any]:
            found = []
            for i, term in enumerate(terms(*inputs)):
                found += with_terms(builder, self.within(mask, term, 0.0), self.binades[i], values[2 * i : 2 * i + 2])
            return found

        halves = self.over(len(self.places), [every(vector(INT64, HALF), 0)] * (2 * count), added)
        return [reduced(builder, "add", builder.add(*halves[2 * i : 2 * i + 2])) for i in range(count)]

    def pair(self, dy: Any, x: Any, with_relu: bool) -> tuple[Any, Any]:
        """Return dy, 0 where a ReLU behind the batch norm passed nothing on, and xhat = (x - mean) * inv.

        The first numbers are mean, inv, gamma and beta.
        """
        builder, (mean, inv, gamma, beta) = self.builder, self.numbers[:4]
        xhat = builder.fmul(builder.fsub(x, mean), inv)
        if with_relu:
            y, zero = builder.fadd(builder.fmul(xhat, gamma), beta), every(x.type, 0.0)
            dy = builder.select(builder.fcmp_ordered(">", y, zero), dy, zero)
        return dy, xhat


def _pass(result: Any, write: Callable[[_Channel], list[Any]]) -> Any:
    """Build pass(places, (rows, pitch, positions), float32 numbers, M of each sum), whose IR `write` emits."""

    def channel_pass(_context: Any, places: Any, extent: Any, numbers: Any, binades: Any) -> Any:
        signature = result(places, extent, numbers, binades)

        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            found = write(_Channel(builder, *(unpacked(builder, one) for one in args)))
            if len(found) > 1:
                return context.make_tuple(builder, result, found)
            return found[0] if found else context.get_dummy_value()

        return signature, codegen

    return intrinsic(channel_pass)


def _value_ends(channel: _Channel) -> list[Any]:
    """Return the smallest and the largest key of x."""
    builder = channel.builder

    ends = [int(end) for end in (LEAST, GREATEST)]

    def widened(inputs: list[Any], values: list[Any], _offset: Any, mask: Any) -> list[Any]:
        found = [channel.within(mask, keys(builder, inputs[0]), end) for end in ends]
        return [nearer(builder, word, *both) for word, *both in zip("<>", found, values, strict=True)]

    low, high = channel.over(1, [every(vector(INT32), end) for end in ends], widened)
    return [reduced(builder, "smin", low), reduced(builder, "smax", high)]


def _squares(channel: _Channel) -> list[Any]:
    """Return the sum over the squares of x - mean."""

    def square(x: Any) -> list[Any]:
        d = channel.builder.fsub(x, channel.numbers[0])
        return [channel.builder.fmul(d, d)]

    return channel.totals(square)


def _pair_tops(with_relu: bool, channel: _Channel) -> list[Any]:
    """Return the largest magnitude patterns of dy and of dy * xhat."""
    builder = channel.builder

    def raised(inputs: list[Any], values: list[Any], _offset: Any, mask: Any) -> list[Any]:
        dy, xhat = channel.pair(inputs[0], inputs[1], with_relu)
        found = [channel.within(mask, patterns(builder, x), 0) for x in (dy, builder.fmul(dy, xhat))]
        return [nearer(builder, ">", *both) for both in zip(found, values, strict=True)]

    return [reduced(builder, "smax", top) for top in channel.over(2, [every(vector(INT32), 0)] * 2, raised)]


def _pair_totals(with_relu: bool, channel: _Channel) -> list[Any]:
    """Return the sums over dy and over dy * xhat."""

    def terms(dy: Any, x: Any) -> list[Any]:
        dy, xhat = channel.pair(dy, x, with_relu)
        return [dy, channel.builder.fmul(dy, xhat)]

    return channel.totals(terms)


def _centre(with_relu: bool, channel: _Channel) -> list[Any]:
    """Write dx: places are those of dy, x and dx; behind the first four numbers scale and the means of both sums."""
    builder, (scale, dy_mean, along) = channel.builder, channel.numbers[4:]

    def centred(inputs: list[Any], values: list[Any], offset: Any, mask: Any) -> list[Any]:
        dy, xhat = channel.pair(inputs[0], inputs[1], with_relu)
        moved = builder.fsub(builder.fsub(dy, dy_mean), builder.fmul(xhat, along))
        dx, at = builder.fmul(scale, moved), builder.add(channel.places[2], offset)
        if mask is None:
            store(builder, dx, at)
        else:
            store_some(builder, dx, at, mask)
        return values

    return channel.over(2, [], centred)


_TWO_SUMS: Any = types.UniTuple(types.int64, 2)  # type: ignore[no-untyped-call]
_TWO_PATTERNS: Any = types.UniTuple(types.int32, 2)  # type: ignore[no-untyped-call]

value_ends = _pass(_TWO_PATTERNS, _value_ends)
value_total = _pass(types.int64, lambda channel: channel.totals(lambda x: [x]))
square_total = _pass(types.int64, _squares)
pair_tops, pair_tops_relu = (_pass(_TWO_PATTERNS, partial(_pair_tops, with_relu)) for with_relu in (False, True))
pair_totals, pair_totals_relu = (_pass(_TWO_SUMS, partial(_pair_totals, with_relu)) for with_relu in (False, True))
centre, centre_relu = (_pass(types.void, partial(_centre, with_relu)) for with_relu in (False, True))
