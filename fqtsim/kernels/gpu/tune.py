"""Which of several forms of a kernel is fastest on this device: measured once for each shape, kept in memory.

The forms of one key are equal bit for bit; the first measurement compares them and refuses a device on which they are
not. It waits for the device, later calls do not. Nothing is measured on a CPU or while a CUDA graph is captured: there
the first form runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch

from fqtsim.kernels.gpu.launch import bits

REPEATS = 10


class Tile(NamedTuple):
    """One form of a kernel: `rows` x `columns` outputs a program, `depth` of k at a time."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    #: Programs that share the k of one output; their sums meet in memory.
    parts: int = 1
    #: Load tiles by the tensor memory accelerator (Hopper and later).
    tma: bool = False
    #: Multiply by torch._int_mm instead.
    library: bool = False

    @property
    def launch(self) -> dict[str, int | bool]:
        """Options of a launch; without FP fusion a*b+c stays two roundings."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": False}


Key = tuple[Hashable, ...]
_chosen: dict[Key, Tile] = {}
TIMINGS: dict[Key, dict[Tile, float]] = {}
"""Seconds of every form that was measured, per key; infinity where it does not fit the device."""


def power_of_two(count: int, least: int, most: int) -> int:
    """Return the smallest power of two that is at least count, kept between two powers of two."""
    return min(max(1 << max(count - 1, 0).bit_length(), least), most)


def has_tma(x: torch.Tensor) -> bool:
    """Tell whether tiles may come through the tensor memory accelerator."""
    return x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 9


def multiprocessors(x: torch.Tensor) -> int:
    """Return how many programs it takes to fill the device."""
    return int(torch.cuda.get_device_properties(x.device).multi_processor_count) if x.is_cuda else 4


def is_open(key: Key, tiles: Sequence[Tile]) -> bool:
    """Tell whether `run` would measure the forms of a key."""
    can = len(tiles) > 1 and torch.cuda.is_available() and not torch.cuda.is_current_stream_capturing()
    return can and key not in _chosen


def run(
    key: Key, tiles: Sequence[Tile], form: Callable[[Tile], torch.Tensor], kept: Sequence[torch.Tensor] = ()
) -> torch.Tensor:
    """Return form(tile) of the fastest tile; `kept` is what a form also adds to, once per call.

    Raises RuntimeError where two forms give different bits, or none fits the device.
    """
    chosen = _chosen.get(key)
    if chosen is not None:
        return form(chosen)
    if not is_open(key, tiles):
        return form(tiles[0])
    before = [one.clone() for one in kept]
    TIMINGS[key] = _measured(key, tiles, form)
    _chosen[key] = min(TIMINGS[key], key=TIMINGS[key].__getitem__)
    for one, as_it_was in zip(kept, before, strict=True):
        one.copy_(as_it_was)
    return form(_chosen[key])


def _measured(key: Key, tiles: Sequence[Tile], form: Callable[[Tile], torch.Tensor]) -> dict[Tile, float]:
    seconds: dict[Tile, float] = {}
    first: torch.Tensor | None = None
    reasons = []
    for tile in tiles:
        try:
            out = form(tile)
        except Exception as error:  # out of shared memory or registers, or an operation that this device lacks
            seconds[tile] = float("inf")
            reasons.append(f"{tile}: {error}")
            continue
        if first is None:
            first = out
        elif not torch.equal(bits(out), bits(first)):
            raise RuntimeError(f"{key}: {tile} gives other bits than {tiles[0]}; this device cannot be trusted")
        seconds[tile] = _seconds(lambda tile=tile: form(tile))  # type: ignore[misc]
    if first is None:
        raise RuntimeError(f"{key}: no form runs on this device: {'; '.join(reasons)}")
    return seconds


def _seconds(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    call()
    start.record()
    for _ in range(REPEATS):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000 / REPEATS


def reset() -> None:
    """Forget every measurement."""
    _chosen.clear()
    TIMINGS.clear()
