"""A part of a layer's product, gathered anew: the operands that the backend saw, and the float32 numbers they mean."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from convolutions import GEOMETRIES, Matrices, geometries, random_operand
from hypothesis import given, settings
from hypothesis import strategies as st

from fqtsim.backends.checksum import row_words
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.train import functional
from fqtsim.train.expected_sums import expected_sums
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Window
from fqtsim.train.operands import Operand
from fqtsim.train.products import ConvGradient, ConvImages, Product, conv_product, linear_product, scaled
from fqtsim.train.run import Run

HARDWARE = load_hardware("int8_acc16_saturate")


class Seen:
    """The GEMMs of one call on matrices, group by group."""

    def __init__(self, name: str, hardware: Hardware = HARDWARE) -> None:
        self.run = Run(Matrices(), 0)
        self.calls: list[tuple[Any, Any, Any]] = []
        self.run.observers.append(lambda layer, gemm, a, b, path, c, result: self.calls.append((a, b, result.codes)))
        self.gemm = Gemm("layer", name, hardware.datapath_for(name), self.run)


def on_device(product: Product) -> Product:
    """Return the same product of torch tensors, images channels last as a device lays them out."""

    def tensor(values: Any) -> Any:
        if values is None:
            return None
        made = torch.from_numpy(np.array(values))
        return made.contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made

    def operand(one: Operand) -> Operand:
        return Operand(*map(tensor, (one.codes, one.step, one.zero_point, one.offset)), axis=one.axis)

    return replace(product, a=operand(product.a), b=operand(product.b), out=tensor(product.out))


def agrees(product: Product, seen: Seen, rng: np.random.Generator) -> None:
    """Assert that random rows and columns of every group are those of its GEMM, here and as tensors."""
    m, n, k = product.shape
    assert len(seen.calls) == product.groups
    for group, (a, b, codes) in enumerate(seen.calls):
        assert (a.shape, b.shape) == ((m, k), (k, n))
        rows, cols = (np.sort(rng.choice(size, min(size, 7), replace=False)) for size in (m, n))
        cells = np.ix_(rows, cols)
        forms = (
            [product] if product.a.offset is not None or product.b.offset is not None else [product, on_device(product)]
        )
        for form in forms:
            part = form.part(group, rows, cols).on_host()
            assert np.array_equal(part.a, a[rows])
            assert np.array_equal(part.b, b[:, cols])
            expected = scaled(codes[cells], part, product.datapath.dropped_bits)
            assert part.found.dtype == np.float32
            assert np.array_equal(part.found.view(np.int32), expected.view(np.int32))


def sums_agree(product: Product, seen: Seen, rng: np.random.Generator) -> None:
    """Assert that sums found from a layer's operands are those of the very matrices that were multiplied."""
    m = product.shape[0]
    if isinstance(product, ConvGradient):
        outer = math.prod(product.window.kernel)
    else:
        outer = len(product.a.codes) if isinstance(product, ConvImages) else m
    drawn = rng.integers(0, 1 << 32, 2 * (outer + m // outer), np.uint64).astype(np.uint32)
    words = row_words(drawn, outer, m // outer)
    each = [divmod(i, m // outer) for i in range(m)]
    flat = np.array([[int(words.outer[r, i]) * int(words.inner[r, j]) for i, j in each] for r in (0, 1)], object)
    products = [(a.astype(np.int64) @ b.astype(np.int64)).astype(object) for a, b, _ in seen.calls]
    expected = np.concatenate([flat @ one % (1 << 32) for one in products], axis=1).astype(np.uint32)
    assert np.array_equal(expected_sums(product, words), expected)
    if product.a.offset is None and product.b.offset is None:
        tensors = row_words(torch.from_numpy(drawn.copy().view(np.int32)), outer, m // outer)
        assert np.array_equal(expected_sums(on_device(product), tensors).numpy().view(np.uint32), expected)


def shifted(rng: np.random.Generator, operand: Operand, wanted: bool) -> Operand:
    """Return the operand with a float offset for each of its steps, where one is wanted."""
    if not wanted:
        return operand
    return replace(operand, offset=rng.normal(size=np.shape(operand.step)).astype(np.float32))


def conv_cases(
    rng: np.random.Generator, window: Window, size: tuple[int, int], groups: int, offsets: bool, channels: int = 2
) -> list[tuple[Product, Seen]]:
    """Return all three products of one convolution, with what the backend saw; channels: inputs of a group."""
    inputs, outputs, samples = channels * groups, (channels + 1) * groups, 3

    def made(shape: tuple[int, ...], kind: Any, steps: int | None) -> Operand:
        return shifted(rng, random_operand(rng, shape, kind, steps, 128), offsets)

    out_size = window.positions(size)
    x, whole = (made((samples, inputs, *size), np.uint8, steps) for steps in (samples, None))
    w, per_channel = (made((outputs, channels, *window.kernel), np.int8, steps) for steps in (None, outputs))
    dh, one = (made((samples, outputs, *out_size), np.int8, steps) for steps in (samples, None))
    columns = made((outputs, samples, *out_size), np.int8, outputs).with_rows_at(1)
    found = []
    for name, a, b in (
        ("fprop", x, w), ("fprop", whole, per_channel), ("dgrad", dh, w), ("wgrad", whole, one),
        ("wgrad", whole, columns),
    ):  # fmt: skip
        seen, shape = Seen(name), (samples, inputs, *size)
        if name == "fprop":
            out = functional.conv_fprop(a, b, window, groups, seen.gemm)
        elif name == "dgrad":
            out = functional.conv_dgrad(a, b, window, groups, size, seen.gemm)
        else:
            out = functional.conv_wgrad(a, b, window, groups, seen.gemm)
        found.append((conv_product(seen.gemm, a, b, out, window, groups, shape), seen))
    return found


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("window", "size"), GEOMETRIES)
def test_parts_of_convolutions(window: Window, size: tuple[int, int], groups: int, offsets: bool) -> None:
    rng = np.random.default_rng(1)
    for product, seen in conv_cases(rng, window, size, groups, offsets):
        agrees(product, seen, rng)
        sums_agree(product, seen, rng)


@settings(max_examples=60, deadline=None)
@given(geometry=geometries(), groups=st.sampled_from([1, 1, 3]), seed=st.integers(0, 2**32 - 1), offsets=st.booleans())
def test_parts_of_any_convolution(
    geometry: tuple[Window, tuple[int, int]], groups: int, seed: int, offsets: bool
) -> None:
    rng = np.random.default_rng(seed)
    for product, seen in conv_cases(rng, *geometry, groups, offsets):
        agrees(product, seen, rng)
        sums_agree(product, seen, rng)


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("batch", [(4,), (4, 5)])
def test_parts_of_linear_layers(batch: tuple[int, ...], offsets: bool) -> None:
    rng = np.random.default_rng(2)

    def made(shape: tuple[int, ...], kind: Any, steps: int | None) -> Operand:
        return shifted(rng, random_operand(rng, shape, kind, steps, 128), offsets)

    x, whole = (made((*batch, 6), np.uint8, steps) for steps in (4, None))
    w, per_channel = (made((9, 6), np.int8, steps) for steps in (None, 9))
    dh, one = (made((*batch, 9), np.int8, steps) for steps in (4, None))
    columns = made((9, *batch), np.int8, 9).with_rows_at(len(batch))
    calls: list[tuple[str, Operand, Operand]] = [
        ("fprop", x, w), ("fprop", whole, per_channel), ("dgrad", dh, w), ("wgrad", whole, one),
        ("wgrad", whole, columns),
    ]  # fmt: skip
    for name, a, b in calls:
        seen = Seen(name)
        out = getattr(functional, f"linear_{name}")(a, b, seen.gemm)
        product = linear_product(seen.gemm, a, b, out)
        agrees(product, seen, rng)
        sums_agree(product, seen, rng)


def test_dropped_bits_and_differences() -> None:
    """int16 codes behind `before_multiply`, and a datapath that shifts its products."""
    rng, window, size = np.random.default_rng(3), Window((3, 3), (1, 1), (1, 1), (1, 1)), (5, 6)
    x, w = random_operand(rng, (2, 3, *size), np.int16, 2, 255), random_operand(rng, (4, 3, 3, 3), np.int8, None, 128)
    levels = "[{terms: all, item: {drop_bits: 4, rounding: toward_negative}, register: int16, overflow: saturate}]"
    hardware = load_hardware(
        "int8_acc32_wrap", {"gemms.fprop.zero_point": "before_multiply", "gemms.fprop.levels": levels}
    )
    seen = Seen("fprop", hardware)
    assert seen.gemm.datapath.dropped_bits == 4
    out = functional.conv_fprop(x, w, window, 1, seen.gemm)
    product = conv_product(seen.gemm, x, w, out, window, 1, ())
    agrees(product, seen, rng)
    sums_agree(product, seen, rng)
