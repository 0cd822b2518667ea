"""Where the first wrong element of a case comes from: the additions of a GEMM, or the stages of another rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fqtsim.api.explain import Explanation, explain
from fqtsim.errors import InputError
from fqtsim.golden import derivation
from fqtsim.golden.case import Array, Case
from fqtsim.golden.convolution import ORDER_OF_K, Convolution
from fqtsim.golden.coverage import run
from fqtsim.golden.derivation import Derivation
from fqtsim.hw.spec import Hardware
from fqtsim.words import GEMMS, IntFormat, ZeroPoint

if TYPE_CHECKING:
    from fqtsim.golden.check import CaseResult, Mismatch

#: Of a linear step: operands of each GEMM as (port, transposed), and its float32 output.
STEP_GEMMS = {
    "fprop": (("x", False), ("w", True), "y"),
    "dgrad": (("dh_for_dgrad", False), ("w", False), "dx"),
    "wgrad": (("x", True), ("dh_for_wgrad", False), "dw"),
}
PORT_TENSORS = {"x": "x", "w": "w", "dh_for_wgrad": "dh", "dh_for_dgrad": "dh"}
ARGUMENTS = ("multiplier", "shift", "scale", "zero_point")


def explained_first(
    result: CaseResult, hardware: Hardware, other: Sequence[Any] | None = None
) -> Explanation | Derivation | None:
    """Return where the expected value of the first wrong element comes from; None where that cannot be told.

    other: the additions of that element under the first suggestion.
    """
    first, case = result.mismatch, result.case
    if first is None:
        return None
    if case.kind == "gemm":
        inputs = case.inputs
        return _added(inputs["a"], inputs["b"], inputs.get("c"), first, hardware, case.parameters["gemm"], other)
    if case.kind in ORDER_OF_K:
        return _convolved(case, first, hardware, other)
    if case.kind == "quantize":
        return derivation.of_quantizer(
            case.inputs["x"], _index_in(case.inputs["x"], first), dict(case.parameters), case.inputs.get("rand_bits"),
            case.expected["step"], case.expected["zero_point"],
        )  # fmt: skip
    if case.kind == "requantize":
        arguments = {name: case.parameters[name] for name in ARGUMENTS if name in case.parameters}
        code = int(case.inputs["acc"][first.index])
        return derivation.of_stages(code, str(list(first.index)), hardware.output or (), arguments)
    if case.kind == "scaled_linear":
        return _scaled(case, first, hardware)
    return _of_step(case, first, hardware, other) if case.kind == "linear_step" else None


def _index_in(x: Array, first: Mismatch) -> tuple[int, ...]:
    """Return the place of the first wrong code in x; of a wrong step, zero point or factor, that of its row."""
    if first.output.endswith("codes"):
        return first.index
    if first.output == "group_rows":  # the rows of all groups in turn
        return (int(first.expected),)
    return () if first.output == "group_sizes" else first.index[:1]


def _added(
    a: Array, b: Array, c: Array | None, first: Mismatch, hardware: Hardware, gemm: str, other: Sequence[Any] | None,
    place: tuple[int, int] | None = None,
) -> Explanation:  # fmt: skip
    row, col = place or (first.index[0], first.index[1])
    start = None if c is None else c[row : row + 1, col : col + 1]
    found = explain(a[row : row + 1], b[:, col : col + 1], hardware, 0, 0, gemm, start)
    return replace(found, row=row, col=col).focused(int(first.observed), other)


def _convolved(case: Case, first: Mismatch, hardware: Hardware, other: Sequence[Any] | None) -> Explanation:
    conv = Convolution.of(case)
    group, row, col = conv.place(first.index)
    a, b = conv.matrices(group)
    found = _added(a, b, None, first, hardware, case.kind.removeprefix("conv_"), other, (row, col))
    named = ", ".join(map(str, first.index))
    of = f" of group {group}" if conv.groups > 1 else ""
    return replace(found, terms=conv.terms(first.index), terms_title=", ".join(ORDER_OF_K[case.kind]),
                   title=f"output [{named}]: row {row}, column {col} of the GEMM{of}")  # fmt: skip


def scaled_sums(case: Case, hardware: Hardware) -> Array:
    """Return the accumulators (M, N) of a scaled linear layer, dropped bits restored, int64."""
    path = hardware.datapath_for("fprop")
    codes = run({"a": case.inputs["x"], "b": np.ascontiguousarray(case.inputs["w"].T)}, path).codes
    restored: Array = codes.astype(np.int64) << path.dropped_bits
    return restored


def _scaled(case: Case, first: Mismatch, hardware: Hardware) -> Derivation:
    row, col = first.index
    bias = float(case.inputs["bias"][col]) if "bias" in case.inputs else None
    steps = float(case.inputs["row_step"][row]), float(case.inputs["column_step"][col])
    return derivation.of_scaling(str(list(first.index)), int(scaled_sums(case, hardware)[row, col]), *steps, bias)


# A linear layer step.


def in_logical_order(case: Case) -> list[str]:
    """Return the outputs of a case as they are computed: the codes of a step's GEMM before its float32 result."""
    names = list(case.expected)
    mixing = [name for name in ("group_rows", "group_sizes", "scale") if case.kind == "quantize" and name in names]
    if mixing:  # bhq: groups and factors, the grids of the mixed rows, their codes
        return [*mixing, *(name for name in names if name not in mixing and name != "codes"), "codes"]
    if case.kind == "linear_step":
        for gemm, (_, _, result) in STEP_GEMMS.items():
            names.remove(f"{gemm}.codes")
            names.insert(names.index(result), f"{gemm}.codes")
    return names


def step_operands(
    case: Case, hardware: Hardware, gemm: str, given: dict[str, Array] | None = None
) -> tuple[Array, Array] | None:
    """Return operands (M, K) and (K, N) of a step's GEMM from its ports' codes; None where they are of other formats.

    given: codes that stand in for those of the set, by name, as a kernel returned them.
    """
    path, found = hardware.datapath_for(gemm), []
    for side, (port, turned) in zip(("a", "b"), STEP_GEMMS[gemm][:2], strict=True):
        codes = (given or {}).get(f"{port}.codes", case.expected[f"{port}.codes"]).astype(np.int64)
        zero = int(case.expected[f"{port}.zero_point"])
        form = path.a_format if side == "a" else path.b_format
        if case.parameters[port]["zero"] != "symmetric":
            moved = form.minimum - IntFormat.parse(case.parameters[port]["format"]).minimum
            codes, zero = codes + moved, zero + moved
        if path.zero_point is ZeroPoint.BEFORE_MULTIPLY:
            codes = codes - zero
        found.append(codes.T if turned else codes)
    try:
        a, b = (np.ascontiguousarray(codes) for codes in found)
        a = a.astype(path.multiplier_format("a").storage)
        b = b.astype(path.multiplier_format("b").storage)
        same = given or np.array_equal(run({"a": a, "b": b}, path).codes, case.expected[f"{gemm}.codes"])
    except InputError:
        return None
    return (a, b) if same else None


def _of_step(
    case: Case, first: Mismatch, hardware: Hardware, other: Sequence[Any] | None
) -> Explanation | Derivation | None:
    head, _, what = first.output.partition(".")
    if head in PORT_TENSORS and what:
        tensor = case.inputs[PORT_TENSORS[head]]
        return derivation.of_quantizer(
            tensor, _index_in(tensor, first), dict(case.parameters[head]), case.inputs.get(f"rand_bits_{head}"),
            case.expected[f"{head}.step"], case.expected[f"{head}.zero_point"],
        )  # fmt: skip
    gemm = head if what else next(name for name in GEMMS if STEP_GEMMS[name][2] == head)
    operands = step_operands(case, hardware, gemm)
    if operands is None:
        return None
    if what:
        return _added(*operands, None, first, hardware, gemm, other)
    return _step_result(case, gemm, operands, first, hardware)


def step_sums(case: Case, gemm: str, operands: tuple[Array, Array], hardware: Hardware) -> dict[str, Any]:
    """Return accumulators of a step's GEMM, both zero points that are in them, their sums and steps."""
    path = hardware.datapath_for(gemm)
    acc = run({"a": operands[0], "b": operands[1]}, path).codes.astype(np.int64) << path.dropped_bits
    zeros, steps = [], []
    for side, (port, _) in zip(("a", "b"), STEP_GEMMS[gemm][:2], strict=True):
        form = path.a_format if side == "a" else path.b_format
        moved = 0
        if case.parameters[port]["zero"] != "symmetric":
            moved = form.minimum - IntFormat.parse(case.parameters[port]["format"]).minimum
        held = path.zero_point is ZeroPoint.AFTER_ACCUMULATE
        zeros.append(int(case.expected[f"{port}.zero_point"]) + moved if held else 0)
        steps.append(np.float32(case.expected[f"{port}.step"]))
    a, b = (operand.astype(np.int64) for operand in operands)
    return {"acc": acc, "zeros": zeros, "steps": steps, "of_a": a.sum(axis=1)[:, None], "of_b": b.sum(axis=0)[None, :],
            "k": a.shape[1]}  # fmt: skip


def corrected(sums: dict[str, Any], *, a: int = 1, b: int = 1, both: int = 1) -> Array:
    """Return accumulators without what zero points add to them; a factor of 0 leaves one correction out."""
    za, zb = sums["zeros"]
    found: Array = sums["acc"] - a * za * sums["of_b"] - b * zb * sums["of_a"] + both * sums["k"] * za * zb
    return found


def _step_result(
    case: Case, gemm: str, operands: tuple[Array, Array], first: Mismatch, hardware: Hardware
) -> Derivation:
    row, col = first.index[::-1] if gemm == "wgrad" else first.index  # dw is the transposed product
    sums = step_sums(case, gemm, operands, hardware)
    (za, zb), k = sums["zeros"], sums["k"]
    of_a, of_b = int(sums["of_a"][row, 0]), int(sums["of_b"][0, col])
    lines = [
        ("accumulator", str(int(sums["acc"][row, col])), f"{gemm}.codes[{row}, {col}], dropped bits restored"),
        ("zero point of a, sum of b", f"{za}, {of_b}", f"take off {za * of_b}"),
        ("zero point of b, sum of a", f"{zb}, {of_a}", f"take off {zb * of_a}"),
        ("both zero points, K times", f"{k * za * zb}", "add"),
    ]
    value = int(corrected(sums)[row, col])
    a_step, b_step = (float(step) for step in sums["steps"])
    return derivation.of_scaling(str(list(first.index)), value, a_step, b_step, None, lines)
