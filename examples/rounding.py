"""For a numerics researcher: is this rounding unbiased? Exact answers, over all random words."""

from fractions import Fraction

import fqtsim
from fqtsim.testing import check_rounding

BITS = 4  # random bits of the hardware
WORDS = list(range(1 << BITS))

for code in (5, -5):
    exact = Fraction(code, 4)
    stochastic = fqtsim.round_shift([code] * len(WORDS), 2, "stochastic", rand_bits=WORDS, n_bits=BITS)
    print(f"{exact}: stochastic, mean over all words: {Fraction(int(stochastic.sum()), len(WORDS))}")
    for rounding in ("ties_to_even", "toward_negative"):
        rounded = int(fqtsim.round_shift([code], 2, rounding)[0])
        print(f"{exact}: {rounding} gives {rounded}, off by {rounded - exact}")


def my_rounding(code: int, shift: int) -> int:
    """Add half, then shift: is it what its author thinks, ties away from zero?"""
    return (code + (1 << shift >> 1)) >> shift


try:
    check_rounding(my_rounding, "ties_to_away")
except AssertionError as error:
    print("my_rounding:", error)
