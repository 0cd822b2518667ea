"""What the tests of fqtsim/kernels/gpu share: both forms of a function, and equality to the bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fqtsim.kernels.gpu.launch import has_triton, through_interpreter

#: Triton reads it when it is imported, which happens at the first fused call.
os.environ["TRITON_INTERPRET"] = "1"

COMPOSED = "composed"
FORMS = [
    COMPOSED,
    pytest.param(
        "fused",
        marks=[
            pytest.mark.skipif(not has_triton(), reason="triton is not installed: pip install 'fqtsim[triton]'"),
            # NumPy, which interprets the kernels, warns of infinities and NaN that are meant.
            pytest.mark.filterwarnings("ignore::RuntimeWarning"),
        ],
    ),
]


def called(form: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of fqtsim/kernels/gpu in one of its forms."""
    if form == COMPOSED:
        return function(*arguments, **options)
    with through_interpreter():
        return function(*arguments, **options)


def same(expected: Any, got: Any) -> None:
    """Fail unless both have one shape, type and bit pattern; NaN equals NaN."""
    expected, got = np.asarray(expected), np.asarray(got)
    assert (expected.shape, expected.dtype) == (got.shape, got.dtype)
    bits = [np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}") for values in (expected, got)]
    differ = bits[0] != bits[1]
    if expected.dtype.kind == "f":
        differ &= ~(np.isnan(expected) & np.isnan(got))
    wrong = np.flatnonzero(differ)
    assert not wrong.size, f"{wrong.size} differ; first {expected.flat[wrong[0]]!r}, not {got.flat[wrong[0]]!r}"


def no_flags() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int32)


def wide(shape: tuple[int, ...], seed: int = 0, spread: float = 8.0) -> np.ndarray[Any, Any]:
    """Return float32 numbers of many magnitudes and both signs."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) * np.exp(generator.standard_normal(shape) * spread)).astype(np.float32)


def layouts(x: np.ndarray[Any, Any]) -> list[torch.Tensor]:
    """Return x in row-major order, and one of rank 4 channels last, and with gaps, too."""
    tensor = torch.from_numpy(x)
    if x.ndim != 4:
        return [tensor]
    gaps = torch.empty((*x.shape[:3], 2 * x.shape[3]))[..., ::2].copy_(tensor)
    return [tensor, tensor.contiguous(memory_format=torch.channels_last), gaps]
