"""explain_requantization: which change of the `output` stages reproduces observed output codes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from fqtsim.api.arrays import is_torch, to_numpy
from fqtsim.api.requantize import requantize
from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.identify.change import Array
from fqtsim.identify.search import ENOUGH_FOR_PAIRS, MOST_CAUSES, Cause
from fqtsim.identify.stage_changes import Call, StageChange, called, combined_stages, stage_changes, stage_outputs

MOST_IN_PAIRS = 120
"""Single changes, the more usual ones, that are also tried in pairs."""
SAMPLE = 64


def explain_requantization(
    acc: Any,
    hw: Hardware | str,
    observed: Any,
    multiplier: Any = None,
    shift: Any = None,
    scale: Any = None,
    zero_point: Any = 0,
    *,
    with_pairs: bool = True,
) -> list[Cause]:
    """Return the changes of a hardware's `output` stages that reproduce all observed codes, the simplest first.

    acc, the arguments and what they may be are those of requantize(); observed has acc's shape. An empty list: no
    code is wrong, or none of the changes tried reproduces them. Raises InputError as requantize() does, and for an
    observed array of another shape.
    """
    call = prepared_call(acc, hw, multiplier, shift, scale, zero_point)
    expected, found = called(call), observed_codes(observed, np.shape(acc))
    wrong = expected != found
    if not wrong.any():
        return []
    changes = list(stage_changes(call))
    causes = _judged(changes, call, found, wrong)
    if causes or not with_pairs or len(set(zip(expected[wrong], found[wrong], strict=True))) < ENOUGH_FOR_PAIRS:
        return causes
    both = (combined_stages(one, other) for one, other in combinations(changes[:MOST_IN_PAIRS], 2))
    return _judged([change for change in both if change is not None], call, found, wrong)


def prepared_call(acc: Any, hw: Hardware | str, multiplier: Any, shift: Any, scale: Any, zero_point: Any) -> Call:
    """Return a requantization with flat arguments, each of acc's size. Raises InputError as requantize() does."""
    hardware = load_hardware(hw)
    requantize(acc, hardware, multiplier, shift, scale, zero_point)  # checks every argument
    codes = to_numpy(acc, "acc")

    def flat(value: Any, kind: Any) -> Array | None:
        if value is None:
            return None
        array = np.asarray(value.detach().cpu() if is_torch(value) else value).astype(kind)
        return np.ascontiguousarray(np.broadcast_to(array, codes.shape)).ravel()

    zero = flat(zero_point, np.int64)
    return Call(
        codes.astype(np.int64).ravel(), hardware, flat(multiplier, np.int64), flat(shift, np.int64),
        flat(scale, np.float32), np.zeros(codes.size, np.int64) if zero is None else zero,
    )  # fmt: skip


def observed_codes(observed: Any, shape: tuple[int, ...]) -> Array:
    """Return observed outputs, flat. Raises InputError for another shape than acc's."""
    found = np.asarray(observed.detach().cpu() if is_torch(observed) else observed)
    if found.shape != shape:
        raise InputError(f"observed.shape = {found.shape}: must be {shape}, that of acc; reshape it")
    wide: Array = found.ravel().astype(np.float64 if found.dtype.kind == "f" else np.int64)
    return wide


def _judged(changes: Sequence[StageChange], call: Call, found: Array, wrong: Array) -> list[Cause]:
    """Return the changes that give every observed output; most of them fail on a few wrong ones."""
    places = np.flatnonzero(wrong)
    few = places[np.linspace(0, places.size - 1, min(places.size, SAMPLE)).astype(int)]
    part, total = _part(call, few), int(wrong.sum())
    causes: list[Cause] = []
    for change in changes:
        if len(causes) == MOST_CAUSES:
            break
        if not change.neighbours and not _gives(change, part, found[few]):
            continue
        if _gives(change, call, found):
            causes.append(Cause(change.text, total, total, found.size, True, change.count, change))
    return causes


def _gives(change: StageChange, call: Call, found: Array) -> bool:
    codes = stage_outputs(change, call)
    return codes is not None and np.array_equal(codes, found)


def _part(call: Call, few: Array) -> Call:
    arrays: dict[str, Any] = {
        name: None if getattr(call, name) is None else getattr(call, name)[few]
        for name in ("acc", "multiplier", "shift", "scale", "zero_point")
    }
    return call._replace(**arrays)
