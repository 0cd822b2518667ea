"""The demo: what it claims is what its parts compute."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fqtsim.backends import get_backend
from fqtsim.crosscheck import Coverage, Report
from fqtsim.demo import opening, picture, silicon, variance
from fqtsim.demo.runs import BASE, Outcome, short, verdict
from fqtsim.demo.story import RUNS, Story, next_folder
from fqtsim.errors import BackendRefused
from fqtsim.hw.load import load_hardware
from fqtsim.train.config import build_trainer, resolve


def test_the_opening_saturates_on_the_way_to_a_sum_that_fits() -> None:
    found = opening.saturating_dot()
    assert found.output.transient
    assert sum(a * b for a, b in zip(opening.ACTIVATIONS, opening.WEIGHTS, strict=True)) == found.unlimited
    assert [step.event for step in found.steps].count("overflow") == 1
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=100)
    opening.show(console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    (line,) = [line for line in text.splitlines() if "saturate" in line and "2047" in line]
    assert "\x1b[1;31m" in line  # bold red


def outcome(hardware: str, right: list[bool], altered: int = 0, digest: str = "a") -> Outcome:
    row = {"layer": "conv1", "gemm": "fprop", "outputs": 3_100_000_000, "altered": altered, "bits_needed": 17}
    wide = row | {"gemm": "wgrad", "outputs": 0, "altered": 0, "bits_needed": 22}
    config = replace(BASE, hardware=(hardware,), epochs=1)
    return Outcome(config, (2.0, 1.0), np.array(right), (row, wide), digest, 1.0)


def test_verdicts() -> None:
    wide = outcome("wide", [True] * 340 + [False] * 20)
    fp32 = replace(wide, config=replace(wide.config, recipe="fp32"), digest="b")
    tree = outcome("tree", [False] + [True] * 339 + [False] * 20, altered=41, digest="c")
    assert verdict(tree, fp32, wide) == (
        "tree: trains, -0.3 +- 0.8 points against fp32; 41 of 3.1 G outputs altered; wgrad of conv1 needs 22 bits"
    )
    assert "tree: trains, as on wide to the bit, +0.0" in verdict(
        replace(tree, digest="a", right=wide.right), fp32, wide
    )
    assert "to the bit" not in verdict(wide, fp32, wide)
    worse = outcome("worse", [False] * 30 + [True] * 310 + [False] * 20, digest="d")
    assert "worse: trains, and loses accuracy, -8.3" in verdict(worse, fp32, wide)
    dead = outcome("dead", [True] * 36 + [False] * 324, digest="e")
    assert "dead: does not train, -84.0" in verdict(dead, fp32, wide)


def test_counts_are_short() -> None:
    assert [short(n) for n in (0, 999, 1000, 12_345, 22_800_000, 3_100_000_000)] == [
        "0", "999", "1.0 k", "12.3 k", "22.8 M", "3.1 G",
    ]  # fmt: skip


def test_next_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "demo-1").mkdir()
    assert next_folder(tmp_path) == tmp_path / "demo-2"


def test_a_cpu_without_the_instruction_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Report:
        raise BackendRefused("no AVX2 here")

    monkeypatch.setattr(silicon, "crosscheck", refuse)
    assert silicon.saturating_layer(BASE, lambda: None) == "not checked on this CPU: no AVX2 here"


def test_variance_of_rounding_falls_with_bits_and_with_better_quantizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variance, "BATCHES", 4)
    monkeypatch.setattr(variance, "DRAWS", 3)
    base = replace(BASE, steps=1)
    weights = build_trainer(resolve(base)).net.state_dict()
    calls: list[None] = []
    table = variance.measure(base, weights, lambda: calls.append(None))
    assert len(calls) == len(table.recipes) * variance.BATCHES
    assert table.layers == ("conv1", "conv2", "fc")
    assert table.recipes == ("ptq8", "psq8", "bhq8", "ptq5", "psq5", "bhq5")
    conv1 = {recipe: table.ratios[recipe]["conv1"] for recipe in table.recipes}
    assert all(conv1[f"{name}5"] > conv1[f"{name}8"] > 0 for name in variance.QUANTIZERS)
    assert conv1["ptq5"] > conv1["psq5"]
    # fc's gradient passes no quantizer of the gradient for dgrad: the same draws, the same variance.
    assert len({table.ratios[recipe]["fc"] for recipe in table.recipes}) == 1


def test_the_whole_demo(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    out = tmp_path / "demo"
    assert Story(console, out, epochs=1).tell()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("One dot product") < text.index("Training") < text.index("Cross-checking")
    assert text.index("Variance of the gradient") < text.index("Verdict")
    # One epoch: 22 steps of 64 images, three fprop, two dgrad and three wgrad in each.
    assert "compared   22 steps, 176 GEMMs (44 dgrad, 66 fprop, 66 wgrad)" in text
    assert text.count("equal      every code, event and state digest") in (1, 2)
    assert "int8_acc12_saturate: does not train" in text
    assert "int8_acc24_saturate: trains, as on int8_acc32_wrap to the bit" in text
    runs = [path for path in out.iterdir() if path.is_dir()]
    assert len(runs) == len(RUNS)
    assert all((path / "checkpoint.safetensors").is_file() for path in runs)
    if picture_expected():
        assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert "no picture: pip install" in text


def picture_expected() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert not picture.draw([outcome("a", [True])], tmp_path / "x.png")


def test_a_failed_check_fails_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    story = Story(Console(file=io.StringIO()), tmp_path, epochs=1)
    failed = Report({}, Coverage(), object(), "")  # type: ignore[arg-type]
    monkeypatch.setattr(Story, "train", lambda _: [])
    monkeypatch.setattr(Story, "check", lambda *_: (failed, "not checked"))
    monkeypatch.setattr(Story, "show_variance", lambda *_: None)
    monkeypatch.setattr(Story, "end", lambda *_: None)
    assert not story.tell()


def test_the_saturating_hardware_is_an_instruction_where_native_takes_it() -> None:
    path = load_hardware(silicon.SATURATING).datapath_for("fprop")
    reason = get_backend("native").refusal(path, 144)
    assert reason is None or "can overflow" in reason
