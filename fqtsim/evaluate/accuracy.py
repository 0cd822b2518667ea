"""A checkpoint's accuracy on described hardware: forward passes only, with batch, calibrated or running ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqtsim.errors import InputError
from fqtsim.train.config import TrainConfig, build_trainer, resolve
from fqtsim.train.digest import Digest, state_digest
from fqtsim.train.layers import BatchNorm
from fqtsim.train.loop import logits
from fqtsim.train.module import FQTModule, integer_gemms
from fqtsim.train.moving_range import Range
from fqtsim.train.ranges import Calibration, Ranges, activation_layers, calibrate, observed
from fqtsim.words import Rounding


@dataclass(frozen=True)
class LayerResult:
    """What happened in one layer over all test images."""

    name: str
    #: Range of its activation quantizer: the fixed one, or the widest over the batches.
    range: Range
    #: Activations that were quantized, and those whose code the clamp changed.
    activations: int
    clamped: int
    #: The row of `net.report()` for fprop; None where the recipe leaves the product float.
    events: dict[str, Any] | None


@dataclass(frozen=True)
class Evaluation:
    """How a checkpoint did on the test images of a data set."""

    #: Predicted class and whether it is right, per test image, shapes (N,).
    predictions: NDArray[np.int64]
    right: NDArray[np.bool_]
    ranges: Ranges
    #: None where no calibration fixed the ranges.
    calibration: Calibration | None
    #: Whether each batch has its own ranges, in some layer at least.
    own_ranges: bool
    batch: int
    #: Why the accuracy depends on how the images are put into batches; empty where it does not.
    batch_matters: tuple[str, ...]
    #: The layers whose activations are quantized, in the order of the network.
    layers: tuple[LayerResult, ...]
    #: Digest, as S5.10 writes it, of the logits (float32) and the predictions.
    digest: Digest
    #: SHA-256 of the checkpoint file, and what was done to its tensors.
    checkpoint_sha256: str
    notes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """Share of test images classified right, 0..1."""
        return float(np.mean(self.right))


def evaluate_checkpoint(
    config: TrainConfig,
    ranges: Ranges | str = Ranges.BATCH,
    calibration_images: int | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate the weights `config.start` on all test images, `config.batch` at a time; nothing is trained.

    `config.seed` orders the calibration images. `on_stage` is told what begins. Raises InputError for a bad
    configuration, TrainingStopped where a tensor to quantize holds NaN or infinity.
    """
    if ranges not in list(Ranges):
        raise InputError(f"ranges = {ranges}: must be one of {', '.join(Ranges)}; for example calibrated")
    kind, tell = Ranges(ranges), on_stage or (lambda stage: None)
    if config.start is None:
        raise InputError("checkpoint: none given; name a file of weights")
    if config.batch < 1:
        raise InputError(f"batch = {config.batch}: must be at least 1; use a larger number")
    if kind is Ranges.BATCH and calibration_images is not None:
        raise InputError(
            f"calibration images = {calibration_images}: ranges = batch reads none; "
            "leave --calibration-images out, or use --ranges calibrated"
        )
    # No step is trained: its number of steps and batch only have to be valid.
    resolved = resolve(replace(config, steps=1, epochs=None, batch=1))
    net, weights = build_trainer(resolved).net, resolved.weights
    calibration = None
    if kind is not Ranges.BATCH:
        tell("calibrating")
        calibration = calibrate(net, resolved.data, kind, config.seed, calibration_images)
    tell("evaluating")
    values, layers = _forward(net, resolved.data.test_x, config.batch)
    # numpy's argmax takes the first of equal logits.
    predicted = np.argmax(values, axis=1)
    return Evaluation(
        predictions=predicted,
        right=predicted == resolved.data.test_y,
        ranges=kind,
        calibration=calibration,
        own_ranges=_own_ranges(net),
        batch=config.batch,
        batch_matters=_why_batch_matters(net),
        layers=layers,
        digest=state_digest({"logits": values, "predictions": predicted}, "fprop" not in integer_gemms(net.recipe)),
        checkpoint_sha256="" if weights is None else weights.sha256,
        notes=() if weights is None else tuple(weights.notes),
    )


def _forward(
    net: FQTModule, images: NDArray[np.float32], batch: int
) -> tuple[NDArray[np.float32], tuple[LayerResult, ...]]:
    """Return the logits and what each layer did."""
    net.reset_report()
    quantized = activation_layers(net)
    for layer in quantized.values():
        layer.activation_clamps = 0
    with observed(net) as seen:
        values = logits(net, images, batch)
    rows = {row["layer"]: row for row in net.report() if row["gemm"] == "fprop"}
    layers = []
    for name, layer in quantized.items():
        used = layer.activation_range_in_use or seen[name].range
        if used is not None:  # a layer that the network never calls has met no tensor
            counts = seen[name].values, layer.activation_clamps
            layers.append(LayerResult(name, used, *counts, rows.get(name)))
    return values, tuple(layers)


def _own_ranges(net: FQTModule) -> bool:
    return any(layer.activation_range_in_use is None for layer in activation_layers(net).values())


def _why_batch_matters(net: FQTModule) -> tuple[str, ...]:
    """Return every reason why an image's logits depend on the images beside it."""
    reasons = []
    spec = net.recipe.port("activation")
    if _own_ranges(net):
        reasons.append("each batch is quantized by its own ranges")
    if spec is not None and spec.rounding is Rounding.STOCHASTIC:
        reasons.append("activations are rounded by random bits of their place in the batch")
    if any(isinstance(module, BatchNorm) and module.running_mean is None for module in net.modules()):
        reasons.append("batch norm without running statistics uses those of the batch")
    return tuple(reasons)
