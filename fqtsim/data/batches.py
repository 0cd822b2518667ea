"""Which images step t reads, and how they are cropped and flipped: pure functions of seed and step (S5.5)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.data.dataset import Dataset, Images, Labels, Pixels
from fqtsim.errors import InputError
from fqtsim.streams import CROP, FLIP, SHUFFLE, stream_id

#: Black pixels added on each side before a crop of the original size (paper, CIFAR-10).
PADDING = 4
#: Streams of the run itself belong to layer 0, the root module.
RUN = 0


def steps_per_epoch(count: int, batch: int) -> int:
    """Return the number of whole batches in `count` images. Raises InputError where there is none."""
    if not 1 <= batch <= count:
        raise InputError(f"batch = {batch}: must be 1..{count}, the number of training images; use a smaller batch")
    return count // batch


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return the order of `count` images in an epoch: the stable argsort of one random word each."""
    words = DEFAULT_PRIMITIVES.random_words(seed, stream_id(RUN, SHUFFLE), epoch, count)
    order = np.argsort(words, kind="stable")
    # The cache hands the same array to every step of an epoch.
    order.setflags(write=False)
    return order


def augment(pixels: Pixels, seed: int, step: int) -> Pixels:
    """Return randomly cropped and flipped pixels. Shapes: (N, C, H, W), both.

    Words 2i and 2i+1 of the crop stream give image i's row and column offset, (word * 9) >> 32; word i of the
    flip stream mirrors image i where its top bit is set.
    """
    count, _, height, width = pixels.shape
    draw = DEFAULT_PRIMITIVES.random_words
    crop = draw(seed, stream_id(RUN, CROP), step, 2 * count).astype(np.uint64)
    offsets = ((crop * np.uint64(2 * PADDING + 1)) >> np.uint64(32)).astype(np.int64).reshape(count, 2)
    flips = draw(seed, stream_id(RUN, FLIP), step, count) >> np.uint32(31) == 1
    padded = np.pad(pixels, ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING)))
    columns = np.arange(width)
    out = np.empty_like(pixels)
    for i, (top, left) in enumerate(offsets):
        picked = left + (columns[::-1] if flips[i] else columns)
        out[i] = padded[i, :, top : top + height][:, :, picked]
    return out


def training_batch(data: Dataset, seed: int, step: int, batch: int) -> tuple[Images, Labels]:
    """Return images, float32 (batch, C, H, W), and labels of a step; a last, incomplete batch is dropped."""
    per_epoch = steps_per_epoch(len(data.train_y), batch)
    epoch, position = divmod(step, per_epoch)
    rows = epoch_order(seed, epoch, len(data.train_y))[position * batch : (position + 1) * batch]
    pixels = data.train_pixels[rows]
    if data.augment:
        pixels = augment(pixels, seed, step)
    return data.normalize(pixels), data.train_y[rows]
