"""Checks that wait until a step is done: on a device, so that no layer waits for it (`train --check`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from fqtsim.train.check_report import Counts
from fqtsim.train.operands import Array
from fqtsim.train.products import Product

HELD_BYTES = 1 << 30
"""Operands and products on a device that may wait for the end of the step."""

Check = Callable[[int, Array], None]
"""Raises CheckFailed where something is wrong; told the step's index, and of a difference its words, uint32 (2, N)."""
_NOTHING = np.zeros((2, 0), np.uint32)


class _Waiting(NamedTuple):
    """Checks of one step, in order."""

    step: int
    #: Each with the columns of its difference.
    checks: list[tuple[Check, int]]
    #: int32 (2, all columns), a tensor: the differences side by side; None where there are none.
    differences: torch.Tensor | None


class Queue:
    """What is to be looked at when the step is done; a bounded one looks earlier where much memory is held for it."""

    def __init__(self, bounded: bool = True) -> None:
        self.waiting: list[_Waiting] = []
        self._held, self._bounded = 0, bounded

    def do(self, step: int, product: Product, check: Check, difference: Array | None = None) -> None:
        """Check now, or later where the product is on a device; it is kept until then. difference: of sums (2, N)."""
        if not isinstance(product.out, torch.Tensor):
            check(step, _NOTHING if difference is None else difference)
            return
        columns = 0 if difference is None else int(difference.shape[1])
        self.waiting.append(_Waiting(step, [(check, columns)], difference))
        self._held += sum(x.numel() * x.element_size() for x in (product.a.codes, product.b.codes, product.out))
        if self._bounded and self._held > HELD_BYTES:
            self.settle()

    def settle(self) -> None:
        """Look at everything. The device is waited for once, for all differences. Raises CheckFailed."""
        waiting, self.waiting, self._held = self.waiting, [], 0
        words = _joined(waiting)
        found, at = _NOTHING if words is None else words.cpu().numpy().view(np.uint32), 0
        for one in waiting:
            for check, columns in one.checks:
                check(one.step, found[:, at : at + columns])
                at += columns


def _joined(waiting: list[_Waiting]) -> torch.Tensor | None:
    parts = [one.differences for one in waiting if one.differences is not None]
    return torch.cat(parts, 1) if parts else None


@dataclass
class Found:
    """What the checks of a recorded step find, and a replay of it again."""

    counts: Counts
    checks: list[tuple[Check, int]] = field(default_factory=list)
    #: As those of what waits, in memory of the recording.
    differences: torch.Tensor | None = None

    def take(self, queue: Queue) -> None:
        """Take what waits in a queue."""
        self.checks = [check for one in queue.waiting for check in one.checks]
        self.differences = _joined(queue.waiting)

    def put(self, queue: Queue, step: int) -> None:
        """Let it wait in a queue, where the next replay does not reach it."""
        if self.checks:
            differences = None if self.differences is None else self.differences.clone()
            queue.waiting.append(_Waiting(step, self.checks, differences))

    def tensors(self) -> list[torch.Tensor]:
        """Return what a replay computes anew."""
        return [] if self.differences is None else [self.differences]
