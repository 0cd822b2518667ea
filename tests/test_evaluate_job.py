"""One run of an evaluation: its name, its row, and what is measured at the trained weights."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fqtsim
from fqtsim.analysis.gradients import gradient_noise
from fqtsim.data import load_dataset
from fqtsim.data.batches import training_batch
from fqtsim.evaluate.histogram import sampled_partial_sums
from fqtsim.evaluate.job import Job, Measure, build, hardware_of, run_job, thinned, with_seed
from fqtsim.models import build_model
from fqtsim.recipe.load import load_recipe
from fqtsim.train.config import TrainConfig, build_trainer, resolve
from fqtsim.train.loop import run

CONFIG = TrainConfig(
    model="mlp", data="digits", recipe="bhq5", hardware=("int8_acc16_saturate",), steps=4, batch=32, seed=5
)
DATA = load_dataset("digits")


def test_the_row_is_that_of_the_same_run_of_train(tmp_path: Any) -> None:
    row = run_job(Job.of(CONFIG))
    result = run(CONFIG, tmp_path / "run")
    assert row["status"] == "done"
    assert row["digest"] == result.digest.split()[0]
    assert row["accuracy"] == result.accuracy
    assert row["events"] == json.loads((tmp_path / "run" / "events.json").read_text())["layers"]
    right = np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), np.uint8))[: row["tested"]]
    assert right.mean() == row["accuracy"]


def test_a_row_survives_json_and_gives_its_hardware_back() -> None:
    row = json.loads(json.dumps(run_job(Job.of(CONFIG, Measure(0, 0, 0)))))
    (hardware,) = hardware_of(row).values()
    assert hardware.datapath == fqtsim.load_hardware("int8_acc16_saturate").datapath
    assert hardware.gemms == fqtsim.load_hardware("int8_acc16_saturate").gemms


def test_the_key_names_what_decides_the_row_and_nothing_else() -> None:
    key = Job.of(CONFIG).key
    assert Job.of(replace(CONFIG, backend="stepwise", save_every=7)).key == key
    others = [
        with_seed(CONFIG, 6), replace(CONFIG, steps=5), replace(CONFIG, batch=33), replace(CONFIG, recipe="psq5"),
        replace(CONFIG, hardware=("int8_acc20_tree4",)), replace(CONFIG, model="cnn"),
        replace(CONFIG, set_hardware={"random.bits": "5"}), replace(CONFIG, set_recipe={"optimizer.lr": "0.3"}),
    ]  # fmt: skip
    keys = {Job.of(other).key for other in others} | {Job.of(CONFIG, Measure(draws=9)).key}
    assert len(keys) == len(others) + 1
    assert key not in keys


def test_a_run_that_meets_infinity_is_a_row() -> None:
    config = replace(CONFIG, set_recipe={"optimizer.lr": "10000", "optimizer.weight_decay": "10000"}, steps=60)
    row = run_job(Job.of(config))
    assert row["status"] == "diverged"
    assert row["failed_step"] == len([1 for _ in row["losses"]])
    assert "NaN or infinity" in row["message"] or "finite" in row["message"]
    assert row["accuracy"] is None
    assert row["events"]


def test_labels_are_short_and_tell_designs_apart() -> None:
    design = Job.of(replace(CONFIG, set_hardware={"datapath.levels.-1.register": "int18"})).design
    assert design.label == "bhq5 on int8_acc16_saturate register=int18"
    assert Job.of(replace(CONFIG, recipe="fp32")).design.label == "fp32"


@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 1000])
def test_loss_curves_are_thinned_to_means(count: int) -> None:
    losses = [float(i) for i in range(count)]
    points = thinned(losses)
    assert len(points) == min(count, 200)
    steps = [step for step, _ in points]
    assert steps == sorted(set(steps))
    if count:
        assert steps[-1] == count
        assert points[0][1] == np.mean(losses[: int(steps[0])])


def _net(recipe: Any, hardware: Any = "int8_acc32_wrap") -> Any:
    return fqtsim.fully_quantize(build_model("mlp", DATA.info, 0), recipe, hardware, seed=0)


def _noise(recipe: str, hardware: str = "int8_acc32_wrap", draws: int = 8, **changes: str) -> dict[str, Any]:
    described = load_recipe(recipe, changes or None)
    exact = described.model_copy(update={"grad_for_wgrad": "float", "grad_for_dgrad": "float"})
    batches = [training_batch(DATA, 0, step, 32) for step in range(2)]
    found = gradient_noise(_net(described, hardware), _net(exact, hardware), batches, draws)
    return {one.layer: one for one in found}


def test_stochastic_rounding_has_variance_and_hardly_a_bias() -> None:
    for noise in _noise("psq5").values():
        assert noise.variance > 0
        assert abs(noise.bias) < noise.variance


def test_rounding_to_nearest_has_bias_and_no_variance() -> None:
    changes = {f"{port}.rounding": "ties_to_even" for port in ("grad_for_wgrad", "grad_for_dgrad")}
    for noise in _noise("ptq4", **changes).values():
        assert noise.variance == 0
        assert noise.bias > 0


def test_fewer_bits_have_more_variance() -> None:
    fine, coarse = _noise("psq8"), _noise("psq4")
    assert coarse["1"].variance > 10 * fine["1"].variance


def test_a_saturating_accumulator_biases_gradients() -> None:
    assert _noise("psq8", "int8_acc12_saturate")["1"].bias > 0.1


def test_partial_sums_are_those_of_the_operands() -> None:
    """Outputs of a small layer are all sampled, many times over: the bins hold the sums that occur, and no others."""
    net, seen = _net("ptq8", "int8_acc16_saturate"), {}
    images, labels = training_batch(DATA, 0, 0, 4)

    def keep(layer: str, gemm: str, a: Any, b: Any, *_: Any) -> None:
        seen[layer, gemm] = np.cumsum(a.astype(np.int64)[:, :, None] * b.astype(np.int64)[None], axis=1)

    net.observers.append(keep)
    found = sampled_partial_sums(net, (images, labels), 4000, 0)
    assert {(one.layer, one.gemm) for one in found} == set(seen)
    for one in found:
        sums = seen[one.layer, one.gemm]
        assert sum(one.counts) == 4000 * sums.shape[1]
        assert one.edges[0] <= sums.max()
        assert one.edges[-1] > sums.min()
        if sums.shape[0] * sums.shape[2] < 400:  # then 4,000 draws meet every output
            assert one.edges[0] <= sums.min() < one.edges[1]
            assert one.edges[-2] <= sums.max() < one.edges[-1]
        assert one.rails == (-32768, 32767)


def test_measuring_leaves_the_run_as_it_was() -> None:
    plain = Job.of(CONFIG).plain
    trainer = build(plain, DATA)
    other = build_trainer(resolve(CONFIG))
    for step in range(4):
        images, labels = training_batch(DATA, 5, step, 32)
        for one in (trainer, other):
            one.step(torch.from_numpy(images), torch.from_numpy(labels))
    assert trainer.digest().hex == other.digest().hex == run_job(Job.of(CONFIG))["digest"]
