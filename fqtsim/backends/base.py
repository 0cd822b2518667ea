"""What a backend is: somebody who executes a datapath on codes and reports what the hardware changed (S4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES, Primitives
from fqtsim.hw.spec import Datapath

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Events:
    """How many outputs the hardware changed. U is the result with every register unlimited."""

    #: The code differs from U.
    altered: int = 0
    #: U does not fit the accumulator.
    out_of_range: int = 0
    #: Altered though U fits.
    transient: int = 0

    def __add__(self, other: Events) -> Events:
        return Events(
            self.altered + other.altered,
            self.out_of_range + other.out_of_range,
            self.transient + other.transient,
        )


@dataclass(frozen=True)
class LevelTrace:
    """What one level did, over all outputs."""

    #: Smallest and largest exact sum before overflow; both 0 where there is no addition.
    minimum: int
    maximum: int
    #: Additions, and those that the register changed.
    additions: int
    overflows: int
    #: The last code of every register, shape (M, N, registers).
    registers: Array = field(repr=False)


@dataclass(frozen=True)
class GemmResult:
    """One GEMM."""

    #: (M, N), int32 where the accumulator fits it, else int64.
    codes: Array
    events: Events
    #: Smallest and largest U; both 0 where there is no output.
    minimum: int = 0
    maximum: int = 0
    #: Outputs whose code is a rail of the accumulator.
    at_rail: int = 0
    #: Per level, on request.
    trace: tuple[LevelTrace, ...] | None = None


Recorder = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""Runs a program of a device once, perhaps without computing; returns its result and what computes it anew, in place.

The program reads and writes the same memory each time, and none of its kernels depends on a number of the host.
"""


class Backend(ABC):
    """Executes GEMMs. Operands are checked before: numpy codes within the datapath's formats."""

    #: As written by the user: "emulator", "native".
    name: str
    device: str = "cpu"
    primitives: Primitives = DEFAULT_PRIMITIVES
    recorder: Recorder | None = None
    """Records a step to replay it, where that is worth it."""

    @property
    @abstractmethod
    def executor(self) -> str:
        """Who multiplies. Two backends with the same executor prove nothing about each other."""

    def executor_of(self, datapath: Datapath) -> str:
        """Return who multiplies on this datapath, where a backend has more than one way."""
        return self.executor

    def refusal(self, datapath: Datapath, k: int) -> str | None:
        """Return why this backend cannot guarantee the result for K = k, or None where it can."""
        return None

    @abstractmethod
    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        """Multiply (M, K) by (K, N) codes on the datapath, starting at c. Raises BackendRefused, InputError."""

    def gemm_groups(self, a: Array, b: Array, datapath: Datapath, trace: bool = False) -> list[GemmResult]:
        """Multiply a[g] (M, K) by b[g] (K, N) for every g of (G, M, K) and (G, K, N): what `gemm` gives for each.

        A backend that overrides this gives the same results, bit for bit.
        """
        return [self.gemm(left, right, datapath, None, trace) for left, right in zip(a, b, strict=True)]

    def convolve(self, job: Any, datapath: Datapath, out: Array, with_codes: bool) -> GemmResult | None:
        """Do all of a convolution's fprop or dgrad, a backends.direct.Images, without a matrix of patches.

        Writes the float32 outputs (N, CO, OH, OW) and returns what `gemm` would, without codes unless `with_codes`;
        adds their sums to job.checksum, if there is one. None, and no sums, where this backend has no such way, and
        the caller lowers the convolution to matrices.
        """
        return None

    def correlate(self, job: Any, datapath: Datapath) -> tuple[GemmResult, Array, Array] | None:
        """Do a convolution's wgrad, a backends.direct.Gradient, without a matrix of patches.

        Returns what `gemm` would and the sums over k of the codes of a (M,) and b (N,); or None, as `convolve`.
        """
        return None

    def describe(self) -> Mapping[str, str]:
        """Return what a run's record should say about this backend."""
        return {"backend": self.name, "device": self.device, "executor": self.executor}


def code_dtype(datapath: Datapath) -> type:
    """Return int32 where the accumulator fits it, else int64."""
    register = datapath.accumulator.register_format
    fits = register is not None and register.minimum >= -(1 << 31) and register.maximum < 1 << 31
    return np.int32 if fits else np.int64
