"""Backends whose tensors stay on a device: native on its tensor cores, emulator on its integer ALUs (S4).

A layer hands over torch tensors and gets torch tensors (`multiply`), and nothing waits for the device: events are
counted there. Datapaths are lowered for the ranges of their formats, since looking at the codes would wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from fqtsim.backends.base import Array, Backend, Events, GemmResult, LevelTrace, Recorder, code_dtype
from fqtsim.backends.exact import operand_range
from fqtsim.backends.stepwise import start_values
from fqtsim.backends.torch_primitives import TorchPrimitives
from fqtsim.errors import BackendRefused, InputError
from fqtsim.hw.lower import BITS, Lowered, Range, lower
from fqtsim.hw.spec import Datapath
from fqtsim.kernels.gpu import proof
from fqtsim.kernels.gpu.datapath import DatapathResult, composed_datapath_gemm, datapath_gemm

TENSOR_CORES = "INT8 tensor cores (Triton, torch._int_mm)"
NO_DEVICE = "torch sees no CUDA device"
PROVEN_SHAPES = ((1, 1, 1), (3, 7, 5), (17, 130, 33), (64, 64, 64), (2, 140_001, 3))
"""(M, K, N) of the self-test; the last one wraps."""
HELD = ("int8", "uint8", "int16")
"""Types of codes that the kernels read."""


@dataclass(frozen=True, eq=False)
class DeviceResult:
    """One GEMM, or one per group, on the device: what GemmResult says, read when it is asked for."""

    #: (M, N) or (G, M, N).
    codes: torch.Tensor
    #: int64 (6,): altered, out of range, transient; smallest and largest U; codes that are a rail.
    counts: torch.Tensor
    trace: tuple[LevelTrace, ...] | None = None

    @cached_property
    def _read(self) -> list[int]:
        return [int(count) for count in self.counts.tolist()]

    @property
    def events(self) -> Events:
        """The events. Waits for the device, as the three below do."""
        return Events(*self._read[:3])

    @property
    def minimum(self) -> int:
        """The smallest U."""
        return self._read[3]

    @property
    def maximum(self) -> int:
        """The largest U."""
        return self._read[4]

    @property
    def at_rail(self) -> int:
        """Outputs whose code is a rail of the accumulator."""
        return self._read[5]


class DeviceBackend(Backend):
    """What both have in common. `device` "cpu" runs the same program by torch operations: for tests."""

    def __init__(self, device: str = "cuda") -> None:
        self.device = device
        self.recorder: Recorder | None = cuda_graph if device != "cpu" else None
        self.lowered = lru_cache(maxsize=4096)(self._lowered)

    @cached_property
    def fault(self) -> str | None:
        """Why this device's products cannot be trusted; None where they passed the self-test, or on the CPU."""
        if self.device == "cpu":
            return None
        return self.wrong_kernel() if torch.cuda.is_available() else NO_DEVICE

    def wrong_kernel(self) -> str | None:
        """Return the first product that the self-test finds wrong on this device, or None."""
        return proof.fault(self.device, PROVEN_SHAPES) or proof.convolution_fault(self.device)

    @cached_property
    def primitives(self) -> TorchPrimitives:  # type: ignore[override]
        """The float operations of the device. Raises BackendRefused where there is none."""
        if self.fault is not None:
            raise BackendRefused(f"{self.name}@{self.device}: {self.fault}; use backend emulator")
        return TorchPrimitives(self.device)

    def _lowered(self, datapath: Datapath, k: int) -> Lowered:
        a, b = (datapath.multiplier_format(operand) for operand in ("a", "b"))
        return lower(datapath, k, Range(a.minimum, a.maximum), Range(b.minimum, b.maximum), Range(0, 0))

    def refusal(self, datapath: Datapath, k: int) -> str | None:
        if self.fault is not None:
            return self.fault
        for operand in ("a", "b"):
            form = datapath.multiplier_format(operand)
            if form.storage not in HELD:
                return f"operands of {form} have no device form"
        try:
            self.lowered(datapath, k)
        except InputError as error:  # of the formats' widest operands; those of a call may need less
            return str(error)
        return None

    def multiply(self, a: torch.Tensor, b: torch.Tensor, datapath: Datapath) -> DeviceResult:
        """Multiply codes (M, K) by (K, N), or (G, M, K) by (G, K, N), on the device. Raises BackendRefused."""
        reason = self.refusal(datapath, a.shape[-1])
        if reason is not None:
            raise BackendRefused(f"{self.name}@{self.device}: {reason}; use backend stepwise or emulator")
        return _result(datapath_gemm(a, b, self.lowered(datapath, a.shape[-1])))

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        reason = self.refusal(datapath, a.shape[1])
        if reason is None and trace:
            reason = "there is no trace on a device"
        if reason is not None:
            raise BackendRefused(f"{self.name}@{self.device}: {reason}; use backend stepwise or emulator")
        start = start_values(c, a.shape[0], b.shape[1])
        starts = Range(0, 0) if start is None else operand_range(start)
        lowered = lower(datapath, a.shape[1], operand_range(a), operand_range(b), starts)
        self._check_start(lowered)
        p = self.primitives
        found = _result(datapath_gemm(p.array(a), p.array(b), lowered, None if start is None else p.array(start)))
        codes: Array = found.codes.cpu().numpy().astype(code_dtype(datapath), copy=False)
        return GemmResult(codes, found.events, found.minimum, found.maximum, found.at_rail)

    def _check_start(self, lowered: Lowered) -> None:
        """Raise BackendRefused where start values lead to what this backend cannot guarantee."""


def cuda_graph(program: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Record what a program launches as a CUDA graph: Recorder. Nothing is computed before the first replay."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            result = program()
    except BaseException:
        torch.cuda.set_stream(stream)  # which torch leaves out where the end of the capture fails
        raise
    return result, graph.replay


def _result(found: DatapathResult) -> DeviceResult:
    return DeviceResult(found.codes, torch.cat((found.events, found.extremes, found.at_rail)))


class DeviceNative(DeviceBackend):
    """INT8 products of the device's tensor cores, for datapaths whose result they cannot get wrong."""

    name = "native"

    @property
    def executor(self) -> str:
        return f"{TENSOR_CORES}@{self.device}"

    def refusal(self, datapath: Datapath, k: int) -> str | None:
        if self.fault is not None:
            return self.fault
        formats = (datapath.multiplier_format("a"), datapath.multiplier_format("b"))
        wide = [form for form in formats if form.storage not in ("int8", "uint8")]
        if wide:
            return f"operands of {wide[0]} do not fit INT8 instructions"
        reason = super().refusal(datapath, k)
        if reason is not None or _safe(self.lowered(datapath, k)):
            return reason
        return "a register can overflow and INT8 instructions neither saturate nor narrow there"

    def _check_start(self, lowered: Lowered) -> None:
        if not _safe(lowered):
            raise BackendRefused(
                f"native@{self.device}: a register can overflow from these start values; use backend stepwise"
            )


def _safe(lowered: Lowered) -> bool:
    return lowered.never_overflows or (lowered.order_free_wrap and bool(lowered.accumulator[BITS] <= 32))


class DeviceEmulator(DeviceBackend):
    """Every datapath on the integer ALUs, tensor cores where order cannot matter."""

    name = "emulator"

    @property
    def executor(self) -> str:
        return f"integer ALUs@{self.device}, and {TENSOR_CORES} where order cannot matter"

    def wrong_kernel(self) -> str | None:
        found = super().wrong_kernel()
        return found or next((f"a chain {name} is wrong" for name in CHAINS if not self._performs(name)), None)

    def _performs(self, name: str) -> bool:
        """Tell whether a chain gives the codes and counts of torch operations on the CPU."""
        plain = {"a": "uint8", "b": "int8", "zero_point": "none", "levels": CHAINS[name]}
        path, generator = Datapath.model_validate(plain), torch.Generator().manual_seed(2)
        a = proof.operand((1 * 19, 150), torch.uint8, generator)[None]
        b = proof.operand((150, 12), torch.int8, generator)[None]
        lowered = self.lowered(path, a.shape[2])
        ours, theirs = (
            datapath_gemm(a.to(self.device), b.to(self.device), lowered),
            composed_datapath_gemm(a, b, lowered),
        )
        pairs = zip(ours[:4], theirs[:4], strict=True)
        return all(torch.equal(x.cpu().to(torch.int64), y.to(torch.int64)) for x, y in pairs)


CHAINS: Mapping[str, list[Mapping[str, Any]]] = {
    "of a saturating register": [{"terms": "all", "register": "int20", "overflow": "saturate"}],
    "of sums of four": [
        {"terms": 4, "register": "exact"}, {"terms": "all", "register": "int16", "overflow": "saturate"},
    ],
    "of lanes with dropped bits": [
        {"lanes": 3, "item": {"drop_bits": 2, "rounding": "ties_to_even"}, "register": "int13", "overflow": "saturate"},
        {"terms": "all", "register": "int14", "overflow": "wrap"},
    ],
}  # fmt: skip
"""Levels of the emulator's self-test: one of each kernel."""


EMPTY_RECORD = np.array([(1 << 63) - 1, -(1 << 63) + 1, 0, 0], np.int64)
"""Watch.record before anything was seen; a device keeps a copy."""
