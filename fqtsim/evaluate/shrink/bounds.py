"""How far an accumulator can ever get: exact integers from the data types, or from the weight codes (A2Q).

Every item may be zero, so a sum of the worst items bounds every partial sum, in any order of additions. Where inner
registers wrap, the bound holds but need not be reached; everywhere else some operands reach it.

Sources: data-type and l1 bound, Colbert, Pappalardo, Petri-Koenig, "A2Q: Accumulator-Aware Quantization with
Guaranteed Overflow Avoidance" (ICCV 2023, arXiv 2308.13504). The l1 bound here counts positive and negative weights
apart and is as tight as integers allow, so it is never wider than the published one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqtsim.api.requantize import round_shift
from fqtsim.errors import InputError
from fqtsim.hw.fields import MAX_REGISTER_BITS
from fqtsim.hw.lower import Range, product_range
from fqtsim.hw.spec import Datapath, Level
from fqtsim.recipe.conflicts import FEEDS
from fqtsim.recipe.spec import Recipe
from fqtsim.words import IntFormat, Overflow, ZeroPoint

Integers = NDArray[np.int64]
#: The narrowest register of the schema.
NARROWEST = 2


def needed_bits(reach: Range, level: Level) -> int | None:
    """Return the narrowest width whose rails hold the range, in the signedness and overflow word of `level`.

    None where no register of the schema holds it: a negative sum in an unsigned register, or more than 62 bits.
    """
    form = level.register_format
    signed = form is None or form.signed
    for bits in range(NARROWEST, MAX_REGISTER_BITS + 1):
        if reach.within(*IntFormat(bits, signed).rails(level.overflow)):
            return bits
    return None


def code_range(recipe: Recipe, datapath: Datapath, gemm: str, side: str) -> Range:
    """Return every number that a recipe can put into multiplier input `side` ("a", "b") of a GEMM.

    Raises InputError where the recipe leaves that operand float.
    """
    port = next(port for port, feeds in FEEDS.items() if (gemm, side) in feeds)
    spec = recipe.port(port)
    if spec is None:
        raise InputError(f"{gemm}: {port} is float in recipe {recipe.name}, so it has no codes; use another recipe")
    if datapath.zero_point is ZeroPoint.BEFORE_MULTIPLY:
        # Code and zero point are both b-bit codes: the difference takes one bit more, and a sign.
        largest = (1 << spec.bits) - 1
        return Range(-largest, largest)
    form = datapath.a_format if side == "a" else datapath.b_format
    codes = IntFormat(spec.bits, form.signed)
    return Range(codes.minimum, codes.maximum)


def data_type_reach(datapath: Datapath, k: int, a: Range, b: Range, start: Range | None = None) -> Range:
    """Return the lowest and highest exact sum at the accumulator for K = k, over all codes in the ranges.

    Both ranges contain 0; sums start within `start`, at 0 without it. Raises InputError beyond 63 bits.
    """
    product = product_range(a, b)
    ends = np.full((k, 1), product.low, np.int64), np.full((k, 1), product.high, np.int64)
    return accumulator_reach(datapath, *ends, start or Range(0, 0))


def weight_reach(datapath: Datapath, weights: NDArray[Any], a: Range, start: Range | None = None) -> Range:
    """Return the lowest and highest exact sum at the accumulator for these weights and every left operand within `a`.

    weights: what the multiplier takes, integers (K, N). Raises InputError beyond 63 bits.
    """
    codes = weights.astype(np.int64)
    ends = np.minimum(a.low * codes, a.high * codes), np.maximum(a.low * codes, a.high * codes)
    return accumulator_reach(datapath, *ends, start or Range(0, 0))


def accumulator_reach(datapath: Datapath, low: Integers, high: Integers, start: Range) -> Range:
    """Return the lowest and highest exact sum at the accumulator, over all outputs and orders of additions.

    low, high: (K, N) ends of each product, low <= 0 <= high. Raises InputError beyond 63 bits.
    """
    if not low.size:
        return start
    for level in datapath.levels[:-1]:
        low, high = (_sums(_dropped(items, level), level) for items in (low, high))
        low, high = _held(low, high, level)
    last = datapath.levels[-1]
    low, high = (_sums(_dropped(items, last), last) for items in (low, high))
    return Range(start.low + int(low.min()), start.high + int(high.max()))


def _dropped(items: Integers, level: Level) -> Integers:
    """Return items without the bits that the level drops; every rounding keeps their order, so ends stay ends."""
    if level.item is None:
        return items
    rounded: Integers = round_shift(items, level.item.drop_bits, level.item.rounding)
    return rounded


def _sums(items: Integers, level: Level) -> Integers:
    """Return the exact sum of each register of a level, (registers, N), of items (items, N)."""
    count = len(items)
    if int(np.abs(items).max()) * count >= 1 << 62:
        raise InputError(f"K = {count}: sums need more than 63 bits; split K")
    if level.grouping == "lanes":
        lanes = level.count or 1
        padded = np.concatenate([items, np.zeros((-count % lanes, *items.shape[1:]), np.int64)])
        return np.asarray(padded.reshape(-1, lanes, *items.shape[1:]).sum(axis=0))
    run = count
    if level.grouping == "terms":
        run = min(level.count or 1, count)
    elif level.grouping == "parts":
        run = -(-count // (level.count or 1))
    return np.asarray(np.add.reduceat(items, np.arange(0, count, run), axis=0))


def _held(low: Integers, high: Integers, level: Level) -> tuple[Integers, Integers]:
    """Return the ends of what registers hold, given the ends of their exact sums."""
    form = level.register_format
    if form is None:
        return low, high
    lowest, highest = form.rails(level.overflow)
    if level.overflow is not Overflow.WRAP:
        return np.clip(low, lowest, highest), np.clip(high, lowest, highest)
    wraps = (low < lowest) | (high > highest)
    return np.where(wraps, lowest, low), np.where(wraps, highest, high)
