"""A kernel against a golden set: verdicts for every way to be wrong, patterns, ways to run a kernel, the page."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fqtsim
from fqtsim.cli import main
from fqtsim.errors import InputError
from fqtsim.golden.case import GoldenSet
from fqtsim.golden.check import check, check_file
from fqtsim.golden.command import CommandKernel
from fqtsim.golden.files import save
from fqtsim.golden.kernels import ImportedKernel, KernelFault, OutputsFile, read_arrays, write_arrays
from fqtsim.golden.make import make_golden
from fqtsim.golden.page import mismatch_map, render, write_page

Array = np.ndarray[Any, Any]
HW = "int8_acc16_saturate"
FEW = ("k_33", "k_32", "k_64", "random_small", "odd_shape", "start_random", "markers", "transients", "level0_high")


@pytest.fixture(scope="module")
def full() -> GoldenSet:
    """The default set, less its largest cases."""
    return make_golden(HW, large=False)


@pytest.fixture(scope="module")
def few(full: GoldenSet) -> GoldenSet:
    """A few of its cases: enough for most tests."""
    return only(full, *FEW)


def only(golden: GoldenSet, *names: str) -> GoldenSet:
    found = tuple(case for case in golden.cases if case.name in names)
    assert len(found) == len(names)
    return replace(golden, cases=found)


def right(a: Array, b: Array, c: Array | None = None) -> Array:
    codes: Array = fqtsim.gemm(a, b, HW, c=c).codes
    return codes


def changed(change: Callable[[Array], Any]) -> Callable[..., Any]:
    """A kernel whose right codes are changed afterwards."""
    return lambda a, b, c=None: change(right(a, b, c))


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_a_right_kernel_passes_and_may_return_other_integers(few: GoldenSet) -> None:
    torch = pytest.importorskip("torch")
    for form in (lambda x: x, lambda x: x.astype(np.int64), lambda x: {"codes": x}, lambda x: (x,), torch.from_numpy):
        verdict = check(few, changed(form))
        assert verdict.passed, str(verdict)
        assert str(verdict).startswith(f"EQUAL TO THE BIT: all {len(FEW)} cases\n")


def test_a_kernel_cannot_change_the_set_that_judges_it(few: GoldenSet) -> None:
    before = [{name: array.copy() for name, array in case.inputs.items()} for case in few.cases]

    def clears(a: Array, b: Array, c: Array | None = None) -> Array:
        codes = right(a, b, c)
        a[:], b[:] = 0, 0
        return codes

    assert check(few, clears).passed
    for case, inputs in zip(few.cases, before, strict=True):
        assert all(np.array_equal(case.inputs[name], array) for name, array in inputs.items())


def exits(a: Array, b: Array, c: Array | None = None) -> Array:
    sys.exit(3)


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (changed(lambda x: 1 // 0), "raised ZeroDivisionError: "),
        (exits, "raised SystemExit: 3"),
        (lambda a, b: right(a, b), "unexpected keyword argument 'c'"),
        (changed(lambda x: x[:-1]), "codes has shape (18, 7), not (19, 7)"),
        (changed(lambda x: x.astype(np.float32)), "codes has dtype float32, not int32"),
        (changed(lambda x: np.where(x == x[0, 1], np.nan, x)), "codes has nan at [0, 1] and dtype float64, not int32"),
        (changed(lambda x: x > 0), "codes has dtype bool, not int32"),
        (changed(lambda x: None), "returned None for codes"),
        (changed(lambda x: "codes"), "returned str for codes, which is no array of numbers"),
        (changed(lambda x: object()), "which is no array of numbers"),
        (changed(lambda x: [[1], [1, 2]]), "which is no array"),
        (changed(lambda x: {"out": x}), "returned out: none of codes"),
    ],
)
def test_a_kernel_that_gives_no_codes_gets_a_verdict(full: GoldenSet, kernel: Any, said: str) -> None:
    verdict = check(only(full, "odd_shape", "start_random"), kernel)
    assert not verdict.passed
    faults = [result.fault for result in verdict.results if result.fault]
    assert any(said in fault for fault in faults), faults
    assert "gave nothing to compare" in str(verdict)


def test_a_kernel_that_hangs_is_left_behind(few: GoldenSet) -> None:
    verdict = check(few, lambda a, b, c=None: time.sleep(3600), time_limit=0.2)
    assert verdict.results[0].fault == "gave no answer within 0.2 s"
    assert verdict.results[1].fault == "not run: it still hangs in an earlier case"


def test_an_empty_set_proves_nothing(few: GoldenSet) -> None:
    with pytest.raises(InputError, match="has no cases, so it proves nothing"):
        check(replace(few, cases=()), right)
    with pytest.raises(InputError, match="must be a function"):
        check(few, "kernel")  # type: ignore[arg-type]


def test_one_wrong_code_is_found_and_explained(full: GoldenSet) -> None:
    def one(a: Array, b: Array, c: Array | None = None) -> Array:
        codes = right(a, b, c)
        if codes.shape == (19, 7):
            codes[11, 5] ^= 4
        return codes

    verdict = check(full, one)
    (failure,) = verdict.failures
    assert (failure.name, failure.mismatch.index, failure.mismatch.mismatches) == ("odd_shape", (11, 5), 1)  # type: ignore[union-attr]
    expected = int(failure.case.expected["codes"][11, 5])
    text = str(verdict)
    assert text.startswith(f"NOT EQUAL: 1 of {len(full.cases)} cases differ\n")
    for part in ("1 of 133 elements of output differ; first at [11, 5]:", f"expected {expected} (0x", "off by ",
                 "only row 11", "only column 5", "output [11, 5]", "more additions"):  # fmt: skip
        assert part in text, text
    assert failure.explanation is not None
    assert failure.explanation.code == expected
    assert text.count("\n") < 60


def test_layouts_are_tried_on_request(full: GoldenSet) -> None:
    chosen = only(full, "odd_shape", "k_33")

    def in_memory_order(a: Array, b: Array, c: Array | None = None) -> Array:
        return right(a.ravel(order="K").reshape(a.shape), b, c)

    assert check(chosen, in_memory_order).passed
    assert check(chosen, right, layouts=True).passed
    verdict = check(chosen, in_memory_order, layouts=True)
    assert [result.name for result in verdict.failures] == ["odd_shape (column-major)", "k_33 (column-major)"]
    assert "strides are not followed" in str(verdict)


# --- patterns and causes ---------------------------------------------------------------------------------------------


def edit(place: Any, value: Callable[[Array], Any]) -> Callable[..., Array]:
    """A kernel that changes the codes at a place, where there is one."""

    def kernel(a: Array, b: Array, c: Array | None = None) -> Array:
        codes = right(a, b, c)
        codes[place] = value(codes[place])
        return codes

    return kernel


def from_terms(keep: Callable[[int], Any]) -> Callable[..., Array]:
    """A kernel that multiplies some terms only: keep(K) indexes them."""
    return lambda a, b, c=None: right(a[:, keep(a.shape[1])], b[keep(a.shape[1])], c)


@pytest.mark.parametrize(
    ("case", "kernel", "said"),
    [
        ("square", edit(np.s_[32:48], lambda x: x ^ 1), "only rows 32..47, the last 16 of 48"),
        ("square", edit(np.s_[16:32, :16], lambda x: x ^ 1), "only rows 16..31, one tile of 16"),
        ("square", edit(np.s_[:, 1::4], lambda x: x ^ 1), "only columns 1 modulo 4 (12 of 48)"),
        ("tile_edges", edit(np.s_[128:], lambda x: x ^ 2), "only row 128, the last, past the last full tile of 128"),
        ("tile_edges", edit(np.s_[:, 64:], lambda x: x ^ 2), "only column 64, the last, past the last full tile of 64"),
        ("random_small", edit(np.s_[:], lambda x: x + (x < 0)), "every wrong code is one too high"),
        ("random_small", edit(np.s_[:], lambda x: x + (x < 0)), "only negative outputs, and all of those"),
        ("corners", edit(np.s_[:], lambda x: x - (x == 2**15 - 1)), "only outputs at the upper rail, and all of those"),
        ("random_small", edit(np.s_[:], lambda x: x + (abs(x) > 30)), "only outputs beyond "),
        ("random_half", edit(np.s_[:], lambda x: x & ~0xF), "every wrong code is too low"),
        ("random_small", edit(np.s_[:], lambda x: 0), "every output is 0"),
        ("random_small", edit(np.s_[:], lambda x: -x), "every output has the other sign"),
        ("square", lambda a, b, c=None: right(a, b, c).T, "the outputs are right, but transposed"),
        ("square", lambda a, b, c=None: np.roll(right(a, b, c), 1, 0), "the outputs are right, but one row further"),
        ("start_random", lambda a, b, c=None: c.astype(np.int32), "every output is its start value"),
        ("markers", from_terms(lambda k: np.r_[0:5, 6:k]), "only term k = 5"),
        ("k_33", from_terms(lambda k: np.r_[0 : k - 1]), "term k = 32, the last, past the last full tile of 32"),
        ("k_64", from_terms(lambda k: np.flatnonzero(np.arange(k) % 8 != 3)), "terms k = 3 modulo 8 (8 of 64)"),
        ("k_127", from_terms(lambda k: np.r_[0 : k - 2, k - 1]), "term k = 125 of 127 is enough"),
    ],
)
def test_patterns_say_where_and_when(full: GoldenSet, case: str, kernel: Any, said: str) -> None:
    verdict = check(only(full, case), kernel)
    (failure,) = verdict.failures
    assert any(said in sentence for sentence in failure.patterns), failure.patterns


def test_runs_that_differ_are_called_a_race(full: GoldenSet) -> None:
    calls: list[int] = []

    def race(a: Array, b: Array, c: Array | None = None) -> Array:
        calls.append(1)
        return right(a, b, c) + len(calls) % 3

    verdict = check(only(full, "k_33"), race)
    assert any("two runs on the same inputs differ" in sentence for sentence in verdict.failures[0].patterns)


def test_nothing_is_said_of_chance(full: GoldenSet) -> None:
    verdict = check(only(full, "odd_shape"), edit(np.s_[3, 4], lambda x: x + 77))
    said = " ".join(verdict.failures[0].patterns)
    assert not re.search("negative|positive|modulo|multiple|beyond", said), said


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (lambda a, b, c=None: right(a, b, c) ^ (a.shape[1] > 256), "only K from "),
        (lambda a, b, c=None: right(a, b, c) ^ (c is not None), "only cases with start values c"),
        (lambda a, b, c=None: right(a, b, c) ^ (a.shape[0] == 1), "only M up to 1; M from 2 is right"),
        (lambda a, b, c=None: right(a, b, c) ^ (a.shape[1] % 4 > 0), "only K that is no multiple of 4"),
    ],
)
def test_patterns_over_the_whole_set(full: GoldenSet, kernel: Any, said: str) -> None:
    verdict = check(full, kernel, explained=False)
    from fqtsim.golden.patterns import set_patterns

    assert any(said in sentence for sentence in set_patterns(verdict.results)), set_patterns(verdict.results)


def test_a_cause_is_suggested_or_none_is(few: GoldenSet) -> None:
    def wraps(a: Array, b: Array, c: Array | None = None) -> Array:
        exact = a.astype(np.int64) @ b.astype(np.int64)
        return (exact if c is None else exact + c).astype(np.int16)

    text = str(check(few, wraps))
    assert "suggestions, the outputs are what comes out where:" in text
    assert "wrap" in text.split("comes out where:")[1]
    assert "reproduces all" in text
    strange = check(only(few, "odd_shape"), lambda a, b, c=None: right(a, b, c) ^ 0x55)
    assert strange.causes == ("none of the changes tried reproduces these outputs",)


def test_the_other_kinds_are_compared_too() -> None:
    made = make_golden("tflite_single", kinds=("requantize", "quantize"))

    def outputs(off: int) -> Callable[..., Any]:
        def kernel(**arguments: Any) -> Any:
            case = next(case for case in made.cases if all(
                np.array_equal(array, arguments[name], equal_nan=array.dtype.kind == "f")
                for name, array in case.inputs.items() if name in arguments
            ) and set(case.inputs) <= set(arguments) and all(arguments[name] == value
                                                              for name, value in case.parameters.items()))  # fmt: skip
            found = dict(case.expected)
            found["codes"] = found["codes"].astype(np.int64) + off * (case.kind == "requantize")
            return found

        return kernel

    assert check(made, outputs(0)).passed
    verdict = check(made, outputs(1))
    assert {result.case.kind for result in verdict.failures} == {"requantize"}
    assert "every wrong code is one too high" in str(verdict)
    assert verdict.causes


# --- ways to run a kernel --------------------------------------------------------------------------------------------

MODULE = """
import os, sys, time
import numpy as np

def exact(a, b, c=None):
    print("kernels may print")
    found = a.astype(np.int64) @ b.astype(np.int64) + (0 if c is None else c)
    return found.astype(np.int32)

def hangs(a, b, c=None):
    time.sleep(3600) if a.shape == (5, 33) else None
    return exact(a, b, c)

def crashes(a, b, c=None):
    os.abort() if a.shape == (5, 33) else None
    return exact(a, b, c)

def raises(a, b, c=None):
    raise ValueError("no\\nway")

if __name__ == "__main__":
    mode, inputs, outputs = sys.argv[1:]
    if mode == "fails":
        sys.exit("it went wrong")
    if mode == "hangs":
        time.sleep(3600)
    if mode != "silent":
        with np.load(inputs) as arrays:
            found = exact(**arrays)
        np.savez(outputs, codes=found) if mode != "pickles" else np.savez(outputs, codes=np.array([{}], object))
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "my_kernel.py"
    path.write_text(MODULE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def wrapping() -> GoldenSet:
    return only(make_golden("int8_acc32_wrap", large=False), "k_32", "k_33", "rails", "start_random")


def test_a_function_of_a_file(module: Path, wrapping: GoldenSet) -> None:
    with ImportedKernel(f"{module}:exact") as kernel:
        assert check(wrapping, kernel).passed
    with ImportedKernel(f"{module}:crashes") as kernel:
        verdict = check(wrapping, kernel)
    assert [result.fault for result in verdict.failures] == ["ended its process by signal SIGABRT"]
    with ImportedKernel(f"{module}:raises") as kernel:
        verdict = check(wrapping, kernel)
    assert verdict.results[0].fault == "raised ValueError: no way at my_kernel.py:19"
    with ImportedKernel(f"{module}:hangs", time_limit=2) as kernel:
        verdict = check(wrapping, kernel)
    assert [result.fault for result in verdict.failures] == ["gave no answer within 2 s; its process was ended"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{module}:absent", "has no function absent"),
        ("{module}", "must be FILE.py:FUNCTION"),
        ("absent.py:f", "absent.py: no such file"),
        ("no_such_module_here:f", "No module named 'no_such_module_here'"),
    ],
)
def test_a_function_that_is_not_there(module: Path, spec: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        ImportedKernel(spec.format(module=module))


def test_a_command(module: Path, wrapping: GoldenSet) -> None:
    def faults(mode: str, limit: float = 60) -> list[str | None]:
        command = f"{sys.executable} {module} {mode} {{inputs}} {{outputs}}"
        return [result.fault for result in check(only(wrapping, "k_33"), CommandKernel(command, limit)).failures]

    assert faults("right") == []
    assert faults("fails") == ["ended with exit code 1: it went wrong"]
    assert faults("silent") == ["wrote no file of outputs"]
    assert "cannot be read as npz, npy or safetensors" in str(faults("pickles")[0])
    assert faults("hangs", 1.5) == ["gave no answer within 1.5 s; the command was ended"]
    for command, said in (("./kernel {inputs}", "must name"), ("./no_such {inputs} {outputs}", "No such file")):
        with pytest.raises(InputError, match=said):
            check(wrapping, CommandKernel(command))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_file_of_outputs(wrapping: GoldenSet, tmp_path: Path, suffix: str) -> None:
    names = tuple(case.name for case in wrapping.cases)
    arrays = {name: case.expected["codes"] for name, case in zip(names, wrapping.cases, strict=True)}
    for form in ("{name}", "{name}/codes", "{number:04d}/codes", "{number:04d}/expected/codes"):
        named = {form.format(name=name, number=number): arrays[name] for number, name in enumerate(names)}
        write_arrays(tmp_path / f"out.{suffix}", named)
        assert check(wrapping, OutputsFile(tmp_path / f"out.{suffix}", names)).passed
    write_arrays(tmp_path / f"out.{suffix}", {names[0]: arrays[names[0]], names[1]: arrays[names[1]] + 1})
    verdict = check(wrapping, OutputsFile(tmp_path / f"out.{suffix}", names))
    assert [result.equal for result in verdict.results] == [True, False, False, False]
    assert verdict.results[2].fault == f"the file has no array {names[2]} or {names[2]}/codes"


def test_files_of_strangers_are_safe(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 40)
    np.save(tmp_path / "c.npy", np.array([print], object), allow_pickle=True)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(KernelFault, match="cannot be read as npz, npy or safetensors"):
            read_arrays(path)
        with pytest.raises(InputError, match="write npz or safetensors"):
            OutputsFile(path)


# --- the command line and the page -----------------------------------------------------------------------------------


def test_the_command_line(full: GoldenSet, module: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(full, tmp_path / "set.safetensors")
    arguments = ["golden", "check", str(tmp_path / "set.safetensors"), "--kernel", f"{module}:exact"]
    assert main([*arguments, "--case", "random_small"]) == 0
    assert "EQUAL TO THE BIT: all 1 cases" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main([*arguments, "--case", "transients", "--case", "k_33", "--page", str(page)]) == 1
    said = capsys.readouterr().out
    assert "NOT EQUAL: " in said
    assert "suggestions" in said
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main([*arguments[:3], "--kernel", "absent.py:f"]) == 2


def test_the_exit_code_is_that_of_the_verdict(wrapping: GoldenSet, module: Path) -> None:
    assert check_file(wrapping, f"{module}:exact", None, None, 60) == 0
    assert check_file(wrapping, f"{module}:raises", None, None, 60) == 1


def test_the_page_stands_alone(few: GoldenSet, tmp_path: Path) -> None:
    verdict = replace(check(few, edit(np.s_[:, 1::3], lambda x: x ^ 1)), kernel="<script>alert(1)</script>")
    write_page(verdict, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text == render(verdict)
    assert "<script" not in text
    assert not re.search(r'(src|href)="|url\(|@import', text)
    assert "prefers-color-scheme: dark" in text
    for result in verdict.results:
        assert f">{result.name}</th>" in text
    assert text.count("<svg") == len(verdict.failures)
    for sentence in ("First mismatch: codes[", "NOT EQUAL: "):
        assert sentence in text
    passed = render(check(few, right))
    assert "EQUAL TO THE BIT" in passed
    assert "<svg" not in passed


def test_the_map_shows_every_wrong_element() -> None:
    wrong = np.zeros((5, 7), bool)
    wrong[1, 2] = wrong[4, 6] = True
    svg, words = mismatch_map(wrong, "a < b")
    assert svg.count("var(--bad)") == 2
    assert 'aria-label="a &lt; b"' in svg
    assert words == ""
    wrong = np.zeros((1000, 130), bool)
    wrong[999, 129] = True
    svg, words = mismatch_map(wrong, "large")
    assert svg.count("var(--bad)") == 1
    assert words == "in cells of 16 x 3 elements"
