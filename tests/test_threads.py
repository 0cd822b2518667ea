"""Threads reach no result, and stay off the CPU of their caller."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from agreement import summary
from mac import chain, datapath

from fqtsim.backends import get_backend
from fqtsim.kernels import threads


@pytest.mark.parametrize("levels", ["int14 saturate", "terms 4 exact, int17 saturate", "int18 wrap",
                                    "lanes 3 drop 2 ties_to_even int9 saturate, int12 wrap"])  # fmt: skip
def test_the_number_of_threads_changes_nothing(levels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(3)
    a, b = random.randint(-128, 128, (300, 230)).astype(np.int8), random.randint(-128, 128, (230, 400)).astype(np.int8)
    path = datapath(*chain(levels))
    split: list[int] = []
    real_run = threads.run

    def counted(function: Any, ranges: Any) -> Any:
        split.append(len(ranges))
        return real_run(function, ranges)

    monkeypatch.setattr(threads, "run", counted)
    results = []
    with threads.Pool(4) as pool:
        monkeypatch.setattr(threads, "_pool", lambda process: pool)
        for number in (1, 2, 3):
            monkeypatch.setattr(threads.numba, "get_num_threads", lambda number=number: number)
            split.clear()
            results += [summary(get_backend(name).gemm(a, b, path)) for name in ("stepwise", "emulator")]
            assert max(split) == number
    assert all(result == results[0] for result in results)


def test_threads_stay_away_from_their_callers_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    if threads._current_cpu is None or not 1 < cpus <= threads.FEW_CPUS:
        pytest.skip("needs Linux and two to eight CPUs")
    allowed = os.sched_getaffinity(0)
    with threads.Pool(1) as pool:  # a second thread could start behind the first, and stand anywhere
        pool.submit(int).result()
        for cpu in sorted(allowed):
            monkeypatch.setattr(threads, "_current_cpu", lambda cpu=cpu: cpu)
            pool.keep_apart()
            assert pool.submit(os.sched_getaffinity, 0).result() == allowed - {cpu}
        # A caller that is bound to one CPU leaves nothing to choose, and nothing is held to be arranged for it.
        monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {min(allowed)})
        monkeypatch.setattr(threads, "_current_cpu", lambda: min(allowed))
        pool.keep_apart()
        assert pool.away_from == -1
        monkeypatch.undo()
        monkeypatch.setattr(threads, "_current_cpu", lambda: max(allowed))
        monkeypatch.setattr(os, "sched_setaffinity", forbidden)
        pool.keep_apart()
        assert pool.away_from == -1
    assert os.sched_getaffinity(0) == allowed


def forbidden(*arguments: Any) -> None:
    raise PermissionError("no")
