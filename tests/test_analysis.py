"""What an analysis measures: the four ways back, planted biases, the decomposition, bounds and histograms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from analysis_nets import Branches, batch, net

import fqtsim
from fqtsim.analysis.batch import ALL, BACKWARD, QUANTIZATION, Plan, all_ports, draw_of, measure_batch
from fqtsim.analysis.bounds import Meter, carried_steps, mixing_weights, variance_bound
from fqtsim.analysis.gradients import FIRST_DRAW, weight_gradients
from fqtsim.analysis.histograms import step_counts, step_histogram
from fqtsim.analysis.summary import biases, decomposition, variances
from fqtsim.analysis.tape import Tape, backward_as, gemm_layers, without_limits
from fqtsim.backends.device import DeviceEmulator
from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware

PLAN = Plan(tuple(range(12)), 2, bounds=4)
LAYERS = ["first", "main", "shortcut", "fc"]


def verdicts(network: fqtsim.fully_quantize, source: str, plan: Plan = PLAN) -> dict[tuple[str, str], str]:
    """Return the verdict of every gradient, from two batches."""
    parts = [measure_batch(network, *batch(seed=number), number, plan) for number in range(2)]
    rows = biases(parts, 0.01, 0.95)
    return {(row.layer, row.gemm): row.verdict for row in rows if row.source == source}


def test_a_tape_gives_what_autograd_gives_and_moves_nothing() -> None:
    one, other = net(), net()
    images, labels = batch()
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    tape = Tape.record(one, images, labels, 77)
    found = [tape.backward(77) for _ in range(2)][1]
    expected = weight_gradients(other, torch.from_numpy(images), labels, 77)
    assert set(expected) == set(LAYERS)
    for layer, gradient in expected.items():
        np.testing.assert_array_equal(found[layer, "wgrad"], gradient)
    assert {layer for layer, gemm in found if gemm == "dgrad"} == {"main", "shortcut", "fc"}
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_reference_is_the_gradient_of_qat() -> None:
    images, labels = batch()
    quantized = net("bhq5")
    tape = Tape.record(quantized, images, labels, 5)
    with backward_as(quantized, False, all_ports(quantized)):
        found = tape.backward(5)
    expected = weight_gradients(net("qat"), torch.from_numpy(images), labels, 5)
    for layer in LAYERS:
        np.testing.assert_array_equal(found[layer, "wgrad"], expected[layer])
    assert all(layer.quantizers["grad_for_dgrad"] is not None for layer in gemm_layers(quantized))


@pytest.mark.parametrize("recipe", ["ptq4", "psq5", "bhq5"])
def test_hardware_that_holds_every_sum_has_no_error_of_its_own(recipe: str) -> None:
    """Checked against a pass that really runs without limits, not against the shortcut."""
    network = net(recipe)
    tape = Tape.record(network, *batch(), 5)
    given = tape.backward(9)
    with backward_as(network, True, ()):
        wide = tape.backward(9)
        assert network.hardware["fc"].datapath_for("dgrad").accumulator.register == "int32"  # the net's own
        assert gemm_layers(network)[-1].hardware.datapath_for("dgrad").accumulator.register == "exact"
    for key, gradient in given.items():
        np.testing.assert_array_equal(gradient, wide[key])
    part = measure_batch(network, *batch(), 0, PLAN)
    assert not part.products(BACKWARD).gram.any()
    assert not part.products(BACKWARD).squares.any()
    np.testing.assert_array_equal(part.products(QUANTIZATION).gram, part.products(ALL).gram)
    assert not part.arrays["forward"].any()


def test_every_repeat_of_every_batch_has_random_words_of_its_own() -> None:
    draws = [draw_of(batch, repeat) for batch in (0, 1, 2, 32767) for repeat in (0, 1, 32767, 32768, 65535)]
    assert len(set(draws)) == len(draws)
    assert min(draws) == FIRST_DRAW
    assert max(draws) == (1 << 32) - 1
    with pytest.raises(InputError, match="batch = 32768, repeat = 0"):
        draw_of(32768, 0)


def test_without_limits_keeps_formats_and_zero_points() -> None:
    levels = "[{terms: all, item: {drop_bits: 4, rounding: toward_negative}, register: int16, overflow: saturate}]"
    changes = {"gemms.dgrad.zero_point": "before_multiply", "gemms.wgrad.levels": levels, "gemms.fprop.a": "uint8"}
    before = load_hardware("int8_acc32_wrap", changes)
    after = without_limits(before, ("dgrad", "wgrad"))
    for gemm in ("fprop", "dgrad", "wgrad"):
        one, other = before.datapath_for(gemm), after.datapath_for(gemm)
        assert (one.a, one.b, one.zero_point) == (other.a, other.b, other.zero_point)
        assert (other.levels == one.levels) == (gemm == "fprop")
    assert after.datapath_for("wgrad").dropped_bits == 0
    assert before.datapath_for("wgrad").dropped_bits == 4


@pytest.mark.parametrize("zero_point", ["before_multiply", "after_accumulate"])
def test_dropped_bits_are_the_hardwares_error_and_no_other(zero_point: str) -> None:
    levels = "[{terms: all, item: {drop_bits: 5, rounding: toward_negative}, register: int32, overflow: saturate}]"
    network = net("bhq5", set_hardware={"gemms.wgrad.levels": levels, "datapath.zero_point": zero_point})
    plain = net("bhq5", set_hardware={"datapath.zero_point": zero_point})
    found, exact = (measure_batch(one, *batch(), 0, PLAN) for one in (network, plain))
    np.testing.assert_array_equal(found.products(QUANTIZATION).gram, exact.products(QUANTIZATION).gram)
    wgrad, dgrad = slice(0, len(LAYERS)), slice(len(LAYERS), None)
    assert (found.products(BACKWARD).squares[wgrad] > 0).all()
    assert not found.products(BACKWARD).squares[dgrad].any()


@pytest.mark.parametrize("recipe", ["ptq5", "psq5", "bhq5"])
def test_an_unbiased_recipe_is_never_called_biased(recipe: str) -> None:
    network = net(recipe, set_hardware={"random.bits": "24"})
    assert "biased" not in verdicts(network, ALL).values()


def test_nearest_rounding_is_found_where_it_acts() -> None:
    found = verdicts(net("ptq4", set_recipe={"grad_for_dgrad.rounding": "ties_to_even"}), QUANTIZATION)
    below = [("main", "dgrad"), ("fc", "dgrad"), ("first", "wgrad"), ("main", "wgrad")]
    assert [found[place] for place in below] == ["biased"] * 4
    assert found["fc", "wgrad"] != "biased"  # no Q_b2 stands before it


def test_two_random_bits_are_found() -> None:
    network = net("ptq4", set_hardware={"random.bits": "2"})
    found = verdicts(network, QUANTIZATION, Plan(tuple(range(40)), 4, bounds=0))
    assert [found[layer, "dgrad"] for layer in ("main", "shortcut", "fc")] == ["biased"] * 3


def test_a_saturating_accumulator_is_found_and_told_apart() -> None:
    narrow = "[{terms: all, register: int12, overflow: saturate}]"
    network = net("bhq5", set_hardware={"gemms.wgrad.levels": narrow, "random.bits": "24"})
    found = verdicts(network, BACKWARD)
    assert [found[layer, "wgrad"] for layer in LAYERS] == ["biased"] * 4
    assert [found[layer, "dgrad"] for layer in LAYERS[1:]] == ["negligible"] * 3
    assert "biased" not in verdicts(network, QUANTIZATION).values()


def test_a_narrow_fprop_is_a_row_of_its_own() -> None:
    narrow = {"gemms.fprop.levels": "[{terms: all, register: int12, overflow: saturate}]", "random.bits": "24"}
    network = net("bhq5", set_hardware=narrow)
    part = measure_batch(network, *batch(), 0, PLAN)
    (images, labels), exact = batch(), net("qat")
    gradient = weight_gradients(exact, torch.from_numpy(images), labels, 0)
    narrowed = weight_gradients(net("qat", set_hardware=narrow), torch.from_numpy(images), labels, 0)
    expected = [np.sum((narrowed[layer] - gradient[layer]) ** 2) for layer in LAYERS]
    np.testing.assert_allclose(part.arrays["forward"][: len(LAYERS)], expected, rtol=1e-6)
    assert "biased" not in verdicts(network, ALL).values()


def brute_force(network: fqtsim.fully_quantize, off: list[tuple[str, str]], repeats: int) -> dict[str, float]:
    """Return each layer's variance over repeats with some ports float."""
    tape = Tape.record(network, *batch(), draw_of(0, (1 << 16) - 1))
    with backward_as(network, True, off):
        found = [tape.backward(draw_of(0, repeat)) for repeat in range(repeats)]
    return {
        layer: float(np.var(np.stack([one[layer, "wgrad"].astype(np.float64) for one in found]), 0, ddof=1).sum())
        for layer in LAYERS
    }


def test_the_decomposition_is_the_toggling_it_says_and_adds_up() -> None:
    network, repeats = net("ptq4"), 8
    parts = [measure_batch(network, *batch(), 0, Plan(tuple(range(repeats)), 1, bounds=0, decomposition=repeats))]
    rows = decomposition(parts)
    order = [(layer, port) for layer in LAYERS for port in ("grad_for_wgrad", "grad_for_dgrad")]
    states = [brute_force(network, order[:count], repeats) for count in range(len(order) + 1)]
    found = {(row.quantizer, row.port, row.layer): row for row in rows}
    for (quantizer, port), (before, after) in zip(order, pairwise(states), strict=True):
        for layer in LAYERS:
            lost = before[layer] - after[layer]
            row = found.get((quantizer, port, layer))
            if row is None:
                assert lost == 0
            else:
                assert row.variance == pytest.approx(lost, rel=1e-6, abs=1e-9 * before[layer])
                assert row.low <= row.variance <= row.high
    for layer, row in zip(LAYERS, variances(parts, [0.0] * len(LAYERS)), strict=True):
        total = sum(one.variance for one in rows if one.layer == layer)
        assert total == pytest.approx(row.quantization, rel=1e-9)


def test_parallel_branches_do_not_reach_each_other() -> None:
    parts = [measure_batch(net("bhq5"), *batch(), 0, Plan(tuple(range(8)), 1, decomposition=8))]
    found = {(row.quantizer, row.port, row.layer): row.variance for row in decomposition(parts)}
    assert found["shortcut", "grad_for_dgrad", "main"] == 0
    assert found["shortcut", "grad_for_dgrad", "first"] != 0


@pytest.mark.parametrize("name", ["ptq", "psq", "bhq"])
def test_bounds_of_the_papers_form(name: str) -> None:
    x = (
        np.random.default_rng(1).normal(size=(16, 40)).astype(np.float32)
        * np.logspace(0, -4, 16, dtype=np.float32)[:, None]
    )
    tensor = fqtsim.quantizer(name, 5, "stochastic", 24, "float_offset").quantize(x)
    ranges = np.ptp(x.astype(np.float64), axis=1)
    expected = {"ptq": x.size * np.ptp(x) ** 2, "psq": 40 * np.sum(ranges**2)}
    if name in expected:
        assert variance_bound(tensor) == pytest.approx(expected[name] / (4 * 31**2), rel=1e-5)
    else:
        weights = np.empty(16)
        for group in tensor.groups:
            n, s = len(group), tensor._mixing.s[group].astype(np.float64)
            c = 1 / (n - np.sqrt(n)) if n > 1 else 0.0
            q = np.eye(n) - c  # followers
            q[0, :] = q[:, 0] = 1 / np.sqrt(n)
            weights[group] = np.sum((q / s[:, None]) ** 2, axis=0)
        np.testing.assert_allclose(mixing_weights(tensor), weights, rtol=1e-5)
        assert variance_bound(tensor) == pytest.approx(
            np.sum(weights * tensor.step.astype(np.float64) ** 2) * 10, rel=1e-5
        )


def test_measured_variance_stays_below_its_bound_and_near_two_thirds_of_it() -> None:
    network = net("bhq5")
    tape = Tape.record(network, *batch(32), 5)
    meter = Meter(100, 16)
    tape.backward(5, meter)
    assert ("first", "grad_for_dgrad") not in meter.bounds  # its Q_b2 never runs
    for key, (measured, bound) in meter.bounds.items():
        assert 0.2 * bound < measured < bound, key


def test_looking_changes_no_gradient() -> None:
    network = net("bhq5")
    tape = Tape.record(network, *batch(), 5)
    plain, watched = tape.backward(9), tape.backward(9, Meter(100, 3))
    for key, gradient in plain.items():
        np.testing.assert_array_equal(gradient, watched[key])


@pytest.mark.parametrize("recipe", ["psq5", "bhq5"])
def test_a_device_tells_what_the_cpu_tells(recipe: str) -> None:
    """The device's own code, on the CPU: gradients of quantizers and hardware are the same to the bit."""
    narrow = {"gemms.wgrad.levels": "[{terms: all, register: int14, overflow: saturate}]"}
    plan = Plan(tuple(range(4)), 1, bounds=2, decomposition=4)
    host, device = net(recipe, set_hardware=narrow), net(recipe, set_hardware=narrow)
    device.set_backend(DeviceEmulator("cpu"))
    one, other = (measure_batch(network, *batch(), 0, plan) for network in (host, device))
    for name in (BACKWARD, "codes.0", "steps.1"):
        keys = [key for key in one.arrays if key.startswith(name)]
        assert keys
        for key in keys:
            np.testing.assert_array_equal(one.arrays[key], other.arrays[key], err_msg=key)
    # The reference is the platform's float GEMM, which adds in an order of its own.
    for key in ("reference", f"{QUANTIZATION}.squares", "pass 1.squares"):
        np.testing.assert_allclose(one.arrays[key], other.arrays[key], rtol=1e-3, atol=1e-12)
    assert one.info["events"] == other.info["events"]
    np.testing.assert_allclose([row[2:] for row in one.info["bounds"]], [row[2:] for row in other.info["bounds"]])


def test_histograms_count_every_element() -> None:
    network = net("psq5")
    tape = Tape.record(network, *batch(), 5)
    meter = Meter(100, 0)
    tape.backward(5, meter)
    for (layer, port), (codes, steps, _) in meter.counts.items():
        size = {"first": 12 * 4 * 36, "main": 12 * 6 * 9, "shortcut": 12 * 6 * 9, "fc": 12 * 5}[layer]
        assert codes.sum() == steps.sum() == size
        assert len(codes) == (256 if port == "grad_for_wgrad" else 32)
    counts = step_counts(np.array([1.0, 1.4, 1.5, 8.0]), 40)
    drawn = step_histogram("fc", "grad_for_dgrad", counts)
    assert (drawn.counts[0], drawn.counts[1], drawn.counts[-1]) == (20, 10, 10)
    np.testing.assert_allclose(drawn.edges[:3], [1, np.sqrt(2), 2])


def test_steps_of_mixed_rows_are_those_that_the_values_feel() -> None:
    x = np.random.default_rng(2).normal(size=(8, 64)).astype(np.float32)
    x[0] *= 1000
    tensor = fqtsim.quantizer("bhq", 4, "stochastic", 24).quantize(x)
    assert np.sum(carried_steps(tensor) ** 2) * 64 / 4 == pytest.approx(variance_bound(tensor))
    assert carried_steps(tensor).max() < 0.5 * np.ptp(x) / 15  # the large row's range is spread over all


def test_evaluation_mode_differentiates_with_running_statistics() -> None:
    torch.manual_seed(0)
    module = Branches()
    module.norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))
    module.norm.running_var.copy_(torch.tensor([2.0, 0.5, 1.5, 1.0]))
    images, labels = batch()
    network = fqtsim.fully_quantize(module, "fp32", "int8_acc32_wrap").eval()
    found = Tape.record(network, images, labels, 5).backward(5)
    module.eval()
    torch.nn.functional.cross_entropy(module(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
    for layer in LAYERS:
        expected = module.get_submodule(layer).weight.grad.numpy()
        np.testing.assert_allclose(found[layer, "wgrad"], expected, rtol=1e-4, atol=1e-6)


def test_what_has_nothing_to_analyse_is_refused() -> None:
    with pytest.raises(InputError, match="recipe = qat: leaves the gradients float"):
        fqtsim.analyze("mlp", "digits", "qat", "int8_acc32_wrap")
    for wrong, message in (
        ({"repeats": 3}, "repeats = range"),
        ({"batches": 0}, "batches = range"),
        ({"margin": 0.0}, "margin = 0.0"),
        ({"decomposition": 3}, "decomposition = 3"),
        ({"bounds": 1}, "bounds = 1"),
        ({"repeats": 10, "block": 5}, "block = 5"),
        ({"repeats": range(2, 12), "block": 4}, "block = 4"),
        ({"resume": True}, "resume: needs the folder"),
    ):
        with pytest.raises(InputError, match=message):
            fqtsim.analyze("mlp", "digits", "bhq5", "int8_acc32_wrap", **wrong)
