"""A network of two linear layers, small enough to be analysed in a fraction of a second."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

WIDTH = 16


def tiny(info: Any) -> nn.Module:
    """Return Linear, ReLU, Linear on flattened images."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(info.shape), WIDTH), nn.ReLU(), nn.Linear(WIDTH, info.classes)
    )
