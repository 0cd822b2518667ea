"""Tests for anyone's integer arithmetic: Hypothesis strategies, laws of rounding and overflow, bit-exact assertions.

The project's own tests are written with it. It needs `pip install fqtsim[testing]`. A test of a rounding function:

    from fqtsim.testing import check_rounding

    def test_my_shift():
        check_rounding(lambda code, shift: (code + (1 << shift >> 1)) >> shift, "ties_to_positive")
"""

from __future__ import annotations

from importlib.util import find_spec

from fqtsim.errors import MissingPackage

if find_spec("hypothesis") is None:
    raise MissingPackage("fqtsim.testing: needs the package hypothesis; pip install 'fqtsim[testing]'")

from fqtsim.api.compare import assert_bitexact
from fqtsim.testing.formats import codes, formats
from fqtsim.testing.hardware import datapaths, hardware_files
from fqtsim.testing.operands import Operands, operands
from fqtsim.testing.overflow import check_overflow
from fqtsim.testing.rounding import check_rounding

__all__ = [
    "Operands",
    "assert_bitexact",
    "check_overflow",
    "check_rounding",
    "codes",
    "datapaths",
    "formats",
    "hardware_files",
    "operands",
]
