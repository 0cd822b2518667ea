"""examples/kernels, docs/validate-your-kernel.md: every planted bug is found, located and named; right kernels pass."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import fqtsim
from fqtsim.cli import main
from fqtsim.golden.case import GoldenSet, kernel_arguments
from fqtsim.golden.check import check
from fqtsim.golden.files import save
from fqtsim.golden.make import make_golden
from fqtsim.identify import explain_mismatch

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "examples" / "kernels"
PAGE = ROOT / "docs" / "validate-your-kernel.md"
#: Triton reads it when it is imported, which another test may do before those below.
os.environ["TRITON_INTERPRET"] = "1"
#: A conversion of a float beyond int32 warns in Triton's interpreter; it is what the bug does.
OUT_OF_INT32 = "ignore:invalid value encountered in cast:RuntimeWarning"


def example(name: str) -> ModuleType:
    """Import a file of examples/kernels."""
    sys.path.insert(0, str(KERNELS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(KERNELS))


@cache
def small_set(hardware: str, gemm: str = "fprop", kind: str = "gemm") -> GoldenSet:
    """Return the default set without what a file holds as a seed: K beyond 4200, sizes of 4096."""
    made = make_golden(hardware, gemm, (kind,), large=False)
    return GoldenSet(made.hardware, made.hardware_sha256, made.seed, made.version, made.schema,
                     tuple(case for case in made.cases if not case.is_large))  # fmt: skip


# Triton.


class Bug(NamedTuple):
    """What the checker says of a planted bug."""

    #: In the first suggestion; None where no change that is tried is this bug.
    named: str | None
    #: In a pattern of the smallest failing case, or over all cases.
    located: str
    #: Whether `torch.equal` on random codes misses it: in squares of whole tiles, and in odd shapes.
    missed: tuple[bool, bool]


TRITON_BUGS = {
    "float32_accumulator": Bug("sums of 128 products are added in float32", "every output is wrong", (True, True)),
    "float32_result": Bug("the result is rounded to float32", "every output is wrong", (True, True)),
    "int16_result": Bug("16 bits", "every difference is a multiple of 2^16", (False, False)),
    "int64_clamped": Bug("saturates to int32 once, when it is stored", "exact sum lies beyond a rail", (True, True)),
    "zero_point_kept": Bug("128 is added to every code of a", "every output is wrong", (False, False)),
    "tail_dropped": Bug("the k beyond the last multiple of 128 are left out", "no multiple of 128", (True, False)),
    "tail_wraps": Bug("padded to a multiple of 128 by starting again at k = 0", "no multiple of 128", (True, False)),
    "row_stride": Bug("the row stride of b is K and not N (zeros past the end)", "k = 1", (True, False)),
    "rows_left_out": Bug("rows of the output beyond the last multiple of 32 are 0", "every output is 0", (True, False)),
    "wrong_accumulator": Bug("only the last tile of 128 k counts", "only K from 129", (False, False)),
    "start_in_each_part": Bug("the start value counts twice", "only cases with start values c", (True, True)),
    "start_of_row_0": Bug("start value of row 0 is taken for every", "only cases with start values c", (True, True)),
}  # fmt: skip


@pytest.fixture(scope="module")
def triton_gemm() -> ModuleType:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: pip install 'fqtsim[triton]'")
    return example("triton_gemm")


@pytest.fixture(scope="module")
def int8_set() -> GoldenSet:
    return small_set("int8_acc32_wrap", "dgrad")


def test_the_table_has_every_planted_bug(triton_gemm: ModuleType) -> None:
    assert list(TRITON_BUGS) == list(triton_gemm.BUGS)
    assert len(TRITON_BUGS) == 12
    assert sum(all(bug.missed) for bug in TRITON_BUGS.values()) >= 4, "torch.equal must miss at least a third"


@pytest.mark.parametrize("parts", [1, 3])
def test_the_right_triton_kernel_passes(triton_gemm: ModuleType, int8_set: GoldenSet, parts: int) -> None:
    verdict = check(int8_set, partial(triton_gemm.matmul, parts=parts))
    assert verdict.passed, str(verdict)


def test_the_right_triton_kernel_wraps_at_the_longest_k(triton_gemm: ModuleType) -> None:
    a, b = np.full((1, 131_072), -128, np.int8), np.full((131_072, 1), -128, np.int8)
    fqtsim.assert_bitexact(triton_gemm.matmul(a, b, parts=2), a, b, "int8_acc32_wrap", gemm="dgrad")


@pytest.mark.filterwarnings(OUT_OF_INT32)
@pytest.mark.parametrize("name", TRITON_BUGS)
def test_a_planted_bug_is_found_located_and_named(triton_gemm: ModuleType, int8_set: GoldenSet, name: str) -> None:
    verdict = check(int8_set, partial(triton_gemm.matmul, bug=name))
    assert not verdict.passed
    assert verdict.shown is not None
    assert verdict.shown.mismatch is not None
    patterns = [*verdict.patterns, *verdict.shown.patterns]
    assert any(TRITON_BUGS[name].located in pattern for pattern in patterns), patterns
    named = TRITON_BUGS[name].named
    if named is None:
        assert verdict.causes[0].startswith("none of the changes tried")
    else:
        assert named in verdict.causes[0], verdict.causes


def test_what_random_data_misses(triton_gemm: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    # Squares of whole tiles, as of a network's weights; then shapes that are multiples of nothing.
    shapes = [(128, 128, 128), (64, 256, 256)], [(33, 129, 17), (50, 1000, 70)]
    found = {}
    for name in TRITON_BUGS:
        found[name] = tuple(
            all(_random_passes(partial(triton_gemm.matmul, bug=name), shape, generator) for shape in group)
            for group in shapes
        )
    lines = [f"{name:20} {'missed' if tiles else 'found':7} {'missed' if odd else 'found'}"
             for name, (tiles, odd) in found.items()]  # fmt: skip
    print("torch.equal on random codes: squares of whole tiles, odd shapes", *lines, sep="\n")
    assert found == {name: bug.missed for name, bug in TRITON_BUGS.items()}


def _random_passes(kernel: Callable[..., Any], shape: tuple[int, int, int], generator: torch.Generator) -> bool:
    m, k, n = shape
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
    b = torch.randint(-128, 128, (k, n), dtype=torch.int8, generator=generator)
    return torch.equal(kernel(a, b).cpu(), a.int() @ b.int())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_right_triton_kernel_passes_compiled_with_sizes_of_4096(triton_gemm: ModuleType, tmp_path: Path) -> None:
    save(make_golden("int8_acc32_wrap", "dgrad"), tmp_path / "set.safetensors")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = ["-m", "fqtsim", "golden", "check", "set.safetensors", "--kernel", f"{KERNELS / 'triton_gemm.py'}:matmul"]
    run = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


# C with AVX2.


@pytest.fixture(scope="module")
def avx2_gemm() -> ModuleType:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler: cc is not on the path")
    cpu = Path("/proc/cpuinfo")
    if not cpu.is_file() or "avx2" not in cpu.read_text().split():
        pytest.skip("this CPU has no AVX2, or no /proc/cpuinfo to tell")
    return example("avx2_gemm")


def test_pmaddubsw_is_right_on_its_own_hardware(avx2_gemm: ModuleType) -> None:
    verdict = check(small_set("x86_avx2_pmaddubsw"), avx2_gemm.matmul)
    assert verdict.passed, str(verdict)


def test_pmaddubsw_is_named_where_products_should_not_saturate(avx2_gemm: ModuleType) -> None:
    verdict = check(small_set("int8_acc32_wrap"), avx2_gemm.matmul)
    assert not verdict.passed
    assert verdict.causes[0].startswith("pairs of products saturate at 16 bits (as pmaddubsw does)")


def test_operands_quantized_from_normal_numbers_do_not_show_pmaddubsw(avx2_gemm: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(64, 256, generator=generator).relu(), torch.randn(256, 64, generator=generator)
    a, b = (x * (255 / x.max())).round().to(torch.uint8), (w * (127 / w.abs().max())).round().to(torch.int8)
    assert torch.equal(torch.from_numpy(avx2_gemm.matmul(a, b)), a.int() @ b.int())


def test_the_c_header_finds_it_without_python(avx2_gemm: ModuleType, tmp_path: Path) -> None:
    for hardware, code in (("x86_avx2_pmaddubsw", 0), ("int8_acc32_wrap", 1)):
        save(small_set(hardware), tmp_path / "golden.h")
        flags = ["-O1", "-mavx2", "-Wall", "-Werror", "-DSELF_TEST", f"-I{tmp_path}"]
        subprocess.run(["cc", *flags, "-o", tmp_path / "self_test", KERNELS / "avx2_gemm.c"], check=True)
        run = subprocess.run([tmp_path / "self_test"], capture_output=True, text=True, check=False)
        assert run.returncode == code, run.stdout
        assert ("differ; first at [" in run.stdout) is bool(code)


# Verilog.


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("iverilog") is None:
        pytest.skip("Icarus Verilog is not installed: iverilog is not on the path")
    folder = tmp_path_factory.mktemp("rtl") / "vectors"
    arguments = ["golden", "make", "--hardware", "int8_acc16_saturate", "--gemm", "dgrad", "--no-large"]
    assert main([*arguments, "--format", "readmemh", "--out", str(folder)]) == 0
    return folder


def test_the_right_mac_agrees_after_every_addition(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example("run_mac").main(vectors, bug=False) == 0
    assert capsys.readouterr().out.count("0 additions differ") > 20


def test_the_mac_that_clamps_late_is_found_located_and_named(vectors: Path) -> None:
    run_mac = example("run_mac")
    folder = vectors / "transients"
    said = run_mac.simulate(folder, bug=True)
    first = re.match(r"output \[(\d+), (\d+)\], k = (\d+): expected (\w+), observed (\w+)", said)
    assert first, said
    case = next(c for c in json.loads((vectors / "index.json").read_text())["cases"] if c["name"] == "transients")
    a = run_mac.read_words(folder / "a.hex", (case["m"], case["k"]), 9)
    b = run_mac.read_words(folder / "b.hex", (case["k"], case["n"]), 9)
    row, col, k = (int(group) for group in first.groups()[:3])
    step = fqtsim.explain(a, b, "int8_acc16_saturate", row, col, "dgrad").steps[k]
    assert step.after & 0xFFFF == int(first[4], 16) != int(first[5], 16)
    observed = run_mac.read_words(folder / "outputs.hex", (case["m"], case["n"]), 16)
    datapath = fqtsim.load_hardware("int8_acc16_saturate").datapath_for("dgrad")
    causes = explain_mismatch(a, b, datapath, observed)
    assert causes[0].text == "overflow is applied once, to the whole sum, and not after every addition"
    # What the engineer would have compared with: a wide product, clamped. It is the bug.
    assert np.array_equal(observed, np.clip(a @ b, -(1 << 15), (1 << 15) - 1))


# A linear layer with its epilogue.


def test_halves_away_from_zero_are_found_and_named() -> None:
    scaled_linear = example("scaled_linear")
    golden = small_set("xnnpack_fp32", kind="requantize")
    verdict = check(golden, scaled_linear.requantize)
    assert verdict.passed, str(verdict)
    verdict = check(golden, scaled_linear.requantize_half_away)
    assert not verdict.passed
    assert "rounds ties_to_away and not ties_to_even" in verdict.causes[0]
    for result in verdict.failures:
        away = scaled_linear.requantize_half_away(**kernel_arguments(result.case)).numpy()
        assert np.abs(away.astype(int) - result.case.expected["codes"]).max() == 1  # a tolerance of one code passes


def test_the_whole_layer_is_right_and_random_data_does_not_show_the_bug() -> None:
    scaled_linear = example("scaled_linear")
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-128, 128, (64, 256), dtype=torch.int8, generator=generator) for _ in range(2))
    scale = float(np.float32(0.000613))
    acc = fqtsim.gemm(x, w.T, "xnnpack_fp32").codes
    expected = fqtsim.requantize(acc, "xnnpack_fp32", scale=scale, zero_point=3).codes
    assert torch.equal(scaled_linear.linear(x, w, scale, 3), expected)
    assert torch.equal(scaled_linear.linear(x, w, scale, 3, scaled_linear.requantize_half_away), expected)


# The page.


def _blocks() -> list[tuple[str, str]]:
    """Return (language, text) of every block of the page, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_page_leads_from_a_kernel_to_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    codes, shown = [], ""
    for language, text in _blocks():
        if language == "python":
            (tmp_path / text.split()[1]).write_text(text, encoding="utf-8")
        elif language == "sh":
            for words in map(shlex.split, text.splitlines()):
                assert words[0] == "fqtsim"
                codes.append(main(words[1:]))
                shown = capfd.readouterr().out
        else:
            missing = [line for line in text.splitlines() if line not in shown]
            assert not missing, shown
    assert codes == [0, 1, 0]
    assert "EQUAL TO THE BIT" in shown
    assert (tmp_path / "verdict.html").stat().st_size > 0


def test_the_pages_own_tests_do_what_it_says(tmp_path: Path) -> None:
    for language, text in reversed(_blocks()):  # the first kernel of the page is the wrong one
        if language == "python":
            (tmp_path / text.split()[1]).write_text(text, encoding="utf-8")
    usual = _python(tmp_path, "usual_test.py")
    assert usual.stdout.split() == ["True"] * 3, usual.stderr
    installed = any(point.value == "fqtsim.pytest_plugin" for point in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "fqtsim.pytest_plugin"]
    run = _python(tmp_path, "-m", "pytest", "-q", *plugin, "-k", "start_one_term or most_negative", "test_my_kernel.py")
    assert run.returncode == 1, run.stdout + run.stderr
    assert "1 failed, 1 passed" in run.stdout
    assert "products are added in float32" in run.stdout


def _python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ, capture_output=True, text=True, check=False
    )
