"""The proof that the CPU's fused forms equal their sequences on this machine (S5.2), before they are trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES, Float32, Primitives
from fqtsim.errors import BackendRefused

_ROWS, _COLUMNS = 22, 70
_GROUPS = [[3, 0, 7, 9, 1], [2], [5, 4], [11, 10, 8, 6], list(range(12, 22))]


class Sequences(Primitives):
    """The primitives without any fused form."""


SEQUENCES = Sequences()


def numbers(shape: tuple[int, ...], stream: int) -> Float32:
    """Return finite float32 numbers of many magnitudes, with zeros of both signs, halves and subnormals."""
    words = DEFAULT_PRIMITIVES.random_words(7, stream, 0, int(np.prod(shape))).reshape(shape).astype(np.int64)
    x = ((words - 2**31) * 2.0**-31 * np.exp2((words & 15) - 8.0)).astype(np.float32)
    x = np.where(words & 0x70 == 0, x * np.float32(0), x)
    x = np.where(words & 0xF00 == 0, np.rint(x * np.float32(4)) * np.float32(0.5), x)
    spread: Float32 = np.where(words & 0xF000 == 0, x * np.float32(2.0**-130), x).astype(np.float32)
    return spread


def require_equal(name: str, found: Sequence[Any] | None, expected: Sequence[Any]) -> None:
    """Compare what a fused form gives with what its sequence does. Raises BackendRefused where a bit differs."""
    for ours, theirs in zip(found or [None] * len(expected), expected, strict=True):
        if ours is None or not np.array_equal(np.asarray(ours).view(np.uint32), np.asarray(theirs).view(np.uint32)):
            raise BackendRefused(f"cpu: the fused form of {name} differs from its sequence; use another machine")


@cache
def prove_elements() -> None:
    """Prove ReLU and the mixing of rows. Raises BackendRefused naming the first that differs."""
    x, y = numbers((_ROWS, _COLUMNS), 1), numbers((_ROWS, _COLUMNS), 2)
    s = np.exp2(np.arange(_ROWS) % 5 - 2).astype(np.float32) * np.float32(1.1)
    forms: dict[str, Callable[[Primitives], Sequence[Any]]] = {
        "ReLU": lambda p: [p.relu(x)],
        "ReLU's gradient": lambda p: [p.relu_gradient(p.relu(x), y)],
        "BHQ mixing": lambda p: p.mix(x, s, _GROUPS),
        "BHQ unmixing": lambda p: [p.unmix(x, s, _GROUPS)],
    }
    for name, form in forms.items():
        require_equal(name, form(DEFAULT_PRIMITIVES), form(SEQUENCES))
