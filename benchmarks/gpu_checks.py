"""What must hold before anything is measured: primitives, INT8 products, and every shipped datapath on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gpu_report import INCOMPLETE, Bench, Row, spread

import fqtsim
from fqtsim.backends import get_backend
from fqtsim.errors import BackendRefused
from fqtsim.kernels.gpu import proof as products
from fqtsim.kernels.gpu.epilogue import EXACT, Side
from fqtsim.kernels.gpu.gemm import composed_int8_gemm_scaled, int8_gemm, int8_gemm_exact, int8_gemm_scaled
from fqtsim.words import IntFormat

ROWS = 16
"""Rows and columns of a large product that stepwise computes again."""


def prove_types(task: tuple[str, tuple[int, int, int], torch.dtype, torch.dtype]) -> int:
    """Return how many products of one shape and one pair of types are wrong; compiles what `proof.fault` needs."""
    device, (m, k, n), *types = task
    generator = torch.Generator().manual_seed(k)
    a, b = (products.operand(shape, kind, generator) for shape, kind in zip(((m, k), (k, n)), types, strict=True))
    exact, there = a.long() @ b.long(), (a.to(device), b.to(device))
    start = torch.full((m, n), -(1 << 31), dtype=torch.int32)
    wrong = int(not torch.equal(int8_gemm(*there).cpu(), exact.to(torch.int32)))
    wrong += not torch.equal(int8_gemm(*there, start=start.to(device)).cpu(), (exact + start).to(torch.int32))
    wrong += not torch.equal(int8_gemm_exact(*there).cpu().long(), exact)
    row = Side(a[:, 0].int(), torch.rand(m, generator=generator) + 0.5)
    column = Side(b[0, 0].int(), torch.rand((), generator=generator))
    sides = (Side(of.zero.to(device), of.step.to(device)) for of in (row, column) if of.zero is not None)
    scaled = int8_gemm_scaled(*there, *sides, m, register=EXACT).cpu()
    return wrong + (not torch.equal(scaled, composed_int8_gemm_scaled(a, b, row, column, m, register=EXACT)))


def proof(bench: Bench) -> None:
    """Run the start-up proofs: what the float primitives and the INT8 products must get right, or be refused."""
    shapes = bench.size(products.SHAPES, products.SHAPES[:3])
    kinds = torch.int8, torch.uint8
    tasks = [(bench.device, shape, x, y) for shape in reversed(shapes) for x in kinds for y in kinds]
    found = list(spread(prove_types, tasks, bench.options.jobs, bench.deadline))
    work = "INT8 products: rails, wrap, few rows, long K"
    if len(found) == len(tasks) or sum(found):
        bench.equal(work, sum(found), f"{4 * len(tasks)} products")
    else:
        bench.report(
            Row(work, f"{len(found)} of {len(tasks)} shapes and types done, equal", INCOMPLETE, None, "0 differ")
        )
    for name in ("native", "emulator"):
        backend = bench.backend(name)
        backend.primitives.prove()  # raises BackendRefused, naming the primitive
    bench.equal("float primitives and quantizers, shipped vectors", 0, "the vectors")


def _codes(form: IntFormat, shape: tuple[int, int], rails: bool, rng: np.random.Generator) -> Any:
    if rails:
        return rng.choice([form.minimum, form.maximum], shape)
    return rng.integers(form.minimum, form.maximum, shape, endpoint=True)


def datapaths(bench: Bench) -> None:
    """Compare emulator on the device with stepwise, for every hardware file that ships and each of its GEMMs."""
    backend = bench.backend("emulator")
    few = ["int8_acc20_tree4", "int8_acc24_saturate", "x86_vnni_saturate"]
    for name in bench.size(fqtsim.hardware_names(), few):
        if bench.left < 0:
            bench.skip(name, "the time was up; run again with --resume")
            continue
        hardware = fqtsim.load_hardware(name)
        wrong = outputs = 0
        refused, seen = [], []
        for gemm in ("fprop", "dgrad", "wgrad"):
            path = hardware.datapath_for(gemm)
            if path in seen:
                continue
            seen.append(path)
            try:
                found = _differ(backend, path, bench)
            except BackendRefused as error:
                refused.append(f"{gemm}: {error}")
                continue
            wrong, outputs = wrong + found[0], outputs + found[1]
        if refused:
            bench.record(f"{name}: refused, as native refuses", "; ".join(refused)[:120])
        if outputs:
            bench.equal(f"{name}: codes, events, extremes", wrong, f"{outputs} outputs")


def _differ(backend: Any, path: Any, bench: Bench) -> tuple[int, int]:
    """Return how many outputs of a datapath differ from stepwise, and how many were compared."""
    rng, wrong, outputs = np.random.default_rng(7), 0, 0
    formats = path.multiplier_format("a"), path.multiplier_format("b")
    stepwise = get_backend("stepwise")
    for rails in (False, True):
        for m, k, n in bench.size([(33, 300, 40), (1024, 2304, 512)], [(5, 40, 6)]):
            a, b = _codes(formats[0], (m, k), rails, rng), _codes(formats[1], (k, n), rails, rng)
            got = backend.gemm(a, b, path)
            rows, columns = np.arange(m), np.arange(n)
            if m > 100:
                rows, columns = rng.choice(m, ROWS, replace=False), rng.choice(n, ROWS, replace=False)
            want = stepwise.gemm(np.ascontiguousarray(a[rows]), np.ascontiguousarray(b[:, columns]), path)
            wrong += int((got.codes[np.ix_(rows, columns)] != want.codes).sum())
            outputs += want.codes.size
            if m <= 100:
                mine = got.events, got.minimum, got.maximum, got.at_rail
                wrong += int(mine != (want.events, want.minimum, want.maximum, want.at_rail))
    return wrong, outputs
