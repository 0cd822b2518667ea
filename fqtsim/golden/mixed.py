"""Golden cases of the block Householder quantizer (S5.12, Q6 to Q8): group structures, and ties of mixed rows.

A group of four whose leader's range is 8/3 of its followers' mixes without any rounding: the factor between them is 2,
and the root of four is 2. So that case aims at ties on the grids of mixed rows. Every code of every case is repeated
by the definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.api.requantize import random_bits
from fqtsim.golden.case import Array, Case
from fqtsim.golden.codes import random_values, zero_word
from fqtsim.golden.inputs import Draw
from fqtsim.golden.recheck import fault
from fqtsim.hw.spec import Hardware
from fqtsim.quantizers import QTensor, quantizer
from fqtsim.ref import householder, quantize
from fqtsim.words import IntFormat, Rounding

CAPPED = 24
"""Ratios of scales end at 2**24 (Q7.3)."""


def mixed_cases(hardware: Hardware, seed: int) -> list[Case]:
    """Return the cases of bhq for the port of dgrad's left operand, which gradients enter.

    To nearest, and stochastic where the hardware has random bits. No cases where that port takes no negative values:
    mixing gives values of both signs.
    """
    port, zero = hardware.datapath_for("dgrad").a_format, zero_word(hardware, "dgrad")
    if zero == "symmetric" and not port.signed:
        return []
    cases = []
    for name, x in _structures(port, seed).items():
        cases.append(_case(f"quantize_bhq_{name}", x, hardware, Rounding.TIES_TO_EVEN, seed))
        if hardware.random is not None:
            cases.append(_case(f"quantize_bhq_{name}_stochastic", x, hardware, Rounding.STOCHASTIC, seed))
    return cases


def _structures(port: IntFormat, seed: int) -> dict[str, Array]:
    """Return float32 tensors by name; rows are indices of dimension 0."""
    draw = Draw(seed, "bhq")

    def rows(*magnitudes: float, columns: int = 13) -> Array:
        """Rows of random values, each with a range of 2 to the bit, then of these magnitudes."""
        values = random_values(draw, (len(magnitudes), columns), 0.99)
        values[:, 1], values[:, columns - 2] = -1, 1
        return np.asarray(values * np.array(magnitudes, np.float32)[:, None], np.float32)

    random = random_values(draw, (16, 12)) * np.exp2(draw.integers(-9, 9, (16, 1))).astype(np.float32)
    constant = rows(2, 0.5, 1, 0.25)
    constant[[1, 3]] = np.array([[0.75], [-3]], np.float32)  # range 0, but not 0
    return {
        "one_row": rows(1.5),
        "two_rows": rows(0.125, 3),
        "dominant": rows(0.01, 0.02, 900, 0.015, 0.01, 0.005, 0.02),
        "equal": rows(*[0.5] * 7),
        "range_ties": rows(8, 3, 8, 1, 3, 1, 8, 1, 1),
        "many": np.asarray(random, np.float32),
        "zero_rows": rows(0, 4, 0, 0.5, 0, 1),
        "zeros": np.zeros((4, 5), np.float32),
        "constant_rows": constant,
        "denormal": rows(3e-42, 1e-40, 1.5e-45, 2e-41, 1e-38),
        "huge": rows(3e38, 1, 2e38, 1e30),
        "cap_within": rows(2.0**40, 2.0**-32 * 1.01),
        "cap_beyond": rows(2.0**-34, 2.0**40, 2.0**-33, 2.0**-50),
        "below_integers": _equal_as_integers(rows(1, 1)),
        "rank_4": rows(1, 0.125, 64, 0.25, 2, columns=24).reshape(5, 3, 4, 2),
        "ties": _ties(port),
    }


def _equal_as_integers(x: Array) -> Array:
    """Make the second range larger by less than the integers of Q6.2 show: its row follows, with a ratio of 1."""
    x[0, x[0] == -1] = 0
    x[0] = np.abs(x[0])
    x[1] = x[0]
    x[1, 0] = -(2.0**-45)
    return x


def _ties(port: IntFormat) -> Array:
    """Return four rows whose mixed values are exact multiples of half a step, and their neighbours.

    Columns that hold the leader alone mix to half of it in each row; columns of a follower and its negative stay as
    they are. Both span as many codes on either side of zero, the leader in steps of 1, followers of 1.5, so that ranges
    are as 8 to 3 before scaling; that holds for grids of both kinds.
    """
    side = (1 << (port.bits - 1)) - 1
    codes = np.unique([*range(-side, side, max(1, side // 30)), side]).astype(np.float64)
    halves = codes[codes < side] + 0.5
    line = np.concatenate([codes, halves])
    leader = np.zeros((4, len(line)))
    leader[0] = 2 * line
    blocks = [leader]
    for first, second in ((1, 2), (2, 3), (3, 1)):
        follower = np.zeros((4, len(line)))
        # Scaling doubles followers.
        follower[first], follower[second] = 0.75 * line, -0.75 * line
        blocks.append(follower)
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _case(name: str, x: Array, hardware: Hardware, rounding: Rounding, seed: int) -> Case:
    port, zero = hardware.datapath_for("dgrad").a_format, zero_word(hardware, "dgrad")
    bits = hardware.random.bits if rounding is Rounding.STOCHASTIC and hardware.random is not None else None
    tensor = quantizer("bhq", port.bits, rounding, bits, zero, port).quantize(x, seed, 0, 0)
    inputs = {"x": x}
    if bits is not None:
        inputs["rand_bits"] = random_bits(seed, 0, 0, x.size, bits).reshape(x.shape)
    parameters = {
        "quantizer": "bhq", "bits": port.bits, "rounding": rounding.value, "random_bits": bits, "zero": zero,
        "format": port.name,
    }  # fmt: skip
    scale = _check(name, x, tensor, parameters, inputs.get("rand_bits"))
    groups = tensor.groups or []
    expected = {
        "codes": tensor.codes, "step": tensor.step, "zero_point": tensor.zero_point,
        "group_rows": np.array([row for group in groups for row in group], np.int32),
        "group_sizes": np.array([len(group) for group in groups], np.int32), "scale": scale,
    }  # fmt: skip
    events = {"altered": tensor.clamps, "out_of_range": tensor.clamps, "transient": 0}
    return Case(name, "quantize", parameters, inputs, {key: np.asarray(value) for key, value in expected.items()},
                events, _coverage(x, tensor, scale), {})  # fmt: skip


def _coverage(x: Array, tensor: QTensor, scale: Array) -> dict[str, int]:
    groups = tensor.groups or []
    ratios = [float(scale[group[1]] / scale[group[0]]) for group in groups if len(group) > 1]
    magnitudes = np.abs(x.reshape(len(x), -1)).max(axis=1)
    return {
        "outputs": x.size, "quantizer.ties": tensor.ties, "quantizer.clamps": tensor.clamps, "bhq.groups": len(groups),
        "bhq.groups_of_one": sum(len(group) == 1 for group in groups),
        "bhq.groups_of_two": sum(len(group) == 2 for group in groups),
        "bhq.groups_of_all_rows": int(len(groups) == 1 and len(x) > 2),
        "bhq.ratios_of_one": sum(ratio == 1 for ratio in ratios),
        "bhq.ratios_at_the_cap": sum(ratio == 2.0**CAPPED for ratio in ratios),
        "bhq.zero_rows": int((magnitudes == 0).sum()),
        "bhq.denormal_rows": int(((magnitudes > 0) & (magnitudes < np.finfo(np.float32).tiny)).sum()),
    }  # fmt: skip


def _check(name: str, x: Array, tensor: QTensor, parameters: dict[str, Any], words: Array | None) -> Array:
    """Repeat groups, scales, grids and codes with the definition; return the scales, float32.

    Raises AssertionError where they differ.
    """
    rows = x.reshape(len(x), -1).astype(np.float64)
    least, greatest = rows.min(axis=1), rows.max(axis=1)
    ranges = (greatest - least).tolist()
    groups = householder.group_rows(householder.integer_ranges(ranges))
    if groups != tensor.groups:
        raise fault(name, "groups of rows")
    scales = householder.scales(groups, ranges, np.maximum(greatest, -least).tolist())
    mixed = np.array([householder.mix(column.tolist(), groups, scales) for column in rows.T]).T
    drawn = np.zeros(rows.shape, np.int64) if words is None else words.reshape(rows.shape)
    rounding, n_bits = Rounding(parameters["rounding"]), parameters["random_bits"] or 0
    signed, found = IntFormat.parse(parameters["format"]).signed, np.asarray(tensor.codes).reshape(rows.shape)
    for row, values in enumerate(mixed):
        grid = quantize.GRIDS[parameters["zero"]](
            float(values.min()) + 0.0, float(values.max()) + 0.0, parameters["bits"], signed
        )
        step, zero_point = float(np.asarray(tensor.step)[row]), int(np.asarray(tensor.zero_point)[row])
        if (grid.step, grid.zero_point) != (step, zero_point):
            raise fault(name, f"step or zero point of row {row}")
        for column, value in enumerate(values.tolist() if values.any() else ()):
            code, _ = quantize.code(value, grid, rounding, int(drawn[row, column]), n_bits)
            if code != found[row, column]:
                raise fault(name, f"code {column} of row {row}")
    return np.array(scales, np.float32)
