"""The quantizers as their users meet them: settings, libraries, ports, edges, errors."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fqtsim.errors import InputError, TrainingStopped
from fqtsim.quantizers import QTensor, quantizer
from fqtsim.words import IntFormat

Float32 = npt.NDArray[np.float32]
NAMES = ("ptq", "psq", "bhq")
LARGEST = float(np.finfo(np.float32).max)


def gradient(shape: tuple[int, ...] = (6, 3, 4, 5), seed: int = 0) -> Float32:
    """Return rows of very different sizes, the last of them zero."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape) * np.exp(2 * generator.standard_normal((shape[0], *[1] * (len(shape) - 1))))
    x[-1] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_fields(name: str) -> None:
    x = gradient()
    t = quantizer(name, 5, "stochastic", random_bits=16).quantize(x)
    shape = () if name == "ptq" else (6,)
    assert t.codes.shape == x.shape
    assert t.codes.dtype == np.uint8
    assert (t.step.dtype, t.step.shape) == (np.float32, shape)
    assert (t.zero_point.dtype, t.zero_point.shape) == (np.int32, shape)
    assert t.offset is None
    assert t.clamps == 0
    assert t.codes.max() <= 31
    assert (t.groups is None) == (name != "bhq")
    assert t.dequantize().shape == x.shape
    assert t.dequantize().dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero", ["aligned", "float_offset"])
def test_values_come_back_within_one_step(name: str, zero: str) -> None:
    x = gradient()
    t = quantizer(name, 8, "ties_to_even", zero=zero).quantize(x)
    if name == "bhq":
        assert np.abs(t.dequantize() - x).max() <= 0.02 * np.abs(x).max()
        assert t.unmix(x).shape == x.shape
    else:
        step = np.reshape(t.step, (-1, 1, 1, 1))
        assert (np.abs(t.dequantize() - x) <= 0.5001 * step).all()
        assert t.unmix(x) is x


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero", ["aligned", "symmetric", "float_offset"])
def test_torch_in_torch_out(name: str, zero: str) -> None:
    x = gradient()
    q = quantizer(name, 6, "stochastic", 16, zero=zero, format="int8")
    expected = q.quantize(x, 1, 2, 3)
    for tensor in (torch.tensor(x), torch.tensor(x).to(memory_format=torch.channels_last).requires_grad_()):
        t = q.quantize(tensor, 1, 2, 3)
        assert t.codes.dtype == torch.int8
        assert t.step.dtype == torch.float32
        assert t.zero_point.dtype == torch.int32
        for got, want in (
            (t.codes, expected.codes),
            (t.step, expected.step),
            (t.zero_point, expected.zero_point),
            (t.dequantize(), expected.dequantize()),
            (t.with_format("uint8").codes, expected.with_format("uint8").codes),
            (t.unmix(tensor.detach()), expected.unmix(x)),
        ):
            assert isinstance(got, torch.Tensor)
            assert np.array_equal(got.numpy(), want)
        assert (t.offset is None) == (zero != "float_offset")


def test_numpy_users_do_not_load_torch() -> None:
    program = (
        "import sys, numpy; from fqtsim.quantizers import quantizer;"
        "quantizer('psq', 4, 'ties_to_even').quantize(numpy.eye(3, dtype='float32')).dequantize();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_ports_of_other_signedness_hold_the_same_codes_offset(name: str, data: Any) -> None:
    bits = data.draw(st.integers(2, 8))
    here, there = (IntFormat(data.draw(st.integers(bits, 16)), signed) for signed in (False, True))
    x = gradient((data.draw(st.integers(1, 5)), 3), data.draw(st.integers(0, 9)))
    for one, other in ((here, there), (there, here)):
        moved = quantizer(name, bits, "stochastic", 8, format=one).quantize(x).with_format(other)
        made = quantizer(name, bits, "stochastic", 8, format=other).quantize(x)
        assert moved.codes.dtype == made.codes.dtype
        assert np.array_equal(moved.codes, made.codes)
        assert np.array_equal(moved.zero_point, made.zero_point)
        assert np.array_equal(moved.dequantize(), made.dequantize())
        assert moved.format == other


def test_a_wider_port_of_the_same_signedness_holds_the_same_codes() -> None:
    t = quantizer("psq", 4, "ties_to_even").quantize(gradient())
    wide = t.with_format("uint16")
    assert wide.codes.dtype == np.uint16
    assert np.array_equal(wide.codes, t.codes)
    assert np.array_equal(wide.zero_point, t.zero_point)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero", ["aligned", "float_offset"])
@pytest.mark.parametrize(
    "x",
    [
        np.zeros((4, 3)),
        np.ones((4, 3)),
        -np.ones((4, 3)),
        np.ones((1, 3)),
        np.array([[1.0, -2.0], [0.5, 3.0]]),
        np.full((3, 2), 2.0**-149) * [[1], [0], [-3]],
        np.array([[LARGEST, -LARGEST], [LARGEST, LARGEST], [1.0, -1.0]]),
        np.array([[LARGEST, -LARGEST], [2.0**-149, 0.0], [0.0, 0.0]]),
        np.arange(21.0).reshape(7, 3),
        np.arange(5.0),
        np.ones((3, 1, 1, 1)),
    ],
    ids=lambda x: "x".join(map(str, x.shape)),
)
def test_edges(name: str, zero: str, x: npt.NDArray[np.float64]) -> None:
    values = x.astype(np.float32)
    t = quantizer(name, 8, "ties_to_even", zero=zero).quantize(values)
    assert t.clamps == 0
    assert np.isfinite(t.step).all()
    assert (t.step > 0).all()
    if np.abs(x).max() < 1e38:
        error = np.abs(t.dequantize().astype(np.float64) - values)
        peak = np.abs(values).max()
        assert error.max() <= max(peak * 2**-7, 2.0**-149)


@pytest.mark.parametrize("name", NAMES)
def test_zero_rows_are_exact(name: str) -> None:
    x = gradient()
    t = quantizer(name, 8, "ties_to_even").quantize(np.zeros_like(x))
    assert not t.codes.any()
    assert not t.zero_point.any()
    assert (t.step == 1).all()
    assert not t.dequantize().any()


def test_one_shape_of_rank_zero() -> None:
    t = quantizer("ptq", 8, "ties_to_even").quantize(np.array(-2.0, np.float32))
    assert t.codes.shape == ()
    assert float(t.dequantize()) == -2.0
    for name in ("psq", "bhq"):
        with pytest.raises(InputError, match=r"^x: shape \(\) has no rows; psq and bhq need rank 1 or more, use ptq$"):
            quantizer(name, 8, "ties_to_even").quantize(np.array(-2.0, np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pqt", 8, "ties_to_even"), "quantizer = 'pqt': must be one of ptq, psq, bhq, luq"),
        (("ptq", 1, "ties_to_even"), "bits = 1: must be 2..16; one bit leaves no code beside zero"),
        (("ptq", 17, "ties_to_even"), "bits = 17: must be 2..16; one bit leaves no code beside zero"),
        (("ptq", 8, "nearest"), "rounding = 'nearest': must be one of ties_to_even, ties_to_odd, ties_to_away, "),
        (("ptq", 8, "stochastic"), "random_bits = None: stochastic rounding needs 1..32 random bits; say how many"),
        (("ptq", 8, "stochastic", 33), "random_bits = 33: stochastic rounding needs 1..32 random bits; say how many"),
        (("ptq", 8, "stochastic", 8.5), "random_bits = 8.5: stochastic rounding needs 1..32 random bits; say how many"),
        (("ptq", 4.5, "ties_to_even"), "bits = 4.5: must be 2..16; one bit leaves no code beside zero"),
        (("ptq", 8, "to_odd", 8), "random_bits = 8: rounding = to_odd draws no random bits; leave random_bits out"),
        (("ptq", 8, "to_odd", None, "center"), "zero = 'center': must be one of aligned, symmetric, float_offset"),
        (
            ("ptq", 8, "to_odd", None, "aligned", "int4"),
            "format = int4: a 8-bit quantizer needs a port of 8..16 bits; use fewer bits or a wider port",
        ),
        (("ptq", 8, "to_odd", None, "aligned", "s8"), "format = 's8': must be intN or uintN"),
    ],
)
def test_settings_that_are_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        quantizer(*arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0, 2.0], "x: must be a numpy array or a torch tensor, not list; convert it first"),
        (np.ones(3), "x: must be float32, not float64; convert it with astype(np.float32) or .float()"),
        (torch.ones(3, dtype=torch.float64), "x: must be float32, not float64; convert it with astype(np.float32)"),
        (np.ones((3, 0), np.float32), "x: shape (3, 0) has no elements; an empty tensor has no range to quantize"),
    ],
)
def test_tensors_that_are_errors(x: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        quantizer("psq", 8, "ties_to_even").quantize(x)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_not_finite_stop_the_step(name: str) -> None:
    x = gradient((3, 4))
    x[1, 3] = np.inf
    place = "row 0, element 7" if name == "ptq" else "row 1, element 3"
    with pytest.raises(TrainingStopped, match=rf"^{place} = inf: a tensor to quantize must be finite"):
        quantizer(name, 8, "ties_to_even").quantize(x)


def test_an_unsigned_symmetric_grid_has_no_negative_values() -> None:
    q = quantizer("psq", 8, "ties_to_even", zero="symmetric")
    assert q.quantize(np.float32([[0, 255], [-0.0, 0]])).codes.tolist() == [[0, 255], [0, 0]]
    with pytest.raises(InputError, match=r"^x: holds -1\.5, and zero = symmetric in format uint8 has no code below 0"):
        q.quantize(np.float32([[1, 2], [0, -1.5]]))


def test_a_signed_symmetric_grid_leaves_the_most_negative_code_unused() -> None:
    t = quantizer("ptq", 8, "ties_to_even", zero="symmetric", format="int8").quantize(np.float32([-127, 3, 126.6]))
    assert t.codes.tolist() == [-127, 3, 127]
    assert (float(t.step), int(t.zero_point)) == (1.0, 0)


def test_float_offset_puts_the_extremes_on_the_end_codes() -> None:
    t = quantizer("psq", 4, "ties_to_even", zero="float_offset").quantize(np.float32([[1.0, 2.5, 1.7], [-3, -3, -3]]))
    assert t.codes.tolist() == [[0, 15, 7], [0, 0, 0]]
    assert t.offset.tolist() == [1.0, -3.0]
    assert t.dequantize()[1].tolist() == [-3.0] * 3


def test_y_to_unmix_must_have_the_rows_of_the_tensor() -> None:
    t: QTensor = quantizer("bhq", 8, "ties_to_even").quantize(gradient((4, 5)))
    assert t.unmix(np.ones((4, 2, 3), np.float32)).shape == (4, 2, 3)
    with pytest.raises(InputError, match=r"^y: shape \(5, 2\) must begin with the 4 rows of this tensor$"):
        t.unmix(np.ones((5, 2), np.float32))
    with pytest.raises(InputError, match=r"must be float32"):
        t.unmix(np.ones((4, 2)))
