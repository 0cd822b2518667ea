"""Which float operation parted two backends: one step done again on each, every primitive's operands and results.

A first pass keeps a hash of each call, so that a step of any network fits; a second keeps the one call in doubt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fqtsim.backends.base import Array, Backend
from fqtsim.errors import FqtsimError
from fqtsim.train.reproducer import Reproducer, versions

_UNRECORDED = ("prove", "name")


def on_host(x: Any) -> Any:
    """Return a tensor of any device as a NumPy array, anything else as it is."""
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x


@dataclass(frozen=True)
class Call:
    """One call of a primitive; hashes of what went in and came out."""

    name: str
    operands: str
    results: str


@dataclass
class Recorder:
    """Stands in for a backend's primitives: does what they do, and notes every call."""

    inner: Any
    calls: list[Call]
    #: The number of the call whose operands and results are kept whole.
    wanted: int | None = None
    kept: tuple[str, tuple[Any, ...], dict[str, Any], tuple[Any, ...]] | None = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name in ("fused_norm", "fused_update") and not self.inner.on_device:
            return None  # its sequence runs, whose every operation is noted
        if not callable(found) or name.startswith("_") or name in _UNRECORDED:
            return found

        def recorded(*args: Any, **keywords: Any) -> Any:
            operands = _hash((args, sorted(keywords.items())))
            keep = len(self.calls) == self.wanted
            before = (_copied(args), _copied(keywords)) if keep else ((), {})
            result = found(*args, **keywords)
            if keep:
                results = result if isinstance(result, tuple) else (result,)
                self.kept = name, before[0], before[1], _copied(results)
            self.calls.append(Call(name, operands, _hash(result)))
            return result

        return recorded


def _hash(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for leaf in _leaves(value):
        leaf = on_host(leaf)
        if isinstance(leaf, np.ndarray | np.generic):
            digest.update(f"{leaf.dtype}{leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = [*value.items()]
    if isinstance(value, list | tuple) or type(value).__module__.startswith("fqtsim.kernels"):
        parts = value if isinstance(value, list | tuple) else vars(value).values()
        for part in parts:
            yield from _leaves(part)
    else:
        yield value


def _copied(value: Any) -> Any:
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_copied(part) for part in value)
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    host = on_host(value)
    return host.copy() if isinstance(host, np.ndarray) else host


@contextmanager
def recording(backend: Backend, wanted: int | None = None) -> Iterator[Recorder]:
    """Note what a backend's primitives are asked and answer, within the block."""
    recorder = Recorder(backend.primitives, [], wanted)
    own = "primitives" in vars(backend)
    backend.primitives = recorder  # type: ignore[assignment]
    try:
        yield recorder
    finally:
        if own:
            backend.primitives = recorder.inner
        else:
            del backend.primitives


@dataclass(frozen=True)
class Culprit:
    """The primitive that parted two backends, or why there is none to name."""

    text: str
    reproducer: Reproducer | None = None

    def at(self, step: int, layer: str) -> Culprit:
        """Return the culprit with its place in the reproducer."""
        if self.reproducer is None:
            return self
        place = {**self.reproducer.place, "step": step, "layer": layer}
        return replace(self, reproducer=replace(self.reproducer, place=place))


def find_primitive(backends: Sequence[Backend], labels: Sequence[str], steps: Sequence[Callable[[], None]]) -> Culprit:
    """Do one step again on two backends and return the first primitive whose operands agree and results do not."""
    streams = [_record(backend, step).calls for backend, step in zip(backends, steps, strict=True)]
    for number, (ours, theirs) in enumerate(zip(*streams, strict=False)):
        if ours.name != theirs.name:
            return Culprit(
                f"the step done again: operation {number + 1} is {ours.name} on {labels[0]} and {theirs.name} on "
                f"{labels[1]}; all before it agree, from here on the two are not comparable one by one"
            )
        if ours.operands != theirs.operands:
            before = streams[0][number - 1].name if number else "the batch"
            return Culprit(
                f"the step done again: every primitive up to operation {number} ({before}) agrees, the operands of "
                f"the next ({ours.name}) do not: a movement of data or a layer's own kernel between them"
            )
        if ours.results != theirs.results:
            return _culprit(number, backends, labels, steps)
    return Culprit("the step done again: every primitive agrees; the fault did not come back, or is no primitive's")


def _record(backend: Backend, step: Callable[[], None], wanted: int | None = None) -> Recorder:
    # What follows from a wrong bit may stop the step; the calls until then are what is wanted.
    with recording(backend, wanted) as recorder, suppress(FqtsimError):
        step()
    return recorder


def _culprit(
    number: int, backends: Sequence[Backend], labels: Sequence[str], steps: Sequence[Callable[[], None]]
) -> Culprit:
    kept = [_record(backend, step, number).kept for backend, step in zip(backends, steps, strict=True)]
    if kept[0] is None or kept[1] is None:
        return Culprit(f"operation {number + 1} differed once, and did not come back when the step was done again")
    name, args, keywords, _ = kept[0]
    for part, (ours, theirs) in enumerate(zip(kept[0][3], kept[1][3], strict=True)):
        x, y = np.asarray(ours), np.asarray(theirs)
        at = first_unequal(x, y)
        if at is not None:
            shown = ", ".join(
                f"{label} {show(value[at])}" for label, value in zip(labels, (x, y), strict=True) if value.shape
            ) or ", ".join(f"{label} {show(value)}" for label, value in zip(labels, (x, y), strict=True))
            text = (
                f"primitive  {name}, operation {number + 1} of the step: same operands, another result"
                f"{f' (part {part + 1})' if len(kept[0][3]) > 1 else ''} at {list(at)}: {shown}"
            )
            return Culprit(text, _reproducer(name, args, keywords, dict(zip(labels, (x, y), strict=True)), part))
    return Culprit(f"operation {number + 1} ({name}) differed once, and not when the step was done again")


def _reproducer(name: str, args: Any, keywords: Any, results: dict[str, Array], part: int) -> Reproducer | None:
    """Return the call as a file's content; None where an argument is neither array nor number nor list."""
    operands: dict[str, Array] = {}
    parameters: dict[str, Any] = {}
    given = [*((str(i), arg) for i, arg in enumerate(args)), *keywords.items()]
    # A grid or a draw: its fields, each under a name of its own.
    for key, value in [part for pair in given for part in (_fields(*pair) or [pair])]:
        value = on_host(value)
        if isinstance(value, np.ndarray | np.generic):
            operands[key] = np.asarray(value)
        elif value is None or isinstance(value, int | float | str | bool | list | tuple):
            parameters[key] = value
        else:
            return None
    return Reproducer("primitive", name, {"part": part}, parameters, operands, results, versions())


def _fields(key: str, value: Any) -> list[tuple[str, Any]]:
    names = getattr(value, "_fields", ())
    return [(f"{key}.{type(value).__name__}.{name}", getattr(value, name)) for name in names]


def first_unequal(x: Array, y: Array) -> tuple[int, ...] | None:
    """Return the index of the first element whose bits differ, None where there is none."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return (0,) * x.ndim
    bits = [np.ascontiguousarray(z).view(f"u{z.dtype.itemsize}").reshape(z.shape) for z in (x, y)]
    wrong = np.flatnonzero(bits[0] != bits[1])
    return tuple(int(i) for i in np.unravel_index(int(wrong[0]), x.shape)) if wrong.size else None


def show(value: Any) -> str:
    """Return a number with its bits: `0x3f800000 (1.0)`."""
    value = np.asarray(value)
    bits = int(value.reshape(1).view(f"u{value.dtype.itemsize}")[0])
    return f"{bits:#0{2 * value.dtype.itemsize + 2}x} ({value.item()!r})"
