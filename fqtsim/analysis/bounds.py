"""Measured variance of each gradient quantizer, on the output gradient it met, beside its bound.

Stochastic rounding to a grid of step s has variance p (1 - p) s^2 <= s^2 / 4 an element, 2/3 of that on average where
fractions are spread evenly. Summed with the steps that the tensor really got:
- PTQ: N D s^2 / 4, which is the paper's N D R^2 / (4 B^2) where s = R / B, as for zero: float_offset; an aligned zero
  widens s a little;
- PSQ: sum over rows of D s_i^2 / 4;
- BHQ: sum over mixed rows j of w_j D s_j^2 / 4. A mixed row's error is carried through T^-1, whose column j has the
  squared norm w_j = sum over i of (T^-1)_ij^2 (T^-1 = diag(1/s) Q, Q orthogonal within a group);
- LUQ: sum over elements of the gap to the next power of two, squared, over 4.
Clipped values have no variance, so the bounds hold for clipped ranges too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fqtsim.analysis.histograms import Counts, code_counts, step_counts
from fqtsim.analysis.statistics import spread
from fqtsim.analysis.tape import host
from fqtsim.train.gemm_layers import GemmLayer

Floats = NDArray[np.float64]


def carried_steps(tensor: Any) -> Floats:
    """Return the step of each grid of a QTensor as the values feel it: for BHQ, times sqrt(w_j)."""
    steps = host(tensor.step).astype(np.float64).reshape(-1)
    return steps * np.sqrt(mixing_weights(tensor))


def mixing_weights(tensor: Any) -> Floats:
    """Return w_j, the squared norm of column j of T^-1, for each mixed row; 1 where nothing is mixed."""
    if tensor.groups is None and getattr(tensor, "_mixing", None) is None:
        return np.ones(1)
    rows = len(host(tensor.step))
    unit = torch.eye(rows) if not isinstance(tensor.codes, np.ndarray) else np.eye(rows, dtype=np.float32)
    if isinstance(unit, torch.Tensor):
        unit = unit.to(tensor.codes.device)
    inverse = host(tensor.unmix(unit)).astype(np.float64)
    weights: Floats = np.sum(inverse**2, axis=0)
    return weights


def octave_widths(quotients: Any) -> Floats:
    """Return the distance of LUQ's codes beside each quotient, in steps: 1 below 2, then the octave's (Q9)."""
    exponents = np.frexp(np.maximum(np.abs(quotients), 1).astype(np.float64))[1]
    return np.asarray(np.ldexp(1.0, exponents - 1), np.float64)


def variance_bound(tensor: Any, values: Any = None) -> float:
    """Return the bound of a QTensor's variance, summed over elements; `values`, the original ones, for LUQ only."""
    if values is not None:
        step = host(tensor.step)
        gaps = octave_widths(host(values) / step) * float(step)
        return float(np.sum(gaps**2)) / 4
    steps = carried_steps(tensor)
    return float(np.sum(steps**2)) * (host(tensor.codes).size // len(steps)) / 4


def requantized(layer: GemmLayer, port: str, values: Any, draw: int) -> Any:
    """Return the QTensor of an output gradient, with the random words of step index `draw`; nothing else moves."""
    run, buffers = layer.run, {name: buffer.clone() for name, buffer in layer.named_buffers()}
    before, run.step_index = run.step_index, draw
    try:
        return layer._quantize(port, values).tensor
    finally:
        run.step_index = before
        for name, buffer in layer.named_buffers():
            buffer.copy_(buffers[name])


@dataclass
class Meter:
    """Watches a backward pass: quantizes each output gradient again, and counts its codes and steps."""

    #: Step index of the first of the draws of the random words.
    first_draw: int
    #: How many, at least 2; 0: only count codes and steps.
    draws: int
    #: (layer, port) -> variance and bound, each summed over elements.
    bounds: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    #: (layer, port) -> counts of codes, counts of steps, whether codes are LUQ's.
    counts: dict[tuple[str, str], tuple[Counts, Counts, bool]] = field(default_factory=dict)

    def __call__(self, layer: GemmLayer, dy: Any, ports: tuple[str, ...]) -> None:
        """Look at one layer's output gradient (N, ...) at the ports that it uses."""
        for port in ports:
            if layer.quantizers[port] is not None:
                self._look(layer, port, layer.as_quantized(port, dy))

    def _look(self, layer: GemmLayer, port: str, dy: Any) -> None:
        spec = layer.recipe.port(port)
        logarithmic = spec is not None and str(spec.quantizer) == "luq"
        tensor = requantized(layer, port, dy, self.first_draw)
        steps = carried_steps(tensor)
        key = layer.name, port
        self.counts[key] = code_counts(tensor, logarithmic), step_counts(steps, host(tensor.codes).size), logarithmic
        if self.draws < 2:
            return
        exact = host(dy).astype(np.float64)
        total, each = np.zeros_like(exact), 0.0
        for draw in range(self.draws):
            again = tensor if draw == 0 else requantized(layer, port, dy, self.first_draw + draw)
            error = host(again.dequantize()).astype(np.float64) - exact
            total += error
            each += float(np.sum(error**2))
        measured = spread(float(np.sum(total**2)), each, self.draws)
        self.bounds[key] = float(measured), variance_bound(tensor, dy if logarithmic else None)
