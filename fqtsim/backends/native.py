"""This machine's own INT8 instructions, for datapaths whose result they cannot get wrong (it refuses, and says why).

Three kinds of datapath pass: a wrapping accumulator of at most 32 bits in any order; registers that no operands of
the declared formats can overflow for this K; and chains that are an x86 instruction sequence (backends/silicon.py).
"""

from __future__ import annotations

import numpy as np

from fqtsim.backends import int8
from fqtsim.backends.base import Array, Backend, GemmResult, code_dtype
from fqtsim.backends.chains import unlimited_result
from fqtsim.backends.exact import reduced, wrap_codes
from fqtsim.backends.instructions import Instruction, matching_instruction
from fqtsim.backends.stepwise import finish, prepare, start_values, with_trace
from fqtsim.errors import BackendRefused, InputError
from fqtsim.hw.lower import BITS, Lowered, Range, lower
from fqtsim.hw.spec import Datapath


class Native(Backend):
    """INT8 dot products of the CPU."""

    name = "native"

    def __init__(self) -> None:
        self.fault = int8.silicon_fault(self.device)

    @property
    def executor(self) -> str:
        return f"{int8.FALLBACK if self.fault else int8.SILICON}@{self.device}"

    def executor_of(self, datapath: Datapath) -> str:
        instruction = self._instruction(datapath)
        return self.executor if instruction is None else f"x86 instructions of {instruction.name}@cpu"

    def refusal(self, datapath: Datapath, k: int) -> str | None:
        if self._instruction(datapath) is not None:
            return None
        a, b = datapath.multiplier_format("a"), datapath.multiplier_format("b")
        wide = [f for f in (a, b) if f.storage not in ("int8", "uint8")]
        if wide:
            return f"operands of {wide[0]} do not fit INT8 instructions"
        formats = (Range(a.minimum, a.maximum), Range(b.minimum, b.maximum))
        try:
            lowered = lower(datapath, k, *formats, Range(0, 0))
        except InputError as error:  # of the formats' widest operands; those of a call may need less
            return str(error)
        if lowered.never_overflows or (lowered.order_free_wrap and lowered.accumulator[BITS] <= 32):
            return None
        return "a register can overflow and INT8 instructions neither saturate nor narrow there"

    def _instruction(self, datapath: Datapath) -> Instruction | None:
        return matching_instruction(datapath)

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        reason = self.refusal(datapath, a.shape[1])
        narrow = a.dtype in (np.int8, np.uint8) and b.dtype in (np.int8, np.uint8)
        if reason is None and not narrow:
            reason = f"operands of {a.dtype} and {b.dtype} do not fit INT8 instructions"
        if reason is not None:
            raise BackendRefused(f"native@{self.device}: {reason}; use backend stepwise or emulator")
        start = start_values(c, a.shape[0], b.shape[1])
        lowered = prepare(a, b, datapath, start)
        dtype = code_dtype(datapath)
        instruction = self._instruction(datapath)
        if instruction is not None:
            codes = instruction.run(a, b, start)
            result = finish(codes, unlimited_result(a, b, lowered, start), lowered, dtype)
        else:
            if not (lowered.never_overflows or lowered.order_free_wrap):
                raise BackendRefused(
                    f"native@{self.device}: a register can overflow from these start values; use backend stepwise"
                )
            product = self._exact(a, b)
            codes = self._codes(a, b, lowered, start, product)
            result = finish(codes, unlimited_result(a, b, lowered, start, product), lowered, dtype)
        return with_trace(result, a, b, lowered, start) if trace else result

    def _exact(self, a: Array, b: Array) -> Array:
        if self.fault:
            return int8.float_product(a, b, self.device)
        return int8.exact_product(a, b, self.device)

    def _codes(self, a: Array, b: Array, lowered: Lowered, start: Array | None, product: Array) -> Array:
        if self.fault is None and lowered.order_free_wrap and lowered.accumulator[BITS] <= 32:
            # The accumulator of the silicon itself wraps, over the whole of K, and where ours would not.
            product = int8.wrapped_product(a, b, self.device)
            return reduced(product if start is None else product + start, lowered)
        total = product if start is None else product + start
        return wrap_codes(total, lowered) if lowered.order_free_wrap else total
