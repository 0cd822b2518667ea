"""Speed of bit-exact GEMMs beside what a user would pick instead, in one run: `make bench`.

Each row is a ratio within this run, medians after a warm-up. A rate is M*N*K over the time; sizes are cubes.
"every addition saturates" starts each accumulator at its upper rail and adds only positive products.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fqtsim
from fqtsim.backends import int8

SATURATED = """
schema: 1
name: acc24_every_addition
summary: one saturating 24-bit register in all three GEMMs
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: none
  levels: [{terms: all, register: int24, overflow: saturate}]
"""


def seconds(function: Callable[[], object], budget: float) -> float:
    """Return the median time of a call, after one to warm up; at least 5 calls, then as many as the budget allows."""
    function()
    times: list[float] = []
    while len(times) < 5 or sum(times) < budget:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def positive(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 128, (n, n)).astype(np.int8)


def signed(n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(-128, 128, (n, n)).astype(np.int8)


def contestants(n: int) -> dict[str, Callable[[], object]]:
    """Return what is timed on an n x n x n product."""
    from fqtsim.hw.load import parse_hardware

    saturated = parse_hardware(SATURATED, "benchmarks/gemm.py")
    a, b = signed(n), signed(n)
    up, right = positive(n), positive(n)
    rail = np.full((n, n), (1 << 23) - 1)
    a_torch, b_torch = torch.from_numpy(a), torch.from_numpy(b)
    a_float, b_float = a_torch.float(), b_torch.float()
    assert fqtsim.gemm(up, right, saturated, c=rail).events.altered == n * n, "not every output saturates"
    return {
        "torch._int_mm": lambda: torch._int_mm(a_torch, b_torch),
        "fp32 matmul": lambda: a_float @ b_float,
        "emulator, every addition saturates (24 bits)": lambda: fqtsim.gemm(up, right, saturated, c=rail),
        "emulator, int8_acc24_saturate, random": lambda: fqtsim.gemm(a, b, "int8_acc24_saturate", gemm="dgrad"),
        "emulator, nothing can overflow (int32)": lambda: fqtsim.gemm(a, b, "int8_acc32_wrap", gemm="dgrad"),
        "stepwise, int8_acc32_wrap": lambda: fqtsim.gemm(a, b, "int8_acc32_wrap", gemm="dgrad", backend="stepwise"),
        "stepwise, x86_avx2_pmaddubsw (4 levels)": lambda: fqtsim.gemm(
            up.view(np.uint8), b, "x86_avx2_pmaddubsw", backend="stepwise"
        ),
    }


def apytypes_rate(n: int, budget: float) -> float | None:
    """Return GMAC/s of apytypes' accumulator context (24 bits, saturating; it does not apply it to sums), or None."""
    try:
        import apytypes as apy
    except ImportError:
        return None
    a, b = apy.fx(signed(n), int_bits=8, frac_bits=0), apy.fx(signed(n), int_bits=8, frac_bits=0)
    with apy.APyFixedAccumulatorContext(int_bits=24, frac_bits=0, overflow=apy.OverflowMode.SAT):
        return n**3 / seconds(lambda: a @ b, budget) / 1e9


def measure(sizes: list[int], threads: int, budget: float) -> list[dict[str, object]]:
    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    rows: list[dict[str, object]] = []
    for n in sizes:
        rates = {name: n**3 / seconds(call, budget) / 1e9 for name, call in contestants(n).items()}
        for name, rate in rates.items():
            row = {"threads": threads, "n": n, "what": name, "gmacs": rate}
            row["of_int_mm"], row["of_fp32"] = rate / rates["torch._int_mm"], rate / rates["fp32 matmul"]
            rows.append(row)
    rate_128 = apytypes_rate(128, budget)
    if rate_128 is not None:
        rows.append({"threads": threads, "n": 128, "what": "apytypes accumulator context", "gmacs": rate_128})
    return rows


def show(rows: list[dict[str, object]], console: Console) -> None:
    table = Table(title=f"GMAC/s ({int8.silicon_fault('cpu') or 'INT8 self-test passed'})", title_justify="left")
    for name in ("threads", "n", "what", "GMAC/s", "x _int_mm", "x fp32"):
        table.add_column(name, justify="left" if name == "what" else "right", no_wrap=True)
    for row in rows:
        ratios = [f"{row[key]:.3f}" if key in row else "" for key in ("of_int_mm", "of_fp32")]
        table.add_row(str(row["threads"]), str(row["n"]), str(row["what"]), f"{row['gmacs']:.3g}", *ratios)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 512, 1024])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, numba.config.NUMBA_NUM_THREADS])
    parser.add_argument("--budget", type=float, default=0.5, help="seconds per measurement")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows = [row for threads in arguments.threads for row in measure(arguments.sizes, threads, arguments.budget)]
    show(rows, Console(width=120))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
