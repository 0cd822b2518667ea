"""Hypothesis strategies for formats and codes. Corners weigh as much as all other codes together."""

from __future__ import annotations

from hypothesis import strategies as st

from fqtsim.errors import InputError
from fqtsim.words import IntFormat, Overflow


def as_format(form: IntFormat | str) -> IntFormat:
    """Return a format given by name or as itself. Raises InputError for text that names none."""
    return form if isinstance(form, IntFormat) else IntFormat.parse(form)


def formats(min_bits: int = 2, max_bits: int = 16, signed: bool | None = None) -> st.SearchStrategy[IntFormat]:
    """Return a strategy for formats of min_bits..max_bits bits; signed=None draws both kinds.

    Raises InputError where the range of widths is empty or outside 1..64.

        @given(formats(max_bits=8))
        def test_name(form): assert IntFormat.parse(form.name) == form
    """
    if not 1 <= min_bits <= max_bits <= 64:
        raise InputError(f"min_bits = {min_bits}, max_bits = {max_bits}: must be 1 <= min_bits <= max_bits <= 64")
    kinds = st.booleans() if signed is None else st.just(signed)
    return st.builds(IntFormat, bits=st.integers(min_bits, max_bits), signed=kinds)


def corners(form: IntFormat, overflow: Overflow | None = None) -> list[int]:
    """Return the codes of a format where mistakes sit, by magnitude.

    Rails and their neighbours, zero and one, powers of two and their neighbours, and ties: odd multiples of a power
    of two, which lie half way between two codes once the bits below and that one are dropped.
    """
    lowest, highest = form.rails(overflow)
    found = {lowest, lowest + 1, highest - 1, highest, 0, 1, -1}
    for power in (1 << p for p in range(form.bits)):
        found |= {sign * (power + beside) for sign in (-1, 1) for beside in (-1, 0, 1)}
        found |= {sign * odd * power for sign in (-1, 1) for odd in (3, 5)}
    return sorted((code for code in found if lowest <= code <= highest), key=lambda code: (abs(code), code < 0))


def codes(form: IntFormat | str, overflow: Overflow | str | None = None) -> st.SearchStrategy[int]:
    """Return a strategy for codes of a format, half of them corners: rails, +-1, powers of two, ties.

    overflow: with "saturate_symmetric" the most negative code is left out. Shrinks toward 0.

        @given(codes("int8"))
        def test_negate(code): assert my_negate(code) == min(-code, 127)
    """
    form = as_format(form)
    word = None if overflow is None else Overflow(overflow)
    lowest, highest = form.rails(word)
    return st.sampled_from(corners(form, word)) | st.integers(lowest, highest)
