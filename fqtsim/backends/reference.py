"""Runs ref/: plain Python integers, one output at a time."""

from __future__ import annotations

import numpy as np

from fqtsim.backends.base import Array, Backend, Events, GemmResult, code_dtype
from fqtsim.backends.stepwise import prepare, start_values, with_trace
from fqtsim.hw.spec import Datapath
from fqtsim.ref.gemm import Output, dot


class Reference(Backend):
    """The definition."""

    name = "reference"

    @property
    def executor(self) -> str:
        return "python integers"

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        start = start_values(c, a.shape[0], b.shape[1])
        lowered = prepare(a, b, datapath, start)  # refuses what needs more than 63 bits
        dtype = code_dtype(datapath)
        columns = [[int(code) for code in b[:, j]] for j in range(b.shape[1])]
        outputs = [
            dot([int(code) for code in a[i]], column, datapath.levels, 0 if start is None else int(start[i, j]))
            for i in range(a.shape[0])
            for j, column in enumerate(columns)
        ]
        codes: Array = np.array([output.code for output in outputs], dtype).reshape(a.shape[0], b.shape[1])
        result = _summary(codes, outputs, datapath)
        return with_trace(result, a, b, lowered, start) if trace else result


def _summary(codes: Array, outputs: list[Output], datapath: Datapath) -> GemmResult:
    if not outputs:
        return GemmResult(codes, Events())
    events = Events(
        sum(output.altered for output in outputs),
        sum(output.out_of_range for output in outputs),
        sum(output.transient for output in outputs),
    )
    unlimited = [output.unlimited for output in outputs]
    register = datapath.accumulator.register_format
    rails = register.rails(datapath.accumulator.overflow) if register is not None else ()
    at_rail = sum(output.code in rails for output in outputs)
    return GemmResult(codes, events, min(unlimited), max(unlimited), at_rail)
