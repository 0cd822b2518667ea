"""CIFAR-10 (32x32 colour, 50,000 + 10,000 images) from the standard archives or from an image folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fqtsim.data import image_folder
from fqtsim.data.archive import members
from fqtsim.data.dataset import Dataset, Labels, Normalization, Pixels
from fqtsim.data.safe_pickle import read_batch
from fqtsim.errors import InputError

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
#: Of the 50,000 training images, pixels in 0..255.
NORMALIZATION = Normalization(full_scale=255, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
#: One record of the binary version: the label, then 3 x 32 x 32 pixels.
RECORD_BYTES = 1 + 3 * 32 * 32

_BATCH = re.compile(r"(?:.*/)?(?P<batch>data_batch_[1-5]|test_batch)(?P<binary>\.bin)?")
_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")

Arrays = tuple[Pixels, Labels]


def read_records(content: bytes, origin: str) -> Arrays:
    """Return pixels (N, 3, 32, 32) and labels (N,) of a file of the binary version."""
    if not content or len(content) % RECORD_BYTES:
        raise InputError(
            f"{origin}: {len(content)} bytes: must be a multiple of {RECORD_BYTES} (label, 3x32x32 pixels); "
            "get the file again"
        )
    rows: NDArray[np.uint8] = np.frombuffer(content, dtype=np.uint8).reshape(-1, RECORD_BYTES)
    if rows[:, 0].max() > 9:
        raise InputError(f"{origin}: label {rows[:, 0].max()}: must be 0..9; check that the file is CIFAR-10's")
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


@dataclass
class _Found:
    """What one pass over a folder or archive collects."""

    batches: dict[str, Arrays] = field(default_factory=dict)
    images: image_folder.Collected = field(default_factory=image_folder.Collected)


def _collect(path: Path) -> _Found:
    found = _Found()
    for name, content in members(path, lambda name: bool(_BATCH.fullmatch(name)) or image_folder.is_image(name)):
        batch = _BATCH.fullmatch(name)
        if batch is None:
            found.images.add(name, content, origin=f"{path}: {name}")
        else:
            read = read_records if batch["binary"] else read_batch
            found.batches[batch["batch"]] = read(content, f"{path}: {name}")
    return found


def load(path: Path) -> Dataset:
    """Return CIFAR-10 from the binary or python version or from images, each as folder, tar or zip.

    Images: `train/<class>/*.jpg|png` and `test/<class>/*`, 32x32; needs pillow. Raises InputError.
    """
    cached = image_folder.cached(path)
    if cached is not None:
        return _from_images(path, cached)
    found = _collect(path)
    if found.batches:
        return _from_batches(path, found.batches)
    if found.images:
        arrays = found.images.arrays(CLASSES, origin=str(path))
        image_folder.store(path, arrays)
        return _from_images(path, arrays)
    raise InputError(
        f"{path}: no CIFAR-10 in it: must hold data_batch_1..5 and test_batch (.bin or pickled), or "
        "train/<class>/*.png|jpg and test/<class>/*; check the path"
    )


def _from_batches(path: Path, batches: dict[str, Arrays]) -> Dataset:
    missing = [name for name in _BATCHES if name not in batches]
    if missing:
        raise InputError(f"{path}: {', '.join(missing)} missing: must hold all of {', '.join(_BATCHES)}")
    pixels = np.concatenate([batches[name][0] for name in _BATCHES[:5]])
    labels = np.concatenate([batches[name][1] for name in _BATCHES[:5]])
    return _dataset("CIFAR-10", {"train": (pixels, labels), "test": batches["test_batch"]})


def _from_images(path: Path, arrays: image_folder.Splits) -> Dataset:
    if arrays.splits["train"][0].shape[1:] != (3, 32, 32):
        size = "x".join(map(str, arrays.splits["train"][0].shape[2:]))
        raise InputError(f"{path}: images are {size}: must be 32x32 for CIFAR-10; check the path")
    # JPEG copies are not the originals, and a result must not pretend that they are.
    return _dataset("CIFAR-10 (JPEG copy)" if arrays.lossy else "CIFAR-10 (image folder)", arrays.splits)


def _dataset(name: str, splits: dict[Literal["train", "test"], Arrays]) -> Dataset:
    return Dataset(
        name=name,
        train_pixels=splits["train"][0],
        train_y=splits["train"][1],
        test_pixels=splits["test"][0],
        test_y=splits["test"][1],
        classes=CLASSES,
        normalization=NORMALIZATION,
        augment=True,
    )
