"""The experiments on accumulators and random bits: at toy size, resumed, and their parts against plain arithmetic."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paper_scripts import accumulators, accumulators_report, harness, random_bits, random_bits_report

from fqtsim.evaluate.job import Job, Measure, hardware_of
from fqtsim.train.config import TrainConfig

FLAT, CHUNKED, WIDE = accumulators_report.FLAT, accumulators_report.CHUNKED, accumulators_report.WIDE
Need, Point, need = accumulators_report.Need, accumulators_report.Point, accumulators_report.need
SMALL = ["--model", "mlp", "--batches", "1", "--draws", "2", "--batch", "32", "--workers", "0"]
TOY = {
    "accumulators": [
        "--bits",
        "12",
        "32",
        "--gemms",
        "wgrad",
        "--recipe",
        "psq5",
        "--steps",
        "2",
        "--at-step",
        "1",
        "--seeds",
        "2",
    ],
    "random_bits": ["--bits", "2", "24", "--recipes", "psq4", "--steps", "2", "--seeds", "2", "--tensor-draws", "4"],
}
HYPOTHESES = {
    "accumulators": accumulators_report.HYPOTHESES,
    "random_bits": random_bits_report.HYPOTHESES,
}


def call(name: str, out: Path) -> str:
    """Run an experiment at toy size in this process; return its page."""
    main = {"accumulators": accumulators.main, "random_bits": random_bits.main}[name]
    assert main(["--out", str(out), *SMALL, *TOY[name]]) == 0
    return (out / f"paper_{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(TOY))
def test_an_experiment_runs_once_and_says_what_came_of_its_hypotheses(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = call(name, tmp_path)
    figure = (tmp_path / f"paper_{name}.svg").read_bytes()
    capsys.readouterr()
    for hypothesis in HYPOTHESES[name]:
        assert f"{hypothesis}\n   **" in page
    assert page.count("**Confirmed") + page.count("**Refuted") + page.count("**Undecided") == len(HYPOTHESES[name])
    assert f"python examples/paper/{name}.py --out" in page

    def refuse(*_: Any) -> Any:
        raise AssertionError("a finished run or measurement is done again")

    monkeypatch.setattr(harness, "attempt", refuse)
    monkeypatch.setattr(accumulators.CommonWeights, "measure", refuse)
    monkeypatch.setattr(random_bits.Rounding, "measure", refuse)
    assert call(name, tmp_path) == page
    assert (tmp_path / f"paper_{name}.svg").read_bytes() == figure
    said = capsys.readouterr().out
    runs = {"accumulators": 8, "random_bits": 4}[name]
    assert f"runs: {runs} of {runs} found finished" in said
    written = json.loads((tmp_path / f"paper_{name}.json").read_text(encoding="utf-8"))
    digests = [run["digest"] for design in written["designs"] for run in design["runs"]]
    assert len(digests) == runs
    assert all(len(digest) == 64 for digest in digests)
    # Two tables of the page have a line for each number of bits; one has the designs.
    line, lines = {"accumulators": ("| wgrad | int12 |", 3), "random_bits": ("| psq4 |", 4)}[name]
    assert page.count(line) == lines


#: A network that no worker process can build.
NETWORK = """
import multiprocessing
from torch import nn

def make(info):
    if multiprocessing.parent_process() is not None:
        raise RuntimeError("not here")
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def fp32(model: str) -> Job:
    config = TrainConfig(model, "digits", "fp32", ("int8_acc32_wrap",), steps=2, batch=32)
    return Job.of(config, Measure(batches=0, outputs=0))


@dataclass(frozen=True)
class Square:
    """A measurement that leaves a mark each time it is made."""

    number: int
    folder: Path
    name: str = "square"

    def settings(self) -> dict[str, Any]:
        return {"number": self.number}

    def measure(self) -> int:
        with (self.folder / "made").open("a", encoding="utf-8") as file:
            file.write("x")
        return self.number**2


def test_runs_go_through_worker_processes_and_one_that_failed_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "net.py"
    file.write_text(NETWORK, encoding="utf-8")
    job = fp32(f"{file}:make")
    with pytest.raises(SystemExit, match=r"1 of 1 runs failed, the first: fp32: .*RuntimeError: not here"):
        harness.finish([job], tmp_path, workers=1)
    rows = harness.finish([job], tmp_path, workers=0)
    assert rows[job.key]["status"] == "done"
    assert harness.finish([job], tmp_path, workers=1) == rows
    assert "runs: 1 of 1 found finished" in capsys.readouterr().out


def test_measurements_go_through_worker_processes_and_are_kept(tmp_path: Path) -> None:
    for _ in range(2):
        assert harness.measure([Square(3, tmp_path)], tmp_path, workers=1) == {"square": 9}
    assert (tmp_path / "made").read_text(encoding="utf-8") == "x"
    # Other settings are another measurement.
    assert harness.measure([Square(4, tmp_path)], tmp_path, workers=0) == {"square": 16}


def test_each_design_narrows_the_gemm_that_it_names_and_no_other() -> None:
    setting = accumulators.Setting("mlp", "digits", "bhq5", 0.05, (0,), None, 2, 32, 1, 1, 2)
    for point in accumulators.points((12, 24, 32)):
        (hardware,) = hardware_of(accumulators.job(setting, point, 0).plain).values()
        for gemm in ("fprop", "dgrad", "wgrad"):
            levels = [
                (level.terms, str(level.register), level.overflow and str(level.overflow))
                for level in hardware.datapath_for(gemm).levels
            ]
            wide = ("all", "int32", "wrap")
            narrow = [("all", f"int{point.bits}", point.overflow)]
            if point.form == CHUNKED:
                narrow = [(64, f"int{point.bits}", point.overflow), wide]
            assert levels == (narrow if point.gemm in (gemm, "all three") else [wide])


def row(seed: int, accuracy: float | None) -> dict[str, Any]:
    status = "diverged" if accuracy is None else "done"
    return {"seed": seed, "status": status, "accuracy": accuracy, "right": None, "tested": 360, "classes": 10}


def test_bits_needed_end_at_the_first_width_that_loses() -> None:
    wide = [0.97, 0.98, 0.975]
    shares: dict[int, list[float | None]] = {
        12: [0.973, 0.981, 0.976],  # trains again, which does not count: 14 loses
        14: [0.80, 0.82, 0.81],
        16: [0.90, 0.99, 0.97],
        18: [0.971, 0.983, 0.974],
    }
    runs: dict[Any, list[dict[str, Any]]] = {WIDE: [row(seed, one) for seed, one in enumerate(wide)]}
    for bits, found in shares.items():
        runs[Point("wgrad", bits, "wrap", FLAT)] = [row(seed, one) for seed, one in enumerate(found)]
    assert need(runs, "wgrad", "wrap", FLAT) == Need(16, 18)
    assert need(runs, "fprop", "wrap", FLAT) is None
    runs[Point("wgrad", 18, "wrap", FLAT)] = [row(0, None), *runs[Point("wgrad", 18, "wrap", FLAT)][1:]]
    assert need(runs, "wgrad", "wrap", FLAT) == Need(32, 32)


@pytest.mark.parametrize(
    ("more", "less", "bits", "found"),
    [
        (Need(18, 18), Need(14, 16), 2, True),
        (Need(16, 18), Need(16, 16), 2, None),
        (Need(16, 18), Need(16, 16), 3, False),
        (Need(16, 16), Need(0, 12), 4, True),
        (Need(16, 16), Need(0, 12), 5, None),
        (None, Need(0, 12), 1, None),
    ],
)
def test_comparisons_of_bits_needed(more: Any, less: Any, bits: int, found: bool | None) -> None:
    assert accumulators_report.at_least(more, less, bits) is found


@pytest.mark.parametrize("kind", ["ptq", "psq", "bhq"])
def test_bias_of_a_step_is_that_of_the_rounding_rule(kind: str) -> None:
    """`exact` against fractions for the values of the rule's own definition; measured means near it."""
    x = np.random.default_rng(1).normal(size=(8, 96)).astype(np.float32)
    x[:, ::5] = 0
    job = fp32("mlp")
    spec = Spec(kind)
    entries = random_bits.Rounding(job, (2, 6), 200, "none")._tensor(spec, x)
    for entry in entries:
        bits = entry["random_bits"]
        assert entry["exact"] == pytest.approx(-(2.0 ** -(bits + 1)), rel=0.15)
        for way in ("direct", "paired"):
            mean, half = harness.interval(entry[way])
            assert half is not None
            assert abs(mean - entry["exact"]) < 1.7 * half
    if kind != "bhq":
        assert entries[0]["zeros"] == np.count_nonzero(x == 0)
    if kind == "psq":
        from fqtsim.quantizers import quantizer

        step = quantizer("psq", 4, "stochastic", 2).quantize(x).step
        total, count = Fraction(0), 0
        for values, size in zip(x, step, strict=True):
            for value in values[values != 0]:
                rounded = Fraction(float(np.float32(value / size)))
                total += Fraction((rounded * 4).__floor__(), 4) - Fraction(float(value)) / Fraction(float(size))
                count += 1
        assert entries[0]["exact"] == pytest.approx(float(total / count), abs=1e-9)


@dataclass(frozen=True)
class Spec:
    """What the measurement reads of a recipe's port."""

    quantizer: str
    bits: int = 4
    zero: str = "aligned"
