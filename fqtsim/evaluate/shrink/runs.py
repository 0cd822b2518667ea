"""Runs of a shrink: jobs on narrowed hardware, each done once and kept in one results file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fqtsim.errors import FqtsimError
from fqtsim.evaluate.engine import run_jobs
from fqtsim.evaluate.job import Job, Measure, run_job, with_seed
from fqtsim.evaluate.shrink.space import Candidate, Space
from fqtsim.evaluate.store import Store
from fqtsim.hw.spec import Hardware
from fqtsim.train.config import TrainConfig

Row = Mapping[str, Any]
#: A search needs accuracies only.
UNMEASURED = Measure(batches=0, outputs=0)


class Runs:
    """Runs jobs, each once, and keeps their rows in a results file. Use it in a `with` statement.

    `workers` processes at a time; 1 runs in this process.
    """

    def __init__(self, path: Path, config: TrainConfig, workers: int = 1) -> None:
        self.config, self.workers = config, workers
        self._store = Store.create(path)
        self._rows: dict[str, Row] = dict(self._store.rows())

    def own(self, seeds: Sequence[int]) -> list[Row]:
        """Return the rows of the file's own widths."""
        return self._finished([self.job(seed) for seed in seeds])

    def fp32(self, seeds: Sequence[int]) -> list[Row]:
        """Return the rows of the same training in float."""
        # Other changes of the recipe are about quantizers, which fp32 does not have.
        kept = {k: v for k, v in self.config.set_recipe.items() if k.startswith(("optimizer.", "schedule."))}
        config = replace(self.config, recipe="fp32", set_recipe=kept)
        return self._finished([Job.of(with_seed(config, seed), UNMEASURED) for seed in seeds])

    def candidate(self, space: Space, candidate: Candidate, seeds: Sequence[int]) -> list[Row]:
        """Return the rows of a candidate."""
        return self.on(space.describe(candidate), {name: str(bits) for name, bits in candidate.items()}, seeds)

    def on(self, hardware: Mapping[str, Hardware], changes: Mapping[str, str], seeds: Sequence[int]) -> list[Row]:
        """Return the rows of other hardware, by pattern of layer names; `changes` say it in words."""
        return self._finished([self.job(seed).on_hardware(hardware, changes) for seed in seeds])

    def job(self, seed: int) -> Job:
        """Return the job of the file's own widths."""
        return Job.of(with_seed(self.config, seed), UNMEASURED)

    def _finished(self, jobs: Sequence[Job]) -> list[Row]:
        """Return the rows of the jobs, run where they are missing. Raises FqtsimError where a process dies."""
        missing = [job for job in jobs if job.key not in self._rows]
        done = ((job, run_job(job)) for job in missing) if self.workers == 1 else run_jobs(missing, self.workers)
        for job, row in done:
            if row["status"] == "failed":
                raise FqtsimError(f"{job.design.label}, seed {row['seed']}: {row['message']}; repeat the command")
            self._store.add(row)
            self._rows[job.key] = row
        return [self._rows[job.key] for job in jobs]

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()
