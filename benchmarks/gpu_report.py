"""What the sections of benchmarks/gpu.py share: rows of the report, verdicts, timing, and who runs on the device."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

EQUAL, DIFFERENT = "equal", "DIFFERENT"
MET, BELOW = "met", "below"
RECORDED, NOT_RUN, INCOMPLETE, FAILED = "recorded", "not run", "incomplete", "FAILED"
WRONG = (DIFFERENT, FAILED)
"""Verdicts that end the command with exit code 1. A speed below its target is no fault of the bits."""
UNFINISHED = (*WRONG, NOT_RUN, INCOMPLETE)
"""Verdicts that `--resume` runs again."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    work: str
    measured: str
    verdict: str
    ratio: float | None = None
    target: str = ""
    #: Numbers behind the line, for the JSON file.
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_plain(self) -> dict[str, Any]:
        """Return the fields as JSON writes them."""
        return asdict(self)


@dataclass(frozen=True)
class Options:
    """What the command line asked of every section."""

    device: str
    tiny: bool
    digests: Path
    data: Path | None
    jobs: int


@dataclass
class Bench:
    """What a section gets."""

    options: Options
    report: Callable[[Row], None]
    #: time.monotonic() at which the section should have ended.
    deadline: float

    @property
    def device(self) -> str:
        """ "cuda", or "cpu" for the toy run."""
        return self.options.device

    @property
    def tiny(self) -> bool:
        """Whether sizes are toys, to test this script and not the device."""
        return self.options.tiny

    @property
    def left(self) -> float:
        """Seconds of the section's budget that are left; negative beyond it."""
        return self.deadline - time.monotonic()

    def size(self, real: Any, toy: Any) -> Any:
        """Return the size to run at."""
        return toy if self.tiny else real

    def equal(self, work: str, wrong: int, checked: str, /, **details: Any) -> None:
        """Report a comparison of bits in which `wrong` of them differed."""
        verdict = DIFFERENT if wrong else EQUAL
        self.report(Row(work, f"{wrong} of {checked} differ", verdict, target="0 differ", details=details))

    def at_least(self, work: str, measured: str, ratio: float, target: float, of: str, **details: Any) -> None:
        """Report a ratio that should be at least `target` times `of`; a toy has no target to meet."""
        verdict = RECORDED if self.tiny else MET if ratio >= target else BELOW
        self.report(Row(work, measured, verdict, ratio, f">= {target:g} {of}".rstrip(), details))

    def at_most(self, work: str, measured: str, ratio: float, target: float, of: str, **details: Any) -> None:
        """Report a ratio that should be at most `target` times `of`."""
        verdict = RECORDED if self.tiny else MET if ratio <= target else BELOW
        self.report(Row(work, measured, verdict, ratio, f"<= {target:g} {of}".rstrip(), details))

    def record(self, work: str, measured: str, ratio: float | None = None, **details: Any) -> None:
        """Report a number without a target."""
        self.report(Row(work, measured, RECORDED, ratio, details=details))

    def skip(self, work: str, why: str) -> None:
        """Report what could not be run."""
        self.report(Row(work, why, NOT_RUN))

    def backend(self, name: str) -> Any:
        """Return native or emulator on the device; on the CPU its program in torch operations."""
        from fqtsim.backends import get_backend

        if self.device == "cuda":
            return get_backend(f"{name}@cuda")
        return _on_cpu(name)

    def synchronize(self) -> None:
        """Wait for the device."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], most: float = 1.0, least_calls: int = 10) -> float:
        """Return the median seconds of a call: CUDA events, after two calls to warm up and about `most` seconds."""
        if self.device != "cuda":
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        import torch

        for _ in range(2):
            call()
        torch.cuda.synchronize()
        times: list[float] = []
        while len(times) < least_calls or (sum(times) < most and len(times) < 200):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last) / 1000)
            if len(times) >= 3 and self.left < 0:
                break
        return statistics.median(times)

    def free(self) -> None:
        """Give unused memory of the device back, for other processes and larger tensors."""
        import gc

        import torch

        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


def _on_cpu(name: str) -> Any:
    from fqtsim.backends.device import DeviceEmulator, DeviceNative

    key = f"_{name}"
    if key not in _CPU_BACKENDS:
        _CPU_BACKENDS[key] = DeviceNative("cpu") if name == "native" else DeviceEmulator("cpu")
    return _CPU_BACKENDS[key]


_CPU_BACKENDS: dict[str, Any] = {}


def spread(call: Callable[[Any], Any], tasks: list[Any], jobs: int, until: float) -> Iterator[Any]:
    """Yield call(task) for every task, as they come, from processes side by side, until time.monotonic() is `until`.

    What a kernel costs the first time is its compilation, on one core; compiled kernels are kept on disk for all.
    """
    if jobs <= 1:
        for task in tasks:
            if time.monotonic() > until:
                return
            yield call(task)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(tasks))) as pool:
        results = pool.imap_unordered(call, tasks)
        for _ in tasks:
            try:
                yield results.next(timeout=max(until - time.monotonic(), 0.1))
            except multiprocessing.TimeoutError:
                return


def rate(count: float, seconds: float, unit: str) -> str:
    """Return count / seconds with a prefix, as in 1.23 TMAC/s."""
    value, prefixes = count / max(seconds, 1e-12), " kMGTP"
    place = 0
    while value >= 1000 and place < len(prefixes) - 1:
        value, place = value / 1000, place + 1
    return f"{value:.3g} {prefixes[place].strip()}{unit}"


def milliseconds(seconds: float) -> str:
    """Return a time as 12.3 ms."""
    return f"{1000 * seconds:.3g} ms"


def missing(device: str) -> str | None:
    """Return why the sections cannot run on a device, or None; imports what they need."""
    try:
        import torch

        import fqtsim.train.trainer  # noqa: F401
    except ImportError as error:
        return f"{error}; install fqtsim with its dependencies: pip install 'fqtsim[triton]'"
    if device == "cpu":
        return None
    if not torch.cuda.is_available():
        build = "is built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
        return f"torch {torch.__version__} {build}; run this where there is a GPU, or try --device cpu --tiny"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed: pip install 'fqtsim[triton]'"
    return None


def environment(device: str, root: Path) -> dict[str, Any]:
    """Return what a reader needs to know to repeat the run: device, driver, versions, commit."""
    import importlib.util
    import platform
    import subprocess
    from importlib.metadata import version

    import torch

    def output(*command: str) -> str:
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        except OSError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda,
        "triton": version("triton") if importlib.util.find_spec("triton") else None,
        "commit": output("git", "rev-parse", "HEAD") or "unknown",
        "changed_files": len(output("git", "status", "--porcelain").splitlines()), "cpus": os.cpu_count(),
    }  # fmt: skip
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {
            "device": about.name, "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count, "memory": about.total_memory,
            "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown",
        }  # fmt: skip
    else:
        found |= {"device": "cpu", "driver": None}
    return found
