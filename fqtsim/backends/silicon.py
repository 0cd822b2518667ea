"""The dot-product instructions of x86 as oracles: saturation as silicon does it, to check others by (S4).

Each function is one GEMM of uint8 codes by int8 codes that runs the instruction itself, reached through an
intrinsic of LLVM. Nothing here rounds, clips or narrows in software:

    x86_avx2_pmaddubsw   pmaddubsw, pmaddwd by ones, paddd   pairs saturate at 16 bits, then 32 bits wrap
    x86_vnni_saturate    vpdpbusds                           four products and the register, saturated once
    x86_vnni_wrap        vpdpbusd                            the same, wrapping

Ragged sizes are padded with zero codes. Rows and columns of zeros make outputs that are cut off again. Along
K a zero code makes a product of 0, which changes no exact sum: a pair or four with zeros in it is the short
group that S4 has at the end, and a pair of zeros alone adds 0, which leaves every register as it is.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils as _cgutils
from numba.core import codegen as _codegen
from numba.extending import intrinsic
from numpy.typing import ArrayLike, NDArray

from fqtsim.errors import BackendRefused, InputError

cgutils: Any = _cgutils
codegen: Any = _codegen

ROWS, VECTORS = 4, 2
"""One tile: so many rows by so many vectors of columns are accumulated in registers at once."""

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


@dataclass(frozen=True)
class _Instruction:
    """What a function runs: the alternatives, widest first, as (vector bits, CPU features that they need)."""

    mnemonic: str
    widths: tuple[tuple[int, frozenset[str]], ...]


def _vnni(mnemonic: str) -> _Instruction:
    wide, narrow = frozenset({"avx512f", "avx512vnni"}), frozenset({"avx512vl", "avx512vnni"})
    return _Instruction(mnemonic, ((512, wide), (256, narrow), (256, frozenset({"avxvnni"}))))


_INSTRUCTIONS = {
    "x86_avx2_pmaddubsw": _Instruction("vpmaddubsw", ((256, frozenset({"avx2"})),)),
    "x86_vnni_saturate": _vnni("vpdpbusds"),
    "x86_vnni_wrap": _vnni("vpdpbusd"),
}
DATAPATHS = tuple(_INSTRUCTIONS)
"""The names that silicon_gemm, available and instructions take."""


# ---- what this processor has -----------------------------------------------------------------------------


@cache
def cpu_features() -> frozenset[str]:
    """Return the features of this processor that compiled code may use, in LLVM's words; empty off x86-64."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    chosen = getattr(numba.config, "CPU_FEATURES", None)  # NUMBA_CPU_FEATURES, which the compiler obeys
    text = str(codegen.get_host_cpu_features() if chosen is None else chosen)
    return frozenset(word[1:] for word in text.split(",") if word.startswith("+"))


def vector_bits(name: str) -> tuple[int, ...]:
    """Return the vector widths at which this processor runs a datapath's instruction, widest first."""
    fitting = [bits for bits, needed in _instruction(name).widths if needed <= cpu_features()]
    return tuple(dict.fromkeys(fitting))


def available(name: str) -> str | None:
    """Return None where this processor runs the instruction of that datapath, else the reason why not."""
    choices = _instruction(name).widths
    if vector_bits(name):
        return None
    if not cpu_features():
        return f"{name} needs an x86-64 processor; this one is {platform.machine() or 'unknown'}"
    needed = " or ".join(sorted({"+".join(sorted(features)) for _, features in choices}))
    return f"{name} needs the CPU feature {needed}, which this processor or NUMBA_CPU_FEATURES leaves out"


def _instruction(name: str) -> _Instruction:
    if name not in _INSTRUCTIONS:
        raise InputError(f"silicon datapath = {name!r}: must be one of {', '.join(DATAPATHS)}")
    return _INSTRUCTIONS[name]


# ---- the GEMMs -------------------------------------------------------------------------------------------

Gemm = Callable[..., NDArray[np.int32]]


def pmaddubsw_gemm(a: ArrayLike, b: ArrayLike, c: ArrayLike | None = None) -> NDArray[np.int32]:
    """Multiply uint8 (M, K) by int8 (K, N), from start values c (broadcast to (M, N), int32), on AVX2.

    The datapath is x86_avx2_pmaddubsw. Raises InputError for other types, shapes or start values, and
    BackendRefused where the processor lacks the instruction.
    """
    return _gemm("x86_avx2_pmaddubsw", a, b, c)


def vnni_saturate_gemm(a: ArrayLike, b: ArrayLike, c: ArrayLike | None = None) -> NDArray[np.int32]:
    """Multiply as pmaddubsw_gemm does, by vpdpbusds: the datapath is x86_vnni_saturate."""
    return _gemm("x86_vnni_saturate", a, b, c)


def vnni_wrap_gemm(a: ArrayLike, b: ArrayLike, c: ArrayLike | None = None) -> NDArray[np.int32]:
    """Multiply as pmaddubsw_gemm does, by vpdpbusd: one int32 register that wraps."""
    return _gemm("x86_vnni_wrap", a, b, c)


def silicon_gemm(name: str) -> Gemm:
    """Return the function gemm(a, b, c=None) that runs a datapath of DATAPATHS on this processor.

    Raises BackendRefused with the reason where available(name) gives one, InputError for an unknown name.
    """
    reason = available(name)
    if reason is not None:
        raise BackendRefused(f"silicon: {reason}; use the emulator")
    functions = {
        "x86_avx2_pmaddubsw": pmaddubsw_gemm,
        "x86_vnni_saturate": vnni_saturate_gemm,
        "x86_vnni_wrap": vnni_wrap_gemm,
    }
    return functions[name]


def instructions(name: str, bits: int | None = None) -> frozenset[str]:
    """Return the mnemonics in the machine code of a datapath: the proof that the instruction is what runs."""
    kernel, _ = _kernel(name, bits or _widest(name))
    text = "\n".join(kernel.inspect_asm().values())
    words = (line.replace("{vex}", "").replace("{evex}", "").split() for line in text.splitlines())
    return frozenset(parts[0] for parts in words if parts)


def _widest(name: str) -> int:
    silicon_gemm(name)
    return vector_bits(name)[0]


def _gemm(name: str, a: ArrayLike, b: ArrayLike, c: ArrayLike | None, bits: int | None = None) -> NDArray[np.int32]:
    kernel, columns = _kernel(name, bits or _widest(name))
    left, right = _operand("a", a, np.uint8), _operand("b", b, np.int8)
    (m, k), n = left.shape, right.shape[1]
    if right.shape[0] != k:
        raise InputError(f"a {left.shape}, b {right.shape}: the contracted sizes must be equal")
    m_up, k_up, n_up = _up(m, ROWS), _up(k, 4), _up(n, columns)
    accumulator = np.zeros((m_up, n_up), np.int32)
    if c is not None:
        accumulator[:m, :n] = _start(c, (m, n))
    padded_a = np.zeros((m_up, k_up), np.uint8)
    padded_a[:m, :k] = left
    padded_b = np.zeros((k_up, n_up), np.int8)
    padded_b[:k, :n] = right
    # Four consecutive k of one column stand together, and the columns of one tile after one another.
    panels = padded_b.reshape(k_up // 4, 4, n_up // columns, columns).transpose(2, 0, 3, 1)
    kernel(accumulator, padded_a, np.ascontiguousarray(panels))
    return np.ascontiguousarray(accumulator[:m, :n])


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _operand(name: str, codes: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    array = np.asarray(codes)
    if array.ndim != 2 or array.dtype != dtype:
        rule = f"must be a matrix of {np.dtype(dtype).name}"
        raise InputError(f"{name} = {array.ndim}-dimensional {array.dtype}: {rule}; convert the codes first")
    return array


def _start(c: ArrayLike, shape: tuple[int, int]) -> NDArray[Any]:
    start = np.asarray(c)
    if start.dtype.kind not in "iu" or (start.size and not -(2**31) <= int(start.min()) <= int(start.max()) < 2**31):
        raise InputError(f"c = {start.dtype} array: start values must be integers that fit int32")
    try:
        return np.broadcast_to(start, shape)
    except ValueError:
        raise InputError(f"c = shape {start.shape}: must broadcast to the output's {shape}") from None


# ---- the machine code ------------------------------------------------------------------------------------


@cache
def _kernel(name: str, bits: int) -> tuple[Any, int]:
    """Return the compiled loop over tiles, and how many columns a tile has."""
    binding.initialize_native_asmparser()  # for the one instruction that is written out as text
    columns = VECTORS * bits // 32
    tile = _tile(_EMIT[name](bits), bits)

    def run(accumulator: Any, a: Any, panels: Any) -> None:
        for panel in range(panels.shape[0]):
            for row in range(0, accumulator.shape[0], ROWS):
                tile(accumulator, a, panels, row, panel)

    signature = numba.void(numba.int32[:, ::1], numba.uint8[:, ::1], numba.int8[:, :, :, ::1])
    return numba.njit(signature, nogil=True)(run), columns


Emit = Callable[[Any, Any, Any, Any], Any]
"""Emits the instruction for one vector: (builder, accumulator, codes of a, codes of b) -> accumulator."""


def _emit_vpdpbusd(intrinsic_name: str, bits: int) -> Emit:
    vector = ir.VectorType(_I32, bits // 32)
    # LLVM before 22 wants vectors of int32 here; later ones take them too and see bytes in them.
    type_ = ir.FunctionType(vector, [vector, vector, vector])

    def emit(builder: Any, accumulator: Any, a: Any, b: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, type_, f"{intrinsic_name}.{bits}")
        return builder.call(function, [accumulator, a, b])

    return emit


def _emit_pmaddubsw(bits: int) -> Emit:
    bytes_, words = ir.VectorType(ir.IntType(8), bits // 8), ir.VectorType(_I16, bits // 16)
    dwords = ir.VectorType(_I32, bits // 32)

    def emit(builder: Any, accumulator: Any, a: Any, b: Any) -> Any:
        type_ = ir.FunctionType(words, [bytes_, bytes_])
        pairs = cgutils.get_or_insert_function(builder.module, type_, "llvm.x86.avx2.pmadd.ub.sw")
        # As an intrinsic, pmaddwd and the addition would become vpdpwssd where the processor has VNNI.
        fours = ir.InlineAsm(ir.FunctionType(dwords, [words, words]), "vpmaddwd $2, $1, $0", "=x,x,x")
        sums = builder.call(pairs, [builder.bitcast(a, bytes_), builder.bitcast(b, bytes_)])
        ones = ir.Constant(words, [1] * words.count)
        return builder.add(accumulator, builder.call(fours, [sums, ones]))

    return emit


_EMIT: dict[str, Callable[[int], Emit]] = {
    "x86_avx2_pmaddubsw": _emit_pmaddubsw,
    "x86_vnni_saturate": lambda bits: _emit_vpdpbusd("llvm.x86.avx512.vpdpbusds", bits),
    "x86_vnni_wrap": lambda bits: _emit_vpdpbusd("llvm.x86.avx512.vpdpbusd", bits),
}


def _tile(emit: Emit, bits: int) -> Any:
    """Return a Numba function that adds all terms to one tile of the accumulator, in order of k."""
    lanes = bits // 32

    def tile(typingctx: Any, accumulator: Any, a: Any, panels: Any, row: Any, panel: Any) -> Any:
        signature = numba.void(accumulator, a, panels, row, panel)

        def codegen_tile(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            arrays = [
                context.make_array(type_)(context, builder, value)
                for type_, value in zip(sig.args[:3], args[:3], strict=True)
            ]
            _emit_tile(builder, arrays, args[3], args[4], ir.VectorType(_I32, lanes), emit)
            return context.get_dummy_value()

        return signature, codegen_tile

    return intrinsic(tile)


def _emit_tile(builder: Any, arrays: Any, row: Any, panel: Any, vector: Any, emit: Emit) -> None:
    out, left, right = arrays
    stride_out, stride_a = (cgutils.unpack_tuple(builder, array.strides)[0] for array in (out, left))
    step_panel, step_group = cgutils.unpack_tuple(builder, right.strides)[:2]
    groups = cgutils.unpack_tuple(builder, right.shape)[1]
    bytes_ = vector.count * 4

    def pointer(base: Any, offset: Any, type_: Any) -> Any:
        return builder.inttoptr(builder.add(builder.ptrtoint(base, _I64), offset), type_.as_pointer())

    def place(i: int, j: int) -> Any:
        line = builder.mul(builder.add(row, _I64(i)), stride_out)
        column = builder.mul(panel, _I64(VECTORS * bytes_))
        return pointer(out.data, builder.add(builder.add(line, column), _I64(j * bytes_)), vector)

    registers = [[cgutils.alloca_once(builder, vector) for _ in range(VECTORS)] for _ in range(ROWS)]
    cells = [(i, j) for i in range(ROWS) for j in range(VECTORS)]
    for i, j in cells:
        builder.store(builder.load(place(i, j), align=4), registers[i][j])
    with cgutils.for_range(builder, groups) as loop:
        start = builder.add(builder.mul(panel, step_panel), builder.mul(loop.index, step_group))
        columns = [
            builder.load(pointer(right.data, builder.add(start, _I64(j * bytes_)), vector), align=1)
            for j in range(VECTORS)
        ]
        for i in range(ROWS):
            offset = builder.add(builder.mul(builder.add(row, _I64(i)), stride_a), builder.mul(loop.index, _I64(4)))
            word = builder.load(pointer(left.data, offset, _I32), align=1)
            spread = _splat(builder, word, vector)
            for j in range(VECTORS):
                total = emit(builder, builder.load(registers[i][j]), spread, columns[j])
                builder.store(total, registers[i][j])
    for i, j in cells:
        builder.store(builder.load(registers[i][j]), place(i, j), align=4)


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    """Return a vector with the scalar in every lane."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _I32(0))
    mask = ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, mask)
