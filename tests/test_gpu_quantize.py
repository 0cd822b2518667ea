"""fqtsim/kernels/gpu/quantize.py: grids and codes, in both forms, equal the CPU's bits in every layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from device_forms import FORMS, called, layouts, no_flags, same, wide

from fqtsim.backends.torch_primitives import TorchPrimitives
from fqtsim.errors import InputError
from fqtsim.kernels.gpu import elements, quantize
from fqtsim.kernels.gpu.launch import Fault
from fqtsim.kernels.gpu.quantize import DeviceDraw
from fqtsim.kernels.grid import GRIDS
from fqtsim.kernels.quantize import Draw, extremes
from fqtsim.kernels.quantize import quantize as cpu_quantize
from fqtsim.quantizers import quantizer
from fqtsim.words import IntFormat, Rounding

#: (minimum, maximum) of rows: blank, one-sided, denormal, of huge ratio, beyond float32 apart, constant.
ENDS = [(0, 0), (-1, 1e-30), (1, 2), (-1e-45, 1e-45), (0, 5), (-3e38, 3e38), (2, 2), (-2, -1), (-7, 9.3), (0, 1e-45)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zero", quantize.GRIDS)
@pytest.mark.parametrize("signed", [False, True])
def test_grids(form: str, zero: str, signed: bool) -> None:
    minimum, maximum = np.float32(ENDS).T.copy()
    minimum, maximum = np.append(minimum, -np.abs(wide((90,)))), np.append(maximum, np.abs(wide((90,), 1)))
    flags = no_flags()
    if zero == "symmetric" and not signed:
        called(form, quantize.grid, zero, torch.tensor([-1.0]), torch.tensor([1.0]), 8, False, flags)
        assert flags.item() == Fault.NEGATIVE
        minimum, flags = np.abs(minimum), no_flags()
        maximum = np.maximum(minimum, maximum)
    for bits in (2, 5, 8, 16):
        expected = GRIDS[zero](minimum, maximum, bits, signed)
        got = called(
            form, quantize.grid, zero, torch.from_numpy(minimum), torch.from_numpy(maximum), bits, signed, flags
        )
        assert (expected.low, expected.high) == (got.low, got.high)
        for name in ("step", "zero_point", "blank", "offset"):
            if getattr(expected, name) is not None:
                same(getattr(expected, name), getattr(got, name).numpy())
    assert not flags.item()


def _agree(
    form: str, x: np.ndarray[Any, Any], tensor: torch.Tensor, per_row: bool, zero: str, port: IntFormat,
    rounding: Rounding, bits: int, shrink: float,
) -> None:  # fmt: skip
    rows = x.reshape(len(x) if per_row else 1, -1)
    grid = GRIDS[zero](*extremes(rows), port.bits, port.signed)
    grid = grid._replace(step=grid.step * np.float32(shrink))
    codes, clamps, ties = cpu_quantize(rows, grid, rounding, Draw(3, 4, 2**31 + 5, bits), port.storage)
    shape = (len(x),) if per_row else ()
    step, zero_point, offset = (
        None if values is None else torch.from_numpy(values).reshape(shape)
        for values in (grid.step, grid.zero_point, grid.offset)
    )
    draw = DeviceDraw(3, 4, 2**31 + 5, bits) if bits else None
    got, counts = called(
        form, quantize.quantize, tensor, step, zero_point, grid.low, grid.high, rounding, draw,
        getattr(torch, port.storage), offset,
    )  # fmt: skip
    same(codes.reshape(x.shape), got.numpy())
    assert counts.tolist() == [clamps, ties]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (2, 2048), (3, 1030), (2, 8, 6, 4), (2, 5, 3, 3), (9,), (1, 4099)])
@pytest.mark.parametrize("per_row", [False, True])
def test_codes_of_every_layout(form: str, shape: tuple[int, ...], per_row: bool) -> None:
    x = wide(shape, spread=1)
    x.flat[0] = -1e-30
    for tensor in layouts(x):
        for zero, port in (("aligned", "int8"), ("float_offset", "uint5"), ("symmetric", "int12")):
            for rounding, bits in ((Rounding.STOCHASTIC, 16), (Rounding.TIES_TO_EVEN, 0), (Rounding.TO_ODD, 0)):
                shrink = 0.75 if zero == "aligned" else 1.0
                _agree(form, x, tensor, per_row, zero, IntFormat.parse(port), rounding, bits, shrink)


def _quotients() -> np.ndarray[Any, Any]:
    words = np.random.default_rng(0).integers(0, 2**32, 8000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    edges = [2**20, -(2**20), 2**20 - 0.5, 0.5 - 2**20, 2**22 + 0.5, 2**23, 1e38, -1e38, 1e-45, -1e-45, -0.0]
    y = np.concatenate([words[np.isfinite(words)], np.arange(-100, 100, 0.25), edges]).astype(np.float32)
    return y[None]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rounding", Rounding)
def test_every_rounding_on_every_magnitude(form: str, rounding: Rounding) -> None:
    y = _quotients()
    grid = GRIDS["symmetric"](np.float32([0]), np.float32([0]), 16, True)._replace(low=-(2**15), high=2**15 - 1)
    for bits in (1, 8, 24, 31, 32) if rounding is Rounding.STOCHASTIC else (0,):
        codes, clamps, ties = cpu_quantize(y, grid, rounding, Draw(1, 2, 3, bits), "int16")
        got, counts = called(
            form, quantize.quantize, torch.from_numpy(y), torch.ones(1), torch.zeros(1, dtype=torch.int32), grid.low,
            grid.high, rounding, DeviceDraw(1, 2, 3, bits) if bits else None, torch.int16,
        )  # fmt: skip
        same(codes, got.numpy())
        assert counts.tolist() == [clamps, ties]
        assert clamps > 100
        assert (ties > 100) == (rounding.name.startswith("TIES"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rounding", [Rounding.STOCHASTIC, Rounding.TIES_TO_EVEN])
def test_the_codes_lie_in_memory_as_the_tensor_does(form: str, rounding: Rounding) -> None:
    x = torch.from_numpy(wide((2, 8, 4, 4), spread=1)).contiguous(memory_format=torch.channels_last)
    grid = quantize.grid("aligned", *elements.extremes(x), 8, True)
    draw = DeviceDraw(0, 0, 0, 8) if rounding is Rounding.STOCHASTIC else None
    codes, _ = called(
        form, quantize.quantize, x, grid.step, grid.zero_point, grid.low, grid.high, rounding, draw, torch.int8
    )
    assert codes.stride() == x.stride()


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("ptq", {"zero": "authors"}),
        ("psq", {"step": "power_of_two"}),
        ("ptq", {"range": "mean_of_rows"}),
        ("bhq", {"scale": "per_group"}),
    ],
)
def test_words_without_a_device_form_are_refused(name: str, word: dict[str, Any]) -> None:
    assert set(GRIDS) - set(quantize.GRIDS) == {"authors"}
    with pytest.raises(InputError, match=rf"{next(iter(word))} = {next(iter(word.values()))}.*no form on a device"):
        quantizer(name, 5, "ties_to_even", **word).quantize(torch.ones(2, 3), primitives=TorchPrimitives("cpu"))
