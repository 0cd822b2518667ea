"""Tiles for chains of several levels: the registers of every level stay in vector registers, as int32 lanes (S4).

One lane is one output, so that the order of additions is untouched. What the levels do decides which kernel is
compiled; rails, shifts and counts are arguments, so chains of one form share it. Operands are words of two int16:

- "single": one code and a zero; what stands beside the code of b does not matter;
- "pairs": two codes whose products meet in an exact sum;
- "short": two codes whose products stay apart in int16, where they are rounded; level 0 takes one after the other;
- "apart": two codes of b whose products level 0 takes one after the other, with U, which takes both at once.

They lie packed word by word, or where images have them: "planes", b's vectors at an offset for each word; "positions",
a's rows a plane apart, so that successive words are successive positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels import tile as tiles
from fqtsim.kernels.gemm import CHUNK, Driver, codes_stay, codes_to_words, pack
from fqtsim.kernels.jit import kernel_of, made_once
from fqtsim.kernels.tile import INT64, Emitter, Tile, emit_loop, lanes


class Form(NamedTuple):
    """What a level does with its items; the numbers come in a row of parameters."""

    #: The register takes one item, so it needs no loop.
    once: bool = False
    #: Bits are dropped: x becomes (x + base + [x < 0] negative + [x's last bit kept] odd) >> drop. Of the last three:
    #: "" where it is 0, its sign where it is 1 or -1, else "more".
    drop: bool = False
    base: bool = False
    negative: str = ""
    odd: str = ""
    #: Every sum is brought to the nearer rail: by comparing with both ("rails"), by the saturating dot product, of a
    #: product ("native") or of an item and the word that scales it to the lane ("word"), and then maybe from "_above".
    clamp: str = ""
    #: What leaves the register, or stays in it, is reduced to its bits: "sign", "zero" or "".
    wrap: str = ""


#: Columns of the parameters of a level. SPAN: words of one item. UNIT: the word that scales an item to the lane.
SPAN, LOW, HIGH, DROP, BASE, NEGATIVE, ODD, SHIFT, UNIT = range(9)
PARAMETERS = 9


class Kind(NamedTuple):
    """Which kernel a chain needs: compiled once for all chains of a kind."""

    forms: tuple[Form, ...]
    #: How operands stand in words: "single", "pairs", "short" or "apart".
    words: str
    #: Whether U is summed beside the accumulator; only where no register below it is limited.
    twice: bool
    #: By the CPU's 16-bit dot product, which a clamp by words needs.
    dot: bool
    #: "packed", "planes" or "positions".
    walk: str = "packed"
    shape: Tile | None = None

    @property
    def tile(self) -> Tile:
        """The shape of a tile whose registers, one set per loop, stay in vector registers."""
        if self.shape is not None:
            return self.shape
        sets = sum(not form.once for form in self.forms) + self.twice
        if tiles.VECTOR == 64:
            return {1: Tile(4, 4), 2: Tile(3, 4), 3: Tile(2, 4)}.get(sets, Tile(1, 4))
        return {1: Tile(4, 2), 2: Tile(3, 2)}.get(sets, Tile(1, 2))


class ChainEmitter(Emitter):
    """Writes the IR of a chain's tile."""

    def __init__(self, builder: Any, kind: Kind) -> None:
        super().__init__(builder, ir.IntType(32), kind.tile, grouped=False, mode="")
        self.kind, self.forms = kind, kind.forms
        forms = kind.forms
        #: The lowest level with a loop; those below it live within one word.
        self.ground = next(level for level, form in enumerate(forms) if not form.once)
        self.cells = [(r, v) for r in range(self.tile.rows) for v in range(self.tile.vectors)]
        self.zero = ir.Constant(self.vector, [0] * self.lanes)
        self.halves = ir.VectorType(ir.IntType(16), 2 * self.lanes)

    def emit_chain(
        self, acc: Any, unlimited: Any, stride: Any, a: Any, b: Any, n_words: Any, parameters: Any, apart: Any
    ) -> None:
        """Advance a tile; addresses. apart: the address of b's offsets, or bytes between a's rows, as the walk asks."""
        self.a, self.b, self.parameters, self.apart = a, b, parameters, apart
        self.rows_of = [self._row(level, form) for level, form in enumerate(self.forms)]
        places = [self.address(acc, stride, r, v) for r, v in self.cells]
        if self.kind.twice:
            places += [self.address(unlimited, stride, r, v) for r, v in self.cells]
        first = [self.load(place) for place in places]
        start = ir.Constant(INT64, 0)
        last = self._register(len(self.forms) - 1, start, n_words, first)
        for place, value in zip(places, last, strict=True):
            self.builder.store(value, self.pointer(place), align=self.bytes)

    def _row(self, level: int, form: Form) -> dict[int, Any]:
        """Load the parameters that a level uses, vectors but for its span."""
        wanted = [SPAN] if level > self.ground else []
        wanted += [LOW, HIGH] * (form.clamp == "rails") + [LOW] * form.clamp.endswith("_above")
        wanted += [UNIT] * form.clamp.startswith("word") + [SHIFT] * bool(form.wrap)
        short = [DROP] * form.drop + [BASE] * form.base
        short += [NEGATIVE] * (form.negative == "more") + [ODD] * (form.odd == "more")
        row = {}
        for column in wanted + short:
            place = self.constant_offset(self.parameters, 8 * (level * PARAMETERS + column))
            number = self.builder.load(self.builder.inttoptr(place, INT64.as_pointer()))
            if column != SPAN:
                number = self.splat(self.builder.trunc(number, ir.IntType(32)))
            if column in short and level == 0 and self.kind.words == "short":
                number = self._both_halves(number)
            row[column] = number
        return row

    def _both_halves(self, numbers: Any) -> Any:
        high = self.builder.shl(numbers, self._all(16))
        low = self.builder.and_(numbers, self._all(0xFFFF))
        return self.builder.bitcast(self.builder.or_(high, low), self.halves)

    def _all(self, number: int) -> Any:
        return ir.Constant(self.vector, [number] * self.lanes)

    def _register(self, level: int, start: Any, end: Any, values: list[Any]) -> list[Any]:
        """Return a level's registers, one a cell, after the words start..end."""
        if level == self.ground:
            values = emit_loop(self.builder, end, values, self._word, ir.Constant(INT64, 1), start)
        elif self.forms[level].once:
            values = self._take(level, values, self._register(level - 1, start, end, self._zeros()))
        else:
            span = self.rows_of[level][SPAN]

            def step(k: Any, registers: list[Any]) -> list[Any]:
                stop = self.builder.add(k, span)
                stop = self.builder.select(self.builder.icmp_signed("<", stop, end), stop, end)
                return self._take(level, registers, self._register(level - 1, k, stop, self._zeros()))

            values = emit_loop(self.builder, end, values, step, span, start)
        limited = [self._wrapped(level, value) for value in values[: len(self.cells)]]
        return limited + values[len(self.cells) :]

    def _zeros(self) -> list[Any]:
        return [self.zero] * len(self.cells)

    def _word(self, k: Any, registers: list[Any]) -> list[Any]:
        """Take one word into the ground level, through those below it."""
        rows, vectors = self.tile
        if self.kind.walk == "planes":
            pointer = self.builder.inttoptr(self.offset(self.apart, k, 8), INT64.as_pointer())
            b_place = self.builder.add(self.b, self.builder.load(pointer))
        else:
            b_place = self.offset(self.b, k, tiles.VECTOR * vectors)
        b: list[Any] = [self.load(self.constant_offset(b_place, tiles.VECTOR * v)) for v in range(vectors)]
        if self.kind.words == "apart":
            b = [(word, *(self.builder.and_(word, self._all(mask)) for mask in (0xFFFF, -0x10000))) for word in b]
        result = list(registers)
        for r in range(rows):
            a = self._spread_word(k, r)
            for v in range(vectors):
                cell, u_cell = r * vectors + v, r * vectors + v + len(self.cells)
                unlimited = registers[u_cell] if self.kind.twice and self.ground == len(self.forms) - 1 else None
                result[cell], unlimited = self._cell(a, b[v], registers[cell], unlimited)
                if unlimited is not None:
                    result[u_cell] = unlimited
        return result

    def _spread_word(self, k: Any, row: int) -> Any:
        if self.kind.walk == "positions":
            place = self.offset(self.offset(self.a, k, self.bytes), ir.Constant(INT64, row), 0, by=self.apart)
        else:
            place = self.constant_offset(self.offset(self.a, k, self.bytes * self.tile.rows), self.bytes * row)
        align = 2 if self.kind.walk == "positions" else self.bytes
        return self.splat(self.builder.load(self.builder.inttoptr(place, self.element.as_pointer()), align=align))

    def _cell(self, a: Any, b: Any, register: Any, unlimited: Any) -> tuple[Any, Any]:
        """Take a word's products through the levels that live within it; unlimited: U of the ground level, or None."""
        value = self.zero if self.ground else register
        native = self.forms[0].clamp.startswith("native")
        if self.kind.words == "apart":
            for half in b[1:]:
                value = self._clamped(0, self._dot(value, a, half, saturates=native))
            unlimited = self._dot(unlimited, a, b[0])
        elif self.kind.words == "short":
            items = self._short_items(a, b)
            value = self._halves_taken(value, items)
            if not self.ground and unlimited is not None:
                unlimited = self._dot(unlimited, items, self._all(0x10001))
        elif self.forms[0].drop:
            item = self._dropped(self.forms[0], self.rows_of[0], self._dot(self.zero, a, b))
            value = self._limited(0, value, item)
            if not self.ground and unlimited is not None:
                unlimited = self._added(unlimited, item)
        else:
            value = self._clamped(0, self._dot(value, a, b, saturates=native))
        for level in range(1, self.ground + 1):
            item = self._rounded(level, self._wrapped(level - 1, value))
            value = self._limited(level, register if level == self.ground else self.zero, item)
            if level == self.ground and unlimited is not None:
                unlimited = self._added(unlimited, item)
        return value, unlimited

    def _added(self, register: Any, item: Any) -> Any:
        return item if register is self.zero else self.builder.add(register, item)

    def _short_items(self, a: Any, b: Any) -> Any:
        """Return the two products of words, each rounded in int16, as words."""
        products = self.builder.mul(*(self.builder.bitcast(x, self.halves) for x in (a, b)))
        return self.builder.bitcast(self._dropped(self.forms[0], self.rows_of[0], products), self.vector)

    def _halves_taken(self, register: Any, items: Any) -> Any:
        """Return level 0's register with the low half of words, then with the high one."""
        word = self.forms[0].clamp.startswith("word")
        for half in range(2):
            unit = self._all(1 << 16 * half)
            if word:
                unit = self.builder.shl(self.rows_of[0][UNIT], self._all(16 * half))
            register = self._clamped(0, self._dot(register, items, unit, saturates=word))
        return register

    def _take(self, level: int, registers: list[Any], items: list[Any]) -> list[Any]:
        rounded = [self._rounded(level, item) for item in items]
        taken = [self._limited(level, register, item) for register, item in zip(registers, rounded, strict=False)]
        if self.kind.twice and level == len(self.forms) - 1:
            taken += [self._added(u, item) for u, item in zip(registers[len(items) :], rounded, strict=True)]
        return taken

    def _rounded(self, level: int, item: Any) -> Any:
        form = self.forms[level]
        return self._dropped(form, self.rows_of[level], item) if form.drop else item

    def _limited(self, level: int, register: Any, item: Any) -> Any:
        """Return a register that has taken an item."""
        if self.forms[level].clamp.startswith("word"):
            return self._clamped(level, self._dot(register, item, self.rows_of[level][UNIT], saturates=True))
        return self._clamped(level, self._added(register, item))

    def _dropped(self, form: Form, row: dict[int, Any], item: Any) -> Any:
        """Return items, lanes of int32 or of int16, without their last bits, rounded."""
        builder, kind = self.builder, item.type
        last = kind.element.width - 1
        to_last = ir.Constant(kind, [last] * kind.count)
        biased = builder.add(item, row[BASE]) if form.base else item
        if form.negative:
            sign = builder.ashr(item, to_last)  # 0 or -1
            if form.negative == "more":
                sign = builder.and_(sign, row[NEGATIVE])
            biased = (builder.sub if form.negative == "+" else builder.add)(biased, sign)
        if form.odd == "more":
            # The last bit kept, moved to the sign and spread over the lane.
            spread = builder.ashr(builder.shl(item, builder.sub(to_last, row[DROP])), to_last)
            biased = builder.add(biased, builder.and_(spread, row[ODD]))
        elif form.odd:
            kept = builder.and_(builder.ashr(item, row[DROP]), ir.Constant(kind, [1] * kind.count))
            biased = (builder.add if form.odd == "+" else builder.sub)(biased, kept)
        return builder.ashr(biased, row[DROP])

    def _clamped(self, level: int, value: Any) -> Any:
        form, row, builder = self.forms[level], self.rows_of[level], self.builder
        if form.clamp == "rails":
            value = builder.select(builder.icmp_signed("<", value, row[HIGH]), value, row[HIGH])
        if form.clamp == "rails" or form.clamp.endswith("_above"):
            value = builder.select(builder.icmp_signed(">", value, row[LOW]), value, row[LOW])
        return value

    def _wrapped(self, level: int, value: Any) -> Any:
        form, builder = self.forms[level], self.builder
        if not form.wrap:
            return value
        shift = self.rows_of[level][SHIFT]
        moved = builder.shl(value, shift)
        return builder.ashr(moved, shift) if form.wrap == "sign" else builder.lshr(moved, shift)

    def _dot(self, acc: Any, a: Any, b: Any, saturates: bool = False) -> Any:
        """Add the two products of words to lanes."""
        if self.kind.dot:
            return self.call(f"llvm.x86.avx512.vpdpwssd{'s' * saturates}.{8 * tiles.VECTOR}", acc, b, a)
        name = "llvm.x86.avx512.pmaddw.d.512" if tiles.VECTOR == 64 else "llvm.x86.avx2.pmadd.wd"
        signature = ir.FunctionType(self.vector, [self.halves, self.halves])
        function = self.builder.module.declare_intrinsic(name, (), signature)
        both = self.builder.call(function, [self.builder.bitcast(x, self.halves) for x in (a, b)])
        return both if acc is self.zero else self.builder.add(acc, both)


def chain_tile(kind: Kind) -> Any:
    """Return tile(acc, unlimited, stride, a, b, n_words, parameters, apart), int64 each: see `emit_chain`."""

    @intrinsic
    def tile(
        _context: Any, acc: Any, unlimited: Any, stride: Any, a: Any, b: Any, n_words: Any, parameters: Any, apart: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            ChainEmitter(builder, kind).emit_chain(*args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    return tile


@made_once
def chain_driver(kind: Kind) -> Driver:
    """Return the driver of a kind of chain whose words are packed, compiled at its first use."""
    shape, is_single, kernel = kind.tile, kind.words == "single", chain_tile(kind)
    rows, width = shape.rows, shape.vectors * lanes(np.int32)

    @kernel_of(repr(kind))
    def run(
        left: Any, right: Any, along_columns: bool, acc: Any, unlimited: Any, whole: int, parameters: Any, panels: Any
    ) -> None:
        """Advance acc, and U, over all words for some panels of the right operand; an item of acc has `whole` words."""
        n_words = left.shape[1]
        chunk = whole * max(1, CHUNK // whole)
        panel = np.empty((min(chunk, n_words), width), acc.dtype)
        stride = acc.shape[1] * acc.itemsize
        for p in range(panels[0], panels[1]):
            for k in range(0, n_words, chunk):
                end = min(k + chunk, n_words)
                pack(right, along_columns, panel, p * width, k, end)  # the high half of a single code's word meets 0
                for t in range(left.shape[0]):
                    place = t * rows * stride + p * width * acc.itemsize
                    kernel(
                        acc.ctypes.data + place, unlimited.ctypes.data + place, stride,
                        left[t, k:].ctypes.data, panel.ctypes.data, end - k, parameters.ctypes.data, 0,
                    )  # fmt: skip

    return Driver(run, shape, np.int32, codes_to_words if is_single else codes_stay)
