"""Convolutions and linear steps whose sums aim at a register: its limits and beside them, and sums that come back.

A convolution puts the factors of sums.py where its lowering reads them: the codes of a tensor are found through a
tensor of their numbers, which is lowered in their place. So padding, stride holes, dilation and groups are as they
are in any layer. Code that an aimed output does not read, or multiplies by 0, is random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fqtsim.golden.case import Array, Case
from fqtsim.golden.inputs import Draw, Inputs, Plan
from fqtsim.golden.layers import SIDES, Geometry, conv_case, linear_case, linear_zero, matrices
from fqtsim.golden.sums import Aim, diagonal, owners, rails_beside, terms_among, transient_factors
from fqtsim.hw.spec import Datapath, Hardware
from fqtsim.words import GEMMS, ZeroPoint

HELD_BYTES = 1 << 19
"""Most bytes of the operands of a convolution."""
MOST_TERMS = 4200
"""Most factors of an aim; of the convolution `padded` more, as far as HELD_BYTES go."""
GROWTH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
"""Channels that are summed, by which a geometry grows until an aim has room; of wgrad, the side of an image."""


@dataclass(frozen=True)
class Goal:
    """What one output aims at: a sum in register 0 of a level, or given factors, which come back to 0."""

    level: int
    target: int = 0
    factors: tuple[list[int], list[int]] | None = None


TEMPLATES = {
    "padded": Geometry(1, 1, (3, 3), 1, (3, 3), padding=(1, 1)),
    "strided": Geometry(1, 1, (5, 4), 1, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(1, 2)),
    "grouped": Geometry(1, 1, (4, 3), 1, (2, 2), padding=(0, 1), groups=2),
}
"""Samples, channels and outputs follow from the goals."""


def aimed_conv_cases(hardware: Hardware, seed: int) -> list[Case]:
    """Return convolutions of all three GEMMs that aim at every level's limits, and at transients that cancel.

    Padding carries an end of the format where the datapath corrects zero points behind the accumulator: the lowest
    code under a stride, the highest elsewhere. What has no room in HELD_BYTES is left out.
    """
    cases = []
    for gemm in GEMMS:
        for template, geometry in TEMPLATES.items():
            for aim, choices in _goals(Plan(hardware.datapath_for(gemm), Draw(seed, "goals"))).items():
                name = f"conv_{gemm}_{template}_{aim}"
                found = (_placed(name, gemm, geometry, goals, hardware, seed) for goals in choices)
                first = next((case for case in found if case is not None), None)
                cases += [] if first is None else [first]
    return cases


def _goals(plan: Plan) -> dict[str, list[list[Goal]]]:
    """Return goals by name of the aim: all at best, else those of one rail."""
    found = {}
    for level in range(len(plan.datapath.levels)):
        goals = [Goal(level, target) for target in rails_beside(plan, level)]
        upper, lower = ([goal for goal in goals if (goal.target > 0) is side] for side in (True, False))
        found[f"level{level}_limits"] = [goals, upper, lower] if goals else []
    back = [Goal(len(plan.datapath.levels) - 1, factors=factors) for factors, _ in transient_factors(plan)]
    return found | {"transients": [back] if back else []}


def _placed(name: str, gemm: str, geometry: Geometry, goals: list[Goal], hardware: Hardware, seed: int) -> Case | None:
    """Return the case of the smallest geometry that has room for every goal; None where none has."""
    datapath = hardware.datapath_for(gemm)
    plan = Plan(datapath, Draw(seed, name))
    fill = 0
    if datapath.zero_point is ZeroPoint.AFTER_ACCUMULATE:
        fill = plan.a[geometry.stride == (1, 1)]
    counts = [len(goal.factors[0]) if goal.factors else Aim(plan, goal.level, goal.target > 0).count(goal.target)
              for goal in goals]  # fmt: skip
    needed = max(1 << 62 if count is None else count for count in counts)
    if needed > MOST_TERMS and geometry is not TEMPLATES["padded"]:
        return None
    for grown in _grown(gemm, geometry, len(goals)):
        if _bytes(gemm, grown, datapath) > HELD_BYTES:
            return None
        if _terms(gemm, grown) < needed // 2:  # padding may take up to half of a sum
            continue
        inputs = _codes(gemm, grown, goals, plan, fill)
        if inputs is not None:
            return conv_case(name, gemm, grown, inputs, fill, hardware)
    return None


def _grown(gemm: str, geometry: Geometry, goals: int) -> Iterator[Geometry]:
    """Yield geometries with a column for each goal, and rows that read different codes, of growing K."""
    groups = geometry.groups
    columns = -(-goals // groups) * groups
    for count in GROWTH:
        if gemm == "fprop":
            yield replace(geometry, samples=goals, channels=count * groups, outputs=columns)
        elif gemm == "dgrad":
            yield replace(geometry, samples=goals, channels=columns, outputs=count * groups)
        else:
            size = geometry.size[0] + count, geometry.size[1] + count
            yield replace(geometry, samples=2, channels=columns, outputs=columns, size=size)


def _terms(gemm: str, geometry: Geometry) -> int:
    """Return K."""
    if gemm == "wgrad":
        return geometry.samples * int(np.prod(geometry.positions))
    summed = geometry.channels if gemm == "fprop" else geometry.outputs
    return int(np.prod(geometry.kernel)) * summed // geometry.groups


def _bytes(gemm: str, geometry: Geometry, datapath: Datapath) -> int:
    left, right = (int(np.prod(geometry.shape(tensor))) for tensor in SIDES[gemm])
    storages = (datapath.multiplier_format("a").storage, datapath.multiplier_format("b").storage)
    return left * np.dtype(storages[0]).itemsize + right * np.dtype(storages[1]).itemsize


def _codes(gemm: str, geometry: Geometry, goals: list[Goal], plan: Plan, fill: int) -> Inputs | None:
    """Return both tensors, in which goal i is met by column i of its group; None where a goal has no room.

    Rows of two goals never read the same codes: they lie in samples of their own, of wgrad in channels of their own.
    """
    first, second = SIDES[gemm]
    shapes = [geometry.shape(tensor) for tensor in (first, second)]
    numbers = {tensor: np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
               for tensor, shape in zip((first, second), shapes, strict=True)}  # fmt: skip
    a = plan.draw.integers(*plan.a, (int(np.prod(shapes[0])),))
    b = np.zeros(int(np.prod(shapes[1])), np.int64)
    chain = owners(plan.datapath, _terms(gemm, geometry))
    lowered = [matrices(gemm, geometry, numbers, -1, group) for group in range(geometry.groups)]
    for index, goal in enumerate(goals):
        places, column = lowered[index % geometry.groups], index // geometry.groups
        rows = _rows_of(gemm, geometry, index)
        if not _meet(goal, places["a"][rows], places["b"][:, column], plan, fill, (a, b), chain):
            return None
    operands = plan.inputs(a, b)
    return {first: operands["a"].reshape(shapes[0]), second: operands["b"].reshape(shapes[1])}


def _rows_of(gemm: str, geometry: Geometry, index: int) -> slice:
    """Return the rows that may meet a goal."""
    if gemm == "wgrad":
        return slice(index // geometry.groups, None, geometry.channels // geometry.groups)
    count = int(np.prod(geometry.positions if gemm == "fprop" else geometry.size))
    return slice(index * count, (index + 1) * count)


def _meet(
    goal: Goal, rows: Array, column: Array, plan: Plan, fill: int, codes: tuple[Array, Array], chain: list[Array]
) -> bool:
    """Write codes so that one of the rows times the column meets a goal: that which reads most padding and has room.

    rows (R, K), column (K,): numbers of codes, -1 for padding. chain: what `owners` gives. False where no row has room.
    """
    seen: set[bytes] = set()
    for row in rows[np.argsort(-(rows < 0).sum(axis=1), kind="stable")]:
        inside = row >= 0
        if inside.tobytes() in seen:  # the same padding as a row without room
            continue
        seen.add(inside.tobytes())
        outside = np.flatnonzero(~inside)
        weights, spent = _padding_weights(goal, len(outside), plan, fill)
        left, right = goal.factors or Aim(plan, goal.level, goal.target > 0).factors(goal.target - spent)
        places = terms_among(chain, plan.datapath, goal.level, inside)
        if len(places) >= len(left):
            places = places[: len(left)]
            codes[0][row[places]], codes[1][column[places]], codes[1][column[outside]] = left, right, weights
            return True
    return False


def _padding_weights(goal: Goal, count: int, plan: Plan, fill: int) -> tuple[Array, int]:
    """Return the codes that padding is multiplied by, and what they add to the sum.

    They add up to half of the target, and with its sign, so that nothing passes a rail on the way. Where registers
    are several or bits are dropped they are 0, unless padding is 0 itself.
    """
    weights = np.zeros(count, np.int64)
    if not fill:
        weights[:] = plan.b[1]
        return weights, 0
    if len(plan.datapath.levels) > 1 or plan.datapath.dropped_bits or goal.factors is not None:
        return weights, 0
    code = plan.b[(goal.target > 0) is (fill > 0)]
    if fill * code * goal.target <= 0:
        return weights, 0
    weights[: abs(goal.target) // 2 // abs(fill * code)] = code
    return weights, int(weights.sum()) * fill


# Linear steps.


def aimed_linear_cases(hardware: Hardware, seed: int) -> list[Case]:
    """Return linear steps in which one GEMM aims at a level's limits, or at transients that cancel.

    Values lie on their grids, so that codes are the same for every rounding word and all random bits. The zero point
    of the left operand is at one end of its codes for limits, at the other for transients.
    """
    cases = []
    for gemm in GEMMS:
        for level in range(len(hardware.datapath_for(gemm).levels)):
            cases.append(_linear(f"linear_{gemm}_level{level}_limits", gemm, level, False, hardware, seed))
        cases.append(_linear(f"linear_{gemm}_transients", gemm, -1, True, hardware, seed))
    return [case for case in cases if case is not None]


@dataclass(frozen=True)
class Grid:
    """Codes of one operand: those of the port's least width, and the zero point among them."""

    low: int
    high: int
    zero: int
    step: float

    def values(self, codes: Array) -> Array:
        """Return float32 values of codes as they enter the multiplier."""
        return np.asarray((codes - self.zero) * self.step, np.float32)


def _linear(name: str, gemm: str, level: int, back: bool, hardware: Hardware, seed: int) -> Case | None:
    """Return one aimed step; None where the goals have no room."""
    path = hardware.datapath_for(gemm)
    a, b = (_grid(hardware, gemm, side, back) for side in ("a", "b"))
    plan = Plan(path, Draw(seed, name), ((a.low, a.high), (b.low, b.high)))
    if back:
        found = transient_factors(plan)
    else:
        aims = [(Aim(plan, level, target > 0), target) for target in rails_beside(plan, level)]
        found = [(aim.factors(target), 0) for aim, target in aims if (aim.count(target) or 1 << 30) <= MOST_TERMS]
    operands = diagonal(plan, level % len(path.levels), found) if found else None
    if operands is None:
        return None
    # One row of a and one column of b more hold both ends, which fixes the range and so the step.
    left = np.concatenate([operands["a"], _both_ends(a, operands["a"].shape[1])[None]]).astype(np.int64)
    right = np.concatenate([operands["b"], _both_ends(b, operands["b"].shape[0])[:, None]], axis=1).astype(np.int64)
    x, y = a.values(left), b.values(right)
    m, k, n = len(left), left.shape[1], right.shape[1]
    if gemm == "fprop":
        inputs = {"x": x, "w": y.T, "dh": _plain(plan, (m, n))}
    elif gemm == "dgrad":
        inputs = {"x": _plain(plan, (m, n)), "w": y, "dh": x}
    else:
        inputs = {"x": x.T, "w": _plain(plan, (n, m)), "dh": y}
    case = linear_case(name, {key: np.ascontiguousarray(value) for key, value in inputs.items()}, hardware, seed)
    return case if k else None


def _grid(hardware: Hardware, gemm: str, side: str, back: bool) -> Grid:
    """Return the grid of an operand of one GEMM, as its port in linear_case has it."""
    tensor = {"fprop": "xw", "dgrad": "gw", "wgrad": "xg"}[gemm]["ab".index(side)]
    shared = {"x": (("fprop", "a"), ("wgrad", "a")), "w": (("fprop", "b"), ("dgrad", "b"))}
    readers = shared.get(tensor, ((gemm, side),))
    forms = [getattr(hardware.datapath_for(reader), f"{operand}_format") for reader, operand in readers]
    bits, path = min(form.bits for form in forms), hardware.datapath_for(gemm)
    signed = getattr(path, f"{side}_format").signed
    top = (1 << bits) - 1
    if linear_zero(hardware) == "symmetric":
        reach = top // 2 if forms[0].signed else top
        return Grid(-reach if forms[0].signed else 0, reach, 0, 2.0**-7)
    below = (top if back else 0) if side == "a" and path.zero_point is ZeroPoint.AFTER_ACCUMULATE else top // 2
    if path.zero_point is ZeroPoint.BEFORE_MULTIPLY:
        return Grid(-below, top - below, 0, 2.0**-7)
    shift = 1 << (bits - 1) if signed else 0
    return Grid(-shift, top - shift, below - shift, 2.0**-7)


def _both_ends(grid: Grid, count: int) -> Array:
    """Return codes along k that hold the lowest and the highest, as far as there is room for two."""
    return np.where(np.arange(count) % 2 == 0, grid.high, grid.low)


def _plain(plan: Plan, shape: tuple[int, int]) -> Array:
    """Return the tensor that takes no part in the aim; values are not negative, which every grid has codes for."""
    return (plan.draw.integers(0, 1 << 24, shape) * 2.0**-24).astype(np.float32)
