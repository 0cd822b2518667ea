"""What a start-up proof runs before anybody trusts the INT8 products of a device, and probes of its instructions.

The vectors are those on which integer products go wrong in silence: rails (a 16-bit or float32 intermediate), sums
that wrap at 2^31, fewer rows than a tile, K that is no multiple of 8, more terms than int32 is safe for. The expected
values come from integer arithmetic on the CPU.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from fqtsim.kernels.gpu.composed_convolution import composed_dgrad, composed_fprop, composed_wgrad
from fqtsim.kernels.gpu.convolution import conv_dgrad, conv_fprop, conv_wgrad
from fqtsim.kernels.gpu.epilogue import EXACT, Register, Side, Sums, Watch, new_record
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


class _Window(NamedTuple):
    """A window as convolution.Window asks for one, with the same padding on all sides."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]
    dilation: tuple[int, int]

    def positions(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the output size for an input of this size."""
        room = [size[i] + 2 * self.before[i] - self.dilation[i] * (self.kernel[i] - 1) - 1 for i in (0, 1)]
        return room[0] // self.stride[0] + 1, room[1] // self.stride[1] + 1


CONVOLUTIONS = (
    # Inputs, outputs, groups, stride, padding, dilation.
    (6, 5, 1, 1, 1, 1),
    (4, 8, 4, 2, 2, 2),
)


def convolution_fault(device: str) -> str | None:
    """Return which product of a convolution a device gets wrong on a few small images, or None."""
    generator = torch.Generator().manual_seed(1)
    for number, (inputs, outputs, groups, stride, padding, dilation) in enumerate(CONVOLUTIONS):
        window = _Window((3, 3), (stride, stride), (padding, padding), (dilation, dilation))
        size, kind = (9, 8), (torch.uint8, torch.int8)[number]
        x = operand((3, inputs * size[0] * size[1]), kind, generator).reshape(3, inputs, *size)
        w = operand((outputs, inputs // groups * 9), torch.int8, generator).reshape(outputs, -1, 3, 3)
        out = window.positions(size)
        dh = operand((3, outputs * out[0] * out[1]), torch.int8, generator).reshape(3, outputs, *out)
        sides = [Side(code.reshape(-1)[:1].reshape(()).to(torch.int32), torch.rand((), generator=generator) + 0.5)
                 for code in (x, w, dh)]  # fmt: skip
        rest, counted = (window, groups), Register(14, counted=True)
        image, weight = (3, math.prod(size)), (9, inputs // groups)
        # Name, both forms, operands, further sizes, sides, register, what rows count, and columns of a group.
        cases: list[tuple[Any, ...]] = [
            ("fprop", conv_fprop, composed_fprop, (x, w), (), (sides[0], sides[1]), EXACT, (3, math.prod(out)),
             outputs // groups),
            ("dgrad", conv_dgrad, composed_dgrad, (dh, w), (size,), (sides[2], sides[1]), EXACT, image, weight[1]),
            *(("wgrad", conv_wgrad, composed_wgrad, (x, dh), (), (sides[0], sides[2]), register, weight,
               outputs // groups) for register in (EXACT, counted)),
        ]  # fmt: skip
        for name, ours, theirs, operands, sizes, (row, column), register, rows, columns in cases:
            words = [torch.randint(-(1 << 31), 1 << 31, (2, n), generator=generator).to(torch.int32) for n in rows]
            watches = [_watch(words, groups, columns, place) for place in (device, "cpu")]
            there = [one.to(device) for one in operands]
            moved = [Side(_moved(side.zero, device), side.step.to(device)) for side in (row, column)]
            found = ours(*there, *rest, *sizes, *moved, register=register, watch=watches[0])
            expected = theirs(*operands, *rest, *sizes, row, column, register, watches[1])
            same = torch.equal(found.cpu().contiguous().view(torch.int32), expected.contiguous().view(torch.int32))
            noted = zip(watches[0].kept, watches[1].kept, strict=True)
            if not (same and all(torch.equal(here.cpu(), there) for here, there in noted)):
                return f"{name} of a convolution is wrong for {inputs} and {outputs} channels, stride {stride}"
    return None


def _watch(words: list[torch.Tensor], groups: int, columns: int, device: str) -> Watch:
    sums = torch.zeros((groups, 2, columns), dtype=torch.int32, device=device)
    return Watch(new_record(device), -(1 << 13), (1 << 13) - 1, Sums(words[0].to(device), words[1].to(device), sums))


def _moved(x: torch.Tensor | None, device: str) -> torch.Tensor | None:
    return None if x is None else x.to(device)


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
