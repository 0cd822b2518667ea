"""A small sweep that tests plan, run, kill and report."""

from __future__ import annotations

import json
from typing import Any

from fqtsim.evaluate.job import Design, Job, Measure, failed_row
from fqtsim.evaluate.sweep import Plan

REGISTER = "hardware.datapath.levels.-1.register"
TREE, WRAP = "int8_acc20_tree4", "int8_acc32_wrap"
QUICK = Measure(batches=0, outputs=0)
PLAN = Plan([Design("ptq8", (TREE,))], "mlp", "digits", (0, 1), steps=2, batch=32, measure=QUICK)
COMMAND = [
    "sweep", "--hardware", TREE, "--recipe", "ptq8", "--model", "mlp", "--steps", "30", "--batch", "32",
    "--seeds", "2", "--workers", "1",
]  # fmt: skip


def failed(job: Job) -> dict[str, Any]:
    """Return the row of a run whose process died, as a file has it."""
    return json.loads(json.dumps(failed_row(job, "its process died")))


def row(key: str, status: str = "done", seconds: float = 1.0) -> dict[str, Any]:
    return {"key": key, "status": status, "seconds": seconds, "design": {"label": "a", "recipe": "ptq8"}}
