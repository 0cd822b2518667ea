"""The pytest plugin, and what a failing assert_bitexact shows; pytest runs pytest here, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fqtsim
from fqtsim.golden.files import save
from fqtsim.golden.make import make_golden
from fqtsim.testing import assert_bitexact, operands

HW = "int8_acc16_saturate"

KERNELS = """
import numpy as np
import pytest
import fqtsim

def right(a, b, c=None):
    return fqtsim.gemm(a, b, "int8_acc16_saturate", c=c).codes

def last_term_lost(a, b, c=None):
    return fqtsim.gemm(a[:, :-1], b[:-1], "int8_acc16_saturate", c=c).codes
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set beside its tests, as a user has."""
    where = tmp_path_factory.mktemp("users")
    save(make_golden(HW, large=False), where / "set.safetensors")
    return where


def run_pytest(folder: Path, test: str, *options: str) -> tuple[int, str]:
    """Run a test file with the plugin; return exit code and output."""
    (folder / "test_kernel.py").write_text(KERNELS + test, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_kernel.py", *options]
    loaded = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout.strip()
    if loaded != "installed":
        command += ["-p", "fqtsim.pytest_plugin"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "150"}, check=False
    )
    return done.returncode, done.stdout + done.stderr


#: Whether this environment has the plugin among its entry points, which an installation from before it has not.
PROBE = """
from importlib.metadata import entry_points
print("installed" if any(point.name == "fqtsim" for point in entry_points(group="pytest11")) else "absent")
"""


def test_a_marked_test_runs_once_for_each_case(folder: Path) -> None:
    text = """
@pytest.mark.golden("set.safetensors", cases=("k_3*", "start_random", "rails"))
def test_it(golden_case):
    golden_case.check(right)
    golden_case.compare(right(**golden_case.arguments))
    golden_case.compare({"codes": right(**golden_case.arguments)})
"""
    code, output = run_pytest(folder, text, "-vv")
    assert code == 0, output
    for name in ("rails", "start_random", "k_3", "k_31", "k_32", "k_33"):
        assert f"test_it[{name}] PASSED" in output
    assert "6 passed" in output


def test_a_failure_is_explained(folder: Path) -> None:
    text = """
@pytest.mark.golden("set.safetensors", cases="k_33")
def test_it(golden_case):
    golden_case.check(last_term_lost)
"""
    code, output = run_pytest(folder, text)
    assert code == 1, output
    for part in (
        "case k_33 (a 5x33, b 33x3)",
        "differ; first at [",
        "expected ",
        "(0x",
        "more additions; steps 25..32 of 33 shown",
        "shown: step 32 is the first that the first suggestion leaves out",
        "(reproduces all 15 outputs of this case, ",
        "patterns:",
        "term k = 32, the last",
        "suggestions, the outputs are what comes out where:",
    ):
        assert part in output, output
    assert "fqtsim/golden" not in output  # the trace ends in the user's test


def test_column_major_operands_and_a_set_made_here(folder: Path) -> None:
    text = """
def in_memory_order(a, b, c=None):
    return right(a.ravel(order="K").reshape(a.shape), b, c)

@pytest.mark.golden(hardware="int8_acc16_saturate", seed=3, cases="odd_shape", start=False)
def test_rows(golden_case):
    golden_case.check(in_memory_order)

@pytest.mark.golden(hardware="int8_acc16_saturate", seed=3, cases="odd_shape", start=False)
def test_columns(golden_case):
    golden_case.check(in_memory_order, layouts=True)
"""
    code, output = run_pytest(folder, text)
    assert code == 1, output
    assert "1 failed, 1 passed" in output
    assert "case odd_shape (column-major)" in output


@pytest.mark.parametrize(
    ("mark", "argument", "said"),
    [
        ('"set.safetensors"', "", "must take the argument golden_case"),
        ('"absent.safetensors"', "golden_case", "absent.safetensors: cannot be read"),
        ('"set.safetensors", cases="nothing"', "golden_case", "fit no case of the set"),
        ('"set.safetensors", sed=1', "golden_case", "it has sed"),
        ('hardware="no_such"', "golden_case", "no_such"),
        ("", "golden_case", "must name one file, or hardware="),
    ],
)
def test_a_mark_that_makes_no_sense_stops_the_collection(folder: Path, mark: str, argument: str, said: str) -> None:
    code, output = run_pytest(folder, f"\n@pytest.mark.golden({mark})\ndef test_it({argument}):\n    pass\n")
    assert code in (2, 4), output
    assert said in output


def test_bitexact_failures_show_a_window_and_a_suggestion() -> None:
    a, b = np.full((2, 400), 255, np.uint8), np.full((400, 2), 127, np.int8)
    b[200:] = -128
    wrapped = fqtsim.gemm(a, b, "int8_acc32_wrap").codes.astype(np.int16)
    with pytest.raises(AssertionError) as error:
        assert_bitexact(wrapped, a, b, HW)
    text = str(error.value)
    assert text.startswith("4 of 4 outputs differ; first at [0, 0]:\n")
    assert "expected -32768 (0xffff8000)" in text
    assert "of 400 shown" in text
    assert "saturate" in text
    assert "suggestions:" in text
    assert "wrap" in text.split("suggestions:")[1]
    assert text.count("\n") < 30


def wraps_instead(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A 16-bit accumulator that wraps where the hardware saturates."""
    return (a.astype(np.int64) @ b.astype(np.int64)).astype(np.int16)


def test_hypothesis_ends_in_a_small_case() -> None:
    datapath = fqtsim.load_hardware(HW).datapath_for("fprop")
    seen: list[int] = []

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.data())
    def kernel_is_right(data: st.DataObject) -> None:
        a, b, _ = data.draw(operands(datapath, start=False))
        seen.append(a.shape[0] * a.shape[1] * b.shape[1])
        assert_bitexact(wraps_instead(a, b), a, b, HW)

    with pytest.raises(AssertionError) as error:
        kernel_is_right()
    text = str(error.value)
    # Differences from zero points have 9 bits: one or two products pass 2**15, and that is all the case holds.
    assert text.startswith("1 of 1 outputs differ; first at [0, 0]:\n")
    assert max(seen) > 10  # products of the case that the search began from
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert 1 <= len(rows) <= 4, text
    assert "suggestions:" in text
    assert text.count("\n") < 20
