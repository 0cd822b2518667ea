"""Right shifts that stay in the type of their operands: Numba widens `>>` to int64, which halves the vector lanes."""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic


def _shift_right(arithmetic: bool) -> Any:
    @intrinsic
    def shift(_context: Any, x: Any, n: Any) -> Any:
        """Return x shifted by n, an integer of the same type."""

        def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return (builder.ashr if arithmetic else builder.lshr)(*args)

        return x(x, n), codegen

    return shift


floor_shift: Any = _shift_right(arithmetic=True)
top_bits: Any = _shift_right(arithmetic=False)
