"""Peak memory of one call, each in a process of its own, over operands and result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
for _folder in (str(FOLDER.parent), str(FOLDER)):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

from cpu_report import Bench  # noqa: E402

WORKSPACE = 32 << 20
"""Bytes beside operands and result that a call may use, whatever its size."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(bench: Bench) -> None:
    """Measure products and one convolution."""
    if not STATUS.is_file():
        bench.skip("memory", "peak memory", 1, "no /proc/self/status on this system")
        return
    tasks: list[tuple[str, int]] = [("worst24", n) for n in bench.sizes if n >= 1024 or bench.quick]
    tasks += bench.size([("exact", n) for n in bench.sizes if n >= 1024] + [("conv", 512)], [])
    for kind, size in tasks:
        command = [sys.executable, str(FOLDER / "cpu_memory.py"), kind, str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"cpu_memory.py {kind} {size}: {done.stderr.strip()[-300:]}")
        found = json.loads(done.stdout)
        given, allowed = found["operands"], found["operands"] + found["result"] + WORKSPACE
        ratio = (given - found["operands_made"] + found["extra"]) / allowed
        text = {"worst24": f"worst case, 24 bits, {size}^3", "exact": f"exact, int32 wraps, {size}^3"}.get(
            kind, f"3x3 convolution 16 -> 16, {size} images of 32 x 32, forward"
        )
        bench.ratio("memory", text, found["threads"], [ratio], {}, workspace_allowed=WORKSPACE, **found)


def _status(key: str) -> int:
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {key}")


def peak(call: Callable[[], Any]) -> tuple[int, int, Any]:
    """Return the bytes by which resident memory grew at most during a call, what Python's allocators traced, result."""
    import tracemalloc

    before, result = _status("VmRSS"), None
    try:
        CLEAR.write_text("5", encoding="ascii")  # starts the high-water mark again
    except OSError:
        before = max(before, _status("VmHWM"))
    result = call()
    grown = max(0, _status("VmHWM") - before)
    result = None
    tracemalloc.start()
    result = call()
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return grown, traced, result


def _product(kind: str, n: int) -> tuple[Callable[[], Any], int]:
    import numpy as np
    from cpu_gemm import hardware, saturating, worst_operands
    from cpu_shapes import cubes

    import fqtsim

    a, b, start = worst_operands(cubes((n,))[0], 24)
    if kind == "worst24":
        chosen, c = saturating(24), start
    else:
        chosen, c = hardware([{"terms": "all", "register": "int32", "overflow": "wrap"}]), None
    assert a.dtype == np.int8
    return lambda: fqtsim.gemm(a, b, chosen, c=c).codes, a.nbytes + b.nbytes


def _convolution(images: int) -> tuple[Callable[[], Any], int]:
    import torch

    import fqtsim

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, padding=1, bias=False))
    net = fqtsim.fully_quantize(model, "bhq5", "int8_acc24_saturate", "emulator", 0)
    x = torch.rand(images, 16, 32, 32)

    def forward() -> Any:
        with torch.no_grad():
            return net(x).numpy()

    return forward, x.nbytes


def child(kind: str, size: int) -> dict[str, int]:
    """Measure one call in this process."""
    import numba

    make: Callable[[int], tuple[Callable[[], Any], int]]
    make = _convolution if kind == "conv" else lambda n: _product(kind, n)
    make(2 if kind == "conv" else 256)[0]()  # compiles what a large call needs, and opens whatever is opened once
    call, operands = make(size)
    grown, traced, result = peak(call)
    # A layer quantizes its input first: codes are operands too, one byte for each float32 that was given.
    made = operands // 4 if kind == "conv" else 0
    return {
        "operands": operands + made, "operands_made": made, "result": result.nbytes, "extra": grown,
        "traced": traced, "threads": numba.get_num_threads(), "pid_threads": len(os.listdir("/proc/self/task")),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], int(sys.argv[2]))))
