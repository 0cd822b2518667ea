"""The paper's experiments a and b at toy size: they run, go on where they ended, and say what the rows say."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fqtsim.errors import InputError
from fqtsim.recipe.load import load_recipe

PAPER = Path(__file__).resolve().parents[1] / "examples" / "paper"
sys.path.insert(0, str(PAPER))

import imagenet  # noqa: E402
import imagenet_data  # noqa: E402
import training  # noqa: E402
import training_gpu  # noqa: E402
import training_report as report  # noqa: E402
import variance  # noqa: E402
import variance_measure  # noqa: E402
import variance_report  # noqa: E402

NETWORKS = str(PAPER / "networks.py")
HOLE = "step 3: layer 'conv': the authors' PTQ has no step here: its zero is at code 0, NaN in their code"


def row(seed: int, losses: list[float], status: str = "done", message: str = "") -> dict[str, Any]:
    return {
        "seed": seed, "status": status, "message": message, "steps": 8, "failed_step": len(losses),
        "losses": [[step + 1, loss] for step, loss in enumerate(losses)], "accuracy": 0.5, "digest": "0" * 64,
    }  # fmt: skip


def test_the_middle_of_a_run_is_compared_and_runs_that_ended_before_it_are_not() -> None:
    assert report.middle_loss(row(0, [9, 9, 1, 2, 3, 4, 9, 9])) == 2.5
    assert report.middle_loss(row(0, [9, 9, 1, 2, 3], "diverged")) is None
    assert report.last_loss(row(0, [9, 9, 1, 2, 3, 4, 5, 7])) == 6
    assert report.last_loss(row(0, [9, 9, 1, 2, 3, 4, 5], "diverged")) is None


def test_differences_are_paired_over_seeds() -> None:
    runs = {
        "qat": {seed: row(seed, [float(seed)] * 8) for seed in range(5)},
        "ptq4": {seed: row(seed, [seed + 0.2 + 0.01 * (-1) ** seed] * 8) for seed in range(5)},
    }
    found = report.difference(runs, "ptq4", "qat")
    # Unpaired, the seeds' own spread (1.58) would hide it. t(0.975, 4) = 2.776, deviation 0.01095.
    assert found.mean == pytest.approx(0.202)
    assert found.half == pytest.approx(2.7764 * 0.010954 / math.sqrt(5), rel=1e-3)
    assert found.says == "above"
    assert report.difference(runs, "qat", "ptq4").says == "below"


def test_the_hole_of_the_authors_formula_is_told_from_divergence() -> None:
    runs = {
        0: row(0, [1.0] * 8),
        1: row(1, [1.0] * 3, "diverged", HOLE),
        2: row(2, [1.0] * 3, "diverged", "step 3: the loss: NaN or infinity"),
    }
    assert report.ended(runs) == {"done": [0], "hole": [1], "diverged": [2], "failed": []}
    text = "\n".join(report.notes({"authors_ptq4": runs}, []))
    assert "authors_ptq4: the authors' formula has no step (NaN in their code): seed 1 at step 3" in text
    assert "authors_ptq4: diverged: seed 2 at step 3" in text


def test_the_expected_order_is_judged_link_by_link() -> None:
    levels = {"qat": 1.0, "ptq4": 1.5, "ptq5": 1.2, "psq4": 1.3, "bhq4": 1.1, "psq5": 1.0, "bhq5": 2.0}
    runs = {
        name: {seed: row(seed, [level + 0.001 * seed * len(name)] * 8) for seed in range(5)}
        for name, level in levels.items()
    }
    links = {(link["larger"], link["smaller"]): link["is"] for link in report.orders(runs)}
    assert links == {("ptq4", "ptq5"): "above", ("ptq5", "psq4"): "below", ("psq4", "bhq4"): "above"}
    assert {one["recipe"]: one["is"] for one in report.unlike_qat(runs)}["bhq5"] == "above"
    first, second, third = report.outcomes(report.orders(runs), report.unlike_qat(runs), report.alignment(runs))
    assert "ptq5 > psq4 is reversed" in first
    assert "not bhq5" in second or "bhq5 +1" in second
    assert third == "not measured."


def test_the_authors_logs_are_those_of_the_facts() -> None:
    excess = report.authors_excess()
    # Training loss after epoch 10: QAT 0.444, PTQ4 0.555, PSQ4 0.468, BHQ4 0.443.
    assert excess["ptq", 4] == pytest.approx(0.555 - 0.444, abs=1e-3)
    assert excess["psq", 4] == pytest.approx(0.468 - 0.444, abs=1e-3)
    assert excess["bhq", 4] == pytest.approx(0.443 - 0.444, abs=1e-3)
    curves = training_gpu.authors()
    assert len(curves) == 17
    assert len(curves["qat", ""]) == 200
    assert curves["ptq", "4"][-1][0] == 31  # NaN from epoch 31 of 0..199 on


def test_the_sweep_has_every_recipe_once() -> None:
    names = training.recipes()
    assert len(names) == len(set(names)) == 2 + 2 * 15 + 5
    assert {"fp32", "qat", "ptq8", "bhq4", "psq6_offset"} <= set(names)
    assert [load_recipe(name).name for name in names] == names  # each ships


def test_a_small_sweep_runs_goes_on_and_is_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--out", str(tmp_path), "--data", "digits", "--model", f"{NETWORKS}:quarter_resnet8", "--recipes"]
    small = ["--seeds", "2", "--steps", "4", "--batch", "8", "--workers", "1"]
    assert training.main([*options, "qat", "ptq4", *small]) == 0
    assert training.main([*options, "qat", "ptq4", *small]) == 0
    assert "7 of 7 found finished" in capsys.readouterr().out  # three rates, two recipes of two seeds
    plain = json.loads((tmp_path / "paper_training.json").read_text(encoding="utf-8"))
    assert [one["recipe"] for one in plain["summary"]] == ["qat", "ptq4"]
    digests = [run["digest"] for run in plain["runs"]]
    assert len(set(digests)) == 4
    assert all(len(digest) == 64 for digest in digests)
    page = (tmp_path / "paper_training.md").read_text(encoding="utf-8")
    assert "| ptq4 | aligned | 2 done |" in page
    assert (tmp_path / "paper_training.svg").read_bytes().startswith(b"<?xml")


def test_a_small_variance_figure_is_measured_and_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--out", str(tmp_path), "--data", "digits", "--model", "resnet8", "--steps", "1", "--batch", "8"]
    options += ["--batches", "2", "--lines", "2", "--repeats", "3", "--workers", "1"]
    assert variance.main([*options, "--zeros", "aligned", "--bits", "8", "4"]) == 0
    (tmp_path / "paper_variance.json").unlink()
    assert variance.main([*options, "--zeros", "aligned", "--bits", "8", "4"]) == 0
    assert "8 of 8 found finished" in capsys.readouterr().out  # two lines, three quantizers of two widths
    plain = json.loads((tmp_path / "paper_variance.json").read_text(encoding="utf-8"))
    mean = {tuple(part["point"]): np.mean(part["squares"]) for part in plain["parts"]}
    # Q_b1 is the same in all: Q_b2 of 8 bits adds a little to it, of 4 bits about (255 / 15)^2 times that.
    alone = mean["none", "", 0]
    assert 0 < alone < mean["psq", "aligned", 8] < mean["psq", "aligned", 4] < mean["between", "", 0]
    assert 100 < (mean["psq", "aligned", 4] - alone) / (mean["psq", "aligned", 8] - alone) < 800
    assert [row["bits"] for row in plain["ratios"]] == []  # of neighbouring widths only
    assert "| PSQ | aligned |" in (tmp_path / "paper_variance.md").read_text(encoding="utf-8")


def test_only_convolutions_of_blocks_are_summed() -> None:
    layers = ("conv", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.shortcut", "fc")
    gradients = {
        (layer, gemm): np.full((2, 3), place) for place, layer in enumerate(layers) for gemm in ("wgrad", "dgrad")
    }
    assert variance_measure.block_convolutions(gradients).tolist() == [1.0] * 6 + [2.0] * 6


def made_up(level: float) -> dict[str, Any]:
    return {"squares": [level, level * 1.01, level * 0.99], "repeats": 30, "holes": 0, "message": ""}


def test_what_one_bit_costs_is_told_without_the_part_of_the_other_quantizer() -> None:
    parts = {("none", "", 0): made_up(5.0)}
    parts |= {("psq", "aligned", bits): made_up(5.0 + 4.25 ** (8 - bits)) for bits in range(4, 9)}
    assert [one["ratio"] for one in variance_report.ratios(parts)] == pytest.approx([4.25] * 4)


def test_the_variance_page_says_what_is_against_the_hypotheses(tmp_path: Path) -> None:
    parts = {("between", "", 0): made_up(1.0), ("none", "", 0): made_up(1e-6)}
    for zero, factor in (("aligned", 0.5), ("float_offset", 1.0)):
        for name, level in (("ptq", 1e-2), ("psq", 1e-3), ("bhq", 1e-4)):
            parts |= {(name, zero, bits): made_up(1e-6 + factor * level * 4 ** (8 - bits)) for bits in range(4, 9)}
    ratios, order, line, forms = variance_report.outcomes(parts)
    assert ratios == "24 of 24 ratios lie in 3.5..5."
    assert order == "20 of 20 hold."
    assert line == "above the variance between batches: ptq4 aligned, ptq4 float_offset."
    assert "ptq4 aligned 2.00 [2.00, 2.00]" in forms
    parts["bhq", "aligned", 4] = made_up(0.9)
    ratios, order, *_ = variance_report.outcomes(parts)
    assert "outside: bhq4 aligned" in ratios
    assert order.startswith("19 of 20 hold: not psq4 aligned / bhq4 aligned = 0.14")
    parts["ptq", "authors", 4] = made_up(0.9) | {"squares": [None, None, 0.9], "holes": 20, "message": HOLE}
    text = "\n".join([*variance_report.table(parts), *variance_report.notes(parts)])
    assert "(NaN hole in 20 of 30 repeats)" in text
    variance_report.figure(parts, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 10_000


def test_the_gpu_sweep_takes_turns_resumes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--out",
        str(tmp_path),
        "--data",
        "digits",
        "--backend",
        "emulator",
        "--model",
        f"{NETWORKS}:quarter_resnet8",
    ]
    options += ["--arms", "qat", "bhq4", "--batch", "700", "--cosine", "3"]
    assert training_gpu.main([*options, "--epochs", "1"]) == 0
    assert training_gpu.main([*options, "--epochs", "2"]) == 0
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "train_loss" in line]
    assert said == ["qat", "bhq4", "qat", "bhq4"]
    arms = json.loads((tmp_path / "paper_training_gpu.json").read_text(encoding="utf-8"))["arms"]
    assert [[entry["epoch"] for entry in arm["curve"]] for arm in arms.values()] == [[1, 2], [1, 2]]
    page = (tmp_path / "paper_training_gpu.md").read_text(encoding="utf-8")
    assert "| bhq4 | aligned | 2 |" in page
    assert "1.056 / 57.2" in page  # the authors' BHQ4 after epoch 2
    assert (tmp_path / "paper_training_gpu.svg").is_file()
    whole = tmp_path / "whole"
    assert training_gpu.main([*options, "--epochs", "2", "--out", str(whole)]) == 0
    again = json.loads((whole / "paper_training_gpu.json").read_text(encoding="utf-8"))["arms"]
    assert again["bhq4"]["curve"][1]["digest"] == arms["bhq4"]["curve"][1]["digest"]
    with pytest.raises(SystemExit, match="give the same options"):
        training_gpu.main([*options, "--epochs", "2", "--seed", "1"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of noise of different brightness, 24 x 20 pixels."""
    image = pytest.importorskip("PIL.Image", reason="pillow decodes image folders")
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for number, name in enumerate(("n01", "n02")):
            (tmp_path / split / name).mkdir(parents=True)
            for one in range(count):
                pixels = generator.integers(100 * number, 100 + 100 * number, (20, 24, 3), np.uint8)
                image.fromarray(pixels).save(tmp_path / split / name / f"{one}.png")
    return tmp_path


def test_imagenet_trains_on_a_folder_and_resumes_exactly(folder: Path) -> None:
    def digest(out: str, *steps: str) -> str:
        options = [
            "--data",
            str(folder),
            "--out",
            str(folder / out),
            "--backend",
            "emulator",
            "--batch",
            "4",
            "--side",
            "16",
        ]
        options += ["--model", f"{NETWORKS}:quarter_resnet8", "--epochs", "2", "--warmup", "1", "--threads", "1"]
        for count in steps:
            assert imagenet.main([*options, "--steps", count]) == 0
        results = json.loads((folder / out / "results.json").read_text(encoding="utf-8"))
        assert [entry["epoch"] for entry in results["epochs"]] == [1, 2]
        return str(results["digest"])

    assert digest("whole", "4") == digest("parts", "1", "3", "4")


def test_a_folder_without_images_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="has no folders: must hold one a class"):
        imagenet_data.ImageFolder.open(tmp_path / "nothing", 16)
    (folder / "val" / "n03").mkdir()
    with pytest.raises(InputError, match="no such class in train"):
        imagenet_data.ImageFolder.open(folder, 16)


def test_random_crops_have_the_areas_and_ratios_of_the_paper() -> None:
    uniform = np.random.default_rng(1).random((2000, 41))
    boxes = np.array([imagenet_data.crop_box(500, 375, one) for one in uniform])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 500).all()
    assert (bottom <= 375).all()
    width, height = right - left, bottom - top
    area, ratio = width * height / (500 * 375), width / height
    assert 0.075 < area.min() < 0.1
    assert area.max() > 0.9
    assert 0.74 < ratio.min() < 0.78
    assert 1.28 < ratio.max() < 1.35


def test_the_rate_warms_up_by_the_epoch_and_falls_by_a_cosine() -> None:
    from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
    from fqtsim.train.schedule import as_schedule

    rate = imagenet.WarmedUp(0.4, as_schedule({"name": "constant"}), steps_per_epoch=10, warmup=2, epochs=12)
    found = [float(rate.at(step, DEFAULT_PRIMITIVES)) for step in (0, 9, 10, 20, 70, 119)]
    assert found == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.2, 0.2 * (1 + math.cos(0.9 * math.pi))])


def test_resnet50_has_the_published_number_of_weights() -> None:
    import imagenet_networks

    from fqtsim.data import DataInfo

    net = imagenet_networks.ResNet50(DataInfo((3, 224, 224), 1000))
    assert sum(parameter.numel() for parameter in net.parameters()) == 25_557_032
