"""Shared by all tests: Hypothesis profiles and one thread for Numba's parallel kernels unless asked otherwise."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("ci", parent=settings.get_profile("quick"), max_examples=150)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
