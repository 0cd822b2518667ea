"""Golden sets that several tests share."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fqtsim.golden.case import Case, GoldenSet
from fqtsim.golden.make import KINDS, make_golden
from fqtsim.hw.load import parse_hardware
from fqtsim.hw.spec import Datapath

Array = np.ndarray[Any, Any]

DROPPING = parse_hardware(
    """
schema: 1
name: dropping
summary: bits dropped at two levels, lanes between them
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: none
  levels:
    - {lanes: 4, item: {drop_bits: 3, rounding: ties_to_even}, register: int17, overflow: saturate}
    - {terms: all, item: {drop_bits: 2, rounding: ties_to_away}, register: int16, overflow: saturate_symmetric}
random: {generator: philox4x32-10, bits: 8}
"""
)
HARDWARE = ("int8_acc24_saturate", "int8_acc12_saturate", "int8_acc32_wrap", "dropping")


@cache
def golden(name: str, *kinds: str) -> GoldenSet:
    hardware = DROPPING if name == "dropping" else name
    return make_golden(hardware, kinds=kinds or ("gemm",), large=name == "int8_acc32_wrap")


def by_name(made: GoldenSet) -> dict[str, Case]:
    return {case.name: case for case in made.cases}


def datapath_of(made: GoldenSet, case: Case) -> Datapath:
    return made.hardware.datapath_for(case.parameters["gemm"])


@cache
def everything() -> GoldenSet:
    """All kinds, with registers, of a hardware with scalars, None and floats among its parameters."""
    return make_golden("tflite_double", kinds=KINDS, trace=True, large=False)
