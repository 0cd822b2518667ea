"""`make bench`: every target of speed, measured on this CPU in one run; writes docs/results/cpu.json.

    python benchmarks/cpu.py                        # everything; prints the table last
    python benchmarks/cpu.py --only worst,trees     # some sections; the others in the file stay
    python benchmarks/cpu.py --resume               # what an interrupted run left
    python benchmarks/cpu.py --quick                # the script itself, at toy sizes; measures nothing
    python benchmarks/cpu_roofline.py               # the limits of this machine, and how near each row comes

Contestant and rival run call by call in turn, so that a drift of the clock hits both; a ratio is the median over the
rounds. Rates are M*N*K over the time. A target is met where every measurement of it meets it. Exit code: 0; 1 where a
section failed. A missed target is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
for _folder in (str(ROOT), str(ROOT / "benchmarks")):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

from cpu_report import FAILED, UNFINISHED, Bench, Row, environment, summary  # noqa: E402

RESULT = ROOT / "docs" / "results" / "cpu.json"
CACHE = ROOT / "build" / "bench"
FORMAT = "fqtsim-cpu-1"
SAVE_EVERY = 10.0
"""Seconds between two writes of a section that goes on."""
#: What must be the same for rows of two runs to stand in one file.
SAME = ("cpu", "cpus", "torch", "numba", "llvmlite", "quick", "threads")


class Section(NamedTuple):
    """One part of the run: a function of a module beside this one."""

    module: str
    summary: str


SECTIONS: Mapping[str, Section] = {
    "step": Section("cpu_training", "a training step of ResNet-20 beside fp32 PyTorch eager"),
    "checks": Section("cpu_training", "training steps under `train --check` beside unchecked ones"),
    "dumped": Section("cpu_training", "operands of real training on narrow registers beside torch._int_mm"),
    "worst": Section("cpu_gemm", "every output saturates, no shortcut holds, beside fp32 matmul and Numba loops"),
    "trees": Section("cpu_gemm", "trees, lanes, dropped bits, several levels, beside fp32 matmul"),
    "exact": Section("cpu_gemm", "nothing can overflow, with events, beside torch._int_mm"),
    "depthwise": Section("cpu_gemm", "grouped products of MobileNetV2 beside fp32 bmm"),
    "quantize": Section("cpu_elements", "PSQ and BHQ"),
    "threads": Section("cpu_growth", "several threads beside one"),
    "growth": Section("cpu_growth", "time over M*N*K"),
    "memory": Section("cpu_memory", "peak memory over operands and result"),
    "first": Section("cpu_first", "import, first GEMM"),
}


class Report:
    """The JSON file: every section that ended, and what there is of the one that runs."""

    def __init__(self, path: Path, about: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"format": FORMAT, "environment": dict(about), "sections": dict(before)}

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of all sections, in order."""
        sections = self.content["sections"]
        return [row for name in SECTIONS if name in sections for row in sections[name]["rows"]]

    def is_done(self, name: str) -> bool:
        """Tell whether a section ended with nothing left to do."""
        section = self.content["sections"].get(name)
        return section is not None and section["state"] == "done" and not any(
            row["verdict"] in UNFINISHED for row in section["rows"]
        )  # fmt: skip

    def put(self, name: str, state: str, took: tuple[float, float], rows: Sequence[Row], trace: str = "") -> None:
        """Replace a section and write the file; took: seconds of the clock, and of all processors together."""
        self.content["sections"][name] = {
            "state": state, "seconds": round(took[0], 1), "cpu_seconds": round(took[1], 1),
            "commit": self.content["environment"]["commit"], "rows": [row.as_plain() for row in rows],
        } | ({"trace": trace} if trace else {})  # fmt: skip
        self.content["summary"] = summary(self.rows())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(as_text(self.content), encoding="utf-8")
        os.replace(partial, self.path)

    def show(self) -> None:
        """Print the table of targets."""
        from rich.console import Console
        from rich.table import Table

        about = self.content["environment"]
        title = f"{about['cpu']}, torch {about['torch']}, numba {about['numba']}"
        table = Table(title=title + (", toy sizes" if about["quick"] else ""), title_justify="left")
        numbers = ("threads", "median", "worst", "met")
        for column in ("work", "threads", "target", "median", "worst", "worst at", "met", "verdict"):
            table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
        for line in self.content.get("summary", ()):
            ratios = ["" if line[key] is None else f"{line[key]:.3g}" for key in ("median", "worst")]
            cells = (*ratios, line["worst_at"], f"{line['met']}/{line['of']}")
            table.add_row(line["work"], str(line["threads"]), line["bound"], *cells, line["verdict"])
        Console(width=160, markup=False, highlight=False).print(table)


def as_text(content: Mapping[str, Any]) -> str:
    """Return JSON with one line per row, numbers to five digits."""
    sections = []
    for name, section in content["sections"].items():
        rows = ",\n".join("   " + json.dumps(_rounded(row)) for row in section["rows"])
        rest = {key: value for key, value in section.items() if key != "rows"}
        sections.append(f'  {json.dumps(name)}: {json.dumps(rest)[:-1]}, "rows": [\n{rows}]}}')
    lines = ",\n".join("  " + json.dumps(_rounded(line)) for line in content.get("summary", ()))
    head = f'"format": {json.dumps(content["format"])},\n "environment": {json.dumps(content["environment"])}'
    body = ",\n".join(sections)
    return f'{{{head},\n "summary": [\n{lines}],\n "sections": {{\n{body}\n }}\n}}\n'


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def run_section(name: str, bench: Bench, report: Report) -> None:
    """Run one section; one that fails is a row, and the next runs."""
    rows: list[Row] = []
    began, used = time.perf_counter(), sum(os.times()[:4])
    written = began

    def put(state: str, trace: str = "") -> None:
        report.put(name, state, (time.perf_counter() - began, sum(os.times()[:4]) - used), rows, trace)

    def keep(row: Row) -> None:
        nonlocal written
        rows.append(row)
        if time.perf_counter() > written + SAVE_EVERY:
            put("running")
            written = time.perf_counter()
        number = "" if row.ratio is None else f"{row.ratio:.3g} "
        target = f"{row.target}: " if row.target else ""
        print(f"  {target}{row.work}, {row.threads} threads: {number}[{row.verdict}]", flush=True)

    bench.report = keep
    state, trace = "done", ""
    try:
        getattr(import_module(SECTIONS[name].module), name)(bench)
    except Exception as error:
        state, trace = "failed", traceback.format_exc()
        keep(Row(f"{name}: {type(error).__name__}: {error}", 0, FAILED))
    put(state, trace)


def chosen_sections(only: str | None) -> list[str]:
    """Return the sections to run, in order. Raises SystemExit(2) for a name that there is not."""
    names = list(SECTIONS) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in SECTIONS:
            print(f"benchmarks/cpu.py: --only {name}: must be of {', '.join(SECTIONS)}", file=sys.stderr)
            raise SystemExit(2)
    return [name for name in SECTIONS if name in names]


def open_report(path: Path, about: Mapping[str, Any], keep: bool) -> Report:
    """Return the report to add to. Raises SystemExit(2) where the one to keep is of another machine or size."""
    if not (keep and path.is_file()):
        return Report(path, about, {})
    before = json.loads(path.read_text(encoding="utf-8"))
    known = before.get("environment", {})
    other = [key for key in SAME if known.get(key) != about[key]]
    if before.get("format") != FORMAT or other:
        why = f"{other[0]} = {known.get(other[0])}, here {about[other[0]]}" if other else "another format"
        print(f"benchmarks/cpu.py: {path}: {why}; run without --only and --resume, or use --out", file=sys.stderr)
        raise SystemExit(2)
    return Report(path, about, before["sections"])


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,...", help="sections to run; the others in the file stay")
    parser.add_argument("--list", action="store_true", help="print the sections and end")
    parser.add_argument("--resume", action="store_true", help="keep the sections that are done in the file")
    parser.add_argument("--quick", action="store_true", help="toy sizes: tests the script, measures nothing")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="edges of the cubes")
    parser.add_argument("--cubes-only", action="store_true", help="leave the GEMM shapes of the networks out")
    parser.add_argument("--threads", type=int, nargs="+", metavar="T", help="numbers of threads (default 1 and all)")
    parser.add_argument("--budget", type=float, help="seconds of one measurement (default 0.5)")
    parser.add_argument("--most", type=float, default=30.0, help="seconds that one may take at most (default 30)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file (default docs/results/cpu.json)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    asked = parsed(arguments)
    if asked.list:
        for name, section in SECTIONS.items():
            print(f"{name:10} {section.summary}")
        return 0
    names = chosen_sections(asked.only)
    import numba

    most_threads = int(numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    threads = tuple(asked.threads or sorted({1, most_threads}))
    if not all(1 <= count <= most_threads for count in threads):
        print(f"benchmarks/cpu.py: --threads {threads}: must be 1..{most_threads}", file=sys.stderr)
        return 2
    bench = Bench(lambda row: None, asked.quick, threads, most=asked.most, cache=CACHE)
    bench.budget = asked.budget if asked.budget is not None else bench.size(0.5, 0.0)
    bench.sizes = tuple(asked.sizes or bench.size(bench.sizes, (64,)))
    bench.networks = not asked.cubes_only
    about = environment(ROOT) | {"quick": asked.quick, "threads": list(threads), "sizes": list(bench.sizes)}
    out = asked.out or (CACHE / "quick.json" if asked.quick else RESULT)
    report = open_report(out, about, asked.resume or asked.only is not None)
    try:
        for name in names:
            if asked.resume and report.is_done(name):
                continue
            print(f"{name}: {SECTIONS[name].summary}", flush=True)
            run_section(name, bench, report)
    except KeyboardInterrupt:
        print("interrupted; finished sections are kept: go on with --resume", file=sys.stderr)
        return 130
    report.show()
    print(report.path)
    return 1 if any(row["verdict"] == FAILED for row in report.rows()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
