"""verify-run: the shipped runs are reached again, and a machine that differs is told where."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fqtsim.backends.primitives import Primitives
from fqtsim.backends.stepwise import Stepwise
from fqtsim.cli import main
from fqtsim.errors import InputError
from fqtsim.train import loop
from fqtsim.verify import published, replay
from fqtsim.verify.published import RUNS, from_folder, load_published, published_names
from fqtsim.verify.replay import replay as do_replay


class LateFault(Primitives):
    """From step index `at` on, sums for the last layer's weights are one unit in the last place too large."""

    def __init__(self, backend: LateBackend) -> None:
        self.backend = backend

    def prove(self) -> None:
        """Pass."""

    def random_words(self, seed: int, stream: int, step: int, count: int) -> Any:
        self.backend.step = step
        return super().random_words(seed, stream, step, count)

    def quantize(self, x: Any, grid: Any, rounding: Any, draw: Any, storage: str) -> Any:
        self.backend.step = draw.step
        return super().quantize(x, grid, rounding, draw, storage)

    def add(self, x: Any, y: Any) -> Any:
        total = np.array(super().add(x, y))
        if total.shape == (10, 128) and self.backend.step >= self.backend.at:
            total[4, 7] = np.nextafter(total[4, 7], np.float32(np.inf))
        return total


class LateBackend(Stepwise):
    """A machine whose fault begins at a step."""

    name = "late"

    def __init__(self, at: int) -> None:
        self.at, self.step = at, 0
        self.primitives = LateFault(self)


def test_the_shipped_runs_are_those_of_the_table() -> None:
    assert published_names() == sorted(RUNS)
    for name, config in RUNS.items():
        run = load_published(name)
        assert run.name == name
        for key in ("model", "data", "recipe", "hardware", "seed", "batch", "set_recipe", "set_hardware"):
            assert getattr(run.config, key) == getattr(config, key)
        steps = sorted(run.digests)
        assert steps == [s for s in (*published.EARLY, *range(100, run.steps + 1, 100)) if s <= run.steps]
        assert len(set(run.digests.values())) == len(steps)
        assert all(len(digest) == 64 for digest in (*run.digests.values(), *run.tensors.values()))
        # The tensors and the digest are of one state: the digest is made of them.
        assert "step" in run.tensors


@pytest.mark.parametrize(("name", "backend", "steps"), [("mlp-digits", "native", 100), ("mlp-digits", "stepwise", 20),
                                                        ("resnet8-digits", "native", 10)])  # fmt: skip
def test_this_machine_reaches_the_published_digests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, backend: str, steps: int
) -> None:
    arguments = ["verify-run", name, "--backend", backend, "--steps", str(steps), "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    digests = load_published(name).digests
    assert f"equal      {sum(step <= steps for step in digests)} published digests" in shown
    assert digests[steps] in shown


def test_an_interrupted_replay_goes_on(tmp_path: Path) -> None:
    run = load_published("mlp-digits")

    class Killed(BaseException):
        pass

    def kill(record: loop.StepRecord) -> None:
        if record.step == 130:
            raise Killed

    with pytest.raises(Killed):
        do_replay(run, "emulator", tmp_path / "run", steps=200, on_step=kill)
    starts: list[int] = []
    verdict = do_replay(
        run, "emulator", tmp_path / "run", steps=200, resume=True, on_start=lambda done, _: starts.append(done)
    )
    assert starts == [100]
    assert verdict.passed
    assert verdict.compared == 8


def test_a_late_fault_is_narrowed_to_its_step_and_primitive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = LateBackend(at=106)
    genuine = replay.get_backend
    monkeypatch.setattr(replay, "get_backend", lambda name: late if name == "native" else genuine(name))
    monkeypatch.setattr("fqtsim.train.convert.get_backend", lambda name: late if name == "native" else genuine(name))
    verdict = do_replay(load_published("mlp-digits"), "native", tmp_path / "run", steps=200)
    assert not verdict.passed
    assert verdict.block == (100, 200)
    assert verdict.difference is not None
    assert (verdict.difference.step, verdict.difference.kind) == (107, "state")
    assert "add, operation" in verdict.difference.primitive
    assert "at [4, 7]" in verdict.difference.what
    assert "DIFFERENT  equal up to step 100, another state at step 200" in str(verdict)


def test_a_difference_that_this_machine_shares_is_called_so(tmp_path: Path) -> None:
    run = load_published("mlp-digits")
    digests = {step: digest for step, digest in run.digests.items() if step <= 20} | {20: "0" * 64}
    tensors = run.tensors | {"1.weight": "0" * 64}
    verdict = do_replay(replace(run, digests=digests, tensors=tensors), "native", tmp_path / "run")
    assert verdict.block == (10, 20)
    assert verdict.difference is None
    assert "shared by both" in verdict.narrowed
    assert "1.weight" in verdict.tensors


def test_a_published_file_comes_from_a_finished_folder(tmp_path: Path) -> None:
    config = replace(RUNS["mlp-digits"], steps=10, save_every=5)
    loop.run(config, tmp_path / "run")
    made = from_folder("small", tmp_path / "run")
    made.save(tmp_path)
    assert load_published("small", tmp_path) == made
    shipped = load_published("mlp-digits")
    assert dict(made.digests) == {step: shipped.digests[step] for step in (1, 2, 5, 10)}
    assert do_replay(made, "native", tmp_path / "again").passed
    (tmp_path / "small.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        load_published("small", tmp_path)


def test_other_hardware_or_data_than_published_is_refused(tmp_path: Path) -> None:
    run = load_published("mlp-digits")
    sections = json.loads(json.dumps(dict(run.sections)))
    sections["data"]["sha256"] = "0" * 64
    with pytest.raises(InputError, match=r"data\.sha256 is not what was published"):
        do_replay(replace(run, sections=sections), "native", tmp_path / "run")


@pytest.mark.parametrize(
    "arguments",
    [[], ["nothing"], ["mlp-digits", "--steps", "1001"], ["mlp-digits", "--data", "."],
     ["mlp-digits", "--backend", "native@tpu"]],
)  # fmt: skip
def test_bad_arguments_are_refused(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert main(["verify-run", *arguments, *out]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_list_names_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-run", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == sorted(RUNS)
