"""Operations of a GEMM and the bits that must move for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fqtsim.hw.spec import Datapath

RULE = (
    "each operand matrix read once and each result written once at the width of the accumulator: the least any "
    "schedule can move. A convolution counts as the GEMM it becomes, so overlapping patches count each time."
)


@dataclass(frozen=True)
class Traffic:
    """One GEMM, once."""

    #: Multiply-accumulate operations, m * n * k.
    operations: int
    #: Bits of both operands, each read once.
    operand_bits: int
    #: Bits of the results, each written once; None where the accumulator is exact.
    result_bits: int | None
    #: Width of the accumulator in bits; None where it is exact.
    register_bits: int | None


def gemm_traffic(row: Mapping[str, Any], datapath: Datapath) -> Traffic:
    """Return operations and bits moved of one GEMM of m, n and k as in a line of `net.report()`."""
    m, n, k = (int(row[key]) for key in "mnk")
    register = datapath.accumulator.register_format
    width = None if register is None else register.bits
    operands = m * k * datapath.a_format.bits + k * n * datapath.b_format.bits
    return Traffic(m * n * k, operands, None if width is None else m * n * width, width)
