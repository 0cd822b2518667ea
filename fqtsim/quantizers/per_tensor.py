"""PTQ, the paper's per-tensor quantizer (elsewhere PTQ means post-training quantization): one grid for all."""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.quantizers.base import Quantizer


class PerTensorQuantizer(Quantizer):
    """One step and zero point for the whole tensor."""

    def _rows(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return x.reshape(1, -1)

    @property
    def per_row(self) -> bool:
        """Whether each row has a grid of its own."""
        return False
