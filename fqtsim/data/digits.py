"""The UCI handwritten digits (8x8, 1,797 images), shipped with the package; licence in digits.LICENSE."""

from __future__ import annotations

import gzip
import hashlib
from importlib.resources import files

import numpy as np

from fqtsim.data.dataset import Dataset, Normalization
from fqtsim.errors import InputError

SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
#: Of the 1,437 training images, pixels in 0..16.
NORMALIZATION = Normalization(full_scale=16, mean=(0.3058,), std=(0.3762,))
#: Every fifth image of the list sorted by class goes to the test split.
TEST_STRIDE = 5


def load() -> Dataset:
    """Return the digits: 1,437 training and 360 test images.

    The split is fixed: images sorted by class (stable, file order within a class); positions 0, 5, 10, ...
    are the test split, so that class shares agree to one image. Both splits keep file order.
    """
    packed = files("fqtsim.data").joinpath("digits.csv.gz").read_bytes()
    if hashlib.sha256(packed).hexdigest() != SHA256:
        raise InputError(f"fqtsim/data/digits.csv.gz: SHA-256 must be {SHA256}; reinstall fqtsim")
    rows = np.array([line.split(",") for line in gzip.decompress(packed).decode("ascii").splitlines()], dtype=np.int64)
    pixels = rows[:, :64].astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = rows[:, 64]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[np.argsort(labels, kind="stable")[::TEST_STRIDE]] = True
    return Dataset(
        name="digits",
        train_pixels=pixels[~is_test],
        train_y=labels[~is_test],
        test_pixels=pixels[is_test],
        test_y=labels[is_test],
        classes=tuple("0123456789"),
        normalization=NORMALIZATION,
    )
