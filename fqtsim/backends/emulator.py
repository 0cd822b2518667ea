"""The default backend: proven shortcuts where the result cannot depend on the order of additions, stepwise elsewhere.

Five proofs, cheapest first (do not emulate what cannot differ):
1. No operands in the range of these can push any register out of its format: the code is U.
2. A wrapping accumulator that nothing narrower feeds: the code is U modulo 2**bits.
3. |sum over any subset, in any order| <= max |a| times the sum of |b_j|: where that fits every register for every
   column the code is U.
4. Where one register takes the products in the order of k: its sums at the end of every span of k, from the exact
   product, with |a_i| |b_j| of the next span around them (Cauchy-Schwarz). Where they stay between the rails the code
   is U; the outputs that remain are computed stepwise, as a block of their rows and columns.
5. Elsewhere |sum over any subset, in any order| <= |a_i| |b_j|, span by span: as 4.
Events come out the same, since they are counted from codes and U.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fqtsim.backends import direct, direct_chain, grouped
from fqtsim.backends.base import Array, Backend, GemmResult, code_dtype
from fqtsim.backends.byte_products import Limits, Product, byte_product, pays
from fqtsim.backends.chains import codes_and_unlimited, stepwise_codes, unlimited_result
from fqtsim.backends.exact import operand_range, subset_limit, without_repeats, wrap_codes
from fqtsim.backends.stepwise import (
    finish,
    finish_groups,
    prepare,
    prepare_for_formats,
    start_values,
    untouched,
    with_trace,
)
from fqtsim.hw.lower import CLAMP, EXACT, HIGH, LANES, LOW, MODE, RUN, Lowered, Range
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import gemm as kernels

WORTH_A_BLOCK = 0.5
"""Share of outputs up to which gathering the unproven rows and columns beats computing all of them."""


class Emulator(Backend):
    """Numba kernels: every addition where order matters, exact products where it cannot."""

    name = "emulator"

    @property
    def executor(self) -> str:
        return "numba, and its exact products where order cannot matter"

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        start = start_values(c, a.shape[0], b.shape[1])
        if not (a.shape[0] and a.shape[1] and b.shape[1]):
            return untouched(a, b, datapath, start, trace)
        lowered = prepare_for_formats(a.shape[1], datapath, start)
        if lowered is None or not (lowered.never_overflows or lowered.order_free_wrap):
            lowered = prepare(a, b, datapath, start)
        if lowered.dropped_bits:
            result = finish(*codes_and_unlimited(a, b, lowered, start), lowered, code_dtype(datapath))
            return with_trace(result, a, b, lowered, start) if trace else result
        block, product = examined(a, b, lowered, start)
        total = product.total if product is not None and product.fits else None
        unlimited = unlimited_result(a, b, lowered, start, total)
        codes = completed_codes(a, b, lowered, start, unlimited, block)
        ends = product.ends if product is not None and product.fits and start is None else None
        result = finish(codes, unlimited, lowered, code_dtype(datapath), ends)
        return with_trace(result, a, b, lowered, start) if trace else result

    def gemm_groups(self, a: Array, b: Array, datapath: Datapath, trace: bool = False) -> list[GemmResult]:
        lowered = None if trace else grouped.lowered_groups(a, b, datapath)
        if lowered is None:
            return super().gemm_groups(a, b, datapath, trace)
        a, b = grouped.carriers(a, b)
        total, size = grouped.sums(a, b)
        unlimited = grouped.unlimited(a, b, lowered, total)
        codes = unlimited
        if lowered.order_free_wrap:
            codes = wrap_codes(unlimited, lowered)
        elif not lowered.never_overflows:
            # No sum of some of the products, in any order, passes the sum of all magnitudes.
            limit = subset_limit(lowered)
            codes = grouped.completed(
                a, b, lowered, unlimited, np.flatnonzero(size > limit if limit > 0 else size >= 0)
            )
        return finish_groups(codes, unlimited, lowered, datapath, (len(a), a.shape[1], b.shape[2]))

    def convolve(self, job: direct.Images, datapath: Datapath, out: Array, with_codes: bool) -> GemmResult | None:
        if not self._is_plain:
            return None
        result = direct.images(job, datapath, out, with_codes)
        if result is not None:
            return result
        result = direct_chain.images(job, datapath, out, with_codes or job.checksum is not None)
        if result is not None and job.checksum is not None:
            job.checksum.add(result.codes)
        return result

    def correlate(self, job: direct.Gradient, datapath: Datapath) -> tuple[GemmResult, Array, Array] | None:
        if not self._is_plain:
            return None
        found = direct.gradient(job, datapath)
        return found if found is not None else direct_chain.gradient(job, datapath)

    @property
    def _is_plain(self) -> bool:
        """Whether nobody has put another `gemm` in the place of this one's, which shortcuts would pass by."""
        return type(self).gemm is Emulator.gemm


class Block(NamedTuple):
    """Rows of a and columns of b (masks) that meet in some output no proof covers."""

    rows: Array
    columns: Array

    @property
    def is_most(self) -> bool:
        """Whether computing every output beats gathering these."""
        return bool(self.rows.mean() * self.columns.mean() > WORTH_A_BLOCK)


def block_of(a: Array, b: Array, whole: bool) -> Block:
    """Return all outputs, or none."""
    return Block(np.full(a.shape[0], whole), np.full(b.shape[1], whole))


def examined(a: Array, b: Array, lowered: Lowered, start: Array | None) -> tuple[Block, Product | None]:
    """Return the outputs that need every addition performed, and the exact product where it is at hand.

    Where a register can change anything, the ranges in `lowered` are those of these very operands.
    """
    certain, worth_it = lowered.never_overflows or lowered.order_free_wrap, pays(a, b)
    limit = 0 if certain else subset_limit(lowered)
    if certain or bounded_by_columns(a, b, lowered, start, limit):
        fits = worth_it and lowered.unlimited.fits_signed(32)
        product = byte_product(a, b, lowered.operands) if fits else None
        return block_of(a, b, False), product and product._replace(fits=True)
    limits = partial_sum_limits(lowered, start)
    product = byte_product(a, b, lowered.operands, limits) if worth_it and limits.magnitude > 0 else None
    if product is not None:
        return Block(product.rows, product.columns), product
    return (block_of(a, b, True) if limit <= 0 else open_rows_and_columns(a, b, start, limit)), None


def partial_sum_limits(lowered: Lowered, start: Array | None) -> Limits:
    """Return what the sums of products may reach, start values aside, without a change by any register."""
    starts = Range(0, 0) if start is None else operand_range(start)
    below, last = lowered.table[:-1], lowered.accumulator
    in_order = (below[:, MODE] == EXACT).all() and (below[:, LANES] == 1).all() and (below[:, RUN] > 0).all()
    if in_order and last[MODE] == CLAMP:
        # Groups of exact sums show the register some of the sums in the order of k, and no others.
        return Limits(int(last[LOW]) - starts.low, int(last[HIGH]) - starts.high)
    return Limits(magnitude=subset_limit(lowered) - starts.magnitude)


def bounded_by_columns(a: Array, b: Array, lowered: Lowered, start: Array | None, limit: int) -> bool:
    """Tell whether max |a| times the sum of |b|, over the shorter operand, is within limit - |c| for every output.

    Cheaper than the norms, as the longer operand is not read; where it fails they may still prove it.
    """
    starts = 0 if start is None else operand_range(start).magnitude
    if starts >= limit:
        return False
    longer, columns = (lowered.operands[0], b) if a.shape[0] >= b.shape[1] else (lowered.operands[1], a.T)
    sums = np.zeros(columns.shape[1], np.int64)
    if columns.flags.f_contiguous:
        kernels.row_magnitudes(columns.T, sums)
    else:
        kernels.column_magnitudes(columns, sums)
    return longer.magnitude * int(sums.max()) + starts <= limit


def completed_codes(a: Array, b: Array, lowered: Lowered, start: Array | None, unlimited: Array, block: Block) -> Array:
    """Return the accumulators: U, or U modulo 2**bits, and the block computed stepwise."""
    if lowered.order_free_wrap:
        return wrap_codes(unlimited, lowered)
    if not block.rows.any():
        return unlimited
    if block.is_most:
        return stepwise_codes(a, b, lowered, start)
    place = np.ix_(block.rows, block.columns)
    left, right = np.ascontiguousarray(a[block.rows]), np.ascontiguousarray(b[:, block.columns])
    stepped = stepwise_codes(left, right, lowered, None if start is None else start[place])
    # An inner register that wraps can carry a code to where no U is, and out of U's type.
    codes = unlimited.astype(np.promote_types(unlimited.dtype, stepped.dtype))
    codes[place] = stepped
    return codes


def open_rows_and_columns(a: Array, b: Array, start: Array | None, limit: int) -> Block:
    """Tell which rows of a and columns of b meet in an output that |a_i| |b_j| <= limit - |c| does not prove."""
    rows, columns = np.zeros(a.shape[0], np.int64), np.zeros(b.shape[1], np.int64)
    kernels.squared_norms(a, False, rows)
    kernels.squared_norms(b, True, columns)
    # The products of squared norms need more than 64 bits. Compare in float64, pessimistically: a factor of
    # 1 + 2**-40 on either side covers the few roundings of 2**-53 each.
    slack = 1 + 2.0**-40
    left, right = rows * slack, columns * slack
    starts = np.zeros((1, 1), np.int64) if start is None else without_repeats(start)
    open_rows, open_columns = np.zeros(rows.size, np.bool_), np.zeros(columns.size, np.bool_)
    if starts.shape[0] == 1:
        kernels.open_by_norms(left, right, starts, limit, open_rows, open_columns)
    elif starts.shape[1] == 1:
        kernels.open_by_norms(right, left, starts.T, limit, open_columns, open_rows)
    else:
        kernels.open_outputs(left, right, starts, limit, open_rows, open_columns)
    return Block(open_rows, open_columns)
