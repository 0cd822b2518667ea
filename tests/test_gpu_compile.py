"""Every kernel compiles for an H100, with the arguments that hosts give it, and rounds as it says."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("offline_kernels.py")
SHARED_BYTES = 227 * 1024
"""What a block of an H100 may use (CUDA programming guide, compute capability 9.0)."""


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install triton")
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment | {"TRITON_CACHE_DIR": cache}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_form_compiles(forms: list[dict[str, Any]]) -> None:
    """An argument of 1 is a constant to the compiler, and has no method: K = 1 once failed for every product."""
    assert [form for form in forms if "error" in form] == []
    names = {form["kernel"] for form in forms}
    assert {
        "gemm_kernel",
        "scaled_kernel",
        "patches_kernel",
        "wgrad_kernel",
        "chain_kernel",
        "saturating_kernel",
    } <= names
    assert {"combine_kernel", "combine_rows_kernel", "word_taps_kernel", "word_patches_kernel"} <= names
    assert {"expand_kernel", "patch_sums_kernel"} <= names
    assert {"_flat", "_channels_last", "_words", "_reflect", "_groups", "_normalize", "_dx", "_sgd"} <= names
    assert len(forms) > 150


def test_every_form_fits(forms: list[dict[str, Any]]) -> None:
    assert max(form["shared"] for form in forms) <= SHARED_BYTES


def test_no_form_fuses_or_approximates(forms: list[dict[str, Any]]) -> None:
    """A product and a sum are two roundings; a quotient and a root are rounded as IEEE 754 says; sums are integers."""
    assert [form["kernel"] for form in forms if form["fused"]] == []
    floats = {word for form in forms for word in form["ptx"] if "f32" in word or "f64" in word or "approx" in word}
    assert floats <= {"div.rn.f32", "div.rn.f64", "sqrt.rn.f32", "sqrt.rn.f64"}
    assert "div.rn.f32" in floats
