"""Area of a datapath per multiplier, from recorded figures and a few stated rules.

Rules, beyond the recorded MACs (a signed multiplier and an accumulator):

- An accumulator width between two recorded ones is interpolated, outside them extrapolated, along straight lines.
- A straight line through the wrapping MACs splits an area into multiplier (its value at width 0) and bits of
  accumulator (its slope). Another multiplier scales with the product of its operand widths, as array multipliers do;
  an unsigned operand counts as a signed one.
- `terms: n` with an exact register is an adder tree under n multipliers, pairwise, each adder as wide as its largest
  sum. An adder bit counts as an accumulator bit, flip-flop included, as in a pipelined tree.
- `terms: 1` is a cast: wrapping costs nothing, saturating what it adds to an accumulator of that width.
- Dropping bits `toward_negative` costs nothing: the wires end.

A description says what a sum is, not whether it forms in space or in time. What these rules do not cover has no area,
with the reason. Zero points cost nothing here: they are subtracted once per operand, or corrected once per output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import linear_regression
from typing import Protocol

from fqtsim.cost.figures import RECORDED, Figures
from fqtsim.hw.spec import Datapath, Hardware, Level
from fqtsim.words import GEMMS, IntFormat, Overflow, Rounding, ZeroPoint


@dataclass(frozen=True)
class Area:
    """The area of one multiplier with its share of adders and registers, or the reason why there is none."""

    #: Gate equivalents; None where no rule gives them.
    ge: float | None
    #: Whether every figure in it was recorded: nothing interpolated, nothing estimated.
    exact: bool
    #: How it came about, or why there is none.
    note: str


@dataclass(frozen=True)
class Ratio:
    """One area over another, or the reason why there is none."""

    value: float | None
    #: Whether every figure in it was recorded.
    exact: bool
    #: How it came about, or why there is none.
    note: str

    def __str__(self) -> str:
        if self.value is None:
            return "unknown"
        return f"{'' if self.exact else 'about '}{self.value:.2f} x"


class AreaSource(Protocol):
    """Where areas come from: recorded figures today; a generator that synthesises the datapath fits here too."""

    @property
    def name(self) -> str:
        """What reports call the source."""

    @property
    def citation(self) -> str:
        """The source in one line."""

    def mac_area(self, datapath: Datapath) -> Area:
        """Return gate equivalents per multiplier."""


class _NoBasis(Exception):
    """No rule covers a datapath; the message says which part of it."""


@dataclass(frozen=True)
class RecordedAreas:
    """Areas from recorded figures, by the rules of this module."""

    figures: Figures = RECORDED

    @property
    def name(self) -> str:
        """What reports call the source."""
        return self.figures.name

    @property
    def citation(self) -> str:
        """The source in one line."""
        return self.figures.citation

    def mac_area(self, datapath: Datapath) -> Area:
        """Return gate equivalents per multiplier of the datapath, or the reason why no rule gives them."""
        try:
            return self._area(datapath)
        except _NoBasis as reason:
            return Area(None, False, str(reason))

    def _area(self, datapath: Datapath) -> Area:
        notes: list[str] = []
        a, b = datapath.multiplier_format("a"), datapath.multiplier_format("b")
        total = self._multiplier(a, b, notes)
        low, high = _products(datapath)
        shared = 1
        for index, level in enumerate(datapath.levels):
            low, high = _dropped(level, low, high, notes)
            if level.grouping == "all":
                return Area(total + self._accumulator(level, notes) / shared, not notes, "; ".join(notes) or "recorded")
            count = _run_length(level, index)
            if level.register_format is None:
                total += self._slope * _adder_bits(count, low, high) / (count * shared)
                if count > 1:
                    notes.append(f"estimate: tree of {count}, an adder bit counted as an accumulator bit")
            else:
                total += self._cast(level, notes) / shared
                rails = level.register_format.rails(level.overflow)
                low, high = (max(low, rails[0]), min(high, rails[1])) if _saturates(level) else rails
            low, high, shared = low * count, high * count, shared * count
        raise _NoBasis("no accumulator")

    @property
    def _slope(self) -> float:
        """Gate equivalents of one bit of accumulator."""
        return linear_regression(list(self.figures.wrap), list(self.figures.wrap.values())).slope

    @property
    def _recorded_multiplier(self) -> float:
        """Gate equivalents of the recorded multiplier: what the line of the wrapping MACs has left at width 0."""
        return linear_regression(list(self.figures.wrap), list(self.figures.wrap.values())).intercept

    def _multiplier(self, a: IntFormat, b: IntFormat, notes: list[str]) -> float:
        recorded = self.figures.operand_bits
        if not (a.signed and b.signed):
            notes.append("estimate: an unsigned operand counted as signed")
        if (a.bits, b.bits) != (recorded, recorded):
            notes.append(f"estimate: {a.bits} x {b.bits} multiplier scaled from {recorded} x {recorded}")
        return self._recorded_multiplier * a.bits * b.bits / recorded**2

    def _accumulator(self, level: Level, notes: list[str]) -> float:
        register = level.register_format
        if register is None:
            raise _NoBasis("an exact accumulator has no width")
        if not register.signed:
            notes.append("estimate: an unsigned accumulator counted as signed")
        if level.overflow is Overflow.SATURATE_SYMMETRIC:
            notes.append("estimate: saturate_symmetric counted as saturate")
        table = self.figures.saturate if _saturates(level) else self.figures.wrap
        found, note = _on_lines(table, register.bits)
        if note:
            notes.append(note)
        return found - self._recorded_multiplier

    def _cast(self, level: Level, notes: list[str]) -> float:
        if not _saturates(level) or level.register_format is None:
            return 0.0
        bits = level.register_format.bits
        notes.append(f"estimate: saturation to {bits} bits as at an accumulator")
        return _on_lines(self.figures.saturate, bits)[0] - _on_lines(self.figures.wrap, bits)[0]


def _saturates(level: Level) -> bool:
    return level.overflow in (Overflow.SATURATE, Overflow.SATURATE_SYMMETRIC)


def _on_lines(figures: Mapping[int, float], bits: int) -> tuple[float, str]:
    """Return the area at `bits` and how it was found, "" where it was recorded."""
    if bits in figures:
        return figures[bits], ""
    widths = sorted(figures)
    low, high = next(((x, y) for x, y in pairwise(widths) if bits < y), (widths[-2], widths[-1]))
    value = figures[low] + (figures[high] - figures[low]) * (bits - low) / (high - low)
    inside = low < bits < high
    return value, f"{'interpolated' if inside else 'extrapolated'} from {low} and {high} to {bits} bits"


def _products(datapath: Datapath) -> tuple[int, int]:
    a, b = datapath.multiplier_format("a"), datapath.multiplier_format("b")
    corners = [x * y for x in (a.minimum, a.maximum) for y in (b.minimum, b.maximum)]
    return min(corners), max(corners)


def _dropped(level: Level, low: int, high: int, notes: list[str]) -> tuple[int, int]:
    if level.item is None:
        return low, high
    if level.item.rounding is not Rounding.TOWARD_NEGATIVE:
        raise _NoBasis(f"no recorded figure for dropping bits with rounding {level.item.rounding}")
    notes.append(f"estimate: dropping {level.dropped_bits} bits counted as free")
    return low >> level.dropped_bits, high >> level.dropped_bits


def _run_length(level: Level, index: int) -> int:
    """Return n of `terms: n`, of a tree or of a cast."""
    if level.grouping != "terms" or level.count is None:
        raise _NoBasis(f"level {index} has {level.grouping}: the description does not say how many adders share it")
    if level.register_format is not None and level.count > 1:
        raise _NoBasis(
            f"level {index} sums {level.count} items in {level.register}: "
            "the description does not say whether in space or in time"
        )
    return level.count


@lru_cache(maxsize=4096)
def _adder_bits(count: int, low: int, high: int) -> int:
    """Return the bits of all adders together of a pairwise tree over `count` items in low..high."""
    if count == 1:
        return 0
    width = max((-low * count - 1).bit_length() if low < 0 else 0, (high * count).bit_length() if high > 0 else 0) + 1
    return _adder_bits(count // 2, low, high) + _adder_bits(count - count // 2, low, high) + width


RECORDED_AREAS = RecordedAreas()
#: What ratios compare with: a wrapping 32-bit accumulator behind a multiplier of two signed 8-bit codes.
BASELINE = Datapath(
    a="int8", b="int8", zero_point=ZeroPoint.NONE,
    levels=(Level(terms="all", register="int32", overflow=Overflow.WRAP),),
)  # fmt: skip
BASELINE_WORDS = "a MAC of two signed 8-bit operands with a wrapping 32-bit accumulator"


def mac_area(datapath: Datapath, source: AreaSource = RECORDED_AREAS) -> Area:
    """Return the area of one multiplier with its share of adders and registers, in gate equivalents."""
    return source.mac_area(datapath)


def relative_area(
    hardware: Hardware | Datapath | Sequence[Datapath],
    baseline: Datapath = BASELINE,
    source: AreaSource = RECORDED_AREAS,
) -> Ratio:
    """Return the area per multiplier over that of `baseline`.

    One array runs everything, so the largest of several datapaths (of a Hardware: its three GEMMs) counts. One
    of them without an area leaves the whole without.
    """
    paths = _paths(hardware)
    if not paths:
        return Ratio(None, False, "no integer GEMM runs on it")
    below = source.mac_area(baseline)
    if below.ge is None:
        return Ratio(None, False, f"the baseline has no area: {below.note}")
    ratios = []
    for area in map(source.mac_area, paths):
        if area.ge is None:
            return Ratio(None, False, area.note)
        ratios.append(Ratio(area.ge / below.ge, area.exact and below.exact, area.note))
    return max(ratios, key=lambda ratio: (ratio.value or 0.0, not ratio.exact))


def _paths(hardware: Hardware | Datapath | Sequence[Datapath]) -> list[Datapath]:
    if isinstance(hardware, Hardware):
        return [hardware.datapath_for(gemm) for gemm in GEMMS]
    return [hardware] if isinstance(hardware, Datapath) else list(hardware)
