"""benchmarks/cpu.py at toy size: every target has its rows, and every verdict follows from its ratio."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
SECTIONS = (
    "step", "checks", "dumped", "worst", "trees", "exact", "depthwise", "quantize", "threads", "growth", "memory",
    "first",
)  # fmt: skip
#: Where the rows of a target come from. Which of them dumped operands belong to depends on what they saturate.
TARGETS_OF = {
    "step": {"step_acc24", "step_wrap", "step_acc16"}, "checks": {"check_sample", "check_freivalds"},
    "worst": {"worst_17_32", "worst_16", "loop"},
    "trees": {"trees"}, "exact": {"exact"}, "quantize": {"psq", "bhq"}, "threads": {"threads"}, "growth": {"growth"},
    "first": {"import", "first_gemm"},
}  # fmt: skip
DUMPED = {"dumped_20_24", "dumped_16", "worst_17_32", "worst_16"}


def run(script: str, *arguments: str, code: int = 0) -> str:
    """Run a script of benchmarks/, expecting an exit code; return what it printed."""
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run every section once, at toy size."""
    path = tmp_path_factory.mktemp("cpu") / "cpu.json"
    return path, run("cpu.py", "--quick", "--out", str(path))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what imports a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def every_row(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for section in content["sections"].values() for row in section["rows"]]


def test_every_section_ends_and_every_target_has_rows(quick: tuple[Path, str]) -> None:
    content = read(quick[0])
    assert tuple(content["sections"]) == SECTIONS
    for name, section in content["sections"].items():
        assert section["state"] == "done", section
        found = {row["target"] for row in section["rows"]} - {""}
        assert found >= TARGETS_OF.get(name, set()), name
        for threads in content["environment"]["threads"]:
            if name in ("step", "worst", "trees", "exact", "quantize", "growth", "depthwise", "dumped"):
                assert any(row["threads"] == threads for row in section["rows"]), name
    dumped = list(content["sections"]["dumped"]["rows"])
    assert dumped
    assert {row["target"] for row in dumped} <= DUMPED


def test_rows_are_complete(quick: tuple[Path, str]) -> None:
    rows = every_row(read(quick[0]))
    for row in rows:
        assert set(row) == {"work", "threads", "verdict", "target", "ratio", "spread", "seconds", "details"}
        if row["verdict"] in ("met", "missed"):
            assert row["ratio"] is not None
            assert row["spread"][0] <= row["ratio"] <= row["spread"][1]
            assert row["details"]["rounds"] >= 1
        assert all(seconds > 0 for seconds in row["seconds"].values())
    timed = [row for row in rows if row["seconds"] and row["target"] not in ("import", "first_gemm")]
    assert all(row["details"]["bytes"] > 0 and row["details"]["unit"] for row in timed)


def test_verdicts_follow_from_ratios(quick: tuple[Path, str], module: Any) -> None:
    report = module("cpu_report")
    content = read(quick[0])
    for row in every_row(content):
        if row["target"] and row["ratio"] is not None:
            bound = report.TARGETS[row["target"]].bound
            faster = row["target"] in ("dumped_20_24", "dumped_16", "worst_17_32", "worst_16", "loop", "trees", "exact",
                                       "psq", "threads")  # fmt: skip
            good = row["ratio"] >= bound if faster else row["ratio"] <= bound
            assert row["verdict"] == ("met" if good else "missed"), row
        else:
            assert row["verdict"] in ("recorded", "not run"), row
    for line in content["summary"]:
        mine = [r for r in every_row(content) if (r["target"], r["threads"]) == (line["target"], line["threads"])]
        verdicts = {row["verdict"] for row in mine if row["ratio"] is not None}
        assert line["verdict"] == ("not run" if not verdicts else "missed" if "missed" in verdicts else "met"), line
        assert line["of"] == sum(row["ratio"] is not None for row in mine)


def test_operands_past_a_rail_count_as_worst_case(quick: tuple[Path, str]) -> None:
    for row in read(quick[0])["sections"]["dumped"]["rows"]:
        assert 0 <= row["details"]["altered"] <= 1
        assert row["target"].startswith("worst") == (row["details"]["altered"] > 0.05), row
        assert row["details"]["rivals"] == ["fp32 matmul" if row["details"]["altered"] > 0.05 else "torch._int_mm"]


def test_the_table_comes_last_and_the_machine_is_named(quick: tuple[Path, str]) -> None:
    path, text = quick
    about = read(path)["environment"]
    assert {"cpu", "cpus", "threads", "torch", "numba", "llvmlite", "numpy", "python", "commit", "load"} <= set(about)
    assert about["quick"] is True
    assert about["threads"][0] == 1
    assert text.strip().endswith(str(path))
    table = text[text.rindex("verdict") :]
    assert ">= 0.6 x torch._int_mm" in table


def test_one_section_replaces_its_rows_and_resume_keeps_the_others(quick: tuple[Path, str], tmp_path: Path) -> None:
    content = read(quick[0])
    content["sections"]["quantize"]["rows"][0]["work"] = "replaced"
    content["sections"]["exact"]["rows"][0]["work"] = "kept"
    content["sections"]["quantize"]["state"] = "failed"
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    run("cpu.py", "--quick", "--out", str(path), "--resume", "--only", "quantize,exact")
    after = read(path)
    assert after["sections"]["quantize"]["state"] == "done"
    assert after["sections"]["quantize"]["rows"][0]["work"] != "replaced"
    assert after["sections"]["exact"]["rows"][0]["work"] == "kept"
    assert [path.name] == os.listdir(tmp_path)


def test_what_cannot_be_asked_is_refused(quick: tuple[Path, str], tmp_path: Path) -> None:
    assert "--only nothing: must be of step" in run("cpu.py", "--only", "nothing", code=2)
    assert "--threads (999,): must be 1.." in run("cpu.py", "--quick", "--threads", "999", code=2)
    content = read(quick[0])
    content["environment"]["cpu"] = "another"
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert "cpu = another" in run("cpu.py", "--quick", "--resume", "--out", str(path), code=2)
    listed = [line.split()[0] for line in run("cpu.py", "--list").splitlines()]
    assert listed == list(SECTIONS)


def test_the_roofline_counts_every_row_that_has_operations(quick: tuple[Path, str], tmp_path: Path) -> None:
    path, out = quick[0], tmp_path / "roofline.json"
    text = run("cpu_roofline.py", "--quick", "--file", str(path), "--out", str(out))
    assert "Fractions of the limit" in text
    found = read(out)
    rates = found["limits"]["1"]
    assert all(rate > 1e6 for rate in rates.values())
    counted = [row for row in every_row(read(path)) if row["seconds"] and row["details"].get("unit") in rates]
    assert len(found["rows"]) == len(counted) > 10
    for row, one in zip(counted, found["rows"], strict=True):
        count = row["details"].get("macs", row["details"].get("elements"))
        seconds = next(iter(row["seconds"].values()))
        assert one["work"] == row["work"]
        assert one["rate"] == pytest.approx(count / seconds)
        assert one["fraction"] > 0


def test_rounds_are_interleaved_and_paired(module: Any) -> None:
    order: list[str] = []

    def contestant(name: str) -> Any:
        def call() -> None:
            order.append(name)
            time.sleep(0.003)  # longer than a sample, so that it is called once in each

        return call

    timings = module("cpu_report").interleaved({name: contestant(name) for name in "ab"}, 1, 0.0)
    assert timings.names == ("a", "b")
    assert len(timings.rounds) == 5
    assert all(seconds >= 0.003 for one in timings.rounds for seconds in one)
    # A call of each to warm up, one to count the repeats, then five rounds that begin with the other in turn, one call
    # of each untimed and one timed.
    assert "".join(order) == "ab" + "ab" + "aabb" + "bbaa" + "aabb" + "bbaa" + "aabb"
    order.clear()
    assert len(module("cpu_report").interleaved({"a": contestant("a")}, 1, 10.0, most=0.001).rounds) == 1
    assert order == ["a", "a"]  # the one after the warm-up passes the most: it is the only sample
    by_hand = type(timings)(("ours", "a", "b"), ((1.0, 3.0, 2.0), (2.0, 2.0, 8.0), (1.0, 5.0, 4.0)))
    assert by_hand.ratios(True, ["a", "b"]) == [2.0, 1.0, 4.0]
    assert by_hand.ratios(False, ["a"]) == pytest.approx([1 / 3, 1.0, 0.2])
    assert by_hand.medians() == {"ours": 1.0, "a": 3.0, "b": 4.0}


def test_the_worst_case_is_what_it_says(module: Any) -> None:
    """Counted addition by addition: each output is clamped at 7 of 8 of them, and neither rail is left out."""
    gemm, shapes = module("cpu_gemm"), module("cpu_shapes")
    for bits, always in ((16, False), (24, False), (32, True)):
        a, b, start = gemm.worst_operands(shapes.cubes((32,))[0], bits, always)
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        value = np.repeat(start, 32, axis=0).astype(np.int64)
        clamped = np.zeros(value.shape, np.int64)
        for k in range(32):
            total = value + a[:, k, None].astype(np.int64) * b[k]
            value = np.clip(total, low, high)
            clamped += total != value
        assert (clamped == (32 if always else 28)).all()
        reached = {int(value.min()), int(value.max())}
        assert (reached == {low, high}) == always  # else the last product steps back from the rail


def test_shapes_are_those_of_the_networks(module: Any) -> None:
    report, shapes = module("cpu_report"), module("cpu_shapes")
    bench = report.Bench(lambda row: None)
    found = shapes.network_shapes(bench)
    assert ("resnet56", "wgrad", 9 * 16, 128 * 32 * 32, 16, 1) in found
    assert ("resnet56", "dgrad", 128 * 8 * 8, 9 * 64, 64, 1) in found
    assert ("mobilenet_v2", "fprop", 128 * 4 * 4, 320, 1280, 1) in found
    assert not any(shape.groups > 1 for shape in found)
    grouped = shapes.network_shapes(bench, grouped=True)
    assert ("mobilenet_v2", "fprop", 128 * 32 * 32, 9, 1, 32) in grouped
    first = [shape for shape in found if shape.gemm == "dgrad" and shape.n == 3]
    assert first == []  # nobody reads the gradient of the images


def test_growth_is_fitted(module: Any) -> None:
    fitted = module("cpu_growth").fitted
    exponent, fit = fitted([(n**3, 1e-3 + 2e-9 * n**3) for n in (1024, 2048, 4096)])
    assert exponent == pytest.approx(1, abs=1e-3)
    assert fit["seconds_per_gmac"] == pytest.approx(2)
    assert fit["constant_seconds"] == pytest.approx(1e-3, rel=1e-3)
    assert fitted([(n, 1e-9 * n**1.5) for n in (10**6, 10**7, 10**8)])[0] == pytest.approx(1.5)
