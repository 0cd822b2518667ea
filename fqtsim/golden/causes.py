"""The likely causes of a failed check: computations that give the outputs of the kernel, to the bit.

GEMMs, requantizations and scalings go through fqtsim.identify, convolutions through the GEMMs that they are; the
usual faults of convolutions and quantizers are tried beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fqtsim.api.compare import said
from fqtsim.api.explain import steps_under
from fqtsim.golden.case import Array, Case
from fqtsim.golden.convolution import ORDER_OF_K, Convolution
from fqtsim.hw.spec import Hardware
from fqtsim.ref.gemm import dot
from fqtsim.words import GEMMS

if TYPE_CHECKING:
    from fqtsim.golden.check import CaseResult

MOST_CASES = 8
"""Failing cases, and passing ones, that a cause must agree with; of GEMMs all."""
MOST_PRODUCTS = 1 << 23

Steps = Callable[["CaseResult"], "Sequence[Any] | None"]


class Likely(NamedTuple):
    """Sentences, one a suggestion, and by kind the additions of a first wrong output under the first of them."""

    texts: tuple[str, ...]
    steps: dict[str, Steps]


def likely_causes(results: Sequence[CaseResult], hardware: Hardware) -> Likely:
    """Return suggestions for every kind that differs, simplest first; one that says so where nothing tried fits.

    A cause of a GEMM, a convolution, or of codes of a quantizer must reproduce the outputs of failing and of passing
    cases of its kind alike; one of an output stage, of a scaled linear layer, or of y, dx or dw of a step those of the
    cases that differ, and its text says so. No sentence for a kind of which no cause can be tried.
    """
    kinds = dict.fromkeys(result.case.kind for result in results if result.mismatch is not None)
    texts: list[str] = []
    steps: dict[str, Steps] = {}
    for kind in kinds:
        usable = [result for result in results if _is_usable(result, kind)]
        find = _FINDERS.get("conv" if kind in ORDER_OF_K else kind)
        # Of GEMMs every case takes part: a fault under a condition must not be taken for one without.
        tried = usable if kind == "gemm" else _chosen(usable)
        found = find(tried, hardware) if find and any(not result.equal for result in usable) else None
        if found is None:
            continue
        texts += [f"{kind}: {text}" if len(kinds) > 1 else text for text in found[0]]
        if found[1] is not None:
            steps[kind] = found[1]
    return Likely(tuple(texts), steps)


def steps_of(likely: Likely, result: CaseResult) -> Sequence[Any] | None:
    """Return the additions of a case's first wrong output under the first suggestion; None where there are none."""
    find = likely.steps.get(result.case.kind)
    plain = result.name == result.case.name and not result.case.is_large
    return find(result) if find is not None and plain and result.mismatch is not None else None


Found = tuple[Sequence[str], Steps | None]


def _is_usable(result: CaseResult, kind: str) -> bool:
    from fqtsim.golden.check import size

    case = result.case
    if case.kind != kind or result.fault is not None or result.name != case.name:
        return False
    # Only a long K shows some faults of GEMMs; its arrays are made when they are asked for.
    return (kind == "gemm" or not case.is_large) and size(case) <= MOST_PRODUCTS


def _chosen(usable: Sequence[CaseResult]) -> list[CaseResult]:
    """Return failing cases, the smallest and the largest, and the largest passing ones, which say most."""
    from fqtsim.golden.check import size

    ordered = sorted(usable, key=lambda result: size(result.case))
    failing = [result for result in ordered if not result.equal]
    half = MOST_CASES // 2
    # The largest tell sizes of tiles apart, the smallest are quick to refuse a change.
    return [*failing[:half], *failing[half:][-half:], *[result for result in ordered if result.equal][-MOST_CASES:]]


def _got(result: CaseResult, name: str = "codes") -> Array:
    """Return what the kernel gave for an output: that of the set where it is equal."""
    return np.asarray(result.observed.get(name, result.case.expected[name]))


def _where(results: Sequence[CaseResult]) -> str:
    """Return on which outputs a suggestion was tried, in words."""
    outputs = sum(next(iter(result.case.expected.values())).size for result in results)
    cases = f"{len(results)} cases" if len(results) > 1 else "this case"
    return f"(reproduces all {outputs:,} outputs of {cases})"


def _where_differing(failing: Sequence[CaseResult]) -> str:
    """Return the same of causes that were not tried on the cases that are equal."""
    return _where(failing).replace(" cases)", " cases that differ)").replace("this case)", "the case that differs)")


def _or_none(texts: Sequence[str]) -> Sequence[str]:
    from fqtsim.identify.search import NONE_OF_THESE

    return texts or (NONE_OF_THESE,)


# GEMMs and convolutions.


def _of_products(seen: Sequence[Any], hardware: Hardware, gemm: str, where: str) -> tuple[list[str], Any]:
    """Return sentences for GEMMs of one datapath, and the first change that reproduces them."""
    from fqtsim.identify.search import NONE_OF_THESE, explain_mismatches

    causes = explain_mismatches(seen, hardware.datapath_for(gemm), partial=True)
    total = sum(int(np.asarray(one.observed).size) for one in seen)
    texts = [said(cause, total, where) for cause in causes]
    fits = bool(causes) and causes[0].reproduces_all
    return (texts if fits else [NONE_OF_THESE, *texts]), causes[0].change if fits else None


def _of_gemms(results: Sequence[CaseResult], hardware: Hardware) -> Found:
    from fqtsim.identify.change import Problem
    from fqtsim.identify.search import Observation

    seen = [
        Observation(result.case.inputs["a"], result.case.inputs["b"], _got(result), result.case.inputs.get("c"))
        for result in results
    ]
    gemm = results[0].case.parameters["gemm"]
    where = f"{len(seen)} cases" if len(seen) > 1 else "this case"
    texts, change = _of_products(seen, hardware, gemm, where)
    if change is None:
        return texts, None

    def steps(result: CaseResult) -> Sequence[Any] | None:
        inputs = result.case.inputs
        a, b, c = inputs["a"].astype(np.int32), inputs["b"].astype(np.int32), inputs.get("c")
        start = None if c is None else c.astype(np.int64)
        first = result.mismatch
        problem = Problem(a, b, start, hardware.datapath_for(gemm))
        return None if first is None else steps_under(change, problem, first.index[0], first.index[1])

    return texts, steps


def _of_convolutions(results: Sequence[CaseResult], hardware: Hardware) -> Found:
    from fqtsim.golden.convolution_causes import fitting
    from fqtsim.identify.change import Problem
    from fqtsim.identify.search import Observation

    gemm = results[0].case.kind.removeprefix("conv_")
    path = hardware.datapath_for(gemm)
    pairs = [(Convolution.of(result.case), _got(result)) for result in results]
    found = fitting(pairs, path)
    if found:
        flaw = found[0][1]

        def wrong_steps(result: CaseResult) -> Sequence[Any] | None:
            conv = Convolution.of(result.case)
            group, row, col = conv.place(result.mismatch.index)  # type: ignore[union-attr]
            a, b = (flaw(conv) or conv).matrices(group)
            return dot(a[row].tolist(), b[:, col].tolist(), path.levels).steps

        return [f"{text} {_where(results)}" for text, _ in found], wrong_steps
    seen = [
        Observation(*conv.matrices(group), conv.as_matrix(codes, group))
        for conv, codes in pairs for group in range(conv.groups)
    ]  # fmt: skip
    where = f"{len(results)} cases" if len(results) > 1 else "this case"
    texts, change = _of_products(seen, hardware, gemm, where)
    if change is None:
        return texts, None

    def steps(result: CaseResult) -> Sequence[Any] | None:
        conv = Convolution.of(result.case)
        group, row, col = conv.place(result.mismatch.index)  # type: ignore[union-attr]
        a, b = (matrix.astype(np.int32) for matrix in conv.matrices(group))
        return steps_under(change, Problem(a, b, None, path), row, col)

    return texts, steps


# Quantizers, output stages, scalings.


def _of_requantizations(results: Sequence[CaseResult], hardware: Hardware) -> Found:
    from fqtsim.golden.first_wrong import ARGUMENTS
    from fqtsim.identify import explain_requantization

    shared: dict[str, None] | None = None
    failing = [result for result in results if not result.equal]
    for result in failing:
        arguments = {name: result.case.parameters[name] for name in ARGUMENTS if name in result.case.parameters}
        causes = explain_requantization(result.case.inputs["acc"], hardware, _got(result), **arguments)
        texts = [cause.text for cause in causes if cause.reproduces_all]
        shared = dict.fromkeys(texts if shared is None else (text for text in shared if text in texts))
    return _or_none([f"{text} {_where_differing(failing)}" for text in shared or ()]), None


def _of_quantizers(results: Sequence[CaseResult], hardware: Hardware) -> Found | None:
    seen = []
    used = []
    for result in results:
        case = result.case
        given = {
            name: _got(result, name) for name in ("codes", "step", "zero_point") if name not in result.not_compared
        }
        one = _call(case, "x", case.parameters, case.inputs.get("rand_bits"), "")
        if one is not None:
            seen.append((one, given))
            used.append(result)
    if not any(not result.equal for result in used):
        return None
    return _or_none([f"{text} {_where(used)}" for text in _fitting_quantizers(seen)]), None


def _fitting_quantizers(seen: Sequence[tuple[Any, dict[str, Array]]]) -> list[str]:
    """Return the flaws that fit every call, each tried with the flaws of its own rounding."""
    from fqtsim.golden.quantize_causes import fitting, gives_right

    shared: list[str] | None = None
    for rounding in dict.fromkeys(call.rounding for call, _ in seen):
        part = [(call, got) for call, got in seen if call.rounding is rounding]
        if all(gives_right(call, got) for call, got in part):
            continue  # the fault does not show under this rounding
        texts = fitting(part)
        shared = texts if shared is None else [text for text in shared if text in texts]
    return shared or []


def _call(case: Case, tensor: str, parameters: Any, words: Array | None, prefix: str) -> Any:
    from fqtsim.golden.quantize_causes import prepared

    expected = case.expected
    return prepared(case.inputs[tensor], dict(parameters), words, expected[f"{prefix}step"],
                    expected[f"{prefix}zero_point"])  # fmt: skip


def _of_scaled(results: Sequence[CaseResult], hardware: Hardware) -> Found:
    from fqtsim.golden.first_wrong import scaled_sums
    from fqtsim.identify import explain_scaling

    shared: dict[str, None] | None = None
    failing = [result for result in results if not result.equal]
    for result in failing:
        inputs = result.case.inputs
        causes = explain_scaling(scaled_sums(result.case, hardware), inputs["row_step"], inputs["column_step"],
                                 _got(result, "y"), inputs.get("bias"))  # fmt: skip
        texts = [cause.text for cause in causes]
        shared = dict.fromkeys(texts if shared is None else (text for text in shared if text in texts))
    return _or_none([f"{text} {_where_differing(failing)}" for text in shared or ()]), None


# A linear layer step.


def _of_steps(results: Sequence[CaseResult], hardware: Hardware) -> Found | None:
    """Return causes for the first output, in the order of computation, that is wrong in any case."""
    from fqtsim.golden.first_wrong import PORT_TENSORS, in_logical_order, step_operands
    from fqtsim.identify.search import Observation

    wrong = {name for result in results for name in result.observed}
    output = next(name for name in in_logical_order(results[0].case) if name in wrong)
    head, _, what = output.partition(".")
    whole = _where(results).replace("outputs", f"elements of {output}", 1) if len(results) == 1 else ""
    if head in PORT_TENSORS and what:
        seen = [
            (call, {"codes": _got(result, f"{head}.codes")})
            for result in results
            for call in (_call(result.case, PORT_TENSORS[head], result.case.parameters[head],
                               result.case.inputs.get(f"rand_bits_{head}"), f"{head}."),)
            if call is not None
        ]  # fmt: skip
        return _or_none([f"port {head}: {text} {whole}".rstrip() for text in _fitting_quantizers(seen)]), None
    if what:
        seen_products = []
        for result in results:
            operands = step_operands(result.case, hardware, head)
            if operands is not None:
                seen_products.append(Observation(*operands, _got(result, output)))
        if not seen_products:
            return None
        texts, _ = _of_products(seen_products, hardware, head, f"GEMM {head}")
        return [f"{head}: {text}" for text in texts], None
    return _of_step_results(results, hardware, head)


def _of_step_results(results: Sequence[CaseResult], hardware: Hardware, output: str) -> Found | None:
    from fqtsim.golden.first_wrong import STEP_GEMMS, corrected, step_operands, step_sums
    from fqtsim.identify import explain_scaling

    gemm = next(name for name in GEMMS if STEP_GEMMS[name][2] == output)
    kept = {"": {}, "the zero point of a is not taken off": {"a": 0, "both": 0},
            "the zero point of b is not taken off": {"b": 0, "both": 0},
            "zero points are not taken off": {"a": 0, "b": 0, "both": 0},
            "K times both zero points is not added": {"both": 0}}  # fmt: skip
    shared: list[str] | None = None
    tried, elements = 0, 0
    for result in results:
        operands = step_operands(result.case, hardware, gemm)
        if result.equal or output not in result.observed or operands is None:
            continue
        tried, elements = tried + 1, elements + result.observed[output].size
        sums, found = step_sums(result.case, gemm, operands, hardware), _got(result, output)
        found = found.T if gemm == "wgrad" else found
        texts = []
        scale = np.float64(sums["steps"][0]) * np.float64(sums["steps"][1])
        for text, factors in kept.items():
            integers = corrected(sums, **factors)
            if text and np.array_equal((integers * scale).astype(np.float32), found):
                texts.append(text)
        texts += [cause.text for cause in explain_scaling(corrected(sums), sums["steps"][0], sums["steps"][1], found)]
        shared = texts if shared is None else [text for text in shared if text in texts]
    if shared is None:
        return None
    cases = f"{tried} cases that differ" if tried > 1 else "the case that differs"
    where = f"(reproduces all {elements:,} elements of {output} of {cases})"
    return _or_none([f"{output}: {text} {where}" for text in shared]), None


_FINDERS: dict[str, Callable[[Sequence[Any], Hardware], Found | None]] = {
    "gemm": _of_gemms, "conv": _of_convolutions, "quantize": _of_quantizers, "requantize": _of_requantizations,
    "scaled_linear": _of_scaled, "linear_step": _of_steps,
}  # fmt: skip
