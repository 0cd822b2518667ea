"""Which gradient quantizer adds how much variance to which layer's weight gradient: Theorem 2, measured.

Quantizers become float one by one, in the order of the forward pass: Q_b1 of the first layer, its Q_b2, Q_b1 of the
second, and so on. What the variance of a layer's weight gradient loses at each step is what that quantizer added, the
ones after it being on and the ones before it off. The same random words everywhere make the differences paired, and
the last state has no variance, so the contributions to a layer add up to all of its variance.

Q_b1 of a layer reaches its own weight gradient alone, and Q_b2 the layers before it alone, so the states need not all
be run: with Q_b2 of the first s layers and every Q_b1 float, the first s layers are as in their state of the toggle
order, and the others are not looked at. One pass for each layer but the last, beside the pass with everything on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fqtsim.analysis.result import Contribution
from fqtsim.analysis.statistics import Estimates, Products, combine

TOGGLE_ORDER = (
    "to float, in the order of the forward pass: Q_b1 (grad_for_wgrad) of a layer, then its Q_b2 (grad_for_dgrad), "
    "then the next layer; backward hardware without limits"
)


def passes(layers: Sequence[str]) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Yield s and the float ports (layer, port) of each pass: every Q_b1, and Q_b2 of the first s layers."""
    first = [(layer, "grad_for_wgrad") for layer in layers]
    for count in range(1, len(layers)):
        yield count, first + [(layer, "grad_for_dgrad") for layer in layers[:count]]


def contributions(
    layers: Sequence[str], dgrad: Sequence[str], batches: Sequence[tuple[Products, Sequence[Products]]], tail: float
) -> list[Contribution]:
    """Return the lower-triangular matrix, row by row of the toggle order.

    `dgrad` names the layers that have a Q_b2. For each batch: the products of the weight gradients' errors (one vector
    for each layer) with everything on, and those of each pass in order, of its first s layers.
    """
    whole = [on.variance() for on, _ in batches]
    # states[s][batch]: variances of the first s layers, with Q_b2 of layers up to s float, s = 1..L; the last is 0.
    states = [[off[count].variance() for _, off in batches] for count in range(len(layers) - 1)]
    found = []
    for place, layer in enumerate(layers):
        left = [_of(one, place) for one in whole]
        for above in range(place, len(layers)):
            quantizer = layers[above]
            port = "grad_for_wgrad" if above == place else "grad_for_dgrad"
            if port == "grad_for_dgrad" and quantizer not in dgrad:
                continue
            # Once Q_b2 of layer `above` is float too; the layer's own Q_b2 never reaches it.
            last = above == len(layers) - 1
            after = [_zero(one) for one in left] if last else [_of(one, place) for one in states[above]]
            (difference,) = combine([b.minus(a) for b, a in zip(left, after, strict=True)], tail)
            found.append(Contribution(quantizer, port, layer, difference.value, difference.low, difference.high))
            left = after
    order = {layer: place for place, layer in enumerate(layers)}
    return sorted(found, key=lambda one: (order[one.quantizer], one.port == "grad_for_dgrad", order[one.layer]))


def _of(one: Estimates, place: int) -> Estimates:
    return Estimates(one.value[place : place + 1], one.deleted[place : place + 1])


def _zero(one: Estimates) -> Estimates:
    return Estimates(np.zeros_like(one.value), np.zeros_like(one.deleted))
