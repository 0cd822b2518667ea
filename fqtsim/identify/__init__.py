"""Which single change, or pair of changes, of a datapath or epilogue reproduces somebody's outputs to the bit.

Every answer is a suggestion: it names a computation that gives exactly the observed codes, not who is at fault. An
empty answer means that none of the changes tried does.
"""

from __future__ import annotations

from fqtsim.identify.candidates import candidates
from fqtsim.identify.change import Change, Problem
from fqtsim.identify.requantization import explain_requantization
from fqtsim.identify.scaling import explain_scaling
from fqtsim.identify.search import Cause, Observation, explain_mismatch, explain_mismatches
from fqtsim.identify.tell_apart import Question, tell_apart
from fqtsim.identify.vectors import Identified, identify, identify_requantization

__all__ = [
    "Cause",
    "Change",
    "Identified",
    "Observation",
    "Problem",
    "Question",
    "candidates",
    "explain_mismatch",
    "explain_mismatches",
    "explain_requantization",
    "explain_scaling",
    "identify",
    "identify_requantization",
    "tell_apart",
]
