"""benchmarks/gpu.py at toy size on the CPU: every section runs, every row is kept, and what is wrong is said."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
DIGESTS = ROOT / "docs" / "results" / "gpu_digests.json"
SECTIONS = (
    "proof", "probes", "gemm", "equality", "digests", "bandwidth", "saturating", "resnet56", "transformer", "datapaths",
    "designs", "resnet50", "published",
)  # fmt: skip
#: Triton reads it when it is imported, which another test may do before those below.
os.environ["TRITON_INTERPRET"] = "1"


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run the script, expecting an exit code; return what it printed."""
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def toy(folder: Path, *arguments: str, code: int = 0) -> tuple[str, dict[str, Any]]:
    """Run sections at toy size; return what was printed and the report."""
    out = folder / "report.json"
    text = run(folder, "--device", "cpu", "--tiny", "--out", str(out), *arguments, code=code)
    return text, json.loads(out.read_text(encoding="utf-8"))


def rows(report: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = report["sections"][name]["rows"]
    return found


def verdicts(report: dict[str, Any], name: str) -> set[str]:
    return {row["verdict"] for row in rows(report, name)}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    return toy(tmp_path_factory.mktemp("gpu"), "--only", ",".join(SECTIONS[:-1]))


def test_every_section_runs_and_nothing_differs(everything: tuple[str, dict[str, Any]]) -> None:
    _, report = everything
    assert tuple(report["sections"]) == SECTIONS[:-1]
    without_triton = importlib.util.find_spec("triton") is None
    for name, section in report["sections"].items():
        assert section["state"] == "done", section
        assert section["rows"], name
        allowed = {"equal", "recorded"} | ({"not run"} if without_triton and name == "probes" else set())
        assert verdicts(report, name) <= allowed, section["rows"]
    for name in ("proof", "equality", "digests", "saturating", "datapaths", "resnet50"):
        assert "equal" in verdicts(report, name)


def test_the_report_says_where_it_comes_from(everything: tuple[str, dict[str, Any]]) -> None:
    _, report = everything
    about = report["environment"]
    assert about["device"] == "cpu"
    assert about["torch"] == str(torch.__version__)
    assert {"commit", "driver", "triton", "python", "changed_files"} <= set(about)


def test_a_table_comes_last(everything: tuple[str, dict[str, Any]]) -> None:
    text, report = everything
    table = text[text.index("verdict") :]
    for name in SECTIONS[:-1]:
        assert f"│ {name}" in table
    assert text.strip().endswith("report.json")
    gemm = next(row for row in rows(report, "gemm") if "fused epilogue" in row["work"])
    assert gemm["ratio"] > 0
    assert set(gemm["details"]["seconds"]) >= {"fused", "int32", "bf16"}


def test_shapes_are_those_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    found = importlib.import_module("gpu_shapes").products(tiny=False)
    sizes = [(p.network, p.window.kernel[0], p.shape[1], p.outputs, _places(p)) for p in found]
    assert ("ResNet-50", 7, 3, 64, 627_200) in sizes  # K of its wgrad, as the targets name it
    assert ("ResNet-50", 3, 512, 512, 50 * 7 * 7) in sizes
    assert ("ResNet-56", 3, 64, 64, 128 * 8 * 8) in sizes
    assert ("Transformer", 1, 4096, 16384, 16384) in sizes
    counts = [sum(size[0] == name for size in sizes) for name in ("ResNet-56", "Transformer", "ResNet-50")]
    assert counts == [9, 3, 24]


def _places(product: Any) -> int:
    height, width = product.window.positions(product.shape[2:])
    places: int = product.shape[0] * height * width
    return places


def test_a_wrong_digest_is_said_and_ends_with_1(tmp_path: Path) -> None:
    known = json.loads(DIGESTS.read_text(encoding="utf-8"))
    known["runs"]["cnn-digits"]["digests"]["1"] = "0" * 64
    path = tmp_path / "digests.json"
    path.write_text(json.dumps(known), encoding="utf-8")
    text, report = toy(tmp_path, "--only", "digests", "--digests", str(path), code=1)
    by_work = {row["work"]: row["verdict"] for row in rows(report, "digests")}
    assert by_work["cnn-digits on native@cpu"] == "DIFFERENT"
    assert by_work["mlp-digits on native@cpu"] == "equal"
    assert "1 of 1 digests (step 1) differ" in text


def test_a_section_that_fails_is_a_row_and_the_next_one_runs(tmp_path: Path) -> None:
    arguments = "--only", "digests,transformer", "--digests", str(tmp_path / "none.json")
    _, report = toy(tmp_path, *arguments, code=1)
    assert report["sections"]["digests"]["state"] == "failed"
    (row,) = rows(report, "digests")
    assert row["verdict"] == "FAILED"
    assert "FileNotFoundError" in row["measured"]
    assert "none.json" in report["sections"]["digests"]["trace"]
    assert report["sections"]["transformer"]["state"] == "done"


def test_resume_keeps_what_is_done_and_runs_what_is_not(tmp_path: Path) -> None:
    _, before = toy(tmp_path, "--only", "proof,gemm", "--minutes", "0")
    assert verdicts(before, "proof") == verdicts(before, "gemm") == {"not run"}
    _, first = toy(tmp_path, "--only", "proof", "--resume")
    assert verdicts(first, "proof") == {"equal"}
    assert verdicts(first, "gemm") == {"not run"}
    first["sections"]["proof"]["rows"][0]["measured"] = "kept"
    (tmp_path / "report.json").write_text(json.dumps(first), encoding="utf-8")
    _, second = toy(tmp_path, "--only", "proof,gemm", "--resume")
    assert rows(second, "proof")[0]["measured"] == "kept"
    assert verdicts(second, "gemm") == {"recorded"}


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    assert "--only nothing: must be of proof" in run(tmp_path, "--only", "nothing", code=2)
    assert "add --tiny" in run(tmp_path, "--device", "cpu", code=2)
    listed = run(tmp_path, "--list").splitlines()
    assert [line.split()[0] for line in listed] == list(SECTIONS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_ends_with_2(tmp_path: Path) -> None:
    text = run(tmp_path, code=2)
    assert "CUDA" in text
    assert "--device cpu --tiny" in text
    assert not list(tmp_path.iterdir())


def test_the_committed_digests_are_those_of_the_runs() -> None:
    content = json.loads(DIGESTS.read_text(encoding="utf-8"))
    assert content["format"] == "fqtsim-gpu-digests-1"
    assert content["made_by"]["backend"] == "emulator@cpu"
    for name in ("mlp-digits", "cnn-digits", "resnet8-digits", "resnet20-synthetic", "resnet56-synthetic"):
        digests = content["runs"][name]["digests"]
        assert all(len(digest) == 64 for digest in digests.values())
        assert len(set(digests.values())) == len(digests) > 2


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install triton")
def test_the_example_kernels_accumulator_starts_at_zero(tmp_path: Path) -> None:
    """Compiled for a device that need not be there: neither start values nor runs of k meet inside tl.dot."""
    script = tmp_path / "compile.py"
    script.write_text(COMPILE, encoding="utf-8")  # triton reads the source of what it compiles
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(script), str(ROOT / "examples" / "kernels")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outer, inner, dot = done.stdout.splitlines()
    assert "%start" in outer
    assert "iter_args(%products" in inner
    assert "= %cst" in inner
    assert dot.split(",")[2].split()[0].startswith("%products"), dot


COMPILE = """
import sys, torch, triton
torch.cuda.is_available = lambda: True  # the example would choose the interpreter
sys.path.insert(0, sys.argv[1])
import triton_gemm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
kernel = triton_gemm.gemm_kernel
sizes = dict(TILE_M=32, TILE_N=32, TILE_K=128)
constants = dict(HAS_START=True, PARTS=1, BUG="", RUN=triton_gemm.RUN, **sizes)
types = dict(a_ptr="*i8", b_ptr="*i8", c_ptr="*i32", out_ptr="*i32")
signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
source = ASTSource(fn=kernel, signature=signature, constexprs=places)
ir = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"]
for line in ir.splitlines():
    if "scf.for" in line or "tt.dot" in line:
        print(line.strip())
"""
