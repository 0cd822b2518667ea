"""Recorded areas in gate equivalents, with everything needed to judge them. Data, no rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Figures:
    """Areas of synthesised MACs: a signed multiplier and its accumulator, adder and register included."""

    #: What reports call the source.
    name: str
    #: What was synthesised, how, and what was left out.
    what: str
    #: The cell library, with its node.
    library: str
    #: The synthesis tool and its version.
    tool: str
    #: When, as the record says it.
    date: str
    #: Area that is one gate equivalent.
    unit: str
    #: Width of both operands of the multiplier, in bits; signed.
    operand_bits: int
    #: Accumulator width in bits -> gate equivalents, for a register that wraps.
    wrap: Mapping[int, float]
    #: The same for a register that saturates.
    saturate: Mapping[int, float]

    @property
    def citation(self) -> str:
        """The source in one line, for a report."""
        return f"{self.what}; {self.library}; {self.tool}; {self.date}; one gate equivalent is {self.unit}"


RECORDED = Figures(
    name="osu018",
    what="generated MACs of two signed 8-bit operands, own synthesis without timing constraint, wires or power",
    library="OSU standard cells, 0.18 um",
    tool="yosys 0.70, abc -liberty",
    date="undated",
    unit="the area of NAND2X1",
    operand_bits=8,
    wrap=MappingProxyType({16: 886, 18: 960, 20: 1038, 24: 1183, 32: 1480}),
    saturate=MappingProxyType({16: 930, 18: 1002, 20: 1081, 24: 1231, 32: 1531}),
)
