"""`fqtsim.analyze` from end to end: results, interruption and resume, merging, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import fqtsim
from fqtsim.analysis.measure import Request, curve_points, merge, variance_curve
from fqtsim.analysis.result import Analysis
from fqtsim.analysis.store import read_result
from fqtsim.errors import InputError
from fqtsim.train.config import TrainConfig
from fqtsim.train.loop import run

POINTS = [("ptq", "aligned", 4), ("psq", "aligned", 5)]


def analysis(out: Path | None = None, **changes: Any) -> Analysis:
    """Return a small analysis."""
    asked: dict[str, Any] = {
        "batch": 16, "batches": 2, "repeats": 8, "block": 2, "decomposition": 4, "bounds": 2, "curve": POINTS[:1],
        "curve_repeats": 4,
    }  # fmt: skip
    return fqtsim.analyze("cnn", "digits", "bhq5", "int8_acc32_wrap", out=out, **asked | changes)


def test_an_analysis_says_everything_and_is_read_back(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = analysis(tmp_path / "out", on_progress=lambda done, total, what: seen.append((done, total)))
    assert read_result(tmp_path / "out") == found
    assert json.loads((tmp_path / "out" / "analysis.json").read_text(), parse_constant=pytest.fail)
    layers, places = 3, 5
    assert len(found.biases) == 4 * places
    assert [row.layer for row in found.variances] == ["conv1", "conv2", "fc"]
    assert [(row.quantizer, row.port, row.layer) for row in found.contributions] == [
        ("conv1", "grad_for_wgrad", "conv1"),
        ("conv2", "grad_for_wgrad", "conv2"),
        ("conv2", "grad_for_dgrad", "conv1"),
        ("fc", "grad_for_wgrad", "fc"),
        ("fc", "grad_for_dgrad", "conv1"),
        ("fc", "grad_for_dgrad", "conv2"),
    ]
    assert len(found.bounds) == places
    assert len(found.histograms) == 2 * places
    assert {(row["layer"], row["gemm"]) for row in found.events} == {
        (layer, gemm) for layer in ("conv1", "conv2", "fc") for gemm in ("fprop", "dgrad", "wgrad")
    } - {("conv1", "dgrad")}
    assert found.minibatch == pytest.approx(sum(row.minibatch for row in found.variances))
    assert found.settings["minibatch_batches"] == 10
    assert all(row.low <= row.squared <= row.high for row in found.biases)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (2 * (1 + 8 + (layers - 1) * 4) + 8 + 2 * 4,) * 2
    assert analysis() == found  # the same to the bit, with or without a folder


class Killed(Exception):
    """Stands for a kill: nothing of the run in memory is used afterwards."""


@pytest.mark.parametrize("passes", [1, 20, 36, 43, 47])
def test_resumed_is_uninterrupted_to_the_bit(tmp_path: Path, passes: int) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done >= passes:
            raise Killed

    with pytest.raises(Killed):
        analysis(tmp_path / "a", on_progress=stop)
    assert not (tmp_path / "a" / "analysis.json").exists()
    seen: list[int] = []
    found = analysis(tmp_path / "a", resume=True, on_progress=lambda done, total, what: seen.append(total - done))
    assert seen[-1] == 0
    whole = analysis(tmp_path / "b")
    assert found == whole
    assert (tmp_path / "a" / "analysis.json").read_bytes() == (tmp_path / "b" / "analysis.json").read_bytes()
    states = [load_file(tmp_path / name / "analysis.safetensors") for name in "ab"]
    assert states[0].keys() == states[1].keys()
    assert all((states[0][name] == states[1][name]).all() for name in states[0])


def test_a_finished_analysis_measures_nothing_again(tmp_path: Path) -> None:
    analysis(tmp_path)
    seen: list[str] = []
    analysis(tmp_path, resume=True, on_progress=lambda done, total, what: seen.append(what))
    assert len(seen) == 2 + 8 + 1  # one report for each part that was there, the curve's point as one


def test_a_folder_is_not_overwritten_and_settings_must_be_the_same(tmp_path: Path) -> None:
    analysis(tmp_path, curve=())
    with pytest.raises(InputError, match="holds an analysis; resume it"):
        analysis(tmp_path, curve=())
    with pytest.raises(InputError, match=r"margin = 0\.01: this analysis has 0\.02"):
        analysis(tmp_path, curve=(), margin=0.02, resume=True)
    state = tmp_path / "analysis.safetensors"
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(InputError, match="not a safetensors file"):
        analysis(tmp_path, curve=(), resume=True)


def test_merging_batches_is_one_pass(tmp_path: Path) -> None:
    for name, batches in (("a", range(1)), ("b", range(1, 3))):
        analysis(tmp_path / name, batches=batches)
    merged = merge([tmp_path / "b", tmp_path / "a"], tmp_path / "both")
    assert merged == analysis(tmp_path / "whole", batches=3) == read_result(tmp_path / "both")


def test_merging_repeats_is_one_pass_and_needs_the_sums(tmp_path: Path) -> None:
    for name, repeats in (("a", range(8)), ("b", range(8, 16))):
        analysis(tmp_path / name, repeats=repeats, keep_sums=True, decomposition=0, curve=())
    merged = merge([tmp_path / "a", tmp_path / "b"])
    assert merged == analysis(repeats=16, keep_sums=True, decomposition=0, curve=())
    with pytest.raises(InputError, match="repeat = 0: in both analyses"):
        merge([tmp_path / "a", tmp_path / "a"])
    analysis(tmp_path / "c", repeats=range(16, 24), decomposition=0, curve=())
    with pytest.raises(InputError, match="keep_sums = True: the other analysis has False"):
        merge([tmp_path / "a", tmp_path / "c"])
    analysis(tmp_path / "d", repeats=range(24, 32), decomposition=0, curve=())
    with pytest.raises(InputError, match="batch 0: in both analyses; analyse with keep_sums"):
        merge([tmp_path / "c", tmp_path / "d"])


def test_a_checkpoint_and_evaluation_mode(tmp_path: Path) -> None:
    config = TrainConfig("cnn", "digits", "bhq5", ("int8_acc32_wrap",), steps=3, batch=16)
    run(config, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    trained = analysis(checkpoint=checkpoint, curve=(), decomposition=0)
    assert trained.settings["step"] == 3
    assert trained.settings["digests"]["weights"] != analysis(curve=()).settings["digests"]["weights"]
    evaluated = analysis(checkpoint=checkpoint, curve=(), decomposition=0, eval_mode=True)
    assert evaluated.variances != trained.variances
    assert evaluated.settings["digests"] == trained.settings["digests"]


def test_other_seeds_and_sketches_tell_the_same_story() -> None:
    """A sketch of 2048 numbers keeps every squared norm within a few percent."""
    whole, sketched = (
        analysis(curve=(), decomposition=0, coordinates=coordinates) for coordinates in (1 << 16, 1 << 11)
    )
    for one, other in zip(whole.biases, sketched.biases, strict=True):
        assert other.reference == pytest.approx(one.reference, rel=4 * (2 / 2048) ** 0.5)
    for before, after in zip(whole.variances, sketched.variances, strict=True):
        assert after.quantization == pytest.approx(before.quantization, rel=0.15)


def test_the_curve_falls_with_bits_and_says_why_a_point_is_missing() -> None:
    config = TrainConfig("cnn", "digits", "bhq4_int4", ("int4_acc16_saturate",), steps=1, batch=16)
    request = Request(config, batches=range(2), repeats=range(6), curve_repeats=6)
    points = variance_curve(request, curve_points(("ptq",), ("aligned",), (5, 4, 3, 2)))
    assert [point.bits for point in points] == [5, 4, 3, 2]
    assert "does not fit the int4" in points[0].stopped
    assert all(not point.stopped and point.low < point.variance < point.high for point in points[1:])
    assert points[1].variance < points[2].variance < points[3].variance
