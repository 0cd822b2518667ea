"""Waits until threads run at full speed side by side.

A virtual machine's two cores may be two threads of one real one: its host then gives either of them half the speed for
some tenths of a second, most of all behind a sleep. It hits what runs next, contestant or rival, by chance.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np

WAIT = 1.0
"""Seconds after which a measurement begins all the same."""
SLOW = 1.4
"""Times that a thread takes, over its time alone, from which it is held to share a core."""
_ROUNDS = 10_000
"""Rounds of the loop: about a millisecond."""


@numba.njit(nogil=True)
def _busy(x: Any, rounds: int) -> None:
    for _ in range(rounds):
        for i in range(x.size):
            x[i] = x[i] * np.float32(0.999) + np.float32(0.5)


def _seconds(_thread: int = 0) -> float:
    x = np.ones(2048, np.float32)  # the first-level cache holds it
    began = time.perf_counter()
    _busy(x, _ROUNDS)
    return time.perf_counter() - began


@cache
def _alone() -> float:
    return sorted(_seconds() for _ in range(9))[2]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(64, thread_name_prefix="busy")


def wait_apart(threads: int) -> bool:
    """Keep so many threads busy until none of them slows another one down; tell whether that came within WAIT."""
    alone, end = _alone(), time.perf_counter() + WAIT
    while time.perf_counter() < end:
        if max(_pool().map(_seconds, range(threads))) < SLOW * alone:
            return True
    return False
