"""float32 values to powers of two times a step, unbiased: LUQ's codes (docs/quantizers.md, Q9).

The twin of ref/luq.py. Magnitudes are rounded within their octave, those below 1 between 0 and 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fqtsim.kernels.grid import Grid
from fqtsim.kernels.jit import kernel
from fqtsim.kernels.quantize import BLOCK, Draw
from fqtsim.kernels.random import fill_blocks
from fqtsim.kernels.threads import parts, run


def top_code(bits: int) -> int:
    """Return the largest code of sign and bits - 1 bits of exponent, one of whose patterns is zero."""
    return 1 << ((1 << (bits - 1)) - 2)


@kernel
def _log_codes(x: Any, step: Any, top: Any, draw: Any, first: Any, last: Any, codes: Any) -> Any:
    """Fill codes first..last of flat x; return how many were clamped. first % 4 == 0."""
    key0, key1, stream, index, bits = draw
    words = np.empty(BLOCK, np.uint32)
    up, drop = np.float64(2.0**bits), np.uint32(32 - bits)
    clamps = np.int64(0)
    for start in range(first, last, BLOCK):
        stop = min(last, start + BLOCK)
        fill_blocks(words, start // 4, (stop + 3) // 4, (stream, index, 0), (key0, key1))
        for i in range(start, stop):
            y = np.float32(x[i] / step)
            size = np.float64(abs(y))
            code = np.int32(0)
            if size > top:
                code = np.int32(top)
                clamps += 1
            else:
                octave = np.int32(1)
                while octave <= size:
                    octave <<= 1
                # `octave` is 1 for sizes below 1, else the first power of two above; fractions are of the octave.
                floor = np.float64(octave >> 1)
                width = max(floor, 1.0)
                fraction = np.floor((size - floor) / width * up)
                rise = fraction + (up - 1.0 - np.float64(words[i - start] >> drop)) >= up
                code = np.int32(floor) + np.int32(width) if rise else np.int32(floor)
            codes[i] = -code if y < 0 else code
    return clamps


def log_codes(
    x: npt.NDArray[np.float32], grid: Grid, draw: Draw, storage: str
) -> tuple[npt.NDArray[np.integer[Any]], int]:
    """Return the codes of x, one grid for all, 0 or plus or minus powers of two; and how many were clamped."""
    codes = np.empty(x.size, storage)
    flat = x.reshape(-1)
    words = (draw.seed & 0xFFFFFFFF, draw.seed >> 32, draw.stream, draw.step, draw.bits)
    ranges = [(4 * i, min(4 * j, x.size)) for i, j in parts(-(-x.size // 4), 4)]
    counts = run(lambda i, j: _log_codes(flat, grid.step[0], np.int32(grid.high), words, i, j, codes), ranges)
    return codes.reshape(x.shape), sum(map(int, counts))
