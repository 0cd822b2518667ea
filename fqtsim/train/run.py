"""What all layers of one network share while it runs: backend, seed, step, observers and the report of events."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from fqtsim.backends.base import Backend, Events, GemmResult
from fqtsim.backends.checksum import Checksum
from fqtsim.backends.primitives import Primitives
from fqtsim.hw.spec import Datapath
from fqtsim.train.operands import Array
from fqtsim.train.tally import Entry, Tally

Observer = Callable[[str, str, Array, Array, Datapath, Any, GemmResult], None]
"""Called after every GEMM as (layer, gemm, a, b, datapath, c, result), a and b exactly as the backend got them."""


class Watching(Protocol):
    """Who checks the products of a step: fqtsim.train.checks.Checker."""

    @property
    def recordable(self) -> bool:
        """Whether every step does the same, so that a recorded one may be replayed."""

    def checksum(self, layer: str, gemm: str, datapath: Datapath, shape: tuple[int, int]) -> Checksum | None:
        """Return what takes the sums of the codes of a GEMM whose rows count `shape` (RowWords), or None."""

    def watch(self, product: Any) -> None:
        """See a product of a layer (products.Product), whatever kernel made it."""

    def apart(self) -> AbstractContextManager[Any]:
        """Collect what is found for a while in a thing of its own, which has `tensors()`; `merge` takes that."""

    def merge(self, found: Any) -> None:
        """Take what a step has found."""


def bits_needed(minimum: int, maximum: int) -> int:
    """Return the smallest signed width that holds every integer from minimum to maximum."""
    return max((-minimum - 1).bit_length() if minimum < 0 else 0, maximum.bit_length() if maximum > 0 else 0) + 1


@dataclass
class Record:
    """What one GEMM of one layer did since the last reset."""

    m: int
    n: int
    k: int
    outputs: int = 0
    events: Events = field(default_factory=lambda: Events(0, 0, 0))
    minimum: int | None = None
    maximum: int | None = None
    partial: tuple[int, int] | None = None

    def add(self, shape: tuple[int, int, int], result: GemmResult) -> None:
        """Count one more GEMM; m, n and k are those of the latest."""
        self.m, self.n, self.k = shape
        outputs = self.m * self.n
        if not outputs:
            return
        self.outputs += outputs
        self.events = self.events + result.events
        self.minimum = result.minimum if self.minimum is None else min(self.minimum, result.minimum)
        self.maximum = result.maximum if self.maximum is None else max(self.maximum, result.maximum)
        for level in result.trace or ():
            low, high = self.partial or (level.minimum, level.maximum)
            self.partial = min(low, level.minimum), max(high, level.maximum)

    def add_counts(self, counts: list[int]) -> None:
        """Count what a device counted: altered, out of range, transient, smallest and largest U, codes at a rail."""
        self.events = self.events + Events(*counts[:3])
        self.minimum = counts[3] if self.minimum is None else min(self.minimum, counts[3])
        self.maximum = counts[4] if self.maximum is None else max(self.maximum, counts[4])

    def row(self, layer: str, gemm: str) -> dict[str, Any]:
        """Return the record as one line of `net.report()`."""
        low, high = self.minimum or 0, self.maximum or 0
        line: dict[str, Any] = {
            "layer": layer, "gemm": gemm, "m": self.m, "n": self.n, "k": self.k, "outputs": self.outputs,
            "altered": self.events.altered, "out_of_range": self.events.out_of_range,
            "transient": self.events.transient, "minimum": low, "maximum": high,
            "bits_needed": bits_needed(low, high),
        }  # fmt: skip
        if self.partial is not None:
            line["bits_needed_partial"] = bits_needed(*self.partial)
        return line


@dataclass
class Run:
    """The state that layers of one network share."""

    backend: Backend
    seed: int
    #: Index of the training step that the next backward belongs to.
    step_index: int = 0
    #: Ask the backend for traces: slower, and the report gains bits_needed_partial.
    trace: bool = False
    observers: list[Observer] = field(default_factory=list)
    #: Called with every layer's product (products.Product), whatever kernel made it.
    watchers: list[Callable[[Any], None]] = field(default_factory=list)
    #: Who checks this step, if anybody does.
    checks: Watching | None = None
    records: dict[tuple[str, str], Record] = field(default_factory=dict)
    #: Ties that quantizers with a rounding to nearest met since the last reset; an integer, or a tensor on a device.
    ties: Any = 0
    #: The step index as a tensor of the device, int64 (1,), where a recorded step reads it; else None.
    clock: Any = None
    #: The step index of the latest backward.
    differentiated: int | None = None

    #: Counts of GEMMs that ran on a device.
    tally: Tally = field(default_factory=Tally)

    @property
    def draw_index(self) -> Any:
        """What selects the random words: the step index, or the tensor that holds it."""
        return self.step_index if self.clock is None else self.clock

    @property
    def primitives(self) -> Primitives:
        """The float operations of the backend in use."""
        return self.backend.primitives

    def note(self, layer: str, gemm: str, shape: tuple[int, int, int], result: GemmResult) -> None:
        """Add one GEMM to the report."""
        record = self.records.setdefault((layer, gemm), Record(*shape))
        record.add(shape, result)

    def note_on_device(self, layer: str, gemm: str, shape: tuple[int, int, int], groups: int, counts: Any) -> None:
        """Add one GEMM, or one per group, whose counts (DeviceResult.counts) are read when somebody asks."""
        outputs = shape[0] * shape[1] * groups
        if outputs:
            self.tally.add(Entry((layer, gemm), shape, outputs), counts)
        else:
            self.records.setdefault((layer, gemm), Record(*shape))

    def read_tally(self) -> None:
        """Bring the counts of the device into the records."""
        for entry, times, counts in self.tally.read():
            record = self.records.setdefault(entry.key, Record(*entry.shape))
            record.m, record.n, record.k = entry.shape
            record.outputs += entry.outputs * times
            record.add_counts(counts)
