"""Requantization: published vectors, vendors' formulas written out, and the definition on any chain of stages."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from independent import model
from mac import hardware

import fqtsim
from fqtsim.backends import Events
from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware, parse_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.ref.requantize import float32_of_bits, requantize, to_float32
from fqtsim.testing import codes, hardware_files

DOUBLE, SINGLE, XNNPACK = (load_hardware(name) for name in ("tflite_double", "tflite_single", "xnnpack_fp32"))
INT32 = (-(2**31), 2**31 - 1)


# --- known answers ---------------------------------------------------------------------------------------------------


def test_tensorflow_issue_25087() -> None:
    """7984 by 1583594044 * 2**-40: rounded twice 12, rounded once 11."""
    assert fqtsim.requantize(np.array([7984]), DOUBLE, multiplier=1583594044, shift=9).codes.tolist() == [12]
    assert fqtsim.requantize(np.array([7984]), SINGLE, multiplier=1583594044, shift=31 + 9).codes.tolist() == [11]


def test_tensorflow_issue_102943() -> None:
    """585 at the reported scales: -120 only where the arithmetic is float32, with its tie at 6.5."""
    scales = 0.05296124517917633, 0.024093778803944588, 0.11484327912330627
    left, right, out = (np.float32(scale) for scale in scales)
    scale = left * right / out
    assert np.float32(585) * scale == 6.5
    assert fqtsim.requantize(np.array([585]), XNNPACK, scale=scale, zero_point=-126).codes.tolist() == [-120]
    multiplier, shift = 1527099593, 6
    assert round(Fraction(scales[0] * scales[1] / scales[2]) * 2 ** (31 + shift)) == multiplier
    for described, places in ((DOUBLE, shift), (SINGLE, 31 + shift)):
        out = fqtsim.requantize(np.array([585]), described, multiplier=multiplier, shift=places, zero_point=-126)
        assert out.codes.tolist() == [-119]


def test_smallest_times_smallest_is_the_one_saturation_of_srdhm() -> None:
    """gemmlowp: SaturatingRoundingDoublingHighMul overflows for INT32_MIN squared only."""
    stages = [{"multiply": "integer"}, {"shift": 31, "rounding": "ties_to_positive"},
              {"register": "int32", "overflow": "saturate"}]  # fmt: skip
    out = fqtsim.requantize(np.array([INT32[0], INT32[0] + 1]), hardware(output=stages), multiplier=INT32[0])
    assert out.codes.tolist() == [INT32[1], INT32[1]]
    assert out.events == Events(1, 1, 0)


# --- vendors' formulas -----------------------------------------------------------------------------------------------


def c_divide(numerator: int, denominator: int) -> int:
    """Division of C: toward zero."""
    quotient = abs(numerator) // abs(denominator)
    return quotient if (numerator < 0) == (denominator < 0) else -quotient


def gemmlowp(x: int, multiplier: int, shift: int) -> int:
    """fixedpoint.h as written there: SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT."""
    if x == multiplier == INT32[0]:
        high = INT32[1]
    else:
        product = x * multiplier
        nudge = (1 << 30) if product >= 0 else 1 - (1 << 30)
        high = c_divide(product + nudge, 1 << 31)
    mask = (1 << shift) - 1
    remainder, threshold = high & mask, (mask >> 1) + (high < 0)
    return (high >> shift) + (remainder > threshold)


def single_rounding(x: int, multiplier: int, shift: int) -> int:
    """TFLITE_SINGLE_ROUNDING: one 64-bit product, half up."""
    total = 31 + shift
    return (x * multiplier + (1 << (total - 1))) >> total


@given(
    codes("int32"),
    st.integers(2**30, 2**31 - 1) | st.sampled_from([2**30, 2**31 - 1, 3 << 29]),
    st.integers(0, 31),
    st.integers(-128, 127),
)
@example(7984, 1583594044, 9, 0)
@example(INT32[0], 2**31 - 1, 0, -128)
@example(-3, 2**30, 1, 0)  # ties of both roundings, negative
def test_tflite_and_gemmlowp(x: int, multiplier: int, shift: int, zero_point: int) -> None:
    for formula, described, places in ((gemmlowp, DOUBLE, shift), (single_rounding, SINGLE, 31 + shift)):
        expected = min(max(formula(x, multiplier, shift) + zero_point, -128), 127)
        out = fqtsim.requantize(np.array([x]), described, multiplier=multiplier, shift=places, zero_point=zero_point)
        assert out.codes.tolist() == [expected]
        assert out.codes.dtype == np.int8


@given(codes("int32"), st.floats(2.0**-20, 1, width=32), st.integers(-128, 127))
def test_xnnpack(x: int, scale: float, zero_point: int) -> None:
    """float32(x) * scale in float32, lrintf, then the rails: NumPy's own float32 is the judge."""
    expected = int(np.rint(np.float32(x) * np.float32(scale))) + zero_point
    out = fqtsim.requantize(np.array([x]), XNNPACK, scale=np.float32(scale), zero_point=zero_point)
    assert out.codes.tolist() == [min(max(expected, -128), 127)]


# --- any chain of stages ---------------------------------------------------------------------------------------------

INTEGERS = st.integers(-(2**62), 2**62 - 1) | st.integers(-300, 300) | st.sampled_from([0, 1, -1, *INT32, 2**61 - 1])
FLOAT_STAGES = [
    {"shift": "call", "rounding": "to_odd"},
    {"multiply": "float32"},
    {"round": "ties_to_even"},
    {"register": "int62", "overflow": "saturate"},
]


def arguments(data: st.DataObject, described: Hardware, size: int) -> dict[str, list[int]]:
    """Draw what the stages want: scale as the bit pattern of a positive float32."""
    assert described.output is not None
    wants = {
        "multiplier": any(stage.multiply == "integer" for stage in described.output),
        "shift": any(stage.shift == "call" for stage in described.output),
        "scale": any(stage.multiply == "float32" for stage in described.output),
        "zero_point": any(stage.kind == "add" for stage in described.output),
    }
    draws = {
        "multiplier": codes("int32"),
        "shift": st.integers(-40, 62) | st.integers(-2, 12),
        "scale": st.integers(1, 0x7F7FFFFF) | st.integers(0x30000000, 0x40000000),
        "zero_point": codes("int32"),
    }
    return {
        name: data.draw(st.lists(draws[name], min_size=size, max_size=size), label=name)
        for name, wanted in wants.items()
        if wanted
    }


def call(found: dict[str, list[int]]) -> dict[str, Any]:
    return {
        name: np.array(values, np.uint32).view(np.float32) if name == "scale" else np.array(values)
        for name, values in found.items()
    }


@given(st.data(), hardware_files())
def test_any_stages_like_the_definition(data: st.DataObject, text: str) -> None:
    described = parse_hardware(text)
    assume(described.output is not None)
    assert described.output is not None
    acc = data.draw(st.lists(INTEGERS, min_size=1, max_size=4), label="acc")
    found = arguments(data, described, len(acc))
    results, unlimited = [], []
    for index, code in enumerate(acc):
        one: dict[str, Any] = {name: values[index] for name, values in found.items()}
        if "scale" in one:
            one["scale"] = float32_of_bits(one["scale"])
        try:
            results.append(requantize(code, described.output, **one))
            unlimited.append(requantize(code, described.output, **one, limited=False))
        except OverflowError:
            with pytest.raises(InputError, match="beyond the largest float32"):
                fqtsim.requantize(np.array(acc), described, **call(found))
            return
    out = fqtsim.requantize(np.array(acc), described, **call(found))
    assert out.codes.tolist() == results
    last = described.output[-1]
    assert last.register_format is not None
    low, high = last.register_format.rails(last.overflow)
    altered = [code != u for code, u in zip(results, unlimited, strict=True)]
    outside = [not low <= u <= high for u in unlimited]
    transient = sum(x and not y for x, y in zip(altered, outside, strict=True))
    assert out.events == Events(sum(altered), sum(outside), transient)


@given(st.data())
def test_shipped_stages_like_the_per_bit_model(data: st.DataObject) -> None:
    described = data.draw(st.sampled_from([DOUBLE, SINGLE, XNNPACK]))
    acc = data.draw(st.lists(codes("int32"), min_size=1, max_size=3))
    stages = [stage.model_dump(by_alias=True, exclude_none=True, mode="json") for stage in described.output or ()]
    found: dict[str, Any] = {"zero_point": data.draw(st.integers(-128, 127))}
    if described is XNNPACK:
        found["scale"] = data.draw(st.floats(2.0**-30, 1, width=32))
    else:
        found |= {"multiplier": data.draw(codes("int32")), "shift": data.draw(st.integers(0, 45))}
    expected, events = model.requantize(acc, stages, **found)
    if "scale" in found:
        found["scale"] = np.float32(found["scale"])
    out = fqtsim.requantize(np.array(acc), described, **found)
    assert out.codes.tolist() == expected
    assert vars(out.events) == events


@pytest.mark.parametrize(
    ("acc", "shift"),
    [(((2**24 + 1) << 29) + 1, -20), (-((2**24 + 1) << 29) - 1, -20), (2**61 + 2**37 + 1, -40), (2**24 + 1, -37)],
)
def test_long_integers_are_rounded_to_float32_once(acc: int, shift: int) -> None:
    """By way of float64 the last bit would be lost, and what is left would be a tie that goes the wrong way."""
    described = hardware(output=FLOAT_STAGES)
    scale = np.float32(2.0**-30)
    expected = requantize(acc, described.output or (), shift=shift, scale=Fraction(2) ** -30)
    assert fqtsim.requantize(np.array([acc]), described, shift=shift, scale=scale).codes.tolist() == [expected]


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(2.0**-150)
@example(3 * 2.0**-150)
@example(2.0**128 - 2.0**103)
@example(1 + 2.0**-24)
@example(1 + 3 * 2.0**-24)
@example(-0.0)
def test_float32_of_a_fraction_like_numpy(value: float) -> None:
    with np.errstate(over="ignore"):
        expected = float(np.float32(value))
    if np.isinf(expected):
        with pytest.raises(OverflowError, match="beyond the largest float32"):
            to_float32(Fraction(value))
    else:
        assert to_float32(Fraction(value)) == Fraction(expected)


# --- shapes, types, events -------------------------------------------------------------------------------------------

SHIFT_8 = [{"shift": "call", "rounding": "ties_to_even"}, {"register": "int8", "overflow": "saturate"}]


def test_arguments_broadcast_and_scalars_stay_scalars() -> None:
    described = hardware(output=SHIFT_8)
    acc = np.array([[16, 24, 1 << 20], [-24, -8, 8]])
    out = fqtsim.requantize(acc, described, shift=np.array([4, 4, 0]))
    assert out.codes.tolist() == [[1, 2, 127], [-2, 0, 8]]
    assert out.events == Events(1, 1, 0)
    assert fqtsim.requantize(24, described, shift=4).codes.tolist() == 2
    for integer in (np.uint8, np.uint64, np.int8):
        out = fqtsim.requantize(acc.astype(np.int32), described, shift=np.array([4, 4, 0], integer))
        assert out.codes.tolist() == [[1, 2, 127], [-2, 0, 8]]
    assert fqtsim.requantize(2**62 - 1, described, shift=62).codes.tolist() == 1
    assert fqtsim.requantize(2**62 - 1, described, shift=-62).codes.tolist() == 127
    assert fqtsim.requantize(np.zeros((0, 3), np.int32), described, shift=1).codes.shape == (0, 3)


def test_a_torch_tensor_stays_one() -> None:
    torch = pytest.importorskip("torch")
    out = fqtsim.requantize(torch.tensor([[160, -24]]), hardware(output=SHIFT_8), shift=torch.tensor(4))
    assert out.codes.tolist() == [[10, -2]]
    assert out.codes.dtype == torch.int8
    scale = torch.tensor(0.5, requires_grad=True)
    assert fqtsim.requantize(torch.tensor([3, 5]), XNNPACK, scale=scale).codes.tolist() == [2, 2]


def test_stages_may_end_in_a_float_or_without_a_register() -> None:
    floats = fqtsim.requantize(np.array([3]), hardware(output=[{"multiply": "float32"}]), scale=np.float32(0.5))
    assert (floats.codes.tolist(), floats.codes.dtype, floats.events) == ([1.5], np.float32, Events())
    integers = fqtsim.requantize(np.array([3]), hardware(output=[{"add": "zero_point"}]), zero_point=-5)
    assert (integers.codes.tolist(), integers.codes.dtype, integers.events) == ([-2], np.int64, Events())
    # Without a last register nothing is out of range, but a register on the way may have changed the code.
    stages = [{"register": "int8", "overflow": "saturate"}, {"add": "zero_point"}]
    assert fqtsim.requantize(np.array([3, 999]), hardware(output=stages), zero_point=1).events == Events(1, 0, 1)


@pytest.mark.parametrize("kind", [np.uint8, np.uint32, np.uint64])
def test_unsigned_arguments_are_integers_like_others(kind: type) -> None:
    """-shift would wrap, and int64 + uint64 would be float64."""
    stages = [{"multiply": "integer"}, SHIFT_8[0], {"add": "zero_point"}, {"register": "int32", "overflow": "wrap"}]
    zeros = np.array([3, 0], kind)
    out = fqtsim.requantize(
        np.array([100, -7]), hardware(output=stages), multiplier=kind(1), shift=kind(3), zero_point=zeros
    )
    assert (out.codes.tolist(), out.events) == ([15, -1], Events())


def test_a_scale_may_be_a_torch_tensor_with_a_gradient() -> None:
    torch = pytest.importorskip("torch")
    scale = torch.tensor([0.5, 0.25], requires_grad=True)
    out = fqtsim.requantize(torch.tensor([3, 3]), hardware(output=[{"multiply": "float32"}]), scale=scale)
    assert out.codes.tolist() == [1.5, 0.75]


@pytest.mark.parametrize("last", [{"add": "zero_point"}, {"shift": 1, "rounding": "to_odd"}, {"multiply": "float32"}])
def test_a_register_is_counted_though_no_register_is_last(last: dict[str, Any]) -> None:
    stages = [{"register": "int8", "overflow": "saturate"}, last]
    scale = np.float32(0.5) if "multiply" in last else None
    out = fqtsim.requantize(np.array([1000, -5, 200]), hardware(output=stages), scale=scale)
    assert out.events == Events(altered=2, out_of_range=0, transient=2)


def test_a_register_on_the_way_makes_transients() -> None:
    stages = [{"register": "int8", "overflow": "wrap"}, {"shift": 2, "rounding": "toward_zero"},
              {"register": "int8", "overflow": "saturate"}]  # fmt: skip
    out = fqtsim.requantize(np.array([130, 4, 1000]), hardware(output=stages))
    assert out.codes.tolist() == [-31, 1, -6]
    assert out.events == Events(2, 1, 1)  # 32 fits int8, 250 does not


# --- errors ----------------------------------------------------------------------------------------------------------

INTEGER_STAGES = [{"multiply": "integer"}, *SHIFT_8]
FLOATS = [{"multiply": "float32"}, {"round": "ties_to_even"}, {"register": "int8", "overflow": "saturate"}]
ERRORS: list[tuple[list[dict[str, Any]] | None, Any, dict[str, Any], str]] = [
    (None, [1], {}, "test: has no output stages; add `output`, or use another hardware file"),
    (SHIFT_8, [1.5], {"shift": 1}, "acc: dtype float64 holds no codes; pass integers"),
    (INTEGER_STAGES, [1], {"shift": 1}, "multiplier: is required by an output stage; pass multiplier="),
    (SHIFT_8, [1], {}, "shift: is required by an output stage; pass shift="),
    (FLOATS, [1], {}, "scale: is required by an output stage; pass scale="),
    (FLOATS, [1], {"scale": 1, "shift": 2},
     "shift: no output stage uses it; remove it, or choose another hardware file"),
    (SHIFT_8, [1], {"shift": 63}, "shift = 63..63: must be -62..62"),
    (SHIFT_8, [1], {"shift": [1, 2]}, "shift.shape = (2,): must broadcast to (1,); reshape it"),
    (SHIFT_8, [1], {"shift": 0.5}, "shift: dtype float64 holds no codes; pass integers"),
    (INTEGER_STAGES, [1], {"shift": 1, "multiplier": 2**31},
     "multiplier = 2147483648..2147483648: must be -2147483648..2147483647"),
    (SHIFT_8, [1], {"shift": 1, "zero_point": 3},
     "zero_point: no output stage adds it; remove it, or add {add: zero_point}"),
    (FLOATS, [1], {"scale": "1"}, "scale: must be positive and finite as float32"),
    (FLOATS, [1], {"scale": 0}, "scale: must be positive and finite as float32"),
    (FLOATS, [1], {"scale": -1.0}, "scale: must be positive and finite as float32"),
    (FLOATS, [1], {"scale": float("nan")}, "scale: must be positive and finite as float32"),
    (FLOATS, [1], {"scale": 1e39}, "scale: must be positive and finite as float32"),
    (FLOATS, [1], {"scale": 0.1}, "scale: is no float32; round it first, with numpy.float32(scale)"),
    (FLOATS, [2**40], {"scale": np.float32(3e38)},
     "scale: code * scale is beyond the largest float32; use a smaller scale"),
    ([{"multiply": "integer"}, {"shift": "call", "rounding": "to_odd"}], [2**40], {"multiplier": 2**30, "shift": -1},
     "output: the result needs more than 64 bits; end the stages with a register"),
]  # fmt: skip


@pytest.mark.parametrize(("stages", "acc", "given_arguments", "text"), ERRORS, ids=[error[3] for error in ERRORS])
def test_bad_arguments_are_named(stages: Any, acc: Any, given_arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as error:
        fqtsim.requantize(acc, hardware(output=stages), **given_arguments)
    assert str(error.value) == text
