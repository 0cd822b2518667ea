"""What the measured variances say: the table, the hypotheses and the figure, drawn as the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness
import numpy as np
from training_report import Estimate, estimate
from variance_measure import BETWEEN, BITS, NONE, QUANTIZERS, ZEROS

#: Point (quantizer, zero form, bits) -> its part.
Parts = Mapping[tuple[str, str, int], Mapping[str, Any]]

HYPOTHESES = (
    "One bit fewer of Q_b2 multiplies the variance that it adds by about 4: 3.5 to 5 for every quantizer and form.",
    "PTQ > PSQ > BHQ at every width, in each form of the zero, over the same batches.",
    "At 8 bits every quantizer adds less variance than mini-batches have anyway; PTQ's exceeds it at 4 bits.",
    "To PTQ the aligned zero adds less variance than the float offset at every width: small values lie beside a code.",
)
#: What the paper's own laws for the plain form say of one bit fewer, (2^b - 1)^2 / (2^(b-1) - 1)^2.
PLAIN_RATIOS = {bits: ((2 ** (bits + 1) - 1) / (2**bits - 1)) ** 2 for bits in BITS[1:]}


def squares(part: Mapping[str, Any]) -> list[float]:
    """Return the mean squared distances of the batches that have one."""
    return [value for value in part["squares"] if value is not None]


def variance(parts: Parts, point: tuple[str, str, int]) -> Estimate | None:
    """Return the mean over batches with its 95 % interval; None for a point without a step."""
    return estimate(squares(parts[point])) if point in parts else None


def added(parts: Parts, point: tuple[str, str, int]) -> float | None:
    """Return what Q_b2 adds: the point's variance less that of Q_b1 alone (Theorem 2: variances add up)."""
    found, alone = variance(parts, point), variance(parts, (NONE, "", 0))
    return None if found is None or alone is None else found.mean - alone.mean


def smaller(parts: Parts, first: tuple[str, str, int], second: tuple[str, str, int]) -> Estimate | None:
    """Return log10 of the ratio of two points' variances, paired over batches; None where one has a gap."""
    if first not in parts or second not in parts:
        return None
    pairs = zip(parts[first]["squares"], parts[second]["squares"], strict=True)
    return estimate([float(np.log10(a / b)) for a, b in pairs if a is not None and b is not None])


def ratios(parts: Parts) -> list[dict[str, Any]]:
    """Return the factor of what Q_b2 adds that each bit fewer costs."""
    found = []
    for zero in ZEROS:
        for name in QUANTIZERS:
            for more, fewer in pairwise(BITS):
                above, below = added(parts, (name, zero, more)), added(parts, (name, zero, fewer))
                if above is not None and below is not None and above > 0:
                    found.append({"quantizer": name, "zero": zero, "bits": fewer, "ratio": below / above})
    return found


def comparisons(parts: Parts) -> list[dict[str, Any]]:
    """Return ratios of variances at equal width: between quantizers, and float_offset over aligned."""
    wanted = [
        ((first, zero, bits), (second, zero, bits))
        for zero in ZEROS[:2] for bits in BITS for first, second in pairwise(QUANTIZERS)
    ]  # fmt: skip
    wanted += [((name, "float_offset", bits), (name, "aligned", bits)) for bits in BITS for name in QUANTIZERS]
    rows = []
    for first, second in wanted:
        found = smaller(parts, first, second)
        if found is None:
            continue
        half = found.half or 0.0
        rows.append({
            "first": list(first), "second": list(second), "ratio": 10**found.mean, "low": 10 ** (found.mean - half),
            "high": 10 ** (found.mean + half), "is": found.says,
        })  # fmt: skip
    return rows


def outcomes(parts: Parts) -> list[str]:
    """Return one line a hypothesis: what came out."""
    steps = [row for row in ratios(parts) if row["zero"] in ZEROS[:2]]
    inside = [row for row in steps if 3.5 <= row["ratio"] <= 5]
    lines = [f"{len(inside)} of {len(steps)} ratios lie in 3.5..5{_listed(steps, inside)}."]
    among = [row for row in comparisons(parts) if row["first"][1] == row["second"][1]]
    held = [row for row in among if row["is"] == "above"]
    against = [
        f"{_name(row['first'])} / {_name(row['second'])} = {row['ratio']:.2f}" for row in among if row not in held
    ]
    lines.append(f"{len(held)} of {len(among)} hold{': not ' + ', '.join(against) if against else ''}.")
    line = variance(parts, (BETWEEN, "", 0))
    if line is None:
        lines.append("not measured.")
    else:
        over = [_name(p) for p in parts if p[0] in QUANTIZERS and (one := variance(parts, p)) and one.mean > line.mean]
        lines.append(f"above the variance between batches: {', '.join(over) or 'none'}.")
    forms = [row for row in comparisons(parts) if row["first"][1] != row["second"][1]]
    shown = [f"{_name(r['second'])} {r['ratio']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" for r in forms]
    lines.append(f"float_offset over aligned: {'; '.join(shown) or 'not measured'}.")
    return lines


def _listed(every: Sequence[Mapping[str, Any]], inside: Sequence[Mapping[str, Any]]) -> str:
    outside = [f"{r['quantizer']}{r['bits']} {r['zero']} {r['ratio']:.2f}" for r in every if r not in inside]
    return f"; outside: {', '.join(outside)}" if outside else ""


def _name(point: Sequence[Any]) -> str:
    return f"{point[0]}{point[2]} {point[1]}"


def table(parts: Parts) -> list[str]:
    """Return the lines of the table: variance with its interval, in units of the variance between batches."""
    line = variance(parts, (BETWEEN, "", 0))
    if line is None:
        return []
    alone = variance(parts, (NONE, "", 0))
    lines = [f"Variance between batches: {line.mean:.4g} +- {line.half:.2g} ({line.seeds} batches), the unit below."]
    if alone is not None:
        lines.append(f"Q_b1 alone (8 bits, Q_b2 float): {alone.mean / line.mean:.2e}.")
    lines += ["", "| quantizer | zero | " + " | ".join(f"{bits} bits" for bits in BITS) + " |"]
    lines.append("|---|---|" + "---|" * len(BITS))
    for zero in ZEROS:
        for name in QUANTIZERS:
            cells = [_cell(parts, (name, zero, bits), line.mean) for bits in BITS]
            if any(cells):
                lines.append(f"| {name.upper()} | {zero} | {' | '.join(cells)} |")
    return lines


def _cell(parts: Parts, point: tuple[str, str, int], unit: float) -> str:
    if point not in parts:
        return ""
    part, found = parts[point], variance(parts, point)
    text = "no step" if found is None else f"{found.mean / unit:.3g} +- {(found.half or 0.0) / unit:.1g}"
    return text + (f" (NaN hole in {part['holes']} of {part['repeats']} repeats)" if part["holes"] else "")


def figure(parts: Parts, path: Path) -> None:
    """Draw variance against bits, log scale, with the line of the variance between batches."""
    colours = dict(zip(QUANTIZERS, ("#c44e52", "#4c72b0", "#2e8b57"), strict=True))
    styles = {"aligned": ("-", "o"), "float_offset": ("--", "s"), "authors": (":", "^")}
    with harness.figure(path, 1, 1, (6.4, 4.4)) as grid:
        _draw(grid[0, 0], parts, colours, styles)


def _draw(axes: Any, parts: Parts, colours: Mapping[str, str], styles: Mapping[str, tuple[str, str]]) -> None:
    line, alone = variance(parts, (BETWEEN, "", 0)), variance(parts, (NONE, "", 0))
    if line is not None:
        axes.axhline(line.mean, color="black", linewidth=1.4, label="QAT: between batches")
        axes.axhspan(line.mean - (line.half or 0), line.mean + (line.half or 0), color="black", alpha=0.12, linewidth=0)
    if alone is not None:
        axes.axhline(alone.mean, color="grey", linewidth=1, linestyle="-.", label="Q_b1 alone, 8 bits")
    for zero, (style, marker) in styles.items():
        for name in QUANTIZERS:
            found = [(bits, one) for bits in BITS if (one := variance(parts, (name, zero, bits))) is not None]
            if not found:
                continue
            label = f"{name.upper()}, {'the authors’ alignment' if zero == 'authors' else zero}"
            axes.errorbar(
                [bits for bits, _ in found], [one.mean for _, one in found], yerr=[one.half or 0.0 for _, one in found],
                label=label, color="#8c6d31" if zero == "authors" else colours[name], linestyle=style, marker=marker,
                markersize=4, linewidth=1.2, capsize=2,
            )  # fmt: skip
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xticks(BITS)
    axes.set_xlabel("bits of Q_b2")
    axes.set_ylabel("variance, summed over block convolutions")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def notes(parts: Parts) -> list[str]:
    """Return what the table does not say: the ratio of each bit, holes, and how far the paper's figure compares."""
    lines = ["What Q_b2 adds (variance less that of Q_b1 alone), one bit fewer over one bit more:", ""]
    lines += ["| quantizer | zero | " + " | ".join(f"{more} to {fewer}" for more, fewer in pairwise(BITS)) + " |"]
    lines.append("|---|---|" + "---|" * (len(BITS) - 1))
    found = {(row["quantizer"], row["zero"], row["bits"]): row["ratio"] for row in ratios(parts)}
    for zero in ZEROS:
        for name in QUANTIZERS:
            cells = [f"{found[name, zero, bits]:.2f}" if (name, zero, bits) in found else "" for bits in BITS[1:]]
            if any(cells):
                lines.append(f"| {name.upper()} | {zero} | {' | '.join(cells)} |")
    law = " | ".join(f"{PLAIN_RATIOS[bits]:.2f}" for bits in BITS[1:])
    lines += [f"| law of the plain form | float_offset | {law} |", ""]
    for point, part in parts.items():
        if part["holes"]:
            lines.append(f"- {_name(point)}: {part['holes']} repeats without a step. {part['message']}")
    return [
        *lines,
        "",
        "The paper's figure (CIFAR-10, ResNet-56, epoch 100) is not in the authors' logs, so shapes are compared and "
        "no values. Its PTQ was plain or aligned by the authors' formula (their histograms used the plain form, their "
        "training the aligned one), its PSQ and BHQ had a float offset, and their Q_b1 had a scale for each column, "
        "where Q_b1 here is 8-bit aligned PTQ.",
    ]
