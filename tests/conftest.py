"""Shared by all tests: Hypothesis profiles and one thread for Numba's parallel kernels unless asked otherwise."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:
    # Kernels of this session, for its workers and the processes that tests start: what a test replaces stays here.
    os.environ["FQTSIM_KERNEL_CACHE"] = tempfile.mkdtemp(prefix="fqtsim-kernels-")
    atexit.register(shutil.rmtree, os.environ["FQTSIM_KERNEL_CACHE"], ignore_errors=True)

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: a thread each, or OpenMP's waiting threads take the others' time. Before torch starts.
    os.environ["OMP_NUM_THREADS"] = "1"

import numba
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("ci", parent=settings.get_profile("quick"), max_examples=150)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

if "PYTEST_XDIST_WORKER" in os.environ:
    numba.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests on a GPU where a collected file had Triton interpret its kernels: the process then compiles none."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        reason = "Triton interprets in this process; run pytest -m gpu tests/test_gpu.py"
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))
