"""Shared by the accuracy experiments: runs that are resumed, never repeated, and paired intervals over seeds."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from fqtsim.errors import TrainingStopped
from fqtsim.train.config import TrainConfig
from fqtsim.train.loop import run

# Two-sided 95 % of Student's t, by degrees of freedom (any table of the distribution).
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
CHANCE = 0.1


@dataclass(frozen=True)
class Outcome:
    """One finished run."""

    accuracy: float
    loss: float
    digest: str
    #: Rows of events.json: one per layer and GEMM.
    events: list[dict[str, Any]]
    #: Why training stopped before its end; empty where it did not.
    stopped: str = ""


def finish(config: TrainConfig, folder: Path, progress: Progress) -> Outcome:
    """Run what is left of a run in its folder, and read its outcome."""
    task = progress.add_task(folder.name)
    stopped = ""
    try:
        run(
            config,
            folder,
            resume=folder.exists(),
            on_start=lambda done, steps: progress.update(task, completed=done, total=steps),
            on_step=lambda record: progress.advance(task),
        )
    except TrainingStopped as error:
        stopped = str(error)
    progress.remove_task(task)
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    events = json.loads((folder / "events.json").read_text(encoding="utf-8"))
    # A run that met infinity has no accuracy of its own; a guess is right once in ten.
    return Outcome(last.get("accuracy", CHANCE), last["loss"], last["digest"], events["layers"], stopped)


def interval(differences: list[float]) -> tuple[float, float]:
    """Return mean and half width of the 95 % interval of paired differences (Student's t over seeds)."""
    mean = statistics.mean(differences)
    return mean, T95[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))


def share_altered(events: list[dict[str, Any]], gemm: str) -> float:
    """Return the share of one GEMM's outputs, over all layers, that the hardware altered."""
    rows = [row for row in events if row["gemm"] == gemm]
    return sum(row["altered"] for row in rows) / max(1, sum(row["outputs"] for row in rows))


def publish(name: str, rows: list[dict[str, Any]], markdown: str) -> None:
    """Print the page and write it with its rows to docs/results/."""
    folder = Path(__file__).resolve().parents[1] / "docs" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown, encoding="utf-8")
    Console(soft_wrap=True).print(markdown, markup=False)
