"""How often the bias verdicts of `fqtsim analyze` are wrong: false alarms, misses of the intervals, and power.

A network of two linear layers on batches of 16 digits. Null: accumulators that hold every sum and 24 random bits, so
gradients are biased by 2**-25 of a step at most. Planted: nearest rounding of Q_b2, 2 to 4 random bits, saturating
accumulators of 18 and 12 bits in dgrad and wgrad. Resumable; about five minutes on two cores.

    python benchmarks/analyze_validation.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
MODEL, DATA, HARDWARE, BATCH = f"{HERE / 'tiny_net.py'}:tiny", "digits", "int8_acc32_wrap", 16
QUANTIZATION, BACKWARD = "gradient quantization", "backward hardware"
WIDE = {"random.bits": "24"}
MARGIN, CONFIDENCE = 0.01, 0.95
#: Runs done by one task of a worker.
CHUNK = 20


@dataclass(frozen=True)
class Study:
    """Many analyses of one kind."""

    name: str
    words: str
    repeats: tuple[int, ...]
    #: Analyses for each number of repeats; each with its own seed, so its own weights, batches and random words.
    runs: int
    recipe: str = "bhq5"
    batches: int = 2
    hardware: dict[str, str] = field(default_factory=lambda: dict(WIDE))
    rounding: dict[str, str] = field(default_factory=dict)
    #: The source that must be called biased; "" for a null.
    planted: str = ""
    first_seed: int = 0
    #: Instead of seeds, windows of repeats at one seed: the truth is then what all of them say together.
    windows: bool = False


def bits(n: int) -> dict[str, str]:
    """Return hardware with n random bits."""
    return {"random.bits": str(n)}


def saturating(width: int) -> dict[str, str]:
    """Return the null's hardware with a narrow saturating accumulator in dgrad and wgrad."""
    levels = f"[{{terms: all, register: int{width}, overflow: saturate}}]"
    return WIDE | {"gemms.dgrad.levels": levels, "gemms.wgrad.levels": levels}


STUDIES = (
    Study("null", "bhq5, 2 batches", (20,), 400),
    Study("null, few repeats", "bhq5, 1 batch", (4,), 400, batches=1, first_seed=1000),
    Study("null, ptq4", "ptq4, 1 batch", (8,), 300, recipe="ptq4", batches=1, first_seed=2000),
    Study("cover", "2 random bits, bhq5, 2 batches, seed 3000", (4, 20), 300, hardware=bits(2), first_seed=3000,
          windows=True, planted=QUANTIZATION),
    Study("nearest", "nearest rounding of Q_b2", (4, 8, 16, 32, 64), 40, first_seed=4000, planted=QUANTIZATION,
          rounding={"grad_for_dgrad.rounding": "ties_to_even"}),
    Study("2 bits", "2 random bits", (4, 8, 16, 32, 64), 40, hardware=bits(2), first_seed=4000, planted=QUANTIZATION),
    Study("3 bits", "3 random bits", (4, 8, 16, 32, 64), 40, hardware=bits(3), first_seed=4000, planted=QUANTIZATION),
    Study("4 bits", "4 random bits", (4, 8, 16, 32, 64), 40, hardware=bits(4), first_seed=4000, planted=QUANTIZATION),
    Study("18-bit accumulator", "saturating 18-bit accumulator in dgrad and wgrad", (4, 8, 16, 32, 64), 40,
          hardware=saturating(18), first_seed=4000, planted=BACKWARD),
    Study("12-bit accumulator", "saturating 12-bit accumulator in dgrad and wgrad", (4, 8, 16, 32, 64), 40,
          hardware=saturating(12), first_seed=4000, planted=BACKWARD),
)  # fmt: skip
BY_NAME = {study.name: study for study in STUDIES}

#: name, repeats, number of the run.
Key = tuple[str, int, int]


def run_once(key: Key) -> dict[str, Any]:
    """Return the rows of one analysis."""
    from fqtsim.analysis.measure import analyze

    name, repeats, number = key
    study = BY_NAME[name]
    seed = study.first_seed + (0 if study.windows else number)
    window = range(number * repeats, (number + 1) * repeats) if study.windows else range(repeats)
    found = analyze(
        MODEL, DATA, study.recipe, HARDWARE, seed=seed, batch=BATCH, batches=study.batches, repeats=window,
        margin=MARGIN, confidence=CONFIDENCE, decomposition=False, bounds=0, curve=(), set_hardware=study.hardware,
        set_recipe=study.rounding,
    )  # fmt: skip
    rows = [[b.source, b.layer, b.gemm, b.squared, b.low, b.high, b.reference, b.verdict] for b in found.biases]
    return {"key": list(key), "rows": rows, "data": found.settings["digests"]["data"]}


def run_chunk(keys: Sequence[Key]) -> list[dict[str, Any]]:
    """Return what several runs found."""
    return [run_once(key) for key in keys]


def quiet() -> None:
    """Leave a worker one thread."""
    import torch

    torch.set_num_threads(1)


def measure(out: Path, jobs: int, scale: float) -> dict[Key, dict[str, Any]]:
    """Run what is not in OUT/runs.jsonl yet, and return all of it."""
    from rich.progress import Progress

    path = out / "runs.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    done: dict[Key, dict[str, Any]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line that a kill cut short
                continue
            done[tuple(row["key"])] = row
    wanted = [
        (study.name, repeats, number)
        for study in STUDIES
        for repeats in study.repeats
        for number in range(max(1, round(study.runs * scale)))
    ]
    left = [key for key in wanted if key not in done]
    chunks = [left[start : start + CHUNK] for start in range(0, len(left), CHUNK)]
    with Progress() as progress, path.open("a", encoding="utf-8") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        task = progress.add_task("analyses", total=len(wanted), completed=len(wanted) - len(left))
        with ProcessPoolExecutor(jobs, initializer=quiet) as pool:
            for future in as_completed([pool.submit(run_chunk, chunk) for chunk in chunks]):
                for row in future.result():
                    file.write(json.dumps(row) + "\n")
                    done[tuple(row["key"])] = row
                    progress.advance(task)
                file.flush()
    return {key: done[key] for key in wanted}


def rate(count: int, total: int) -> dict[str, float]:
    """Return a share with its 95 % Wilson interval."""
    from fqtsim.train.intervals import wilson

    low, high = wilson(count, total)
    return {"count": count, "of": total, "share": count / total, "low": low, "high": high}


def called(row: Sequence[Any], margin: float) -> str:
    """Return the verdict of a stored row at another margin."""
    from fqtsim.analysis.statistics import Interval
    from fqtsim.analysis.summary import verdict

    return verdict(Interval(*row[3:6]), row[6], margin)


def false_alarms(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many analyses call anything biased: at the stated margin, and with no margin at all."""
    stated = sum(any(row[7] == "biased" for row in run["rows"]) for run in runs)
    bare = sum(any(called(row, 0.0) == "biased" for row in run["rows"]) for run in runs)
    return {"stated margin": rate(stated, len(runs)), "margin 0": rate(bare, len(runs))}


def coverage(runs: Sequence[dict[str, Any]], truth: dict[tuple[str, ...], float]) -> dict[str, Any]:
    """Return how many analyses have an interval that misses the truth, in any row, and on which side.

    `above` is an interval wholly above the truth: what a verdict would call biased if the margin were the truth.
    """
    random = [[row for row in run["rows"] if tuple(row[:3]) in truth] for run in runs]
    above = sum(any(row[4] > truth[tuple(row[:3])] for row in rows) for rows in random)
    below = sum(any(row[5] < truth[tuple(row[:3])] for row in rows) for rows in random)
    return {"above": rate(above, len(runs)), "below": rate(below, len(runs))}


def power(runs: Sequence[dict[str, Any]], planted: str) -> dict[str, Any]:
    """Return how many analyses call the planted source biased, and how many call a source without bias so."""
    clean = BACKWARD if planted == QUANTIZATION else QUANTIZATION
    found = sum(any(row[0] == planted and row[7] == "biased" for row in run["rows"]) for run in runs)
    wrong = sum(any(row[0] == clean and row[7] == "biased" for row in run["rows"]) for run in runs)
    return {"found": rate(found, len(runs)), "clean source called biased": rate(wrong, len(runs))}


def true_sizes(runs: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], float]:
    """Return the mean of the U-statistics of every row that is random: unbiased, and far surer than one run's."""
    values = defaultdict(list)
    for run in runs:
        for row in run["rows"]:
            if row[4] < row[5]:
                values[tuple(row[:3])].append(row[3])
    return {place: float(np.mean(found)) for place, found in values.items()}


def planted_size(runs: Sequence[dict[str, Any]], planted: str) -> list[float]:
    """Return the median over seeds of the largest bias of the planted source, relative to the gradient's norm."""
    largest = [max(row[3] / row[6] for row in run["rows"] if row[0] == planted and row[6] > 0) for run in runs]
    return [float(v) for v in np.sqrt(np.maximum(np.quantile(largest, [0.1, 0.5, 0.9]), 0))]


def summarize(runs: dict[Key, dict[str, Any]]) -> dict[str, Any]:
    """Return everything that the page shows."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for (name, repeats, _), run in runs.items():
        groups[name, repeats].append(run)
    result: dict[str, Any] = {"null": [], "cover": [], "power": []}
    longest = {study.name: max(study.repeats) for study in STUDIES}
    for (name, repeats), group in groups.items():
        study = BY_NAME[name]
        head = {"study": name, "what": study.words, "repeats": repeats, "runs": len(group),
                "seeds": [study.first_seed, study.first_seed + (1 if study.windows else len(group))]}  # fmt: skip
        if not study.planted:
            result["null"].append(head | false_alarms(group))
        elif study.windows:
            truth = true_sizes(groups[name, longest[name]])
            result["cover"].append(head | coverage(group, truth))
        else:
            size = planted_size(groups[name, longest[name]], study.planted)
            result["power"].append(head | {"relative bias, 10 %, median, 90 %": size} | power(group, study.planted))
    verdicts = json.dumps([[*key, *(row[7] for row in run["rows"])] for key, run in sorted(runs.items())])
    first = next(iter(runs.values()))
    result["digests"] = {"data": first["data"], "verdicts": hashlib.sha256(verdicts.encode()).hexdigest()}
    return result


def show(found: dict[str, float]) -> str:
    """Return a rate as text."""
    return f"{found['count']} of {found['of']} ({100 * found['low']:.1f} to {100 * found['high']:.1f} %)"


def prose(*parts: str) -> str:
    """Return sentences as lines of a page."""
    return textwrap.fill(" ".join(parts), 118, break_long_words=False, break_on_hyphens=False)


def page(result: dict[str, Any], command: str) -> str:
    """Return the Markdown page."""
    total = sum(row["runs"] for kind in ("null", "cover", "power") for row in result[kind])
    lines = [
        "# How often the verdicts of `fqtsim analyze` are wrong",
        "",
        prose(
            f"`{command}` makes this page from {total} analyses of two linear layers (64-16-10) at their",
            f"initialisation, on batches of {BATCH} digits, `{HARDWARE}`. Margin {MARGIN} of the gradient's norm,",
            f"family-wise confidence {CONFIDENCE}: an analysis promises that any of its rows is called biased",
            f"without being so with a chance of at most {1 - CONFIDENCE:.0%}. Intervals in parentheses: Wilson, 95 %.",
            "Each run has its own seed (first and one past the last are given), so its own weights, batches and",
            "random words.",
        ),
        "",
        "## False alarms",
        "",
        prose(
            "No bias beyond 2^-25 of a step: 24 random bits, accumulators that hold every sum. `margin 0` calls a row",
            "biased as soon as its interval lies above 0, which is the hardest use of the intervals.",
        ),
        "",
        "| null | repeats | seeds | analyses with any row biased | the same, margin 0 |",
        "|---|---|---|---|---|",
    ]
    for row in result["null"]:
        cells = [row["what"], row["repeats"], "{}..{}".format(*row["seeds"]), show(row["stated margin"]),
                 show(row["margin 0"])]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    most = max(row["repeats"] for row in result["cover"])
    lines += [
        "",
        "## Intervals where there is a bias",
        "",
        prose(
            f"{result['cover'][0]['what']}: other random words at the same weights and batches. The truth is the mean",
            f"of all runs of {most} repeats. `above`: some interval of the family lies above the truth, which is a",
            "false alarm for a margin of exactly that size.",
        ),
        "",
        "| repeats | above | below |",
        "|---|---|---|",
    ]
    lines += [f"| {row['repeats']} | {show(row['above'])} | {show(row['below'])} |" for row in result["cover"]]
    repeats = sorted({row["repeats"] for row in result["power"]})
    lines += [
        "",
        "## Power",
        "",
        prose(
            "Share of analyses that call the planted source biased, by the number of repeats. Size: the largest",
            f"relative bias of any row, median over seeds (10 % to 90 %), from {max(repeats)} repeats. Below {MARGIN}",
            "the right answer is not `biased`. Where nothing is drawn every repeat has the same error, so few are",
            "enough.",
        ),
        "",
        "| planted | size | " + " | ".join(map(str, repeats)) + " | a source without bias called biased |",
        "|---|---|" + "---|" * (len(repeats) + 1),
    ]
    for study in (study for study in STUDIES if study.planted and not study.windows):
        rows = sorted((r for r in result["power"] if r["study"] == study.name), key=lambda r: r["repeats"])
        low, middle, high = rows[0]["relative bias, 10 %, median, 90 %"]
        wrong = [row["clean source called biased"] for row in rows]
        cells = [f"{row['found']['share']:.0%}" for row in rows]
        lines.append(
            f"| {study.words} | {middle:.2g} ({low:.2g} to {high:.2g}) | {' | '.join(cells)} | "
            f"{sum(w['count'] for w in wrong)} of {sum(w['of'] for w in wrong)} |"
        )
    lines += [
        "",
        f"Data {result['digests']['data'][:16]}, verdicts {result['digests']['verdicts'][:16]} (SHA-256).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/analyze_validation"))
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the runs, for a quick look; writes no page")
    arguments = parser.parse_args()
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result = summarize(measure(arguments.out, arguments.jobs, arguments.scale))
    text = page(result, "python benchmarks/analyze_validation.py")
    print(text)
    if arguments.scale == 1.0:
        folder = HERE.parent / "docs" / "results"
        (folder / "analyze_validation.md").write_text(text, encoding="utf-8")
        (folder / "analyze_validation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
