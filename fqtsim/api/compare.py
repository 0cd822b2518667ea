"""compare and assert_bitexact: somebody else's outputs against the datapath, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from fqtsim.api.arrays import Array, checked_operands, checked_start, to_numpy
from fqtsim.api.explain import Explanation, explain, steps_under
from fqtsim.api.multiply import chosen_datapath, plain_codes
from fqtsim.errors import InputError
from fqtsim.hw.spec import Datapath, Hardware

STEPS = 8
"""Additions shown of the first wrong output."""
MOST_SAID = 5
"""Suggestions in the text of a failure."""


class Suggested(NamedTuple):
    """What a search for causes found: its sentences, and the additions of the first wrong output under the first."""

    texts: tuple[str, ...]
    steps: tuple[Any, ...] | None


@dataclass(frozen=True)
class Comparison:
    """What a comparison found. Row, column and codes are None where all outputs are equal."""

    equal: bool
    #: The first wrong output in row-major order, its expected and its observed code.
    row: int | None
    col: int | None
    expected: int | None
    observed: int | None
    #: Wrong outputs, and all outputs.
    mismatches: int
    outputs: int
    #: Every addition of the first wrong output.
    explanation: Explanation | None = None
    #: Tries changes of the datapath on all outputs.
    find_causes: Callable[[], Suggested] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def _suggested(self) -> Suggested:
        return self.find_causes() if self.find_causes else Suggested((), None)

    @property
    def causes(self) -> tuple[str, ...]:
        """Suggestions: changes of the datapath that give every observed output; found when first asked for.

        Empty where all outputs are equal, and where nothing that was tried gives them.
        """
        return self._suggested.texts

    def __str__(self) -> str:
        if self.equal:
            return f"all {self.outputs} outputs equal"
        expected, observed = int(self.expected or 0), int(self.observed or 0)
        lines = [
            f"{self.mismatches} of {self.outputs} outputs differ; first at [{self.row}, {self.col}]:",
            f"  expected {expected} ({in_hex(expected)})",
            f"  observed {observed} ({in_hex(observed)}), off by {observed - expected}",
        ]
        if self.explanation is not None:
            lines += ["expected from:", _window(self.explanation.focused(observed, self._suggested.steps))]
        if self.causes:
            lines += ["suggestions:", *(f"  - {cause}" for cause in self.causes[:MOST_SAID])]
            more = len(self.causes) - MOST_SAID
            lines += (
                [f"  and {more} more that these outputs cannot tell apart: compare(...).causes"] if more > 0 else []
            )
        return "\n".join(lines)


def _window(explanation: Explanation) -> str:
    """Return the additions around the one that tells most, as many as a failing test is worth, and why that one."""
    console = Console(width=110, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(explanation.table(STEPS))
    why = f"\nshown: {explanation.why}" if explanation.why else ""
    return capture.get() + explanation.summary() + why


def in_hex(code: int) -> str:
    """Return a code as two's complement hexadecimal, 32 bits where it fits."""
    bits = 32 if -(1 << 31) <= code < 1 << 32 else 64
    return f"0x{code & ((1 << bits) - 1):0{bits // 4}x}"


def compare(a: Any, b: Any, hw: Hardware | str, observed: Any, gemm: str = "fprop", c: Any = None) -> Comparison:
    """Compare observed accumulator codes (M, N) with what the datapath gives for a and b, every addition performed.

    Raises InputError for operands that gemm() refuses and for an observed array of another shape or of floats.
    """
    datapath = chosen_datapath(hw, gemm)
    left, right = checked_operands(a, b, datapath)
    shape = (left.shape[0], right.shape[1])
    found = to_numpy(observed, "observed")
    if found.shape != shape:
        raise InputError(f"observed.shape = {found.shape}: must be {shape}, rows of a by columns of b; reshape it")
    expected = plain_codes(left, right, datapath, checked_start(c, datapath, shape))
    wrong = np.argwhere(found != expected)
    if not len(wrong):
        return Comparison(True, None, None, None, None, 0, expected.size)
    row, col = (int(index) for index in wrong[0])
    explanation = explain(a, b, hw, row, col, gemm, c)
    return Comparison(
        False, row, col, int(expected[row, col]), int(found[row, col]), len(wrong), expected.size,
        explanation=explanation, find_causes=lambda: _causes(left, right, datapath, found, c, row, col),
    )  # fmt: skip


def _causes(a: Array, b: Array, datapath: Datapath, observed: Array, c: Any, row: int, col: int) -> Suggested:
    from fqtsim.identify.change import Problem
    from fqtsim.identify.search import explain_mismatch

    causes = explain_mismatch(a, b, datapath, observed, c)
    texts = tuple(said(cause, observed.size, "this case") for cause in causes)
    start = checked_start(c, datapath, (a.shape[0], b.shape[1]))
    problem = Problem(a.astype(np.int32), b.astype(np.int32), start, datapath)
    return Suggested(texts, steps_under(causes[0].change, problem, row, col) if causes else None)


def said(cause: Any, total: int, where: str) -> str:
    """Return a cause of fqtsim.identify as a sentence that says on which of `total` outputs it was tried.

    where: what the outputs are of, as "this case".
    """
    if not cause.reproduces_all:
        return str(cause)
    if cause.outputs < total:
        return f"{cause.text} (reproduces a sample of {cause.outputs:,} of {total:,} outputs of {where})"
    every = f"all {total:,} outputs" if total > 1 else "the only output"
    return f"{cause.text} (reproduces {every} of {where}, {cause.wrong:,} wrong)"


def assert_bitexact(actual: Any, a: Any, b: Any, hw: Hardware | str, gemm: str = "fprop", c: Any = None) -> None:
    """Raise AssertionError showing the first wrong bit unless actual equals the datapath's codes for a and b.

    Works in any test runner with a hardware name and nothing else. Raises InputError as compare() does, and where
    there is no output to compare: an empty comparison proves nothing.
    """
    __tracebackhide__ = True
    comparison = compare(a, b, hw, actual, gemm, c)
    if not comparison.outputs:
        raise InputError("actual: has no outputs, so nothing was compared; pass non-empty operands")
    if not comparison.equal:
        # The text is made when somebody reads it: a search for a smaller case fails thousands of times unread.
        raise AssertionError(comparison)
