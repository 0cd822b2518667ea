"""The cross-check finds a wrong bit and says where: every fault injected here must be caught and located."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fqtsim.backends import get_backend
from fqtsim.backends.base import Array, Backend, Events, GemmResult
from fqtsim.backends.primitives import Primitives
from fqtsim.backends.stepwise import Stepwise
from fqtsim.crosscheck import Coverage, crosscheck, locate
from fqtsim.crosscheck.locate import first_wrong_sum, hex_code
from fqtsim.crosscheck.lockstep import Call, _Comparison
from fqtsim.errors import BackendRefused, InputError, TrainingStopped
from fqtsim.hw.load import parse_hardware
from fqtsim.hw.spec import Datapath
from fqtsim.ref.gemm import dot
from fqtsim.train.config import TrainConfig
from fqtsim.words import Overflow, ZeroPoint

CONFIG = TrainConfig(
    model="mlp", data="digits", recipe="bhq5", hardware=("int8_acc12_saturate",), seed=1, steps=2, batch=16
)


class Faulty(Stepwise):
    """Stepwise under another name and executor, to be broken by subclasses."""

    name = "faulty"

    @property
    def executor(self) -> str:
        return "a faulty device"


class FlipsOneBit(Faulty):
    """Bit 5 of output [3, 2] of the n-th GEMM is wrong."""

    def __init__(self, nth: int) -> None:
        self.nth, self.calls = nth, itertools.count(1)

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        result = super().gemm(a, b, datapath, c, trace)
        if next(self.calls) == self.nth:
            result.codes[3, 2] ^= 1 << 5
        return result


class WrapsInsteadOfSaturating(Faulty):
    """Every saturating register wraps."""

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        levels = tuple(
            level.model_copy(update={"overflow": Overflow.WRAP}) if level.overflow else level
            for level in datapath.levels
        )
        wrong = super().gemm(a, b, datapath.model_copy(update={"levels": levels}), c, trace)
        right = super().gemm(a, b, datapath, c, trace)
        return replace(right, codes=wrong.codes)


class SumsBackwards(Faulty):
    """The last product comes first."""

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        return super().gemm(np.ascontiguousarray(a[:, ::-1]), np.ascontiguousarray(b[::-1]), datapath, c, trace)


class MiscountsEvents(Faulty):
    """Codes are right, the report is not."""

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        result = super().gemm(a, b, datapath, c, trace)
        return replace(result, events=result.events + Events(altered=1))


class WithPrimitives(Faulty):
    """GEMMs are right; float operations are those given."""

    def __init__(self, primitives: Primitives) -> None:
        self.primitives = primitives


class Unproven(Primitives):
    """Primitives with a fault that the start-up proof is taken to have missed."""

    def prove(self) -> None:
        """Pass."""


class MultipliesByAnUlpMore(Unproven):
    """The largest product of every array of weights is one unit in the last place too large."""

    def multiply(self, x: object, y: object) -> np.ndarray:
        product = np.array(super().multiply(x, y))  # type: ignore[arg-type]
        if product.shape == (10, 128):
            where = np.unravel_index(np.argmax(np.abs(product)), product.shape)
            product[where] = np.nextafter(product[where], np.float32(np.inf))
        return product


class LosesTheLastBitOfSums(Primitives):
    """Exact sums come back a little too large; the proof at the start would refuse it, and is passed by here."""

    def prove(self) -> None:
        with pytest.raises(BackendRefused, match="exact_sum"):
            super().prove()

    def exact_sum64(self, *args: object, **kwargs: object) -> np.ndarray:
        total = super().exact_sum64(*args, **kwargs)  # type: ignore[arg-type]
        return np.asarray(total * (1 + 1e-3))


def test_equal_backends_pass_and_say_how_much_was_compared() -> None:
    report = crosscheck(CONFIG, ["stepwise", Faulty()])
    assert report.passed
    assert report.difference is None
    # Three layers: three fprop, two dgrad, three wgrad; two steps.
    assert report.coverage.gemms == {"fprop": 6, "dgrad": 4, "wgrad": 6}
    assert report.coverage.steps == 2
    fprop = 16 * (128 + 128 + 10)
    dgrad = 16 * (128 + 128)
    wgrad = 64 * 128 + 128 * 128 + 128 * 10
    assert report.coverage.outputs == 2 * (fprop + dgrad + wgrad)
    assert report.coverage.events.altered > 0
    assert report.coverage.at_rail > 0
    assert report.coverage.ties > 0
    text = str(report)
    assert "equal      every code, event and state digest" in text
    assert report.digest in text
    assert "nothing saturated" not in text


def test_a_check_without_events_says_what_it_does_not_show() -> None:
    report = crosscheck(replace(CONFIG, hardware=("int8_acc32_wrap",), steps=1), ["stepwise", "native"])
    assert report.passed
    assert "nothing saturated or wrapped: this says nothing about overflow or the order of k" in str(report)


def test_every_kind_of_backend_agrees_for_a_step() -> None:
    config = replace(CONFIG, steps=1, batch=4)
    assert crosscheck(config, ["reference", "stepwise"]).passed
    assert crosscheck(config, ["reference", "emulator"]).passed


@pytest.mark.parametrize(
    ("nth", "layer", "gemm"), [(1, "1", "fprop"), (3, "5", "fprop"), (4, "5", "dgrad"), (5, "5", "wgrad")]
)
def test_one_flipped_bit_is_found_at_its_place(nth: int, layer: str, gemm: str) -> None:
    report = crosscheck(CONFIG, ["stepwise", FlipsOneBit(nth)])
    found = report.difference
    assert found is not None
    assert not report.passed
    assert (found.step, found.kind, found.row, found.col) == (1, "codes", 3, 2)
    assert {found.gemm, gemm} <= {"fprop", "dgrad", "wgrad"}
    assert found.layer == layer
    assert found.gemm == gemm or nth > 3  # autograd chooses which of dgrad and wgrad comes first
    assert found.wrong == ("faulty",)
    codes = {name: int(text.split()[0], 16) for name, text in found.values.items()}
    assert codes["stepwise"] == codes["reference"] == codes["faulty"] ^ (1 << 5)
    # The row and column alone do not show a fault that strikes once.
    assert [partial.k for partial in found.partial_sums] == [None]
    assert "shows only in the whole matrix, or not every time" in str(report)


def test_the_order_of_backends_does_not_hide_the_fault() -> None:
    found = crosscheck(CONFIG, [FlipsOneBit(2), "stepwise"]).difference
    assert found is not None
    assert (found.layer, found.gemm, found.wrong) == ("3", "fprop", ("faulty",))


def test_a_later_fault_is_found_in_its_step() -> None:
    found = crosscheck(CONFIG, ["stepwise", FlipsOneBit(9)]).difference
    assert found is not None
    assert (found.step, found.layer, found.gemm) == (2, "1", "fprop")


@pytest.mark.parametrize("backend", [WrapsInsteadOfSaturating(), SumsBackwards()], ids=["wraps", "backwards"])
def test_wrong_arithmetic_is_traced_to_its_first_partial_sum(backend: Backend) -> None:
    report = crosscheck(CONFIG, ["stepwise", backend])
    found = report.difference
    assert found is not None
    assert found.kind == "codes"
    assert found.wrong == ("faulty",)
    (partial,) = found.partial_sums
    assert partial.k is not None
    assert partial.expected != partial.observed
    assert f"first wrong partial sum after product {partial.k}" in str(report)


HARDWARE = """
schema: 1
name: small
summary: for tests
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: none
  levels: LEVELS
"""
ONE_LEVEL = "[{terms: all, register: int16, overflow: saturate}]"
TWO_LEVELS = "[{parts: 3, register: int17, overflow: saturate}, {terms: all, register: int18, overflow: wrap}]"


def datapath_of(levels: str) -> Datapath:
    return parse_hardware(HARDWARE.replace("LEVELS", levels)).datapath_for("fprop")


@pytest.mark.parametrize("levels", [ONE_LEVEL, TWO_LEVELS])
@pytest.mark.parametrize("length", [7, 40, 900])
def test_first_wrong_sum_is_the_first_prefix_on_which_the_two_differ(
    levels: str, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "ADDITIONS", 100 * 60)  # the sum of 900 is searched from coarse to fine
    rng = np.random.default_rng(length)
    a, b = (rng.integers(-128, 128, length).astype(np.int8) for _ in range(2))
    a[:4], b[:4] = -128, 127  # passes 16 bits at product 3 and 17 bits at product 5 or later
    path = datapath_of(levels)
    device = WrapsInsteadOfSaturating()

    def differs(end: int) -> bool:
        cut = a.copy()
        cut[end:] = 0
        mine = device.gemm(cut[None, :], np.ascontiguousarray(b[:, None]), path).codes[0, 0]
        return int(mine) != dot(cut.tolist(), b.tolist(), path.levels).code

    found = first_wrong_sum(device, a, b, path)
    ends = [end for end in range(1, min(length, 60) + 1) if differs(end)]
    if found.k is None:
        assert not ends
        return
    assert differs(found.k)
    assert not differs(found.k - 1)
    if length <= 60:
        assert found.k == ends[0]
    assert (found.a, found.b) == (a[found.k - 1], b[found.k - 1])
    assert len(found.steps) == len(path.levels)


def test_the_trail_is_the_references_additions() -> None:
    path = datapath_of(ONE_LEVEL)
    a = np.array([127, 127, 127, 1], np.int8)
    found = first_wrong_sum(WrapsInsteadOfSaturating(), a, np.array([127, 127, 127, 1], np.int8), path)
    assert found.k == 3
    assert found.steps == ("level 0 register 0: 32258 + 16129 = 48387 -> 32767  overflow",)
    assert (found.expected, found.observed) == ("0x7fff (32767)", "0xbd03 (-17149)")


def test_codes_are_shown_as_the_bits_of_their_register() -> None:
    assert hex_code(-1, 20) == "0xfffff (-1)"
    assert hex_code(-1, 18) == "0x3ffff (-1)"
    assert hex_code(5, 8) == "0x05 (5)"


def test_wrong_events_are_a_difference() -> None:
    found = crosscheck(CONFIG, ["stepwise", MiscountsEvents()]).difference
    assert found is not None
    assert (found.kind, found.layer, found.gemm) == ("report", "1", "fprop")
    assert "codes agree, events differ" in str(found)


class MiscountsTies(Unproven):
    """Right codes, one tie too many."""

    def quantize(self, *args: Any) -> Any:
        codes, clamps, ties = super().quantize(*args)
        return codes, clamps, ties + 1


def test_wrong_ties_are_a_difference() -> None:
    report = crosscheck(CONFIG, ["stepwise", WithPrimitives(MiscountsTies())])
    assert report.difference is not None
    assert report.difference.kind == "report"
    assert "ties" in report.difference.what


def test_a_wrong_float_operation_before_a_gemm_is_a_wrong_operand() -> None:
    found = crosscheck(CONFIG, ["stepwise", WithPrimitives(LosesTheLastBitOfSums())]).difference
    assert found is not None
    assert found.kind == "operand"
    assert found.layer == "5"  # the loss's gradient is the first exact sum of an MLP's step
    assert found.gemm in ("dgrad", "wgrad")
    assert "differs before the GEMM" in str(found)


def test_a_wrong_float_operation_of_the_update_is_a_wrong_tensor() -> None:
    found = crosscheck(replace(CONFIG, steps=1), ["stepwise", WithPrimitives(MultipliesByAnUlpMore())]).difference
    assert found is not None
    assert found.kind == "state"
    assert "5.weight" in found.what
    assert found.layer == ""


def call(layer: str = "a", gemm: str = "fprop", **changes: Array) -> Call:
    path = datapath_of(ONE_LEVEL)
    a, b = np.ones((2, 3), np.int8), np.ones((3, 4), np.int8)
    result = get_backend("stepwise").gemm(a, b, path)
    return Call(layer, gemm, a, b, path, None, result)._replace(**changes)


def test_gemms_in_another_order_or_number_are_a_difference() -> None:
    first, other = get_backend("stepwise"), Faulty()
    swapped = _Comparison(first, other, [call("a"), call("b")], 1, Coverage())
    swapped.observe(*call("b"))
    swapped.observe(*call("a"))
    found = swapped.finish()
    assert found is not None
    assert (found.kind, found.layer) == ("order", "a")
    missing = _Comparison(first, other, [call("a"), call("b")], 1, Coverage())
    missing.observe(*call("a"))
    found = missing.finish()
    assert found is not None
    assert found.values == {"stepwise": "fprop of b, (2, 3) x (3, 4)", "faulty": "no GEMM"}
    extra = _Comparison(first, other, [], 1, Coverage())
    extra.observe(*call("a"))
    found = extra.finish()
    assert found is not None
    assert found.values["stepwise"] == "no GEMM"


def test_a_wrong_operand_is_named_with_its_bits() -> None:
    changed = call().b.copy()
    changed[1, 2] = -2
    comparison = _Comparison(get_backend("stepwise"), Faulty(), [call()], 4, Coverage())
    comparison.observe(*call(b=changed))
    found = comparison.finish()
    assert found is not None
    assert (found.step, found.kind, found.row, found.col) == (4, "operand", 1, 2)
    assert found.values == {"stepwise": "0x01 (1)", "faulty": "0xfe (-2)"}


def test_differences_from_a_zero_point_are_shown_as_the_multiplier_has_them() -> None:
    path = datapath_of(ONE_LEVEL).model_copy(update={"zero_point": ZeroPoint.BEFORE_MULTIPLY})
    first = call(b=np.full((3, 4), -200, np.int16), datapath=path)
    comparison = _Comparison(get_backend("stepwise"), Faulty(), [first], 1, Coverage())
    comparison.observe(*first._replace(b=np.full((3, 4), -201, np.int16)))
    found = comparison.finish()
    assert found is not None
    assert found.values == {"stepwise": "0x138 (-200)", "faulty": "0x137 (-201)"}


class StopsAfterAWrongBit(FlipsOneBit):
    """What follows from the wrong bit cannot be computed."""

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        result = super().gemm(a, b, datapath, c, trace)
        if next(self.calls) > 2 * self.nth:
            raise TrainingStopped("out of range")
        return result


def test_a_step_that_stops_after_a_wrong_bit_does_not_hide_it() -> None:
    report = crosscheck(CONFIG, ["stepwise", StopsAfterAWrongBit(3)])
    assert report.difference is not None
    assert (report.difference.kind, report.difference.row, report.difference.col) == ("codes", 3, 2)
    with pytest.raises(TrainingStopped):
        crosscheck(CONFIG, ["stepwise", StopsAfterAWrongBit(-1)])


@pytest.mark.parametrize(
    ("backends", "message"),
    [
        (["stepwise"], "one alone has nothing to agree with"),
        (["stepwise", "stepwise"], "backends stepwise, stepwise: both multiply by numba"),
        (["stepwise", "emulator"], "backends stepwise, emulator: both multiply by numba"),
        (["reference", "stepwise", "reference"], "both multiply by python integers"),
        (["stepwise", "nowhere"], "backend = 'nowhere': must be one of"),
    ],
)
def test_pairs_that_prove_nothing_are_refused(backends: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        crosscheck(CONFIG, backends)


def test_a_backend_that_cannot_promise_the_datapath_is_refused() -> None:
    with pytest.raises(BackendRefused, match="layer '1', fprop: native refuses: a register can overflow"):
        crosscheck(CONFIG, ["stepwise", "native"])


@pytest.mark.parametrize("recipe", ["fp32", "qat"])
def test_recipes_outside_the_promise_are_refused(recipe: str) -> None:
    with pytest.raises(InputError, match=f"recipe = {recipe}: trains with the platform's own float GEMM"):
        crosscheck(replace(CONFIG, recipe=recipe), ["stepwise", Faulty()])


def test_a_comparison_of_nothing_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Coverage, "add", lambda *_: None)
    with pytest.raises(InputError, match="the run compared no output of a GEMM, which is no pass"):
        crosscheck(replace(CONFIG, steps=1), ["stepwise", Faulty()])


def test_the_report_says_who_multiplied() -> None:
    native = get_backend("native")
    report = crosscheck(replace(CONFIG, hardware=("int8_acc32_wrap",), steps=1), ["stepwise", native])
    # Where the INT8 instructions fail their self-test this says so: a pass must not be taken for one of silicon.
    assert str(report).startswith(f"backends   stepwise: numba; native: {native.executor}\n")
