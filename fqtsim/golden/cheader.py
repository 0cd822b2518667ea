"""Golden GEMMs as one C header: arrays, and a table of cases to loop over."""

from __future__ import annotations

from fqtsim.errors import InputError
from fqtsim.golden.case import Array, Case, GoldenSet

MOST_ELEMENTS = 1 << 14
"""Elements of one array; larger cases are left out, and the header names them."""
_TOP = """\
/* Golden vectors of fqtsim: {summary}
 * Hardware {hardware}, SHA-256 {digest}
 * Schema {schema}, generator version {version}, seed {seed}. Made by `fqtsim golden make`; do not edit.
 *
 * expected[m * n]: the accumulator codes of a (m, k) times b (k, n), row-major, starting at c where c is not NULL.
 * Where k is 0, a and b have one element that is never read: C has no arrays of none.
 * Left out, being too large for a header: {left_out}.
 */
#ifndef FQTSIM_GOLDEN_H
#define FQTSIM_GOLDEN_H

#include <stddef.h>
#include <stdint.h>

typedef {a} golden_a_t;
typedef {b} golden_b_t;
typedef {code} golden_code_t;

typedef struct {{
    const char *name;
    int m, k, n;
    const golden_a_t *a;
    const golden_b_t *b;
    const int64_t *c; /* NULL: start at 0 */
    const golden_code_t *expected;
}} golden_gemm_t;

"""
_INT64_MINIMUM = -(1 << 63)


def header_text(golden: GoldenSet) -> str:
    """Return the header of a set's GEMMs. Raises InputError where it has none small enough, or of several types."""
    cases = [case for case in golden.cases if case.kind == "gemm" and _is_small(case)]
    if not cases:
        raise InputError("format = c: the set has no GEMM of a size for a header; make it with --kind gemm")
    types = {name: f"{cases[0].inputs[name].dtype.name}_t" for name in ("a", "b")}
    kept = {case.name for case in cases}
    top = _TOP.format(
        summary=f"{len(cases)} GEMMs", hardware=golden.hardware.name, digest=golden.hardware_sha256,
        schema=golden.schema, version=golden.version, seed=golden.seed, **types,
        code=f"{cases[0].expected['codes'].dtype.name}_t",
        left_out=", ".join(case.name for case in golden.cases if case.name not in kept) or "nothing",
    )  # fmt: skip
    rows = "\n".join(_row(case) for case in cases)
    table = f"static const golden_gemm_t golden_gemms[] = {{\n{rows}\n}};\n"
    count = f"static const size_t golden_gemm_count = {len(cases)};\n"
    return f"{top}{''.join(_arrays(case) for case in cases)}{table}{count}\n#endif\n"


def _is_small(case: Case) -> bool:
    arrays = (*case.inputs.values(), *case.expected.values()) if case.seeded is None else ()
    return bool(arrays) and all(array.size <= MOST_ELEMENTS for array in arrays)


def _arrays(case: Case) -> str:
    parts = [_array(f"golden_{case.name}_{name}", f"golden_{name}_t", case.inputs[name]) for name in ("a", "b")]
    if "c" in case.inputs:
        parts.append(_array(f"golden_{case.name}_c", "int64_t", case.inputs["c"]))
    parts.append(_array(f"golden_{case.name}_expected", "golden_code_t", case.expected["codes"]))
    return "".join(parts)


def _array(name: str, type_name: str, values: Array) -> str:
    wide = values.dtype.itemsize == 8
    words = [_literal(value, wide) for value in values.ravel().tolist()] or ["0"]
    lines = ["    " + ", ".join(words[first : first + 16]) + "," for first in range(0, len(words), 16)]
    return f"static const {type_name} {name}[{len(words)}] = {{\n" + "\n".join(lines) + "\n};\n"


def _literal(value: int, wide: bool) -> str:
    """Return a C literal; the most negative integers of C have none of their own."""
    if wide:
        return "INT64_MIN" if value == _INT64_MINIMUM else f"INT64_C({value})"
    return "(-2147483647 - 1)" if value == -(1 << 31) else str(value)


def _row(case: Case) -> str:
    (m, k), n = case.inputs["a"].shape, case.inputs["b"].shape[1]
    start = f"golden_{case.name}_c" if "c" in case.inputs else "NULL"
    arrays = f"golden_{case.name}_a, golden_{case.name}_b, {start}, golden_{case.name}_expected"
    return f'    {{"{case.name}", {m}, {k}, {n}, {arrays}}},'
