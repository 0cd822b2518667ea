"""What a user waits for the first time: the import, and the first GEMM of a process whose caches are empty."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cpu_report import Bench

ROOT = Path(__file__).resolve().parents[1]
IMPORT_SECONDS, FIRST_SECONDS = 0.3, 3.0

_IMPORT = """
import json, sys, time
start = time.perf_counter()
import fqtsim
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "torch": "torch" in sys.modules, "numba": "numba" in sys.modules}))
"""

_GEMM = """
import json, sys, time
import numpy as np
name, gemm, case = sys.argv[1:4]
rng = np.random.default_rng(0)
low, high = (1, 128) if case == "saturates" else (-128, 128)
a, b = rng.integers(low, high, (64, 512)).astype(np.int8), rng.integers(low, high, (512, 64)).astype(np.int8)
a = a.view(np.uint8) if gemm == "fprop" else a
start = time.perf_counter()
import fqtsim
imported = time.perf_counter() - start
out = fqtsim.gemm(a, b, name, gemm=gemm)
first = time.perf_counter() - start
start = time.perf_counter()
fqtsim.gemm(a, b, name, gemm=gemm)
second = time.perf_counter() - start
print(json.dumps({"import": imported, "first": first, "second": second, "altered": int(out.events.altered)}))
"""

#: Hardware, GEMM, operands: one for each way through the emulator.
CASES = (
    ("int8_acc16_saturate", "dgrad", "saturates"), ("int8_acc24_saturate", "dgrad", "random"),
    ("int8_acc32_wrap", "dgrad", "random"), ("int8_acc20_tree4", "dgrad", "saturates"),
    ("x86_avx2_pmaddubsw", "fprop", "saturates"),
)  # fmt: skip


def _child(code: str, folder: str, *arguments: str) -> dict[str, Any]:
    """Run code in a fresh process whose caches are in a folder; return the JSON that it prints."""
    places = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"), folder)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    others = {name: value for name, value in os.environ.items() if name != "FQTSIM_KERNEL_CACHE"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=others | places | {"PYTHONPATH": paths},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def first(bench: Bench) -> None:
    """Time both, and the same GEMM in a second process that finds what the first one kept."""
    threads = max(bench.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = [_child(_IMPORT, folder) for _ in range(bench.size(7, 1))]
    seconds = [one["seconds"] for one in found]
    if any(one["torch"] for one in found):
        raise RuntimeError("import fqtsim imports torch")
    times = {"import fqtsim": statistics.median(seconds)}
    ratios = [one / IMPORT_SECONDS for one in seconds]
    bench.ratio("import", "import fqtsim", threads, ratios, times, numba=found[0]["numba"])
    for name, gemm, case in CASES[: bench.size(len(CASES), 1)]:
        runs, again = [], []
        for _ in range(bench.size(3, 1)):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(_child(_GEMM, folder, name, gemm, case))
                if not bench.quick:
                    again.append(_child(_GEMM, folder, name, gemm, case))
        times = {"first": statistics.median(one["first"] for one in runs)}
        if again:
            times["with what the first process kept"] = statistics.median(one["first"] for one in again)
        times["second call"] = statistics.median(one["second"] for one in runs)
        ratios = [one["first"] / FIRST_SECONDS for one in runs]
        bench.ratio("first_gemm", f"{name}, {gemm}, operands {case}", threads, ratios, times, runs=runs)
