"""Run jobs in other processes: workers of this machine, or those of a Dask scheduler.

Workers come and go: one that dies costs its job a retry, and no other job notices.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from fqtsim.errors import InputError

# A worker imports this module before it is told anything, so that nothing heavy is imported here.
if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from fqtsim.evaluate.job import Job

#: Times that a job is tried again after its process died, as a Dask scheduler does (allowed-failures).
RETRIES = 3
#: Seconds between looks at what a caller may have asked for meanwhile.
TICK = 0.2
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_one_at_a_time = threading.Lock()

Row = dict[str, Any]


def run_jobs(
    jobs: Iterable[Job],
    workers: int | None = None,
    scheduler: str | None = None,
    stop: threading.Event | None = None,
    on_tick: Callable[[int], None] | None = None,
) -> Iterator[tuple[Job, Row]]:
    """Yield (job, row) as jobs finish, handed out in the order given.

    `workers` processes of this machine, by default one a core; or those of the Dask scheduler at the address
    `scheduler`. A job whose process dies more than RETRIES times, or that raises, gives a row of status "failed".
    Once `stop` is set no more jobs are handed out, and the iterator ends with those that run. `on_tick` is told the
    number of running jobs several times a second. Raises InputError for a scheduler that cannot be reached or goes
    away. Leaving the iterator early ends local processes at once.
    """
    waiting = deque(jobs)
    if not waiting:
        return
    pool: _Pool = _Local(workers or cores(), len(waiting)) if scheduler is None else _dask(scheduler)
    with pool:
        while True:
            while waiting and pool.room() > 0 and not (stop is not None and stop.is_set()):
                pool.submit(waiting.popleft())
            if not pool.running():
                return
            if on_tick is not None:
                on_tick(pool.running())
            yield from pool.finished(TICK)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def attempt(job: Job) -> Row:
    """Return the row of a job run in this process on one thread, of status "failed" where it raises."""
    import numba
    import torch

    from fqtsim import __version__
    from fqtsim.evaluate.job import failed_row, run_job

    # One at a time even in a Dask worker with several threads: a user's model draws from torch's own generator.
    with _one_at_a_time:
        threads = torch.get_num_threads(), numba.get_num_threads()
        torch.set_num_threads(1)
        numba.set_num_threads(1)
        try:
            if job.plain["version"] != __version__:
                made = f"made by fqtsim {job.plain['version']}, and this worker has {__version__}"
                return failed_row(job, f"{made}; give every machine the same version")
            return run_job(job)
        except Exception as error:
            return failed_row(job, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        finally:
            torch.set_num_threads(threads[0])
            numba.set_num_threads(threads[1])


class _Pool(Protocol):
    """Where jobs run."""

    def room(self) -> int:
        """Return how many more jobs would start at once."""

    def running(self) -> int:
        """Return the number of jobs handed out and not finished."""

    def submit(self, job: Job) -> None:
        """Hand out a job."""

    def finished(self, seconds: float) -> list[tuple[Job, Row]]:
        """Wait at most `seconds` and return what finished since."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def _dask(address: str) -> _Pool:
    from fqtsim.evaluate.cluster import DaskPool

    return DaskPool(address)


class _Worker:
    """A process that runs one job at a time, sent and answered through a pipe."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe: Connection
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs,), daemon=True, name="fqtsim worker")
        with _without_interrupts(), one_thread_for_children():
            self.process.start()
        # With no copy here, the end of the process is the end of the pipe.
        theirs.close()
        self.job: Job | None = None

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Local:
    """Processes of this machine, started when first needed and replaced when they die."""

    def __init__(self, workers: int, jobs: int) -> None:
        if workers < 1:
            raise InputError(f"workers = {workers}: must be at least 1; use --workers 1")
        self._size = min(workers, jobs)
        self._workers: list[_Worker] = []
        self._deaths: Counter[str] = Counter()

    def room(self) -> int:
        return self._size - self.running()

    def running(self) -> int:
        return sum(worker.job is not None for worker in self._workers)

    def submit(self, job: Job) -> None:
        worker = next((worker for worker in self._workers if worker.job is None), None)
        if worker is None:
            worker = _Worker()
            self._workers.append(worker)
        worker.job = job
        # One that died idle is found out by finished(), as the end of its pipe.
        with suppress(OSError):
            worker.pipe.send(job)

    def finished(self, seconds: float) -> list[tuple[Job, Row]]:
        busy: dict[Any, tuple[_Worker, Job]] = {
            worker.pipe: (worker, worker.job) for worker in self._workers if worker.job is not None
        }
        found = []
        for pipe in wait(list(busy), seconds):
            worker, job = busy[pipe]
            row = self._receive(worker, job)
            if row is not None:
                found.append((job, row))
        return found

    def _receive(self, worker: _Worker, job: Job) -> Row | None:
        """Return a worker's answer, a failed row where it died once too often, None where its job starts again."""
        try:
            row: Row = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            cause = _cause(worker.process.exitcode)
            self._workers.remove(worker)
            worker.pipe.close()
            return self._again(job, cause)
        worker.job = None
        return row

    def _again(self, job: Job, cause: str) -> Row | None:
        from fqtsim.evaluate.job import failed_row

        self._deaths[job.key] += 1
        if self._deaths[job.key] <= RETRIES:
            self.submit(job)
            return None
        return failed_row(job, f"its process died {self._deaths[job.key]} times, the last time {cause}")

    def __enter__(self) -> _Local:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()


@contextmanager
def one_thread_for_children() -> Iterator[None]:
    """Let processes that start meanwhile have one thread.

    They import the script that started them, and with it perhaps numba, before anyone could tell them otherwise.
    """
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from a process while it starts: it inherits the mask, and Python would print a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cause(exitcode: int | None) -> str:
    """Return what an exit code says of a process's end."""
    if exitcode is None or exitcode >= 0:
        return f"with exit code {exitcode}"
    hint = " (what the system does when memory runs out)" if exitcode == -signal.SIGKILL else ""
    return f"by {signal.Signals(-exitcode).name}{hint}"


def _serve(pipe: Connection) -> None:
    """Run the jobs that come through a pipe until it closes. The body of a worker process."""
    # Ctrl-C reaches every process of the terminal; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(job))


def _end_with_parent() -> None:
    """End this process when its parent is gone: a killed sweep leaves nobody computing what it will do again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
