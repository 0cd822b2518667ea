"""How near the sums of a tile come to two rails: what the proofs by partial sums ask again and again.

LLVM IR, as Numba compares the sums of a tile one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fqtsim.kernels.jit import inner
from fqtsim.kernels.tile import VECTOR, Emitter, Tile

ROUND_UP = 1 + 2.0**-40
"""Covers the few roundings of 2**-53 each in a bound."""
SUM_ROUND_UP = 1 + 2.0**-20
"""Covers those of a sum of up to 2**33 bounds."""


def tile_ends(tile: Tile) -> Any:
    """Build ends(acc, stride, more, side, out): smallest and largest sum of a tile, modulo 2**32, to out (2,) int32.

    A sum is acc + more[row] + side[lane]. int64 addresses, and bytes between rows of acc.
    """

    @intrinsic
    def ends(_context: Any, acc: Any, stride: Any, more: Any, side: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            emitter = Emitter(builder, ir.IntType(32), tile, False, "")
            place, step, rows, lanes, target = args
            along = [emitter.load(emitter.constant_offset(lanes, VECTOR * v), 4) for v in range(tile.vectors)]
            least: Any = None
            most: Any = None
            for r in range(tile.rows):
                pointer = builder.inttoptr(emitter.constant_offset(rows, 4 * r), emitter.element.as_pointer())
                row = emitter.splat(builder.load(pointer, align=4))
                for v in range(tile.vectors):
                    value = builder.add(emitter.load(emitter.address(place, step, r, v), 4), builder.add(row, along[v]))
                    least = value if least is None else emitter.call(f"llvm.smin.v{emitter.lanes}i32", least, value)
                    most = value if most is None else emitter.call(f"llvm.smax.v{emitter.lanes}i32", most, value)
            for i, (word, value) in enumerate((("smin", least), ("smax", most))):
                name = f"llvm.vector.reduce.{word}.v{emitter.lanes}i32"
                signature = ir.FunctionType(emitter.element, [emitter.vector])
                reduced = builder.call(builder.module.declare_intrinsic(name, (), signature), [value])
                address = emitter.constant_offset(target, 4 * i)
                builder.store(reduced, builder.inttoptr(address, emitter.element.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), codegen

    return ends


@inner
def may_pass(ends: Any, room: float, limits: Any) -> bool:
    """Tell whether sums between two ends, moved by up to `room`, may leave the limits."""
    low, high = np.float64(ends[0]) - room, np.float64(ends[1]) + room
    return bool(low < limits[0] or high > limits[1])
