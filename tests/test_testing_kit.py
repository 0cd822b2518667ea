"""The kit can fail: every law has a function that breaks it, and every fault in a backend is found and located."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mac import chain, datapath, hardware

import fqtsim
from fqtsim.backends import Backend, GemmResult, get_backend
from fqtsim.errors import InputError
from fqtsim.hw.load import dump_hardware, parse_hardware
from fqtsim.hw.spec import Datapath, Hardware
from fqtsim.ref.fixed import into_register, round_shift
from fqtsim.testing import (
    assert_bitexact,
    check_overflow,
    check_rounding,
    codes,
    datapaths,
    formats,
    hardware_files,
    operands,
)
from fqtsim.words import IntFormat, Overflow, Rounding

Array = np.ndarray[Any, Any]
FIXED = [rounding for rounding in Rounding if rounding is not Rounding.STOCHASTIC]


# --- rounding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("promised", FIXED)
def test_every_other_word_breaks_a_promise(promised: Rounding) -> None:
    for actual in FIXED:
        if actual is not promised:
            with pytest.raises(AssertionError, match=rf"^{promised}: f\("):
                check_rounding(lambda code, shift, word=actual: round_shift(code, shift, word), promised)


def plain(code: int, shift: int) -> int:
    return code >> shift


BROKEN: list[tuple[Callable[..., int], str, dict[str, Any], str]] = [
    (lambda code, shift: (code >> shift) + (code == 37), "toward_negative", {},
     "toward_negative: f(37, 0) = 38, but 37 / 2**0 = 37 is an integer and must stay"),
    (lambda code, shift: (code >> shift) - (code == 37 and shift == 2), "toward_negative", {},
     "toward_negative: f(37, 2) = 8, but 37 / 2**2 = 9.25 lies between 9 and 10"),
    (lambda code, shift: round_shift(code, shift, Rounding.TOWARD_NEGATIVE), "ties_to_even", {},
     "ties_to_even: f(-1, 1) = -1, but -1 / 2**1 = -0.5 is a tie and goes to the even neighbour, 0"),
    (lambda code, shift: int(code / 2**shift), "toward_negative", {},
     "toward_negative: f(-1, 1) = 0, but -1 / 2**1 = -0.5 goes to the lower neighbour, -1"),
    (lambda code, shift: round_shift(code, shift, Rounding.TO_ODD) + (code == 33 and shift == 6), "to_odd", {},
     "to_odd: f(33, 6) = 2, but 33 / 2**6 = 0.515625 lies between 0 and 1"),
    (lambda code, shift: code >> shift, "ties_to_zero", {"shifts": [2]},
     "ties_to_zero: f(-1, 2) = -1, but -1 / 2**2 = -0.25 is nearer to 0"),
    (lambda code, shift, word: (code + (word << shift >> 4) + 1) >> shift, "stochastic", {"shifts": [2]},
     "stochastic: f(0, 2, 12) = 1, but 0 / 2**2 = 0 is an integer and must stay"),
    (lambda code, shift, word: (code + (1 << shift >> 1)) >> shift, "stochastic", {"shifts": [1]},
     "stochastic: the mean of f(-1, 1, r) over all 16 words r is 0/16; it must be -8/16"),
    (lambda code, shift, word: (code >> shift) + (code % 4 == word % 4 == 3), "stochastic", {"shifts": [2]},
     "stochastic: the mean of f(-1, 2, r) over all 16 words r is -12/16; it must be -4/16"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "word", "options", "text"), BROKEN, ids=[case[3] for case in BROKEN])
def test_a_broken_rounding_is_named(function: Any, word: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_rounding(function, word, **options)
    assert str(error.value) == text


def test_a_stochastic_rounding_must_be_monotone_for_each_word() -> None:
    def tossed(code: int, shift: int, word: int) -> int:
        """Exact mean, but which words round up depends on the code, so that neighbours change places."""
        low, fraction = code >> shift, (code << 4 >> shift) & 15
        return low + (15 - word < fraction if code % 2 else word < fraction)

    with pytest.raises(
        AssertionError, match=r"^stochastic, rand_bits = 0: f\(-511, 2\) = -128 > .* not monotone$|not monotone$"
    ):
        check_rounding(tossed, "stochastic", shifts=[2])


def test_other_unbiased_stochastic_roundings_pass() -> None:
    """Which words round up is the hardware's business: adding the word and truncating is as good."""
    check_rounding(lambda code, shift, word: ((code << 4 >> shift) + word) >> 4, "stochastic")
    check_rounding(lambda code, shift, word: ((code << 4 >> shift) + 15 - word) >> 4, "stochastic", "uint6")


def test_functions_of_numpy_integers_are_fine() -> None:
    check_rounding(lambda code, shift: np.int16(code) >> np.int16(shift), "toward_negative", "int16")
    check_overflow(lambda value: np.clip(np.int64(value), -128, 127), "int8", "saturate")


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (lambda: check_rounding(plain, "floor"), f"rounding = 'floor': must be one of {', '.join(Rounding)}"),
        (lambda: check_rounding(plain, "stochastic", n_bits=20),
         "n_bits = 20: must be 1..16, since every random word is tried"),
        (lambda: check_overflow(abs, "int8", "clip"), f"overflow = 'clip': must be one of {', '.join(Overflow)}"),
        (lambda: check_overflow(abs, "uint8", "saturate_symmetric"),
         "overflow = saturate_symmetric: needs a signed format, not uint8; use saturate"),
        (lambda: check_overflow(abs, "int0", "wrap"),
         "format = 'int0': must be intN or uintN with N in 1..64; for example int8"),
        (lambda: formats(min_bits=5, max_bits=4),
         "min_bits = 5, max_bits = 4: must be 1 <= min_bits <= max_bits <= 64"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(check: Callable[[], object], text: str) -> None:
    with pytest.raises(InputError) as error:
        check()
    assert str(error.value) == text


# --- overflow --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int2", "uint3", "int8", "uint16", "int40"])
@pytest.mark.parametrize("promised", list(Overflow))
def test_every_other_overflow_breaks_a_promise(name: str, promised: Overflow) -> None:
    form = IntFormat.parse(name)
    words = [word for word in Overflow if form.signed or word is not Overflow.SATURATE_SYMMETRIC]
    if promised not in words:
        promised = Overflow.SATURATE
    check_overflow(lambda value: into_register(value, form, promised), form, promised)
    for actual in words:
        if actual is not promised:
            with pytest.raises(AssertionError, match=rf"^{promised} into {form}: f\("):
                check_overflow(lambda value, word=actual: into_register(value, form, word), form, promised)


def wrap8(value: int) -> int:
    return (value + 128) % 256 - 128


@pytest.mark.parametrize(
    ("function", "overflow", "text"),
    [
        (lambda value: value, "saturate", "saturate into int8: f(128) = 128: outside -128..127"),
        (lambda value: max(-127, min(127, value)), "saturate",
         "saturate into int8: f(-128) = -127: a code of the format must stay as it is"),
        (lambda value: 0 if value > 127 else max(-128, value), "saturate",
         "saturate into int8: f(128) = 0: must be the rail 127"),
        (lambda value: wrap8(value) + (value == 300), "wrap", "wrap into int8: f(300) = 45: not congruent modulo 2**8"),
        (lambda value: wrap8(value) if value != -1000 else 280, "wrap",
         "wrap into int8: f(-1000) = 280: outside -128..127"),
    ],
)  # fmt: skip
def test_a_broken_overflow_is_named(function: Any, overflow: str, text: str) -> None:
    with pytest.raises(AssertionError) as error:
        check_overflow(function, "int8", overflow)
    assert str(error.value) == text


def test_a_function_that_remembers_is_not_idempotent() -> None:
    seen: set[int] = set()

    def forgetful(value: int) -> int:
        again = value in seen
        seen.add(value)
        return value + 1 if again and value == 5 else max(-128, min(127, value))

    with pytest.raises(AssertionError) as error:
        check_overflow(forgetful, "int8", "saturate")
    assert str(error.value) == "saturate into int8: f(5) = 5, but f(5) = 6: not idempotent"


def test_the_largest_value_is_the_caller_s() -> None:
    tried: list[int] = []

    def noted(value: int) -> int:
        tried.append(value)
        return max(-128, min(127, value))

    check_overflow(noted, "int8", "saturate", largest=200)
    assert (min(tried), max(tried)) == (-200, 200)


# --- strategies ------------------------------------------------------------------------------------------------------


@given(st.data(), formats(2, 12), st.sampled_from(list(Overflow)))
def test_codes_are_in_their_format(data: st.DataObject, form: IntFormat, overflow: Overflow) -> None:
    assert 2 <= form.bits <= 12
    if form.signed or overflow is not Overflow.SATURATE_SYMMETRIC:
        low, high = form.rails(overflow)
        assert low <= data.draw(codes(form, overflow)) <= high


def test_codes_visit_the_corners() -> None:
    seen: list[int] = []

    @settings(max_examples=400, database=None, derandomize=True)
    @given(codes("int16"))
    def collect(code: int) -> None:
        seen.append(code)

    collect()
    corners = {0, 1, -1, -(2**15), -(2**15) + 1, 2**15 - 1, 2**14, -(2**13)}
    assert corners <= set(seen)
    assert len(set(seen)) > 100


def test_datapaths_and_operands_reach_everything() -> None:
    """Every word, grouping and depth is drawn, and a good share of operands overflows, some of them in passing."""
    words: set[Any] = set()
    counts = {"cases": 0, "altered": 0, "transient": 0, "rail": 0, "start": 0, "empty": 0}

    @settings(max_examples=300, database=None, derandomize=True)
    @given(st.data(), datapaths())
    def collect(data: st.DataObject, path: Datapath) -> None:
        a, b, c = data.draw(operands(path))
        assert a.dtype == path.multiplier_format("a").storage
        assert b.dtype == path.multiplier_format("b").storage
        for operand, form in ((a, path.multiplier_format("a")), (b, path.multiplier_format("b"))):
            assert not operand.size or (form.minimum <= operand.min() and operand.max() <= form.maximum)
        result = get_backend("stepwise").gemm(a, b, path, c)
        words.update({path.zero_point, len(path.levels)})
        for one in path.levels:
            words.update({one.grouping, one.overflow, one.item.rounding if one.item else None})
        counts["cases"] += 1
        counts["altered"] += result.events.altered > 0
        counts["transient"] += result.events.transient > 0
        counts["rail"] += result.at_rail > 0
        counts["start"] += c is not None
        counts["empty"] += a.shape[1] == 0

    collect()
    assert {1, 2, 3, 4, "none", "before_multiply", "after_accumulate", "all", "terms", "parts", "lanes"} <= words
    assert {None, *Overflow} <= words
    assert set(FIXED) <= words
    assert counts["altered"] >= counts["cases"] // 4, counts
    assert counts["transient"] >= counts["cases"] // 20, counts
    assert min(counts["rail"], counts["start"], counts["empty"]) >= 5, counts


@given(hardware_files())
def test_hardware_files_survive_the_loader(text: str) -> None:
    described = parse_hardware(text)
    assert parse_hardware(dump_hardware(described)).model_dump() == described.model_dump()
    for gemm in ("fprop", "dgrad", "wgrad"):
        path = described.datapath_for(gemm)
        assert path.accumulator.grouping == "all"


def test_without_hypothesis_the_kit_names_the_extra() -> None:
    program = (
        "import sys\nsys.modules['hypothesis'] = None\n"
        "import importlib.util as u\nreal = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'hypothesis' else real(name, *more)\n"
        "import fqtsim.testing"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.strip().endswith(
        "MissingPackage: fqtsim.testing: needs the package hypothesis; pip install 'fqtsim[testing]'"
    )


# --- faults ----------------------------------------------------------------------------------------------------------

MAC = "terms 2 drop 1 ties_to_even exact, int12 saturate"


class Faulty(Backend):
    """Somebody's backend with one mistake in it."""

    name = "faulty"
    executor = "python"

    def __init__(self, fault: Callable[[Array, Array, Datapath, Array | None], Any]) -> None:
        self.fault = fault

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        found = self.fault(a, b, datapath, c)
        if isinstance(found, GemmResult):
            return found
        return get_backend("stepwise").gemm(*found)


def changed_chain(text: str) -> Callable[..., Any]:
    return lambda a, b, path, c: (a, b, path.model_copy(update={"levels": datapath(*chain(text)).levels}), c)


def one_product_off(a: Array, b: Array, path: Datapath, c: Array | None) -> Any:
    """The product of one place is too large by 2, as if one multiplier were broken."""
    wider = np.concatenate([a[:, :3], a[:, 2:3], a[:, 3:]], axis=1)
    extra = np.concatenate([b[:3], np.zeros_like(b[:1]), b[3:]])
    wider[:, 3], extra[3, 1] = 1, 2
    levels = (path.levels[0].model_copy(update={"terms": None, "parts": None, "lanes": 1}), path.levels[-1])
    return wider, extra, path.model_copy(update={"levels": levels}), c


def one_code_off(a: Array, b: Array, path: Datapath, c: Array | None) -> Any:
    result = get_backend("stepwise").gemm(a, b, path, c)
    wrong = result.codes.copy()
    wrong[-1, -1] ^= 1
    return replace(result, codes=wrong)


FAULTS: dict[str, Callable[..., Any]] = {
    "one product off": one_product_off,
    "one code off": one_code_off,
    "wrap for saturate": changed_chain("terms 2 drop 1 ties_to_even exact, int12 wrap"),
    "symmetric rails": changed_chain("terms 2 drop 1 ties_to_even exact, int12 saturate_symmetric"),
    "one bit narrower": changed_chain("terms 2 drop 1 ties_to_even exact, int11 saturate"),
    "one bit wider": changed_chain("terms 2 drop 1 ties_to_even exact, int13 saturate"),
    "ties up": changed_chain("terms 2 drop 1 ties_to_positive exact, int12 saturate"),
    "truncation": changed_chain("terms 2 drop 1 toward_negative exact, int12 saturate"),
    "rounded after the sum": changed_chain("terms 2 exact, drop 1 ties_to_even int12 saturate"),
    "checked at each product": changed_chain("drop 1 ties_to_even int12 saturate"),
    "groups of four": changed_chain("terms 4 drop 1 ties_to_even exact, int12 saturate"),
    "lanes for groups": changed_chain("lanes 2 drop 1 ties_to_even exact, int12 saturate"),
    "k backwards": lambda a, b, path, c: (a[:, ::-1], b[::-1], path, c),
    "output transposed": lambda a, b, path, c: (b.T, a.T, path, None if c is None else c.T),
    "last product left out": lambda a, b, path, c: (a[:, :-1], b[:-1], path, c),
    "start value left out": lambda a, b, path, c: (a, b, path, None),
    "start value in other units": lambda a, b, path, c: (a, b, path, c // 2),
    "unsigned operand": lambda a, b, path, c: (a.astype(np.uint8).astype(np.int64), b, path, c),
}


@pytest.fixture
def job() -> tuple[Hardware, Array, Array, Array]:
    random = np.random.RandomState(7)
    # Some rows swing far out and back, some stay small, and products are often odd.
    a, b = random.randint(-128, 128, (8, 24)), random.randint(-40, 41, (24, 8))
    a[4:] //= 16
    c = random.choice([-2048, 2047, 5, -6, 1000], (8, 8))
    return hardware(*chain(MAC)), a.astype(np.int8), b.astype(np.int8), c


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_located(fault: str, job: tuple[Hardware, Array, Array, Array]) -> None:
    described, a, b, c = job
    right = fqtsim.gemm(a, b, described, backend="reference", c=c).codes
    wrong = fqtsim.gemm(a, b, described, backend=Faulty(FAULTS[fault]), c=c).codes
    places = np.argwhere(right != wrong)
    assert len(places)
    row, col = places[0]
    found = fqtsim.compare(a, b, described, wrong, c=c)
    assert (found.equal, found.row, found.col, found.mismatches) == (False, row, col, len(places))
    assert (found.expected, found.observed) == (right[row, col], wrong[row, col])
    assert found.explanation is not None
    assert found.explanation.code == right[row, col]
    with pytest.raises(AssertionError, match=rf"^{len(places)} of 64 outputs differ; first at \[{row}, {col}\]:\n"):
        assert_bitexact(wrong, a, b, described, c=c)


@pytest.mark.parametrize("backend", ["reference", "stepwise", "emulator"])
def test_the_right_codes_pass(backend: str, job: tuple[Hardware, Array, Array, Array]) -> None:
    described, a, b, c = job
    out = fqtsim.gemm(a, b, described, backend=backend, c=c)
    assert_bitexact(out.codes, a, b, described, c=c)
    assert out.events.altered > 5
    assert out.events.transient > 0
