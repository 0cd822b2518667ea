"""The points of a sweep: every hardware with every recipe and every combination of `--set` values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from fqtsim.errors import InputError
from fqtsim.evaluate.job import BASELINES, Design

#: A grid larger than this is taken for a slip of the keyboard.
MOST_POINTS = 10_000
_RANGE = re.compile(r"(?P<stem>.*?)(?P<low>\d{1,9})\.\.(?P<last>.*?)(?P<high>\d{1,9})(?:/(?P<step>\d{1,9}))?")
_OPENING, _CLOSING, _QUOTES = "[{(", "]})", "'\""


def designs(hardware: Sequence[str], recipes: Sequence[str], sets: Sequence[str]) -> list[Design]:
    """Return the grid, hardware outermost and the last of `sets` changing fastest.

    An item of `hardware` is one description, several with commas, or one design of several PATTERN=NAME with commas.
    An item of `recipes` is one recipe or several with commas. An item of `sets` is hardware.KEY=VALUES or
    recipe.KEY=VALUES, see values(). Raises InputError for a malformed item, a repeated point and a grid too large.
    """
    arrays = [array for item in hardware for array in _arrays(item)]
    names = [name for item in recipes for name in _names("--recipe", item)]
    _refuse_missing(arrays, names)
    axes = _axes(sets)
    size = len(arrays) * len(names)
    for axis in axes:
        size *= len(axis.values)
    if size > MOST_POINTS:
        raise InputError(f"the grid has {size} points: at most {MOST_POINTS} are run; sweep fewer values")
    found = [
        Design(recipe, array, _chosen("hardware", axes, point), _chosen("recipe", axes, point))
        for array, recipe, point in product(arrays, names, list(product(*(axis.values for axis in axes))))
    ]
    _refuse_repeated(found)
    return found


@dataclass(frozen=True)
class _Axis:
    owner: str
    key: str
    values: tuple[str, ...]


def _axes(sets: Sequence[str]) -> list[_Axis]:
    axes: list[_Axis] = []
    for text in sets:
        path, equals, listed = text.partition("=")
        owner, dot, key = path.partition(".")
        if not (equals and dot and key and owner in ("hardware", "recipe")):
            example = "for example hardware.datapath.levels.-1.register=int16..int32"
            raise InputError(f"--set {text}: must be hardware.KEY=VALUES or recipe.KEY=VALUES; {example}")
        if any((axis.owner, axis.key) == (owner, key) for axis in axes):
            raise InputError(f"--set {text}: {path} is set twice; list all values in one --set")
        axes.append(_Axis(owner, key, tuple(values(listed, f"--set {text}"))))
    return axes


def _chosen(owner: str, axes: Sequence[_Axis], point: tuple[str, ...]) -> dict[str, str]:
    return {axis.key: value for axis, value in zip(axes, point, strict=True) if axis.owner == owner}


def values(text: str, what: str) -> list[str]:
    """Return the values that `text` lists: `int16..int32`, `int12..int32/4` (step 4), `1,4,16`, or both mixed.

    A range counts the integer at the end of its bounds, both included. Commas within brackets and quotes do not
    separate. `what` names the text in the InputError that a malformed one raises.
    """
    found = [value for part in split_list(text) for value in _range(part, what)]
    if not all(found):
        raise InputError(f"{what}: has an empty value; write values such as int16..int32 or 1,4,16")
    for value in found:
        if found.count(value) > 1:
            raise InputError(f"{what}: {value} is listed twice; keep one")
    return found


def split_list(text: str) -> list[str]:
    """Return the parts of `text` between commas that stand outside brackets and quotes, without outer blanks."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES:
            quote = char
        else:
            depth += (char in _OPENING) - (char in _CLOSING)
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def _range(part: str, what: str) -> Iterator[str]:
    """Yield the values of one part: itself, where it is no range."""
    if ".." not in part or part[0] in _OPENING + _QUOTES:
        yield part
        return
    match = _RANGE.fullmatch(part)
    if match is None:
        raise InputError(
            f"{what}: {part} is no range; write FIRST..LAST or FIRST..LAST/STEP, for example int12..int32/4"
        )
    stem, low, high, step = match["stem"], int(match["low"]), int(match["high"]), int(match["step"] or 1)
    if match["last"] not in ("", stem):
        rule = f"the ends of {part} differ before the number"
        raise InputError(f"{what}: {rule}; write {stem}{low}..{stem}{high}")
    if high < low:
        raise InputError(f"{what}: {part} runs backwards; write {stem}{high}..{stem}{low}")
    if step == 0 or (high - low) % step:
        rule = f"steps of {step} from {low} do not reach {high}"
        raise InputError(f"{what}: {rule}; end at {_reached(low, high, step)}, or choose another step")
    if (high - low) // step >= MOST_POINTS:
        raise InputError(f"{what}: {part} has more than {MOST_POINTS} values; sweep fewer")
    yield from (f"{stem}{number}" for number in range(low, high + 1, step))


def _reached(low: int, high: int, step: int) -> int:
    return high - (high - low) % step if step else low


def _arrays(item: str) -> list[tuple[str, ...]]:
    """Return the designs' hardware that one value of --hardware names."""
    names = _names("--hardware", item)
    with_pattern = ["=" in name for name in names]
    if all(with_pattern):
        return [tuple(names)]
    if any(with_pattern):
        rule = "mixes PATTERN=NAME, which together make one design, with a NAME, which is a design of its own"
        raise InputError(f"--hardware {item}: {rule}; give them as separate values")
    return [(name,) for name in names]


def _names(option: str, item: str) -> list[str]:
    names = [name.strip() for name in item.split(",")]
    if not all(names):
        raise InputError(f"{option} {item}: has an empty name between commas; remove the comma")
    return names


def _refuse_missing(arrays: Sequence[tuple[str, ...]], recipes: Sequence[str]) -> None:
    for option, given in (("hardware", arrays), ("recipe", recipes)):
        if not given:
            raise InputError(f"--{option}: is required, there is no default; choose one of fqtsim {option} list")
    for name in recipes:
        if name in BASELINES:
            raise InputError(f"--recipe {name}: every sweep trains {' and '.join(BASELINES)} already; leave it out")


def _refuse_repeated(found: Sequence[Design]) -> None:
    """Refuse points that a report could not tell apart, whether they are the same or only called the same."""
    seen: dict[str, Design] = {}
    for design in found:
        first = seen.setdefault(design.label, design)
        if first is design:
            continue
        if first == design:
            raise InputError(f"design {design.label}: is given twice; keep one")
        rule = f"would stand for {' '.join(first.hardware)} and for {' '.join(design.hardware)}"
        raise InputError(f"design {design.label}: {rule}; give the files different names")
