"""A sweep on a Dask scheduler and two workers, real processes of this machine, some of which die on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytest.importorskip("distributed")

from fqtsim.errors import InputError
from fqtsim.evaluate import cluster
from fqtsim.evaluate.job import Design, Measure, run_job
from fqtsim.evaluate.store import Store
from fqtsim.evaluate.sweep import Plan, Progress, make_jobs, sweep

PLAN = Plan(
    [Design("ptq8", ("int8_acc20_tree4",)), Design("ptq8", ("int8_acc32_wrap",))], "mlp", "digits", (0, 1),
    steps=30, batch=32, measure=Measure(batches=0, outputs=0),
)  # fmt: skip
SECONDS = 60


@dataclass
class Cluster:
    """A scheduler and its workers."""

    scheduler: subprocess.Popen[bytes]
    address: str
    workers: dict[str, subprocess.Popen[bytes]]

    def busy_worker(self) -> str | None:
        """Return the name of a worker that runs a job."""
        from distributed import Client

        with Client(self.address, set_as_default=False, timeout=SECONDS) as client:
            names = {address: worker["name"] for address, worker in client.scheduler_info(-1)["workers"].items()}
            return next((str(names[address]) for address, keys in client.processing().items() if keys), None)


def launch(*arguments: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


LOCAL = ("--host", "127.0.0.1", "--no-dashboard")


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A scheduler without workers, and its address."""
    file = tmp_path / "scheduler.json"
    process = launch("scheduler", *LOCAL, "--port", "0", "--scheduler-file", str(file))
    try:
        deadline = time.monotonic() + SECONDS
        while not file.is_file() or not file.stat().st_size:
            assert process.poll() is None, "the scheduler ended"
            assert time.monotonic() < deadline, "the scheduler does not start"
            time.sleep(0.05)
        yield process, json.loads(file.read_text())["address"]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def dask(scheduler: tuple[subprocess.Popen[bytes], str], tmp_path: Path) -> Iterator[Cluster]:
    process, address = scheduler
    workers = {
        name: launch(
            "worker", address, "--nthreads", "1", "--no-nanny", "--name", name, *LOCAL,
            "--local-directory", str(tmp_path / name),
        )
        for name in ("first", "second")
    }  # fmt: skip
    try:
        wait_for_workers(address, 2)
        yield Cluster(process, address, workers)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()


def wait_for_workers(address: str, count: int) -> None:
    from distributed import Client

    with Client(address, set_as_default=False, timeout=SECONDS) as client:
        client.wait_for_workers(count, timeout=SECONDS)


def test_workers_and_the_scheduler_may_die(dask: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    killed: list[str] = []

    def kill_a_worker(progress: Progress) -> None:
        if progress.done >= 2 and not killed and (name := dask.busy_worker()) is not None:
            dask.workers[name].kill()
            dask.workers[name].wait()
            killed.append(name)

    outcome = sweep(PLAN, out, scheduler=dask.address, on_progress=kill_a_worker)
    assert len(killed) == 1
    assert (outcome.total, outcome.found, outcome.ran) == (8, 0, {"done": 8})
    jobs = make_jobs(PLAN)
    with Store.read(out / "results.sqlite") as store:
        rows = store.rows()
    assert set(rows) == {job.key for job in jobs}
    # What a worker computed, after a restart or not, is what this process computes, to the bit.
    assert rows[jobs[-1].key]["digest"] == run_job(jobs[-1])["digest"]

    def kill_the_scheduler(progress: Progress) -> None:
        if progress.done >= 9:
            dask.scheduler.kill()
            dask.scheduler.wait()

    more = replace(PLAN, seeds=(0, 1, 2, 3))
    with pytest.raises(InputError) as error:
        sweep(more, out, scheduler=dask.address, on_progress=kill_the_scheduler)
    assert str(error.value) == (
        f"--scheduler {dask.address}: the scheduler went away; start it again and give the same command: "
        "finished runs stand"
    )
    with Store.read(out / "results.sqlite") as store:
        assert rows.items() <= store.rows().items()
        assert 9 <= len(store.rows()) < 16


def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(InputError) as error:
            sweep(PLAN, tmp_path / "sweep", scheduler=address)
        assert str(error.value).startswith(f"--scheduler {address}: no scheduler answers there (")
        assert str(error.value).endswith("; start one with: dask scheduler")


def test_a_scheduler_without_workers(
    scheduler: tuple[subprocess.Popen[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    address = scheduler[1]
    with pytest.raises(InputError) as error:
        sweep(PLAN, tmp_path / "sweep", scheduler=address)
    remedy = f"start some with: dask worker {address} --nthreads 1"
    assert str(error.value) == f"--scheduler {address}: it has no workers; {remedy}"
