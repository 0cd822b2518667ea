"""check: run a kernel on every case of a golden set, compare to the bit, say where and how it is wrong.

A verdict, never a crash: a kernel that raises, hangs or writes nonsense gets a result that says so. Patterns and
causes come from patterns.py and fqtsim.identify; terminal.py and page.py show a verdict to people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fqtsim.api.compare import in_hex
from fqtsim.api.explain import Explanation
from fqtsim.errors import InputError
from fqtsim.golden.case import Array, Case, GoldenSet
from fqtsim.golden.command import CommandKernel
from fqtsim.golden.derivation import Derivation
from fqtsim.golden.first_wrong import explained_first, in_logical_order
from fqtsim.golden.kernels import (
    TIME_LIMIT,
    ImportedKernel,
    Kernel,
    KernelFault,
    OutputsFile,
    as_kernel,
)
from fqtsim.hw.spec import Hardware

LAYOUT = " (column-major)"
"""Ends the name of a case that is run again on operands that lie in memory column by column."""
MOST_PATTERNED = 6
"""Failing cases, smallest first, in which patterns are looked for."""
MOST_LAID_OUT = 1 << 20


@dataclass(frozen=True)
class Mismatch:
    """The first wrong element of an output, in row-major order."""

    #: Name of the output, and the element's place in it.
    output: str
    index: tuple[int, ...]
    expected: int | float
    observed: int | float
    #: Wrong elements, and all elements, of this output.
    mismatches: int
    outputs: int

    def lines(self) -> list[str]:
        """Return it in words: place, expected and observed code in hexadecimal too, and the difference."""
        place = f"[{', '.join(map(str, self.index))}]"
        head = "output" if self.output == "codes" else self.output
        shown = [f"{self.mismatches} of {self.outputs} elements of {head} differ; first at {place}:"]
        shown.append(f"  expected {self.expected}{_hex(self.expected)}")
        shown.append(f"  observed {self.observed}{_hex(self.observed)}{_off(self.expected, self.observed)}")
        return shown


def _hex(code: int | float) -> str:
    return f" ({in_hex(code)})" if isinstance(code, int) else f" ({np.float32(code).tobytes()[::-1].hex()} as float32)"


def _off(expected: int | float, observed: int | float) -> str:
    return f", off by {observed - expected}" if isinstance(expected, int) and isinstance(observed, int) else ""


@dataclass(frozen=True, eq=False)
class CaseResult:
    """What came of one case: equal outputs, a first mismatch, or a fault that left nothing to compare."""

    case: Case
    #: Name of the case, and of the layout where it is not row-major.
    name: str
    #: What the kernel did in place of giving outputs of the right names, shapes and types; else None.
    fault: str | None = None
    mismatch: Mismatch | None = None
    #: Every output that differs, as the kernel gave it.
    observed: Mapping[str, Array] = field(default_factory=dict)
    #: Outputs of the set that the kernel did not return.
    not_compared: tuple[str, ...] = ()
    #: Where and how the outputs are wrong, in sentences.
    patterns: tuple[str, ...] = ()
    #: Where its expected value comes from: every addition of a GEMM or convolution, every stage of another rule.
    explanation: Explanation | Derivation | None = None

    @property
    def equal(self) -> bool:
        """Whether every output that was compared is right, to the bit."""
        return self.fault is None and self.mismatch is None


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a kernel gave for a golden set."""

    golden: GoldenSet
    kernel: str
    results: tuple[CaseResult, ...]
    #: What is true of the cases that fail, against those that pass.
    patterns: tuple[str, ...] = ()
    #: Changes of the hardware that would give the same outputs: suggestions. Says so where none was found.
    causes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every case is equal to the bit, and there is one."""
        return bool(self.results) and not self.failures

    @property
    def failures(self) -> tuple[CaseResult, ...]:
        """The cases that differ or gave nothing to compare, in the set's order."""
        return tuple(result for result in self.results if not result.equal)

    @property
    def shown(self) -> CaseResult | None:
        """The failing case to look at first: one with outputs, and the fewest products, though not none at all."""
        failing = [result for result in self.failures if result.mismatch is not None]
        first = next(iter(self.failures), None)
        return min(failing, key=lambda result: (not size(result.case), size(result.case)), default=first)

    def __str__(self) -> str:
        from fqtsim.golden.terminal import plain

        return plain(self)


def size(case: Case) -> int:
    """Return the number of products of a GEMM, of elements of any other case, without making its arrays."""
    shapes = shapes_of(case)
    if case.kind == "gemm":
        return shapes["a"][0] * shapes["a"][1] * shapes["b"][1]
    return sum(int(np.prod(shape)) for shape in shapes.values())


def shapes_of(case: Case) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a case's inputs, of a seeded one without making them."""
    if case.seeded is not None:
        return {name: tuple(described["shape"]) for name, described in case.seeded["inputs"].items()}
    return {name: array.shape for name, array in case.inputs.items()}


def check(
    golden: GoldenSet,
    kernel: Kernel | Callable[..., Any],
    *,
    time_limit: float = TIME_LIMIT,
    layouts: bool = False,
    explained: bool = True,
    watch: Callable[[str], None] | None = None,
) -> Verdict:
    """Run a kernel on every case of a set and compare every output to the bit.

    kernel: a function of a case's arguments by keyword, or a Kernel; a Kernel stays open. time_limit: seconds for one
    case, of a plain function. layouts: run the smaller GEMMs once more with column-major operands, for kernels that
    take arrays of any strides. explained: also look for patterns and causes. watch: called with the name of each case.

    Raises InputError for a set without cases, which would prove nothing, and for no kernel.
    """
    if not golden.cases:
        raise InputError("golden set: has no cases, so it proves nothing; choose cases that it has")
    tested = as_kernel(kernel, time_limit)
    results = []
    for case in golden.cases:
        if watch is not None:
            watch(case.name)
        results.append(check_case(case, tested))
        if layouts and case.kind == "gemm" and not case.is_large and size(case) <= MOST_LAID_OUT:
            results.append(check_case(case, tested, column_major=True))
    verdict = Verdict(golden, tested.name, tuple(results))
    if verdict.passed or not explained:
        return verdict
    if watch is not None:
        watch("looking for patterns and causes")
    return _explained(verdict, tested)


def check_case(case: Case, kernel: Kernel | Callable[..., Any], column_major: bool = False) -> CaseResult:
    """Run a kernel on one case and compare. Raises InputError for no kernel, and a seeded case that cannot be made."""
    tested, name = as_kernel(kernel), case.name + LAYOUT * column_major
    inputs = None
    if column_major:
        inputs = {key: np.asfortranarray(array) for key, array in case.inputs.items()}
    try:
        found = tested.run(case, inputs)
    except KernelFault as fault:
        return CaseResult(case, name, str(fault))
    return compared(case, found, name)


def compared(case: Case, found: Mapping[str, Any], name: str | None = None) -> CaseResult:
    """Compare outputs by name with those of a case, to the bit; integers of any width may hold codes."""
    name = name or case.name
    missing = tuple(output for output in case.expected if output not in found)
    if len(missing) == len(case.expected):
        return CaseResult(case, name, f"returned {', '.join(found) or 'nothing'}: none of {', '.join(case.expected)}")
    wrong: dict[str, Array] = {}
    first: Mismatch | None = None
    for output in in_logical_order(case):
        if output in missing:
            continue
        right = case.expected[output]
        observed = np.asarray(found[output])
        fault = _unfit(output, observed, right)
        if fault is not None:
            return CaseResult(case, name, fault, not_compared=missing)
        mask = differs(right, observed)
        if mask.any():
            wrong[output] = observed
            first = first or _first(output, right, observed, mask)
    return CaseResult(case, name, None, first, wrong, missing)


def _unfit(output: str, observed: Array, right: Array) -> str | None:
    """Return why an output cannot be compared; None where it can."""
    if observed.shape != right.shape:
        return f"{output} has shape {observed.shape}, not {right.shape}"
    if right.dtype.kind in "iu" and observed.dtype.kind == "f" and not np.isfinite(observed).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(observed))[0])
        return f"{output} has {observed[place]} at {list(place)} and dtype {observed.dtype}, not {right.dtype}"
    fits = observed.dtype.kind in "iu" if right.dtype.kind in "iu" else observed.dtype == right.dtype
    return None if fits else f"{output} has dtype {observed.dtype}, not {right.dtype}"


def differs(right: Array, observed: Array) -> Array:
    """Return which elements differ: integers as numbers, floats by their bits (0 is not -0)."""
    if right.dtype.kind == "f":
        word = f"i{right.dtype.itemsize}"
        unlike = np.ascontiguousarray(right).view(word) != np.ascontiguousarray(observed).view(word)
        return np.asarray(unlike).reshape(right.shape)  # NumPy makes a number of no dimension contiguous as one of one
    return np.asarray(right != observed)


def _first(output: str, right: Array, observed: Array, mask: Array) -> Mismatch:
    flat = int(np.argmax(mask))
    index = tuple(int(part) for part in np.unravel_index(flat, mask.shape)) if mask.ndim else ()
    return Mismatch(output, index, right[index].item(), observed[index].item(), int(mask.sum()), mask.size)


def _explained(verdict: Verdict, kernel: Kernel) -> Verdict:
    """Return the verdict with patterns, partial sums and causes."""
    from fqtsim.golden.causes import likely_causes, steps_of
    from fqtsim.golden.patterns import case_patterns, set_patterns

    failing = sorted((one for one in verdict.failures if one.mismatch is not None), key=lambda one: size(one.case))
    likely = likely_causes(verdict.results, verdict.golden.hardware)
    better: dict[str, CaseResult] = {}
    for place, result in enumerate(failing[:MOST_PATTERNED]):
        again = kernel if place == 0 and kernel.can_run_again and result.name == result.case.name else None
        patterns = case_patterns(result, verdict.golden.hardware, again)
        explanation = explained_first(result, verdict.golden.hardware, steps_of(likely, result))
        better[result.name] = replace(result, patterns=patterns, explanation=explanation)
    results = tuple(better.get(result.name, result) for result in verdict.results)
    return replace(verdict, results=results, patterns=set_patterns(results), causes=likely.texts)


def explained_case(result: CaseResult, hardware: Hardware, kernel: Kernel | None = None) -> str:
    """Return one failing case as text: first mismatch, additions around it, patterns, suggestions."""
    from fqtsim.golden.causes import likely_causes, steps_of
    from fqtsim.golden.patterns import case_patterns
    from fqtsim.golden.terminal import case_text

    again = kernel if kernel is not None and kernel.can_run_again and result.name == result.case.name else None
    patterns = case_patterns(result, hardware, again)
    likely = likely_causes([result], hardware)
    explanation = explained_first(result, hardware, steps_of(likely, result))
    return case_text(replace(result, patterns=patterns, explanation=explanation), likely.texts)


def check_file(
    golden: GoldenSet, kernel: str | None, command: str | None, outputs: Path | None, timeout: float,
    page: Path | None = None, layouts: bool = False,
) -> int:  # fmt: skip
    """Check what the command line names, print the verdict, write the page. Returns the exit code, 1 on a mismatch.

    One of kernel, command and outputs is given. Raises InputError for a kernel that cannot be found.
    """
    from rich.console import Console

    from fqtsim.golden.terminal import show

    with _opened(golden, kernel, command, outputs, timeout) as tested:
        console = Console(stderr=True)
        status: AbstractContextManager[Any] = console.status("checking") if console.is_terminal else nullcontext()
        with status as line:
            verdict = check(golden, tested, layouts=layouts, watch=None if line is None else line.update)
    show(verdict)
    if page is not None:
        from fqtsim.golden.page import write_page

        write_page(verdict, page)
        Console().print(f"page       {page}", highlight=False, soft_wrap=True)
    return 0 if verdict.passed else 1


def _opened(golden: GoldenSet, kernel: str | None, command: str | None, outputs: Path | None, timeout: float) -> Kernel:
    if kernel is not None:
        return ImportedKernel(kernel, timeout)
    if command is not None:
        return CommandKernel(command, timeout)
    if outputs is None:
        raise InputError("no kernel: give one of --kernel, --command and --outputs")
    return OutputsFile(outputs, tuple(case.name for case in golden.cases))
