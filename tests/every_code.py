"""Every code of every narrow format through one level of the kernels, against the definition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np
from mac import datapath, level

from fqtsim.backends import get_backend
from fqtsim.ref.fixed import into_register, round_shift
from fqtsim.words import IntFormat, Overflow, Rounding

FIXED = [rounding for rounding in Rounding if rounding is not Rounding.STOCHASTIC]


def compare_every_code(max_bits: int, drops: Iterable[int]) -> int:
    """Push all codes, times 1, into all registers from all start values; return how many outputs were compared."""
    forms = [IntFormat(bits, signed) for bits in range(2, max_bits + 1) for signed in (True, False)]
    registers = [(form, word) for form in forms for word in Overflow if _has_meaning(form, word)]
    compared = 0
    for form, (drop, rounding) in product(forms, _ways_to_drop(drops)):
        values = range(form.minimum, form.maximum + 1)
        items = [round_shift(code, drop, rounding or Rounding.TO_ODD) for code in values]
        for register, word in registers:
            compared += _compare(form, list(values), items, drop, rounding, register, word)
    return compared


def _has_meaning(form: IntFormat, word: Overflow) -> bool:
    return form.signed or word is not Overflow.SATURATE_SYMMETRIC


def _ways_to_drop(drops: Iterable[int]) -> Iterator[tuple[int, Rounding | None]]:
    for drop in drops:
        yield from product([drop], FIXED if drop else [None])


def _compare(
    form: IntFormat,
    values: list[int],
    items: list[int],
    drop: int,
    rounding: Rounding | None,
    register: IntFormat,
    word: Overflow,
) -> int:
    chain = level(register.name, word.value, **({"drop": (drop, rounding.value)} if rounding else {}))
    path = datapath(chain, a=form.name, b="uint2")
    low, high = register.rails(word)
    starts = range(low, high + 1)
    a = np.array(values, form.storage).reshape(-1, 1)
    b = np.ones((1, len(starts)), np.uint8)
    result = get_backend("stepwise").gemm(a, b, path, np.array(starts).reshape(1, -1))
    expected = [[into_register(start + item, register, word) for start in starts] for item in items]
    assert result.codes.tolist() == expected, (form, drop, rounding, register, word)
    return result.codes.size
