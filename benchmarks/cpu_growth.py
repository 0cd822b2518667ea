"""How time grows with threads and with the size of a product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from cpu_gemm import hardware, saturating, traffic, unit_of, worst_operands
from cpu_report import Bench
from cpu_shapes import Shape, cubes

import fqtsim
from fqtsim.hw.spec import Hardware

#: Edges below this are left out of the fit: the time of a call has a constant part.
SMALLEST_FITTED = 256


def cases(quick: bool) -> dict[str, tuple[Hardware, int]]:
    """Return one datapath for each way through the emulator, with the bits of its accumulator."""
    tree: list[dict[str, Any]] = [
        {"terms": 4, "register": "exact"},
        {"terms": "all", "register": "int24", "overflow": "saturate"},
    ]
    found = {
        "worst case, 24 bits": (saturating(24), 24), "worst case, 16 bits": (saturating(16), 16),
        "tree of 4, int24": (hardware(tree), 24), "exact, int32 wraps": (_wrap32(), 0),
    }  # fmt: skip
    return dict(list(found.items())[:: 3 if quick else 1])


def _wrap32() -> Hardware:
    return hardware([{"terms": "all", "register": "int32", "overflow": "wrap"}])


def _call(chosen: Hardware, bits: int, shape: Shape) -> Callable[[], Any]:
    if bits:
        a, b, start = worst_operands(shape, bits)
        return lambda: fqtsim.gemm(a, b, chosen, c=start)
    rng = np.random.default_rng(3)
    left, right = (rng.integers(-128, 128, size).astype(np.int8) for size in ((shape.m, shape.k), (shape.k, shape.n)))
    return lambda: fqtsim.gemm(left, right, chosen)


def _on(threads: int, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        torch.set_num_threads(threads)
        numba.set_num_threads(threads)
        return call()

    return run


def threads(bench: Bench) -> None:
    """Time one product on one thread and on two, in turn."""
    shape = cubes((bench.middle,))[0]
    for name, (chosen, bits) in cases(bench.quick).items():
        text = f"{name}, {shape.text}"
        if max(bench.threads) < 2:
            bench.skip("threads", text, 2, "one thread only: needs two cores and NUMBA_NUM_THREADS >= 2")
            continue
        call = _call(chosen, bits, shape)
        with bench.on(2):
            timings = bench.time({"2 threads": _on(2, call), "1 thread": _on(1, call)}, 2)
        counted = traffic(shape, bool(bits)) | {"unit": unit_of(bits) if bits else "int8 dot product"}
        bench.against("threads", text, 2, timings, ["1 thread"], **counted)


def growth(bench: Bench) -> None:
    """Fit the time of products of many sizes and shapes by a power of M*N*K, and by a line."""
    edges = tuple(n for n in bench.sizes if n >= SMALLEST_FITTED)
    edges = edges if len(edges) > 2 else (*bench.sizes, 2 * max(bench.sizes))
    for count in bench.threads:
        with bench.on(count):
            for name, (chosen, bits) in cases(bench.quick).items():
                shapes = [*cubes(edges), *(shape for n in edges[:-1] for shape in oblong(n))]
                points = [(shape.macs, _seconds(bench, count, _call(chosen, bits, shape))) for shape in shapes]
                exponent, fit = fitted(points)
                text = f"{name}, {len(points)} shapes of {shapes[0].macs:.2g} to {max(points)[0]:.2g} products"
                bench.ratio("growth", text, count, [exponent], {}, points=points, **fit)


def oblong(n: int) -> list[Shape]:
    """Return products of n^3 in other shapes: tall, deep, wide."""
    edges = (4 * n, n, n // 4), (n, 4 * n, n // 4), (n // 4, n, 4 * n)
    return [Shape("oblong", "", *each) for each in edges]


def _seconds(bench: Bench, count: int, call: Callable[[], Any]) -> float:
    return bench.time({"emulator": call}, count).medians()["emulator"]


def fitted(points: list[tuple[int, float]]) -> tuple[float, dict[str, float]]:
    """Return the exponent p of seconds = c * macs**p, and the line seconds = constant + macs * slope with its fit.

    The line is fitted to relative errors, else the largest product alone would decide.
    """
    macs, seconds = (np.array(values, np.float64) for values in zip(*points, strict=True))
    exponent = float(np.polyfit(np.log(macs), np.log(seconds), 1)[0])
    slope, constant = np.polyfit(macs, seconds, 1, w=1 / seconds)
    errors = np.abs((constant + slope * macs) / seconds - 1)
    return exponent, {
        "seconds_per_gmac": float(slope * 1e9), "constant_seconds": float(constant),
        "largest_relative_error": float(errors.max()), "median_relative_error": float(np.median(errors)),
    }  # fmt: skip
