"""For a numerics researcher: is this rounding unbiased? Exact answers, over all random words."""

from fractions import Fraction

import fqtsim
from fqtsim.testing import check_rounding

BITS = 4  # random bits of the hardware

for code in (5, -5):
    exact = Fraction(code, 4)
    words = range(1 << BITS)
    rounded = fqtsim.round_shift([code] * len(words), 2, "stochastic", rand_bits=list(words), n_bits=BITS)
    print(f"{code}/4: stochastic mean {Fraction(int(rounded.sum()), len(words))}, exact {exact}")
    for word in ("ties_to_even", "toward_negative"):
        print(f"{code}/4: {word} gives {fqtsim.round_shift([code], 2, word)[0]}, off by {fqtsim.round_shift([code], 2, word)[0] - exact}")
