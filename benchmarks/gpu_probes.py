"""What the device's integer instructions do where the kernels never let them go (docs/silicon.md)."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import torch
from gpu_report import Bench

from fqtsim.kernels.gpu.gemm import int8_gemm, int8_gemm_exact
from fqtsim.kernels.gpu.proof import operand, overflow_of

HIGH, LOW = (1 << 31) - 1, -(1 << 31)
ONE = 127 * 127
#: Start value; codes of a by k (b is 127 wherever a is not 0); what the probe asks.
STEPS: tuple[tuple[str, int, dict[int, int]], ...] = (
    ("up to 2^31 - 1 exactly", HIGH - ONE, {0: 127}),
    ("one beyond 2^31 - 1", HIGH - ONE + 1, {0: 127}),
    ("down to -2^31 exactly", LOW + ONE, {0: -127}),
    ("one beyond -2^31", LOW + ONE - 1, {0: -127}),
    ("beyond and back within one k of 32", HIGH, {0: 127, 1: -127}),
    ("beyond and back, first and last k of 32", HIGH, {0: 127, 31: -127}),
)


def wrapped(value: int) -> int:
    """Return an integer modulo 2**32 as int32."""
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def behaviour(found: set[int], exact: int) -> str:
    """Return a word for what came out where the exact result is known."""
    names = {wrapped(exact): "wraps", max(LOW, min(HIGH, exact)): "clamps"}
    if LOW <= exact <= HIGH:
        names = {exact: "exact"}
    return ", ".join(sorted(names.get(code, f"gives {code}") for code in found))


def accumulate(device: str, rows: int, start: int, codes: dict[int, int]) -> tuple[set[int], str]:
    """Return the codes of start + a b^T inside one tl.dot with so many rows, and the instruction that did it."""
    from fqtsim.kernels.gpu.triton_probes import overflow_kernel

    a, b = torch.zeros((2, rows, 32), dtype=torch.int8)
    for k, code in codes.items():
        a[:, k], b[:, k] = code, 127
    begin = torch.full((rows, rows), start, dtype=torch.int32, device=device)
    out = torch.zeros_like(begin)
    compiled = overflow_kernel[(1,)](a.to(device), b.to(device), begin, out, SIZE=rows)
    text = getattr(compiled, "asm", {}).get("ptx", "")
    found = sorted(set(re.findall(r"(?:wg?mma|mma)\.\S*s8|tcgen05\.mma\S+", text)))
    return {int(code) for code in out.cpu().reshape(-1)}, ", ".join(found) or "Triton's interpreter"


def probes(bench: Bench) -> None:
    """Record what the tensor cores do at int32's limits, with few rows and with long K."""
    if importlib.util.find_spec("triton") is None:
        bench.skip("overflow of the accumulator", "triton is not installed: pip install 'fqtsim[triton]'")
    else:
        for rows in bench.size((16, 32, 64, 128), (16, 64)):
            _overflow(bench, rows)
    for m in (1, 8, 16, 17):
        _record(bench, f"torch._int_mm, M = {m}", lambda m=m: _library(bench.device, m, 64, 8, None))
    _record(bench, "torch._int_mm, K = 61, N = 8", lambda: _library(bench.device, 32, 61, 8, None))
    for k in (131_064, 131_072):
        _record(bench, f"torch._int_mm, K = {k}, all -128", lambda k=k: _library(bench.device, 32, k, 32, -128))
    _own(bench)


def _overflow(bench: Bench, rows: int) -> None:
    said, instruction = {}, ""
    for what, start, codes in STEPS:
        found, instruction = accumulate(bench.device, rows, start, codes)
        said[what] = behaviour(found, start + sum(127 * code for code in codes.values()))
    first = accumulate(bench.device, rows, HIGH, {0: 127})[0]
    there = first.pop() if len(first) == 1 else 0
    back = accumulate(bench.device, rows, there, {0: -127})[0]
    said["beyond, and back in the next instruction"] = (
        "as if nothing had happened" if back == {HIGH} else f"gives {sorted(back)}"
    )
    bench.record(
        f"tl.dot, {rows} rows: 2^31 - 1 + 127 * 127",
        overflow_of(bench.device, rows),
        instruction=instruction,
        steps=said,
    )


def _library(device: str, m: int, k: int, n: int, code: int | None) -> str:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, shape, generator=generator).to(torch.int8) for shape in ((m, k), (n, k)))
    if code is not None:
        a, b = torch.full_like(a, code), torch.full_like(b, code)
    got = torch._int_mm(a.to(device), b.to(device).t()).cpu().long()
    if code is not None:
        return behaviour({int(value) for value in got.reshape(-1)}, k * code * code)
    return "exact" if torch.equal(got, a.long() @ b.long().t()) else "WRONG"


def _record(bench: Bench, work: str, probe: Callable[[], str]) -> None:
    try:
        said: Any = probe()
    except RuntimeError as error:
        said = f"refused: {str(error).splitlines()[0][:90]}"
    bench.record(work, said)


def _own(bench: Bench) -> None:
    """Compare the project's products at the same places: few rows, ragged sizes, long K at the rails."""
    generator, wrong, count = torch.Generator().manual_seed(1), 0, 0
    for m, k, n in bench.size(
        [(m, 61, n) for m in (1, 2, 8, 15, 16, 17) for n in (1, 7, 8)] + [(16, 131_072, 16), (3, 400_001, 5)],
        [(1, 61, 3), (2, 131_073, 1)],
    ):
        a, b = operand((m, k), torch.int8, generator), operand((k, n), torch.int8, generator)
        exact = a.long() @ b.long()
        start = torch.full((m, n), HIGH, dtype=torch.int32)
        there = a.to(bench.device), b.to(bench.device)
        got = int8_gemm(*there, start=start.to(bench.device)).cpu(), int8_gemm_exact(*there).cpu().long()
        wrong += int((got[0] != (exact + start).to(torch.int32)).sum()) + int((got[1] != exact).sum())
        count += 2 * m * n
    bench.equal("int8_gemm with near-limit start, M <= 16, K > 131071", wrong, f"{count} outputs")
