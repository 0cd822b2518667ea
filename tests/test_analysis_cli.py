"""`fqtsim analyze`: verdicts in words, the table, resumption, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fqtsim.analysis import table
from fqtsim.analysis.result import Analysis, Bias, CurvePoint, Variance
from fqtsim.analysis.store import read_result
from fqtsim.cli import main

SETTINGS = {"margin": 0.01, "repeats": 20, "batches": 2, "batch": 8, "estimand": {"reference": "the reference"}}
CLEAN = Bias("gradient quantization", "fc", "wgrad", 1e-6, -1e-6, 3e-6, 1.0, 0.1, "negligible")
WRONG = replace(CLEAN, source="backward hardware", squared=0.25, low=0.16, high=0.36, verdict="biased")
OPEN = replace(CLEAN, source="forward hardware", squared=1e-5, low=-4e-4, high=4.1e-4, verdict="undecided")
FOUND = Analysis(SETTINGS, (CLEAN, WRONG, OPEN), (Variance("fc", 0.1, 0.09, 0.11, 0.2),), minibatch=0.2)
RUN = ["analyze", "--model", "mlp", "--recipe", "bhq5", "--batch", "16", "--batches", "1", "--repeats", "8"]
RUN += ["--decomposition", "4", "--hardware", "int8_acc12_saturate"]


def printed(analysis: Analysis, detail: bool = False) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        table.show(analysis, console, detail)
    return capture.get()


def test_the_verdict_says_where_how_much_and_what_would_decide() -> None:
    clean, wrong, undecided = table.verdict_lines(FOUND)
    assert clean == "gradient quantization: no bias beyond 1 % of the norm in any gradient"
    assert wrong == (
        "backward hardware: biased in 1 of 1 gradients, most in wgrad of fc: 50 % of its norm (40 % to 60 %)"
    )
    # The interval reaches 4e-4 beyond the estimate, the margin is 1e-4: four times the repeats.
    assert undecided.endswith("1 of 1 gradients undecided at a margin of 1 %; about 80 repeats would decide")


def test_the_worst_gradient_is_the_one_named() -> None:
    worse = replace(WRONG, layer="conv", squared=0.64, low=0.5, high=0.8)
    assert "most in wgrad of conv: 80 %" in table.verdict_lines(replace(FOUND, biases=(WRONG, worse)))[1]


def test_a_gradient_that_is_0_without_hardware_is_infinitely_biased() -> None:
    assert table.share(replace(WRONG, reference=0.0), 0.25) == float("inf")
    assert table.share(replace(CLEAN, reference=0.0), 0.0) == 0


def test_the_table_marks_verdicts_and_shows_what_stopped() -> None:
    stopped = CurvePoint("ptq", "aligned", 4, 0.0, 0.0, 0.0, "no step here")
    text = printed(replace(FOUND, curve=(stopped, CurvePoint("psq", "aligned", 4, 0.05, 0.04, 0.06))), detail=True)
    assert "50 !" in text
    assert "2 ?" in text
    assert "no step here" in text
    assert "0.25" in text  # 0.05 of 0.2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--resume"], "--resume: needs the folder of the analysis; add --out FOLDER"),
        (["--bits", "1..4"], "--bits 1..4: must be widths of 2..8 bits"),
        (["--recipe", "qat"], "leaves the gradients float, so there is nothing to analyse"),
        (["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(RUN + arguments) == 2
    error = capfd.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_an_analysis_from_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "analysis"
    assert main([*RUN, "--bits", "5", "--out", str(out), "--detail"]) == 0
    shown = capfd.readouterr().out
    assert "backward hardware: biased in" in shown  # 12 bits saturate
    assert "float_offset" in shown
    assert f"page       {out / 'analysis.html'}" in shown.replace("\n", "")
    page = (out / "analysis.html").read_text(encoding="utf-8")
    assert "backward hardware: biased in" in page
    assert page.count("<svg") == 5  # intervals, variances, curve, bounds, histograms
    found = read_result(out / "analysis.json")
    assert {row.source for row in found.biases} >= set(table.SOURCES)
    assert [point.bits for point in found.curve] == [5] * 6
    before = json.loads((out / "analysis.json").read_text(encoding="utf-8"))
    assert main([*RUN, "--bits", "5", "--out", str(out)]) == 2  # nothing is overwritten unasked
    assert main([*RUN, "--bits", "5", "--out", str(out), "--resume"]) == 0
    assert json.loads((out / "analysis.json").read_text(encoding="utf-8")) == before
