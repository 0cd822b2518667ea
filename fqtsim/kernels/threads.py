"""Run one kernel over parts of its work in several threads.

The kernels release the GIL, so plain threads suffice: no threading layer to choose, nothing to compile for it, and
safe to enter from several Python threads at once. Parts only ever write outputs of their own, or partial results
that are combined in integers, so the number of threads cannot reach a result (S5).
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import numba

Result = TypeVar("Result")

SMALLEST_PART = 1 << 16
"""Elements below which a part is not worth a thread: about 60 microseconds of work, which handing it over takes too."""
QUICK = 8
"""How many times as many they must be where work goes as fast as memory does."""

FEW_CPUS = 8
"""CPUs from which the system is trusted to find a thread another one than its caller's."""

_inside = threading.local()
#: sched_getcpu() of the C library, where there is one.
_current_cpu = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None


class Pool(ThreadPoolExecutor):
    """Threads that take parts, on a machine of few CPUs another one than their caller's.

    The guest of a virtual machine takes a CPU that has halted for one that its host has given to others, and wakes a
    thread on its waker's CPU instead, where it waits until the waker is done: 6.5 ms where two CPUs take 4 (1024^3).
    """

    def __init__(self, most: int) -> None:
        super().__init__(most, thread_name_prefix="fqtsim", initializer=self._started)
        self.started: list[int] = []
        self.placing = threading.Lock()
        #: The CPU that no thread may run on; -1 where nothing is known.
        self.away_from = -1

    def _started(self) -> None:
        with self.placing:
            self.started.append(threading.get_native_id())
            self.away_from = -1  # it may stand anywhere yet

    def keep_apart(self) -> None:
        """Let no thread of the pool run on the CPU of the caller, which may have moved."""
        if _current_cpu is None:
            return
        cpu = _current_cpu()
        if cpu == self.away_from:
            return
        with self.placing, suppress(OSError):  # a sandbox may forbid it; then they run where they are put
            self.away_from = -1
            others = os.sched_getaffinity(0) - {cpu}
            if 0 < len(others) < FEW_CPUS:
                for thread in tuple(self.started):
                    os.sched_setaffinity(thread, others)
                self.away_from = cpu


@lru_cache(maxsize=1)
def _pool(process: int) -> Pool:
    """Return this process's pool: a forked child has no threads and needs one of its own."""
    return Pool(os.cpu_count() or 1)


def parts(count: int, elements_each: int = 1, quick: bool = False) -> list[tuple[int, int]]:
    """Return ranges that cover 0..count, at most one a thread, of at least SMALLEST_PART elements unless it is one.

    quick: an element takes some tenth of a nanosecond, so more of them have to be worth a thread.
    """
    wanted = min(count * elements_each // (SMALLEST_PART * (QUICK if quick else 1)), count)
    if wanted < 2 or getattr(_inside, "worker", False):  # before asking Numba, which takes microseconds
        return [(0, count)]
    number = max(1, min(numba.get_num_threads(), wanted))
    edges = [count * i // number for i in range(number + 1)]
    return list(pairwise(edges))


def run(function: Callable[[int, int], Result], ranges: Sequence[tuple[int, int]]) -> list[Result]:
    """Return function(first, last) of each range, in order, one thread each."""
    if len(ranges) == 1:
        return [function(*ranges[0])]

    def work(part: tuple[int, int]) -> Result:
        before, _inside.worker = getattr(_inside, "worker", False), True
        try:  # work started from a worker stays in it: a pool that waits for itself would hang
            return function(*part)
        finally:
            _inside.worker = before

    # The caller takes the first part: one thread less to wake.
    pool = _pool(os.getpid())
    pool.keep_apart()
    others = [pool.submit(work, part) for part in ranges[1:]]
    try:
        first = work(ranges[0])
    finally:
        wait(others)  # no part may go on writing after this has left
    return [first, *(other.result() for other in others)]
