"""Philox4x32-10 random words (S5.5). The twin of ref/random.py.

LLVM IR: a round is a chain of five or more cycles, and a loop that Numba vectorises has too few of them under way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels.jit import kernel
from fqtsim.kernels.threads import parts, run
from fqtsim.kernels.tile import INT64, emit_loop
from fqtsim.kernels.vectors import INT32, every, splat, store, unpacked, vector

# Constants of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), as in Random123's philox.h.
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10

_COUNTERS, _CHAINS = 8, 4
"""Counters of a vector, and vectors whose rounds are under way together."""
AT_ONCE = _COUNTERS * _CHAINS
"""Counters whose words are made together."""


class _Philox:
    """Writes the IR of ten rounds on vectors of 64-bit lanes, of whose words only the lower 32 bits count."""

    def __init__(self, builder: Any, keys: list[Any]) -> None:
        self.builder, self.kind = builder, vector(INT64, _COUNTERS)
        added = [[ir.Constant(INT64, r * by) for by in _KEY_STEPS] for r in range(_ROUNDS)]
        self.keys = [[splat(builder, builder.add(keys[i], by[i]), _COUNTERS) for i in (0, 1)] for by in added]

    def low(self, x: Any) -> Any:
        return self.builder.and_(x, every(self.kind, 0xFFFFFFFF))

    def round(self, c: list[Any], key: list[Any]) -> list[Any]:
        builder, up = self.builder, every(self.kind, 32)
        p, q = (builder.mul(self.low(c[2 * i]), every(self.kind, _MULTIPLIERS[i])) for i in (0, 1))
        high = [builder.lshr(product, up) for product in (q, p)]
        one, other = (builder.xor(builder.xor(high[i], c[2 * i + 1]), key[i]) for i in (0, 1))
        return [one, q, other, p]

    def words(self, counters: list[list[Any]]) -> list[list[Any]]:
        """Return the four words of each vector of counters."""
        for key in self.keys:
            counters = [self.round(c, key) for c in counters]
        return counters

    def store(self, words: list[Any], address: Any) -> None:
        """Write the words counter by counter."""
        builder, up = self.builder, every(self.kind, 32)
        pairs = [builder.or_(self.low(words[i]), builder.shl(words[i + 1], up)) for i in (0, 2)]
        for side in (0, 1):
            lanes = [lane + half for lane in range(4 * side, 4 * side + 4) for half in (0, _COUNTERS)]
            both = builder.shuffle_vector(*pairs, ir.Constant(vector(INT32, _COUNTERS), lanes))
            store(builder, both, builder.add(address, ir.Constant(INT64, 64 * side)))


def _write_words(_context: Any, place: Any, first: Any, last: Any, others: Any, key: Any) -> Any:
    """Write the words of counters (first..last, *others), a multiple of AT_ONCE of them, to an address."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        target, start, stop = args[:3]
        philox, kind = _Philox(builder, unpacked(builder, args[4])), vector(INT64, _COUNTERS)
        fixed = [splat(builder, number, _COUNTERS) for number in unpacked(builder, args[3])]
        apart = ir.Constant(kind, list(range(_COUNTERS)))

        def some(index: Any, _values: list[Any]) -> list[Any]:
            at = builder.add(target, builder.mul(builder.sub(index, start), ir.Constant(INT64, 16)))
            base = builder.add(splat(builder, index, _COUNTERS), apart)
            counters = [[builder.add(base, every(kind, _COUNTERS * chain)), *fixed] for chain in range(_CHAINS)]
            for chain, words in enumerate(philox.words(counters)):
                philox.store(words, builder.add(at, ir.Constant(INT64, 16 * _COUNTERS * chain)))
            return []

        emit_loop(builder, stop, [], some, ir.Constant(INT64, AT_ONCE), start)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3, others, key), codegen


_words_to: Any = intrinsic(_write_words)


@kernel
def fill_blocks(words: Any, first: Any, last: Any, others: Any, key: Any) -> None:
    """Fill words[4 * (b - first) ..] with the four words of counters (b, *others), b in first..last, under a key.

    others are three numbers of 32 bits, key two, all int64.
    """
    whole = (last - first) // AT_ONCE * AT_ONCE
    _words_to(words.ctypes.data, first, first + whole, others, key)
    if first + whole < last:
        some = np.empty(4 * AT_ONCE, np.uint32)
        _words_to(some.ctypes.data, first + whole, first + whole + AT_ONCE, others, key)
        for i in range(4 * (last - first - whole)):
            words[4 * whole + i] = some[i]


def random_words(seed: int, stream: int, step: int, count: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return words 0..count of one stream and step; arguments already checked to fit their fields."""
    blocks = -(-count // 4)
    words = np.empty(4 * blocks, np.uint32)
    others, key = (stream, step, 0), (seed & 0xFFFFFFFF, seed >> 32)
    run(lambda i, j: fill_blocks(words[4 * i : 4 * j], i, j, others, key), parts(blocks, 4))
    return words[:count]
