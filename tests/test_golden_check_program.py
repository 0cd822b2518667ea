"""Programs as kernels, with a raw file for each array; kernels that cannot be called; lists and tables of reports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fqtsim.errors import InputError
from fqtsim.golden.case import GoldenSet
from fqtsim.golden.check import check
from fqtsim.golden.command import CommandKernel
from fqtsim.golden.make import make_golden
from fqtsim.golden.page import render
from fqtsim.golden.terminal import merged, plain

SOURCE = Path(__file__).parents[1] / "examples" / "kernels" / "file_gemm.c"
RAW = "{a.0} {a.1} {b.1} {a} {b} {c} {codes}"
PROGRAM = """
import sys
import numpy as np
m, k, n = map(int, sys.argv[1:4])
a, b = np.fromfile(sys.argv[4], "i1").reshape(m, k), np.fromfile(sys.argv[5], "i1").reshape(k, n)
c = 0 if sys.argv[6] == "-" else np.fromfile(sys.argv[6], "<i4").reshape(m, n)
codes = (a.astype("i4") @ b.astype("i4") + c).astype("<i4")
{last}
"""


@pytest.fixture(scope="module")
def golden() -> GoldenSet:
    made = make_golden("int8_acc32_wrap", "dgrad", large=False)
    return replace(made, cases=tuple(case for case in made.cases if not case.is_large))


def some(golden: GoldenSet, *names: str) -> GoldenSet:
    return replace(golden, cases=tuple(case for case in golden.cases if case.name in names))


def compiled(folder: Path, *options: str) -> str:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler: install one as cc")
    subprocess.run(["cc", "-O2", *options, "-o", folder / "file_gemm", SOURCE], check=True)
    return f"{folder / 'file_gemm'} {RAW}"


def test_the_c_program_of_the_examples_is_right(golden: GoldenSet, tmp_path: Path) -> None:
    assert check(golden, CommandKernel(compiled(tmp_path))).passed


def test_a_c_program_that_drops_the_tail_is_found_and_named(golden: GoldenSet, tmp_path: Path) -> None:
    found = check(golden, CommandKernel(compiled(tmp_path, "-DTAIL_DROPPED")))
    assert found.causes[0].startswith("the k beyond the last multiple of 16 are left out")
    # All shapes with such a K are wrong, and only some with such an M or N, which are no pattern then.
    assert found.patterns == ("only K that is no multiple of 16",)


@pytest.mark.parametrize(
    ("last", "fault"),
    [
        ("codes.tofile(sys.argv[7])", None),
        ("codes.astype('<i8').tofile(sys.argv[7])", None),  # a wider type holds the same codes
        ("codes[:-1].tofile(sys.argv[7])", "wrote 48 bytes to {codes}, which are not 5 x 3 numbers of int32: 60 bytes"),
        ("", "wrote no file {codes}"),
    ],
)
def test_raw_files(golden: GoldenSet, tmp_path: Path, last: str, fault: str | None) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(last=last), encoding="utf-8")
    found = check(some(golden, "k_33"), CommandKernel(f"{sys.executable} {program} {RAW}"))
    assert found.results[0].fault == fault
    assert found.passed is (fault is None)


def test_a_program_is_told_sizes_and_parameters_of_a_convolution(tmp_path: Path) -> None:
    made = make_golden("int8_acc32_wrap", kinds=("conv",))
    one = some(made, "conv_fprop_uneven_random")
    program = tmp_path / "program.py"
    program.write_text("import sys; sys.exit(' '.join(sys.argv[1:]))", encoding="utf-8")
    found = check(one, CommandKernel(f"{sys.executable} {program} {{x.1}} {{stride.0}} {{groups}} {{case}} {{codes}}"))
    (case,) = one.cases
    said = f"{case.inputs['x'].shape[1]} {case.parameters['stride'][0]} {case.parameters['groups']} {case.name}"
    assert f"ended with exit code 1: {said} " in str(found.results[0].fault)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("./kernel", "must name its files"),
        ("./kernel {outputs} {a}", "must name its files"),
        ("./kernel {a} {w} {codes}", "{w} is nothing of case k_33, gemm; it has "),
        ("./kernel {a} {b}", "names no output of case k_33, gemm"),
    ],
)
def test_a_command_without_its_files(golden: GoldenSet, command: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        check(some(golden, "k_33"), CommandKernel(command))
    assert said in str(raised.value)


def test_a_function_of_other_arguments_is_told_those_of_the_case(golden: GoldenSet) -> None:
    def kernel(x: Any, w: Any) -> Any:
        return x @ w

    found = check(some(golden, "k_31", "k_33"), kernel)
    assert [result.fault for result in found.results] == [
        "cannot be called (missing a required argument: 'x'): the arguments, by keyword, are a, b"
    ] * 2
    text = plain(found)
    assert "k_31 and 1 more case: cannot be called" in text
    assert text.count("cannot be called") == 2  # of all cases once, and of the one that is shown


def test_a_case_without_products_is_not_shown_where_another_fails(golden: GoldenSet) -> None:
    found = check(some(golden, "start_empty_k", "start_one_term"), lambda a, b, c: a.astype(np.int32) @ b)
    assert found.shown is not None
    assert found.shown.name == "start_one_term"
    alone = check(some(golden, "start_empty_k"), lambda a, b, c: a.astype(np.int32) @ b)
    assert "expected from" not in str(alone)  # there are no additions to show


def test_suggestions_that_differ_in_one_number_are_one_line(golden: GoldenSet) -> None:
    said = [f"the accumulator has {bits} bits and not 32, and it wraps" for bits in (33, 34, 40)]
    assert merged([said[0], "the result is negated", *said[1:]]) == (
        "the accumulator has 33, 34 or 40 bits and not 32, and it wraps", "the result is negated",
    )  # fmt: skip
    assert merged(["K is cut into tiles of 8, one", "K is cut into tiles of 16, two"]) == (
        "K is cut into tiles of 8, one", "K is cut into tiles of 16, two",
    )  # fmt: skip
    assert merged(said[:1]) == tuple(said[:1])


def test_a_narrow_terminal_shows_every_digit_and_the_page_a_table(golden: GoldenSet) -> None:
    def clamped(a: Any, b: Any, c: Any = None) -> Any:
        total = a.astype(np.int64) @ b.astype(np.int64) + (0 if c is None else c)
        return np.clip(total, -(2**31), 2**31 - 1)

    found = check(some(golden, "start_transients", "k_33"), clamped)
    text = plain(found, 80)
    assert max(map(len, text.split("\n"))) <= 80
    head = next(line for line in text.split("\n") if line.startswith("step"))
    assert head.split() == ["step", "level", "register", "item", "before", "exact", "sum", "after", "event"]
    _, suggestions = text.split("where:\n")
    assert all(line.startswith(("  - ", "    ")) for line in suggestions.split("\n"))  # long ones go on indented
    assert "\n    " in suggestions
    page = render(found)
    assert page.index("First mismatch") < page.index("Where the expected code comes from") < page.index("Every case")
    assert page.startswith("<!doctype html>")
