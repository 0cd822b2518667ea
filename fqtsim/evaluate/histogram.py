"""Where the partial sums of an accumulator lie against its rails, from sampled outputs of one training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fqtsim.hw.spec import Datapath
from fqtsim.train.loss import softmax_cross_entropy

#: Bins are powers of two with a sign: ..., [-2, -1), [-1, 1), [1, 2), ...; nothing real passes 2**62.
HIGHEST = 62
_POWERS = [2.0**i for i in range(HIGHEST + 1)]
EDGES = np.array([-power for power in reversed(_POWERS)] + _POWERS)


@dataclass(frozen=True)
class PartialSums:
    """Sums after each product, in order of k, with no register limiting them."""

    layer: str
    gemm: str
    #: Lowest and highest code of the accumulator; None where it is exact.
    rails: tuple[int, int] | None
    #: Ends of the bins, one more than counts; empty bins outside are cut.
    edges: tuple[float, ...]
    counts: tuple[int, ...]


def sampled_partial_sums(
    net: Any, batch: tuple[NDArray[Any], NDArray[np.int64]], outputs: int, seed: int
) -> list[PartialSums]:
    """Do one forward and backward and count the partial sums of up to `outputs` random outputs of each GEMM.

    Where a datapath drops bits, sums are shown in units of its accumulator's last bit, rounded down.
    """
    counts: dict[tuple[str, str], NDArray[np.int64]] = {}
    paths: dict[tuple[str, str], Datapath] = {}
    rng = np.random.default_rng(seed)

    def observe(layer: str, gemm: str, a: Any, b: Any, datapath: Datapath, _c: Any, _result: Any) -> None:
        key = (layer, gemm)
        paths[key] = datapath
        rows, cols = (rng.integers(0, size, outputs) for size in (a.shape[0], b.shape[1]))
        products = a[rows].astype(np.int64) * b[:, cols].T.astype(np.int64)
        sums = np.cumsum(products, axis=1) >> datapath.dropped_bits
        found, _ = np.histogram(sums, EDGES)
        counts[key] = counts.get(key, 0) + found

    images, labels = batch
    net.observers.append(observe)
    try:
        logits = net(torch.from_numpy(images))
        _, upstream = softmax_cross_entropy(logits.detach().numpy(), labels, 0.0, net.backend.primitives)
        logits.backward(torch.from_numpy(upstream))
    finally:
        net.observers.remove(observe)
    return [_cut(*key, paths[key], found) for key, found in counts.items()]


def _cut(layer: str, gemm: str, datapath: Datapath, counts: NDArray[np.int64]) -> PartialSums:
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1])) if used.size else (HIGHEST, HIGHEST)
    accumulator = datapath.accumulator
    register = accumulator.register_format
    rails = None if register is None else register.rails(accumulator.overflow)
    edges = tuple(float(edge) for edge in EDGES[first : last + 2])
    return PartialSums(layer, gemm, rails, edges, tuple(int(n) for n in counts[first : last + 1]))
