"""Golden sets: the faults that they reject, and sets that are refused because they would not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden_sets import golden

from fqtsim.backends import get_backend
from fqtsim.errors import InputError
from fqtsim.golden.case import GoldenSet, kernel_arguments
from fqtsim.golden.coverage import unlimited_datapath
from fqtsim.golden.make import make_golden
from fqtsim.golden.vacuity import FAULTS, accepted_faults, refuse_vacuous
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Datapath
from fqtsim.words import Overflow

Array = np.ndarray[Any, Any]


def runs(datapath: Datapath, **change: Callable[[Array], Array]) -> Callable[..., Array]:
    """Return a kernel that runs another datapath, or the operands after a change."""

    def kernel(a: Array, b: Array, c: Array | None = None) -> Array:
        a, b = change.get("a", lambda x: x)(a), change.get("b", lambda x: x)(b)
        return get_backend("stepwise").gemm(np.ascontiguousarray(a), np.ascontiguousarray(b), datapath, c).codes

    return kernel


def lost_terms(multiple: int) -> Callable[[Array, int], Array]:
    return lambda x, axis: x.take(range(x.shape[axis] // multiple * multiple), axis)


def mutants() -> dict[str, Callable[..., Array]]:
    hardware = load_hardware("int8_acc12_saturate")
    right = hardware.datapath_for("fprop")
    wide = unlimited_datapath(right)

    def saturated_at_the_end(a: Array, b: Array, c: Array | None = None) -> Array:
        return np.clip(runs(wide)(a, b, c), -2048, 2047)

    def split(parts: int) -> Callable[..., Array]:
        def kernel(a: Array, b: Array, c: Array | None = None) -> Array:
            total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c
            for part in np.array_split(np.arange(a.shape[1]), parts):
                total = total + runs(right)(a[:, part], b[part])
            return np.clip(total, -2048, 2047)

        return kernel

    def lost(multiple: int) -> Callable[..., Array]:
        keep = lost_terms(multiple)
        return lambda a, b, c=None: runs(right)(keep(a, 1), keep(b, 0), c)

    def register(bits: int, overflow: Overflow = Overflow.SATURATE) -> Datapath:
        level = right.levels[0].model_copy(update={"register_word": f"int{bits}", "overflow": overflow})
        return right.model_copy(update={"levels": (level,)})

    def narrow(a: Array, b: Array, c: Array | None = None) -> Array:
        start = c if c is None or bits_fit(c, 11) else np.clip(c, -1024, 1023)
        return runs(register(11))(a, b, start)

    return {
        "wrap": runs(register(12, Overflow.WRAP)),
        "one bit more": runs(register(13)),
        "one bit less": narrow,
        "k backwards": runs(right, a=lambda a: a[:, ::-1], b=lambda b: b[::-1]),
        "even k first": runs(right, a=lambda a: np.hstack([a[:, ::2], a[:, 1::2]]),
                             b=lambda b: np.vstack([b[::2], b[1::2]])),
        "saturated once": saturated_at_the_end,
        "split in 2": split(2),
        "split in 4": split(4),
        "last k lost": lambda a, b, c=None: runs(right)(a[:, :-1], b[:-1], c),
        **{f"k down to a multiple of {multiple}": lost(multiple) for multiple in (4, 8, 16, 32, 64)},
        "a read as signed": runs(right, a=lambda a: np.clip(a.astype(np.int8), 0, None).astype(np.uint8)),
        "start ignored": lambda a, b, c=None: runs(right)(a, b),
        "symmetric": lambda a, b, c=None: np.maximum(runs(right)(a, b, c), -2047),
        "float16": lambda a, b, c=None: runs(right)(a, b, c).astype(np.float16).astype(np.int64) // 2 * 2,
        "zero beyond 1000 terms": lambda a, b, c=None: runs(right)(a[:, :1000], b[:1000], c),
    }  # fmt: skip


def bits_fit(values: Array, bits: int) -> bool:
    return bool((np.abs(values) < 1 << (bits - 1)).all())


@pytest.mark.parametrize("name", list(mutants()))
def test_the_set_rejects_a_faulty_gemm(name: str) -> None:
    kernel = mutants()[name]
    made = golden("int8_acc12_saturate")
    wrong = [
        case.name
        for case in made.cases
        if not case.is_large and not np.array_equal(kernel(**kernel_arguments(case)), case.expected["codes"])
    ]
    assert wrong
    assert runs(made.hardware.datapath_for("fprop"))(**kernel_arguments(made.cases[0])).shape


def test_the_set_rejects_float32_accumulation_and_31_bits_on_wide_registers() -> None:
    made = golden("int8_acc32_wrap")
    cases = [case for case in made.cases if not case.is_large]
    products = [(case, np.float32(case.inputs["a"]), np.float32(case.inputs["b"])) for case in cases]

    def in_float32(a: Array, b: Array) -> Array:
        total = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for k in range(a.shape[1]):
            total = total + a[:, k : k + 1] * b[k : k + 1]
        return total.astype(np.int64)

    wrong = [
        case.name
        for case, a, b in products
        if "c" not in case.inputs and not np.array_equal(in_float32(a, b), case.expected["codes"])
    ]
    assert "powers_of_two" in wrong
    assert not {"random_full", "k_128"} & set(wrong)  # this is what random data misses


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["int8_acc24_saturate", "dropping"])
def test_vacuous_answers_fail_many_cases(name: str, fault: str) -> None:
    made = golden(name)
    failed = 0
    for case in made.cases:
        right = case.expected["codes"]
        wrong = FAULTS[fault](case, "codes", right, made.hardware)
        failed += wrong is not None and not np.array_equal(wrong, right)
    assert failed >= 3, failed


def lonely(a: list[list[int]], b: list[list[int]]) -> GoldenSet:
    """A set of one case on an exact-enough hardware, as a stranger might make it."""
    made = golden("int8_acc24_saturate")
    inputs = {"a": np.array(a, np.uint8), "b": np.array(b, np.int8)}
    result = get_backend("stepwise").gemm(inputs["a"], inputs["b"], made.hardware.datapath_for("fprop"))
    case = replace(made.cases[0], name="mine", inputs=inputs, expected={"codes": result.codes})
    return replace(made, cases=(case,))


@pytest.mark.parametrize(
    ("a", "b", "accepted"),
    [
        ([[0, 0], [0, 0]], [[1, 2], [3, 4]], "zeros"),
        ([[1, 2], [1, 2]], [[1, 1], [3, 3]], "one constant"),
        ([[1, 0], [0, 2]], [[1, 0], [0, 4]], "transposed outputs"),
        ([[1, 2], [3, 4]], [[1, 5], [7, 2]], "an upper rail one too low"),
    ],
)
def test_a_set_that_proves_nothing_is_refused(a: list[list[int]], b: list[list[int]], accepted: str) -> None:
    weak = lonely(a, b)
    assert f"gemm: {accepted}" in accepted_faults(weak)
    with pytest.raises(InputError, match=accepted):
        refuse_vacuous(weak)
    refuse_vacuous(golden("int8_acc24_saturate"))


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(InputError, match="has no cases"):
        refuse_vacuous(replace(golden("int8_acc24_saturate"), cases=()))


def test_a_set_without_start_values_that_reaches_no_rail_is_refused() -> None:
    wide = load_hardware("int8_acc24_saturate", {"gemms.fprop.levels": [
        {"terms": "all", "register": "int60", "overflow": "saturate"}]})  # fmt: skip
    with pytest.raises(InputError, match="an upper rail one too low"):
        make_golden(wide, start=False, large=False)
    assert make_golden(wide, large=False).cases
