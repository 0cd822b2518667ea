"""Quantization of float32 gradients, random words included."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from cpu_report import Bench

from fqtsim.quantizers import quantizer

Array = np.ndarray[Any, Any]
RANDOM_BITS = 16
BHQ_SHAPE = (128, 16384)


def gradient(shape: tuple[int, int]) -> Array:
    """Return what gradients look like: a few samples are much larger than the others."""
    rng = np.random.default_rng(5)
    return (rng.standard_normal(shape) * np.exp(2 * rng.standard_normal((shape[0], 1)))).astype(np.float32)


def quantize(bench: Bench) -> None:
    """Time PSQ per element, and BHQ with its inverse beside PSQ."""
    shapes = bench.size((BHQ_SHAPE, (4096, 4096), (512, 512)), ((8, 4096),))
    psq, bhq = (quantizer(name, 5, "stochastic", RANDOM_BITS) for name in ("psq", "bhq"))
    for threads in bench.threads:
        with bench.on(threads):
            for shape in shapes:
                x = gradient(shape)
                timings = bench.time({"PSQ": partial(psq.quantize, x, 1, 2, 3)}, threads)
                rates = [x.size / one[0] / 1e9 / threads for one in timings.rounds]
                text, counted = f"PSQ, {shape[0]} x {shape[1]}", _counted(x, 5)
                bench.ratio("psq", text, threads, rates, timings.medians(), **counted)
            _bhq(bench, threads, psq, bhq, gradient(shapes[0]))


def _bhq(bench: Bench, threads: int, psq: Any, bhq: Any, x: Array) -> None:
    """Forward is what quantizes dH; inverse is what returns the product of dgrad to its rows."""
    product = np.ascontiguousarray(x[:, ::-1])
    mixed = bhq.quantize(x, 1, 2, 3)
    calls = {
        "BHQ": lambda: bhq.quantize(x, 1, 2, 3).unmix(product), "PSQ": lambda: psq.quantize(x, 1, 2, 3),
        "BHQ forward": lambda: bhq.quantize(x, 1, 2, 3), "BHQ inverse": lambda: mixed.unmix(product),
    }  # fmt: skip
    timings = bench.time(calls, threads)
    # Read, mixed rows written and read, codes; then the product read and written.
    text, groups = f"BHQ, {x.shape[0]} x {x.shape[1]}", len(mixed.groups or ())
    bench.against("bhq", text, threads, timings, ["PSQ"], **_counted(x, 4 + 4 + 4 + 1 + 8), groups=groups)


def _counted(x: Array, bytes_each: int) -> dict[str, Any]:
    return {"elements": x.size, "bytes": bytes_each * x.size, "unit": "copy"}
