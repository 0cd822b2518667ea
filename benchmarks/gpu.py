"""Check and measure everything about the GPU paths, on whatever GPU is there; writes docs/results/gpu_<device>.json.

    python benchmarks/gpu.py                          # everything, under 8 minutes; prints a table last
    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --only gemm,resnet56 --resume
    python benchmarks/gpu.py --device cpu --tiny      # the script itself, without a GPU

Data: the digits that ship, and synthetic images by Philox; `--data FOLDER` (the Fashion-MNIST files) adds the
published ResNet-20. Sections run one after another in a process of their own; one that fails, hangs or dies is a row,
and the next begins in a new process. Every row is in the file as soon as it is known. `--resume` keeps the sections
that are done. Exit code: 0; 1 where bits differ or a section failed; 2 where there is nothing to run on.
Expected digests are computed beforehand, on the CPU: `python benchmarks/gpu.py --write-digests`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
for _folder in (str(ROOT), str(ROOT / "benchmarks")):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

from gpu_report import FAILED, INCOMPLETE, NOT_RUN, UNFINISHED, WRONG, Bench, Options, Row, environment, missing  # noqa: E402

RESULTS = ROOT / "docs" / "results"
FORMAT = "fqtsim-gpu-1"
STARTING = 120.0
"""Seconds that a process may take to import everything and open the device."""


class Section(NamedTuple):
    """One part of the run: a function of a module beside this one."""

    module: str
    #: Seconds it should take; it is stopped at twice that and 20 s, or when the whole time is up.
    budget: float
    summary: str


SECTIONS: Mapping[str, Section] = {
    "proof": Section("gpu_checks", 60, "primitives and INT8 products against their vectors"),
    "probes": Section("gpu_probes", 15, "int32 overflow of the tensor cores: wrap or .satfinite"),
    "gemm": Section("gpu_speed", 45, "INT8 GEMM with its epilogue beside torch._int_mm and bf16"),
    "equality": Section("gpu_shapes", 90, "every GEMM and convolution of ResNet-56, ResNet-50, a Transformer block"),
    "digests": Section("gpu_digests", 60, "training runs against digests of emulator@cpu"),
    "bandwidth": Section("gpu_speed", 20, "quantization, PSQ and BHQ beside a copy"),
    "saturating": Section("gpu_speed", 20, "a saturating 20-bit accumulator, every addition clamped"),
    "resnet56": Section("gpu_training", 60, "a BHQ-5 step beside fp32 fake quantization and bf16"),
    "transformer": Section("gpu_speed", 30, "the GEMM set of a Transformer block, quantization included"),
    "datapaths": Section("gpu_checks", 25, "emulator on every shipped hardware file against stepwise"),
    "designs": Section("gpu_training", 25, "8 accumulator designs x ResNet-20 x 30 epochs"),
    "resnet50": Section("gpu_training", 40, "a BHQ-5 step on 224 x 224 images beside bf16"),
    "published": Section("gpu_digests", 30, "published runs replayed (fqtsim verify-run)"),
}


def work(connection: Any, options: Options) -> None:
    """Run sections as they are asked for; what a worker process does."""
    os.setsid()  # so that stopping it stops its own helpers too
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported
    reason = missing(options.device)
    connection.send(("missing", reason) if reason else ("ready", environment(options.device, ROOT)))
    while not reason:
        name, budget = connection.recv()
        if name is None:
            return
        bench = Bench(options, lambda row: connection.send(("row", row)), time.monotonic() + budget)
        try:
            getattr(import_module(SECTIONS[name].module), name)(bench)
            bench.synchronize()
            bench.free()
        except Exception as error:
            connection.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
        else:
            connection.send(("done",))


class Worker:
    """A process that runs sections."""

    def __init__(self, options: Options) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, options))
        self.process.start()
        theirs.close()
        self.greeting = self.hear(STARTING)

    def hear(self, seconds: float) -> tuple[Any, ...]:
        """Return the next message; ("silent",) after that time, ("dead",) where the process ended."""
        try:
            if not self.connection.poll(max(seconds, 0)):
                return ("silent",)
            message: tuple[Any, ...] = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(5)
            return ("dead",)
        return message

    def stop(self) -> None:
        """End the process, politely where it listens."""
        try:
            self.connection.send((None, 0))
            self.process.join(0.5 if self.greeting[0] == "ready" else 0)
        except OSError:
            pass
        if self.greeting[0] == "ready" and self.process.pid is not None:
            # Its helpers too, also where it is dead itself.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.is_alive():
            self.process.kill()
        self.process.join(5)


class Report:
    """The JSON file, complete after every row."""

    def __init__(self, path: Path, about: Mapping[str, Any], sections: Mapping[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"format": FORMAT, "environment": dict(about), "sections": dict(sections)}

    def begin(self, name: str, about: Mapping[str, Any]) -> None:
        """Start a section anew."""
        self.content["sections"][name] = {
            "state": "running", "commit": about.get("commit"),
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "rows": [],
        }  # fmt: skip

    def add(self, name: str, row: Row) -> None:
        """Add a row and write the file."""
        self.content["sections"][name]["rows"].append(row.as_plain())
        self.write()

    def end(self, name: str, state: str, seconds: float, trace: str = "") -> None:
        """Close a section."""
        section = self.content["sections"][name]
        section |= {"state": state, "seconds": round(seconds, 1)} | ({"trace": trace} if trace else {})
        self.write()

    def write(self) -> None:
        """Write the file, in one move."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)

    def is_done(self, name: str) -> bool:
        """Tell whether a section ended with nothing left to do."""
        section = self.content["sections"].get(name)
        return section is not None and section["state"] == "done" and not any(
            row["verdict"] in UNFINISHED for row in section["rows"]
        )  # fmt: skip

    @property
    def wrong(self) -> bool:
        """Whether any bits differ or anything failed."""
        return any(row["verdict"] in WRONG for part in self.content["sections"].values() for row in part["rows"])

    def show(self) -> None:
        """Print the table."""
        from rich.console import Console
        from rich.table import Table

        about = self.content["environment"]
        table = Table(
            title=f"{about['device']}, torch {about['torch']}, triton {about['triton']}", title_justify="left"
        )
        for column in ("section", "work", "measured", "ratio", "target", "verdict"):
            table.add_column(column, justify="right" if column == "ratio" else "left", overflow="fold")
        for name in [name for name in SECTIONS if name in self.content["sections"]]:
            for row in self.content["sections"][name]["rows"]:
                ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}"
                table.add_row(name, row["work"], row["measured"], ratio, row["target"], row["verdict"])
        Console(width=160, markup=False, highlight=False).print(table)


def run_section(name: str, worker: Worker, report: Report, budget: float, deadline: float) -> bool:
    """Run one section; return whether the worker is fit for another."""
    started, hard = time.monotonic(), min(deadline, time.monotonic() + 2 * budget + 20)
    report.begin(name, report.content["environment"])
    worker.connection.send((name, budget))
    while True:
        message = worker.hear(hard - time.monotonic())
        seconds = time.monotonic() - started
        if message[0] == "row":
            report.add(name, message[1])
            print(f"  {message[1].work}: {message[1].measured} [{message[1].verdict}]", flush=True)
            continue
        if message[0] == "done":
            report.end(name, "done", seconds)
            return not any(row["verdict"] == FAILED for row in report.content["sections"][name]["rows"])
        said = {
            "silent": f"stopped after {seconds:.0f} s without an end",
            "dead": f"the process died (exit code {worker.process.exitcode})",
        }.get(message[0]) or str(message[1])
        # Cut short by the end of the whole time, it is no failure of its own.
        verdict = INCOMPLETE if message[0] == "silent" and hard == deadline else FAILED
        report.add(name, Row(name, said, verdict))
        print(f"  {name}: {said} [{verdict}]", flush=True)
        report.end(
            name,
            "incomplete" if verdict == INCOMPLETE else "failed",
            seconds,
            message[2] if message[0] == "failed" else "",
        )
        return False  # an error on the device may outlive the call that met it


def chosen_sections(only: str | None) -> list[str]:
    """Return the sections to run, in order. Raises SystemExit(2) for a name that there is not."""
    names = list(SECTIONS) if only is None else [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise SystemExit(_refuse(f"--only {unknown[0]}: must be of {', '.join(SECTIONS)}"))
    return [name for name in SECTIONS if name in names]


def _refuse(text: str) -> int:
    print(f"benchmarks/gpu.py: {text}", file=sys.stderr)
    return 2


def open_report(path: Path | None, about: Mapping[str, Any], resume: bool) -> Report:
    """Return the report to add to. Raises ValueError where the one to resume is another device's."""
    slug = "".join(letter if letter.isalnum() else "_" for letter in about["device"].lower())
    path = path or RESULTS / f"gpu_{slug}.json"
    if not (resume and path.is_file()):
        return Report(path, about, {})
    before = json.loads(path.read_text(encoding="utf-8"))
    if before.get("format") != FORMAT or before["environment"]["device"] != about["device"]:
        raise ValueError(f"--resume {path}: not a report of {about['device']}; leave --resume out or use --out")
    return Report(path, about, before["sections"])


def run(names: list[str], options: Options, out: Path | None, resume: bool, minutes: float) -> int:
    """Run the sections and return the exit code."""
    deadline = time.monotonic() + 60 * minutes
    worker = Worker(options)
    report: Report | None = None
    try:
        if worker.greeting[0] != "ready":
            said = worker.greeting[1] if worker.greeting[0] == "missing" else "the first process did not start"
            return _refuse(str(said))
        try:
            report = open_report(out, worker.greeting[1], resume)
        except ValueError as error:
            return _refuse(str(error))
        fit = True
        for name in names:
            if resume and report.is_done(name):
                continue
            if deadline - time.monotonic() < 5:
                report.begin(name, report.content["environment"])
                report.add(name, Row(name, "the time was up; run again with --resume", NOT_RUN))
                report.end(name, "not run", 0.0)
                continue
            if not fit:
                worker.stop()
                worker = Worker(options)
            print(f"{name}: {SECTIONS[name].summary}", flush=True)
            if worker.greeting[0] != "ready":
                report.begin(name, report.content["environment"])
                report.add(name, Row(name, "no process could be started after the failure before", FAILED))
                report.end(name, "failed", 0.0)
                continue
            budget = min(SECTIONS[name].budget, deadline - time.monotonic() - 2)
            fit = run_section(name, worker, report, budget, deadline)
    except KeyboardInterrupt:
        print("interrupted; the rows so far are kept", file=sys.stderr)
        return 130
    finally:
        worker.stop()
        if report is not None:
            report.write()
            report.show()
            print(report.path)
    return 1 if report.wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: tests the script, measures nothing")
    parser.add_argument("--only", metavar="NAME,...", help="sections to run")
    parser.add_argument("--list", action="store_true", help="print the sections and end")
    parser.add_argument("--resume", action="store_true", help="keep the sections that are done in the file")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the four Fashion-MNIST files")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file (default docs/results/gpu_<device>.json)")
    parser.add_argument("--minutes", type=float, default=7.5, help="the whole time (default 7.5)")
    parser.add_argument("--jobs", type=int,
                        help="processes that compile and compare shapes side by side")  # fmt: skip
    parser.add_argument("--digests", type=Path, default=RESULTS / "gpu_digests.json", help="expected digests")
    parser.add_argument("--write-digests", action="store_true", help="compute them on emulator@cpu and end")
    asked = parser.parse_args(arguments)
    if asked.list:
        for name, section in SECTIONS.items():
            print(f"{name:12} {section.budget:4.0f} s  {section.summary}")
        return 0
    if asked.write_digests:
        import_module("gpu_digests").write_digests(asked.digests)
        return 0
    if asked.device == "cpu" and not asked.tiny:
        return _refuse("--device cpu: real sizes take days on a CPU; add --tiny")
    usual = 1 if asked.device == "cpu" else min(12, max(1, (os.cpu_count() or 2) * 3 // 4))
    jobs = usual if asked.jobs is None else asked.jobs
    options = Options(asked.device, asked.tiny, asked.digests, asked.data, jobs)
    out = asked.out or (Path("gpu_tiny.json") if asked.tiny else None)
    return run(chosen_sections(asked.only), options, out, asked.resume, asked.minutes)


if __name__ == "__main__":
    sys.exit(main())
