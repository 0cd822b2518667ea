"""The likely causes of a failed check, through identify: changes of the hardware that give the outputs of all cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fqtsim.hw.spec import Hardware

if TYPE_CHECKING:
    from fqtsim.golden.check import CaseResult

MOST_CASES = 8
"""Failing cases, and passing ones, that a cause must agree with."""
MOST_PRODUCTS = 1 << 23


def likely_causes(results: Sequence[CaseResult], hardware: Hardware) -> tuple[str, ...]:
    """Return sentences, one a suggestion, simplest first; one that says so where nothing tried fits.

    A cause must reproduce the outputs of failing and of passing cases alike. Empty where no case of a kind that can
    be tried, a GEMM or a requantization, has outputs.
    """
    failing = [result for result in results if result.mismatch is not None]
    if any(result.case.kind == "gemm" for result in failing):
        return _of_gemms(results, hardware)
    if any(result.case.kind == "requantize" for result in failing):
        return _of_requantizations([result for result in results if result.case.kind == "requantize"], hardware)
    return ()


def _of_gemms(results: Sequence[CaseResult], hardware: Hardware) -> tuple[str, ...]:
    from fqtsim.golden.check import size
    from fqtsim.identify.search import Observation, explain_mismatches, suggestions

    usable = [
        result for result in results
        if result.case.kind == "gemm" and result.fault is None and result.name == result.case.name
        and not result.case.is_large and size(result.case) <= MOST_PRODUCTS
    ]  # fmt: skip
    usable.sort(key=lambda result: size(result.case))
    failing = [result for result in usable if not result.equal]
    if not failing:
        return ()
    equal = [result for result in usable if result.equal]
    # Among the passing ones, the largest say most.
    # The largest tell sizes of tiles apart, the smallest are quick to refuse a change.
    half = MOST_CASES // 2
    chosen = [*failing[:half], *failing[half:][-half:], *equal[-MOST_CASES:]]
    gemm = failing[0].case.parameters["gemm"]
    seen = [
        Observation(case.inputs["a"], case.inputs["b"], result.observed.get("codes", case.expected["codes"]),
                    case.inputs.get("c"))
        for result in chosen
        for case in (result.case,)
    ]  # fmt: skip
    return suggestions(explain_mismatches(seen, hardware.datapath_for(gemm), partial=True))


def _of_requantizations(results: Sequence[CaseResult], hardware: Hardware) -> tuple[str, ...]:
    from fqtsim.identify import explain_requantization
    from fqtsim.identify.search import NONE_OF_THESE

    shared: dict[str, None] | None = None
    for result in results:
        if result.equal or result.fault is not None:
            continue
        names = ("multiplier", "shift", "scale", "zero_point")
        arguments = {name: result.case.parameters[name] for name in names if name in result.case.parameters}
        causes = explain_requantization(result.case.inputs["acc"], hardware, result.observed["codes"], **arguments)
        texts = [cause.text for cause in causes if cause.reproduces_all]
        shared = dict.fromkeys(texts if shared is None else (text for text in shared if text in texts))
    if shared is None:
        return ()
    return tuple(f"{text} (reproduces all outputs of every case that differs)" for text in shared) or (NONE_OF_THESE,)
