"""One training run on two or more backends in lockstep: every GEMM's codes and events, every digest."""

from __future__ import annotations

from fqtsim.crosscheck.lockstep import crosscheck
from fqtsim.crosscheck.report import Coverage, Difference, Report

__all__ = ["Coverage", "Difference", "Report", "crosscheck"]
