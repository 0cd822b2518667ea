"""GEMMs on made operands: the worst case, every kind of datapath, and sums that cannot overflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import yaml
from cpu_loops import plain_loops
from cpu_report import Bench
from cpu_shapes import Shape, cubes, network_shapes

import fqtsim
from fqtsim.backends import get_backend
from fqtsim.hw.load import load_hardware, parse_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.kernels.tile import HAS_DOT
from fqtsim.words import Rounding

Array = np.ndarray[Any, Any]
FP32, INT_MM, OURS = "fp32 matmul", "torch._int_mm", "emulator"
#: One product in so many is negative in the worst case, so that no bound on monotone sums holds either.
TURN = 8


def hardware(
    levels: list[dict[str, Any]], a: str = "int8", b: str = "int8", zero_point: str = "none", unsigned_x: bool = False
) -> Hardware:
    """Return a hardware file with these levels in all three GEMMs; unsigned_x: activations are uint8."""
    datapath = {"a": a, "b": b, "zero_point": zero_point, "levels": levels}
    words = {"summary": "for a measurement", "source": "hypothetical", "checked_against": "nothing"}
    content: dict[str, Any] = {"schema": 1, "name": "bench", **words, "datapath": datapath}
    if unsigned_x:
        content["gemms"] = {"fprop": {"a": "uint8"}, "wgrad": {"a": "uint8"}}
    content["random"] = {"generator": "philox4x32-10", "bits": 16}
    return parse_hardware(yaml.safe_dump(content, sort_keys=False), "benchmarks/cpu_gemm.py")


def saturating(bits: int, a: str = "int8", b: str = "int8", zero_point: str = "none") -> Hardware:
    """Return one saturating register of so many bits, behind every product."""
    return hardware([{"terms": "all", "register": f"int{bits}", "overflow": "saturate"}], a, b, zero_point)


def traffic(shape: Shape, start: bool = False) -> dict[str, int]:
    """Return what one call must compute and move at least: int8 operands, int32 codes, start values of one row."""
    m, k, n = shape.m, shape.k, shape.n
    return {"macs": shape.macs, "bytes": shape.groups * (m * k + k * n + 4 * m * n + 8 * n * start)}


def worst_operands(shape: Shape, bits: int, always: bool = False) -> tuple[Array, Array, Array]:
    """Return a, b and start values of which every output saturates at 7 of 8 additions, half of them at each rail.

    The eighth product steps back from the rail by less than the next one returns, so the order of additions decides
    and neither norms, prefix sums nor the sign of the products prove anything. always: at every addition.
    """
    rng = np.random.default_rng(shape.m + bits)
    a = rng.integers(64, 128, (shape.m, shape.k)).astype(np.int8)
    b = rng.integers(2, 128, (shape.k, shape.n)).astype(np.int8)
    if not always:
        b[TURN - 1 :: TURN] = -1
    b[:, 1::2] *= -1
    start = np.where(np.arange(shape.n) % 2 == 0, (1 << (bits - 1)) - 1, -(1 << (bits - 1)))
    return a, b, start[None, :]


def rivals(shape: Shape) -> dict[str, Callable[[], object]]:
    """Return torch's products of that shape; their speed does not depend on the numbers."""
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.integers(-128, 128, (shape.m, shape.k)).astype(np.int8))
    b = torch.from_numpy(rng.integers(-128, 128, (shape.k, shape.n)).astype(np.int8))
    x, y = a.float(), b.float()
    return {FP32: lambda: x @ y, INT_MM: lambda: torch._int_mm(a, b)}


def unit_of(bits: int) -> str:
    """Return which of the machine's limits a worst case of so many bits can reach."""
    if bits <= 16:
        return "int16 multiply, saturating add"
    if HAS_DOT:
        return "int16 dot product, saturating"
    return "fp32 FMA and clamp" if bits <= 24 else "int32 add and clamp"


def worst(bench: Bench) -> None:
    """Every output saturates and every shortcut fails."""
    widths = bench.size({"worst_17_32": (17, 20, 24, 28, 32), "worst_16": (8, 12, 16)},
                        {"worst_17_32": (24,), "worst_16": (16,)})  # fmt: skip
    networks, one = network_shapes(bench), cubes((bench.middle,))
    for threads in bench.threads:
        with bench.on(threads):
            for target, bits in ((target, bits) for target, all_bits in widths.items() for bits in all_bits):
                shapes = cubes(bench.sizes) if bits in (16, 24, 32) else one
                for shape in shapes + (networks if bits in (16, 24) else []):
                    _worst(bench, threads, target, bits, shape)
                if not bench.quick:
                    _worst(bench, threads, target, bits, one[0], always=True)
            _peer(bench, threads, bench.size(128, 16))


def _worst(bench: Bench, threads: int, target: str, bits: int, shape: Shape, always: bool = False) -> None:
    a, b, start = worst_operands(shape, bits, always)
    narrow = saturating(bits)
    loops = plain_loops(bits, a, b, start) if shape.network == "cube" and shape.m <= 2048 else {}
    result = fqtsim.gemm(a, b, narrow, c=start)
    if result.events.altered != shape.m * shape.n:
        raise RuntimeError(f"{shape.text}, {bits} bits: not every output saturates")
    for name, loop in loops.items():
        if not np.array_equal(loop(), result.codes):
            raise RuntimeError(f"{shape.text}, {bits} bits: {name} and the emulator differ")
    ours = {OURS: lambda: fqtsim.gemm(a, b, narrow, c=start)}
    timings = bench.time(ours | {FP32: rivals(shape)[FP32]} | loops, threads)
    work = f"{bits} bits, {shape.text}{', at every addition' if always else ''}"
    counted = traffic(shape, True) | {"unit": unit_of(bits)}
    bench.against(target, work, threads, timings, [FP32], **counted)
    if loops:
        bench.against("loop", work, threads, timings, list(loops), **counted)


def _peer(bench: Bench, threads: int, n: int) -> None:
    """Record apytypes' accumulator context (24 bits, saturating; it does not apply it to sums), where installed."""
    if find_spec("apytypes") is None:
        return
    import apytypes as apy

    codes, narrow = worst_operands(cubes((n,))[0], 24), saturating(24)
    a, b = (apy.fx(operand, int_bits=8, frac_bits=0) for operand in codes[:2])

    def peer() -> Any:
        with apy.APyFixedAccumulatorContext(int_bits=24, frac_bits=0, overflow=apy.OverflowMode.SAT):
            return a @ b

    ours = {OURS: lambda: fqtsim.gemm(codes[0], codes[1], narrow, c=codes[2])}
    timings = bench.time(ours | {"apytypes": peer}, threads)
    faster = float(np.median(timings.ratios(True, ["apytypes"])))
    counted = traffic(cubes((n,))[0], True) | {"unit": unit_of(24), "times_as_fast": faster}
    bench.record(f"24 bits, {n}^3, beside apytypes' accumulator context", threads, timings.medians(), **counted)


def tree_datapaths() -> dict[str, Hardware]:
    """Return one of each kind that the schema allows behind the multipliers, and the shipped ones with levels."""
    clamp20 = {"terms": "all", "register": "int20", "overflow": "saturate"}
    clamp24, clamp32 = clamp20 | {"register": "int24"}, clamp20 | {"register": "int32"}
    narrow = {"register": "int16", "overflow": "saturate"}
    found = {
        "tree of 4, int24": hardware([{"terms": 4, "register": "exact"}, clamp24]),
        "tree of 16, int20": hardware([{"terms": 16, "register": "exact"}, clamp20]),
        "tree of 2 in int16, int32": hardware([{"terms": 2, **narrow}, clamp32]),
        "4 lanes of int20, int24": hardware([{"lanes": 4, "register": "int20", "overflow": "saturate"}, clamp24]),
        "16 lanes of int16, int32": hardware([{"lanes": 16, **narrow}, clamp32]),
        "2 parts of int20, int24": hardware([{"parts": 2, "register": "int20", "overflow": "saturate"}, clamp24]),
        "3 levels": hardware([{"terms": 4, "register": "exact"}, {"terms": 8, **narrow}, clamp24]),
        "4 levels, lanes": hardware(
            [{"terms": 2, "register": "exact"}, {"terms": 4, **narrow}, {"lanes": 2, "register": "exact"}, clamp24]
        ),
        "wraps inside, int24": hardware([{"terms": 64, "register": "int17", "overflow": "wrap"}, clamp24]),
        "shipped x86_avx2_pmaddubsw": load_hardware("x86_avx2_pmaddubsw"),
    }
    for rounding in Rounding:
        if rounding is not Rounding.STOCHASTIC:
            dropped = {"item": {"drop_bits": 4, "rounding": rounding.value}}
            found[f"4 bits dropped {rounding.value}, int20"] = hardware([clamp20 | dropped])
    dropped = {"item": {"drop_bits": 4, "rounding": "ties_to_even"}}
    found["4 bits dropped behind a tree of 4, int20"] = hardware([{"terms": 4, "register": "exact"}, clamp20 | dropped])
    return found


#: Those that run on every shape; the others at two sizes.
ON_EVERY_SHAPE = (
    "tree of 4, int24", "4 lanes of int20, int24", "4 bits dropped ties_to_even, int20", "shipped x86_avx2_pmaddubsw",
)  # fmt: skip


def trees(bench: Bench) -> None:
    """Every kind of datapath on operands that saturate."""
    datapaths = tree_datapaths()
    if bench.quick:
        datapaths = {name: datapaths[name] for name in ON_EVERY_SHAPE[:1]}
    few = cubes(tuple(n for n in bench.sizes if n in (256, bench.middle)))
    networks = network_shapes(bench)
    for threads in bench.threads:
        with bench.on(threads):
            for name, chosen in datapaths.items():
                every = name in ON_EVERY_SHAPE and not bench.quick
                for shape in cubes(bench.sizes) + networks if every else few:
                    _tree(bench, threads, name, chosen, shape)


def _tree(bench: Bench, threads: int, name: str, chosen: Hardware, shape: Shape) -> None:
    register = chosen.datapath.accumulator.register_format
    a, b, start = worst_operands(shape, register.bits if register else 32)
    if not chosen.datapath.a_format.signed:
        a = a.view(np.uint8)
    calls = {OURS: lambda: fqtsim.gemm(a, b, chosen, c=start), FP32: rivals(shape)[FP32]}
    altered = fqtsim.gemm(a, b, chosen, c=start).events.altered / (shape.m * shape.n)
    counted = traffic(shape, True) | {"unit": "fp32 FMA", "altered": altered}  # the least that any of them needs
    bench.against("trees", f"{name}, {shape.text}", threads, bench.time(calls, threads), [FP32], **counted)


def _exact_cases(shape: Shape) -> Iterator[tuple[str, Callable[[], Any]]]:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in ((shape.m, shape.k), (shape.k, shape.n)))
    small_a, small_b = ((codes // 8).astype(np.int8) for codes in (a, b))
    wide, narrow, wraps = saturating(32), saturating(24), load_hardware("int8_acc32_wrap")
    yield "int32 wraps", lambda: fqtsim.gemm(a, b, wraps, gemm="dgrad")
    yield "int32 saturates, out of range for any operands", lambda: fqtsim.gemm(a, b, wide)
    yield "int24 saturates, norms prove it", lambda: fqtsim.gemm(small_a, small_b, narrow)


def exact(bench: Bench) -> None:
    """Sums that no register can change; events are counted all the same. Below 1024^3 no target judges."""
    judged = min(1024, bench.middle) ** 3
    shapes = cubes(bench.sizes) + network_shapes(bench)
    for threads in bench.threads:
        with bench.on(threads):
            for shape in shapes:
                for name, call in _exact_cases(shape):
                    if call().events.altered:
                        continue  # the norms do not prove it at this K
                    timings = bench.time({OURS: call, INT_MM: rivals(shape)[INT_MM]}, threads)
                    work, counted = f"{name}, {shape.text}", traffic(shape) | {"unit": "int8 dot product"}
                    if shape.network == "cube" and shape.macs >= judged:
                        bench.against("exact", work, threads, timings, [INT_MM], **counted)
                    else:
                        ratio = timings.ratios(True, [INT_MM])
                        bench.record(work, threads, timings.medians(), of_int_mm=float(np.median(ratio)), **counted)


def depthwise(bench: Bench) -> None:
    """Grouped products of MobileNetV2, all groups in one call as its layers make it; no target judges them."""
    for threads in bench.threads:
        with bench.on(threads):
            for shape in network_shapes(bench, grouped=True):
                for bits in bench.size((24, 16), (24,)):
                    _depthwise(bench, threads, shape, bits)


def _depthwise(bench: Bench, threads: int, shape: Shape, bits: int) -> None:
    rng, emulator = np.random.default_rng(2), get_backend("emulator")
    sizes = (shape.groups, shape.m, shape.k), (shape.groups, shape.k, shape.n)
    a, b = (rng.integers(-128, 128, size).astype(np.int8) for size in sizes)
    x, y = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    path = saturating(bits).datapath_for("fprop")
    calls = {OURS: lambda: emulator.gemm_groups(a, b, path), "fp32 bmm": lambda: torch.bmm(x, y)}
    timings = bench.time(calls, threads)
    ratio = float(np.median(timings.ratios(True, ["fp32 bmm"])))
    counted = traffic(shape) | {"unit": "copy", "of_bmm": ratio}
    bench.record(f"{bits} bits, {shape.text}", threads, timings.medians(), **counted)
