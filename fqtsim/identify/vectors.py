"""identify: which hardware, or which registers and groupings, gave observed codes, from the vectors alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from fqtsim.api.arrays import to_numpy
from fqtsim.errors import InputError
from fqtsim.hw.load import hardware_names, load_hardware
from fqtsim.hw.spec import Datapath, Hardware, Level
from fqtsim.identify.change import Array, Change, Problem, outputs
from fqtsim.identify.registers import make_level
from fqtsim.identify.requantization import explain_requantization, observed_codes, prepared_call
from fqtsim.identify.search import explain_mismatch
from fqtsim.identify.stage_changes import called
from fqtsim.identify.tell_apart import Answer, Question, questions
from fqtsim.words import GEMMS, IntFormat, Overflow

WIDTHS = (*range(8, 41), 48, 62)
MOST_ASKED = 12
_SAME = Change("", "")


@dataclass(frozen=True)
class Identified:
    """What could have produced the vectors."""

    #: Hardware files that give every observed code: "name (fprop, dgrad)".
    hardware: tuple[str, ...]
    #: Registers and groupings that do, in words; widths that cannot be told apart are one range.
    parameters: tuple[str, ...]
    #: Hardware files with one or two changes that do, where neither of the others does.
    changed: tuple[str, ...]
    #: Inputs that tell the first of these apart, in the order hardware, parameters, changed.
    questions: tuple[Question, ...]
    #: Hardware files that could not be run on these operands, and why.
    refused: tuple[str, ...]

    @property
    def survivors(self) -> tuple[str, ...]:
        """Everything that could have produced the vectors; empty where the answer is none of these."""
        return (*self.hardware, *self.parameters, *self.changed)

    def __str__(self) -> str:
        if not self.survivors:
            return "none of these: no hardware file, register, grouping or change that was tried gives these codes"
        lines = [f"{number}. {text}" for number, text in enumerate(self.survivors, 1)]
        for question in self.questions:
            lines.append(f"would tell them apart: {question}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Survivor:
    text: str
    datapath: Datapath
    change: Change = _SAME


def identify(a: Any, b: Any, observed: Any, c: Any = None, among: Sequence[str | Hardware] | None = None) -> Identified:
    """Return what gives observed codes (M, N) for a (M, K) and b (K, N), starting at c.

    among: hardware names, files or objects; all shipped ones by default. Raises InputError for shapes that do not
    fit, for what is no integer, and where there is no output.
    """
    problem, found = _problem(a, b, observed, c)
    files = [load_hardware(hardware) for hardware in (hardware_names() if among is None else among)]
    hardware, refused = _among(files, problem, found)
    parameters = list(_parameters(problem, found))
    changed = [] if hardware or parameters else list(_changed(files, problem, found))
    survivors = [*hardware, *parameters, *changed]
    return Identified(
        _texts(hardware), _texts(parameters), _texts(changed), tuple(_asked(survivors[:MOST_ASKED])), refused
    )  # fmt: skip


def _texts(survivors: Sequence[_Survivor]) -> tuple[str, ...]:
    return tuple(survivor.text for survivor in survivors)


def _problem(a: Any, b: Any, observed: Any, c: Any) -> tuple[Problem, Array]:
    left, right, found = to_numpy(a, "a"), to_numpy(b, "b"), to_numpy(observed, "codes")
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise InputError(f"a.shape = {left.shape}, b.shape = {right.shape}: must be (M, K) and (K, N); reshape them")
    shape = (left.shape[0], right.shape[1])
    if found.shape != shape or not found.size:
        raise InputError(f"codes.shape = {found.shape}: must be {shape}, with at least one output; reshape it")
    for name, codes in (("a", left), ("b", right)):
        if codes.size and not (int(codes.min()) >= -(1 << 16) and int(codes.max()) < 1 << 16):
            raise InputError(f"{name} = {codes.min()}..{codes.max()}: operands have at most 17 bits; narrow them")
    datapath = Datapath.model_validate({
        "a": _form(left).name, "b": _form(right).name, "zero_point": "none",
        "levels": [{"terms": "all", "register": "exact"}],
    })  # fmt: skip
    start = None if c is None else np.broadcast_to(to_numpy(c, "c"), shape).astype(np.int64)
    return Problem(left.astype(np.int32), right.astype(np.int32), start, datapath), found.astype(np.int64)


def _form(codes: Array) -> IntFormat:
    """Return a usual format of at most 16 bits that holds the codes, or the widest."""
    low, high = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    for bits in (4, 8, 12, 16):
        for signed in (True, False):
            form = IntFormat(bits, signed)
            if form.minimum <= low and high <= form.maximum:
                return form
    return IntFormat(16, True)


def _gives(problem: Problem, datapath: Datapath, found: Array) -> bool:
    """Tell whether a datapath gives the observed codes: a corner first, then all of them."""
    m, n = problem.shape
    for rows, cols in ((np.arange(min(m, 3)), np.arange(min(n, 3))), (np.arange(m), np.arange(n))):
        codes = outputs(_SAME, problem._replace(datapath=datapath), rows, cols)
        if codes is None or not np.array_equal(codes, found[np.ix_(rows, cols)]):
            return False
    return True


def _fault(problem: Problem, datapath: Datapath) -> str | None:
    """Return why a datapath cannot take these operands, or None where it can."""
    for name, codes, form in (
        ("a", problem.a, datapath.multiplier_format("a")),
        ("b", problem.b, datapath.multiplier_format("b")),
    ):
        if codes.size and (int(codes.min()) < form.minimum or int(codes.max()) > form.maximum):
            return f"{name} holds {codes.min()}..{codes.max()}, beyond {form}"
    register = datapath.accumulator.register_format
    if problem.c is not None and register is not None:
        low, high = register.rails(datapath.accumulator.overflow)
        if int(problem.c.min()) < low or int(problem.c.max()) > high:
            return f"c holds {problem.c.min()}..{problem.c.max()}, beyond the accumulator"
    return None


def _among(files: Sequence[Hardware], problem: Problem, found: Array) -> tuple[list[_Survivor], tuple[str, ...]]:
    survivors, refused = [], []
    for hardware in files:
        agreeing, faults = [], []
        for gemm in GEMMS:
            datapath = hardware.datapath_for(gemm)
            fault = _fault(problem, datapath)
            if fault is not None:
                faults.append(f"{gemm}: {fault}")
            elif _gives(problem, datapath, found):
                agreeing.append((gemm, datapath))
        if agreeing:
            names = ", ".join(gemm for gemm, _ in agreeing)
            survivors.append(_Survivor(f"{hardware.name} ({names})", agreeing[0][1]))
        elif len(faults) == len(GEMMS):
            refused.append(f"{hardware.name}: {'; '.join(faults)}")
    return survivors, tuple(refused)


def _shapes() -> Iterator[tuple[str, tuple[Level, ...]]]:
    """What may stand between the multipliers and the accumulator, the plainest first."""
    yield "every product added by itself", ()
    for count in (2, 4, 8, 16, 32, 64):
        yield f"{count} products summed exactly at a time", (make_level("exact", terms=count),)
    pair = (make_level("exact", terms=2), make_level("int16", Overflow.SATURATE, terms=1))
    yield "pairs of products saturating at 16 bits", pair
    yield "pairs of products saturating at 16 bits, two pairs at a time", (*pair, make_level("exact", terms=2))


def _parameters(problem: Problem, found: Array) -> Iterator[_Survivor]:
    """Yield registers and groupings that give the codes; those like a plainer grouping in every width are left out."""
    seen: set[tuple[Overflow, tuple[int, ...]]] = set()
    for shape, inner in _shapes():
        for word in Overflow:
            fitting = {}
            for width in WIDTHS:
                accumulator = make_level(IntFormat(width, True).name, word, terms="all")
                datapath = problem.datapath.model_copy(update={"levels": (*inner, accumulator)})
                if _fault(problem, datapath) is None and _gives(problem, datapath, found):
                    fitting[width] = datapath
            if fitting and (word, tuple(fitting)) not in seen:
                seen.add((word, tuple(fitting)))
                text = f"{shape}, accumulator of {_ranges(list(fitting))} bits, {word}"
                yield _Survivor(text, next(iter(fitting.values())))


def _ranges(widths: Sequence[int]) -> str:
    """Return widths as ranges of the list of all widths: "16", "18 to 40"."""
    said = []
    places = [(WIDTHS.index(width), width) for width in widths]
    for _, run in groupby(enumerate(places), key=lambda numbered: numbered[1][0] - numbered[0]):
        some = [width for _, (_, width) in run]
        said.append(f"{some[0]}" if len(some) == 1 else f"{some[0]} to {some[-1]}")
    return ", ".join(said)


def _changed(files: Sequence[Hardware], problem: Problem, found: Array) -> Iterator[_Survivor]:
    """Yield hardware with a change, for the datapaths that take these operands."""
    tried: list[Datapath] = []
    for hardware in files:
        for gemm in GEMMS:
            datapath = hardware.datapath_for(gemm)
            if datapath in tried or _fault(problem, datapath) is not None:
                continue
            tried.append(datapath)
            for cause in explain_mismatch(problem.a, problem.b, datapath, found, problem.c)[:2]:
                yield _Survivor(f"{hardware.name} ({gemm}), where {cause.text}", datapath, cause.change)


def _asked(survivors: Sequence[_Survivor]) -> list[Question]:
    """Return inputs that tell survivors apart, in formats that all of them take."""
    if len(survivors) < 2:
        return []

    def answer(survivor: _Survivor) -> Answer:
        return lambda problem: outputs(survivor.change, problem._replace(datapath=survivor.datapath))

    return questions([answer(survivor) for survivor in survivors], _shared(survivors))


def _shared(survivors: Sequence[_Survivor]) -> Datapath:
    """Return the first survivor's datapath with operands and start values that every survivor takes."""
    forms = {}
    for side in ("a", "b"):
        taken = [survivor.datapath.multiplier_format("a" if side == "a" else "b") for survivor in survivors]
        magnitude = min(form.maximum for form in taken).bit_length()
        signed = all(form.signed for form in taken)
        forms[side] = IntFormat(min(magnitude + signed, 16), signed).name
    narrowest = min(
        (survivor.datapath.accumulator for survivor in survivors if survivor.datapath.accumulator.register_format),
        key=lambda level: level.register_format.bits if level.register_format else 64,
        default=survivors[0].datapath.accumulator,
    )
    return survivors[0].datapath.model_copy(update={**forms, "zero_point": "none", "levels": (narrowest,)})


def identify_requantization(
    acc: Any, observed: Any, arguments: dict[str, Any], among: Sequence[str | Hardware] | None = None
) -> Identified:
    """Return the hardware files whose `output` stages give observed codes for accumulator codes acc.

    arguments: those of requantize(), as far as there are any. Where no file does, files with a change are named.
    Raises InputError where no file's stages take these arguments.
    """
    names = hardware_names() if among is None else among
    files = [hardware for hardware in map(load_hardware, names) if hardware.output is not None]
    survivors, changed, refused = [], [], []
    for hardware in files:
        try:
            call = prepared_call(acc, hardware, **_all_arguments(arguments))
        except InputError as error:
            refused.append(f"{hardware.name}: {error}")
            continue
        if np.array_equal(called(call), observed_codes(observed, np.shape(acc))):
            survivors.append(hardware.name)
            continue
        for cause in explain_requantization(acc, hardware, observed, **_all_arguments(arguments))[:3]:
            changed.append(f"{hardware.name}, where {cause.text}")
    if len(refused) == len(files):
        raise InputError(f"no hardware's output stages take these arguments ({'; '.join(refused) or 'none has any'})")
    return Identified(tuple(survivors), (), () if survivors else tuple(changed), (), tuple(refused))


def _all_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"multiplier": None, "shift": None, "scale": None, "zero_point": 0, **arguments}
