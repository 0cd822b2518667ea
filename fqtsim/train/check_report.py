"""What the checks of a run are asked for, what they counted, and how sure that makes (`train --check`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fqtsim.errors import InputError

_RULE = "must be sample:F or freivalds[:F] with 0 < F <= 1, with commas"


@dataclass(frozen=True)
class Checks:
    """What `--check` asks for; None where a check is not wanted."""

    #: Share of the outputs of each GEMM that are recomputed.
    sample: float | None = None
    #: Share of the wrapping GEMMs that get a Freivalds check.
    freivalds: float | None = None


def parse_checks(text: str) -> Checks:
    """Return what `sample:0.01,freivalds` asks for. Raises InputError for anything else."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        if name not in ("sample", "freivalds") or (name == "sample" and not colon):
            raise InputError(f"check = {text}: {_RULE}; for example sample:0.01")
        try:
            share = float(number) if colon else 1.0
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise InputError(f"check = {text}: {_RULE}; for example {name}:0.01")
        if name in found:
            raise InputError(f"check = {text}: {name} is given twice; keep one")
        found[name] = share
    return Checks(**found)


@dataclass
class Counts:
    """What the checks of a run have done so far; whole numbers, so that a resumed run adds up to the same."""

    steps: int = 0
    gemms: int = 0
    #: Outputs of all GEMMs, and those recomputed.
    outputs: int = 0
    recomputed: int = 0
    #: GEMMs whose accumulator wraps, and those that got a Freivalds check.
    wrapping: int = 0
    products: int = 0

    def add(self, other: Counts) -> None:
        """Add what others have counted."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def check_report(checks: Checks, counts: Counts) -> dict[str, Any]:
    """Return what the checks did and the least probability with which they would have seen a fault.

    `wrong_output`: one output of one GEMM of the run is wrong. `wrong_kernel`: at least one output of some GEMM is
    wrong in every step. Assumed: the random words do not depend on the fault, and the operands seen are those
    multiplied. Not checked: quantizers, and float operations behind the products of layers.
    """
    plain: dict[str, Any] = {"steps": counts.steps, "gemms": counts.gemms, "outputs": counts.outputs}
    if checks.sample is not None:
        plain["sample"] = {
            "share": checks.sample, "recomputed": counts.recomputed, "wrong_output": checks.sample,
            "wrong_kernel": -np.expm1(counts.steps * np.log1p(-checks.sample)) if checks.sample < 1 else 1.0,
        }  # fmt: skip
    if checks.freivalds is not None:
        least = checks.freivalds / 4  # of uniform words, whatever is wrong (backends/checksum.py)
        plain["freivalds"] = {
            "share": checks.freivalds, "checked": counts.products, "wrapping": counts.wrapping,
            "wrong_output": checks.freivalds,
            "wrong_kernel": float(-np.expm1(counts.steps * np.log1p(-least))),
        }  # fmt: skip
    return plain


def check_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report of the checks as lines of text."""
    lines = []
    sample, products = report.get("sample"), report.get("freivalds")
    if sample is not None:
        lines += [
            f"sample     {sample['recomputed']} of {report['outputs']} outputs in {report['gemms']} GEMMs "
            "recomputed with stepwise, all equal",
            *_probabilities(sample, report["steps"], "some GEMM"),
        ]
    if products is not None:
        lines.append(
            f"freivalds  {products['checked']} of {products['wrapping']} wrapping GEMMs of {report['gemms']} "
            "checked modulo 2**bits, all equal"
        )
        if products["wrapping"]:
            lines += _probabilities(products, report["steps"], "a wrapping GEMM")
    return lines


def _probabilities(numbers: Mapping[str, Any], steps: int, where: str) -> list[str]:
    return [
        f"           one wrong output, once, in {where}: seen with probability >= {_shown(numbers['wrong_output'])}",
        f"           a kernel wrong in {where} in each of {steps} steps: >= {_shown(numbers['wrong_kernel'])}",
    ]


def _shown(probability: float) -> str:
    return f"{probability:.6f}" if probability < 0.999999 else "1" if probability == 1 else "0.999999"
