"""Run one kernel over parts of its work in several threads.

The kernels release the GIL, so plain threads suffice: no threading layer to choose, nothing to compile for it, and
safe to enter from several Python threads at once. Parts only ever write outputs of their own, or partial results
that are combined in integers, so the number of threads cannot reach a result (S5).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import numba

Result = TypeVar("Result")

SMALLEST_PART = 1 << 16
"""Elements below which a part is not worth a thread (about 20 microseconds of work)."""

_inside = threading.local()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Return this process's pool: a forked child has no threads and needs one of its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="fqtsim")


def parts(count: int, elements_each: int = 1) -> list[tuple[int, int]]:
    """Return ranges that cover 0..count, at most one a thread, of at least SMALLEST_PART elements unless it is one."""
    wanted = min(count * elements_each // SMALLEST_PART, count)
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
    others = [_pool(os.getpid()).submit(work, part) for part in ranges[1:]]
    try:
        first = work(ranges[0])
    finally:
        wait(others)  # no part may go on writing after this has left
    return [first, *(other.result() for other in others)]
