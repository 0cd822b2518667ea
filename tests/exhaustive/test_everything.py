"""Minutes to an hour: everything small, and 100,000 random cases. Run by `make exhaustive`.

FQTSIM_CASES scales the random cases: FQTSIM_CASES=1000 is a sample of 1 %.
"""

from __future__ import annotations

import os
import time
from itertools import product

import numpy as np
import pytest
from agreement import agree
from every_code import FIXED, compare_every_code
from mac import chain, datapath, hardware

import fqtsim
from fqtsim.backends import BACKENDS, get_backend
from fqtsim.ref.fixed import round_shift
from fqtsim.words import Rounding

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(3600)]
CASES = int(os.environ.get("FQTSIM_CASES", "100000"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("a", "b"), list(product(["int8", "uint8"], repeat=2)))
def test_all_products_of_8_bit_codes(backend: str, a: str, b: str) -> None:
    path = datapath(*chain("int32 wrap"), a=a, b=b)
    left, right = (np.arange(one.minimum, one.maximum + 1) for one in (path.a_format, path.b_format))
    expected = np.array([[x * y for y in right.tolist()] for x in left.tolist()])
    codes = get_backend(backend).gemm(left.astype(a)[:, None], right.astype(b)[None, :], path).codes
    assert codes.size == 65_536
    assert np.array_equal(codes, expected)


@pytest.mark.parametrize("backend", ["reference", "stepwise", "emulator"])
@pytest.mark.parametrize("overflow", ["wrap", "saturate", "saturate_symmetric"])
def test_all_products_of_8_bit_codes_into_narrow_registers(backend: str, overflow: str) -> None:
    codes = np.arange(-128, 128)
    exact = np.multiply.outer(codes, codes)
    for bits in range(2, 18):
        low, high = -(1 << (bits - 1)) + (overflow == "saturate_symmetric"), (1 << (bits - 1)) - 1
        expected = np.clip(exact, low, high) if overflow != "wrap" else (exact - low) % (1 << bits) + low
        out = fqtsim.gemm(codes[:, None], codes[None, :], hardware(*chain(f"int{bits} {overflow}")), backend=backend)
        assert np.array_equal(out.codes, expected), bits
        assert out.events.altered == (expected != exact).sum()


def test_every_code_of_every_format_up_to_6_bits() -> None:
    compared = compare_every_code(max_bits=6, drops=range(8))
    print(f"{compared} codes equal: every code, start value, rounding, overflow and drop up to 7 bits")
    assert compared == 11_896_560  # 248 codes, 78 ways to drop bits, 615 start values of 25 registers


@pytest.mark.parametrize("rounding", FIXED)
def test_every_16_bit_code_rounds_like_the_definition(rounding: Rounding) -> None:
    codes = np.arange(-(1 << 15), 1 << 15)
    for shift in (1, 3, 8, 15, 17):
        expected = [round_shift(code, shift, rounding) for code in codes.tolist()]
        assert fqtsim.round_shift(codes, shift, rounding).tolist() == expected


@pytest.mark.parametrize("n_bits", [1, 2, 5, 8, 12])
def test_stochastic_rounding_over_all_random_words(n_bits: int) -> None:
    """The mean is code / 2**shift exactly where the fraction has at most n bits, else low by less than 2**-n (S5.6)."""
    words, codes = np.arange(1 << n_bits), np.arange(-130, 131)
    for shift in range(1, 15):
        rounded = fqtsim.round_shift(
            np.repeat(codes[:, None], words.size, axis=1), shift, "stochastic", words[None, :], n_bits
        )
        sums = rounded.sum(axis=1)
        exact = codes * words.size / 2.0**shift  # all below 2**53: exact
        if shift <= n_bits:
            assert np.array_equal(sums, exact)
        else:
            assert ((exact - 1 < sums) & (sums <= exact)).all()
            # Over all fractions the sum is (1 - 2**(n - shift)) / 2 low on average: half a last place of the words.
            every = np.arange(1 << shift)
            low = every / 2.0 ** (shift - n_bits) - ((every << n_bits) >> shift)
            assert low.mean() == (1 - 2.0 ** (n_bits - shift)) / 2


def test_random_cases_on_every_backend() -> None:
    """Every datapath meets the reference and the per-bit model, in another of its cases each time around."""
    start = time.monotonic()
    tally = agree(
        CASES,
        reference=lambda number: number % 10 == number // 2500 % 10,
        per_bit=lambda number: number % 100 == number // 2500 % 100,
    )
    print(f"{tally}; {time.monotonic() - start:.0f} s")
    assert tally.cases == CASES
    assert tally.altered >= tally.cases // 4
    assert tally.transient >= tally.cases // 20
    if CASES >= 100_000:
        assert (tally.reference, tally.per_bit) >= (10_000, 1000)
        assert len(tally.datapaths) >= 2000
        assert tally.deepest == 4096
