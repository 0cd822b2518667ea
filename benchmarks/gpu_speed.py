"""Speed of kernels, ratios within one run: GEMM, quantization, a saturating accumulator, a Transformer block."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from gpu_report import Bench, milliseconds, rate

from fqtsim.backends import get_backend
from fqtsim.hw.load import parse_hardware
from fqtsim.hw.lower import Range, lower
from fqtsim.kernels.gpu import tune
from fqtsim.kernels.gpu.datapath import datapath_gemm
from fqtsim.kernels.gpu.epilogue import Side
from fqtsim.kernels.gpu.gemm import int8_gemm, int8_gemm_scaled
from fqtsim.quantizers import quantizer

#: Dense INT8 TOPS of data sheets, by the beginning of the device's name; longest match wins.
PEAK_INT8 = {"NVIDIA H100": 1979, "NVIDIA H100 PCIe": 1513, "NVIDIA H200": 1979, "NVIDIA A100": 624}
SATURATING = """
schema: 1
name: acc20_every_addition
summary: one saturating 20-bit register
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: none
  levels: [{terms: all, register: int20, overflow: saturate}]
"""
READ_TWICE = 9
"""Bytes an element that quantization by its own range must move: read, read again, one code written."""


def peak(bench: Bench) -> float | None:
    """Return the data sheet's dense INT8 rate in operations per second, or None for a device not listed."""
    name = torch.cuda.get_device_name() if bench.device == "cuda" else ""
    known = [key for key in PEAK_INT8 if name.startswith(key)]
    return PEAK_INT8[max(known, key=len)] * 1e12 if known else None


def _int8(bench: Bench, shape: tuple[int, int]) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8, device=bench.device)


def gemm(bench: Bench) -> None:
    """Time the INT8 GEMM with its epilogue beside torch._int_mm (cuBLASLt) and bf16 matmul; codes stored k-major."""
    for n in bench.size((4096, 8192), (64,)):
        a, b = _int8(bench, (n, n)), _int8(bench, (n, n))  # b as (N, K): what a weight is
        row, column = (Side(None, torch.rand(n, device=bench.device) + 0.1) for _ in range(2))
        x, w = (torch.randn((n, n), device=bench.device).to(torch.bfloat16) for _ in range(2))
        contestants: dict[str, Callable[[], object]] = {
            "fused": lambda a=a, b=b, r=row, c=column: int8_gemm_scaled(a, b.t(), r, c),
            "int32": lambda a=a, b=b: int8_gemm(a, b.t()),
            "_int_mm, b k-major": lambda a=a, b=b: torch._int_mm(a, b.t()),
            "_int_mm, b row-major": lambda a=a, b=b: torch._int_mm(a, b),
            "bf16": lambda x=x, w=w: x @ w.t(),
        }
        times = {name: _seconds(bench, name, call) for name, call in contestants.items()}
        again = bench.seconds(contestants["fused"])  # the same twice: what a difference means
        best = min(times["_int_mm, b k-major"], times["_int_mm, b row-major"])
        fused, work = times["fused"], f"INT8 GEMM {n}^3, float32 out by fused epilogue"
        details = {
            "seconds": {name: None if t == float("inf") else t for name, t in times.items()},
            "fused_again": again,
            "chosen": _chosen(),
        }
        measured = rate(2 * n**3, fused, "OPS")
        bench.at_least(work, measured, best / fused, 1.0, "of best _int_mm", **details)
        bench.at_least(work, measured, times["bf16"] / fused, 1.6, "of bf16")
        most = peak(bench)
        share = None if most is None else 2 * n**3 / fused / most
        bench.record(f"{work}: share of the data sheet's peak", measured, share, peak=most)
        bench.record(f"INT8 GEMM {n}^3, int32 out", rate(2 * n**3, times["int32"], "OPS"), best / times["int32"])
        del a, b, x, w
        bench.free()


def _seconds(bench: Bench, name: str, call: Callable[[], object]) -> float:
    """Return the time of a contestant; infinity for one of the library's that this device refuses."""
    try:
        return bench.seconds(call)
    except RuntimeError:
        if not name.startswith("_int_mm"):
            raise
        return float("inf")


def _chosen() -> dict[str, str]:
    """Return the form that each measured product runs by."""
    return {str(key[:4]): str(tile) for key, tile in tune._chosen.items() if str(key[0]).startswith("int8_gemm")}


def bandwidth(bench: Bench) -> None:
    """Time quantization beside a copy, by the bytes that must move; ranges are found by reading once more."""
    samples, each = bench.size((128, 1 << 20), (4, 256))
    x = torch.randn((samples, each), device=bench.device) * torch.rand((samples, 1), device=bench.device)
    copy = _copy(bench, x)
    p = bench.backend("native").primitives
    for name, bits, target in (("ptq", 8, 0.8), ("psq", 8, 0.8), ("bhq", 5, 0.4)):
        rule = quantizer(name, bits, "stochastic", 16, format="int8")
        seconds = bench.seconds(lambda rule=rule: rule.quantize(x, 1, 2, 3, p))
        share = READ_TWICE * x.numel() / seconds / copy
        measured = f"{milliseconds(seconds)}, {rate(READ_TWICE * x.numel(), seconds, 'B/s')}"
        work = f"{name} {bits} bits, stochastic by Philox, range included"
        bench.at_least(work, measured, share, target, "of copy", bytes_per_element=READ_TWICE)
    place = quantizer("psq", 8, "stochastic", 16, format="int8").quantize(x, 1, 2, 3, p)
    _known_range(bench, x, place, copy)


def _copy(bench: Bench, x: torch.Tensor) -> float:
    """Return the bytes a second of a copy, read and written."""
    out = torch.empty_like(x)
    found = 8 * x.numel() / bench.seconds(lambda: out.copy_(x))
    bench.record(f"copy of {4 * x.numel() >> 20} MiB, read and written", rate(found, 1, "B/s"), copy=found)
    return found


def _known_range(bench: Bench, x: torch.Tensor, place: Any, copy: float) -> None:
    from fqtsim.kernels.gpu.quantize import DeviceDraw, quantize
    from fqtsim.words import Rounding

    draw = DeviceDraw(1, 2, 3, 16)
    seconds = bench.seconds(
        lambda: quantize(x, place.step, place.zero_point, -128, 127, Rounding.STOCHASTIC, draw, torch.int8)
    )
    share = 5 * x.numel() / seconds / copy
    measured = f"{milliseconds(seconds)}, {rate(5 * x.numel(), seconds, 'B/s')}"
    bench.at_least("quantize + Philox, ranges known", measured, share, 0.8, "of copy", bytes_per_element=5)


def saturating(bench: Bench) -> None:
    """Time the worst case: registers begin at the upper rail and every product is positive, so each addition clamps."""
    n, path = bench.size(4096, 32), parse_hardware(SATURATING, "benchmarks/gpu_speed.py").datapath_for("fprop")
    a = torch.randint(1, 128, (n, n), dtype=torch.int8, device=bench.device)
    start = torch.full((n, n), (1 << 19) - 1, dtype=torch.int64, device=bench.device)
    form = Range(-128, 127)
    lowered = lower(path, n, form, form, Range(-(1 << 19), (1 << 19) - 1))
    for layout, b in (("b k-major", a.t().contiguous().t()), ("b row-major", a)):
        result = datapath_gemm(a, b, lowered, start)
        altered = int(result.events[0])
        few = get_backend("stepwise").gemm(
            a[:2].cpu().numpy(), b[:, :8].cpu().numpy(), path, start[:2, :8].cpu().numpy()
        )
        wrong = int((result.codes[:2, :8].cpu().numpy() != few.codes).sum())
        bench.equal(f"20-bit saturating, {layout}", wrong + (altered != n * n), "16 sampled outputs", altered=altered)
        seconds = bench.seconds(lambda b=b: datapath_gemm(a, b, lowered, start))
        speed = n**3 / seconds
        work = f"20-bit saturating accumulator {n}^3, {layout}, worst case"
        bench.at_least(work, milliseconds(seconds), speed / 1e12, 2.0, "TMAC/s", macs_per_second=speed)
    _usual(bench, path, n)


def _usual(bench: Bench, path: Any, n: int) -> None:
    """Time ordinary codes too, where Cauchy-Schwarz proves most outputs."""
    a, b = (_int8(bench, (n, n)) // 8 for _ in range(2))
    lowered = lower(path, n, Range(-128, 127), Range(-128, 127), Range(0, 0))
    seconds = bench.seconds(lambda: datapath_gemm(a, b.t(), lowered))
    bench.record(f"20-bit saturating accumulator {n}^3, 5-bit codes", rate(n**3, seconds, "MAC/s"))


def transformer(bench: Bench) -> None:
    """Time fprop, dgrad and wgrad of every linear layer of a block, quantization of all operands included."""
    tokens, d = bench.size((16384, 4096), (32, 16))
    total = {"int8": 0.0, "bf16": 0.0}
    p = bench.backend("native").primitives
    parts: dict[str, Any] = {}
    for inputs, outputs, count in ((d, d, 4), (d, 4 * d, 1), (4 * d, d, 1)):
        x, dy = (torch.randn((tokens, width), device=bench.device) for width in (inputs, outputs))
        w = torch.randn((outputs, inputs), device=bench.device)
        ours = bench.seconds(lambda x=x, w=w, dy=dy: _int8_linear(x, w, dy, p))
        xb, wb, db = (tensor.to(torch.bfloat16) for tensor in (x, w, dy))
        plain = bench.seconds(lambda xb=xb, wb=wb, db=db: (xb @ wb.t(), db @ wb, db.t() @ xb))
        parts[f"{inputs} to {outputs}"] = {"int8": ours, "bf16": plain, "count": count}
        total["int8"] += count * ours
        total["bf16"] += count * plain
        del x, dy, w, xb, wb, db
        bench.free()
    work = f"Transformer block d = {d}, {tokens} tokens: fprop + dgrad + wgrad, PSQ, quantization included"
    measured = f"{milliseconds(total['int8'])}, bf16 {milliseconds(total['bf16'])}"
    bench.at_least(work, measured, total["bf16"] / total["int8"], 1.4, "of bf16", layers=parts)
    _torchao(bench, tokens, d, total["int8"])


def _int8_linear(x: torch.Tensor, w: torch.Tensor, dy: torch.Tensor, p: Any) -> tuple[torch.Tensor, ...]:
    """Return y, dx and dw from float32, each operand quantized as recipe psq8 does."""
    nearest = quantizer("ptq", 8, "ties_to_even", format="int8")
    xq, wq = nearest.quantize(x, primitives=p), nearest.quantize(w, primitives=p)
    per_row = quantizer("psq", 8, "stochastic", 16, format="int8").quantize(dy, 1, 2, 3, p)
    whole = quantizer("ptq", 8, "stochastic", 16, format="int8").quantize(dy, 1, 4, 3, p)
    sides = [Side(q.zero_point, q.step) for q in (xq, wq, per_row, whole)]
    return (
        int8_gemm_scaled(xq.codes, wq.codes.t(), sides[0], sides[1]),
        int8_gemm_scaled(per_row.codes, wq.codes, sides[2], sides[1]),
        int8_gemm_scaled(whole.codes.t(), xq.codes, sides[3], sides[0]),
    )


def _torchao(bench: Bench, tokens: int, d: int, ours: float) -> None:
    work = "the same by torchao's INT8 mixed-precision training"
    if importlib.util.find_spec("torchao") is None:
        bench.record(work, "torchao is not installed")
        return
    try:
        from torchao import quantize_
        from torchao.prototype.quantized_training import int8_mixed_precision_training

        total = 0.0
        for inputs, outputs, count in ((d, d, 4), (d, 4 * d, 1), (4 * d, d, 1)):
            layer = torch.nn.Linear(inputs, outputs, bias=False, device=bench.device, dtype=torch.bfloat16)
            quantize_(layer, int8_mixed_precision_training())
            x = torch.randn((tokens, inputs), device=bench.device, dtype=torch.bfloat16, requires_grad=True)
            dy = torch.randn((tokens, outputs), device=bench.device, dtype=torch.bfloat16)
            total += count * bench.seconds(lambda layer=layer, x=x, dy=dy: layer(x).backward(dy))
    except Exception as error:  # another project's prototype: its failure is no failure of ours
        bench.record(work, f"failed: {type(error).__name__}: {str(error)[:80]}")
        return
    bench.record(work, milliseconds(total), total / ours)
