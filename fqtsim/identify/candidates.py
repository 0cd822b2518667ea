"""The list of changes that are tried: single ones, the more usual first, then pairs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, product

from fqtsim.hw.spec import Datapath
from fqtsim.identify.change import Change, combined
from fqtsim.identify.operands import operand_changes
from fqtsim.identify.order import order_changes
from fqtsim.identify.registers import register_changes
from fqtsim.identify.result import result_changes
from fqtsim.identify.start import start_changes
from fqtsim.identify.stepped import stepped_changes


def candidates(datapath: Datapath) -> Iterator[Change]:
    """Yield every change that is tried of a datapath: single ones, the more usual first, then pairs of usual ones."""
    singles = single_changes(datapath)
    yield from singles
    yield from pairs(singles)


def single_changes(datapath: Datapath) -> list[Change]:
    """Return the single changes, the usual ones first, each in words that no other one has."""
    found = [
        *register_changes(datapath),
        *stepped_changes(datapath),
        *operand_changes(datapath),
        *start_changes(datapath),
        *result_changes(datapath),
        *order_changes(datapath),
    ]
    distinct = {change.text: change for change in reversed(found)}
    return sorted((change for change in found if distinct.get(change.text) is change), key=lambda c: not c.common)


def pairs(singles: list[Change]) -> Iterator[Change]:
    """Yield pairs of usual changes, and of a plainer accumulator with any change, not about the same thing."""
    usual = [change for change in singles if change.common]
    # Many a kernel is written for sums without a limit, or wrapping ones, whatever else is wrong with it.
    plain = [change for change in usual if change.kind in ("overflow -1", "register -1")]
    rare = [change for change in singles if not change.common]
    for one, other in chain(combinations(usual, 2), product(plain, rare)):
        same = one.kind.startswith(other.kind) or other.kind.startswith(one.kind) or _same_register(one, other)
        exclusive = (one.table and other.table) or (one.run and other.run)
        if not same and not exclusive:
            yield combined(one, other)


def _same_register(one: Change, other: Change) -> bool:
    """A change of a whole register leaves nothing for one of its width or overflow."""
    kinds = sorted((one.kind, other.kind), key=lambda kind: not kind.startswith("register"))
    place = kinds[0].removeprefix("register")
    return kinds[0].startswith("register") and kinds[1] in (f"width{place}", f"overflow{place}")
