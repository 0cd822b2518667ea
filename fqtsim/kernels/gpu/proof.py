"""What a start-up proof runs before anybody trusts the INT8 products of a device, and probes of its instructions.

The vectors are those on which integer products go wrong in silence: rails (a 16-bit or float32 intermediate), sums
that wrap at 2^31, fewer rows than a tile, K that is no multiple of 8, more terms than int32 is safe for. The expected
values come from integer arithmetic on the CPU.
"""

from __future__ import annotations

import torch

from fqtsim.kernels.gpu.epilogue import EXACT, Side
from fqtsim.kernels.gpu.gemm import composed_int8_gemm_scaled, int8_gemm, int8_gemm_exact, int8_gemm_scaled

SHAPES = (
    (1, 1, 1),
    (1, 64, 1),
    (3, 7, 5),
    (16, 512, 8),
    (17, 130, 33),
    (64, 64, 64),
    (200, 1000, 300),
    (2, 140_001, 3),
)
"""(M, K, N); the last one wraps."""


def operand(shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Return codes that are rails, with a first row and column of the one that makes the largest products."""
    low, high = (0, 255) if dtype == torch.uint8 else (-128, 127)
    picked = torch.randint(0, 2, shape, generator=generator) == 1
    codes = torch.where(picked, torch.tensor(high), torch.tensor(low)).to(dtype)
    most = high if dtype == torch.uint8 else low
    codes[0], codes[:, 0] = most, most
    return codes


def fault(device: str, shapes: tuple[tuple[int, int, int], ...] = SHAPES) -> str | None:
    """Return what the INT8 products of a device get wrong, or None where every vector comes out right."""
    generator = torch.Generator().manual_seed(0)
    types = (torch.int8, torch.uint8)
    for shape in shapes:
        for a_type, b_type in ((a, b) for a in types for b in types):
            m, k, n = shape
            a, b = operand((m, k), a_type, generator), operand((k, n), b_type, generator)
            name = f"{str(a_type)[6:]} x {str(b_type)[6:]} {shape}"
            exact = a.to(torch.int64) @ b.to(torch.int64)
            start = torch.full((m, n), (1 << 31) - 1, dtype=torch.int32)
            there = a.to(device), b.to(device)
            if not torch.equal(int8_gemm(*there).cpu(), exact.to(torch.int32)):
                return f"the INT8 product is wrong for {name}"
            if not torch.equal(int8_gemm(*there, start=start.to(device)).cpu(), (exact + start).to(torch.int32)):
                return f"the INT8 product with start values is wrong for {name}"
            if not torch.equal(int8_gemm_exact(*there).cpu().to(torch.int64), exact):
                return f"the exact INT8 product is wrong for {name}"
            row = Side(a[:, 0].to(torch.int32), torch.rand(m, generator=generator) + 0.5)
            column = Side(b[0, 0].to(torch.int32), torch.rand((), generator=generator))
            sides = [Side(side.zero if side.zero is None else side.zero.to(device), side.step.to(device))
                     for side in (row, column)]  # fmt: skip
            got = int8_gemm_scaled(*there, sides[0], sides[1], m, register=EXACT)
            if not torch.equal(got.cpu(), composed_int8_gemm_scaled(a, b, row, column, m, register=EXACT)):
                return f"the scaled INT8 product is wrong for {name}"
    return None


def overflow_of(device: str, rows: int) -> str:
    """Return what this device's tensor cores do beyond 2^31 - 1: "wrap", "saturate" or a number; rows chooses which.

    The accumulator starts at 2^31 - 1 and one product of 127 * 127 is added by the instruction itself. Triton uses
    mma.sync for tiles of fewer than 64 rows (and on every device before Hopper), and wgmma from 64 on.
    """
    from fqtsim.kernels.gpu.triton_probes import overflow_kernel

    a = torch.zeros((rows, 32), dtype=torch.int8, device=device)
    a[:, 0] = 127
    out = torch.zeros((rows, rows), dtype=torch.int32, device=device)
    start = torch.full((rows, rows), (1 << 31) - 1, dtype=torch.int32, device=device)
    overflow_kernel[(1,)](a, a, start, out, SIZE=rows, enable_fp_fusion=False)
    found = sorted({int(code) for code in out.cpu().reshape(-1)})
    names = {-(1 << 31) - 1 + 127 * 127: "wrap", (1 << 31) - 1: "saturate"}
    return ", ".join(names.get(code, str(code)) for code in found)
