"""Bounds on every partial sum: never passed, and reached by some inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import fqtsim
from fqtsim.errors import InputError
from fqtsim.evaluate.shrink.bounds import code_range, data_type_reach, needed_bits, weight_reach
from fqtsim.hw.load import load_hardware, parse_hardware
from fqtsim.hw.lower import Range
from fqtsim.hw.spec import Hardware
from fqtsim.recipe.load import load_recipe
from fqtsim.words import IntFormat


def one_level(a: str, b: str, register: str, overflow: str, levels: list[dict[str, Any]] | None = None) -> Hardware:
    """Return hardware whose last level has this register, behind `levels`."""
    last = {"terms": "all", "register": register, "overflow": overflow}
    return parse_hardware(
        yaml.safe_dump(
            {
                "schema": 1, "name": "bound", "summary": "for a test", "source": "hypothetical",
                "checked_against": "nothing",
                "datapath": {"a": a, "b": b, "zero_point": "none", "levels": [*(levels or []), last]},
                "random": {"generator": "philox4x32-10", "bits": 16},
            },
            sort_keys=False,
        )
    )  # fmt: skip


def overflows(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], hardware: Hardware) -> int:
    """Return how many additions the accumulator changed."""
    trace = fqtsim.gemm(a, b, hardware, trace=True).trace
    assert trace is not None
    return trace[-1].overflows


@pytest.mark.parametrize(("k", "bits"), [(64, 22), (512, 25), (4096, 28), (50_176, 31)])
def test_data_type_bound_of_signed_bytes(k: int, bits: int) -> None:
    """Known values: 64 products of -128 * -128 are 2**20, one more than 21 signed bits hold, and so on."""
    datapath = one_level("int8", "int8", "int32", "wrap").datapath
    reach = data_type_reach(datapath, k, Range(-128, 127), Range(-128, 127))
    assert reach == Range(-128 * 127 * k, 128 * 128 * k)
    assert needed_bits(reach, datapath.accumulator) == bits


FORMATS = st.sampled_from(["int2", "int3", "int5", "int8", "uint2", "uint4", "uint8"])
INNER = st.sampled_from(
    [
        [],
        [{"terms": 3, "register": "exact"}],
        [{"parts": 2, "register": "exact"}],
        [{"lanes": 3, "register": "int40", "overflow": "saturate"}],
        [{"terms": 2, "item": {"drop_bits": 2, "rounding": "ties_to_even"}, "register": "exact"}],
        [{"terms": 4, "register": "int9", "overflow": "saturate"}],
    ]
)


@settings(max_examples=40, deadline=None)
@given(FORMATS, FORMATS, st.integers(1, 40), INNER, st.sampled_from(["saturate", "saturate_symmetric", "wrap"]))
def test_some_codes_reach_the_data_type_bound_and_one_bit_less_overflows(
    a: str, b: str, k: int, inner: list[dict[str, Any]], overflow: str
) -> None:
    forms = [IntFormat.parse(name) for name in (a, b)]
    ranges = [Range(form.minimum, form.maximum) for form in forms]
    wide = one_level(a, b, "int40", overflow, inner)
    reach = data_type_reach(wide.datapath, k, *ranges)
    corners = [(x, y) for x in (ranges[0].low, ranges[0].high) for y in (ranges[1].low, ranges[1].high)]
    sums = []
    for x, y in corners:
        left, right = np.full((1, k), x), np.full((k, 1), y)
        sums.append(int(fqtsim.gemm(left, right, wide).codes[0, 0]))
    assert (min(0, *sums), max(sums)) == (reach.low, reach.high)
    bits = needed_bits(reach, wide.datapath.accumulator)
    assert bits is not None
    fits, narrower = (one_level(a, b, f"int{n}", overflow, inner) for n in (bits, max(2, bits - 1)))
    found = [
        [overflows(np.full((1, k), x), np.full((k, 1), y), hardware) for x, y in corners]
        for hardware in (fits, narrower)
    ]
    assert not any(found[0])
    assert any(found[1]) or bits == 2


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["int4", "int8", "uint8"]), st.integers(1, 24), INNER)
def test_some_inputs_reach_the_weight_bound_and_none_passes_it(
    data: st.DataObject, a: str, k: int, inner: list[dict[str, Any]]
) -> None:
    weights = np.array(data.draw(st.lists(st.integers(-128, 127), min_size=k, max_size=k))).reshape(k, 1)
    form = IntFormat.parse(a)
    wide = one_level(a, "int8", "int40", "saturate", inner)
    reach = weight_reach(wide.datapath, weights, Range(form.minimum, form.maximum))
    highest = np.where(weights[:, 0] > 0, form.maximum, form.minimum)
    lowest = np.where(weights[:, 0] > 0, form.minimum, form.maximum)
    worst = np.stack([highest, lowest])
    assert fqtsim.gemm(worst, weights, wide).codes[:, 0].tolist() == [reach.high, reach.low]
    bits = needed_bits(reach, wide.datapath.accumulator)
    assert bits is not None
    fits, narrower = (one_level(a, "int8", f"int{n}", "saturate", inner) for n in (bits, max(2, bits - 1)))
    assert not overflows(worst, weights, fits)
    assert overflows(worst, weights, narrower) or bits == 2
    anything = np.array(data.draw(st.lists(st.integers(form.minimum, form.maximum), min_size=k, max_size=k)))
    order = np.array(data.draw(st.permutations(range(k))))
    assert not overflows(anything[None], weights, fits)
    if not inner:  # in any order of additions
        assert not overflows(worst[:, order], weights[order], fits)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-127, 127), min_size=1, max_size=60), st.booleans())
def test_the_weight_bound_is_never_wider_than_that_of_a2q(weights: list[int], signed: bool) -> None:
    """A2Q: the l1 norm of the weights is at most (2**(P - 1) - 1) * 2**(signed - N), here with N = 8."""
    datapath = one_level("int8" if signed else "uint8", "int8", "int32", "saturate").datapath
    form = IntFormat(8, signed)
    reach = weight_reach(datapath, np.array(weights).reshape(-1, 1), Range(form.minimum, form.maximum))
    bits = needed_bits(reach, datapath.accumulator)
    norm = sum(abs(weight) for weight in weights)
    published = next(p for p in range(2, 40) if norm << (8 - signed) <= (1 << (p - 1)) - 1)
    assert bits is not None
    assert bits <= published


def test_a_start_value_moves_the_bound() -> None:
    datapath = one_level("int8", "int8", "int32", "saturate").datapath
    assert data_type_reach(datapath, 2, Range(-1, 1), Range(-1, 1), Range(-5, 7)) == Range(-7, 9)


def test_no_width_holds_negative_sums_in_an_unsigned_register() -> None:
    level = one_level("int8", "int8", "uint20", "saturate").datapath.accumulator
    assert needed_bits(Range(-1, 5), level) is None
    assert needed_bits(Range(0, 255), level) == 8
    assert needed_bits(Range(0, 1 << 62), level) is None


def test_code_ranges_follow_recipe_and_zero_point() -> None:
    recipe = load_recipe("bhq5")
    after, before = load_hardware("int8_acc24_saturate"), load_hardware("int8_acc20_tree4")
    assert code_range(recipe, after.datapath_for("fprop"), "fprop", "a") == Range(0, 255)
    assert code_range(recipe, after.datapath_for("dgrad"), "dgrad", "a") == Range(-16, 15)
    assert code_range(recipe, before.datapath_for("dgrad"), "dgrad", "a") == Range(-31, 31)
    with pytest.raises(InputError, match="grad_for_dgrad is float in recipe qat"):
        code_range(load_recipe("qat"), after.datapath_for("dgrad"), "dgrad", "a")
