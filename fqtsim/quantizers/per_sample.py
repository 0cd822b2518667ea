"""PSQ, the paper's per-sample quantizer: one grid for each index of dimension 0, whatever the rank (S5.12)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fqtsim.errors import InputError
from fqtsim.quantizers.base import Quantizer


class PerSampleQuantizer(Quantizer):
    """One step and zero point for each row."""

    def _rows(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if x.ndim == 0:
            raise InputError("x: shape () has no rows; psq and bhq need rank 1 or more, use ptq")
        return x.reshape(len(x), -1)
