"""Operands that aim at a sum: limits of every register, powers of two, ties, transients, the order of k (S4)."""

from __future__ import annotations

import numpy as np

from fqtsim.golden.inputs import Array, Builder, Inputs, Plan
from fqtsim.hw.spec import Datapath
from fqtsim.ref.gemm import register_of_items

SHORT, LONGEST = 4200, 1 << 18
"""Most terms of a case whose operands a file holds, and of a seeded one."""
BESIDE = (-2, -1, 0, 1, 2)
POWERS, LONG_POWERS = (7, 8, 12, 15, 16, 20, 23, 24, 25), (30, 31)
"""Bits at which registers, or the integers of float32, end; the longer ones need a seeded case."""

Pair = tuple[Array, Array]


def owners(datapath: Datapath, k: int) -> list[Array]:
    """Return, level by level, the register that the product of each k ends in."""
    place, count, found = np.arange(k), k, []
    for level in datapath.levels:
        takers = np.array(register_of_items(level, count))
        place = takers[place]
        found.append(place)
        count = (level.count or 1) if level.grouping == "lanes" else int(takers[-1]) + 1
    return found


def terms_for(datapath: Datapath, level: int, k: int) -> Array:
    """Return places in k whose products enter register 0 of a level, each in a limited lower register of its own."""
    return terms_among(owners(datapath, k), datapath, level, np.ones(k, bool))


def terms_among(chain: list[Array], datapath: Datapath, level: int, free: Array) -> Array:
    """Return the same places, from what `owners` gives and the places (k,) that may be used."""
    inside = np.flatnonzero((chain[level] == 0) & free)
    limited = [lower for lower in range(level) if datapath.levels[lower].register_format is not None]
    if not limited:
        return inside
    _, first = np.unique(chain[limited[-1]][inside], return_index=True)
    return inside[np.sort(first)]


class Aim:
    """Products that add up to a target in the unit of one level: multiples of what is dropped on the way to it."""

    def __init__(self, plan: Plan, level: int, positive: bool) -> None:
        self.plan, self.level = plan, level
        drops = sum(lower.dropped_bits for lower in plan.datapath.levels[: level + 1])
        reach_a, reach_b = (max(-low, high) for low, high in (plan.a, plan.b))
        on_b = max(0, min(drops // 2, reach_b.bit_length() - 1))
        on_a = min(drops - on_b, reach_a.bit_length() - 1)
        on_b = drops - on_a
        self.units = (1 << on_a, 1 << on_b)
        ends_a, ends_b = ([_toward_zero(end, unit) for end in ends]
                          for ends, unit in ((plan.a, self.units[0]), (plan.b, self.units[1])))  # fmt: skip
        pairs = [(x, y) for x in ends_a for y in ends_b if x * y and (x * y > 0) is positive]
        #: The product that reaches farthest, as its two factors; None where there is none of this sign.
        self.best: tuple[int, int] | None = max(pairs, key=lambda pair: abs(pair[0] * pair[1]), default=None)
        self._spare_lower_registers()

    def _spare_lower_registers(self) -> None:
        """Make the product small enough for every register below."""
        for level in self.plan.datapath.levels[: self.level]:
            form = level.register_format
            if form is None or self.best is None:
                continue
            x, y = self.best
            low, high = form.rails(level.overflow)
            room = high if x * y > 0 else -low
            magnitude = min(abs(x), room // abs(y))
            self.best = (magnitude if x > 0 else -magnitude, y) if magnitude else None

    def factors(self, target: int) -> tuple[list[int], list[int]]:
        """Return the codes of both sides, in order: the largest products first, what is left last."""
        x, y = self.best or (1, 1)
        sign_x, sign_y = (1 if x > 0 else -1), (1 if y > 0 else -1)
        size_x, size_y = abs(x), abs(y)
        whole, rest = divmod(abs(target), size_x * size_y)
        pairs = [(size_x, size_y)] * whole + _as_products(rest, size_x, size_y)
        if len(pairs) == whole + 2 and whole:  # a little less in one large product may leave one product, not two
            for less in range(1, min(size_x, 64)):
                spared = _as_products(rest + less * size_y, size_x, size_y)
                if len(spared) == 1:
                    pairs = [(size_x, size_y)] * (whole - 1) + [(size_x - less, size_y), *spared]
                    break
        left = [sign_x * size * self.units[0] for size, _ in pairs]
        return left, [sign_y * size * self.units[1] for _, size in pairs]

    def count(self, target: int) -> int | None:
        """Return how many products the target needs, None where none help."""
        if self.best is None:
            return None
        product = abs(self.best[0] * self.best[1])
        whole = abs(target) // product
        if whole > LONGEST:
            return None
        spared = max(0, whole - 2)  # the large products that decide nothing but the length
        return spared + len(self.factors(abs(target) - spared * product)[0])


def _as_products(rest: int, size_x: int, size_y: int) -> list[tuple[int, int]]:
    """Return none, one or two products of factors up to these sizes that add up to rest < size_x * size_y + size_y."""
    if not rest:
        return []
    for x in range(max(1, -(-rest // size_y)), min(size_x, rest) + 1):
        if rest % x == 0:
            return [(x, rest // x)]
    quotient, remainder = divmod(rest, size_y)
    return [(min(quotient, size_x), size_y), (1, remainder)] if quotient <= size_x else [(1, 1)] * 3


def _toward_zero(code: int, unit: int) -> int:
    return code // unit if code >= 0 else -(-code // unit)


def _landing(plan: Plan, level: int, targets: list[int], most: int, least: int = 0) -> Inputs | None:
    """Return operands whose output [i, i] sums to target i in register 0 of a level, K in least + 1..most.

    None where fewer than two of the targets can be reached; the other outputs are mixtures.
    """
    reachable = []
    for target in targets:
        aim = Aim(plan, level, target > 0)
        count = aim.count(target)
        if count is not None and (k := _least_k(plan.datapath, level, count, most)) is not None and k > least:
            reachable.append((target, aim, k))
    if len(reachable) < 2:
        return None
    longest = max(k for _, _, k in reachable)
    a, b = np.zeros((len(reachable), longest), np.int64), np.zeros((longest, len(reachable)), np.int64)
    places = terms_for(plan.datapath, level, longest)
    for index, (target, aim, _) in enumerate(reachable):
        left, right = aim.factors(target)
        a[index, places[: len(left)]], b[places[: len(right)], index] = left, right
    return plan.inputs(a, b)


def _least_k(datapath: Datapath, level: int, count: int, most: int) -> int | None:
    """Return a K that gives register 0 of a level so many terms, None where no K up to `most` does."""
    spread = 1
    for lower in datapath.levels[: level + 1]:
        spread *= lower.count or 1
    doubled = {count << bits for bits in range(spread.bit_length())}
    for k in sorted({count, count * spread} | doubled):
        # `parts` splits anew for each K, and `terms` never takes more than its run.
        if k <= most and len(terms_for(datapath, level, k)) >= count:
            return k
    return None


def rails_beside(plan: Plan, level: int) -> list[int]:
    """Return both rails of a level's register and the codes beside them, none of them 0; empty for an exact one."""
    described = plan.datapath.levels[level]
    form = described.register_format
    rails = () if form is None else form.rails(described.overflow)
    return [rail + more for rail in rails for more in (-1, 0, 1) if rail + more]


def _limits(level: int, upper: bool, most: int, least: int = 0) -> Builder:
    """Sums that land on a rail of one level, and one and two beside it."""

    def build(plan: Plan) -> Inputs | None:
        described = plan.datapath.levels[level]
        form = described.register_format
        if form is None:
            return None
        rail = form.rails(described.overflow)[upper]
        beside = BESIDE if most == SHORT else (-1, 0, 1)
        return _landing(plan, level, [rail + more for more in beside if rail + more], most, least)

    return build


def _powers(powers: tuple[int, ...], most: int, least: int = 0) -> Builder:
    """Sums at and beside powers of two, up to two bits beyond the accumulator, at which other registers end."""

    def build(plan: Plan) -> Inputs | None:
        form = plan.datapath.accumulator.register_format
        reached = [bits for bits in powers if form is None or bits <= form.bits + 1]
        targets = [sign * (1 << bits) + more for bits in reached for sign in (-1, 1) for more in (-1, 0, 1)]
        return _landing(plan, len(plan.datapath.levels) - 1, targets, most, least)

    return build


def _limits_from_start(plan: Plan) -> Inputs | None:
    """Start values near a rail, and one sum that lands on it, stays one below and passes it by one."""
    last = len(plan.datapath.levels) - 1
    if plan.datapath.accumulator.register_format is None:
        return None
    low, high = plan.accumulator
    found = []
    for rail, sign in ((high, 1), (low, -1)):
        aim = Aim(plan, last, sign > 0)
        if aim.best is None:
            continue
        total = sign * min(3 * abs(aim.best[0] * aim.best[1]) + 5, max(3, (high - low) // 4))
        found += [(aim.factors(total), rail - total + more) for more in BESIDE if low <= rail - total + more <= high]
    return diagonal(plan, last, found)


def diagonal(plan: Plan, level: int, found: list[tuple[tuple[list[int], list[int]], int]]) -> Inputs | None:
    """Return operands in which output [i, i] has the i-th factors, in order, and starts at the i-th value.

    None for no factors, and where no K up to SHORT has room for them.
    """
    longest = max((len(factors[0]) for factors, _ in found), default=0)
    k = _least_k(plan.datapath, level, longest, SHORT) if longest else None
    if k is None:
        return None
    places = terms_for(plan.datapath, level, k)
    a, b = np.zeros((len(found), k), np.int64), np.zeros((k, len(found)), np.int64)
    for index, ((left, right), _) in enumerate(found):
        a[index, places[: len(left)]], b[places[: len(right)], index] = left, right
    starts = np.array([start for _, start in found])
    return plan.inputs(a, b, np.repeat(starts[:, None], len(found), axis=1) if starts.any() else None)


def transient_factors(plan: Plan, from_start: bool = False) -> list[tuple[tuple[list[int], list[int]], int]]:
    """Return factors, in order, of sums that pass a rail and come back to 0, both signs, each with its start value.

    Empty where the accumulator is exact, one sign has no products, or they would be too many.
    """
    last = len(plan.datapath.levels) - 1
    up, down = Aim(plan, last, True), Aim(plan, last, False)
    if plan.datapath.accumulator.register_format is None or up.best is None or down.best is None:
        return []
    low, high = plan.accumulator
    found = []
    for rail, out, back in ((high, up, down), (low, down, up)):
        for more in (0, 1, 2 * _span(plan.datapath) + 1):
            step = abs(out.best[0] * out.best[1]) if out.best else 1
            sign = 1 if rail > 0 else -1
            start = min(max(rail - sign * step, low), high) if from_start else 0
            far = rail - start + sign * (step + 1) * more
            if abs(far) // step > SHORT // 2:
                return []
            there, home = out.factors(far), back.factors(-far)
            found.append(((there[0] + home[0], there[1] + home[1]), start))
    return found


def _transients(from_start: bool) -> Builder:
    """Sums that pass a rail on the way and come back: out by the same products as in, both signs."""

    def build(plan: Plan) -> Inputs | None:
        return diagonal(plan, len(plan.datapath.levels) - 1, transient_factors(plan, from_start))

    return build


def _span(datapath: Datapath) -> int:
    """Return how many products, at most 64, may cancel below the accumulator."""
    span = 1
    for level in datapath.levels[:-1]:
        span *= level.count or 1
    return min(span, 64)


def _order(from_start: bool) -> Builder:
    """The same products in several orders: forwards, backwards, alternating, interleaved halves, shuffled."""

    def build(plan: Plan) -> Inputs | None:
        low, high = plan.accumulator
        signed_a = plan.a[0] < 0
        step = max(-plan.a[0], plan.a[1]) * max(-plan.b[0], plan.b[1]) >> plan.datapath.dropped_bits
        half = 40 if from_start else max(8, high // max(1, step) + 6)
        if half > 1000 or not (signed_a or plan.b[0] < 0):
            return None
        moving, resting = (plan.a, plan.b) if signed_a else (plan.b, plan.a)
        line = np.concatenate([np.full(half, moving[1]), np.full(half, moving[0]), [1, moving[1] - 1, moving[0] + 1]])
        orders = _orders(len(line), plan)
        rows, columns = line[orders], np.repeat([[resting[1], resting[1] - 1, 1]], len(line), axis=0)
        a, b = (rows, columns) if signed_a else (columns.T, rows.T)
        if not from_start:
            return plan.inputs(a, b)
        shape = (a.shape[0], b.shape[1])
        beside = np.arange(shape[0] * shape[1]).reshape(shape) % 3 * max(1, step)
        return plan.inputs(a, b, np.clip(np.where(beside % 2, low + beside, high - beside), low, high))

    return build


def _orders(count: int, plan: Plan) -> Array:
    forwards = np.arange(count)
    halves = [forwards[: (count + 1) // 2], forwards[(count + 1) // 2 :]]
    shuffled = np.argsort(plan.draw.integers(0, 1 << 40, (count,)), kind="stable")
    alternating = np.argsort(np.minimum(forwards, count - 1 - forwards), kind="stable")
    blocks = [np.argsort(forwards % lanes, kind="stable") for lanes in (2, 4, 8, 16)]
    return np.stack([forwards, forwards[::-1], np.concatenate(halves[::-1]), alternating, shuffled, *blocks])


def _ties(level: int) -> Builder:
    """Items at exact ties of what a level drops, and one beside, of both signs, dense and sparse along k."""

    def build(plan: Plan) -> Inputs | None:
        levels = plan.datapath.levels
        bits = sum(lower.dropped_bits for lower in levels[: level + 1])
        below = bits - levels[level].dropped_bits
        pairs = [_pairs_of_residue(plan, bits, residue) for residue in _residues(bits, below)]
        kinds = [found for found in pairs if found is not None]
        if not levels[level].dropped_bits or not kinds:
            return None
        k = 61
        spacings = (1, 2, 4, 8, 16, 32)
        a = np.zeros((len(kinds) * len(spacings), k), np.int64)
        b = np.zeros((k, len(kinds) * len(spacings)), np.int64)
        for index in range(a.shape[0]):
            places = np.arange(0, k, spacings[index % len(spacings)])
            left, right = kinds[index // len(spacings)]
            chosen = plan.draw.integers(0, len(left) - 1, (len(places),))
            a[index, places], b[places, index] = left[chosen], right[chosen]
        return plan.inputs(a, b)

    return build


def _residues(bits: int, below: int) -> list[int]:
    """Return what the low bits of a product must be: the tie, one unit of the item beside it, one of the product."""
    half = 1 << (bits - 1) if bits else 0
    beside = {1 << below, 1}
    return [half, *(half + sign * unit for unit in sorted(beside) for sign in (-1, 1) if unit < half)]


def _pairs_of_residue(plan: Plan, bits: int, residue: int) -> Pair | None:
    """Return codes whose products have these low bits, as many negative as positive where both exist."""
    if bits > 40:
        return None
    sides = [np.unique(plan.draw.integers(low, high, (500,))) for low, high in (plan.a, plan.b)]
    powers = [[sign << bit for bit in range(17) for sign in (-3, -1, 1, 3) if low <= sign << bit <= high]
              for low, high in (plan.a, plan.b)]  # fmt: skip
    left, right = (np.union1d(side, more) for side, more in zip(sides, powers, strict=True))
    product = left[:, None] * right[None, :]
    hits = np.argwhere(product & ((1 << bits) - 1) == residue % (1 << bits))
    if not len(hits):
        return None
    x, y = left[hits[:, 0]], right[hits[:, 1]]
    positive, negative = np.flatnonzero(x * y > 0), np.flatnonzero(x * y < 0)
    size = min(len(positive), len(negative)) or len(hits)
    every = np.concatenate([positive[:size], negative[:size]]) if size < len(hits) else np.arange(len(hits))
    return x[every], y[every]


def sum_cases(datapath: Datapath) -> dict[str, Builder]:
    """Return the builders of this module by name, for every level of a datapath."""
    found: dict[str, Builder] = {}
    for index, level in enumerate(datapath.levels):
        if level.dropped_bits:
            found[f"level{index}_ties"] = _ties(index)
        if level.register_format is not None:
            found[f"level{index}_high"] = _limits(index, True, SHORT)
            found[f"level{index}_low"] = _limits(index, False, SHORT)
    found |= {"powers_of_two": _powers(POWERS, SHORT), "transients": _transients(False), "order": _order(False)}
    found |= {"start_limits": _limits_from_start, "start_transients": _transients(True), "start_order": _order(True)}
    last = len(datapath.levels) - 1
    found |= {"long_high": _limits(last, True, LONGEST, SHORT), "long_low": _limits(last, False, LONGEST, SHORT)}
    return found | {"powers_of_two_long": _powers(LONG_POWERS, LONGEST, SHORT)}
