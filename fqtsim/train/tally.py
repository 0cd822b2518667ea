"""Event counts of a run on a device: kept there, added up once a step, read when somebody asks (S4.8)."""

from __future__ import annotations

import torch

Key = tuple[str, str]
"""Layer and GEMM."""


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
        self._pending: list[tuple[Key, torch.Tensor]] = []
        #: Per program of GEMMs (a step of training, a pass of evaluation), what they counted so far.
        self._programs: dict[tuple[Key, ...], torch.Tensor] = {}

    def add(self, key: Key, counts: torch.Tensor) -> None:
        """Take the int64 (6,) counts of one GEMM: DeviceResult.counts."""
        self._pending.append((key, counts))

    def end_step(self) -> None:
        """Add up what came since the last call: a few operations, whatever the number of layers."""
        if not self._pending:
            return
        program = tuple(key for key, _ in self._pending)
        now = torch.stack([counts for _, counts in self._pending])
        before = self._programs.get(program)
        self._programs[program] = now if before is None else _merged(before, now)
        self._pending.clear()

    def read(self) -> list[tuple[Key, list[int]]]:
        """Return all counts and start again. Waits for the device."""
        self.end_step()
        rows = [
            (key, [int(count) for count in counts])
            for program, table in self._programs.items()
            for key, counts in zip(program, table.tolist(), strict=True)
        ]
        self.clear()
        return rows

    def clear(self) -> None:
        """Forget everything."""
        self._pending.clear()
        self._programs.clear()
