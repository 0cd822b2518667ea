"""Golden GEMMs for an RTL test bench: a folder of files that Verilog's $readmemh reads.

    FOLDER/index.json            what the set is, and every case with its sizes, counts and what was left out
    FOLDER/CASE/params.vh        M, K, N, widths and numbers of words as `define, for `include
    FOLDER/CASE/a.hex, b.hex     codes in row-major order, a (M, K) and b (K, N)
    FOLDER/CASE/c.hex            start values (M, N), zeros where the case has none
    FOLDER/CASE/expected.hex     the accumulators (M, N)
    FOLDER/CASE/levelL.hex       the register of level L after every addition: outputs in row-major order, and the
                                 additions of each in the order in which S4.1 feeds them; small cases only

One word a line, two's complement of the width in the file's first comment, most significant digit first. The index says
why a case was left out.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np

from fqtsim.errors import InputError
from fqtsim.golden.case import Array, Case, GoldenSet
from fqtsim.hw.spec import Datapath
from fqtsim.ref.gemm import dot

MOST_WORDS = 1 << 16
"""Words of one operand or output; larger cases are left out, and the index names them."""
MOST_ADDITIONS = 20_000
"""Additions of a case up to which every register is written after each of them."""
EXACT_BITS = 64


def write_folder(golden: GoldenSet, path: Path) -> None:
    """Write the GEMMs of a set. Raises InputError where the folder exists or the set has no GEMM small enough."""
    if path.exists():
        raise InputError(f"{path}: already exists; name another folder, or remove it")
    left_out = {case.name: why for case in golden.cases if (why := left_out_because(case))}
    cases = [case for case in golden.cases if case.name not in left_out]
    if not cases:
        raise InputError("format = readmemh: the set has no GEMM of a size for a test bench; make it with --kind gemm")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        index = [_write_case(partial / case.name, case, golden) for case in cases]
        content = {
            "schema": golden.schema, "version": golden.version, "seed": golden.seed,
            "hardware": golden.hardware.name, "hardware_sha256": golden.hardware_sha256, "cases": index,
            "left_out": left_out,
        }  # fmt: skip
        (partial / "index.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); check the folder and its permissions"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def left_out_because(case: Case) -> str:
    """Return why a folder does not hold a case, in a few words; empty where it does."""
    if case.kind != "gemm":
        return f"is of kind {case.kind}; folders hold GEMMs"
    if case.seeded is not None:
        return "is large: the set holds a seed in place of operands"
    if not case.inputs["a"].size:
        return "K = 0: Verilog has no memory of no words, and there is no addition to clock"
    arrays = (*case.inputs.values(), *case.expected.values())
    return f"has an array of more than {MOST_WORDS} words" if any(x.size > MOST_WORDS for x in arrays) else ""


def register_bits(datapath: Datapath, level: int = -1) -> int:
    """Return the width of a level's register, 64 for an exact one."""
    form = datapath.levels[level].register_format
    return EXACT_BITS if form is None else form.bits


def hex_lines(values: Array, bits: int) -> str:
    """Return integers as two's complement words of so many bits, one a line, row-major."""
    digits, mask = -(-bits // 4), (1 << bits) - 1
    return "".join(f"{value & mask:0{digits}x}\n" for value in values.ravel().tolist())


def _write_case(folder: Path, case: Case, golden: GoldenSet) -> dict[str, object]:
    datapath = golden.hardware.datapath_for(case.parameters["gemm"])
    a, b, codes = case.inputs["a"], case.inputs["b"], case.expected["codes"]
    start = case.inputs.get("c", np.zeros(codes.shape, np.int64))
    (m, k), n = a.shape, b.shape[1]
    bits = {side: datapath.multiplier_format(side).bits for side in ("a", "b")}
    acc = register_bits(datapath)
    folder.mkdir()
    files = [("a", a, bits["a"]), ("b", b, bits["b"]), ("c", start, acc), ("expected", codes, acc)]
    stepped = m * n * k <= MOST_ADDITIONS
    if stepped:
        files += [(f"level{level}", registers, register_bits(datapath, level))
                  for level, registers in enumerate(step_registers(a, b, start, datapath))]  # fmt: skip
    for name, values, width in files:
        about = (
            f"// {case.name}: {name}, {values.size} words of {width} bits, shape {'x'.join(map(str, values.shape))}\n"
        )
        (folder / f"{name}.hex").write_text(about + hex_lines(values, width), encoding="ascii")
    numbers = {"M": m, "K": k, "N": n, "A_BITS": bits["a"], "B_BITS": bits["b"], "ACC_BITS": acc}
    numbers |= {f"{name.upper()}_WORDS": values.size for name, values, _ in files}
    defines = "".join(f"`define GOLDEN_{name} {value}\n" for name, value in numbers.items())
    (folder / "params.vh").write_text(f"// {golden.hardware.name}, case {case.name}\n{defines}", encoding="ascii")
    return {
        "name": case.name, "m": m, "k": k, "n": n, "start": "c" in case.inputs, "steps": stepped,
        "events": dict(case.events), "coverage": dict(case.coverage),
    }  # fmt: skip


def step_registers(a: Array, b: Array, c: Array, datapath: Datapath) -> list[Array]:
    """Return, per level, the register after every addition, (M, N, additions), as the definition performs them."""
    levels = range(len(datapath.levels))
    found: list[list[list[int]]] = [[] for _ in levels]
    for row in range(a.shape[0]):
        for col in range(b.shape[1]):
            output = dot([int(x) for x in a[row]], [int(x) for x in b[:, col]], datapath.levels, int(c[row, col]))
            for level in levels:
                found[level].append([step.after for step in output.steps if step.level == level])
    return [np.array(rows, np.int64).reshape(a.shape[0], b.shape[1], -1) for rows in found]
