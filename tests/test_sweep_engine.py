"""The engine: a worker that dies costs a retry, and none outlives its sweep."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from small_sweep import PLAN, QUICK, WRAP

from fqtsim.errors import InputError
from fqtsim.evaluate import engine
from fqtsim.evaluate.engine import run_jobs
from fqtsim.evaluate.job import Design, Job, run_job
from fqtsim.evaluate.sweep import make_jobs

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


#: A user's script that imports numba at its top, as its worker processes then do before they are told anything.
SCRIPT = """
import sys
from dataclasses import replace

import numba

sys.path.insert(0, {tests!r})
from small_sweep import PLAN, QUICK, WRAP

from fqtsim.evaluate.engine import run_jobs
from fqtsim.evaluate.job import Design, Job

if __name__ == "__main__":
    config = replace(PLAN, model={model!r}).config(Design("fp32", (WRAP,)), 0)
    print([row["status"] + row["message"] for _, row in run_jobs([Job.of(config, QUICK)], workers=1)])
"""


def test_a_script_that_imports_numba_first_can_run_jobs(tmp_path: Path) -> None:
    model, script = tmp_path / "model.py", tmp_path / "script.py"
    # Numba reads its environment again with every function that it compiles.
    model.write_text(
        "import numba\nfrom torch import nn\n\n"
        "@numba.njit(parallel=True)\ndef ones():\n    total = 0\n    for i in numba.prange(9):\n        total += 1\n"
        "    return total\n\n"
        "def make(info):\n    assert ones() == 9\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), model=f"{model}:make"))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "['done']", done.stdout + done.stderr
