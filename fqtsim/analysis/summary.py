"""From parts to findings: rows with intervals and verdicts, the same whatever order and pieces the parts came in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fqtsim.analysis.batch import ALL, BACKWARD, FORWARD, QUANTIZATION, RANDOM_SOURCES
from fqtsim.analysis.decompose import contributions
from fqtsim.analysis.histograms import code_histogram, step_histogram
from fqtsim.analysis.result import Analysis, Bias, Bound, Contribution, CurvePoint, Histogram, Source, Variance, Verdict
from fqtsim.analysis.statistics import Floats, Interval, bias_intervals, combine
from fqtsim.analysis.store import Part
from fqtsim.errors import InputError
from fqtsim.train.loop import merge_events

#: Chance that the 95 % interval of a variance misses it.
TAIL = 0.05
BATCH, REFERENCE, CURVE = "batch", "reference", "curve"
_SOURCES: tuple[Source, ...] = (QUANTIZATION, BACKWARD, FORWARD, ALL)  # type: ignore[assignment]


def part_name(kind: str, number: int) -> str:
    """Return the name of the part of one batch: `batch 3`, `reference 7`, `curve ptq aligned 8 0`."""
    return f"{kind} {number}"


def parts_of(parts: Mapping[str, Part], kind: str) -> list[Part]:
    """Return the parts of one kind in the order of their batches."""
    found = [(int(name.rpartition(" ")[2]), part) for name, part in parts.items() if name.rpartition(" ")[0] == kind]
    return [part for _, part in sorted(found, key=lambda item: item[0])]


def verdict(found: Interval, reference: float, margin: float) -> Verdict:
    """Return what an interval of a squared bias says, beside the squared norm of the reference gradient."""
    limit = margin**2 * reference
    return "negligible" if found.high <= limit else "biased" if found.low > limit else "undecided"


def family(places: int, confidence: float) -> float:
    """Return the chance to miss left to each interval: Bonferroni over all layers, GEMMs and random sources."""
    return (1 - confidence) / (places * len(RANDOM_SOURCES))


def biases(batches: Sequence[Part], margin: float, confidence: float) -> list[Bias]:
    """Return the rows of bias, source by source."""
    places = [tuple(place) for place in batches[0].info["places"]]
    reference = np.mean([part.arrays["reference"] for part in batches], axis=0)
    tail = family(len(places), confidence)
    found = []
    for source in _SOURCES:
        if source == FORWARD:
            squared = np.mean([part.arrays["forward"] for part in batches], axis=0)
            intervals, variance = [Interval(float(v), float(v), float(v)) for v in squared], np.zeros(len(places))
        else:
            products = [part.products(source) for part in batches]
            intervals = bias_intervals(products, tail)
            variance = np.mean([one.variance().value for one in products], axis=0)
        for (layer, gemm), interval, norm, around in zip(places, intervals, reference, variance, strict=True):
            row = interval.value, interval.low, interval.high, float(norm), max(float(around), 0.0)
            found.append(Bias(source, layer, gemm, *row, verdict(interval, float(norm), margin)))
    return found


def minibatch(gradients: Sequence[Floats], sizes: Sequence[int]) -> list[float]:
    """Return, for each layer, the variance of the weight gradient between batches, summed over elements."""
    if len(gradients) < 2:
        raise InputError(f"batches = {len(gradients)}: the variance between batches needs at least 2; ask for more")
    stack = np.stack(gradients)
    around = stack - stack.mean(0)
    ends = np.cumsum(sizes)
    return [
        float(np.sum(around[:, end - size : end] ** 2)) / (len(stack) - 1)
        for end, size in zip(ends, sizes, strict=True)
    ]


def variances(batches: Sequence[Part], between: Sequence[float]) -> list[Variance]:
    """Return, for each layer, quantization variance with its interval beside the mini-batch variance."""
    layers = _layers(batches)
    found = combine([part.products(QUANTIZATION).variance() for part in batches], TAIL)[: len(layers)]
    return [
        Variance(layer, one.value, one.low, one.high, over)
        for layer, one, over in zip(layers, found, between, strict=True)
    ]


def _layers(batches: Sequence[Part]) -> list[str]:
    return [layer for layer, gemm in batches[0].info["places"] if gemm == "wgrad"]


def decomposition(batches: Sequence[Part]) -> list[Contribution]:
    """Return the lower-triangular matrix of Theorem 2, nothing where it was not measured."""
    layers = _layers(batches)
    if "pass 0.gram" not in batches[0].arrays:
        return []
    dgrad = [layer for layer, gemm in batches[0].info["places"] if gemm == "dgrad"]
    measured = []
    for part in batches:
        on, *off = (part.products(f"pass {count}") for count in range(len(layers)))
        measured.append((on, off))
    return contributions(layers, dgrad, measured, TAIL)


def bounds(batches: Sequence[Part]) -> list[Bound]:
    """Return measured variance and bound of every quantizer, means over batches."""
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for part in batches:
        for layer, port, measured, bound in part.info["bounds"]:
            rows.setdefault((layer, port), []).append((measured, bound))
    return [Bound(*key, *(float(value) for value in np.mean(found, axis=0))) for key, found in sorted(rows.items())]


def histograms(batches: Sequence[Part]) -> list[Histogram]:
    """Return the histograms of codes and of steps, added up over batches."""
    found: list[Histogram] = []
    for place, (layer, port, logarithmic) in enumerate(batches[0].info["counted"]):
        codes = np.sum([part.arrays[f"codes.{place}"] for part in batches], axis=0)
        steps = np.sum([part.arrays[f"steps.{place}"] for part in batches], axis=0)
        found += [code_histogram(layer, port, codes, logarithmic), step_histogram(layer, port, steps)]
    return found


def curve_point(point: tuple[str, str, int], parts: Sequence[Part]) -> CurvePoint:
    """Return one point of the curve from its parts, or why there is none."""
    stopped = next((str(part.info["stopped"]) for part in parts if "stopped" in part.info), "")
    if stopped:
        return CurvePoint(*point, 0.0, 0.0, 0.0, stopped)
    (found,) = combine([part.products("weights").variance() for part in parts], TAIL)
    return CurvePoint(*point, found.value, found.low, found.high)


def _events(batches: Iterable[Part]) -> tuple[dict[str, Any], ...]:
    rows: list[dict[str, Any]] = []
    for part in batches:
        rows = merge_events(rows, part.info["events"])
    return tuple(rows)


def summarize(settings: Mapping[str, Any], parts: Mapping[str, Part]) -> Analysis:
    """Return the findings of all parts. Raises InputError where there are too few of them."""
    batches = parts_of(parts, BATCH)
    if not batches:
        raise InputError("batches = 0: nothing measured; ask for at least 2")
    layers = _layers(batches)
    sizes = batches[0].info["sizes"][: len(layers)]
    names = {name.rpartition(" ")[2] for name in parts if name.startswith(f"{BATCH} ")}
    # A batch that another analysis measured in full counts once.
    extra = {n: p for n, p in parts.items() if n.startswith(f"{REFERENCE} ") and n.rpartition(" ")[2] not in names}
    everything = {**{n: p for n, p in parts.items() if n.startswith(f"{BATCH} ")}, **extra}
    ordered = sorted(everything.items(), key=lambda item: int(item[0].rpartition(" ")[2]))
    between = minibatch([part.arrays["gradient"] for _, part in ordered], sizes)
    points = [tuple(point) for point in settings.get("curve", ())]
    return Analysis(
        settings={**settings, "minibatch_batches": len(ordered)},
        biases=tuple(biases(batches, settings["margin"], settings["confidence"])),
        variances=tuple(variances(batches, between)),
        contributions=tuple(decomposition(batches)),
        bounds=tuple(bounds(batches)),
        histograms=tuple(histograms(batches)),
        curve=tuple(curve_point(p, parts_of(parts, curve_kind(p))) for p in points),
        minibatch=float(sum(between)),
        events=_events(batches),
    )


def curve_kind(point: tuple[str, str, int]) -> str:
    """Return the kind of the parts of a point: quantizer, zero form and bits."""
    return f"{CURVE} {point[0]} {point[1]} {point[2]}"
