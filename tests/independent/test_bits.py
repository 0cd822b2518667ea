"""The gates against Python's own arithmetic: exhaustive at small widths, adversarial patterns for floats."""

from __future__ import annotations

import itertools
import math
import struct
from fractions import Fraction

import numpy as np
import pytest

from . import bits, floats, summation

SMALL = range(-20, 21)


def test_adders_and_multipliers_on_all_small_pairs_in_one_pass() -> None:
    x, y = zip(*itertools.product(SMALL, SMALL), strict=True)
    px, py, lanes = bits.pack(x), bits.pack(y), len(x)
    assert bits.unpack(px, lanes) == list(x)
    assert bits.unpack(bits.add(px, py), lanes) == [p + q for p, q in zip(x, y, strict=True)]
    assert bits.unpack(bits.subtract(px, py), lanes) == [p - q for p, q in zip(x, y, strict=True)]
    assert bits.unpack(bits.multiply(px, py), lanes) == [p * q for p, q in zip(x, y, strict=True)]
    assert bits.count(bits.differ(px, py), lanes) == lanes - len(SMALL)


def test_wide_numbers() -> None:
    random = np.random.RandomState(1)
    parts = zip(random.randint(-99, 99, 300), random.randint(0, 55, 300), random.randint(-3, 4, 300), strict=True)
    wide = [int(v) * 2 ** int(s) + int(d) for v, s, d in parts]
    wide += [2**62 - 1, -(2**62), 2**31, -(2**31), 0, -1]
    other = wide[::-1]
    lanes = len(wide)
    product = bits.unpack(bits.multiply(bits.pack(wide), bits.pack(other)), lanes)
    assert product == [p * q for p, q in zip(wide, other, strict=True)]
    for p, q in zip(wide, other, strict=True):
        assert bits.unpack(bits.add(bits.constant(p), bits.constant(q)), 1) == [p + q]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("places", [1, 2, 5])
def test_registers_on_all_small_numbers(places: int, signed: bool) -> None:
    values = list(range(-80, 81))
    low, high = (-(2 ** (places - 1)), 2 ** (places - 1) - 1) if signed else (0, 2**places - 1)
    number, lanes = bits.pack(values), len(values)

    def held(overflow: str) -> list[int]:
        return bits.unpack(bits.into_register(number, places, signed, overflow), lanes)

    assert held("wrap") == [(v - low) % 2**places + low for v in values]
    assert held("saturate") == [min(max(v, low), high) for v in values]
    if signed and places > 1:
        assert held("saturate_symmetric") == [min(max(v, low + 1), high) for v in values]
    inside = bits.wires(bits.fits(number, places, signed), lanes)
    assert inside == "".join("1" if low <= v <= high else "0" for v in values)
    with pytest.raises(ValueError, match="overflow"):
        held("clip")


def nearest(value: Fraction, prefer: str) -> int:
    """Round by the definition: compare the two distances, then let the word break the tie."""
    below = math.floor(value)
    above, rest = below + 1, value - below
    if rest != Fraction(1, 2):
        return above if rest > Fraction(1, 2) else below
    return {
        "even": below if below % 2 == 0 else above,
        "odd": below if below % 2 else above,
        "away": below if value < 0 else above,
        "zero": above if value < 0 else below,
        "positive": above,
        "negative": below,
    }[prefer]


def defined(value: Fraction, rounding: str) -> int:
    if value.denominator == 1:
        return int(value)
    if rounding.startswith("ties_to_"):
        return nearest(value, rounding.removeprefix("ties_to_"))
    below = math.floor(value)
    return {
        "toward_negative": below,
        "toward_positive": below + 1,
        "toward_zero": below + (value < 0),
        "away_from_zero": below + (value > 0),
        "to_odd": below + (below % 2 == 0),
    }[rounding]


@pytest.mark.parametrize("rounding", bits.DETERMINISTIC)
def test_roundings_by_definition(rounding: str) -> None:
    values = list(range(-300, 301))
    for places in range(10):
        expected = [defined(Fraction(v, 2**places), rounding) for v in values]
        assert bits.unpack(bits.drop(bits.pack(values), places, rounding), len(values)) == expected


def adversarial_floats() -> list[float]:
    fields = [0, 1, 2, 24, 102, 125, 126, 127, 128, 150, 151, 253, 254]
    fractions = [0, 1, 2, 0x3FFFFF, 0x400000, 0x400001, 0x7FFFFE, 0x7FFFFF, 0x2AAAAA]
    patterns = [s << 31 | e << 23 | f for s in (0, 1) for e in fields for f in fractions]
    patterns += np.random.RandomState(2).randint(0, 0xFF << 23, 60).tolist()
    return [struct.unpack("<f", struct.pack("<I", pattern))[0] for pattern in patterns]


def same(x: float, y: float) -> bool:
    return struct.pack("<d", x) == struct.pack("<d", y)


def test_float32_products_against_the_processor() -> None:
    values = adversarial_floats()
    picks = np.random.RandomState(3).randint(0, len(values), (6000, 2))
    with np.errstate(all="ignore"):
        for i, j in picks:
            expected = float(np.float32(values[i]) * np.float32(values[j]))
            assert same(floats.product(values[i], values[j]), expected), (values[i], values[j])


def test_integers_to_floats_and_back() -> None:
    edges = [s * (2**p + d) for p in range(62) for d in (-1, 0, 1) for s in (-1, 1)]
    edges += [2**24 + 1, 2**24 + 3, 2**25 + 2, 2**25 + 6, 2**40 + 2**16, 2**40 + 2**16 + 1, 2**62 - 2**37]
    for value in edges:
        assert same(floats.from_integer(bits.constant(value)), float(np.float32(value)))
        assert same(floats.from_integer(bits.constant(value), floats.BINARY64), float(value))
    for x in [0.5, -0.5, 1.5, -2.5, 2.0**-149, -(2.0**-149), 8388607.5, -8388608.0, 2.0**100, 0.0, -0.0]:
        for rounding in bits.DETERMINISTIC:
            assert bits.unpack(floats.to_integer(x, rounding), 1)[0] == defined(Fraction(x), rounding)


def test_exact_sum_against_the_rule_in_numpy() -> None:
    random = np.random.RandomState(4)
    for trial in range(60):
        x = random.standard_normal(1 + trial).astype(np.float32)
        x *= np.float32(2.0 ** random.randint(-140, 100))
        x[0] *= np.float32(1e-6)
        e = max(1, int(np.max(x.view(np.uint32) & 0x7FFFFFFF)) >> 23) - 126
        total = int(np.sum(np.rint(x.astype(np.float64) * 2.0 ** (40 - e)).astype(np.int64)))
        expected = float(total) * 2.0 ** (e - 40)
        assert same(summation.exact_sum64(x.tolist()), expected)
        assert same(summation.exact_sum(x.tolist()), float(np.float32(expected)))
