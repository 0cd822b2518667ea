"""Ranges of activation quantizers in evaluation: each batch's own, or fixed ones that training images give (S5.7).

Fixed ranges come from one forward pass over training images on the hardware itself, in evaluation mode, where every
batch is quantized by its own ranges. Calibrated ones are the extremes over all these images; running ones a moving
average of the extremes of each batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch

from fqtsim.backends.primitives import Primitives
from fqtsim.data import Dataset
from fqtsim.data.batches import epoch_order
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.train.gemm_layers import GemmLayer
from fqtsim.train.loop import logits
from fqtsim.train.module import FQTModule
from fqtsim.train.moving_range import Range, moved
from fqtsim.train.operands import Array

#: Weight of the newest batch in a running range; that of torch's MovingAverageMinMaxObserver.
MOMENTUM = np.float32(0.01)
#: Images of a calibration batch. A constant, so that fixed ranges do not depend on the evaluation's batch.
CALIBRATION_BATCH = 128
#: Training images that calibration reads where nobody says how many, or all where there are fewer.
CALIBRATION_IMAGES = 1024


class Ranges(StrEnum):
    """Where the ranges of activation quantizers come from in evaluation."""

    #: Each batch's own minimum and maximum, as the paper's code does.
    BATCH = "batch"
    #: Minimum and maximum over the calibration images.
    CALIBRATED = "calibrated"
    #: Moving average over the calibration batches.
    RUNNING = "running"


@dataclass(frozen=True)
class Calibration:
    """What fixed ranges were made from."""

    #: Training images, the first of epoch 0 in the order of the seed, neither cropped nor flipped.
    images: int
    batch: int
    seed: int


class Extremes:
    """The least and greatest value that one activation quantizer met."""

    def __init__(self) -> None:
        self.range: Range | None = None
        #: How many values it met.
        self.values = 0

    def add(self, minimum: Array, maximum: Array, primitives: Primitives) -> None:
        """Take one more batch; its extremes are float32 arrays of shape (1,)."""
        low, high = self.range or (float(minimum[0]), float(maximum[0]))
        self.range = min(low, float(minimum[0])), max(high, float(maximum[0]))


class MovingExtremes(Extremes):
    """The moving average of both extremes, which starts at those of the first batch."""

    def add(self, minimum: Array, maximum: Array, primitives: Primitives) -> None:
        """Move both ends towards one more batch."""
        if self.range is None:
            self.range = float(minimum[0]), float(maximum[0])
            return
        self.range = moved(self.range, (float(minimum[0]), float(maximum[0])), MOMENTUM, primitives)


def activation_layers(net: FQTModule) -> dict[str, GemmLayer]:
    """Return the layers whose activations are quantized, by name, in the order of the network."""
    layers = {module.name: module for module in net.modules() if isinstance(module, GemmLayer)}
    return {name: layer for name, layer in layers.items() if layer.quantizers["activation"] is not None}


@contextmanager
def observed(net: FQTModule, kind: Callable[[], Extremes] = Extremes) -> Iterator[dict[str, Extremes]]:
    """Note the range of every activation tensor that is quantized in the block, by layer name."""
    seen: dict[str, Extremes] = {}
    handles = []
    for name, layer in activation_layers(net).items():
        seen[name] = kind()
        handles.append(layer.register_forward_pre_hook(_note(seen[name], net)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _note(extremes: Extremes, net: FQTModule) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
    def note(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        p = net.backend.primitives
        layer.enter("activation")
        values = p.array(inputs[0]).reshape(1, -1)
        # NaN or infinity stops the layer itself a moment later, and there the message knows the layer.
        with suppress(TrainingStopped):
            extremes.add(*p.extremes(values), p)
            extremes.values += math.prod(values.shape)

    return note


def calibrate(net: FQTModule, data: Dataset, kind: Ranges, seed: int, images: int | None = None) -> Calibration:
    """Fix the range of every activation quantizer from training images; `images` of None is 1024, or all if fewer.

    Weights and running statistics stay as they are. Raises InputError where no activation is quantized, or there
    are not so many images; TrainingStopped for NaN or infinity.
    """
    layers = activation_layers(net)
    if kind is Ranges.BATCH or not layers:
        why = "each batch has its own" if layers else f"recipe {net.recipe.name} quantizes no activation"
        raise InputError(f"ranges = {kind}: {why}, so there is none to fix; leave --calibration-images out")
    available = len(data.train_y)
    count = min(CALIBRATION_IMAGES, available) if images is None else images
    if not 1 <= count <= available:
        raise InputError(
            f"calibration images = {count}: must be 1..{available}, the number of training images; use fewer"
        )
    for layer in layers.values():
        layer.activation_range = None
    rows = epoch_order(seed, 0, available)[:count]
    with observed(net, MovingExtremes if kind is Ranges.RUNNING else Extremes) as seen:
        logits(net, data.normalize(data.train_pixels[rows]), CALIBRATION_BATCH)
    for name, layer in layers.items():
        layer.activation_range = seen[name].range
    return Calibration(count, CALIBRATION_BATCH, seed)
