"""Which tile walk performs a chain of one limited register, and how its codes stand in lanes.

The proofs are docs/semantics.md, Shortcuts, 3 to 5.
"""

from __future__ import annotations

from typing import NamedTuple

from fqtsim.backends.exact import FLOAT_EXACT_LIMIT, PLAIN_LANE, Lane
from fqtsim.hw.lower import BITS, CLAMP, DROP, EXACT, HIGH, LOW, MODE, RUN, UNSIGNED, WRAP, Lowered, Range
from fqtsim.kernels import gemm as kernels
from fqtsim.kernels import tile as tiles


class TilePlan(NamedTuple):
    """A tile walk that performs a datapath: which driver, items per group, its two limits, how codes stand in lanes."""

    driver: kernels.Driver
    group: int
    low: int
    high: int
    lane: Lane = PLAIN_LANE


def tile_plan(lowered: Lowered, dot: bool | None = None) -> TilePlan | None:
    """Return the tile walk that performs this chain, or None where only the general kernel can.

    dot: whether the CPU has a 16-bit dot product; None asks this one.
    """
    dot = tiles.HAS_DOT if dot is None else dot
    table = lowered.table
    group = 1
    if len(table) == 2 and table[0, MODE] == EXACT and table[0, RUN] > 0:
        group = int(table[0, RUN])
    elif len(table) != 1:
        return None
    last = lowered.accumulator
    if table[:, DROP].any() or lowered.product.magnitude >= 1 << 31:
        return None
    if last[MODE] == CLAMP:
        one = _int16_plan(lowered) or (_dot_plan(lowered) if dot else None) if group == 1 else None
        return one or _clamp_plan(lowered, group)
    if last[MODE] == WRAP and group == 1 and len(table) == 1 and not last[UNSIGNED] and last[BITS] <= 32:
        shift = 32 - int(last[BITS])
        plain = TilePlan(kernels.INT_SIGN_WRAP if shift else kernels.INT_EXACT, 1, shift, 0)
        return (_dot_plan(lowered) if dot else None) or plain
    return None


def _int16_plan(lowered: Lowered) -> TilePlan | None:
    """Registers of up to 16 bits in int16 lanes, moved up so that the upper rail is the lane's own (S4, shortcuts)."""
    low, high = int(lowered.accumulator[LOW]), int(lowered.accumulator[HIGH])
    if high - low >= 1 << 16 or not lowered.product.fits_signed(16):
        return None
    offset = (1 << 15) - 1 - high
    driver = kernels.INT16_SATURATE if low + offset == -(1 << 15) else kernels.INT16_SATURATE_ABOVE
    return TilePlan(driver, 1, low + offset, 0, Lane(offset))


def _dot_plan(lowered: Lowered) -> TilePlan | None:
    """Registers in int32 lanes of words of two int16, scaled so that the lane's rails are theirs (S4, shortcuts)."""
    last = lowered.accumulator
    low, high = int(last[LOW]), int(last[HIGH])
    a_room, b_room = (_room(codes) for codes in lowered.operands)
    if a_room < 0 or b_room < 0 or high >= 1 << 31:
        return None
    shift = min(32 - (high - low).bit_length(), a_room + b_room + 1)
    offset, bottom, whole = raised(low, high, shift)
    if last[MODE] == WRAP and not whole:
        return None
    doubled = shift > a_room + b_room
    lane = Lane(offset, shift, shift - doubled, a_room, b_room, doubled)
    above = kernels.DOT_SATURATE if whole else kernels.DOT_SATURATE_ABOVE
    return TilePlan(kernels.DOT_WRAP if last[MODE] == WRAP else above, 1, bottom << shift, 0, lane)


def raised(low: int, high: int, shift: int) -> tuple[int, int, bool]:
    """Return by how much codes are moved so that the upper rail of an int32 lane scaled by 2**shift is the register's.

    Beside it where the lower rail then stands, and whether that is the lane's own (docs/semantics.md, proof 5).
    """
    top = (1 << (31 - shift)) - 1
    return top - high, low + top - high, low + top - high == -top - 1


def _room(codes: Range) -> int:
    """Return how far codes can be shifted up in int16; negative where they are wider."""
    return next(
        (shift for shift in range(15, -1, -1) if Range(codes.low << shift, codes.high << shift).fits_signed(16)), -1
    )


def _clamp_plan(lowered: Lowered, group: int) -> TilePlan | None:
    low, high = int(lowered.accumulator[LOW]), int(lowered.accumulator[HIGH])
    item = lowered.product.times(group).magnitude
    # An item and both rails are float32 integers. A sum beyond 2**24 may round, but rounding is monotonic and the
    # rail it passed is a float32 number, so the clamped sum is right.
    if max(-low, high, item) <= FLOAT_EXACT_LIMIT:
        driver = kernels.FLOAT_CLAMP if group == 1 else kernels.FLOAT_CLAMP_GROUPED
        return TilePlan(driver, group, low, high)
    if lowered.word_bits == 32:
        driver = kernels.INT_CLAMP if group == 1 else kernels.INT_CLAMP_GROUPED
        return TilePlan(driver, group, low, high)
    return None
