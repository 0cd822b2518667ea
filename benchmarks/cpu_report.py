"""What the sections of benchmarks/cpu.py share: targets, rows, verdicts, paired timing, and what machine this is."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cpu_cores import wait_apart

MET, MISSED = "met", "missed"
RECORDED, NOT_RUN, FAILED = "recorded", "not run", "FAILED"
#: Verdicts that `--resume` runs again.
UNFINISHED = (NOT_RUN, FAILED)

SAMPLE = 2e-3
"""Seconds that one sample lasts at least: shorter calls are repeated inside it."""
UNTIMED = 5e-2
"""Seconds up to which a call precedes each sample untimed: another contestant has left its data in the caches."""
SETTLE = 2e-2
"""Seconds between the samples of two contestants on several threads: OpenMP's workers go on spinning after a call.

After 2 ms they still did, by hand: the emulator's next call of 1024^3 took 6 to 9 ms where it takes 4.5 after 20 ms."""
ROUNDS = 5


@dataclass(frozen=True)
class Target:
    """One line of the table of targets."""

    work: str
    bound: float
    #: Whether a larger ratio is better.
    at_least: bool
    #: What the ratio is a multiple of.
    of: str

    @property
    def text(self) -> str:
        """The target in words, as in ">= 0.6 x torch._int_mm"."""
        return f"{'>=' if self.at_least else '<='} {self.bound:g} x {self.of}"

    def verdict(self, ratio: float) -> str:
        """Return whether a ratio meets the target."""
        return MET if (ratio >= self.bound if self.at_least else ratio <= self.bound) else MISSED


def _speed(work: str, bound: float, of: str) -> Target:
    return Target(work, bound, True, of)


def _cost(work: str, bound: float, of: str) -> Target:
    return Target(work, bound, False, of)


_FP32, _INT_MM, _STEP = "fp32 matmul", "torch._int_mm", "the step of fp32 PyTorch eager"

#: Speeds are rates over the rival's rate, costs are times over the rival's time (or memory, or seconds).
TARGETS: Mapping[str, Target] = {
    "step_acc24": _cost("ResNet-20 step, 32x32, batch 128, BHQ-5, int8_acc24_saturate", 1.0, _STEP),
    "step_wrap": _cost("the same, int8_acc32_wrap", 0.8, _STEP),
    "step_acc16": _cost("the same, int8_acc16_saturate", 2.0, _STEP),
    "check_sample": _cost("a step with --check sample:0.01", 1.05, "the unchecked step"),
    "check_freivalds": _cost("a step with --check freivalds", 1.05, "the unchecked step"),
    "dumped_20_24": _speed("operands of real training, 20 and 24 bits saturating", 0.6, _INT_MM),
    "dumped_16": _speed("operands of real training, 16 bits saturating", 0.25, _INT_MM),
    "worst_17_32": _speed("worst case, registers of 17 to 32 bits", 1.2, _FP32),
    "worst_16": _speed("worst case, registers of 16 bits or fewer", 2.0, _FP32),
    "loop": _speed("worst case beside a 20-line Numba loop", 1.0, "the faster loop"),
    "trees": _speed("trees, lanes, dropped bits, several levels", 0.4, _FP32),
    "exact": _speed("nothing can overflow, with events, 1024^3 and above", 0.8, _INT_MM),
    "psq": _speed("PSQ, float32, stochastic rounding, elements/s a core", 1.0, "1 G elements/s a core"),
    "bhq": _cost("BHQ forward and inverse, 128 x 16384", 3.0, "PSQ's time"),
    "threads": _speed("2 threads over 1 at 1024^3", 1.85, "one thread"),
    "growth": _cost("exponent of the time in M*N*K (fitted)", 1.1, "linear growth"),
    "memory": _cost("peak memory of a call", 1.0, "operands + result + 32 MiB"),
    "import": _cost("import fqtsim, without torch", 1.0, "0.3 s"),
    "first_gemm": _cost("first GEMM in a fresh process, JIT included", 1.0, "3 s"),
}


@dataclass(frozen=True)
class Row:
    """One measurement."""

    work: str
    threads: int
    verdict: str
    #: Key of TARGETS; empty for a measurement that belongs to none.
    target: str = ""
    ratio: float | None = None
    #: Middle half of the paired ratios.
    spread: tuple[float, float] | None = None
    #: Median seconds of a call, of each contestant; ours first.
    seconds: Mapping[str, float] = field(default_factory=dict)
    #: Numbers behind the line; `macs`, `bytes`, `elements` and `unit` are what the roofline is made from.
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_plain(self) -> dict[str, Any]:
        """Return the fields as JSON writes them."""
        return asdict(self)


@dataclass(frozen=True)
class Timings:
    """Seconds of a call of each contestant in each round, and the names of the contestants; ours first."""

    names: tuple[str, ...]
    rounds: tuple[tuple[float, ...], ...]

    def medians(self) -> dict[str, float]:
        """Return the median seconds of each contestant."""
        return {name: statistics.median(one[i] for one in self.rounds) for i, name in enumerate(self.names)}

    def ratios(self, at_least: bool, rivals: Sequence[str]) -> list[float]:
        """Return ours beside the fastest of the rivals, round by round, in rates or in times."""
        places = [self.names.index(name) for name in rivals]
        best = [min(one[i] for i in places) / one[0] for one in self.rounds]
        return best if at_least else [1 / ratio for ratio in best]


def _once(call: Callable[[], object], times: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def interleaved(
    calls: Mapping[str, Callable[[], object]], threads: int = 1, budget: float = 0.5, most: float = 30.0
) -> Timings:
    """Time some functions side by side: one sample of each in turn, in alternating order, after a call to warm up.

    At least ROUNDS rounds, then as many as `budget` seconds allow; fewer where they would pass `most` seconds, one
    where that alone does. Calls shorter than SAMPLE are repeated; those shorter than UNTIMED follow one not timed.
    """
    names = tuple(calls)
    for call in calls.values():
        call()  # compiles, too
    first = tuple(_once(call) for call in calls.values())
    if sum(first) > most:
        return Timings(names, (first,))
    repeats = [max(1, math.ceil(SAMPLE / max(seconds, 1e-7))) for seconds in first]
    rounds: list[tuple[float, ...]] = []
    began = time.perf_counter()
    while True:
        one = [0.0] * len(names)
        places = range(len(names)) if len(rounds) % 2 == 0 else range(len(names) - 1, -1, -1)
        for i in places:
            call = calls[names[i]]
            if threads > 1:
                time.sleep(SETTLE)
                wait_apart(threads)
            if first[i] < UNTIMED:
                call()
            one[i] = _once(call, repeats[i])
        rounds.append(tuple(one))
        spent = time.perf_counter() - began
        if spent * (len(rounds) + 1) / len(rounds) > most or (len(rounds) >= ROUNDS and spent > budget):
            return Timings(names, tuple(rounds))


@dataclass
class Bench:
    """What a section gets."""

    report: Callable[[Row], None]
    #: Whether sizes are toys, to test this script and not the machine.
    quick: bool = False
    #: Numbers of threads to measure on.
    threads: tuple[int, ...] = (1,)
    #: Seconds of one measurement, and the most that it may take.
    budget: float = 0.5
    most: float = 30.0
    #: Edges of cubes to measure.
    sizes: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    #: Whether the GEMM shapes of the networks are measured beside the cubes.
    networks: bool = True
    #: Where a trained state is kept between runs; git ignores it.
    cache: Path = Path("build/bench")

    def size(self, real: Any, toy: Any) -> Any:
        """Return the size to run at."""
        return toy if self.quick else real

    @property
    def middle(self) -> int:
        """The edge at which everything is measured: 1024, or the largest below it."""
        return max((n for n in self.sizes if n <= 1024), default=min(self.sizes))

    @contextmanager
    def on(self, threads: int) -> Iterator[None]:
        """Use that many threads, in torch and in fqtsim, inside the block."""
        import numba
        import torch

        before = torch.get_num_threads(), numba.get_num_threads()
        torch.set_num_threads(threads)
        numba.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            numba.set_num_threads(before[1])

    def time(self, calls: Mapping[str, Callable[[], object]], threads: int) -> Timings:
        """Time functions side by side, see `interleaved`."""
        return interleaved(calls, threads, self.budget, self.most)

    def against(
        self, target: str, work: str, threads: int, timings: Timings, rivals: Sequence[str], /, **details: Any
    ) -> None:
        """Report our time beside the fastest of some rivals, round by round."""
        goal = TARGETS[target]
        ratios = timings.ratios(goal.at_least, rivals)
        self.ratio(target, work, threads, ratios, timings.medians(), rivals=list(rivals), **details)

    def ratio(
        self, target: str, work: str, threads: int, ratios: Sequence[float], seconds: Mapping[str, float], /,
        **details: Any,
    ) -> None:  # fmt: skip
        """Report the median of some ratios and what it means for the target."""
        middle = statistics.median(ratios)
        quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [middle] * 3
        details["rounds"] = len(ratios)
        verdict = TARGETS[target].verdict(middle)
        self.report(Row(work, threads, verdict, target, middle, (quarters[0], quarters[2]), dict(seconds), details))

    def record(self, work: str, threads: int, seconds: Mapping[str, float], /, **details: Any) -> None:
        """Report numbers that no target judges."""
        self.report(Row(work, threads, RECORDED, seconds=dict(seconds), details=details))

    def skip(self, target: str, work: str, threads: int, why: str) -> None:
        """Report what could not be measured."""
        self.report(Row(work, threads, NOT_RUN, target, details={"why": why}))


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one line per target and number of threads: the median ratio, the worst and its work, and the verdict.

    A target is met where every measurement meets it.
    """
    lines = []
    for key, goal in TARGETS.items():
        for threads in sorted({row["threads"] for row in rows if row["target"] == key}):
            of_it = [row for row in rows if (row["target"], row["threads"]) == (key, threads)]
            line = {"target": key, "work": goal.work, "threads": threads, "bound": goal.text}
            lines.append(line | _judged(goal, [row for row in of_it if row["ratio"] is not None]))
    return lines


def _judged(goal: Target, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not rows:
        return {"median": None, "worst": None, "worst_at": "", "met": 0, "of": 0, "verdict": NOT_RUN}
    worst = (min if goal.at_least else max)(rows, key=lambda row: row["ratio"])
    return {
        "median": statistics.median(row["ratio"] for row in rows), "worst": worst["ratio"], "worst_at": worst["work"],
        "met": sum(row["verdict"] == MET for row in rows), "of": len(rows), "verdict": goal.verdict(worst["ratio"]),
    }  # fmt: skip


def environment(root: Path) -> dict[str, Any]:
    """Return what a reader needs to know to repeat the run: CPU, threads, versions, commit."""
    from importlib.metadata import version

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(), "cpus": cpus,
        "features": cpu_features(), "system": platform.platform(), "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numba", "llvmlite", "numpy", "fqtsim")},
        "commit": _output(root, "git", "rev-parse", "HEAD") or "unknown",
        "changed_files": len(_output(root, "git", "status", "--porcelain").splitlines()),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }  # fmt: skip


def cpu_model() -> str:
    """Return the CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def cpu_features() -> list[str]:
    """Return the instruction sets that decide the speed of an integer product here."""
    import llvmlite.binding as llvm

    known = llvm.get_host_cpu_features()
    wanted = ("avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "avxvnni", "amx-int8", "neon", "dotprod")
    return [name for name in wanted if known.get(name, False)]


def _output(root: Path, *command: str) -> str:
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
