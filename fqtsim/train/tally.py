"""Event counts of a run on a device: kept there, added up once a step, read when somebody asks (S4.8)."""

from __future__ import annotations

from typing import NamedTuple

import torch

Key = tuple[str, str]
"""Layer and GEMM."""


class Entry(NamedTuple):
    """One GEMM of a program."""

    key: Key
    #: M, N and K, and the outputs of all groups.
    shape: tuple[int, int, int]
    outputs: int


class Counted(NamedTuple):
    """What a program of GEMMs counted: a step of training, a pass of evaluation."""

    program: tuple[Entry, ...]
    #: int64 (n, 6), on the device.
    counts: torch.Tensor
    times: int = 1


def _merged(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Add counts (n, 6) of two spans: events add up, extremes widen, the last column adds up."""
    parts = (
        before[:, :3] + now[:, :3], torch.minimum(before[:, 3:4], now[:, 3:4]),
        torch.maximum(before[:, 4:5], now[:, 4:5]), before[:, 5:] + now[:, 5:],
    )  # fmt: skip
    return torch.cat(parts, 1)


class Tally:
    """Counts of GEMMs in the order in which they ran."""

    def __init__(self) -> None:
        self._pending: list[tuple[Entry, torch.Tensor]] = []
        self._programs: dict[tuple[Entry, ...], Counted] = {}

    def add(self, entry: Entry, counts: torch.Tensor) -> None:
        """Take the int64 (6,) counts of one GEMM: DeviceResult.counts."""
        self._pending.append((entry, counts))

    def take(self) -> Counted | None:
        """Return what came since the last call, and forget it; None where nothing did."""
        if not self._pending:
            return None
        program = tuple(entry for entry, _ in self._pending)
        now = torch.stack([counts for _, counts in self._pending])
        self._pending.clear()
        return Counted(program, now)

    def merge(self, now: Counted) -> None:
        """Add up what a program counted once more: a few operations, whatever the number of layers."""
        before = self._programs.pop(now.program, None)  # the latest program stands last: its shapes are reported
        if before is None:
            self._programs[now.program] = now._replace(counts=now.counts.clone())
        else:
            merged = _merged(before.counts, now.counts)
            self._programs[now.program] = Counted(now.program, merged, before.times + now.times)

    def end_step(self) -> None:
        """Add up what came since the last call."""
        now = self.take()
        if now is not None:
            self.merge(now)

    def read(self) -> list[tuple[Entry, int, list[int]]]:
        """Return each GEMM with how often it ran and its counts, and start again. Waits for the device."""
        self.end_step()
        rows = [
            (entry, counted.times, [int(count) for count in counts])
            for program, counted in self._programs.items()
            for entry, counts in zip(program, counted.counts.tolist(), strict=True)
        ]
        self.clear()
        return rows

    def clear(self) -> None:
        """Forget everything."""
        self._pending.clear()
        self._programs.clear()
