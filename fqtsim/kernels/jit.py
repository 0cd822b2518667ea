"""How functions are compiled that only kernels call."""

from __future__ import annotations

from typing import Any

from numba import njit

inner: Any = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)  # type: ignore[call-overload]
"""Without the ways in for Python and for C, which take about a fifth of the time to compile."""
