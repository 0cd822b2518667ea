"""What the runs of each design amount to: one summary per design, from rows to numbers. No files, no words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from fqtsim.cost import Ratio, gemm_traffic, relative_area
from fqtsim.errors import InputError
from fqtsim.evaluate.statistics import Accuracy, Difference, Row, chance, mean_accuracy, paired
from fqtsim.hw.spec import Hardware
from fqtsim.words import GEMMS

FP32, QAT = "fp32", "qat"
BASELINES = (FP32, QAT)


@dataclass(frozen=True)
class GemmSummary:
    """One GEMM of one layer over all runs of a design."""

    layer: str
    gemm: str
    m: int
    n: int
    k: int
    #: Counts over all runs.
    outputs: int
    altered: int
    out_of_range: int
    transient: int
    #: Smallest signed width that holds every result of an unlimited datapath.
    bits_needed: int
    #: The accumulator as the description writes it, its overflow word included.
    accumulator: str
    area: Ratio
    #: Multiply-accumulate operations and bits of one training step; results None on an exact accumulator.
    operations: float
    operand_bits: float
    result_bits: float | None
    #: Width of the accumulator, None where it is exact.
    register_bits: int | None


@dataclass(frozen=True)
class LayerGradient:
    """Squared bias and variance of one layer's weight gradient over its squared norm, averaged over seeds."""

    layer: str
    bias: float
    variance: float


@dataclass(frozen=True)
class DesignSummary:
    """One design: its runs, how well it trains, what the hardware did, and what it costs."""

    #: Its place in every table and figure, from 1.
    number: int
    label: str
    recipe: str
    model: str
    data: str
    #: Points of accuracy that a design may lose.
    tolerance: float
    #: The runs, in order of seeds.
    rows: tuple[Row, ...]
    accuracy: Accuracy | None
    against_fp32: Difference | None
    against_qat: Difference | None
    #: Mean accuracy of the baseline runs that it is judged by; None without one.
    baseline_accuracy: float | None
    #: Accuracy of guessing.
    chance: float
    #: Final loss, mean over the runs that ended.
    loss: float | None
    gemms: tuple[GemmSummary, ...]
    gradients: tuple[LayerGradient, ...]
    area: Ratio
    #: Seconds of a run, on average.
    seconds: float

    @property
    def baseline(self) -> bool:
        """Whether others are compared with it: no gradient runs on its hardware."""
        return self.recipe in BASELINES

    @property
    def against(self) -> tuple[str, Difference] | None:
        """The comparison that decides: with fp32, or with QAT where there is no fp32."""
        if self.against_fp32 is not None:
            return FP32, self.against_fp32
        return (QAT, self.against_qat) if self.against_qat is not None else None

    @property
    def outputs(self) -> int:
        """GEMM outputs of all runs."""
        return sum(gemm.outputs for gemm in self.gemms)

    @property
    def altered(self) -> int:
        """Outputs that the hardware changed."""
        return sum(gemm.altered for gemm in self.gemms)

    @property
    def transient(self) -> int:
        """Outputs that were changed although they fit the accumulator."""
        return sum(gemm.transient for gemm in self.gemms)

    @property
    def widest(self) -> GemmSummary | None:
        """The GEMM that needs the widest accumulator."""
        return max(self.gemms, key=lambda gemm: gemm.bits_needed, default=None)

    def with_status(self, status: str) -> tuple[Row, ...]:
        """Return the runs that ended as `status`: done, diverged or failed."""
        return tuple(row for row in self.rows if row["status"] == status)


def summarize(rows: Iterable[Row], tolerance: float) -> list[DesignSummary]:
    """Return one summary per design: baselines first, others as they first appear.

    A design is compared with the fp32 and QAT runs of the same model, data, batch and steps, seed by seed.
    `tolerance` is in points of accuracy. Raises InputError for two runs of one design with one seed.
    """
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"tolerance = {tolerance}: must be at least 0; give points of accuracy, for example 1.0")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_identity(row), []).append(row)
    for group in groups.values():
        group.sort(key=lambda row: row["seed"])
        _refuse_twice(group)
    order = {recipe: place for place, recipe in enumerate(BASELINES)}
    ordered = sorted(groups.values(), key=lambda group: order.get(group[0]["design"]["recipe"], len(order)))
    found = [_summary(number, group, ordered, tolerance) for number, group in enumerate(ordered, 1)]
    return _told_apart(found)


def short_names(summaries: Sequence[DesignSummary]) -> dict[int, str]:
    """Return number -> label without the words that all designs share."""
    words = [_words(summary.label) for summary in summaries if not summary.baseline]
    common = set(words[0]).intersection(*words[1:]) if len(words) > 1 else set()
    found = {}
    for summary in summaries:
        kept = " ".join(word for word in _words(summary.label) if word not in common)
        found[summary.number] = kept or summary.label
    return found if len(set(found.values())) == len(found) else {one.number: one.label for one in summaries}


def _words(label: str) -> list[str]:
    """Split a label at its spaces, but not inside brackets: a list of levels is one word."""
    words, depth = [""], 0
    for letter in label:
        depth += (letter in "[{(") - (letter in ")}]")
        if letter == " " and depth <= 0:
            words.append("")
        else:
            words[-1] += letter
    return [word for word in words if word]


def hardware_of(row: Row) -> dict[str, Hardware]:
    """Return the descriptions of a run by pattern of layer names."""
    return {pattern: _parsed(json.dumps(dump)) for pattern, dump in row["hardware"].items()}


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of (cost, gain) points that none equals or beats in both and beats in one, by cost."""
    front: list[int] = []
    best = -np.inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        cost, gain = points[index]
        if gain > best or (front and points[front[-1]] == (cost, gain)):
            front.append(index)
            best = gain
    return front


def _identity(row: Row) -> str:
    design = {key: value for key, value in row["design"].items() if key != "label"}
    if design["recipe"] == FP32:  # it runs nothing on the hardware
        design |= {"hardware": [], "set_hardware": {}}
    return json.dumps([row["model"], row["data"], row["batch"], row["steps"], design], sort_keys=True)


def _refuse_twice(group: Sequence[Row]) -> None:
    for before, row in pairwise(group):
        if before["seed"] == row["seed"]:
            raise InputError(
                f"design {row['design']['label']}, seed {row['seed']}: two runs ({before['key'][:12]}, "
                f"{row['key'][:12]}), of another data set, measurement or version; keep them in folders of their own"
            )


def _told_apart(summaries: list[DesignSummary]) -> list[DesignSummary]:
    """Add model, data and steps to labels that occur twice."""
    labels = [summary.label for summary in summaries]
    return [
        replace(summary, label=f"{summary.label} ({summary.model}, {summary.data}, {summary.rows[0]['steps']} steps)")
        if labels.count(summary.label) > 1
        else summary
        for summary in summaries
    ]


def _summary(number: int, rows: Sequence[Row], groups: Sequence[Sequence[Row]], tolerance: float) -> DesignSummary:
    first = rows[0]
    recipe = first["design"]["recipe"]
    fp32, qat = ([] if recipe == name else _baseline(first, name, groups) for name in BASELINES)
    against_qat = paired(rows, qat) if recipe != FP32 else None
    judged = [float(row["accuracy"]) for row in (fp32 or qat) if row["status"] == "done"]
    losses = [row["loss"] for row in rows if row["status"] == "done" and row["loss"] is not None]
    ended = [row for row in rows if row["status"] != "failed"]
    return DesignSummary(
        number=number, label=first["design"]["label"], recipe=recipe, model=first["model"], data=first["data"],
        tolerance=tolerance, rows=tuple(rows), accuracy=mean_accuracy(rows), against_fp32=paired(rows, fp32),
        against_qat=against_qat, baseline_accuracy=float(np.mean(judged)) if judged else None, chance=chance(first),
        loss=float(np.mean(losses)) if losses else None, gemms=_gemms(ended), gradients=_gradients(rows),
        area=_area(rows), seconds=float(np.mean([row["seconds"] for row in ended])) if ended else 0.0,
    )  # fmt: skip


def _baseline(row: Row, recipe: str, groups: Sequence[Sequence[Row]]) -> Sequence[Row]:
    """Return the runs of the baseline that a design is compared with: most alike in what was set."""
    same = [
        group
        for group in groups
        if group[0]["design"]["recipe"] == recipe
        and all(group[0][key] == row[key] for key in ("model", "data", "batch", "steps"))
    ]
    ours = row["design"]

    def alike(group: Sequence[Row]) -> tuple[bool, ...]:
        theirs = group[0]["design"]
        return (
            theirs["set_recipe"] == ours["set_recipe"],
            theirs["hardware"] == ours["hardware"],
            theirs["set_hardware"] == ours["set_hardware"],
            not theirs["set_recipe"],
        )

    return max(same, key=alike, default=[])


def _gemms(rows: Sequence[Row]) -> tuple[GemmSummary, ...]:
    events: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        for event in row["events"]:
            events.setdefault((event["layer"], event["gemm"]), []).append(event)
    steps = sum(row["steps"] if row["failed_step"] is None else row["failed_step"] + 1 for row in rows)
    hardware = hardware_of(rows[0]) if rows else {}
    return tuple(_gemm(found, _serving(layer, hardware), steps) for (layer, _), found in events.items())


def _serving(layer: str, hardware: Mapping[str, Hardware]) -> Hardware:
    for pattern, description in hardware.items():
        if fnmatchcase(layer, pattern):
            return description
    raise InputError(f"layer {layer}: no pattern of its run matches it ({', '.join(hardware)}); run it again")


def _gemm(events: Sequence[Mapping[str, Any]], hardware: Hardware, steps: int) -> GemmSummary:
    last = events[-1]
    datapath = hardware.datapath_for(last["gemm"])
    total = {key: sum(int(event[key]) for event in events) for key in ("outputs", "altered", "out_of_range")}
    traffic = gemm_traffic(last, datapath)
    # A grouped convolution is one GEMM per group, so a step may do several of the recorded shape.
    calls = total["outputs"] / max(1, last["m"] * last["n"]) / max(1, steps)
    accumulator = datapath.accumulator
    return GemmSummary(
        layer=last["layer"], gemm=last["gemm"], m=last["m"], n=last["n"], k=last["k"], **total,
        transient=sum(int(event["transient"]) for event in events),
        bits_needed=max(int(event["bits_needed"]) for event in events),
        accumulator=" ".join(str(word) for word in (accumulator.register, accumulator.overflow) if word),
        area=relative_area(datapath), operations=calls * traffic.operations,
        operand_bits=calls * traffic.operand_bits,
        result_bits=None if traffic.result_bits is None else calls * traffic.result_bits,
        register_bits=traffic.register_bits,
    )  # fmt: skip


def _gradients(rows: Sequence[Row]) -> tuple[LayerGradient, ...]:
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for line in row["gradients"]:
            found.setdefault(line["layer"], []).append((line["bias"], line["variance"]))
    return tuple(LayerGradient(layer, *map(float, np.mean(values, axis=0))) for layer, values in found.items())


def _area(rows: Sequence[Row]) -> Ratio:
    """Return the relative area of the array that runs every GEMM of every layer that was seen."""
    recipe = rows[0]["design"]["recipe"]
    if recipe in BASELINES:
        return Ratio(None, False, "its gradients are float: no integer array could train it")
    hardware = hardware_of(rows[0])
    layers = {event["layer"] for row in rows for event in row["events"]}
    used = [_serving(layer, hardware) for layer in sorted(layers)] or list(hardware.values())
    return relative_area([description.datapath_for(gemm) for description in used for gemm in GEMMS])


@lru_cache(maxsize=256)
def _parsed(dump: str) -> Hardware:
    return Hardware.model_validate(json.loads(dump))
