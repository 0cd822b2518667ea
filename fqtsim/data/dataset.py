"""What a data set is: pixels as codes, labels, named normalisation constants and a hash of the content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.errors import InputError

Pixels = NDArray[np.uint8]
Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class DataInfo:
    """What a model needs to know of its data."""

    #: Channels, height, width.
    shape: tuple[int, int, int]
    #: Number of classes.
    classes: int


@dataclass(frozen=True)
class Normalization:
    """Pixel code to network input: (code / full_scale - mean) / std, each symbol one float32 operation."""

    #: The code of full white.
    full_scale: int
    #: One per channel, in units of full scale, of the training images.
    mean: tuple[float, ...]
    #: One per channel, in units of full scale, of the training images.
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as uint8 codes (N, C, H, W), labels int64 (N,). Raises InputError where they do not match."""

    #: What a report calls the set.
    name: str
    train_pixels: Pixels
    train_y: Labels
    test_pixels: Pixels
    test_y: Labels
    #: Class names; the label is the position.
    classes: tuple[str, ...]
    normalization: Normalization
    #: Whether training crops (padding 4) and flips.
    augment: bool = False

    def __post_init__(self) -> None:
        for split, pixels, labels in self._splits():
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or labels.shape != pixels.shape[:1]:
                raise InputError(
                    f"{self.name}: {split} images {pixels.dtype}{pixels.shape}, labels {labels.shape}: must "
                    "be uint8 (N, C, H, W) and (N,); check the reader of this set"
                )
            if not len(labels):
                raise InputError(f"{self.name}: {split} is empty: must have images; check the files")
            top = len(self.classes) - 1
            if labels.min() < 0 or labels.max() > top:
                raise InputError(f"{self.name}: {split} label {labels.max()}: must be 0..{top}; check the files")
        if self.train_pixels.shape[1:] != self.test_pixels.shape[1:]:
            raise InputError(
                f"{self.name}: training images {self.train_pixels.shape[1:]}, test images "
                f"{self.test_pixels.shape[1:]}: must have one shape; check the files"
            )

    def _splits(self) -> tuple[tuple[str, Pixels, Labels], ...]:
        return (("train", self.train_pixels, self.train_y), ("test", self.test_pixels, self.test_y))

    @property
    def info(self) -> DataInfo:
        channels, height, width = self.train_pixels.shape[1:]
        return DataInfo((channels, height, width), len(self.classes))

    @property
    def train_x(self) -> Images:
        """All training images, normalised, float32 (N, C, H, W)."""
        return self.normalize(self.train_pixels)

    @property
    def test_x(self) -> Images:
        """All test images, normalised, float32 (N, C, H, W)."""
        return self.normalize(self.test_pixels)

    @cached_property
    def _table(self) -> Images:
        """The normalised value of each code, (C, 256): a code has one value, whoever computes it."""
        ops, constants = DEFAULT_PRIMITIVES, self.normalization
        unit = ops.divide(np.arange(256, dtype=np.float32)[None, :], np.float32(constants.full_scale))
        mean = np.array(constants.mean, dtype=np.float32)[:, None]
        std = np.array(constants.std, dtype=np.float32)[:, None]
        table: Images = ops.divide(ops.subtract(unit, mean), std)
        return table

    def normalize(self, pixels: Pixels) -> Images:
        """Return network inputs for pixel codes. Shapes: (N, C, H, W), both."""
        channel = np.arange(pixels.shape[1])[None, :, None, None]
        values: Images = self._table[channel, pixels]
        return values

    @cached_property
    def hash(self) -> str:
        """SHA-256 over pixels and labels of both splits, written as the digest of S5.10 is."""
        lines = []
        for split, pixels, labels in self._splits():
            for kind, array in (("pixels", pixels), ("labels", labels.astype("<i8"))):
                hexes = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
                dims = "x".join(map(str, array.shape))
                lines.append(f"{split}.{kind} {array.dtype.name} {dims} {hexes}\n")
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()

    def describe(self) -> Mapping[str, Any]:
        """Return what run.yaml records: name, hash, counts and normalisation, as plain data."""
        constants = self.normalization
        return MappingProxyType(
            {
                "name": self.name,
                "sha256": self.hash,
                "train": len(self.train_y),
                "test": len(self.test_y),
                "shape": list(self.info.shape),
                "classes": list(self.classes),
                "full_scale": constants.full_scale,
                "mean": list(constants.mean),
                "std": list(constants.std),
                "augment": self.augment,
            }
        )
