"""Ways in which convolutions are usually wrong, each tried on every output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from fqtsim.errors import InputError
from fqtsim.golden.case import Array
from fqtsim.golden.convolution import ORDER_OF_K, Convolution, Pair
from fqtsim.golden.coverage import run
from fqtsim.hw.spec import Datapath

Flaw = Callable[[Convolution], Convolution | None]
"""The wrong convolution; None where the fault has no meaning for it."""


def flaws(kind: str) -> Iterator[tuple[str, Flaw]]:
    """Yield what may be wrong with a convolution of a kind, the usual first: words and function."""
    yield "padding holds 0 and not the zero point's code", lambda conv: replace(conv, padding_code=0)
    if kind == "conv_dgrad":
        yield "holes of the stride hold 0 and not the zero point's code", lambda conv: replace(conv, hole_code=0)
        yield ("padding and holes of the stride hold 0 and not the zero point's code",
               lambda conv: replace(conv, padding_code=0, hole_code=0))  # fmt: skip
        yield "dH is not dilated by the stride (no holes)", lambda conv: replace(conv, filled_holes=True)
    yield "the kernel is flipped", lambda conv: replace(conv, flipped=True)
    yield "groups are ignored: every group reads the channels of the first", lambda conv: replace(conv, one_group=True)
    names = ORDER_OF_K[kind]
    for order in list(permutations(range(3)))[1:]:
        words = ", ".join(names[part] for part in order)
        yield f"k runs in the order ({words}) and not ({', '.join(names)})", _in_order((order[0], order[1], order[2]))
    for name in ("stride", "padding", "dilation"):
        yield f"the {name} is one too large", _off(name, (1, 1))
        yield f"the {name} is one too small", _off(name, (-1, -1))
        for by in ((1, 0), (0, 1), (-1, 0), (0, -1)):
            way = "vertical" if by[0] else "horizontal"
            yield f"the {way} {name} is one too {'large' if sum(by) > 0 else 'small'}", _off(name, by)
        yield f"the {name} is ignored", _ignored(name)
        yield f"the {name}'s vertical and horizontal parts are swapped", _swapped(name)
    yield "the kernel is transposed", _transposed


def _in_order(order: tuple[int, int, int]) -> Flaw:
    return lambda conv: replace(conv, order=order)


def _off(name: str, by: Pair) -> Flaw:
    def flaw(conv: Convolution) -> Convolution | None:
        old: Pair = getattr(conv, name)
        new = old[0] + by[0], old[1] + by[1]
        return _changed(conv, name, new) if min(new) >= (name != "padding") else None

    return flaw


def _ignored(name: str) -> Flaw:
    return lambda conv: _changed(conv, name, (0, 0) if name == "padding" else (1, 1))


def _swapped(name: str) -> Flaw:
    return lambda conv: _changed(conv, name, getattr(conv, name)[::-1])


def _changed(conv: Convolution, name: str, pair: Pair) -> Convolution:
    fields: dict[str, Any] = {name: pair}
    return replace(conv, **fields)


def _transposed(conv: Convolution) -> Convolution | None:
    if conv.kind == "conv_wgrad" or conv.kernel[0] != conv.kernel[1]:
        return None
    return replace(conv, second=np.swapaxes(conv.second, 2, 3))


def outputs(conv: Convolution, group: int, datapath: Datapath) -> Array | None:
    """Return the codes (M, N) of one group; None where its sums need more than 63 bits."""
    a, b = conv.matrices(group)
    try:
        return run({"a": a, "b": b}, datapath).codes
    except InputError:
        return None


def fitting(seen: Sequence[tuple[Convolution, Array]], datapath: Datapath) -> list[tuple[str, Flaw]]:
    """Return the flaws that give every output seen: convolutions, and what somebody got, in one layout with them."""
    return [(text, flaw) for text, flaw in flaws(seen[0][0].kind) if _gives_all(flaw, seen, datapath)]


def _gives_all(flaw: Flaw, seen: Sequence[tuple[Convolution, Array]], datapath: Datapath) -> bool:
    for conv, observed in seen:
        wrong = flaw(conv) or conv
        for group in range(conv.groups):
            codes = outputs(wrong, group, datapath)
            if codes is None or not np.array_equal(codes, conv.as_matrix(observed, group)):
                return False
    return True
