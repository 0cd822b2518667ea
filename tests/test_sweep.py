"""Whole sweeps, killed and interrupted, and their command."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from small_sweep import COMMAND, PLAN, REGISTER, TREE, WRAP, failed, row

from fqtsim.cli import main
from fqtsim.cli.sweep import _repeated, duration, parse_seeds
from fqtsim.errors import InputError
from fqtsim.evaluate.job import Design, Job, run_job
from fqtsim.evaluate.store import Store
from fqtsim.evaluate.sweep import Times, make_jobs, sweep

# A whole sweep, killed and interrupted.


def rows_in(out: Path) -> dict[str, str]:
    """Return key -> row as text, of a file that may not be there yet."""
    file = out / "results.sqlite"
    if not file.is_file() or not file.stat().st_size:
        return {}
    connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=10)
    try:
        return dict(connection.execute("SELECT key, row FROM rows"))
    finally:
        connection.close()


def wait_for_rows(out: Path, count: int, ended: Callable[[], bool]) -> None:
    while len(rows_in(out)) < count and not ended():
        time.sleep(0.05)


def kill_a_sweep(out: Path) -> None:
    """Start a sweep as a process of its own and kill it after its first row; its workers must follow it."""
    env = {**os.environ, "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fqtsim", *COMMAND, "--out", str(out)]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_for_rows(out, 1, lambda: process.poll() is not None)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "a worker outlives its sweep"


def interrupt_a_sweep(out: Path, after: int) -> int:
    """Run a sweep here, with Ctrl-C to it and its workers once there are `after` rows. Return its exit code."""
    ended = threading.Event()

    def interrupt() -> None:
        wait_for_rows(out, after, ended.is_set)
        if not ended.is_set():
            for process in (*psutil.Process().children(recursive=True), psutil.Process()):
                process.send_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        return main([*COMMAND, "--out", str(out)])
    finally:
        ended.set()
        thread.join()


def test_a_sweep_that_is_killed_and_interrupted_repeats_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "sweep"
    kill_a_sweep(out)
    first = rows_in(out)
    assert 1 <= len(first) < 5

    code = interrupt_a_sweep(out, len(first) + 1)
    text, errors = capsys.readouterr()
    second = rows_in(out)
    # Seconds and all: a row that was there is the row that is there.
    assert first.items() <= second.items()
    assert len(first) + 1 <= len(second) < 6
    assert code == 130
    assert f"found {len(first)} of 6 runs finished; they are not run again" in errors
    assert f"interrupted, {len(second)} of 6 runs are saved; the same command goes on" in errors
    assert f"runs       6 in the plan, {len(first)} found finished, {len(second) - len(first)} done" in text

    plan = replace(PLAN, steps=30, measure=None)
    missing = [job for job in make_jobs(plan) if job.key not in second]
    with Store.create(out / "results.sqlite") as results:
        results.add(failed(missing[0]))
        results.add(row("of another plan"))
    starts: list[tuple[int, int]] = []
    seen: list[Any] = []
    outcome = sweep(plan, out, 1, None, lambda *counts: starts.append(counts), seen.append)
    assert starts == [(len(second), 6)]
    assert (outcome.total, outcome.found, outcome.ran) == (6, len(second), {"done": len(missing)})
    assert (outcome.others, outcome.interrupted) == (1, False)
    assert (seen[0].done, seen[0].running, seen[-1].done, seen[-1].left) == (len(second), 1, 6, 0)
    third = rows_in(out)
    assert second.items() <= third.items()
    assert {json.loads(text)["status"] for text in third.values()} == {"done"}

    assert main([*COMMAND, "--out", str(out)]) == 0
    text, errors = capsys.readouterr()
    assert "found 6 of 6 runs finished" in errors
    assert "runs       6 in the plan, 6 found finished\n" in text
    assert "kept       1 rows of other plans" in text
    assert f"ptq8 on {TREE}: " in text
    assert f"fqtsim sweep --hardware {TREE} --recipe ptq8" in (out / "report.html").read_text(encoding="utf-8")
    assert rows_in(out) == third


# The command line.


def test_options_take_values_up_to_the_next_option() -> None:
    assert _repeated(["--hardware", "a", "b", "--model", "m", "x", "--set=k=1", "j=2", "--out", "o"]) == [
        "--hardware", "a", "--hardware", "b", "--model", "m", "x", "--set=k=1", "--set", "j=2", "--out", "o",
    ]  # fmt: skip
    assert _repeated(["--hardware", "--model", "m"]) == ["--hardware", "--model", "m"]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [0, 1, 2]), ("3,7,9", [3, 7, 9]), ("5..7", [5, 6, 7]), ("4..4", [4]), ("0,9..10", [0, 9, 10])],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "", "a", "1,1", "-1", "1.5", "5..3", "2000", "1,18446744073709551616"])
def test_seeds_that_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^--seeds "):
        parse_seeds(text)


def test_times_are_estimated_from_the_nearest_kin() -> None:
    ptq, psq = Design("ptq8", (TREE,)), Design("psq8", (TREE,))
    jobs = [Job(design, {}, str(n)) for n, design in enumerate((ptq, ptq, replace(ptq, hardware=(WRAP,)), psq))]
    times = Times()
    assert times.left(jobs, 2) is None
    times.add(row("a", "failed", 99.0))
    assert times.left(jobs, 2) is None
    for label, recipe, seconds in ((ptq.label, "ptq8", 2.0), (ptq.label, "ptq8", 4.0), ("other", "ptq8", 9.0)):
        times.add(row("a", "done", seconds) | {"design": {"label": label, "recipe": recipe}})
    # Of its design 3 and 3, of its recipe 5, of all 5.
    assert times.left(jobs, 2) == (3 + 3 + 5 + 5) / 2
    assert times.left(jobs[:1], 8) == 3
    assert times.left([], 2) == 0
    assert [duration(s) for s in (0.2, 59, 61, 3599, 12000)] == ["1 s", "59 s", "1 min", "1 h 0 min", "3 h 20 min"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "--hardware", WRAP, "--recipe", "ptq8"], "Missing option '--out'"),
        (["sweep", "--recipe", "ptq8", "--out", "x"], "--hardware: is required"),
        (["sweep", "--hardware", WRAP, "--recipe", "ptq8", "--out", "x"], "steps = None, epochs = None: exactly one"),
        (["sweep", "--hardware", WRAP, "--model", "cnn", "mlp", "--out", "x"], "unexpected extra argument (mlp)"),
        ([*COMMAND, "--out", "x", "--set", f"{REGISTER}=int21..int20", "hardware.a=1"], "runs backwards"),
        ([*COMMAND, "--out", "x", "--scheduler", "tcp://localhost:1"], "--workers, --scheduler:"),
        ([*COMMAND, "--out", "file"], "'file' is a file"),
        (["report", "nothing"], "nothing/results.sqlite: no such file; name a folder that"),
    ],
)
def test_bad_input_exits_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert not out
    assert not Path("x").exists()


def test_one_sweep_at_a_time_writes_to_a_folder(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock").acquire(timeout=0), pytest.raises(InputError, match="another sweep writes here"):
        sweep(PLAN, tmp_path)
    assert not (tmp_path / "results.sqlite").exists()


def test_a_report_holds_the_rows_of_the_last_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of a plan that was changed since stay in the file and out of the report; a failed one is an exit code."""
    jobs = make_jobs(PLAN)
    made = {job.key: run_job(job) for job in jobs[:2]}
    with Store.create(tmp_path / "results.sqlite") as results:
        results.write_plan({"model": "mlp", "data": "digits", "tolerance": 1.0, "command": "c", "keys": list(made)})
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no finished run yet" in capsys.readouterr().err
    with Store.create(tmp_path / "results.sqlite") as results:
        for one in made.values():
            results.add(one)
        results.add(failed(jobs[4]))
    assert main(["report", str(tmp_path)]) == 0
    assert "ptq8" not in capsys.readouterr().out
    with Store.create(tmp_path / "results.sqlite") as results:
        results.write_plan(results.plan() | {"keys": [*made, jobs[4].key]})
    assert main(["report", str(tmp_path)]) == 1
    assert "ptq8" in capsys.readouterr().out
