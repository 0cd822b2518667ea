"""explain_scaling: which order and which formats of scales give somebody's floats from accumulator codes (S5.8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fqtsim.api.arrays import is_torch, to_numpy
from fqtsim.errors import InputError
from fqtsim.identify.change import Array
from fqtsim.identify.floats import to_float
from fqtsim.identify.search import MOST_CAUSES, Cause

SINGLE, DOUBLE = np.float32, np.float64


class Scaling(NamedTuple):
    """acc (M, N) int64 codes, row (M, 1) and column (1, N) float32 steps, bias (1, N) float32 or None."""

    acc: Array
    row: Array
    column: Array
    bias: Array | None


Way = Callable[[Scaling], Array]


def explain_scaling(acc: Any, row: Any, column: Any, observed: Any, bias: Any = None) -> list[Cause]:
    """Return the ways of scaling that give all observed floats (M, N), the simplest first; [] where none is wrong.

    The rule (S5.8) is float32(float64(acc) * (float64(row) * float64(column))), and then a float32 addition of bias.
    acc: (M, N) integers; row: (M,) or a number; column and bias: (N,) or a number, float32. Raises InputError for
    other shapes.
    """
    codes, found = to_numpy(acc, "acc"), _floats(observed)
    if codes.ndim != 2 or found.shape != codes.shape:
        raise InputError(f"acc.shape = {codes.shape}, observed.shape = {found.shape}: must be one (M, N); reshape them")
    m, n = codes.shape
    scaling = Scaling(
        codes.astype(np.int64), _vector(row, "row", m)[:, None], _vector(column, "column", n)[None, :],
        None if bias is None else _vector(bias, "bias", n)[None, :],
    )  # fmt: skip
    wrong = _run(_rule, "float32", scaling) != found
    if not wrong.any():
        return []
    causes: list[Cause] = []
    for text, way, result, count in _ways(bias is not None):
        if len(causes) < MOST_CAUSES and np.array_equal(_run(way, result, scaling), found):
            total = int(wrong.sum())
            causes.append(Cause(text, total, total, found.size, True, count, text))
    return [cause for cause in causes if cause.count == min(other.count for other in causes)]


def _floats(values: Any) -> Array:
    if is_torch(values):
        values = values.detach().cpu().float()
    wide: Array = np.asarray(values).astype(np.float32)
    return wide


def _vector(value: Any, name: str, size: int) -> Array:
    array = _floats(value)
    if array.size not in (1, size):
        raise InputError(f"{name}.shape = {array.shape}: must hold 1 or {size} steps; reshape it")
    return np.broadcast_to(array.ravel(), (size,)).astype(np.float32)


def _run(way: Way, result: str, scaling: Scaling) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = way(scaling)
        written: Array = scaled.astype(SINGLE) if result == "float32" else to_float(scaled.astype(SINGLE), result)
        return written


def _with_bias(scaled: Array, scaling: Scaling) -> Array:
    single = scaled.astype(SINGLE)
    return single if scaling.bias is None else single + scaling.bias


def _rule(s: Scaling) -> Array:
    return _with_bias(s.acc.astype(DOUBLE) * (s.row.astype(DOUBLE) * s.column.astype(DOUBLE)), s)


def _row_first(s: Scaling) -> Array:
    return _with_bias(s.acc.astype(SINGLE) * s.row * s.column, s)


def _column_first(s: Scaling) -> Array:
    return _with_bias(s.acc.astype(SINGLE) * s.column * s.row, s)


def _scales_first(s: Scaling) -> Array:
    return _with_bias(s.acc.astype(SINGLE) * (s.row * s.column), s)


def _bias_in_double(s: Scaling) -> Array:
    scaled = s.acc.astype(DOUBLE) * (s.row.astype(DOUBLE) * s.column.astype(DOUBLE))
    return (scaled if s.bias is None else scaled + s.bias.astype(DOUBLE)).astype(SINGLE)


def _without_bias(s: Scaling) -> Array:
    return _rule(s._replace(bias=None))


def _bias_scaled(s: Scaling) -> Array:
    bias = 0 if s.bias is None else s.bias
    scaled: Array = (s.acc.astype(SINGLE) + bias) * (s.row * s.column)
    return scaled


_ORDERS: tuple[tuple[str, Way], ...] = (
    ("", _rule),
    ("the row's scale is applied first, in float32", _row_first),
    ("the column's scale is applied first, in float32", _column_first),
    ("the scales are multiplied in float32 first", _scales_first),
    ("the bias is added before the only rounding", _bias_in_double),
    ("the bias is left out", _without_bias),
    ("the bias is added before the scales", _bias_scaled),
)


def _ways(biased: bool) -> Iterator[tuple[str, Way, str, int]]:
    """Yield (text, way, format of the result, number of changes) of every order and every format."""
    for result in ("float32", "bfloat16", "float16"):
        for what, edit in _EDITS:
            for text, way in (order for order in _ORDERS if biased or "bias" not in order[0]):
                parts = [text, what, f"the result is {result}" if result != "float32" else ""]
                said = ", and ".join(part for part in parts if part)
                if said:
                    yield said, _edited(way, edit), result, sum(bool(part) for part in parts)


def _edited(way: Way, edit: Callable[[Scaling], Scaling]) -> Way:
    return lambda scaling: way(edit(scaling))


def _as(name: str, *fields: str) -> Callable[[Scaling], Scaling]:
    return lambda s: s._replace(**{field: to_float(getattr(s, field), name) for field in fields})


_EDITS: tuple[tuple[str, Callable[[Scaling], Scaling]], ...] = (
    ("", lambda s: s),
    *((f"the scales are kept in {name}", _as(name, "row", "column")) for name in ("bfloat16", "float16")),
    *((f"the {field}s' scales are kept in {name}", _as(name, field))
      for name in ("bfloat16", "float16") for field in ("row", "column")),
    *((f"the accumulator's code is rounded to {name}", _as(name, "acc")) for name in ("bfloat16", "float16")),
    ("the first row's scale is taken for every row", lambda s: s._replace(row=np.broadcast_to(s.row[:1], s.row.shape))),
    ("the first column's scale is taken for every column",
     lambda s: s._replace(column=np.broadcast_to(s.column[:, :1], s.column.shape))),
    ("the rows' scales are one row late", lambda s: s._replace(row=np.roll(s.row, 1, 0))),
    ("the columns' scales are one column late", lambda s: s._replace(column=np.roll(s.column, 1, 1))),
)  # fmt: skip
