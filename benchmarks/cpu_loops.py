"""The rivals that anybody can write: a saturating GEMM as a plain loop, compiled by Numba, rows shared by threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fqtsim.kernels import threads


@njit(nogil=True)
def loop_int32(a: Any, b: Any, out: Any, first: int, last: int, low: Any, high: Any) -> None:
    """Advance out (M, N) int32 by a (M, K) int8 times b (K, N) int8, rows first..last."""
    for i in range(first, last):
        accumulators = out[i]
        for k in range(a.shape[1]):
            x, row = np.int32(a[i, k]), b[k]
            for j in range(row.size):
                total = np.int32(accumulators[j] + np.int32(x * row[j]))  # without the casts, int64
                accumulators[j] = min(max(total, low), high)


@njit(nogil=True, fastmath=True)
def loop_float32(a: Any, b: Any, out: Any, first: int, last: int, low: Any, high: Any) -> None:
    """The same in float32 lanes, for registers of up to 24 bits; a and b are float32."""
    for i in range(first, last):
        accumulators = out[i]
        for k in range(a.shape[1]):
            x, row = a[i, k], b[k]
            for j in range(row.size):
                total = accumulators[j] + x * row[j]
                total = total if total < high else high
                accumulators[j] = total if total > low else low


@intrinsic
def _saturating_add(_context: Any, x: Any, y: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        short = ir.IntType(16)
        function = ir.FunctionType(short, [short, short])
        return builder.call(builder.module.declare_intrinsic("llvm.sadd.sat", [short], function), args)

    return types.int16(types.int16, types.int16), codegen


@njit(nogil=True)
def loop_int16(a: Any, b: Any, out: Any, first: int, last: int, _low: Any, _high: Any) -> None:
    """The same for a register of exactly 16 bits, by LLVM's saturating addition; a and b are int16."""
    for i in range(first, last):
        accumulators = out[i]
        for k in range(a.shape[1]):
            x, row = a[i, k], b[k]
            for j in range(row.size):
                accumulators[j] = _saturating_add(accumulators[j], np.int16(x * row[j]))  # type: ignore[call-arg]


def plain_loops(bits: int, a: Any, b: Any, start: Any) -> dict[str, Callable[[], Any]]:
    """Return the loops that are right for a signed saturating register; each call returns the codes.

    a (M, K), b (K, N) int8; start broadcasts to (M, N). Operands are converted beforehand, outside the time.
    """
    forms: dict[str, tuple[Any, type, type]] = {"Numba loop, int32": (loop_int32, np.int8, np.int32)}
    if bits <= 24:
        forms["Numba loop, float32"] = (loop_float32, np.float32, np.float32)
    if bits == 16:
        forms["Numba loop, int16 sadd.sat"] = (loop_int16, np.int16, np.int16)
    if bits == 32:
        del forms["Numba loop, int32"]  # its sum would wrap before it is clamped
        forms["Numba loop, int64"] = (_loop_int64, np.int8, np.int64)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return {name: _call(*form, a, b, start, low, high) for name, form in forms.items()}


@njit(nogil=True)
def _loop_int64(a: Any, b: Any, out: Any, first: int, last: int, low: Any, high: Any) -> None:
    for i in range(first, last):
        accumulators = out[i]
        for k in range(a.shape[1]):
            x, row = np.int64(a[i, k]), b[k]
            for j in range(row.size):
                accumulators[j] = min(max(accumulators[j] + x * row[j], low), high)


def _call(loop: Any, operand: type, lane: type, a: Any, b: Any, start: Any, low: int, high: int) -> Callable[[], Any]:
    left, right = a.astype(operand), b.astype(operand)
    rails = lane(low), lane(high)

    def run() -> Any:
        out = np.empty((a.shape[0], b.shape[1]), lane)
        out[:] = start
        ranges = threads.parts(a.shape[0], b.shape[1] * a.shape[1])
        threads.run(lambda i, j: loop(left, right, out, i, j, *rails), ranges)
        return out

    return run
