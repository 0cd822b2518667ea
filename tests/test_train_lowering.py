"""The three GEMMs of linear and convolutional layers, on integer codes, against torch in exact float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from fqtsim.backends import get_backend
from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware, parse_hardware
from fqtsim.train import functional, lowering
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Window
from fqtsim.train.operands import Operand
from fqtsim.train.run import Run

HARDWARE = load_hardware("int8_acc32_wrap")
CASES = [
    # (groups, kernel, stride, before, after, dilation, size)
    (1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (6, 5)),
    (1, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), (7, 8)),
    (1, (1, 1), (2, 2), (0, 0), (0, 0), (1, 1), (5, 6)),
    (1, (3, 2), (2, 3), (1, 0), (1, 0), (1, 2), (8, 9)),
    (1, (2, 3), (1, 1), (0, 1), (1, 1), (1, 1), (5, 5)),
    (1, (3, 3), (3, 2), (2, 2), (2, 2), (2, 2), (9, 8)),
    (2, (3, 3), (2, 1), (1, 1), (1, 1), (1, 1), (6, 6)),
    (4, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (4, 4)),
    (1, (2, 2), (3, 3), (0, 0), (0, 0), (1, 1), (8, 8)),
]
ZERO = np.zeros((), np.int64)


def gemm(name: str) -> Gemm:
    return Gemm("layer", name, HARDWARE.datapath_for(name), Run(get_backend("emulator"), 0))


def operand(rng: np.random.Generator, shape: tuple[int, ...], rows: bool, step: float = 1.0) -> Operand:
    """Random codes; with `rows`, a power-of-two step and a zero point for each index of dimension 0."""
    codes = rng.integers(-100, 101, shape).astype(np.int8)
    count = (shape[0],) if rows else ()
    steps = (step * 2.0 ** rng.integers(-3, 4, count)).astype(np.float32)
    return Operand(codes, np.asarray(steps), np.asarray(rng.integers(-9, 10, count), np.int64))


def values(x: Operand) -> torch.Tensor:
    """Return the float64 values that the codes denote."""
    assert x.step is not None
    shape = (-1,) + (1,) * (x.codes.ndim - 1) if x.step.ndim else ()
    real = (x.codes.astype(np.float64) - x.zero_point.reshape(shape)) * x.step.astype(np.float64).reshape(shape)
    return torch.from_numpy(real)


def torch_conv(x: Operand, w: Operand, case: tuple[Any, ...], requires_grad: bool = False) -> tuple[Any, ...]:
    groups, _, stride, before, after, dilation, _ = case
    xv, wv = values(x).requires_grad_(requires_grad), values(w).requires_grad_(requires_grad)
    padded = F.pad(xv, (before[1], after[1], before[0], after[0]))
    return F.conv2d(padded, wv, None, stride, 0, dilation, groups), xv, wv


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [False, True])
def test_convolution_products_are_exact(case: tuple[Any, ...], rows: bool) -> None:
    """Steps are powers of two and sums are small, so that every product must be exactly torch's float64 one."""
    groups, kernel, stride, before, after, dilation, size = case
    window = Window(kernel, stride, before, after, dilation)
    rng = np.random.default_rng(len(str(case)))
    x, w = operand(rng, (3, 4, *size), rows), operand(rng, (8, 4 // groups, *kernel), False)
    y, xv, wv = torch_conv(x, w, case, requires_grad=True)
    ours = functional.conv_fprop(x, w, window, groups, gemm("fprop"))
    assert ours.dtype == np.float32
    assert np.array_equal(ours, y.detach().numpy())
    dh = operand(rng, tuple(y.shape), rows)
    y.backward(values(dh))
    dx = functional.conv_dgrad(dh, w, window, groups, size, gemm("dgrad"))
    assert np.array_equal(dx, xv.grad.numpy())
    if not rows:
        assert np.array_equal(functional.conv_wgrad(x, dh, window, groups, gemm("wgrad")), wv.grad.numpy())


def test_weight_scale_per_channel_in_fprop() -> None:
    rng = np.random.default_rng(5)
    case = CASES[6]
    x, w = operand(rng, (3, 4, 6, 6), False), operand(rng, (8, 2, 3, 3), True)
    ours = functional.conv_fprop(x, w, Window((3, 3), (2, 1), (1, 1), (1, 1)), 2, gemm("fprop"))
    assert np.array_equal(ours, torch_conv(x, w, case)[0].numpy())


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 7)])
@pytest.mark.parametrize("rows", [False, True])
def test_linear_products_are_exact(shape: tuple[int, ...], rows: bool) -> None:
    rng = np.random.default_rng(1)
    x, w = operand(rng, shape, rows), operand(rng, (6, 7), False)
    xv, wv = values(x).requires_grad_(), values(w).requires_grad_()
    y = F.linear(xv, wv)
    assert np.array_equal(functional.linear_fprop(x, w, gemm("fprop")), y.detach().numpy())
    dh = operand(rng, (*shape[:-1], 6), rows)
    y.backward(values(dh))
    assert np.array_equal(functional.linear_dgrad(dh, w, gemm("dgrad")), xv.grad.numpy())
    if not rows:
        assert np.array_equal(functional.linear_wgrad(x, dh, gemm("wgrad")), wv.grad.numpy())


def test_order_of_k_is_part_of_the_meaning() -> None:
    """fprop: kh, kw, channel; dgrad: kh, kw, output channel as indices of W; wgrad: (kh, kw, ci) x co over n, h, w."""
    seen: dict[str, tuple[Any, Any]] = {}

    def observe(layer: str, name: str, a: Any, b: Any, datapath: Any, c: Any, result: Any) -> None:
        seen[name] = (a, b)

    window = Window((2, 2), (2, 2), (0, 0), (0, 0))
    x = Operand(np.arange(1, 2 * 2 * 4 * 4 + 1, dtype=np.int8).reshape(2, 2, 4, 4), np.float32(1), ZERO)
    w = Operand(np.arange(1, 3 * 2 * 2 * 2 + 1, dtype=np.int8).reshape(3, 2, 2, 2), np.float32(1), ZERO)
    dh = Operand(np.arange(1, 2 * 3 * 2 * 2 + 1, dtype=np.int8).reshape(2, 3, 2, 2), np.float32(1), ZERO)
    for name, call in (
        ("fprop", lambda g: functional.conv_fprop(x, w, window, 1, g)),
        ("dgrad", lambda g: functional.conv_dgrad(dh, w, window, 1, (4, 4), g)),
        ("wgrad", lambda g: functional.conv_wgrad(x, dh, window, 1, g)),
    ):
        chosen = gemm(name)
        chosen.run.observers.append(observe)
        call(chosen)
    a, b = seen["fprop"]
    assert [a[1, k] for k in range(8)] == [x.codes[0, c, i, 2 + j] for i in (0, 1) for j in (0, 1) for c in (0, 1)]
    assert [b[k, 2] for k in range(8)] == [w.codes[2, c, i, j] for i in (0, 1) for j in (0, 1) for c in (0, 1)]
    a, b = seen["dgrad"]
    # Input position (1, 2) of sample 1 meets output (0, 1) through tap (1, 0); every other tap is a hole.
    expected = [dh.codes[1, co, 0, 1] if (i, j) == (1, 0) else 0 for i in (0, 1) for j in (0, 1) for co in range(3)]
    assert list(a[16 + 4 + 2]) == expected
    assert [b[k, 1] for k in range(12)] == [w.codes[co, 1, i, j] for i in (0, 1) for j in (0, 1) for co in range(3)]
    a, b = seen["wgrad"]
    row = [x.codes[n, 1, 2 * h + 1, 2 * v] for n in (0, 1) for h in (0, 1) for v in (0, 1)]
    assert list(a[(1 * 2 + 0) * 2 + 1]) == row
    assert list(b[:, 2]) == [dh.codes[n, 2, h, v] for n in (0, 1) for h in (0, 1) for v in (0, 1)]


def test_padding_carries_the_zero_point_of_its_sample() -> None:
    seen = []
    chosen = gemm("fprop")
    chosen.run.observers.append(lambda *call: seen.append(call[2]))
    x = Operand(np.full((2, 1, 1, 1), 50, np.int8), np.ones(2, np.float32), np.array([3, -4], np.int64))
    w = Operand(np.ones((1, 1, 3, 1), np.int8), np.float32(1), ZERO)
    y = functional.conv_fprop(x, w, Window((3, 1), (1, 1), (1, 0), (1, 0)), 1, chosen)
    assert seen[0].tolist() == [[3, 50, 3], [-4, 50, -4]]
    assert y.ravel().tolist() == [47, 54]


def test_scale_along_k_is_an_error() -> None:
    rng = np.random.default_rng(0)
    x, dh = operand(rng, (5, 7), True), operand(rng, (5, 6), False)
    with pytest.raises(InputError) as caught:
        functional.linear_wgrad(x, dh, gemm("wgrad"))
    assert str(caught.value) == (
        "layer 'layer', wgrad: a scale per row of the activation varies along k; use a per-tensor quantizer (ptq) there"
    )


def test_epilogue_is_two_float64_products_and_one_rounding() -> None:
    """S5.8, on steps and sums where another order of the factors rounds differently."""
    rng = np.random.default_rng(3)
    x = Operand(rng.integers(-128, 128, (50, 400)).astype(np.int8), rng.random(50, np.float32), rng.integers(-9, 9, 50))
    w = Operand(rng.integers(-128, 128, (30, 400)).astype(np.int8), np.float32(0.1), np.asarray(7, np.int64))
    ours = functional.linear_fprop(x, w, gemm("fprop"))
    sums = (x.codes.astype(np.int64) - x.zero_point[:, None]) @ (w.codes.astype(np.int64) - 7).T
    assert x.step is not None
    scale = x.step.astype(np.float64)[:, None] * np.float64(np.float32(0.1))
    assert np.array_equal(ours, (sums.astype(np.float64) * scale).astype(np.float32))


def test_bias_gradient_is_one_product_of_the_integer_sum() -> None:
    codes = np.array([[100, -3], [27, 5]], np.int8)
    dh = Operand(codes, np.float32(0.3), np.asarray(-2, np.int64))
    expected = (np.array([131.0, 6.0]) * np.float64(np.float32(0.3))).astype(np.float32)
    run = Run(get_backend("emulator"), 0)
    assert np.array_equal(functional.bias_gradient(dh, (0,), run.primitives), expected)


DROPS = """
schema: 1
name: drops
summary: drops bits of every product
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: after_accumulate
  levels:
    - {{terms: all, item: {{drop_bits: {bits}, rounding: toward_negative}}, register: {register}, overflow: wrap}}
"""


def test_zero_point_terms_may_not_pass_int64() -> None:
    path = parse_hardware(DROPS.format(register="int60", bits=4)).datapath_for("fprop")
    x = Operand(np.ones((1, 2), np.int8), np.asarray(np.float32(1)), ZERO)
    with pytest.raises(InputError) as caught:
        functional.linear_fprop(x, x, Gemm("fc", "fprop", path, Run(get_backend("emulator"), 0)))
    assert str(caught.value) == (
        "layer 'fc', fprop: an accumulator of int60 with 4 dropped bits passes int64 in the zero-point terms; "
        "use a narrower register"
    )


def test_dropped_bits_come_back_before_the_zero_points() -> None:
    path = parse_hardware(DROPS.format(register="int32", bits=2)).datapath_for("fprop")
    x = Operand(np.array([[5, 6]], np.int8), np.float32(1), np.asarray(1, np.int64))
    w = Operand(np.array([[7, 3]], np.int8), np.float32(1), np.asarray(2, np.int64))
    # 35 >> 2 = 8, 18 >> 2 = 4; 12 * 4 - 1 * 10 - 2 * 11 + 2 * 1 * 2 = 20
    y = functional.linear_fprop(x, w, Gemm("layer", "fprop", path, Run(get_backend("emulator"), 0)))
    assert y.tolist() == [[20.0]]


@pytest.mark.parametrize("code", [np.int8, np.uint8, np.int16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8, 16, 20])
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[5]])
def test_patches_are_the_same_in_words_of_any_width(code: type, channels: int, case: tuple[Any, ...]) -> None:
    """Plain indexing is the other opinion; each sample has a fill code of its own."""
    _, kernel, stride, before, after, dilation, size = case
    window = Window(kernel, stride, before, after, dilation)
    random = np.random.default_rng(channels)
    codes = random.integers(1, 100, (3, channels, *size)).astype(code)
    fills = np.array([101, 7, 113], np.int64)
    x = Operand(codes, np.ones(3, np.float32), fills)
    padded = np.full((3, channels, size[0] + before[0] + after[0], size[1] + before[1] + after[1]), 0, code)
    padded[:] = fills.reshape(3, 1, 1, 1)
    padded[:, :, before[0] : before[0] + size[0], before[1] : before[1] + size[1]] = codes
    rows = [
        padded[n, :, oh * stride[0] + i * dilation[0], ow * stride[1] + j * dilation[1]]
        for n in range(3)
        for oh in range(window.positions(size)[0])
        for ow in range(window.positions(size)[1])
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    assert np.array_equal(lowering.fprop_rows(x, window).ravel(), np.concatenate(rows))
