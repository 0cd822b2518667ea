"""What the rows of the accumulator study say: bits that each GEMM needs, the hypotheses, the table and the figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common_weights import Errors, worst
from harness import (
    TOLERANCE,
    Row,
    altered,
    figure,
    interval,
    interval_words,
    judge,
    outcome,
    points_words,
    run_record,
)
from publishing import Page

BITS = (12, 14, 16, 18, 20, 24, 32)
GEMMS, ALL = ("fprop", "dgrad", "wgrad"), "all three"
FLAT, CHUNKED = "flat", "chunked"
#: Products that a chunk's register sums before a 32-bit register takes over.
CHUNK = 64

HYPOTHESES = (
    "Flat and saturating, one GEMM narrowed: wgrad, whose sums run over batch and pixels (K up to 4096 against at most "
    "288), needs the most bits, and dgrad, whose 5-bit codes are small, the fewest: wgrad >= fprop > dgrad.",
    "For every GEMM, a wrapping accumulator needs at least 2 bits more than a saturating one.",
    f"Chunks of {CHUNK} products on the narrow register, summed in 32 bits, save wgrad at least 4 bits against flat, "
    "and fprop and dgrad at most 2.",
    "The gradient bias at common weights foretells training: designs whose relative squared bias is below 0.01 in "
    "every layer do not lose, and those above 0.25 in some layer do not train within a point.",
)


@dataclass(frozen=True)
class Point:
    """A design: which GEMM is narrowed, and to what."""

    gemm: str
    bits: int
    overflow: str
    form: str

    @property
    def label(self) -> str:
        """What the tables call it."""
        return f"{self.gemm} int{self.bits} {self.overflow} {self.form}" if self.gemm else f"int{self.bits} everywhere"


#: Every GEMM on 32 bits, which no sum of these networks can leave.
WIDE = Point("", 32, "wrap", FLAT)

#: What the rows and columns of the tables are called.
FORMS = (("saturate", FLAT), ("wrap", FLAT), ("saturate", CHUNKED))
LOW_BIAS, HIGH_BIAS = 0.01, 0.25
#: Smallest squared bias that the figure shows: about what 8 draws of 4 batches resolve.
FLOOR = 1e-4

#: Design -> its rows, seed by seed, and its errors at common weights, seed by seed.
Runs = Mapping[Point, Sequence[Row]]
Noise = Mapping[Point, Sequence[Errors]]


@dataclass(frozen=True)
class Need:
    """How many bits a GEMM needs: the runs leave `least`..`most` possible."""

    #: Fewest bits from which no design loses; 0 where the narrowest design tried does not either.
    least: int
    #: Fewest bits from which every design trains.
    most: int

    def __str__(self) -> str:
        if self.least == self.most:
            return str(self.most)
        return f"{self.least} to {self.most}" if self.least else f"<= {self.most}"


def need(runs: Runs, gemm: str, overflow: str, form: str) -> Need | None:
    """Return the bits that a GEMM needs, by the verdict on each width; None where it was not narrowed so."""
    tried = sorted(point.bits for point in runs if (point.gemm, point.overflow, point.form) == (gemm, overflow, form))
    if not tried:
        return None
    least = most = WIDE.bits
    trains = bears = True
    for bits in reversed(tried):
        verdict, _ = judge(runs[Point(gemm, bits, overflow, form)], runs[WIDE])
        trains, bears = trains and verdict == "trains", bears and verdict in ("trains", "undecided")
        least, most = bits if bears else least, bits if trains else most
    return Need(0 if bears else least, most)


def at_least(more: Need | None, less: Need | None, bits: int) -> bool | None:
    """Whether one GEMM needs at least so many bits more than another; None where the runs cannot tell."""
    if more is None or less is None:
        return None
    if more.least - less.most >= bits:
        return True
    return False if more.most - less.least < bits else None


def outcomes(runs: Runs, noise: Noise) -> list[str]:
    """Return what came of each hypothesis."""
    flat, wrap, chunked = ({gemm: need(runs, gemm, *form) for gemm in (*GEMMS, ALL)} for form in FORMS)

    def listed(needs: Mapping[str, Need | None], gemms: Iterable[str] = GEMMS) -> str:
        return ", ".join(f"{gemm} {needs[gemm] or 'not run'}" for gemm in gemms)

    order = [at_least(flat["wgrad"], flat["fprop"], 0), at_least(flat["fprop"], flat["dgrad"], 1)]
    rules = [at_least(wrap[gemm], flat[gemm], 2) for gemm in GEMMS]
    spared = [at_least(flat[gemm], chunked[gemm], 3) for gemm in ("fprop", "dgrad")]
    chunks = [at_least(flat["wgrad"], chunked["wgrad"], 4), *(None if one is None else not one for one in spared)]
    return [
        outcome(order, f"bits needed: {listed(flat)}."),
        outcome(rules, f"saturating: {listed(flat)}; wrapping: {listed(wrap)}."),
        outcome(chunks, f"flat: {listed(flat)}; chunked: {listed(chunked)}."),
        _foretold(runs, noise),
    ]


def _foretold(runs: Runs, noise: Noise) -> str:
    """Return what came of the last hypothesis: does the bias at common weights tell who trains."""
    low = high = 0
    wrong = []
    for point in runs:
        bias = _bias(noise[point])
        if point == WIDE or bias is None:
            continue
        verdict, found = judge(runs[point], runs[WIDE])
        low, high = low + (bias[1][0] < LOW_BIAS), high + (bias[1][0] > HIGH_BIAS)
        lost = verdict in ("loses", "diverges")
        if (bias[1][0] < LOW_BIAS and lost) or (bias[1][0] > HIGH_BIAS and verdict == "trains"):
            wrong.append(f"{point.label} ({bias[1][0]:.2g}, {points_words(found)} points)")
    said = f"{low} designs below {LOW_BIAS}, {high} above {HIGH_BIAS}"
    return outcome([not wrong], f"{said}; exceptions: {'; '.join(wrong) or 'none'}.")


def _bias(errors: Sequence[Errors]) -> tuple[str, tuple[float, float | None]] | None:
    """Return the layer with the largest relative squared bias, mean over seeds with its interval; None if stopped."""
    if any(worst(one) is None for one in errors):
        return None
    found = {layer: interval([one[layer][0] for one in errors]) for layer in errors[0]}
    layer = max(found, key=lambda name: found[name][0])
    return layer, found[layer]


def _bias_words(errors: Sequence[Errors]) -> str:
    found = _bias(errors)
    return "stopped" if found is None else f"{interval_words(found[1], '.2g')} {found[0]}"


def _own_bias(rows: Sequence[Row]) -> str:
    """Return the same at each run's own last weights; the reference there has the same forward pass."""
    errors = [{one["layer"]: [one["bias"], one["variance"]] for one in row["gradients"]} for row in rows]
    return _bias_words(errors) if all(errors) else "not measured"


def needs_table(runs: Runs) -> list[str]:
    """Return the table of bits needed."""
    lines = ["| accumulator | fprop | dgrad | wgrad | all three |", "|---|---|---|---|---|"]
    for overflow, form in FORMS:
        cells = [str(need(runs, gemm, overflow, form) or "-") for gemm in (*GEMMS, ALL)]
        lines.append(f"| {form}, {overflow} | {' | '.join(cells)} |")
    return lines


def table(runs: Runs, noise: Noise) -> list[str]:
    """Return one line for each design."""
    from fqtsim.evaluate.statistics import accuracy_of

    lines = [
        "| narrowed | register | overflow | sum | accuracy, % | points against 32 bits | verdict | altered outputs, % "
        "| squared bias, common weights | squared bias, own weights |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for point, rows in runs.items():
        verdict, found = judge(rows, runs[WIDE])
        accuracy = interval_words(interval([100 * (accuracy_of(row) or 0.0) for row in rows]), ".1f")
        if point == WIDE:
            verdict, points = "reference", "-"
        else:
            points = points_words(found)
        names = GEMMS if point.gemm in ("", ALL) else (point.gemm,)
        shares = [altered(row) for row in rows]
        events = ", ".join(f"{100 * sum(s.get(g, 0.0) for s in shares) / len(shares):.2g}" for g in names)
        lines.append(
            f"| {point.gemm or 'none'} | int{point.bits} | {point.overflow} | {point.form} | {accuracy} | {points} | "
            f"{verdict} | {events} | {_bias_words(noise[point])} | {_own_bias(rows)} |"
        )
    return lines


def draw(runs: Runs, noise: Noise, path: Path) -> None:
    """Draw accuracy and bias against bits, a column for each narrowed GEMM."""
    gemms = [gemm for gemm in (*GEMMS, ALL) if any(point.gemm == gemm for point in runs)]
    styles = dict(zip(FORMS, (("#4c72b0", "-", "o"), ("#c44e52", "--", "s"), ("#2e8b57", ":", "^")), strict=True))
    with figure(path, 2, len(gemms), (2.7 * len(gemms) + 0.6, 4.8)) as axes:
        for column, gemm in enumerate(gemms):
            for (overflow, form), (colour, line, marker) in styles.items():
                own = [p for p in runs if (p.gemm, p.overflow, p.form) == (gemm, overflow, form)]
                shown = sorted([*own, WIDE], key=lambda point: point.bits)
                style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 3.5}
                _accuracies(axes[0, column], runs, shown, {**style, "capsize": 2, "label": f"{form}, {overflow}"})
                _biases(axes[1, column], noise, shown, style)
            axes[0, column].set_title(f"{gemm} narrowed")
            axes[1, column].set_xlabel("bits of the narrow register")
        for axis in axes.flat:
            axis.set_xticks(sorted({point.bits for point in runs}))
            axis.grid(alpha=0.3)
        for axis in axes[0]:
            axis.set_yscale("symlog", linthresh=1)
            axis.set_ylim(-150, 12)
            axis.axhline(0, color="black", linewidth=0.7)
        for axis in axes[1]:
            axis.set_yscale("log")
            axis.set_ylim(FLOOR / 2, 1e8)
            axis.minorticks_off()
        axes[0, 0].set_ylabel("accuracy less that of 32 bits, points")
        axes[1, 0].set_ylabel("squared bias of the worst\nlayer, common weights (dots: seeds)")
        axes[0, -1].legend(fontsize=6.5, loc="lower right")


def _accuracies(axis: Any, runs: Runs, shown: Sequence[Point], style: Mapping[str, Any]) -> None:
    found = [(point.bits, judge(runs[point], runs[WIDE])[1]) for point in shown]
    kept = [(bits, one) for bits, one in found if one is not None]
    halves = [0.0 if bits == WIDE.bits else 100 * (one.half or 0.0) for bits, one in kept]
    axis.errorbar([bits for bits, _ in kept], [100 * one.mean for _, one in kept], halves, **style)


def _biases(axis: Any, noise: Noise, shown: Sequence[Point], style: Mapping[str, Any]) -> None:
    """Draw the mean over seeds as a line, seeds as small points."""
    found = {point.bits: [worst(one) for one in noise[point]] for point in shown}
    kept = {bits: [max(one or 0.0, FLOOR) for one in seeds] for bits, seeds in found.items() if None not in seeds}
    axis.plot(list(kept), [sum(seeds) / len(seeds) for seeds in kept.values()], **style)
    pairs = [(bits, one) for bits, seeds in kept.items() for one in seeds]
    axis.plot(*zip(*pairs, strict=True), linestyle="none", marker=".", markersize=3, color=style["color"], alpha=0.6)


def page(setting: Mapping[str, Any], runs: Runs, noise: Noise, command: str) -> Page:
    """Return the page of the rows and of the errors at common weights."""
    plain = {**setting, "seeds": list(setting["seeds"])}
    length = f"{setting['epochs']} epochs" if setting["steps"] is None else f"{setting['steps']} steps"
    needs = [
        {"gemm": gemm, "overflow": overflow, "form": form, "least": found.least, "most": found.most}
        for overflow, form in FORMS for gemm in (*GEMMS, ALL)
        if (found := need(runs, gemm, overflow, form)) is not None
    ]  # fmt: skip
    designs = [
        {"gemm": point.gemm, "bits": point.bits, "overflow": point.overflow, "form": point.form,
         "verdict": judge(rows, runs[WIDE])[0], "common_weights": list(noise[point]),
         "runs": [run_record(row) for row in rows]}
        for point, rows in runs.items()
    ]  # fmt: skip
    return Page(
        title="Accumulator bits: which GEMM needs how many",
        setting=(
            f"`{setting['model']}` on {setting['data']}, `{setting['recipe']}`, {length} of batch {setting['batch']}, "
            f"learning rate {setting['rate']}, seeds {', '.join(map(str, setting['seeds']))}, which all designs share. "
            "Zero points are subtracted before the multiplier. The GEMM that is named has the narrow register, the "
            f"others 32 bits. Flat: one register for the whole sum. Chunked: it sums {CHUNK} products, and a 32-bit "
            "register the chunks."
        ),
        command=command,
        hypotheses=HYPOTHESES,
        outcomes=outcomes(runs, noise),
        body=["## Bits needed", "", *needs_table(runs), "", *_reading(setting), "", *table(runs, noise)],
        data={"setting": plain, "needs": needs, "designs": designs},
        draw=lambda path: draw(runs, noise, path),
    )


def _reading(setting: Mapping[str, Any]) -> list[str]:
    """Return how the tables are to be read, and what was known before."""
    return [
        "Known when the expectations were written: [digits_widths](digits_widths.md), "
        "[accumulator_widths](accumulator_widths.md), and one seed of two designs that narrow all three GEMMs (int16 "
        "flat, int14 chunked). The first runs had seeds 0 to 2; any others were added because many verdicts were "
        "undecided.",
        "",
        "Fewest bits from which every wider design trains; `a to b` where the widths from a are undecided; `<= a` "
        "where the narrowest tried does not lose. A design *trains* if the 95 % interval of its paired difference to "
        f"32 bits in every GEMM (Student's t over the seeds) lies above -{TOLERANCE:g} point, *loses* if all of it is "
        "below.",
        "",
        "Squared bias: of the weight gradient of the layer where it is largest, by the U-statistic over "
        f"{setting['draws']} draws of {setting['batches']} batches, over the squared norm of the reference gradient; "
        "below 0 by chance. *Common weights*: those of the 32-bit run of the same seed after "
        f"{setting['at_step']} steps; the reference has 32 bits in every GEMM and gradients that are not quantized, "
        "so that a narrow fprop counts as an error of the gradient too. *Own weights*: those at the end of the "
        "design's own training; the reference has its narrow fprop. Intervals are 95 % over seeds. Digests of all "
        "runs: paper_accumulators.json.",
    ]
