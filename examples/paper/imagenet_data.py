"""ImageNet as a folder, train/<class>/IMAGE and val/<class>/IMAGE, decoded as it is read; crops as in the paper."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.data import DataInfo
from fqtsim.data.batches import RUN, epoch_order, steps_per_epoch
from fqtsim.errors import InputError
from fqtsim.streams import CROP, stream_id

SUFFIXES = (".jpeg", ".jpg", ".png")
#: Of the training images, in units of full scale (torchvision's, which the authors use).
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Share of the area and ratio of the sides of a random crop, and how often one is tried (RandomResizedCrop).
AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
#: Random words an image: three or four for each try, and one that mirrors it.
_WORDS = 4 * TRIES + 1

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Files and labels of one split, sorted by class and name."""

    files: tuple[Path, ...]
    labels: Labels


@dataclass(frozen=True)
class ImageFolder:
    """Both splits of a folder; images of `side` x `side` pixels."""

    train: Split
    val: Split
    classes: tuple[str, ...]
    side: int

    @classmethod
    def open(cls, folder: Path, side: int) -> ImageFolder:
        """List a folder. Raises InputError where it has no train/<class>/IMAGE or no val/<class>/IMAGE."""
        classes = tuple(sorted(path.name for path in _folders(folder / "train")))
        return cls(_split(folder / "train", classes), _split(folder / "val", classes), classes, side)

    @property
    def info(self) -> DataInfo:
        """What a model needs to know."""
        return DataInfo((3, self.side, self.side), len(self.classes))

    def steps(self, batch: int) -> int:
        """Return the steps of an epoch; the last, incomplete batch is dropped."""
        return steps_per_epoch(len(self.train.files), batch)

    def training_batch(self, seed: int, step: int, batch: int, pool: ThreadPoolExecutor) -> tuple[Images, Labels]:
        """Return images, float32 (batch, 3, side, side), and labels of a step: a function of seed and step alone."""
        epoch, position = divmod(step, self.steps(batch))
        rows = epoch_order(seed, epoch, len(self.train.files))[position * batch : (position + 1) * batch]
        words = DEFAULT_PRIMITIVES.random_words(seed, stream_id(RUN, CROP), step, batch * _WORDS)
        uniform = words.reshape(batch, _WORDS) / 2.0**32
        pixels = pool.map(lambda row, u: _random_crop(self.train.files[row], u, self.side), rows, uniform)
        return _normalize(np.stack(list(pixels))), self.train.labels[rows]

    def validation_batch(self, number: int, batch: int, pool: ThreadPoolExecutor) -> tuple[Images, Labels]:
        """Return a batch of the validation set: the shorter side 256 / 224 of `side`, and the middle of it."""
        rows = range(len(self.val.files))[number * batch : (number + 1) * batch]
        pixels = pool.map(lambda row: _middle(self.val.files[row], self.side), rows)
        return _normalize(np.stack(list(pixels))), self.val.labels[rows.start : rows.stop]


def _folders(path: Path) -> list[Path]:
    found = [one for one in path.iterdir() if one.is_dir()] if path.is_dir() else []
    if not found:
        raise InputError(f"{path}: has no folders: must hold one a class, with its images; check --data")
    return found


def _split(path: Path, classes: Sequence[str]) -> Split:
    files, labels = [], []
    for folder in sorted(_folders(path)):
        if folder.name not in classes:
            raise InputError(f"{folder}: no such class in train; give both splits the same folders")
        names = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
        files += [folder / name for name in names]
        labels += [classes.index(folder.name)] * len(names)
    if not files:
        raise InputError(f"{path}: no {', '.join(SUFFIXES)}: must hold one folder a class with images; check --data")
    return Split(tuple(files), np.array(labels, np.int64))


def _open(path: Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InputError("images need pillow; run: pip install pillow") from None
    try:
        return Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path}: not a whole image ({error}); get the file again") from error


def _random_crop(path: Path, uniform: NDArray[np.float64], side: int) -> NDArray[np.uint8]:
    """Return a random part, resized to side x side, perhaps mirrored: uint8 (3, side, side)."""
    image = _open(path)
    width, height = image.size
    pixels = _part(image, crop_box(width, height, uniform), side)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if uniform[-1] < 0.5 else pixels


def crop_box(width: int, height: int, uniform: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of RandomResizedCrop, from 4 numbers in 0..1 for each try."""
    for area_u, ratio_u, left_u, top_u in uniform[: 4 * TRIES].reshape(TRIES, 4):
        area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * area_u)
        low, high = math.log(RATIO[0]), math.log(RATIO[1])
        ratio = math.exp(low + (high - low) * ratio_u)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(left_u * (width - w + 1)), int(top_u * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _middle(path: Path, side: int) -> NDArray[np.uint8]:
    image = _open(path)
    part = round(min(image.size) * 224 / 256)
    left, top = ((size - part) // 2 for size in image.size)
    return _part(image, (left, top, left + part, top + part), side)


def _part(image: Any, box: tuple[int, int, int, int], side: int) -> NDArray[np.uint8]:
    from PIL import Image

    resized = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(resized, np.uint8).transpose(2, 0, 1))


def _normalize(pixels: NDArray[np.uint8]) -> Images:
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    images: Images = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return images
