"""Random cases through every backend: the same function runs a few in the normal suite and 100,000 in the long one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from independent import model
from independent.cases import Case, case

from fqtsim.backends import GemmResult, get_backend
from fqtsim.hw.spec import Datapath


@dataclass
class Tally:
    """What was compared."""

    cases: int = 0
    outputs: int = 0
    altered: int = 0
    transient: int = 0
    reference: int = 0
    per_bit: int = 0
    deepest: int = 0
    datapaths: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return (
            f"{self.cases} cases, {self.outputs} outputs, {len(self.datapaths)} datapaths, K up to {self.deepest}: "
            f"stepwise == emulator in all, == reference in {self.reference}, == per-bit model in {self.per_bit}; "
            f"{self.altered} with altered outputs, {self.transient} with transients"
        )


def agree(count: int, reference: Callable[[int], bool], per_bit: Callable[[int], bool], datapaths: int = 2500) -> Tally:
    """Compare the backends on cases 0..count-1; `reference` and `per_bit` choose who else takes part."""
    tally = Tally()
    for number in range(count):
        one = case(number, datapaths)
        path = Datapath.model_validate(one.datapath)
        stepwise = run("stepwise", one, path)
        check(one, "emulator", summary(run("emulator", one, path)), summary(stepwise))
        if reference(number):
            tally.reference += 1
            check(one, "reference", summary(run("reference", one, path)), summary(stepwise))
        if per_bit(number):
            tally.per_bit += 1
            # Lists without rows do not say how many columns there are; start values do.
            start = None if one.c is None and one.a.shape[1] else start_values(one)
            found = model.gemm(one.a.tolist(), one.b.tolist(), one.datapath, start)
            check(one, "per-bit model", found, (stepwise.codes.tolist(), vars(stepwise.events)))
        tally.cases += 1
        tally.outputs += stepwise.codes.size
        tally.altered += stepwise.events.altered > 0
        tally.transient += stepwise.events.transient > 0
        tally.deepest = max(tally.deepest, one.a.shape[1])
        tally.datapaths.add(json.dumps(one.datapath, sort_keys=True))
    return tally


def start_values(one: Case) -> list[list[int]]:
    start: list[list[int]] = np.broadcast_to(0 if one.c is None else one.c, (one.a.shape[0], one.b.shape[1])).tolist()
    return start


def run(backend: str, one: Case, path: Datapath) -> GemmResult:
    a = one.a.astype(path.multiplier_format("a").storage)
    b = one.b.astype(path.multiplier_format("b").storage)
    return get_backend(backend).gemm(a, b, path, one.c)


def summary(result: GemmResult) -> tuple[Any, ...]:
    codes = result.codes
    return codes.tolist(), codes.dtype, result.events, result.minimum, result.maximum, result.at_rail


def check(one: Case, who: str, found: Any, expected: Any) -> None:
    if found != expected:
        shapes = f"{one.a.shape} x {one.b.shape}, c {None if one.c is None else np.asarray(one.c).tolist()}"
        raise AssertionError(
            f"case {one.number}, {who} against stepwise on {one.datapath}, {shapes}:\n  {found}\n  {expected}"
        )
