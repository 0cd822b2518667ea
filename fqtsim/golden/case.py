"""One golden case, and a set of them: inputs, the codes that the hardware gives for them, and what they reach (S4).

| kind | inputs | expected |
|---|---|---|
| gemm | a (M, K), b (K, N), optionally c (M, N) | codes (M, N), those of the accumulator |
| conv_fprop | x (N, C, H, W), w (CO, C / groups, KH, KW) | codes (N, CO, OH, OW) |
| conv_dgrad | dh (N, CO, OH, OW), w (CO, C / groups, KH, KW) | codes (N, C, H, W) |
| conv_wgrad | x (N, C, H, W), dh (N, CO, OH, OW) | codes (CO, C / groups, KH, KW) |
| quantize | x float32, for stochastic rounding rand_bits of its shape | codes, step, zero_point (bhq: and groups) |
| requantize | acc (n,) | codes (n,) |
| scaled_linear | x (M, K), w (N, K); float32 row_step (M,), column_step (N,), optionally bias (N,) | y (M, N) float32 |
| linear_step | x, w, dh float32, and rand_bits of each stochastic port | codes of every port and GEMM, y, dx, dw |

Operands of a GEMM, a convolution or a scaled linear layer are codes as they enter the multiplier; K = 0 gives c (S4.2).
Padding and the holes of a stride carry the parameter `fill`, the code of real zero. bhq's group_rows lists the rows of
all groups, leaders first, and group_sizes how many each group takes of them; scale is the factor of each row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fqtsim.hw.spec import Hardware

Array = np.ndarray[Any, Any]

SCHEMA = 2
"""Version of the form that cases take, in memory and in files."""
KINDS = (
    "gemm", "conv_fprop", "conv_dgrad", "conv_wgrad", "quantize", "requantize", "scaled_linear", "linear_step",
)  # fmt: skip
"""What a case may be about."""


class Deferred(Mapping[str, Array]):
    """Arrays that are made when one is first asked for, and kept; their names are known before."""

    def __init__(self, names: tuple[str, ...], produce: Callable[[], Mapping[str, Array]]) -> None:
        self._names, self._produce = names, produce
        self._arrays: Mapping[str, Array] | None = None

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        if self._arrays is None:
            self._arrays = self._produce()
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, eq=False)
class Case:
    """One call of a kernel with its answer."""

    #: Unique in its set.
    name: str
    #: One of KINDS.
    kind: str
    #: JSON-able: {"gemm": "fprop"}; stride, padding, dilation, groups, fill; multiplier, shift, scale, zero_point; ...
    parameters: Mapping[str, Any]
    #: By name. Of a seeded case they are made on first use.
    inputs: Mapping[str, Array]
    #: "codes"; for quantize and linear_step several. Of a seeded case they are made on first use.
    expected: Mapping[str, Array]
    #: altered, out_of_range, transient: outputs that the hardware changed (S4.8).
    events: Mapping[str, int]
    #: What the case reaches, counted: rails, "level1.saturations", ...
    coverage: Mapping[str, int]
    #: "level0", ...: the last code of every register, (M, N, registers); empty unless asked for.
    trace: Mapping[str, Array]
    #: Of a large case: {"builder", "inputs": {name: {dtype, shape, sha256}}, "expected": the same}; else None.
    seeded: Mapping[str, Any] | None = None

    @property
    def is_large(self) -> bool:
        """Whether the file holds a seed and digests in place of arrays."""
        return self.seeded is not None


@dataclass(frozen=True)
class GoldenSet:
    """Cases of one hardware, the same for the same hardware, seed and version."""

    hardware: Hardware
    #: SHA-256 of the hardware's content, whatever its file's comments and layout.
    hardware_sha256: str
    seed: int
    #: Of the generator: it decides which inputs a seed gives.
    version: str
    schema: int
    cases: tuple[Case, ...]


def kernel_arguments(case: Case) -> dict[str, Any]:
    """Return what a kernel is called with, by keyword: inputs, and the parameters that it needs beside them.

    A GEMM's own name (fprop, dgrad, wgrad) is no argument: a kernel is one of them. c is there only where the case
    has start values.
    """
    parameters = {} if case.kind == "gemm" else dict(case.parameters)
    return {**case.inputs, **parameters}


def array_sha256(array: Array) -> str:
    """Return the SHA-256 of the elements' bytes, little-endian, in row-major order; dtype and shape are apart."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.tobytes()).hexdigest()


def description_of(array: Array) -> dict[str, Any]:
    """Return dtype, shape and SHA-256 of an array, as `seeded` holds them."""
    return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": array_sha256(array)}
