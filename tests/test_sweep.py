"""Sweeps: the grid is what was asked, and no kill, full disk or dead worker loses a finished run or repeats one."""

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
from hypothesis import given
from hypothesis import strategies as st

from fqtsim.cli import main
from fqtsim.cli.sweep import _repeated, duration, parse_seeds
from fqtsim.errors import InputError
from fqtsim.evaluate import engine, store
from fqtsim.evaluate.engine import run_jobs
from fqtsim.evaluate.grid import designs, split_list, values
from fqtsim.evaluate.job import Design, Job, Measure, failed_row, run_job
from fqtsim.evaluate.store import Store
from fqtsim.evaluate.sweep import Plan, Times, baselines, make_jobs, sweep

REGISTER = "hardware.datapath.levels.-1.register"
TREE, WRAP = "int8_acc20_tree4", "int8_acc32_wrap"
QUICK = Measure(batches=0, outputs=0)
PLAN = Plan([Design("ptq8", (TREE,))], "mlp", "digits", (0, 1), steps=2, batch=32, measure=QUICK)
COMMAND = [
    "sweep", "--hardware", TREE, "--recipe", "ptq8", "--model", "mlp", "--steps", "30", "--batch", "32",
    "--seeds", "2", "--workers", "1",
]  # fmt: skip


# The grid.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("int16..int19", ["int16", "int17", "int18", "int19"]),
        ("int12..32/10", ["int12", "int22", "int32"]),
        ("1,4,16", ["1", "4", "16"]),
        ("exact,int8..int9", ["exact", "int8", "int9"]),
        ("7..7", ["7"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ("{a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("0.05", ["0.05"]),
    ],
)
def test_values(text: str, found: list[str]) -> None:
    assert values(text, "--set x") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int16..", "--set x: int16.. is no range; write FIRST..LAST or FIRST..LAST/STEP, for example int12..int32/4"),
        ("int32..int16", "--set x: int32..int16 runs backwards; write int16..int32"),
        ("int8..uint16", "--set x: the ends of int8..uint16 differ before the number; write int8..int16"),
        ("1..8/3", "--set x: steps of 3 from 1 do not reach 8; end at 7, or choose another step"),
        ("1..8/0", "--set x: steps of 0 from 1 do not reach 8; end at 1, or choose another step"),
        ("1,,2", "--set x: has an empty value; write values such as int16..int32 or 1,4,16"),
        ("", "--set x: has an empty value; write values such as int16..int32 or 1,4,16"),
        ("1,1..2", "--set x: 1 is listed twice; keep one"),
        ("1..100000", "--set x: 1..100000 has more than 10000 values; sweep fewer"),
    ],
)
def test_values_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        values(text, "--set x")
    assert str(error.value) == message


@given(st.sampled_from(["", "int", "uint", "fixed8_"]), st.integers(0, 99), st.integers(0, 30), st.integers(1, 9))
def test_a_range_has_both_ends_and_equal_steps(stem: str, low: int, count: int, step: int) -> None:
    found = values(f"{stem}{low}..{stem}{low + count * step}/{step}", "x")
    assert found == [f"{stem}{low + i * step}" for i in range(count + 1)]


@given(st.lists(st.sampled_from(["1", "a b", "[1, 2]", "{a: [3, 4], b: 5}", "'x, ]'", '"[, y"']), min_size=1))
def test_splitting_undoes_joining(parts: list[str]) -> None:
    assert split_list(",".join(parts)) == parts
    assert split_list(" , ".join(parts)) == parts


def test_the_grid_is_the_product() -> None:
    sets = [f"{REGISTER}=int20..int24/2", "recipe.optimizer.lr=0.1", "hardware.random.bits=8,16"]
    found = designs([WRAP, f"{TREE},int8_acc24_saturate"], ["bhq5,psq5", "ptq8"], sets)
    assert len(found) == len({design.label for design in found}) == 3 * 3 * 3 * 2
    first, second = found[0], found[1]
    assert (first.recipe, first.hardware) == ("bhq5", (WRAP,))
    assert first.set_hardware == {"datapath.levels.-1.register": "int20", "random.bits": "8"}
    assert second.set_hardware == {"datapath.levels.-1.register": "int20", "random.bits": "16"}
    assert {tuple(design.set_recipe.items()) for design in found} == {(("optimizer.lr", "0.1"),)}
    assert [design.hardware for design in found[::18]] == [(WRAP,), (TREE,), ("int8_acc24_saturate",)]


def test_patterns_with_commas_are_one_design() -> None:
    (design,) = designs([f"conv*={WRAP},*={TREE}"], ["ptq8"], [])
    assert design.hardware == (f"conv*={WRAP}", f"*={TREE}")


@pytest.mark.parametrize(
    ("hardware", "recipes", "sets", "message"),
    [
        ([], ["ptq8"], [], "--hardware: is required"),
        ([WRAP], [], [], "--recipe: is required"),
        ([f"{WRAP},"], ["ptq8"], [], "has an empty name between commas"),
        ([WRAP], ["fp32"], [], "--recipe fp32: every sweep trains fp32 and qat already; leave it out"),
        ([WRAP, WRAP], ["ptq8"], [], f"design ptq8 on {WRAP}: is given twice; keep one"),
        (["a/x.yaml", "b/x.yaml"], ["ptq8"], [], "would stand for a/x.yaml and for b/x.yaml"),
        ([f"conv*={WRAP},{TREE}"], ["ptq8"], [], "mixes PATTERN=NAME"),
        ([WRAP], ["ptq8"], ["register=int8"], "must be hardware.KEY=VALUES or recipe.KEY=VALUES"),
        ([WRAP], ["ptq8"], [f"{REGISTER}=int8", f"{REGISTER}=int9"], "is set twice; list all values in one --set"),
        ([WRAP], ["ptq8"], ["hardware.a=1..200", "hardware.b=1..200"], "the grid has 40000 points"),
    ],
)
def test_grids_that_are_refused(hardware: list[str], recipes: list[str], sets: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        designs(hardware, recipes, sets)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (designs([WRAP], ["ptq8"], [f"{REGISTER}=int20,int99"]), f"design ptq8 on {WRAP} register=int99: --set"),
        (designs([WRAP], ["ptq8"], ["recipe.weight.bits=8,9"]), f"design ptq8 on {WRAP} weight.bits=9: --set"),
        (designs([f"fc={WRAP}"], ["ptq8"], []), f"design ptq8 on fc={WRAP}: hardware: no pattern of 'fc'"),
        (designs([TREE], ["ptq8"], ["hardware.datapath.a=int4"]), f"design ptq8 on {TREE} a=int4:"),
        (
            designs([TREE], ["ptq8"], ["recipe.optimizer.lr=0.1,1e-1"]),
            f"design ptq8 on {TREE} optimizer.lr=1e-1: is the same as",
        ),
        (designs([TREE], ["ptq8"], ["recipe.optimizer.lr=0.1,0.2"]), "in optimizer.lr, and fp32 and qat train one way"),
    ],
)
def test_a_point_that_cannot_run_is_named_before_anything_runs(found: list[Design], message: str) -> None:
    with pytest.raises(InputError) as error:
        make_jobs(replace(PLAN, designs=found))
    assert message in str(error.value)


def test_baselines_train_as_the_designs_do() -> None:
    sets = ["recipe.optimizer.lr=0.05", "recipe.optimizer.nesterov=true", "recipe.grad_for_dgrad.bits=4,6"]
    fp32, qat = baselines(replace(PLAN, designs=designs([TREE], ["ptq8"], sets)))
    assert (fp32.recipe, qat.recipe) == ("fp32", "qat")
    assert fp32.set_recipe == qat.set_recipe == {"optimizer.lr": "0.05", "optimizer.nesterov": "true"}
    assert fp32.set_hardware == qat.set_hardware == {}


def test_jobs_pair_seeds_and_begin_with_baselines() -> None:
    jobs = make_jobs(replace(PLAN, designs=designs([TREE, WRAP], ["ptq8"], [])))
    assert [(job.design.label.split()[0], job.plain["seed"]) for job in jobs] == [
        ("fp32", 0), ("qat", 0), ("fp32", 1), ("qat", 1), ("ptq8", 0), ("ptq8", 0), ("ptq8", 1), ("ptq8", 1),
    ]  # fmt: skip
    assert len({job.key for job in jobs}) == 8
    with pytest.raises(InputError, match=r"^seeds = \[1, 1\]: one is given twice"):
        make_jobs(replace(PLAN, seeds=(1, 1)))


# The results file.


def failed(job: Job) -> dict[str, Any]:
    """Return the row of a run whose process died, as a file has it."""
    return json.loads(json.dumps(failed_row(job, "its process died")))


def row(key: str, status: str = "done", seconds: float = 1.0) -> dict[str, Any]:
    return {"key": key, "status": status, "seconds": seconds, "design": {"label": "a", "recipe": "ptq8"}}


def test_rows_come_back_and_a_finished_one_stands(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with Store.create(path) as results:
        assert results.add(row("a", "diverged"))
        assert not results.add(row("a", "done"))
        assert results.add(row("b", "failed"))
        assert results.add(row("b", "failed", 2.0))
        assert results.add(row("b", "done"))
        assert not results.add(row("b", "failed"))
        results.write_plan({"keys": ["a"]})
        results.write_plan({"keys": ["b", "a"]})
    with Store.create(path) as results:
        assert results.status() == {"a": "diverged", "b": "done"}
    with Store.read(path) as results:
        assert results.rows() == {"a": row("a", "diverged"), "b": row("b")}
        assert results.plan() == {"keys": ["b", "a"]}
        with pytest.raises(InputError, match="attempt to write a readonly database"):
            results.add(row("c"))


def refuse(path: Path, opened: Callable[[Path], Store] = Store.create) -> str:
    with pytest.raises(InputError) as error:
        opened(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    text, other, newer = tmp_path / "text", tmp_path / "other", tmp_path / "newer"
    text.write_text("no database, but long enough to be looked at " * 50)
    for opened in (Store.create, Store.read):
        assert refuse(text, opened) == "is not a file of results; move it away, or name another folder"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE rows (key, row)")
    connection.close()
    assert refuse(other) == "is not a file of results; move it away, or name another folder"
    Store.create(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    assert refuse(newer).startswith("holds results in version 2 of their format, this fqtsim writes version 1; ")
    assert "no such file" in refuse(tmp_path / "none", Store.read)
    assert not (tmp_path / "none").exists()
    assert "cannot be written (unable to open database file)" in refuse(tmp_path / "no folder" / "r")
    (tmp_path / "empty").touch()
    Store.create(tmp_path / "empty").close()
    assert "is not a file of results" in refuse(tmp_path / "text", Store.read)


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with Store.create(path) as results:
        results.add(row("a"))
    content = bytearray(path.read_bytes())
    content[18] = 3  # SQLite's file format: written by a version that this one may only read
    path.write_bytes(content)
    assert refuse(path) == (
        "cannot be written (attempt to write a readonly database); allow writing, or name another folder"
    )
    with Store.read(path) as results:
        assert results.rows() == {"a": row("a")}


def test_a_file_in_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0.1)
    path = tmp_path / "r.sqlite"
    Store.create(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert refuse(path).startswith("cannot be written (database is locked); another process uses it: wait")
    other.close()


#: Fill a results file under a limit on file sizes, as a quota sets it, and print what the error says.
FILL = """
import resource, signal, sys
from pathlib import Path
from fqtsim.errors import InputError
from fqtsim.evaluate.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
with Store.create(Path(sys.argv[1])) as results:
    for number in range(100):
        try:
            results.add({"key": str(number), "status": "done", "text": "x" * 5000})
        except InputError as error:
            print(number, error)
            break
"""


def test_a_full_disk_leaves_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    number, _, message = done.stdout.strip().partition(" ")
    assert message.startswith(f"{path}: cannot be written (disk I/O error); make room")
    with Store.create(path) as results:
        assert list(results.rows()) == [str(i) for i in range(int(number))]
        results._connection.execute(
            f"PRAGMA max_page_count = {results._connection.execute('PRAGMA page_count').fetchone()[0]}"
        )
        with pytest.raises(InputError, match=r"cannot be written \(database or disk is full\); make room and give the"):
            results.add(row("more") | {"text": "x" * 9000})
        assert len(results.rows()) == int(number) > 3


# The engine.

#: A network whose builder does something else in the first runs that a worker process makes of it.
NETWORK = """
import multiprocessing, os, signal
from pathlib import Path
from torch import nn

def make(info):
    log = Path({log!r})
    if multiprocessing.parent_process() is not None and len(log.read_text()) < {times}:
        log.write_text(log.read_text() + "x")
        {action}
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def network(folder: Path, name: str, times: int, action: str = KILL) -> tuple[Job, Path]:
    """Return the job of a network whose builder does `action` so many times, and the file that counts them."""
    log, file = folder / f"{name}.log", folder / f"{name}.py"
    log.touch()
    file.write_text(NETWORK.format(log=str(log), times=times, action=action))
    config = replace(PLAN, model=f"{file}:make").config(Design("fp32", (WRAP,)), 0)
    return Job.of(config, QUICK), log


def test_workers_that_die_cost_a_retry_and_no_other_job_notices(tmp_path: Path) -> None:
    fine = make_jobs(PLAN)[4]
    once, once_log = network(tmp_path, "once", 1)
    always, always_log = network(tmp_path, "always", 99)
    raises, _ = network(tmp_path, "raises", 99, "raise RuntimeError('no memory left')")
    rows = {job.key: row for job, row in run_jobs([always, once, fine, raises], workers=2)}
    assert set(rows) == {fine.key, once.key, always.key, raises.key}
    assert (len(once_log.read_text()), len(always_log.read_text())) == (1, 4)
    assert [rows[job.key]["status"] for job in (fine, once, always, raises)] == ["done", "done", "failed", "failed"]
    assert rows[always.key]["message"] == (
        "its process died 4 times, the last time by SIGKILL (what the system does when memory runs out)"
    )
    assert "no memory left" in rows[raises.key]["message"]
    here = run_job(fine)
    assert rows[fine.key] | {"seconds": 0} == here | {"seconds": 0}


def test_once_stopped_nothing_more_is_handed_out() -> None:
    # Refused by the worker, and so quick: a row all the same.
    job = make_jobs(PLAN)[0]
    jobs = [replace(job, key=str(n), plain={**job.plain, "version": "0.0"}) for n in range(4)]
    stop = threading.Event()
    ticks: list[int] = []
    found = []
    for _, result in run_jobs(jobs, workers=1, stop=stop, on_tick=ticks.append):
        found.append(result)
        if len(found) == 2:
            stop.set()
    assert [(one["key"], one["status"]) for one in found] == [("0", "failed"), ("1", "failed")]
    assert found[0]["message"].startswith("made by fqtsim 0.0, and this worker has ")
    assert set(ticks) == {1}
    assert list(run_jobs(jobs, stop=stop)) == list(run_jobs([])) == []
    with pytest.raises(InputError, match="workers = -1: must be at least 1"):
        list(run_jobs(jobs, workers=-1))


def test_causes() -> None:
    assert engine._cause(3) == "with exit code 3"
    assert engine._cause(-11) == "by SIGSEGV"


#: Start a worker, give it something that takes ten minutes, and wait to be killed.
ORPHAN = """
import time
from fqtsim.evaluate.engine import _Worker

class Long:
    def __reduce__(self):
        return time.sleep, (600,)

if __name__ == "__main__":
    worker = _Worker()
    worker.pipe.send(Long())
    print(worker.process.pid, flush=True)
    time.sleep(600)
"""


def test_a_worker_in_the_middle_of_a_job_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))  # type: ignore[union-attr]
        parent.kill()
    _, alive = psutil.wait_procs([worker], timeout=60)
    for process in alive:
        process.kill()
    assert not alive


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
