"""What the rows of the random-bit study say: bias of a step, bias of gradients, training; table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common_weights import Errors, worst
from harness import Row, figure, interval, interval_words, judge, outcome, points_words, run_record
from publishing import Page

BITS = (2, 3, 4, 6, 8, 12, 16, 24)
RECIPES = ("psq5", "bhq5", "psq4", "bhq4")

HYPOTHESES = (
    "The mean of Q(x) - x over the gradients that are not 0 is -2^-(n+1) of a step: what the rounding rule makes of "
    "these very values is within 10 % of that for every quantizer and n up to 16 (at 24 a float32 quotient has hardly "
    "a fraction left to lose, and the bias is smaller), and every measured interval up to there holds it (family-wise "
    "95 %).",
    "The relative squared bias of the weight gradients falls fourfold with each random bit: log2 of the worst layer's "
    "against n, from 2 to 6 bits, has a slope between -2.3 and -1.7 for every recipe.",
    "2 random bits lose more than 1 point of accuracy with every recipe.",
    "From 6 random bits on nothing differs from the most: no interval of the paired difference in accuracy or in final "
    "loss leaves 0 out (family-wise 95 % over all these comparisons).",
)

#: Largest numbers of random bits: of the fit of the slope, and of what the paired measurement resolves.
SLOPE_BITS, RESOLVED_BITS = 6, 16
#: Fewest random bits of the last hypothesis.
ENOUGH = 6

#: (recipe, random bits) -> rows, seed by seed.
Runs = Mapping[tuple[str, int], Sequence[Row]]
#: Name of a measurement -> its result: `rounding-RECIPE-SEED` and `common-RECIPE-SEED`.
Parts = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """The mean of Q(x) - x, in steps, over the values of all layers and seeds that are not 0."""

    quantizer: str
    bits: int
    #: By the rule, over all random words, for these very values.
    exact: float
    #: With their 95 % intervals over draws.
    paired: tuple[float, float | None]
    direct: tuple[float, float | None]
    values: int
    #: Share of the values that are exactly 0, which rounding leaves alone.
    zeros: float

    @property
    def law(self) -> float:
        """What is predicted."""
        return -(2.0 ** -(self.bits + 1))


def steps(parts: Parts, comparisons: int = 1) -> list[Step]:
    """Return one entry for each quantizer and number of random bits, over all tensors, weighed by their values.

    The intervals are over draws, and of 95 % for so many of them together.
    """
    import numpy as np

    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for name, result in parts.items():
        for entry in result if name.startswith("rounding-") else ():
            groups.setdefault((entry["quantizer"], entry["random_bits"]), []).append(entry)
    found = []
    for (quantizer, bits), entries in groups.items():
        weights = np.array([entry["values"] for entry in entries], float)
        zeros = sum(entry["zeros"] for entry in entries)
        exact = float(np.average([entry["exact"] for entry in entries], weights=weights))
        paired, direct = (
            interval(np.average([entry[key] for entry in entries], axis=0, weights=weights).tolist(), comparisons)
            for key in ("paired", "direct")
        )
        values = int(weights.sum())
        found.append(Step(quantizer, bits, exact, paired, direct, values, zeros / (zeros + values)))
    return found


def slopes(parts: Parts) -> dict[str, tuple[float, float | None]]:
    """Return recipe -> slope of log2 of the worst layer's relative squared bias against random bits, over seeds."""
    import numpy as np

    found: dict[str, list[float]] = {}
    for name, result in parts.items():
        kind, recipe, _ = name.split("-")
        points = [(int(bits), bias) for bits, errors in result.items()
                  if int(bits) <= SLOPE_BITS and (bias := worst(errors)) is not None and bias > 0
                  ] if kind == "common" else []  # fmt: skip
        if len(points) > 1:
            bits, biases = zip(*points, strict=True)
            found.setdefault(recipe, []).append(float(np.polyfit(bits, np.log2(biases), 1)[0]))
    return {recipe: interval(values) for recipe, values in found.items()}


def loss_gap(rows: Sequence[Row], reference: Sequence[Row], comparisons: int = 1) -> tuple[float, float | None] | None:
    """Return the paired difference of final training losses; None where a run ended without one."""
    return _gap([row["loss"] for row in rows], [row["loss"] for row in reference], comparisons)


def _gap(ours: Sequence[Any], theirs: Sequence[Any], comparisons: int) -> tuple[float, float | None] | None:
    if any(value is None for value in (*ours, *theirs)):
        return None
    return interval([a - b for a, b in zip(ours, theirs, strict=True)], comparisons)


def outcomes(runs: Runs, parts: Parts) -> list[str]:
    """Return what came of each hypothesis."""
    return [_law(parts), _fourfold(parts), _two_bits(runs), _enough(runs)]


def _law(parts: Parts) -> str:
    found = [one for one in steps(parts) if one.bits <= RESOLVED_BITS]
    sure = [one for one in steps(parts, len(found)) if one.bits <= RESOLVED_BITS and one.paired[1] is not None]
    off = [one for one in found if abs(one.exact / one.law - 1) > 0.1]
    missed = [one for one in sure if abs(one.paired[0] - one.exact) > (one.paired[1] or 0.0)]
    words = [f"{one.quantizer} at {one.bits} bits {one.exact / one.law:.2f} times the law" for one in off]
    words += [f"{one.quantizer} at {one.bits} bits measured {interval_words(one.paired, '.3g')} for {one.exact:.3g}"
              for one in missed]  # fmt: skip
    return outcome(
        [not off, not missed],
        f"{len(found) - len(off)} of {len(found)} within 10 %, {len(sure) - len(missed)} of {len(sure)} measured "
        f"intervals hold it; exceptions: {'; '.join(words) or 'none'}.",
    )


def _fourfold(parts: Parts) -> str:
    found = slopes(parts)
    words = ", ".join(f"{recipe} {interval_words(slope, '.2f')}" for recipe, slope in found.items())
    return outcome([-2.3 < mean < -1.7 for mean, _ in found.values()], f"slopes: {words}.")


def _two_bits(runs: Runs) -> str:
    least, most = min(n for _, n in runs), max(n for _, n in runs)
    parts: list[bool | None] = []
    words = []
    for recipe in dict.fromkeys(recipe for recipe, _ in runs):
        verdict, gap = judge(runs[recipe, least], runs[recipe, most])
        parts.append({"loses": True, "diverges": True, "trains": False}.get(verdict))
        words.append(f"{recipe} {points_words(gap)} points ({verdict})")
    return outcome(parts, f"{', '.join(words)}.")


def _enough(runs: Runs) -> str:
    most = max(n for _, n in runs)
    compared = [(recipe, n) for recipe, n in runs if ENOUGH <= n < most]
    number = max(1, 2 * len(compared))
    words = []
    for recipe, n in compared:
        pair = runs[recipe, n], runs[recipe, most]
        ours, theirs = ([row["accuracy"] for row in rows] for rows in pair)
        shares = _gap(ours, theirs, number)
        for what, gap in (("accuracy", shares), ("loss", loss_gap(*pair, number))):
            if gap is None or (gap[1] is not None and abs(gap[0]) > gap[1]):
                words.append(f"{recipe} at {n} bits in {what} ({'no value' if gap is None else f'{gap[0]:+.3g}'})")
    return outcome([not words], f"{number} comparisons; differing: {'; '.join(words) or 'none'}.")


def step_table(parts: Parts) -> list[str]:
    """Return the bias of a step: predicted, by the rule for these values, measured."""
    lines = [
        "| quantizer | random bits | law | these values | measured, paired | measured, direct | values | zeros, % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(steps(parts), key=lambda one: (one.quantizer, one.bits)):
        lines.append(
            f"| {one.quantizer} | {one.bits} | {one.law:.3g} | {one.exact:.3g} | {interval_words(one.paired, '.3g')} | "
            f"{interval_words(one.direct, '.2g')} | {one.values} | {100 * one.zeros:.0f} |"
        )
    return lines


def training_table(runs: Runs, parts: Parts) -> list[str]:
    """Return one line for each recipe and number of random bits."""
    from fqtsim.evaluate.statistics import accuracy_of

    most = max(n for _, n in runs)
    lines = [
        f"| recipe | random bits | accuracy, % | points against {most} | verdict | loss | loss against {most} "
        "| worst layer's squared bias | its variance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (recipe, n), rows in runs.items():
        reference = runs[recipe, most]
        verdict, gap = judge(rows, reference)
        accuracy = interval_words(interval([100 * (accuracy_of(row) or 0.0) for row in rows]), ".1f")
        losses = [row["loss"] for row in rows]
        loss = "-" if None in losses else interval_words(interval(losses), ".4f")
        difference = loss_gap(rows, reference)
        against = ("-", "reference", "-") if n == most else (
            points_words(gap), verdict, "-" if difference is None else interval_words(difference, "+.4f")
        )  # fmt: skip
        bias, variance = _errors(parts, recipe, n)
        cells = (recipe, str(n), accuracy, *against[:2], loss, against[2], bias, variance)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _errors(parts: Parts, recipe: str, bits: int) -> tuple[str, str]:
    found = [part[str(bits)] for name, part in parts.items() if name.startswith(f"common-{recipe}-")]
    if any("stopped" in errors for errors in found):
        return "stopped", "-"
    layer = _worst_layer(found)
    cells = (interval_words(interval([errors[layer][i] for errors in found]), ".2g") for i in (0, 1))
    bias, variance = cells
    return f"{bias} {layer}", variance


def _worst_layer(found: Sequence[Errors]) -> str:
    return max(found[0], key=lambda layer: sum(errors[layer][0] for errors in found))


def draw(runs: Runs, parts: Parts, path: Path) -> None:
    """Draw the bias of a step, that of the gradients, and what training makes of it."""
    recipes = list(dict.fromkeys(recipe for recipe, _ in runs))
    bits = sorted({n for _, n in runs})
    palette = dict(zip(recipes, ("#4c72b0", "#2e8b57", "#c44e52", "#8c6d31"), strict=False))
    with figure(path, 1, 4, (12.0, 3.0)) as axes:
        own, gradient, accuracy, loss = axes[0]
        own.plot(bits, [2.0 ** -(n + 1) for n in bits], color="black", linewidth=0.8, label="law $2^{-(n+1)}$")
        for one in steps(parts):
            if one.paired[0] < 0:
                colour = palette.get(one.quantizer, "#777777")
                label = one.quantizer if one.bits == bits[0] else None
                own.errorbar(one.bits, -one.paired[0], one.paired[1] or 0.0, fmt="o", color=colour, label=label,
                             markersize=3.5, capsize=2)  # fmt: skip
        for recipe in recipes:
            style = {"color": palette[recipe], "marker": "o", "markersize": 3.5, "capsize": 2, "label": recipe}
            _curve(gradient, [(n, found) for n in bits if (found := _worst_bias(parts, recipe, n)) is not None], style)
            most = runs[recipe, bits[-1]]
            gaps = [(n, judge(runs[recipe, n], most)[1]) for n in bits[:-1]]
            _curve(accuracy, [(n, (100 * gap.mean, 100 * (gap.half or 0.0))) for n, gap in gaps if gap], style)
            losses = [(n, loss_gap(runs[recipe, n], most)) for n in bits[:-1]]
            _curve(loss, [(n, gap) for n, gap in losses if gap], style)
        own.set_yscale("log")
        gradient.set_yscale("symlog", linthresh=1e-4)
        for axis, title in (
            (own, "-mean of Q(x) - x, steps (paired)"), (gradient, "squared bias of the worst layer's gradient"),
            (accuracy, f"accuracy less that of {bits[-1]} bits, points"), 
            (loss, f"final loss less that of {bits[-1]} bits"),
        ):  # fmt: skip
            axis.set_title(title)
            axis.set_xlabel("random bits n")
            axis.set_xticks(bits)
            axis.grid(alpha=0.3)
        own.legend(fontsize=6.5)
        gradient.legend(fontsize=6.5)


def _worst_bias(parts: Parts, recipe: str, bits: int) -> tuple[float, float | None] | None:
    found = [part[str(bits)] for name, part in parts.items() if name.startswith(f"common-{recipe}-")]
    if any("stopped" in errors for errors in found):
        return None
    layer = _worst_layer(found)
    return interval([errors[layer][0] for errors in found])


def _curve(axis: Any, points: Sequence[tuple[int, tuple[float, float | None]]], style: Mapping[str, Any]) -> None:
    if points:
        bits, found = zip(*points, strict=True)
        axis.errorbar(bits, [mean for mean, _ in found], [half or 0.0 for _, half in found], **style)


def page(setting: Mapping[str, Any], runs: Runs, parts: Parts, command: str) -> Page:
    """Return the page of the rows and measurements."""
    length = f"{setting['epochs']} epochs" if setting["steps"] is None else f"{setting['steps']} steps"
    seeds = ", ".join(map(str, setting["seeds"]))
    biases = [{**asdict(one), "law": one.law} for one in steps(parts)]
    designs = [
        {"recipe": recipe, "random_bits": n, "runs": [run_record(row) for row in rows]}
        for (recipe, n), rows in runs.items()
    ]
    common = {name: part for name, part in parts.items() if name.startswith("common-")}
    return Page(
        title="Random bits: the bias of stochastic rounding, and what training makes of it",
        setting=(
            f"`{setting['model']}` on {setting['data']}, {length} of batch {setting['batch']}, learning rate "
            f"{setting['rate']}, seeds {seeds}, which all runs share; every GEMM on 32 bits. The random bits are those "
            "of Q_b2, which the recipe names, and of Q_b1, 8-bit PTQ (ptq8). They are the leading ones of one word an "
            "element, so that runs of a seed with other numbers of bits share them. Intervals are 95 %."
        ),
        command=command,
        hypotheses=HYPOTHESES,
        outcomes=outcomes(runs, parts),
        body=[*step_table(parts), "", *_reading(setting), "", *training_table(runs, parts)],
        data={
            "setting": {**setting, "seeds": list(setting["seeds"])}, "steps": biases, "slopes": slopes(parts),
            "designs": designs, "common_weights": common,
        },
        draw=lambda path: draw(runs, parts, path),
    )  # fmt: skip


def _reading(setting: Mapping[str, Any]) -> list[str]:
    """Return how the tables are to be read."""
    return [
        "Mean of Q(x) - x in steps, over the output gradients of one batch at the last weights of the runs with the "
        "most random bits, all layers and seeds together, values that are 0 left out (rounding leaves them alone). "
        "*These values*: the rule of S5.6 for these very quotients, over all random words. *Measured*: over "
        f"{setting['tensor_draws']} draws; *direct* against the quotients; *paired* against 32 random bits whose words "
        "begin alike, where nearly all noise cancels.",
        "",
        "Loss: mean of the last twentieth of the steps. Verdict: *trains* if the interval of the paired difference in "
        "accuracy lies above -1 point, *loses* if it lies below. Squared bias and variance of a layer's weight "
        f"gradient, over its squared norm: {setting['batches']} batches, {setting['draws']} draws, at the last weights "
        "of the run with the most random bits; the squared bias, a U-statistic, is below 0 by chance. Digests of all "
        "runs: paper_random_bits.json.",
    ]
