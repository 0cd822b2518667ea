"""Float offsets behind integer hardware (S5.8), against sums over the valid terms, taken one by one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import fqtsim
from fqtsim import streams
from fqtsim.backends import get_backend
from fqtsim.backends.device import DeviceEmulator
from fqtsim.crosscheck import crosscheck
from fqtsim.data import load_dataset
from fqtsim.data.batches import training_batch
from fqtsim.errors import InputError
from fqtsim.hw.load import parse_hardware
from fqtsim.models import build_model
from fqtsim.recipe.load import load_recipe
from fqtsim.train import functional, lowering
from fqtsim.train.config import TrainConfig
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Window
from fqtsim.train.operands import Operand, encoded
from fqtsim.train.run import Run
from fqtsim.words import IntFormat, ZeroPoint

DATAPATH = """
schema: 1
name: offsets
summary: one accumulator of some width
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: {zero_point}
  levels: [{{terms: all, register: {register}, overflow: saturate}}]
random: {{generator: philox4x32-10, bits: 16}}
"""
CASES = [
    # (groups, kernel, stride, before, after, dilation, size)
    (1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (4, 5)),
    (1, (3, 2), (2, 3), (1, 0), (1, 0), (1, 2), (5, 7)),
    (1, (3, 3), (3, 2), (2, 2), (2, 2), (2, 2), (5, 6)),
    (1, (2, 3), (1, 1), (0, 1), (1, 1), (1, 1), (4, 4)),
    (2, (3, 3), (2, 1), (1, 1), (1, 1), (1, 1), (4, 5)),
    (4, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), (4, 4)),
    (1, (1, 1), (2, 2), (0, 0), (0, 0), (1, 1), (5, 4)),
    (1, (2, 2), (3, 3), (0, 0), (0, 0), (1, 1), (6, 6)),
]
ZERO_POINTS = (ZeroPoint.AFTER_ACCUMULATE, ZeroPoint.BEFORE_MULTIPLY)


class Terms(defaultdict[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...]]]]):
    """Per output, the indices into a and b of each of its valid terms."""

    def __init__(self) -> None:
        super().__init__(list)


def machine(zero_point: ZeroPoint = ZeroPoint.AFTER_ACCUMULATE, register: str = "int32") -> fqtsim.Hardware:
    return parse_hardware(DATAPATH.format(zero_point=zero_point.value, register=register))


def gemm(name: str, hardware: fqtsim.Hardware | None = None) -> Gemm:
    return Gemm("layer", name, (hardware or machine()).datapath_for(name), Run(get_backend("emulator"), 0))


def tensor(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str, bits: int = 6, zero: str = "float_offset"
) -> fqtsim.QTensor:
    """Quantize values whose rows differ in size, and lie beside zero where there is an offset."""
    sizes = (10.0 ** rng.integers(-2, 2, shape[0])).reshape(-1, *(1,) * (len(shape) - 1))
    values = ((rng.standard_normal(shape) + rng.choice([0.0, 2.5])) * sizes).astype(np.float32)
    return fqtsim.quantizer(kind, bits, "stochastic", 16, zero, "int8").quantize(values)


def number(values: Any, index: tuple[int, ...]) -> float:
    """Return the element of a per-row array that belongs to an index of the tensor."""
    array = np.asarray(values)
    return float(array[index[0]] if array.ndim else array)


def expected(a: Operand, b: Operand, terms: Terms, shape: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], float]:
    """Return the results by the words of S5.8, and the largest error beside the exact sum of products of values.

    The error is in units of what one rounding to float32 and the roundings of four float64 terms may cost.
    """
    out, worst = np.zeros(shape, np.float32), Fraction(0)
    for index, met in terms.items():
        first, second = met[0]
        sa, sb = number(a.step, first), number(b.step, second)
        oa = None if a.offset is None else number(a.offset, first)
        ob = None if b.offset is None else number(b.offset, second)
        left = [int(a.codes[i]) - int(number(a.zero_point, i)) for i, _ in met]
        right = [int(b.codes[j]) - int(number(b.zero_point, j)) for _, j in met]
        total = float(sum(p * q for p, q in zip(left, right, strict=True))) * (sa * sb)
        size = abs(total)
        parts = []
        if oa is not None:
            parts.append(float(sum(right)) * (oa * sb))
        if ob is not None:
            parts.append(float(sum(left)) * (ob * sa))
        if oa is not None and ob is not None:
            parts.append(float(len(met)) * (oa * ob))
        for part in parts:
            total, size = total + part, size + abs(part)
        out[index] = np.float32(total)
        if sum(index) % 3:  # exact fractions are slow: every third result
            continue
        values_a = [Fraction(sa) * p + Fraction(oa or 0) for p in left]
        values_b = [Fraction(sb) * q + Fraction(ob or 0) for q in right]
        exact = sum((p * q for p, q in zip(values_a, values_b, strict=True)), Fraction(0))
        allowed = abs(exact) / 2**24 + Fraction(size) / 2**50 + Fraction(1, 2**149)
        worst = max(worst, abs(Fraction(float(out[index])) - exact) / allowed)
    return out, float(worst)


def conv_terms(case: tuple[Any, ...], samples: int, channels: int, outputs: int) -> tuple[Terms, Terms, Terms]:
    """Return the terms of fprop (x, w), dgrad (dh, w) and wgrad (x, dh), from the definition of a convolution."""
    groups, kernel, stride, before, _, dilation, size = case
    oh, ow = window(case).positions(size)
    fprop, dgrad, wgrad = Terms(), Terms(), Terms()
    each_in, each_out = channels // groups, outputs // groups
    for n, co, i, j, c, u, v in np.ndindex(samples, outputs, oh, ow, each_in, *kernel):
        h, w = i * stride[0] - before[0] + u * dilation[0], j * stride[1] - before[1] + v * dilation[1]
        if 0 <= h < size[0] and 0 <= w < size[1]:
            x, weight, dh = (n, co // each_out * each_in + c, h, w), (co, c, u, v), (n, co, i, j)
            fprop[dh].append((x, weight))
            dgrad[x].append((dh, weight))
            wgrad[weight].append((x, dh))
    return fprop, dgrad, wgrad


def window(case: tuple[Any, ...]) -> Window:
    return Window(*case[1:6])


def check(found: Any, a: Operand, b: Operand, terms: Terms) -> None:
    out, worst = expected(a, b, terms, found.shape)
    assert found.dtype == np.float32
    assert np.array_equal(found, out)
    assert worst <= 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_convolutions_of_tensors_with_offsets(case: tuple[Any, ...], zero_point: ZeroPoint) -> None:
    """Both operands, each alone, rows of their own; every zero-point word; all three GEMMs, bit for bit."""
    groups, kernel, _, _, _, _, size = case
    rng, hardware, port = np.random.default_rng(3), machine(zero_point), IntFormat(8, True)
    oh, ow = window(case).positions(size)
    fprop, dgrad, wgrad = conv_terms(case, 2, 4, 4)

    def operand(shape: tuple[int, ...], kind: str, zero: str) -> Operand:
        return encoded(tensor(rng, shape, kind, 6, zero), port, zero_point)

    for kinds, zeros in (
        (("ptq", "ptq", "ptq"), ("float_offset", "float_offset", "float_offset")),
        (("psq", "psq", "psq"), ("float_offset", "float_offset", "float_offset")),
        (("psq", "ptq", "bhq"), ("float_offset", "aligned", "float_offset")),
        (("ptq", "psq", "psq"), ("aligned", "float_offset", "aligned")),
    ):
        x, w = operand((2, 4, *size), kinds[0], zeros[0]), operand((4, 4 // groups, *kernel), kinds[1], zeros[1])
        dh = operand((2, 4, oh, ow), kinds[2], zeros[2])
        check(functional.conv_fprop(x, w, window(case), groups, gemm("fprop", hardware)), x, w, fprop)
        whole = w if kinds[1] == "ptq" else operand(w.codes.shape, "ptq", zeros[1])
        dx = functional.conv_dgrad(dh, whole, window(case), groups, size, gemm("dgrad", hardware))
        check(dx, dh, whole, dgrad)
        x = x if kinds[0] == "ptq" else operand(x.codes.shape, "ptq", zeros[0])
        dh = dh if kinds[2] == "ptq" else operand(dh.codes.shape, "ptq", zeros[2])
        check(functional.conv_wgrad(x, dh, window(case), groups, gemm("wgrad", hardware)), x, dh, wgrad)


def linear_terms(shape: tuple[int, ...], outputs: int) -> tuple[Terms, Terms, Terms]:
    fprop, dgrad, wgrad = Terms(), Terms(), Terms()
    for *place, c, o in np.ndindex(*shape, outputs):
        x, dh, w = (*place, c), (*place, o), (o, c)
        fprop[dh].append((x, w))
        dgrad[x].append((dh, w))
        wgrad[w].append((x, dh))
    return fprop, dgrad, wgrad


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 6)])
@pytest.mark.parametrize("zero_point", ZERO_POINTS)
@pytest.mark.parametrize("zeros", [("float_offset", "float_offset"), ("float_offset", "aligned"),
                                   ("aligned", "float_offset")])  # fmt: skip
def test_linear_products_of_tensors_with_offsets(
    shape: tuple[int, ...], zero_point: ZeroPoint, zeros: tuple[str, str]
) -> None:
    rng, hardware, port = np.random.default_rng(5), machine(zero_point), IntFormat(8, True)
    fprop, dgrad, wgrad = linear_terms(shape, 6)

    def operand(of: tuple[int, ...], kind: str, zero: str) -> Operand:
        return encoded(tensor(rng, of, kind, 6, zero), port, zero_point)

    for kind in ("ptq", "psq"):
        x, w = operand(shape, kind, zeros[0]), operand((6, shape[-1]), kind, zeros[1])
        check(functional.linear_fprop(x, w, gemm("fprop", hardware)), x, w, fprop)
    x, w = operand(shape, "ptq", zeros[0]), operand((6, shape[-1]), "ptq", zeros[1])
    for kind in ("ptq", "psq", "bhq"):
        dh = operand((*shape[:-1], 6), kind, zeros[0])
        check(functional.linear_dgrad(dh, w, gemm("dgrad", hardware)), dh, w, dgrad)
    dh = operand((*shape[:-1], 6), "ptq", zeros[1])
    check(functional.linear_wgrad(x, dh, gemm("wgrad", hardware)), x, dh, wgrad)


def _saturated(codes_a: list[int], codes_b: list[int], low: int, high: int) -> int:
    total = 0
    for p, q in zip(codes_a, codes_b, strict=True):
        total = min(max(total + p * q, low), high)
    return total


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_the_correction_comes_after_a_saturating_accumulator(zero_point: ZeroPoint) -> None:
    """Only t0 saturates: the sums of the offset are exact and no event is theirs."""
    bits = 12 if zero_point is ZeroPoint.BEFORE_MULTIPLY else 18  # stored codes of one sign do not cancel
    rng, hardware = np.random.default_rng(11), machine(zero_point, f"int{bits}")
    dh = encoded(tensor(rng, (4, 3, 5, 5), "psq", 8), IntFormat(8, True), zero_point)
    w = encoded(tensor(rng, (3, 2, 3, 3), "ptq", 8, "aligned"), IntFormat(8, True), zero_point)
    case = (1, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), (9, 9))
    chosen = gemm("dgrad", hardware)
    seen: list[tuple[Any, Any]] = []
    chosen.run.observers.append(lambda *call: seen.append((call[2], call[3])))
    found = functional.conv_dgrad(dh, w, window(case), 1, (9, 9), chosen)
    _, terms, _ = conv_terms(case, 4, 2, 3)
    a, b = (codes.astype(int).tolist() for codes in (seen[0][0], seen[0][1].T))
    altered = 0
    zb = int(w.zero_point)
    for index in np.ndindex(found.shape):
        n, c, h, v = index
        left, right, za = a[(n * 9 + h) * 9 + v], b[c], int(dh.zero_point[n])
        acc = _saturated(left, right, -(1 << bits - 1), (1 << bits - 1) - 1)
        altered += acc != sum(p * q for p, q in zip(left, right, strict=True))
        value = acc - za * sum(right) - zb * sum(left) + len(left) * za * zb
        met = sum(int(w.codes[j]) - zb for _, j in terms[index])
        sa, oa, sb = number(dh.step, (n,)), number(dh.offset, (n,)), float(w.step)  # type: ignore[arg-type]
        assert found[index] == np.float32(float(value) * (sa * sb) + float(met) * (oa * sb))
    assert 0 < altered == chosen.run.records["layer", "dgrad"].events.altered < found.size
    plain = functional.conv_dgrad(Operand(dh.codes, dh.step, dh.zero_point), w, window(case), 1, (9, 9), chosen)
    assert not np.array_equal(plain, found)


def test_a_larger_convolution_is_that_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch in float64, whole and a group at a time: which part is lowered when must not matter."""
    rng, port, after = np.random.default_rng(2), IntFormat(8, True), ZeroPoint.AFTER_ACCUMULATE
    case = (4, (3, 3), (2, 1), (1, 1), (1, 1), (1, 2), (15, 17))
    x, w, dh = (tensor(rng, shape, "ptq", 8) for shape in ((6, 8, 15, 17), (12, 2, 3, 3), (6, 12, 8, 15)))
    xv, wv = (torch.from_numpy(t.dequantize()).double().requires_grad_() for t in (x, w))
    y = F.conv2d(xv, wv, None, (2, 1), (1, 1), (1, 2), 4)
    y.backward(torch.from_numpy(dh.dequantize()).double())  # type: ignore[no-untyped-call]
    operands = [encoded(t, port, after) for t in (x, w, dh)]
    for most in (functional.MOST_BYTES, 1):
        monkeypatch.setattr(functional, "MOST_BYTES", most)
        for ours, theirs in zip(_three(operands, case), (y, xv.grad, wv.grad), strict=True):
            assert theirs is not None
            exact = theirs.detach().numpy()
            np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=2e-6 * float(np.abs(exact).max()))


def _three(operands: list[Operand], case: tuple[Any, ...]) -> list[Any]:
    x, w, dh = operands
    return [
        functional.conv_fprop(x, w, window(case), case[0], gemm("fprop")),
        functional.conv_dgrad(dh, w, window(case), case[0], case[-1], gemm("dgrad")),
        functional.conv_wgrad(x, dh, window(case), case[0], gemm("wgrad")),
    ]


def test_the_masks_count_the_terms_that_are_no_holes() -> None:
    for case in CASES:
        fprop, dgrad, wgrad = conv_terms(case, 2, 4, 4)
        groups, kernel, size = case[0], case[1], case[-1]
        positions = window(case).positions(size)
        for met, terms, shape in (
            (lowering.fprop_met(size, window(case), 4 // groups), fprop, positions),
            (lowering.dgrad_met(positions, window(case), size, 4 // groups), dgrad, size),
        ):
            counts = [len(terms.get((1, 3, *place), ())) for place in np.ndindex(*shape)]
            assert met.counts.tolist() == counts
        taps = [len(wgrad.get((3, 0, *tap), ())) for tap in np.ndindex(*kernel)]
        assert lowering.wgrad_met(size, window(case), 2).counts.tolist() == taps


def test_bias_gradient_adds_the_offset_of_every_term() -> None:
    run = Run(get_backend("emulator"), 0)
    dh = encoded(tensor(np.random.default_rng(4), (3, 4, 5, 6), "ptq", 8), IntFormat(8, True), ZERO_POINTS[0])
    found = functional.bias_gradient(dh, (0, 2, 3), run.primitives)
    assert found.dtype == np.float32
    for channel in range(4):
        total = sum(int(code) - int(dh.zero_point) for code in dh.codes[:, channel].ravel())
        step, offset = number(dh.step, ()), number(dh.offset, ())
        assert found[channel] == np.float32(float(total) * step + float(90) * offset)
        assert abs(float(found[channel]) - total * step - 90 * offset) <= 1e-6 * abs(90 * offset)


# --- networks --------------------------------------------------------------------------------------------------------


def seeded(module: nn.Module) -> nn.Module:
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.from_numpy(0.3 * rng.standard_normal(tuple(parameter.shape)).astype(np.float32)))
    return module


@pytest.mark.parametrize("recipe", ["ptq6_offset", "psq5_offset", "bhq5_offset"])
def test_input_gradients_of_a_network_are_those_of_the_dequantized_tensors(recipe: str) -> None:
    """BHQ included: the offsets act on the mixed rows, before T^-1."""
    net = fqtsim.fully_quantize(seeded(nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1))), recipe, machine())
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((6, 3, 7, 8)).astype(np.float32)).requires_grad_()
    y = net(x)
    sizes = np.array([1e-3, 1, 5, 0.1, 20, 0.5]).reshape(-1, 1, 1, 1)
    dh = torch.from_numpy((sizes * (rng.standard_normal(tuple(y.shape)) + 0.5)).astype(np.float32))
    y.backward(dh)
    spec = load_recipe(recipe).port("grad_for_dgrad")
    assert spec is not None
    quantized = fqtsim.quantizer(spec.quantizer, spec.bits, "stochastic", 16, "float_offset", "int8").quantize(
        dh.numpy(), 0, streams.stream_id(1, streams.GRAD_FOR_DGRAD), 0
    )
    assert quantized.offset is not None
    weight = fqtsim.quantizer("ptq", 8, "ties_to_even", None, "aligned", "int8").quantize(
        net.get_parameter("0.weight").detach().numpy()
    )
    exact = F.conv_transpose2d(
        torch.from_numpy(quantized.dequantize()).double(), torch.from_numpy(weight.dequantize()).double(),
        None, 2, 1, (0, 1),
    ).numpy()  # fmt: skip
    assert x.grad is not None
    for row in range(6):
        np.testing.assert_allclose(x.grad[row], exact[row], rtol=1e-5, atol=2e-5 * float(np.abs(exact[row]).max()))


CONFIG = TrainConfig(
    model="mlp", data="digits", recipe="psq5_offset", hardware=("int8_acc12_saturate",), seed=1, steps=1, batch=4
)


def test_backends_agree_where_registers_saturate() -> None:
    report = crosscheck(CONFIG, ["reference", "emulator"])
    assert report.passed
    assert report.coverage.events.altered > 0


def test_a_short_training_is_the_same_step_by_step_and_by_shortcuts() -> None:
    longer = replace(CONFIG, model="cnn", steps=2, batch=8)
    assert (
        digest_of(longer, "stepwise")
        == digest_of(longer, "emulator")
        != digest_of(replace(longer, recipe="psq5"), "emulator")
    )


def digest_of(config: TrainConfig, backend: str) -> str:
    data = load_dataset(config.data)
    net = fqtsim.fully_quantize(
        build_model(config.model, data.info, config.seed), config.recipe, config.hardware[0], backend, config.seed
    )
    trainer = fqtsim.Trainer(net, {"name": "sgd", "lr": 0.1, "momentum": 0.9})
    for step in range(config.steps or 0):
        x, y = training_batch(data, config.seed, step, config.batch)
        trainer.step(torch.from_numpy(x), torch.from_numpy(y))
    return trainer.digest().hex


@pytest.mark.parametrize("recipe", ["psq5_offset", "bhq5_offset"])
def test_a_network_trains(recipe: str) -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((32, 2, 6, 6)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 4, 32))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
                          nn.Flatten(), nn.Linear(72, 4))  # fmt: skip
    net = fqtsim.fully_quantize(model, recipe, "int8_acc32_wrap")
    trainer = fqtsim.Trainer(net, {"name": "sgd", "lr": 0.1, "momentum": 0.9})
    losses = [trainer.step(x, labels) for _ in range(40)]
    assert losses[-1] < 0.3 * losses[0]


def test_a_datapath_without_zero_points_and_a_device_refuse() -> None:
    symmetric = {f"{port}.zero": "symmetric" for port in ("activation", "weight", "grad_for_wgrad")}
    recipe, plain = load_recipe("psq5_offset", symmetric), machine(ZeroPoint.NONE)
    with pytest.raises(InputError, match=r"grad_for_dgrad.zero = float_offset: needs a zero point, but dgrad has none"):
        fqtsim.fully_quantize(nn.Sequential(nn.Linear(3, 2)), recipe, plain)
    net = fqtsim.fully_quantize(nn.Sequential(nn.Linear(5, 3)), "psq5_offset", machine(), DeviceEmulator("cpu"))
    with pytest.raises(InputError, match="its sums over valid terms have no form on a device; use zero: aligned"):
        net(torch.ones(4, 5).requires_grad_()).sum().backward()
