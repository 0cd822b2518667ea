"""Run jobs on the workers of a Dask scheduler that is already running."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fqtsim.errors import InputError, MissingPackage
from fqtsim.evaluate.engine import RETRIES, Row, attempt

if TYPE_CHECKING:
    from fqtsim.evaluate.job import Job

#: Seconds to wait for the scheduler's first answer, and for its first worker.
PATIENCE = 10


class DaskPool:
    """The workers of a scheduler, one job at a time each; the scheduler tries a dead worker's job elsewhere."""

    def __init__(self, address: str) -> None:
        """Connect. Raises InputError where nobody answers, no worker is there, or one cannot run these jobs."""
        try:
            import distributed
        except ImportError as error:
            raise MissingPackage("--scheduler: needs distributed; run: pip install 'fqtsim[evaluate]'") from error
        self._address = address
        self._dask: Any = distributed
        #: Future -> its job.
        self._running: dict[Any, Job] = {}
        with _quiet():
            try:
                self._client = self._dask.Client(address, timeout=PATIENCE, set_as_default=False)
            except (OSError, ValueError, TimeoutError) as error:
                rule = f"no scheduler answers there ({error or type(error).__name__})"
                raise InputError(f"--scheduler {address}: {rule}; start one with: dask scheduler") from None
            try:
                self._check_workers()
            except BaseException:
                self._client.close()
                raise

    def _check_workers(self) -> None:
        from fqtsim import __version__

        try:
            self._client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            remedy = f"start some with: dask worker {self._address} --nthreads 1"
            raise InputError(f"--scheduler {self._address}: it has no workers; {remedy}") from None
        remedy = f"install fqtsim {__version__} for every worker"
        try:
            versions: dict[str, str] = self._client.run(_version)
        except Exception as error:
            rule = f"its workers cannot import fqtsim ({type(error).__name__}: {error})"
            raise InputError(f"--scheduler {self._address}: {rule}; {remedy}") from None
        for worker, version in versions.items():
            if version != __version__:
                raise InputError(f"--scheduler {self._address}: {worker} has fqtsim {version}; {remedy}")

    def room(self) -> int:
        try:
            workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, TimeoutError, RuntimeError):
            raise self._gone() from None
        # With all workers gone for the moment, one job waits at the scheduler for the next.
        return max(workers, 1) - len(self._running)

    def running(self) -> int:
        return len(self._running)

    def submit(self, job: Job) -> None:
        self._running[self._client.submit(attempt, job, key=f"fqtsim-{job.key}")] = job

    def finished(self, seconds: float) -> list[tuple[Job, Row]]:
        """Wait at most `seconds` and return what finished. Raises InputError where the scheduler is gone."""
        try:
            with self._client.as_current():
                done = self._dask.wait(list(self._running), timeout=seconds, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            done = set()
        except (CancelledError, asyncio.CancelledError):
            raise self._gone() from None
        if self._client.status != "running":
            raise self._gone()
        return [(self._running[future], self._row(future, self._running.pop(future))) for future in done]

    def _row(self, future: Any, job: Job) -> Row:
        from fqtsim.evaluate.job import failed_row

        try:
            row: Row = future.result(timeout=PATIENCE)
        except self._dask.KilledWorker:
            return failed_row(job, f"its worker died more than {RETRIES} times")
        except (CancelledError, asyncio.CancelledError, OSError, TimeoutError):
            raise self._gone() from None
        except Exception as error:
            return failed_row(job, f"{type(error).__name__}: {error}")
        return row

    def _gone(self) -> InputError:
        remedy = "start it again and give the same command: finished runs stand"
        return InputError(f"--scheduler {self._address}: the scheduler went away; {remedy}")

    def __enter__(self) -> DaskPool:
        self._silence = _quiet()
        self._silence.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._client.status == "running":
                self._client.cancel(list(self._running))
            self._client.close(timeout=PATIENCE)
        finally:
            self._silence.__exit__(kind, error, trace)


def _version() -> str:
    """Return the version of fqtsim where this runs."""
    from fqtsim import __version__

    return __version__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's own log lines off the terminal: what the user must know comes as a row or an error."""
    logger: Any = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
