"""Small networks and batches for the tests of an analysis."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

import fqtsim
from fqtsim.hw.load import load_hardware
from fqtsim.recipe.load import load_recipe
from fqtsim.train.module import FQTModule

WIDE = "int8_acc32_wrap"


class Branches(torch.nn.Module):
    """Two convolutions, one of them beside a 1x1 shortcut, batch norm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.relu = torch.nn.ReLU()
        self.main = torch.nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.shortcut = torch.nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.flatten = torch.nn.Flatten()
        self.fc = torch.nn.Linear(6 * 3 * 3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.first(x)))
        return self.fc(self.flatten(self.relu(self.main(x) + self.shortcut(x))))


def net(
    recipe: str = "bhq5",
    hardware: str = WIDE,
    set_recipe: Mapping[str, str] | None = None,
    set_hardware: Mapping[str, str] | None = None,
    seed: int = 0,
) -> FQTModule:
    """Return the network above with weights of its own seed, on the hardware."""
    torch.manual_seed(seed)
    module = Branches()
    chosen, described = load_recipe(recipe, set_recipe), load_hardware(hardware, set_hardware)
    return fqtsim.fully_quantize(module, chosen, described, seed=seed)


def batch(samples: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 2, 6, 6) and labels."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(samples, 2, 6, 6)).astype(np.float32), rng.integers(0, 5, samples)
