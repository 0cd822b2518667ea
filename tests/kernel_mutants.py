"""INT8 GEMM kernels to try a checker on: right ones, and right ones with one bug each.

Every kernel is `kernel(a, b, c=None)`: a (M, K) uint8 or int8, b (K, N) int8, c (M, N) start values or None; the result
is (M, N) int32. Two meanings: `wrap32` is hwconfigs/int8_acc32_wrap.yaml, `sat20` is hwconfigs/int8_acc20_tree4.yaml.
An entry is (name, meaning, kernel, what it does or what is wrong). `WITNESSES[name]()` is an input (a, b, c) on which
that mutant differs. Every mutant is deterministic and keeps the shape, the dtype and its arguments.
"""

from __future__ import annotations

import kernel_mutants_codes
import kernel_mutants_correct
import kernel_mutants_saturate
import kernel_mutants_tiles
from kernel_mutants_common import CORRECT, MUTANTS, WITNESSES

__all__ = ["CORRECT", "MUTANTS", "WITNESSES"]

# Importing these files fills the three registries.
FILES = (kernel_mutants_correct, kernel_mutants_tiles, kernel_mutants_codes, kernel_mutants_saturate)
