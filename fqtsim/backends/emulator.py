"""The default backend: proven shortcuts where the result cannot depend on the order of additions, stepwise elsewhere.

Three proofs, cheapest first (design: "Do not emulate what cannot differ"):
1. No operands in the range of these can push any register out of its format: the code is U.
2. A wrapping accumulator that nothing narrower feeds: the code is U modulo 2**bits.
3. Cauchy-Schwarz, per output: |sum over any subset, in any order| <= |a_i| |b_j|. Where that fits every register the
   code is U; the outputs that remain are computed stepwise, as a block of their rows and columns.
Events come out the same, since they are counted from codes and U.
"""

from __future__ import annotations

import numpy as np

from fqtsim.backends import int8
from fqtsim.backends.base import Array, Backend, GemmResult, code_dtype
from fqtsim.backends.exact import exact_product, unlimited_dtype, unlimited_result, wrap_codes
from fqtsim.backends.stepwise import finish, prepare, start_values, stepwise_codes, untouched, with_trace
from fqtsim.hw.lower import EXACT, HIGH, LOW, MODE, Lowered
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import gemm as kernels

WORTH_A_BLOCK = 0.5
"""Share of outputs up to which gathering the unproven rows and columns beats computing all of them."""


class Emulator(Backend):
    """Numba where order matters, this CPU's INT8 product (or Numba's exact one) where it cannot."""

    name = "emulator"

    @property
    def executor(self) -> str:
        exact = "numba" if int8.silicon_fault("cpu") else f"{int8.SILICON}@cpu"
        return f"numba, and {exact} where order cannot matter"

    def gemm(
        self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False
    ) -> GemmResult:
        start = start_values(c, a.shape[0], b.shape[1])
        if not (a.shape[0] and a.shape[1] and b.shape[1]):
            return untouched(a, b, datapath, start, trace)
        lowered = prepare(a, b, datapath, start)
        product = None if lowered.dropped_bits else self._product(a, b, unlimited_dtype(lowered))
        unlimited = unlimited_result(a, b, lowered, start, product)
        codes = emulated_codes(a, b, lowered, start, unlimited)
        result = finish(codes, unlimited, lowered, code_dtype(datapath))
        return with_trace(result, a, b, lowered, start) if trace else result

    def _product(self, a: Array, b: Array, dtype: type) -> Array:
        narrow = a.dtype.itemsize == 1 and b.dtype.itemsize == 1
        if narrow and int8.silicon_fault("cpu") is None:
            return int8.exact_product(a, b, "cpu")
        return exact_product(a, b, dtype)


def emulated_codes(a: Array, b: Array, lowered: Lowered, start: Array | None, unlimited: Array) -> Array:
    """Return the accumulators, given U."""
    if lowered.never_overflows:
        return unlimited
    if lowered.order_free_wrap:
        return wrap_codes(unlimited, lowered)
    limit = subset_limit(lowered)
    if limit <= 0:
        return stepwise_codes(a, b, lowered, start)
    rows, columns = open_rows_and_columns(a, b, start, limit)
    if rows.mean() * columns.mean() > WORTH_A_BLOCK:
        return stepwise_codes(a, b, lowered, start)
    codes = unlimited.copy()
    if rows.any():
        block = np.ix_(rows, columns)
        left, right = np.ascontiguousarray(a[rows]), np.ascontiguousarray(b[:, columns])
        stepped = stepwise_codes(left, right, lowered, None if start is None else start[block])
        # An inner register that wraps can carry a code to where no U is, and out of U's type.
        codes = codes.astype(np.promote_types(codes.dtype, stepped.dtype), copy=False)
        codes[block] = stepped
    return codes


def subset_limit(lowered: Lowered) -> int:
    """Return the largest magnitude that every register of the chain holds; 0 where the bound does not apply.

    Dropped bits change the items, and an unsigned register must not see a negative partial sum.
    """
    limited = lowered.table[lowered.table[:, MODE] != EXACT]
    low, high = limited[:, LOW], limited[:, HIGH]
    if lowered.dropped_bits or (low.max() >= 0 and lowered.product.low < 0):
        return 0
    # With no negative product an unsigned register's lower rail cannot be passed, a signed one's even less.
    rails = high if lowered.product.low >= 0 else np.minimum(high, -low)
    return int(rails.min())


def open_rows_and_columns(a: Array, b: Array, start: Array | None, limit: int) -> tuple[Array, Array]:
    """Tell which rows of a and columns of b meet in an output that |a_i| |b_j| <= limit - |c| does not prove."""
    rows, columns = np.zeros(a.shape[0], np.int64), np.zeros(b.shape[1], np.int64)
    kernels.squared_norms(a, False, rows)
    kernels.squared_norms(b, True, columns)
    # The products of squared norms need more than 64 bits. Compare in float64, pessimistically: a factor of
    # 1 + 2**-40 on either side covers the few roundings of 2**-53 each.
    slack = 1 + 2.0**-40
    starts = np.empty((0, 0), np.int64) if start is None else start
    open_rows, open_columns = np.zeros(rows.size, np.bool_), np.zeros(columns.size, np.bool_)
    kernels.open_outputs(rows * slack, columns * slack, starts, limit, open_rows, open_columns)
    return open_rows, open_columns
