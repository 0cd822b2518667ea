"""fqtsim/kernels/gpu/convolution.py: implicit GEMMs in Triton's interpreter, torch operations, the CPU's own layers."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fqtsim.backends import get_backend
from fqtsim.hw.load import load_hardware
from fqtsim.kernels.gpu import convolution
from fqtsim.kernels.gpu.convolution import conv_dgrad, conv_fprop, conv_wgrad
from fqtsim.kernels.gpu.epilogue import EXACT, WRAP32, Register, Side, Sums, Watch, new_record
from fqtsim.kernels.gpu.launch import through_interpreter
from fqtsim.train import functional
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Window
from fqtsim.train.operands import Operand
from fqtsim.train.run import Run

#: Triton reads it when it is imported, which another test may do before those below.
os.environ["TRITON_INTERPRET"] = "1"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed: pip install 'fqtsim[triton]'"
)

CASES = [
    # (groups, kernel, stride, before, after, dilation, size)
    (1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (6, 5)),
    (1, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1), (7, 8)),
    (1, (1, 1), (2, 2), (0, 0), (0, 0), (1, 1), (5, 6)),
    (1, (3, 2), (2, 3), (1, 0), (1, 0), (1, 2), (8, 9)),
    (1, (3, 3), (3, 2), (2, 2), (2, 2), (2, 2), (9, 8)),
    (2, (3, 3), (2, 1), (1, 1), (1, 1), (1, 1), (6, 6)),
    (4, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1), (4, 4)),
    (1, (2, 2), (3, 3), (0, 0), (0, 0), (1, 1), (8, 8)),
    (1, (1, 1), (1, 1), (2, 2), (2, 2), (1, 1), (5, 4)),
    (1, (2, 2), (1, 1), (3, 3), (3, 3), (1, 1), (4, 4)),
    (1, (1, 1), (1, 1), (0, 0), (0, 0), (1, 1), (1, 1)),
]
TYPES = {False: torch.int8, True: torch.uint8}


class Made:
    """Operands of one convolution; x is uint8 where `unsigned`, and scales are per sample where `rows`."""

    def __init__(self, case: tuple[Any, ...], unsigned: bool, rows: bool, channels: int = 4) -> None:
        self.groups, kernel, stride, before, after, dilation, self.size = case
        self.window = Window(kernel, stride, before, after, dilation)
        self.generator = torch.Generator().manual_seed(len(str(case)))
        samples, outputs = 3, 8
        self.x = self.codes((samples, channels, *self.size), unsigned)
        self.w = self.codes((outputs, channels // self.groups, *kernel), False)
        self.dh = self.codes((samples, outputs, *self.window.positions(self.size)), False)
        shape = (samples,) if rows else ()
        self.of_x, self.of_dh = self.side(shape, unsigned), self.side(shape, False)
        self.of_w, self.per_channel = self.side((), False), self.side((outputs,), False)

    def codes(self, shape: tuple[int, ...], unsigned: bool) -> torch.Tensor:
        low, high = (0, 256) if unsigned else (-128, 128)
        return torch.randint(low, high, shape, generator=self.generator).to(TYPES[unsigned])

    def side(self, shape: tuple[int, ...], unsigned: bool) -> Side:
        zero = self.codes(shape, unsigned).to(torch.int64)
        return Side(zero, torch.rand(shape, generator=self.generator))


def operand(codes: torch.Tensor, side: Side) -> Operand:
    assert side.zero is not None
    return Operand(codes.numpy(), side.step.numpy(), side.zero.numpy())


def gemm(name: str) -> Gemm:
    path = load_hardware("int8_acc32_wrap").datapath_for(name)
    return Gemm("layer", name, path, Run(get_backend("stepwise"), 0))


def extents(function: Callable[..., torch.Tensor], *arguments: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what rows and columns count: samples and positions, or taps and channels; groups and those of each."""
    first, second, window, groups = arguments[:4]
    if function is conv_wgrad:
        return (math.prod(window.kernel), first.shape[1] // groups), (groups, second.shape[1] // groups)
    if function is conv_dgrad:
        return (len(first), math.prod(arguments[4])), (groups, second.shape[1])
    return (len(first), math.prod(window.positions(first.shape[2:]))), (groups, len(second) // groups)


def both(function: Callable[..., torch.Tensor], *arguments: Any, register: Register = WRAP32) -> torch.Tensor:
    """Return what the Triton form and its composed twin both give."""
    rows, columns = extents(function, *arguments)
    words = [torch.from_numpy(np.random.default_rng(i).integers(-(1 << 31), 1 << 31, (2, rows[i])).astype(np.int32))
             for i in (0, 1)]  # fmt: skip
    sums = [Sums(*words, torch.zeros((columns[0], 2, columns[1]), dtype=torch.int32)) for _ in range(2)]
    watches = [Watch(new_record("cpu"), -99, 99, one) for one in sums]
    composed = function(*arguments, register=register, watch=watches[0])
    with through_interpreter():
        fused = function(*arguments, register=register, watch=watches[1])
    assert torch.equal(composed, fused)
    assert torch.equal(watches[0].record, watches[1].record)
    assert torch.equal(sums[0].out, sums[1].out)
    assert sums[0].out.any()
    return fused


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("unsigned", "rows"), [(False, True), (True, False)])
def test_products_are_those_of_the_cpu(case: tuple[Any, ...], unsigned: bool, rows: bool) -> None:
    made = Made(case, unsigned, rows)
    window, groups = made.window, made.groups
    y = both(conv_fprop, made.x, made.w, window, groups, made.of_x, made.per_channel)
    x, dh = operand(made.x, made.of_x), operand(made.dh, made.of_dh)
    per_channel, w = operand(made.w, made.per_channel), operand(made.w, made.of_w)
    assert np.array_equal(y.numpy(), functional.conv_fprop(x, per_channel, window, groups, gemm("fprop")))
    dx = both(conv_dgrad, made.dh, made.w, window, groups, made.size, made.of_dh, made.of_w)
    assert np.array_equal(dx.numpy(), functional.conv_dgrad(dh, w, window, groups, made.size, gemm("dgrad")))
    if rows:
        return
    dw = both(conv_wgrad, made.x, made.dh, window, groups, made.of_x, made.of_dh)
    assert np.array_equal(dw.numpy(), functional.conv_wgrad(x, dh, window, groups, gemm("wgrad")))


@pytest.mark.parametrize("channels", [3, 17, 40, 70])
def test_channels_of_any_number_and_every_layout(channels: int) -> None:
    made = Made((1, (3, 3), (2, 1), (1, 1), (1, 1), (1, 1), (6, 5)), True, False, channels)
    planes = both(conv_fprop, made.x, made.w, made.window, 1, made.of_x, made.of_w)
    last = made.x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(planes, both(conv_fprop, last, made.w, made.window, 1, made.of_x, made.of_w))
    with through_interpreter():
        same = conv_fprop(last, made.w, made.window, 1, made.of_x, made.of_w, channels_last=False)
        dx = conv_dgrad(made.dh, made.w, made.window, 1, made.size, made.of_dh, made.of_w, channels_last=False)
    assert planes.is_contiguous(memory_format=torch.channels_last)
    assert same.is_contiguous()
    assert torch.equal(planes, same)
    assert torch.equal(dx, conv_dgrad(made.dh, made.w, made.window, 1, made.size, made.of_dh, made.of_w))
    assert torch.equal(
        both(conv_wgrad, last, made.dh, made.window, 1, made.of_x, made.of_dh),
        both(conv_wgrad, made.x, made.dh, made.window, 1, made.of_x, made.of_dh),
    )


@pytest.mark.parametrize("register", [EXACT, Register(14), Register(14, True), Register(14, counted=True)])
def test_narrow_and_exact_registers(register: Register) -> None:
    made = Made(CASES[1], True, False)
    both(conv_fprop, made.x, made.w, made.window, 1, made.of_x, made.of_w, register=register)
    both(conv_dgrad, made.dh, made.w, made.window, 1, made.size, made.of_dh, made.of_w, register=register)
    both(conv_wgrad, made.x, made.dh, made.window, 1, made.of_x, made.of_dh, register=register)


@pytest.mark.parametrize("case", CASES[3:7])
def test_unsigned_weights(case: tuple[Any, ...]) -> None:
    """Taps joined to runs and taps of their own, forwards and backwards, less 128 each."""
    made = Made(case, True, False)
    w, side = made.codes(tuple(made.w.shape), True), made.side((), True)
    both(conv_fprop, made.x, w, made.window, made.groups, made.of_x, side)
    both(conv_dgrad, made.dh, w, made.window, made.groups, made.size, made.of_dh, side)


def test_symmetric_operands_have_no_zero_point() -> None:
    made = Made(CASES[0], False, False)
    x, w = Side(None, made.of_x.step), Side(None, made.of_w.step)
    zeros = torch.zeros((), dtype=torch.int64)
    y = both(conv_fprop, made.x, made.w, made.window, 1, x, w)
    assert torch.equal(y, conv_fprop(made.x, made.w, made.window, 1, Side(zeros, x.step), Side(zeros, w.step)))


@pytest.mark.parametrize("register", [WRAP32, EXACT])
def test_a_wgrad_of_more_terms_than_one_accumulator_takes(register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit lowered to what the interpreter reaches: several parts, added in int32 and in int64."""
    monkeypatch.setattr(convolution, "RUN", 64)
    made = Made((1, (2, 2), (1, 1), (1, 1), (1, 1), (1, 1), (9, 8)), True, False)
    both(conv_wgrad, made.x, made.dh, made.window, 1, made.of_x, made.of_dh, register=register)


def test_a_wrong_fill_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(CASES[0], False, False)
    monkeypatch.setattr(convolution, "as_fill", lambda zero, samples, like: torch.zeros(samples, dtype=torch.int64))
    with through_interpreter():
        wrong = conv_fprop(made.x, made.w, made.window, 1, made.of_x, made.of_w)
    assert not torch.equal(wrong, conv_fprop(made.x, made.w, made.window, 1, made.of_x, made.of_w))
