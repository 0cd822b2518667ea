"""What a cross-check found: how much it compared, and the first difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fqtsim.backends.base import Events, GemmResult
from fqtsim.crosscheck.locate import PartialSum
from fqtsim.train.reproducer import Reproducer


@dataclass
class Coverage:
    """How much a comparison exercised; a comparison of nothing proves nothing."""

    #: GEMMs compared, by kind: fprop, dgrad, wgrad.
    gemms: dict[str, int] = field(default_factory=dict)
    #: Outputs compared.
    outputs: int = 0
    #: What the hardware changed among them.
    events: Events = field(default_factory=Events)
    #: Outputs equal to a rail of the accumulator.
    at_rail: int = 0
    #: Values exactly between two codes, where a quantizer's rounding to nearest was decided by its word.
    ties: int = 0
    #: Steps whose whole state was compared by digest.
    steps: int = 0

    def add(self, gemm: str, result: GemmResult) -> None:
        """Count one more GEMM that agreed."""
        self.gemms[gemm] = self.gemms.get(gemm, 0) + 1
        self.outputs += result.codes.size
        self.events += result.events
        self.at_rail += result.at_rail

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {gemm}" for gemm, count in sorted(self.gemms.items()))
        total, events = sum(self.gemms.values()), self.events
        lines = [
            f"compared   {self.steps} steps, {total} GEMMs ({kinds or 'none'}), {self.outputs} outputs",
            f"exercised  {events.altered} outputs altered by the hardware ({events.out_of_range} out of "
            f"range, {events.transient} transient), {self.at_rail} at a rail; {self.ties} ties rounded by quantizers",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Difference:
    """The first place where two backends part."""

    #: Training step, counted from 1.
    step: int
    #: "codes" of an output, "operand" of a GEMM, "report" (events, extremes), "order" of GEMMs, or "state".
    kind: str
    #: One sentence: what differs.
    what: str
    #: Backend -> what it has there, as text.
    values: Mapping[str, str]
    layer: str = ""
    gemm: str = ""
    row: int | None = None
    col: int | None = None
    #: Names of the backends that depart from the reference; empty where it cannot say.
    wrong: tuple[str, ...] = ()
    #: The first partial sum that differs, of each wrong backend.
    partial_sums: tuple[PartialSum, ...] = ()
    #: What the step done again says of the primitive at fault.
    primitive: str = ""
    #: The GEMM or primitive with its operands, for a file that `fqtsim explain` reads.
    reproducer: Reproducer | None = None

    def __str__(self) -> str:
        place = [f"step {self.step}"]
        if self.layer:
            place += [f"layer {self.layer}", self.gemm]
        if self.row is not None:
            place += [f"row {self.row}", f"column {self.col}"]
        width = max(map(len, self.values), default=0)
        lines = [f"MISMATCH   {', '.join(place)}: {self.what}"]
        lines += [f"  {name:<{width}}  {value}" for name, value in self.values.items()]
        if self.wrong:
            lines.append(f"  against the reference: {', '.join(self.wrong)} wrong")
        lines += [str(partial) for partial in self.partial_sums]
        if self.primitive:
            lines.append(f"  {self.primitive}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """How a cross-check ended."""

    #: Name -> who multiplies.
    backends: Mapping[str, str]
    coverage: Coverage
    #: None where everything compared is equal.
    difference: Difference | None
    #: The common digest after the last equal step.
    digest: str

    @property
    def passed(self) -> bool:
        return self.difference is None

    def __str__(self) -> str:
        who = "; ".join(f"{name}: {executor}" for name, executor in self.backends.items())
        lines = [f"backends   {who}", str(self.coverage)]
        if self.difference is not None:
            lines.append(str(self.difference))
        else:
            lines += [f"digest     {self.digest}", "equal      every code, event and state digest"]
            if not self.coverage.events.altered and not self.coverage.at_rail:
                lines.append(
                    "note       nothing saturated or wrapped: this says nothing about overflow or the order of k"
                )
        return "\n".join(lines)
