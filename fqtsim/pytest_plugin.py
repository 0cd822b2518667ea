"""The pytest plugin: `@pytest.mark.golden(...)` runs a test once for every case of a golden set.

    @pytest.mark.golden("vectors.safetensors")                # beside the test file, or an absolute path
    def test_my_kernel(golden_case):
        golden_case.check(my_kernel)                           # called with the case's arguments, by keyword

    @pytest.mark.golden(hardware="int8_acc32_wrap", seed=0, kind="gemm", gemm="fprop")
    def test_made_here(golden_case):
        golden_case.compare(my_kernel(**golden_case.arguments))

It is installed with fqtsim and imports nothing heavy unless a test carries the mark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fqtsim.golden.case import Case, GoldenSet
    from fqtsim.golden.check import CaseResult
    from fqtsim.hw.spec import Hardware

MARK = "golden"
ARGUMENT = "golden_case"
_WORDS = ("hardware", "seed", "kind", "gemm", "start", "large", "cases")
#: Sets of this session by what made them: several tests may share one.
_SETS: dict[tuple[Any, ...], GoldenSet] = {}


class GoldenCase:
    """What a marked test is given: one case, and the way to hold a kernel against it."""

    def __init__(self, case: Case, hardware: Hardware) -> None:
        #: The case itself: inputs, expected outputs, parameters, events, coverage.
        self.case = case
        #: Whose golden case it is.
        self.hardware = hardware

    @property
    def name(self) -> str:
        """The case's name in its set."""
        return self.case.name

    @property
    def arguments(self) -> dict[str, Any]:
        """What the kernel is to be called with, by keyword: inputs, as copies, and parameters."""
        from fqtsim.golden.case import kernel_arguments

        arguments = kernel_arguments(self.case)
        return {name: value.copy() if name in self.case.inputs else value for name, value in arguments.items()}

    def check(self, kernel: Callable[..., Any], time_limit: float | None = None, layouts: bool = False) -> None:
        """Run a kernel on the case. Raises AssertionError, with the explanation, unless it is right to the bit.

        time_limit: seconds, without one the test runner's own holds. layouts: run a GEMM again on column-major
        operands.
        """
        __tracebackhide__ = True
        from fqtsim.golden.check import check_case
        from fqtsim.golden.kernels import TIME_LIMIT, as_kernel

        tested = as_kernel(kernel, time_limit or TIME_LIMIT)
        for column_major in (False, True)[: 1 + (layouts and self.case.kind == "gemm")]:
            result = check_case(self.case, tested, column_major)
            if not result.equal:
                raise AssertionError(_Explained(result, self.hardware, kernel=tested))

    def compare(self, outputs: Any) -> None:
        """Compare outputs that were computed already: an array of codes, or a mapping of outputs by name.

        Raises AssertionError as check() does.
        """
        __tracebackhide__ = True
        from fqtsim.golden.check import CaseResult, compared
        from fqtsim.golden.kernels import KernelFault, outputs_by_name

        try:
            result = compared(self.case, outputs_by_name(outputs, self.case))
        except KernelFault as fault:
            result = CaseResult(self.case, self.case.name, str(fault))
        if not result.equal:
            raise AssertionError(_Explained(result, self.hardware))

    def __repr__(self) -> str:
        return f"<golden case {self.case.name} of {self.hardware.name}>"


class _Explained:
    """The text of a failure: made when it is read."""

    def __init__(self, result: CaseResult, hardware: Hardware, kernel: Any = None) -> None:
        self._result, self._hardware, self._kernel = result, hardware, kernel
        self._text: str | None = None

    def __str__(self) -> str:
        if self._text is None:
            from fqtsim.golden.check import explained_case

            self._text = explained_case(self._result, self._hardware, self._kernel)
        return self._text


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        'golden("SET.safetensors", cases="PATTERN") or golden(hardware=NAME, seed=0, kind="gemm", gemm="fprop"): '
        "run once for every case of a golden set, which comes as the argument golden_case",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a marked test its cases."""
    marks = list(metafunc.definition.iter_markers(MARK))
    if not marks:
        return
    where = metafunc.definition.nodeid
    if ARGUMENT not in metafunc.fixturenames:
        raise pytest.UsageError(f"{where}: carries the mark golden: must take the argument {ARGUMENT}; add it")
    from fqtsim.errors import InputError

    found: list[Any] = []
    for mark in marks:
        try:
            golden, patterns = _set_of(mark, metafunc.definition.path.parent)
        except InputError as error:
            raise pytest.UsageError(f"{where}: {error}") from None
        chosen = [case for case in golden.cases if any(fnmatchcase(case.name, pattern) for pattern in patterns)]
        if not chosen:
            raise pytest.UsageError(f"{where}: cases = {patterns}: fit no case of the set; see the names without it")
        prefix = f"{golden.hardware.name}-" if len(marks) > 1 else ""
        found += [pytest.param(GoldenCase(case, golden.hardware), id=prefix + case.name) for case in chosen]
    metafunc.parametrize(ARGUMENT, found)


def _set_of(mark: pytest.Mark, folder: Path) -> tuple[GoldenSet, tuple[str, ...]]:
    """Return the set that a mark names, and the patterns of its cases. Raises InputError for a mark of another form."""
    from fqtsim.errors import InputError
    from fqtsim.golden.files import load
    from fqtsim.golden.make import make_golden
    from fqtsim.golden.vacuity import refuse_vacuous

    words: Mapping[str, Any] = mark.kwargs
    wrong = [name for name in words if name not in _WORDS]
    if wrong or len(mark.args) > 1 or bool(mark.args) == ("hardware" in words):
        raise InputError(
            f"mark golden: must name one file, or hardware=, with {', '.join(_WORDS[1:])}"
            f"{f'; it has {wrong[0]}' if wrong else ''}"
        )
    cases = words.get("cases", "*")
    patterns = (cases,) if isinstance(cases, str) else tuple(cases)
    if mark.args:
        path = folder / mark.args[0]
        key: tuple[Any, ...] = (str(path), path.stat().st_mtime_ns if path.exists() else None)
        if key not in _SETS:
            golden = load(path)
            refuse_vacuous(golden)
            _SETS[key] = golden
        return _SETS[key], patterns
    kinds = words.get("kind", "gemm")
    kinds = tuple(kinds.split(",")) if isinstance(kinds, str) else tuple(kinds)
    hardware, gemm, seed = words["hardware"], words.get("gemm", "fprop"), words.get("seed", 0)
    # Of size 4096 only where asked for: collecting tests must not take minutes.
    start, large = words.get("start", True), words.get("large", False)
    key = (str(hardware), gemm, kinds, seed, start, large)
    if key not in _SETS:
        _SETS[key] = make_golden(hardware, gemm, kinds, seed, start=start, large=large)
    return _SETS[key], patterns
