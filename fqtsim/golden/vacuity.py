"""Faults that any useful set must reject: a set that one of them passes would prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from fqtsim.errors import InputError
from fqtsim.golden.case import Array, Case, GoldenSet
from fqtsim.hw.spec import Hardware

MOST_ELEMENTS = 1 << 21
"""Arrays up to this size take part; the small cases must reject every fault by themselves."""

Fault = Callable[[Case, str, Array, Hardware], Array | None]
"""The wrong output in place of a right one; None where the fault has no meaning for it."""


def _zeros(case: Case, name: str, right: Array, hardware: Hardware) -> Array:
    return np.zeros_like(right)


def _start_values(case: Case, name: str, right: Array, hardware: Hardware) -> Array | None:
    if case.kind == "scaled_linear":
        return np.asarray(np.zeros_like(right) + case.inputs.get("bias", right.dtype.type(0)))
    if case.kind != "gemm":
        return None
    return case.inputs["c"].astype(right.dtype) if "c" in case.inputs else np.zeros_like(right)


def _constant(case: Case, name: str, right: Array, hardware: Hardware) -> Array:
    values, counts = np.unique(right, return_counts=True)
    return np.full_like(right, values[np.argmax(counts)]) if right.size else right


def _transposed(case: Case, name: str, right: Array, hardware: Hardware) -> Array | None:
    return None if right.ndim < 2 else np.swapaxes(right, -1, -2).reshape(right.shape)


def _shifted(axis: int | None) -> Fault:
    def fault(case: Case, name: str, right: Array, hardware: Hardware) -> Array | None:
        return None if axis is not None and right.ndim < 2 else np.roll(right, 1, axis)

    return fault


def _sign_flipped(case: Case, name: str, right: Array, hardware: Hardware) -> Array | None:
    return None if right.dtype.kind == "u" else -right


def _off_by_one(case: Case, name: str, right: Array, hardware: Hardware) -> Array:
    return right + np.ones((), right.dtype)


def _beside_rail(upper: bool) -> Fault:
    """The upper, or lower, rail of the accumulator comes out one code inside it."""

    def fault(case: Case, name: str, right: Array, hardware: Hardware) -> Array | None:
        if case.kind != "gemm":
            return None
        level = hardware.datapath_for(case.parameters["gemm"]).accumulator
        form = level.register_format
        if form is None:
            return None
        rail = form.rails(level.overflow)[upper]
        return np.where(right == rail, rail - 1 if upper else rail + 1, right)

    return fault


FAULTS: dict[str, Fault] = {
    "zeros": _zeros,
    "start values or bias alone": _start_values,
    "one constant": _constant,
    "transposed outputs": _transposed,
    "outputs shifted by one": _shifted(None),
    "rows shifted by one": _shifted(-2),
    "columns shifted by one": _shifted(-1),
    "flipped signs": _sign_flipped,
    "every code one higher": _off_by_one,
    "an upper rail one too low": _beside_rail(True),
    "a lower rail one too high": _beside_rail(False),
}


def accepted_faults(golden: GoldenSet) -> list[str]:
    """Return, as "KIND: FAULT", the faults that every case of a kind would pass; empty for a useful set."""
    found = []
    for kind in sorted({case.kind for case in golden.cases}):
        cases = [case for case in golden.cases if case.kind == kind]
        found += [f"{kind}: {name}" for name, fault in FAULTS.items() if _accepts(cases, fault, golden.hardware)]
    return found


def _accepts(cases: Iterable[Case], fault: Fault, hardware: Hardware) -> bool:
    """Tell whether no output of any case, or of the first that has a meaning for the fault, shows it."""
    meant = False
    for case in cases:
        if _too_large(case):
            continue
        for name, right in case.expected.items():
            wrong = fault(case, name, right, hardware)
            if wrong is None:
                continue
            meant = True
            if not np.array_equal(wrong, right):
                return False
    return meant


def _too_large(case: Case) -> bool:
    if case.seeded is None:
        return False
    arrays = [*case.seeded["inputs"].values(), *case.seeded["expected"].values()]
    return any(int(np.prod(array["shape"])) > MOST_ELEMENTS for array in arrays)


def refuse_vacuous(golden: GoldenSet) -> None:
    """Raise InputError where the set is empty, or would pass outputs that no kernel should give."""
    if not golden.cases:
        raise InputError("golden set: has no cases, so it proves nothing; make it with at least one kind")
    accepted = accepted_faults(golden)
    if accepted:
        raise InputError(
            f"golden set: would pass {'; '.join(accepted)}: such a set proves nothing; make it with start values, "
            "which reach every rail, and check that the hardware's outputs depend on its inputs"
        )
