"""How near each row of docs/results/cpu.json comes to what this machine can do.

    python benchmarks/cpu_roofline.py                 # measures the limits, prints the achieved fractions
    python benchmarks/cpu_roofline.py --rows          # one line per measurement

A row counts the operations and bytes that its work cannot do without: M*N*K products, operands read once, results
written once. Limits are the best of several runs of chains of vector instructions in registers, and of a copy that no
cache holds. What a row needs at least is the larger of operations over their limit and bytes over the copy's; the
fraction is that time over the measured one. Run it on the machine that wrote the file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
for _folder in (str(ROOT), str(ROOT / "benchmarks")):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)

import llvmlite.binding as llvm  # noqa: E402
import numpy as np  # noqa: E402
from cpu_report import TARGETS, cpu_model  # noqa: E402
from llvmlite import ir  # noqa: E402
from numba import njit, types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

FEATURES = llvm.get_host_cpu_features()
BITS = 512 if FEATURES.get("avx512f", False) else 256
CHAINS = 24 if BITS == 512 else 12
"""Independent chains: more than latency times throughput, and they fit the vector registers."""
COPIED = 256 << 20
#: Limits; each row names one as its `unit`.
FMA, CLAMPED, INT32, INT16, PAIRS, DOT16, DOT, COPY = (
    "fp32 FMA", "fp32 FMA and clamp", "int32 add and clamp", "int16 multiply, saturating add",
    "int16 multiply-add pairs", "int16 dot product, saturating", "int8 dot product", "copy",
)  # fmt: skip
Step = Callable[[Any, Any, Any, Any], Any]


class Chain(NamedTuple):
    """One kind of multiply-add on vectors: how many products an instruction makes, and the instructions."""

    element: Any
    #: Products of one lane.
    each: int
    step: Step

    @property
    def lanes(self) -> int:
        """Lanes of a vector."""
        return BITS // (32 if isinstance(self.element, ir.FloatType) else self.element.width)


def _call(builder: Any, name: str, *args: Any) -> Any:
    kind = args[0].type
    function = ir.FunctionType(kind, [kind] * len(args))
    return builder.call(builder.module.declare_intrinsic(name, (), function), args)


def _fma(builder: Any, acc: Any, x: Any, y: Any) -> Any:
    return _call(builder, f"llvm.fma.v{BITS // 32}f32", acc, x, y)


def _fma_clamp(builder: Any, acc: Any, x: Any, y: Any) -> Any:
    value = _fma(builder, acc, x, y)
    value = builder.select(builder.fcmp_ordered("<", value, x), value, x)
    return builder.select(builder.fcmp_ordered(">", value, y), value, y)


def _int32_clamp(builder: Any, acc: Any, x: Any, y: Any) -> Any:
    value = builder.add(acc, y)  # products come from elsewhere: at best they cost nothing
    value = builder.select(builder.icmp_signed("<", value, x), value, x)
    return builder.select(builder.icmp_signed(">", value, y), value, y)


def _int16(builder: Any, acc: Any, x: Any, y: Any) -> Any:
    return _call(builder, f"llvm.sadd.sat.v{BITS // 16}i16", builder.mul(acc, x), y)


def _pairs(builder: Any, acc: Any, x: Any, y: Any) -> Any:
    name = "llvm.x86.avx512.pmaddw.d.512" if BITS == 512 else "llvm.x86.avx2.pmadd.wd"
    short = ir.VectorType(ir.IntType(16), BITS // 16)
    function = builder.module.declare_intrinsic(name, (), ir.FunctionType(acc.type, [short, short]))
    return builder.add(builder.call(function, [builder.bitcast(acc, short), builder.bitcast(x, short)]), y)


def _dot(builder: Any, acc: Any, x: Any, y: Any) -> Any:
    return _call(builder, f"llvm.x86.avx512.vpdpbusd.{BITS}", acc, x, y)


def _dot16(builder: Any, acc: Any, x: Any, y: Any) -> Any:
    return _call(builder, f"llvm.x86.avx512.vpdpwssds.{BITS}", acc, x, y)


def chains() -> dict[str, Chain]:
    """Return the chains that this CPU has instructions for."""
    short, word = ir.IntType(16), ir.IntType(32)
    found = {
        FMA: Chain(ir.FloatType(), 1, _fma), CLAMPED: Chain(ir.FloatType(), 1, _fma_clamp),
        INT32: Chain(word, 1, _int32_clamp), INT16: Chain(short, 1, _int16),
    }  # fmt: skip
    if FEATURES.get("avx512bw", False) or (BITS == 256 and FEATURES.get("avx2", False)):
        found[PAIRS] = Chain(word, 2, _pairs)
    if FEATURES.get("avx512vnni", False) or (BITS == 256 and FEATURES.get("avxvnni", False)):
        found[DOT] = Chain(word, 4, _dot)
        found[DOT16] = Chain(word, 1, _dot16)  # one product of two: an accumulator clamps after each
    return found


def compiled(chain: Chain) -> Callable[[int], int]:
    """Return run(n): n steps on each of CHAINS registers; the result keeps the compiler from leaving them out."""

    @intrinsic
    def repeat(_context: Any, count: Any) -> Any:
        def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return _emit(builder, chain, args[0])

        return types.int64(types.int64), codegen

    @njit(nogil=True)
    def run(count: int) -> int:
        found: int = repeat(count)  # type: ignore[call-arg]
        return found

    made: Callable[[int], int] = run
    return made


def _emit(builder: Any, chain: Chain, count: Any) -> Any:
    """Emit the loop; the operands come from the count, so that nothing is known when it is compiled."""
    vector, wide = ir.VectorType(chain.element, chain.lanes), ir.IntType(64)
    x, y = (_splat(builder, chain, vector, builder.add(count, ir.Constant(wide, more))) for more in (3, 1))
    entry, body, done = builder.block, builder.append_basic_block("body"), builder.append_basic_block("done")
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(wide)
    registers = [builder.phi(vector) for _ in range(CHAINS)]
    following = [chain.step(builder, register, x, y) for register in registers]
    after = builder.add(index, ir.Constant(wide, 1))
    builder.cbranch(builder.icmp_signed("<", after, count), body, done)
    index.add_incoming(ir.Constant(wide, 0), entry)
    index.add_incoming(after, body)
    for i, (register, value) in enumerate(zip(registers, following, strict=True)):
        # Each chain begins elsewhere, else one would do for all.
        register.add_incoming(_constant(chain, vector, i), entry)
        register.add_incoming(value, body)
    builder.position_at_end(done)
    total = ir.Constant(wide, 0)
    for value in following:
        first = builder.extract_element(value, ir.Constant(ir.IntType(32), 0))
        as_int = builder.fptosi if isinstance(chain.element, ir.FloatType) else builder.sext
        total = builder.add(total, as_int(first, wide))
    return total


def _constant(chain: Chain, vector: Any, value: int) -> Any:
    number = float(value) if isinstance(chain.element, ir.FloatType) else value
    return ir.Constant(vector, [number] * chain.lanes)


def _splat(builder: Any, chain: Chain, vector: Any, value: Any) -> Any:
    """Return a vector of the low bits of an integer, so that float chains stay finite."""
    low = builder.and_(value, ir.Constant(ir.IntType(64), 7))
    is_float = isinstance(chain.element, ir.FloatType)
    one = builder.sitofp(low, chain.element) if is_float else builder.trunc(low, chain.element)
    undefined, zero = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    mask = ir.Constant(ir.VectorType(ir.IntType(32), chain.lanes), [0] * chain.lanes)
    return builder.shuffle_vector(builder.insert_element(undefined, one, zero), undefined, mask)


def _best(call: Callable[[], object], threads: int, repeats: int) -> float:
    """Return the least seconds in which that many threads have all made the call."""
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            for future in [pool.submit(call) for _ in range(threads)]:
                future.result()
            found.append(time.perf_counter() - start)
    return min(found)


def limits(threads: int, quick: bool) -> dict[str, float]:
    """Return products a second of each chain and bytes a second of a copy, of all threads together."""
    repeats, count, copied = (2, 1 << 12, 1 << 20) if quick else (9, 1 << 21, COPIED)
    rates = {}
    for name, chain in chains().items():
        run = compiled(chain)
        run(2)
        seconds = _best(lambda run=run: run(count), threads, repeats)  # type: ignore[misc]
        rates[name] = threads * count * CHAINS * chain.lanes * chain.each / seconds
    pairs = [(np.ones(copied // threads, np.uint8), np.zeros(copied // threads, np.uint8)) for _ in range(threads)]
    free = list(range(threads)) * repeats
    seconds = _best(lambda: np.copyto(pairs[(i := free.pop())][1], pairs[i][0]), threads, repeats)
    rates[COPY] = 2 * threads * (copied // threads) / seconds
    return rates


class Achieved(NamedTuple):
    """One row beside its limit."""

    target: str
    work: str
    threads: int
    #: Which limit it is that the row cannot pass.
    limit: str
    #: Products, or elements, a second.
    rate: float
    #: Share of the limit, 0..1.
    fraction: float


def achieved(row: Mapping[str, Any], rates: Mapping[str, float]) -> Achieved | None:
    """Return how near a row comes, or None where it counts nothing or its limit is unknown here."""
    counted, seconds = row["details"], next(iter(row["seconds"].values()), None)
    unit = counted.get("unit")
    if seconds is None or unit not in rates or "bytes" not in counted:
        return None
    needs = {COPY: counted["bytes"] / rates[COPY]}
    if "macs" in counted:
        needs[unit] = max(counted["macs"] / rates[unit], needs.get(unit, 0.0)) if unit != COPY else needs[COPY]
    limit = max(needs, key=lambda name: needs[name])
    done = counted.get("macs", counted.get("elements", 0)) / seconds
    return Achieved(row["target"], row["work"], row["threads"], limit, done, needs[limit] / seconds)


def show(found: Sequence[Achieved], rates: Mapping[int, Mapping[str, float]], every: bool) -> None:
    """Print the limits and the fractions: of each target, or of every row."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=160, markup=False, highlight=False)
    table = Table("limit", *(f"{threads} threads" for threads in rates), title=cpu_model(), title_justify="left")
    for name in (FMA, CLAMPED, INT32, INT16, PAIRS, DOT16, DOT, COPY):
        unit = "GB/s" if name == COPY else "G products/s"
        table.add_row(name, *(f"{one[name] / 1e9:.4g} {unit}" if name in one else "none" for one in rates.values()))
    console.print(table)
    if every:
        table = Table("work", "threads", "limit", "G/s", "fraction", title="Every row", title_justify="left")
        for one in found:
            table.add_row(one.work, str(one.threads), one.limit, f"{one.rate / 1e9:.4g}", f"{one.fraction:.3f}")
    else:
        table = Table("work", "threads", "limit", "rows", "median", "least", "most", title="Fractions of the limit")
        table.title_justify = "left"
        for target, threads, limit in dict.fromkeys((one.target, one.threads, one.limit) for one in found):
            mine = [one.fraction for one in found if (one.target, one.threads, one.limit) == (target, threads, limit)]
            numbers = (f"{value:.3f}" for value in (statistics.median(mine), min(mine), max(mine)))
            work = TARGETS[target].work if target in TARGETS else "no target"
            table.add_row(work, str(threads), limit, str(len(mine)), *numbers)
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=ROOT / "docs" / "results" / "cpu.json", help="rows of cpu.py")
    parser.add_argument("--rows", action="store_true", help="one line per measurement")
    parser.add_argument("--quick", action="store_true", help="toy sizes: tests the script, measures nothing")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write limits and fractions as JSON")
    asked = parser.parse_args(arguments)
    if not asked.file.is_file():
        print(f"benchmarks/cpu_roofline.py: {asked.file}: no such file; run benchmarks/cpu.py first", file=sys.stderr)
        return 2
    content = json.loads(asked.file.read_text(encoding="utf-8"))
    if content["environment"]["cpu"] != cpu_model():
        print(f"{asked.file} is of another machine, {content['environment']['cpu']}", file=sys.stderr)
        return 2
    # A row that compares numbers of threads has times of all of them; the first is its own.
    rows = [row for section in content["sections"].values() for row in section["rows"] if row["threads"]]
    rates = {threads: limits(threads, asked.quick) for threads in sorted({row["threads"] for row in rows})}
    found = [one for row in rows if (one := achieved(row, rates[row["threads"]])) is not None]
    show(found, rates, asked.rows)
    if asked.out:
        partial = asked.out.with_name(f".{asked.out.name}.partial")
        plain = {"cpu": cpu_model(), "limits": rates, "rows": [one._asdict() for one in found]}
        partial.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, asked.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
