"""Compiles what the hosts launch for an H100 that need not be there, as a script: one line of JSON per kernel form.

Triton's interpreter knows no types of arguments, no registers and no shared memory, and an argument that equals 1 is
an ordinary number to it. Here the hosts run on CPU tensors of zeros, each launch is bound as the launcher would bind
it, and compiled by ptxas. No kernel runs, so every tensor holds zeros.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

TARGET = GPUTarget("cuda", 90, 32)
BACKEND = make_backend(TARGET)
FOUND: dict[str, dict[str, Any]] = {}


def launched(self: Any, *args: Any, grid: Any, warmup: bool = False, **settings: Any) -> None:
    """Stand in for JITFunction.run: bind the arguments and compile, once for each form."""
    binder = create_function_from_signature(self.signature, self.params, BACKEND)
    bound, specialization, options = binder(*args, debug=False, **settings)
    options, signature, constants, attributes = self._pack_args(
        BACKEND, settings | {"debug": False}, bound, specialization, options
    )
    source = ASTSource(self, signature, constants, attributes)
    key = hashlib.sha256((source.hash() + str(options)).encode()).hexdigest()
    if key in FOUND:
        return
    row: dict[str, Any] = {"kernel": self.__name__, "types": list(map(str, signature.values()))}
    row["fused"] = settings.get("enable_fp_fusion", True)
    FOUND[key] = row
    try:
        made = compile(source, target=TARGET, options=options.__dict__)
    except Exception as error:  # of any kind: it is what the row is for
        row["error"] = f"{type(error).__name__}: {error}"[-800:]
        return
    row["shared"] = made.metadata.shared
    row["ptx"] = sorted(
        {word for line in made.asm["ptx"].splitlines() for word in line.split()[:2] if word.startswith(WATCHED)}
    )


WATCHED = ("fma.", "div.", "sqrt.", "rcp.", "ex2.", "lg2.", "atom.", "red.")


def zeros_for_empty() -> None:
    """Let memory that no kernel fills hold zeros: an index read from it is then one."""

    def zeros(*shape: Any, memory_format: torch.memory_format | None = None, **settings: Any) -> torch.Tensor:
        made = torch.zeros(*shape, **settings)
        return made if memory_format is None else made.contiguous(memory_format=memory_format)

    torch.empty = zeros
    torch.empty_like = torch.zeros_like
    torch.Tensor.new_empty = torch.Tensor.new_zeros  # type: ignore[method-assign]


def codes(*shape: int, kind: torch.dtype = torch.int8) -> torch.Tensor:
    return torch.zeros(shape, dtype=kind)


def products() -> Iterator[Callable[[], Any]]:
    """Yield GEMMs, sides with and without zero points, and convolutions; sizes of 1 among them."""
    from fqtsim.kernels.gpu import convolution
    from fqtsim.kernels.gpu.epilogue import EXACT, WRAP32, Register, Side, Sums, Watch, new_record
    from fqtsim.kernels.gpu.gemm import int8_gemm, int8_gemm_exact, int8_gemm_scaled
    from fqtsim.train.geometry import Window

    one, many = Side(codes(kind=torch.int32), torch.ones(())), Side(None, torch.ones(()))

    def watch(rows: tuple[int, int] = (0, 0), columns: tuple[int, int] = (0, 0)) -> Watch:
        """Return a watch, with sums where rows are said."""
        words = [codes(2, count, kind=torch.int32) for count in rows]
        out = codes(columns[0], 2, columns[1], kind=torch.int32)
        return Watch(new_record("cpu"), -100, 100, Sums(words[0], words[1], out) if rows[0] else None)

    for m, k, n in ((64, 256, 48), (1, 1, 1), (5, 1, 7), (1, 64, 1), (300, 2, 20)):
        for kind in (torch.int8, torch.uint8):
            a, b = codes(m, k, kind=kind), codes(k, n)
            yield lambda a=a, b=b: int8_gemm(a, b)
            yield lambda a=a, b=b, m=m, n=n: int8_gemm(a, b, start=codes(m, n, kind=torch.int32))
            yield lambda a=a, b=b: int8_gemm_exact(a, b)
            for register in (EXACT, WRAP32, Register(20), Register(20, counted=True)):
                for rows in ((0, 0), (m, 1)):
                    yield lambda a=a, b=b, r=register, rows=rows, n=n: int8_gemm_scaled(
                        a, b, one, many, register=r, watch=watch(rows, (1, n))
                    )
    plain, point = Window((3, 3), (2, 1), (1, 1), (1, 1)), Window((1, 1), (1, 1), (0, 0), (0, 0))
    for shape, outputs, window, groups in (
        ((2, 8, 9, 9), 16, plain, 1), ((2, 8, 9, 9), 8, plain, 8), ((1, 4, 3, 3), 4, point, 4),
        ((1, 1, 1, 1), 1, point, 1), ((1, 80, 3, 3), 4, plain, 1),
    ):  # fmt: skip
        x, w = codes(*shape, kind=torch.uint8), codes(outputs, shape[1] // groups, *window.kernel)
        dh = codes(shape[0], outputs, *window.positions(shape[2:]))
        settings, (samples, inputs, *size), out = (window, groups), shape, dh.shape[2:]
        for summed in (False, True):
            forward, backward = ((samples, math.prod(place)) if summed else (0, 0) for place in (out, size))
            taps = (math.prod(window.kernel), inputs // groups) if summed else (0, 0)
            own, other = (groups, outputs // groups), (groups, inputs // groups)
            yield lambda x=x, w=w, s=settings, r=forward, c=own: convolution.conv_fprop(
                x, w, *s, one, one, register=EXACT, watch=watch(r, c)
            )
            yield lambda dh=dh, w=w, s=settings, size=tuple(size), r=backward, c=other: convolution.conv_dgrad(
                dh, w, *s, size, one, one, register=EXACT, watch=watch(r, c)
            )
            yield lambda x=x, dh=dh, s=settings, r=taps, c=own: convolution.conv_wgrad(
                x, dh, *s, one, one, register=EXACT, watch=watch(r, c)
            )


def datapaths() -> Iterator[Callable[[], Any]]:
    """Yield one GEMM of every shipped hardware and of chains with lanes, levels and dropped bits."""
    from fqtsim.hw.load import hardware_names, load_hardware
    from fqtsim.hw.lower import Range, lower
    from fqtsim.kernels.gpu.datapath import datapath_gemm

    kinds = {"int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16}
    chain = [
        {"lanes": 3, "item": {"drop_bits": 2, "rounding": "ties_to_even"}, "register": "int12", "overflow": "saturate"},
        {"terms": "all", "register": "int13", "overflow": "wrap"},
    ]
    paths = [load_hardware(name).datapath_for("fprop") for name in hardware_names()]
    paths.append(load_hardware("int8_acc32_wrap", {"datapath.levels": json.dumps(chain)}).datapath_for("fprop"))
    for path in paths:
        a, b = (path.multiplier_format(side) for side in "ab")
        if a.storage in kinds and b.storage in kinds:
            for k in (1, 37):
                lowered = lower(path, k, Range(a.minimum, a.maximum), Range(b.minimum, b.maximum), Range(0, 0))
                left, right = codes(1, 20, k, kind=kinds[a.storage]), codes(1, k, 9, kind=kinds[b.storage])
                yield lambda left=left, right=right, lowered=lowered: datapath_gemm(left, right, lowered)


def elements() -> Iterator[Callable[[], Any]]:
    """Yield everything that a step does beside products, with the step index as a number and on the device."""
    from fqtsim.backends import fused_proof
    from fqtsim.kernels.gpu import quantize, random
    from fqtsim.words import Rounding

    for _, fused, _ in fused_proof.pairs(torch.device("cpu")):
        yield fused
    for step in (7, codes(1, kind=torch.int64)):
        yield lambda step=step: random.random_words(1, 2, step, 9, "cpu")
        for x in (torch.zeros(4, 3, 5, 4), torch.zeros(4, 3, 5, 4).to(memory_format=torch.channels_last)):
            for grids in ((torch.ones(()), codes(kind=torch.int32)), (torch.ones(4), codes(4, kind=torch.int32))):
                draw = quantize.DeviceDraw(1, 2, step, 16)
                call = (x, *grids, -8, 7, Rounding.STOCHASTIC, draw, torch.int8, None)
                yield lambda call=call: quantize.quantize(*call)


def sums() -> Iterator[Callable[[], Any]]:
    """Yield what Freivalds' check sums: of codes and of words, of convolutions with and without holes."""
    from fqtsim.kernels.gpu import freivalds
    from fqtsim.train.geometry import Window
    from fqtsim.train.lowering import backward_walk, forward_walk
    from fqtsim.train.products import ONE

    for rows, columns in ((128, 3000), (1, 1), (5, 1), (131072, 16)):
        for kind in (torch.int8, torch.uint8, torch.int32):
            matrix, weights = codes(1, 1, kind=kind).expand(rows, columns), codes(2, rows, kind=torch.int32)
            yield lambda w=weights, m=matrix: freivalds.combine(w, m)
            yield lambda w=weights, m=matrix: freivalds.combine_rows(w, m.t())
    for window, size, channels in ((Window((3, 3), (2, 1), (1, 1), (1, 1)), (9, 8), 5), (ONE, (1, 1), 1)):
        for walk in (forward_walk(window, size), backward_walk(window, size)):
            source = size if walk.hole == (1, 1) else window.positions(size)
            outputs, taps = math.prod(walk.outputs), math.prod(walk.taps)
            images, fill = codes(2, *source, channels, kind=torch.int32), codes(2, 1, kind=torch.int32)
            words = codes(2, outputs, kind=torch.int32), codes(2, taps, kind=torch.int32)
            yield lambda i=images, f=fill, k=walk, w=words: freivalds.tap_sums(i, f[:, 0], k, w[0])
            yield lambda i=images, f=fill, k=walk, w=words: freivalds.patch_sums(i[:, None].contiguous(), f, k, w[1])


def main() -> None:
    from fqtsim.kernels.gpu.launch import through_interpreter

    JITFunction.run = launched  # type: ignore[method-assign]
    zeros_for_empty()
    with through_interpreter():
        for section in (products, datapaths, elements, sums):
            for call in section():
                call()
    for row in FOUND.values():
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
