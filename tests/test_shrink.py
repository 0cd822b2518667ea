"""Shrink: files that keep their text, a search that finds what was planted, kills that repeat nothing."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fqtsim.cli import main
from fqtsim.errors import InputError
from fqtsim.evaluate.shrink.answer import narrowed_text, read_original
from fqtsim.evaluate.shrink.confirm import check, try_candidate
from fqtsim.evaluate.shrink.edit import edited
from fqtsim.evaluate.shrink.plan import Answer, Plan, shrink
from fqtsim.evaluate.shrink.search import Outcome, Trial, after_refusal, search, within_tolerance
from fqtsim.evaluate.shrink.space import RANDOM_BITS, Candidate, Space, narrowed, space_of
from fqtsim.hw.load import hardware_names, load_hardware, parse_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.recipe.load import load_recipe
from fqtsim.train.config import TrainConfig
from fqtsim.words import GEMMS

# --- files ---


@pytest.mark.parametrize("name", hardware_names())
def test_a_narrowed_file_keeps_the_text_and_loads_to_the_narrowed_hardware(name: str) -> None:
    original = read_original(name, {})
    widths = {
        gemm: 5 + index
        for index, gemm in enumerate(GEMMS)
        if original.hardware.datapath_for(gemm).accumulator.register_format is not None
    }
    bits = None if original.hardware.random is None else 3
    text = narrowed_text(original, "mine", widths, bits, ["a remark"])
    assert text.startswith("# a remark\n# Below is the text")
    comments = [line for line in original.text.splitlines() if line.lstrip().startswith("#")]
    assert all(line in text.splitlines() for line in comments)
    found, wanted = parse_hardware(text), narrowed(original.hardware, widths, bits)
    assert all(found.datapath_for(gemm) == wanted.datapath_for(gemm) for gemm in GEMMS)
    for gemm, width in widths.items():
        assert found.datapath_for(gemm).accumulator.register_format.bits == width  # type: ignore[union-attr]
        assert found.datapath_for(gemm).levels[:-1] == original.hardware.datapath_for(gemm).levels[:-1]
    assert (found.name, found.output, found.random) == ("mine", wanted.output, wanted.random)
    assert found.checked_against == "nothing"


def test_overrides_go_into_the_file_too() -> None:
    overrides = {"datapath.levels.-1.register": "int22", "gemms.dgrad.a": "int6"}
    original = read_original("int8_acc24_saturate", overrides)
    found = parse_hardware(narrowed_text(original, "mine", {"wgrad": 17}, None, []))
    assert found.datapath_for("fprop").accumulator.register == "int22"
    assert found.datapath_for("dgrad").a == "int6"
    assert found.datapath_for("wgrad").accumulator.register == "int17"


def test_a_text_that_cannot_be_edited_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "ended.yaml"
    data = load_hardware("int8_acc12_saturate").model_dump(mode="json", by_alias=True, exclude_none=True)
    data.pop("gemms", None)
    path.write_text(yaml.safe_dump(data, sort_keys=False, default_flow_style=False) + "...\n", encoding="utf-8")
    original = read_original(str(path), {})
    text = narrowed_text(original, "mine", {"fprop": 9, "dgrad": 8, "wgrad": 10}, 2, ["a remark"])
    found = parse_hardware(text)
    assert [found.datapath_for(gemm).accumulator.register for gemm in GEMMS] == ["int9", "int8", "int10"]
    assert text.startswith("# a remark\n")


def test_edits_leave_the_rest_of_a_text_alone() -> None:
    text = "a: 1  # one\nb:\n  # inside\n  c: {d: 2, }  # two\n\n# end\ne: [x, {y: 3}]\n"
    changes = {("b", "f"): 5, ("b", "c", "g"): "h", ("e", 1, "y"): [4], ("z", "w"): {"v": 1}, ("a",): "one two"}
    assert edited(text, changes) == (
        "a: one two  # one\nb:\n  # inside\n  c: {d: 2, g: h}  # two\n  f: 5\n\n# end\ne: [x, {y: [4]}]\n"
        "z:\n  w: {v: 1}\n"
    )


# --- search ---


def made_up_space(ceilings: dict[tuple[str, str], int]) -> Space:
    return space_of(load_hardware("int8_acc24_saturate"), load_recipe("bhq5"), ceilings, 2, per_layer=True)


def threshold(least: Candidate) -> Callable[[Candidate], Outcome]:
    """Return an evaluation that trains where every width is at least that of `least`."""

    def evaluate(candidate: Candidate) -> Outcome:
        trains = all(candidate[name] >= bits for name, bits in least.items())
        return Outcome(0.9 if trains else 0.1, 0.0 if trains else -0.8, trains, 1)

    return evaluate


CEILINGS = {
    ("one", "fprop"): 19,
    ("one", "wgrad"): 22,
    ("two", "fprop"): 18,
    ("two", "dgrad"): 14,
    ("two", "wgrad"): 20,
}
LEAST = {"one fprop": 17, "one wgrad": 2, "two fprop": 18, "two dgrad": 11, "two wgrad": 9, RANDOM_BITS: 4}


def test_the_search_finds_thresholds(tmp_path: Path) -> None:
    space = made_up_space(CEILINGS)
    trials = search(space, 40, threshold(LEAST), tmp_path / "study.sqlite")
    assert trials[0].candidate == space.seen()
    assert within_tolerance(trials)[0] == LEAST


def test_where_the_widths_seen_do_not_train_the_search_first_widens(tmp_path: Path) -> None:
    space = made_up_space(CEILINGS)
    least = {v.name: min(v.own, v.ceiling + 3) for v in space.variables}
    trials = search(space, 5, threshold(least), tmp_path / "study.sqlite")
    assert [trial.outcome.within for trial in trials[:4]] == [False, False, False, True]
    assert trials[3].candidate["one fprop"] == min(24, 19 + 4)


def test_a_search_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    space, evaluate = made_up_space(CEILINGS), threshold(LEAST)
    whole = search(space, 10, evaluate, tmp_path / "whole.sqlite")
    for cut_after in (3, 8):  # every fourth trial is the sampler's
        left = [cut_after]

        def cut(candidate: Candidate, left: list[int] = left) -> Outcome:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return evaluate(candidate)

        with pytest.raises(KeyboardInterrupt):
            search(space, 10, cut, tmp_path / f"{cut_after}.sqlite")
        seen: list[Trial] = []
        assert search(space, 10, evaluate, tmp_path / f"{cut_after}.sqlite", on_trial=seen.append) == whole
        assert len(seen) == 10 - cut_after


def test_a_file_that_is_no_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.sqlite").write_text("not a database, but long enough to look at" * 50, encoding="utf-8")
    with pytest.raises(InputError, match=r"study.sqlite: cannot be used as a study"):
        search(made_up_space(CEILINGS), 2, threshold(LEAST), tmp_path / "study.sqlite")


def test_after_a_refusal_only_wider_candidates_are_left() -> None:
    queue = [{"a": 3, "b": 3}, {"a": 3, "b": 2}, {"a": 4, "b": 1}, {"a": 5, "b": 5}, {"a": 9, "b": 9}]
    assert after_refusal(queue, queue[0]) == queue[2:]
    assert after_refusal(queue[-1:], queue[0]) == queue[-1:]
    long = [{"a": bits} for bits in range(3, 20)]
    left = after_refusal(long, {"a": 3})
    assert (left[0], left[-1]) == ({"a": 8}, {"a": 19})


def row(seed: int, right: int, status: str = "done", digest: str = "d") -> dict[str, Any]:
    """Return the row of a run that gets the first `right` of 1000 images right."""
    bits = np.packbits(np.arange(1000) < right).tobytes().hex()
    return {
        "seed": seed, "status": status, "accuracy": right / 1000 if status == "done" else None, "right": bits,
        "tested": 1000, "digest": digest, "message": "",
    }  # fmt: skip


def test_a_candidate_is_given_up_at_the_first_seed_that_decides() -> None:
    own = [row(seed, 900) for seed in range(4)]
    results = {0: row(0, 895), 1: row(1, 860), 2: row(2, 900), 3: row(3, 900)}
    for together in (1, 2, 4):
        outcome = try_candidate(lambda seeds: [results[s] for s in seeds], own, 1.0, together)
        assert (outcome.within, outcome.seeds) == (False, 2)
    results[1] = row(1, 885)
    outcome = try_candidate(lambda seeds: [results[s] for s in seeds], own, 1.0)
    assert (outcome.within, outcome.seeds, round(outcome.difference, 4)) == (True, 4, -0.005)
    results[1] = row(1, 900, "diverged")
    outcome = try_candidate(lambda seeds: [results[s] for s in seeds], own, 50.0)
    assert (outcome.within, outcome.seeds) == (False, 2)


def test_a_check_needs_its_whole_interval_within_tolerance() -> None:
    own = [row(seed, 900) for seed in range(4)]
    close = [row(seed, right, digest="e") for seed, right in enumerate((899, 900, 901, 900))]
    wide = [row(seed, right, digest="e") for seed, right in enumerate((880, 920, 880, 920))]
    assert check(close, own, own, 1.0).confirmed
    assert not check(wide, own, own, 1.0).confirmed, "the mean is 0, but what it loses may be 3 points"
    assert check(wide, own, own, 5.0).confirmed
    same = check(own, own, own, 0.01)
    assert same.same
    assert same.confirmed
    assert not check(own[:2], own, own, 50.0).confirmed, "given up"
    diverged = [*close[:3], row(3, 900, "diverged")]
    assert not check(diverged, own, own, 100.0).confirmed


# --- a planted answer ---

NETWORK = """
import torch
from torch import nn


def network(info):
    class Planted(nn.Module):
        def __init__(self):
            super().__init__()
            self.flatten = nn.Flatten()
            self.constant = nn.Linear(64, 2)
            self.classify = nn.Linear(2, 10, bias=False)

        def forward(self, x):
            return self.classify(self.constant(self.flatten(x)))

    net = Planted()
    with torch.no_grad():
        net.constant.weight.zero_()
        net.constant.bias.copy_(torch.tensor([1.0, 0.75]))
        net.classify.weight.zero_()
        net.classify.weight[4] = torch.tensor([1.0, -0.5])
        net.classify.weight[8] = torch.tensor([-0.5, 1.0])
    return net
"""
HARDWARE = """
schema: 1
name: planted
summary: a wide saturating accumulator
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: before_multiply
  levels:
    - {terms: all, register: int24, overflow: saturate}  # the accumulator
random: {generator: philox4x32-10, bits: 4}
"""
#: Layer and GEMM -> the narrowest width that trains.
#:
#: The learning rate is 0, so nothing that goes backward matters: dgrad and wgrad need 2 bits, the least there is, and
#: rounding one random bit. `constant` has zero weights, so its products are 0: 2 bits. Its bias makes every image
#: (1, 0.75), differences 255 and 191 from the zero point. `classify` has differences (170, -85) for class 4 and
#: (-85, 170) for class 8, 0 elsewhere. Class 4 has sums 43350, 27115; class 8 has -21675, 10795: 17 bits hold all. A
#: 16-bit register turns 43350 into 32767, and class 4 ends at 16532, still the largest. With 15 bits it ends at
#: 148, and class 8 at 16086; with fewer, class 4 ends below 0. 37 of the 360 test images are class 4, 35 are class 8.
PLANTED = {
    "constant fprop": 2, "constant wgrad": 2, "classify fprop": 16, "classify dgrad": 2, "classify wgrad": 2,
    RANDOM_BITS: 1,
}  # fmt: skip
#: Points: below the 2 of 360 images that 15 bits cost, above what 360 equal predictions leave open (0.54).
TOLERANCE = 0.55


@pytest.fixture
def planted(tmp_path: Path) -> Plan:
    (tmp_path / "network.py").write_text(NETWORK, encoding="utf-8")
    (tmp_path / "planted.yaml").write_text(HARDWARE, encoding="utf-8")
    config = TrainConfig(
        model=f"{tmp_path}/network.py:network", data="digits", recipe="bhq5",
        hardware=(str(tmp_path / "planted.yaml"),), steps=1, batch=32, set_recipe={"optimizer.lr": "0"},
    )  # fmt: skip
    return Plan(config, TOLERANCE, seeds=1, confirm_seeds=1, trials=25)


def files_of(answer: Answer) -> dict[str, Hardware]:
    return {layer: load_hardware(path) for layer, path in answer.layer_files.items()}


def test_shrink_finds_the_planted_answer(planted: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = shrink(planted, out)
    assert answer.candidate == PLANTED
    assert (answer.check.confirmed, answer.refuted) == (True, 0)
    seen = {one.place: one for one in answer.seen}
    fprop = seen["classify", "fprop"]
    assert (fprop.minimum, fprop.maximum, fprop.partial_minimum, fprop.partial_maximum) == (0, 27115, -21675, 43350)
    # Weights: 255 * 170 + 255 * 85 = 65025, in 17 bits. Data types: 2 * 255 * 255 = 130050, in 18.
    assert (fprop.data_type_bits, fprop.weights_bits, fprop.seen_bits) == (18, 17, 17)
    layers = files_of(answer)
    for name, width in PLANTED.items():
        if name != RANDOM_BITS:
            layer, gemm = name.split()
            assert layers[layer].datapath_for(gemm).accumulator.register == f"int{width}"
    shared = load_hardware(answer.shared_file)
    assert [shared.datapath_for(gemm).accumulator.register for gemm in GEMMS] == ["int16", "int2", "int2"]
    assert shared.random is not None
    assert shared.random.bits == 1
    assert "# the accumulator" in answer.shared_file.read_text(encoding="utf-8")
    assert main(["validate", str(answer.shared_file), *map(str, answer.layer_files.values())]) == 0
    assert not [path for path in out.rglob("*") if "partial" in path.name]


def rows_of(out: Path) -> dict[str, str]:
    if not (out / "results.sqlite").is_file():
        return {}
    with sqlite3.connect(out / "results.sqlite") as connection:
        try:
            return dict(connection.execute("SELECT key, row FROM rows"))
        except sqlite3.OperationalError:  # not yet made
            return {}


def test_a_killed_shrink_goes_on_and_repeats_no_run(
    planted: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, config = tmp_path / "out", planted.config
    command = [
        "shrink", config.hardware[0], "--model", config.model, "--recipe", "bhq5", "--steps", "1", "--batch", "32",
        "--set", "recipe.optimizer.lr=0", "--seeds", "1", "--confirm-seeds", "1", "--trials", "5",
        "--tolerance", str(TOLERANCE), "--per", "gemm", "--out", str(out),
    ]  # fmt: skip
    environment = {**os.environ, "NUMBA_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "fqtsim", *command], env=environment, stdout=log, stderr=log)
        while len(rows_of(out)) < 3 and process.poll() is None:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = rows_of(out)
    assert 3 <= len(before) < 8, (tmp_path / "log").read_text()
    assert not list(out.glob("*.yaml"))
    assert main(command) == 0
    after = rows_of(out)
    assert {key: after[key] for key in before} == before  # a second run would have other seconds
    printed = capfd.readouterr().out
    assert "still trains" in printed
    path = out / "planted_shrunk.yaml"
    assert f"--hardware {path}" in printed or str(path) in printed.replace("\n", "")
    found = load_hardware(path)
    widths = [found.datapath_for(gemm).accumulator.register_format.bits for gemm in GEMMS]  # type: ignore[union-attr]
    assert all(width < 24 for width in widths)
    assert widths[0] >= PLANTED["classify fprop"]
    assert not (out / "layers").exists()
    assert main([*command[:-2], "--seed", "5", "--out", str(out)]) == 2
    assert "was begun with another model, data, recipe, hardware, seed or steps" in capfd.readouterr().err


def test_bad_input_is_refused_before_anything_runs(planted: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(plan: Plan, match: str) -> None:
        with pytest.raises(InputError, match=match):
            shrink(plan, out)
        assert not out.exists()

    refused(replace(planted, tolerance=0.0), r"tolerance = 0.0: must be above 0")
    refused(replace(planted, confirm_seeds=0), r"confirm_seeds = 0: must be at least 1")
    fp32 = replace(planted, config=replace(planted.config, recipe="fp32", set_recipe={}))
    refused(fp32, "recipe = fp32: no GEMM runs on the hardware")
    exact = {"gemms.wgrad.levels": "[{terms: all, register: exact}]"}
    refused(
        replace(planted, config=replace(planted.config, set_hardware=exact)),
        r"gemms.wgrad.levels.0.register = exact: an accumulator without a width cannot be shrunk",
    )
    several = replace(planted.config, hardware=("a=b", "c=d"))
    refused(replace(planted, config=several), "must be one name or file")
    out.mkdir()
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not empty and holds no shrink"):
        shrink(planted, out)
    (out / "plan.json").write_text("[", encoding="utf-8")
    with pytest.raises(InputError, match="is not the plan of a shrink"):
        shrink(planted, out)
    (out / "plan.json").write_text(json.dumps({"run": "other"}), encoding="utf-8")
    with pytest.raises(InputError, match="was begun with another model"):
        shrink(planted, out)
