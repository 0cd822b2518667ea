"""Data sets: readers, splits, hashes, and the order in which a run reads them."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.data import Dataset, batches, fashion_mnist, load_dataset
from fqtsim.data.dataset import Normalization
from fqtsim.errors import InputError
from fqtsim.streams import CROP, FLIP, SHUFFLE, stream_id

# --- digits


def test_digits_split_is_fixed_and_balanced() -> None:
    digits = load_dataset("digits")
    assert (len(digits.train_y), len(digits.test_y)) == (1437, 360)
    assert digits.info.shape == (1, 8, 8)
    whole = np.bincount(digits.train_y) + np.bincount(digits.test_y)
    assert whole.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    # A fifth of every class, to one image.
    assert np.all(np.abs(np.bincount(digits.test_y) - whole / 5) < 1)
    assert digits.hash == "ab9a824e3cb86267100e469d1c11e07381de12abf887825cb9a997a0b5279215"


def test_digits_are_normalised_by_the_training_split() -> None:
    x = load_dataset("digits").train_x
    assert x.dtype == np.float32
    # The constants are written with four digits.
    assert abs(float(x.mean())) < 3e-4
    assert abs(float(x.std()) - 1) < 3e-4


# --- the container


def tiny(pixels: np.ndarray, labels: np.ndarray, **changes: object) -> Dataset:
    fields = {
        "name": "tiny", "train_pixels": pixels, "train_y": labels, "test_pixels": pixels, "test_y": labels,
        "classes": ("a", "b"), "normalization": Normalization(255, (0.25, 0.5, 0.75), (0.5, 0.25, 0.125)),
    }  # fmt: skip
    return Dataset(**fields | changes)  # type: ignore[arg-type]


PIXELS = (np.arange(4 * 3 * 5 * 6) * 7 % 256).astype(np.uint8).reshape(4, 3, 5, 6)
LABELS = np.array([0, 1, 1, 0])


def test_normalize_is_one_operation_at_a_time_per_channel() -> None:
    found = tiny(PIXELS, LABELS).normalize(PIXELS)
    for channel, (mean, std) in enumerate(((0.25, 0.5), (0.5, 0.25), (0.75, 0.125))):
        unit = PIXELS[:, channel].astype(np.float32) / np.float32(255)
        expected = (unit - np.float32(mean)) / np.float32(std)
        assert np.array_equal(found[:, channel], expected)


def test_hash_sees_every_pixel_label_and_shape() -> None:
    base = tiny(PIXELS, LABELS)
    changed = PIXELS.copy()
    changed[3, 2, 4, 5] ^= 1
    assert base.hash == tiny(PIXELS.copy(), LABELS.copy()).hash
    others = [
        tiny(PIXELS, LABELS, test_pixels=changed),
        tiny(PIXELS, LABELS, train_pixels=changed),
        tiny(PIXELS, LABELS, train_y=LABELS[::-1].copy() ^ 1),
        tiny(PIXELS.reshape(4, 3, 6, 5), LABELS),
    ]
    assert len({base.hash, *(other.hash for other in others)}) == 5


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"train_y": LABELS[:3]}, "train images .*, labels"),
        ({"test_pixels": PIXELS.astype(np.int32)}, "must be uint8"),
        ({"test_y": np.array([0, 1, 2, 0])}, "test label 2: must be 0..1"),
        ({"test_pixels": PIXELS[:0], "test_y": LABELS[:0]}, "test is empty"),
        ({"test_pixels": PIXELS[:, :2]}, "must have one shape"),
    ],
)
def test_dataset_refuses_parts_that_do_not_fit(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        tiny(PIXELS, LABELS, **changes)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnist", "data = mnist: must be one of digits, fashion-mnist, cifar10, with :PATH after it"),
        ("digits:x", "data = digits:x: x does not exist; check the path"),
        ("cifar10", "data = cifar10: must name the archive or folder"),
        ("cifar10:/nowhere.tar", "data = cifar10:/nowhere.tar: /nowhere.tar does not exist; check the path"),
        ("digits:.", "digits takes no path"),
    ],
)
def test_bad_specs_are_named(spec: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(spec)
    assert message in str(caught.value)


# --- order, crop, flip


def test_epoch_order_is_the_stable_argsort_of_the_shuffle_stream() -> None:
    words = DEFAULT_PRIMITIVES.random_words(5, stream_id(0, SHUFFLE), 2, 50)
    expected = sorted(range(50), key=lambda i: int(words[i]))
    assert batches.epoch_order(5, 2, 50).tolist() == expected
    assert sorted(expected) == list(range(50))
    assert batches.epoch_order(5, 3, 50).tolist() != expected


def test_an_epoch_reads_every_image_at_most_once_and_drops_the_rest() -> None:
    digits = load_dataset("digits")
    per_epoch = batches.steps_per_epoch(len(digits.train_y), 128)
    assert per_epoch == 11
    labels = [batches.training_batch(digits, 1, step, 128)[1] for step in range(per_epoch + 1)]
    order = batches.epoch_order(1, 0, 1437)
    assert np.array_equal(np.concatenate(labels[:per_epoch]), digits.train_y[order[: 11 * 128]])
    assert np.array_equal(labels[per_epoch], digits.train_y[batches.epoch_order(1, 1, 1437)[:128]])


def test_augment_is_crop_of_the_padded_image_then_flip() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (40, 3, 8, 8)).astype(np.uint8)
    found = batches.augment(pixels, seed=3, step=9)
    crop = DEFAULT_PRIMITIVES.random_words(3, stream_id(0, CROP), 9, 80)
    flip = DEFAULT_PRIMITIVES.random_words(3, stream_id(0, FLIP), 9, 40)
    flipped = 0
    for i, image in enumerate(pixels):
        top, left = int(crop[2 * i]) * 9 // 2**32, int(crop[2 * i + 1]) * 9 // 2**32
        expected = np.zeros_like(image)
        for y in range(8):
            for x in range(8):
                source_y, source_x = y + top - 4, x + left - 4
                if 0 <= source_y < 8 and 0 <= source_x < 8:
                    expected[:, y, x] = image[:, source_y, source_x]
        if int(flip[i]) >= 2**31:
            expected, flipped = expected[:, :, ::-1], flipped + 1
        assert np.array_equal(found[i], expected)
    assert 0 < flipped < 40


def test_only_sets_that_ask_for_it_are_augmented() -> None:
    plain = tiny(PIXELS, LABELS)
    moved = tiny(PIXELS, LABELS, augment=True)
    order = batches.epoch_order(0, 0, 4)
    assert np.array_equal(batches.training_batch(plain, 0, 0, 4)[0], plain.normalize(PIXELS[order]))
    expected = plain.normalize(batches.augment(PIXELS[order], 0, 0))
    assert np.array_equal(batches.training_batch(moved, 0, 0, 4)[0], expected)


@pytest.mark.parametrize("batch", [0, 5])
def test_batch_must_fit_the_data(batch: int) -> None:
    with pytest.raises(InputError, match=rf"batch = {batch}: must be 1..4"):
        batches.steps_per_epoch(4, batch)


# --- Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    dims = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + dims + array.tobytes()


def test_idx_round_trip() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(fashion_mnist.read_idx(idx(array), "x"), array)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "magic : must be an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\0", "magic 00000d01"),
        (idx(np.zeros((2, 2), np.uint8))[:-1], "15 bytes: must be 16 for shape"),
        (b"\0\0\x08\x02" + b"\xff" * 8, "12 bytes: must be 18446744065119617037"),
        (b"\0\0\x08\x09", "must be"),
    ],
)
def test_idx_refuses_other_content(content: bytes, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        fashion_mnist.read_idx(content, "x")


@pytest.fixture
def fashion_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four made-up files, one of them gzipped, whose hashes the reader is told to expect."""
    images, labels = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2), np.array([0, 9, 4], np.uint8)
    arrays = dict(zip(fashion_mnist.CONTENT, (images, labels, images[:2], labels[:2]), strict=True))
    monkeypatch.setattr(
        fashion_mnist, "CONTENT", {name: fashion_mnist.hashlib.sha256(idx(a)).hexdigest() for name, a in arrays.items()}
    )
    folder = tmp_path / "idx"
    folder.mkdir()
    for name, array in arrays.items():
        (folder / name).write_bytes(idx(array))
    zipped = folder / "t10k-labels-idx1-ubyte"
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(zipped.read_bytes()))
    zipped.unlink()
    return folder


def test_fashion_mnist_reads_plain_and_gzipped_files(fashion_folder: Path) -> None:
    data = load_dataset(f"fashion-mnist:{fashion_folder}")
    assert data.train_pixels.shape == (3, 1, 2, 2)
    assert data.train_y.tolist() == [0, 9, 4]
    assert data.test_y.tolist() == [0, 9]
    assert data.classes[9] == "ankle boot"


def test_fetch_from_a_folder_writes_checked_plain_files(fashion_folder: Path, tmp_path: Path) -> None:
    written = fashion_mnist.fetch(tmp_path / "out", fashion_folder)
    assert [path.name for path in written] == list(fashion_mnist.CONTENT)
    assert (
        load_dataset(f"fashion-mnist:{tmp_path / 'out'}").hash == load_dataset(f"fashion-mnist:{fashion_folder}").hash
    )


def test_fashion_mnist_refuses_changed_missing_and_damaged_files(fashion_folder: Path) -> None:
    path = fashion_folder / "train-labels-idx1-ubyte"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\x05")
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte: SHA-256 of the decompressed content = .*: must be"):
        fashion_mnist.load(fashion_folder)
    path.write_bytes(gzip.compress(good)[:-3])
    with pytest.raises(InputError, match="not a whole gzip file"):
        fashion_mnist.load(fashion_folder)
    path.unlink()
    with pytest.raises(InputError, match=r"no train-labels-idx1-ubyte or train-labels-idx1-ubyte.gz"):
        fashion_mnist.load(fashion_folder)


def test_fetch_without_apt_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"apt-get: not on this system; .*--from FOLDER"):
        fashion_mnist.fetch(tmp_path / "out")
