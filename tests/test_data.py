"""Data sets: readers, splits, hashes, and the order in which a run reads them."""

from __future__ import annotations

import functools
import gzip
import io
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.data import Dataset, archive, batches, cifar10, fashion_mnist, image_folder, load_dataset
from fqtsim.data.dataset import Normalization
from fqtsim.data.safe_pickle import read_batch
from fqtsim.errors import InputError
from fqtsim.streams import CROP, FLIP, SHUFFLE, stream_id

SHARED_IMAGES = Path(__file__).parents[2] / "shared" / "data" / "cifar10_images.tar.xz"


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


# --- CIFAR-10


def records(count: int, seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count).astype(np.uint8)
    pixels = rng.integers(0, 256, (count, 3072)).astype(np.uint8)
    return np.concatenate([labels[:, None], pixels], axis=1).tobytes(), pixels, labels


NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive_file:
        for name, content in files.items():
            archive_file.writestr(name, content)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


WRITERS: list[Callable[[Path, dict[str, bytes]], Path]] = [
    write_folder, write_zip, write_tar, functools.partial(write_tar, mode="w:xz"),
]  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS, ids=["folder", "zip", "tar.gz", "tar.xz"])
def test_binary_version_from_any_container(tmp_path: Path, writer: Callable[[Path, dict[str, bytes]], Path]) -> None:
    made = {name: records(2, seed) for seed, name in enumerate(NAMES)}
    # In the reverse order: an archive's order must not matter.
    files = {f"cifar-10-batches-bin/{name}.bin": made[name][0] for name in reversed(NAMES)}
    data = load_dataset(f"cifar10:{writer(tmp_path / 'cifar', files | {'cifar-10-batches-bin/readme.html': b'x'})}")
    assert data.name == "CIFAR-10"
    assert data.augment
    assert np.array_equal(data.train_pixels.reshape(10, -1), np.concatenate([made[n][1] for n in NAMES[:5]]))
    assert np.array_equal(data.test_y, made["test_batch"][2])


def test_missing_batches_are_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path, {"data_batch_2.bin": records(1, 0)[0], "test_batch.bin": records(1, 1)[0]})
    with pytest.raises(InputError, match="data_batch_1, data_batch_3, data_batch_4, data_batch_5 missing"):
        cifar10.load(path)


def test_records_must_be_whole_and_labelled_0_to_9() -> None:
    content = records(2, 0)[0]
    with pytest.raises(InputError, match="6145 bytes: must be a multiple of 3073"):
        cifar10.read_records(content[:-1], "x")
    with pytest.raises(InputError, match=r"label 10: must be 0..9"):
        cifar10.read_records(b"\x0a" + content[1:], "x")


def python2_string(content: bytes) -> bytes:
    """The opcode that Python 2 wrote for a string (BINSTRING)."""
    return b"T" + len(content).to_bytes(4, "little") + content


def python2_batch(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as the published archive has it: pickled by Python 2 and NumPy 1, protocol 2."""
    n = len(labels).to_bytes(1, "little")
    dtype = b"cnumpy\ndtype\n" + python2_string(b"u1") + b"K\0K\x01\x87R"
    dtype += b"(K\x03" + python2_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + python2_string(b"b") + b"\x87R"
    array += b"(K\x01K" + n + b"M\0\x0c\x86" + dtype + b"\x89" + python2_string(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = python2_string(b"data") + array + python2_string(b"labels") + numbers
    return b"\x80\x02}(" + items + b"u."


def batch_pickle(seed: int) -> tuple[bytes, np.ndarray, np.ndarray]:
    _, pixels, labels = records(3, seed)
    return python2_batch(pixels, labels), pixels, labels


def test_python2_batches_are_what_numpy_reads() -> None:
    """The hand-made pickle of these tests is a real one: the unrestricted reader agrees."""
    content, pixels, labels = batch_pickle(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy 2 may say that numpy.core has moved
        plain = pickle.loads(content, encoding="bytes")
    assert np.array_equal(plain[b"data"], pixels)
    assert plain[b"labels"] == labels.tolist()


def test_batches_pickled_again_by_python_3_are_read_too() -> None:
    _, pixels, labels = records(3, 0)
    content = pickle.dumps({b"labels": labels.tolist(), b"data": pixels}, protocol=2)
    assert np.array_equal(read_batch(content, "x")[0].reshape(3, -1), pixels)


def test_python_version_is_read_without_running_it(tmp_path: Path) -> None:
    made = {name: batch_pickle(seed) for seed, name in enumerate(NAMES)}
    path = write_tar(tmp_path / "x.tar.gz", {f"cifar-10-batches-py/{n}": made[n][0] for n in NAMES})
    data = cifar10.load(path)
    assert np.array_equal(data.train_pixels.reshape(15, -1), np.concatenate([made[n][1] for n in NAMES[:5]]))
    assert np.array_equal(data.test_y, made["test_batch"][2])


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return self.target.touch, ()


def test_a_pickle_that_names_anything_else_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    attack = pickle.dumps({b"data": _Attack(target), b"labels": []}, protocol=2)
    with pytest.raises(InputError, match=r"x: not a batch of the CIFAR-10 python version \(it names \S*.getattr"):
        read_batch(attack, "x")
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02.",
        pickle.dumps([1, 2]),
        batch_pickle(0)[0][:-40],
        pickle.dumps({b"data": np.zeros((1, 3072), np.float64), b"labels": [1]}, protocol=2),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1, 2]}, protocol=2),
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, protocol=2),
    ],
)
def test_damaged_batches_are_bad_input(content: bytes) -> None:
    with pytest.raises(InputError, match="not a batch of the CIFAR-10 python version"):
        read_batch(content, "x")


def png(array: np.ndarray) -> bytes:
    image = pytest.importorskip("PIL.Image", reason="image folders need pillow")
    stream = io.BytesIO()
    image.fromarray(array.transpose(1, 2, 0)).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fqtsim"


def image_files() -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    places = ["train/truck/2.png", "train/cat/10.png", "train/cat/1.png", "test/ship/a.png"]
    arrays = {place: rng.integers(0, 256, (3, 32, 32)).astype(np.uint8) for place in places}
    return {f"cifar10/{place}": png(array) for place, array in arrays.items()}, arrays


@pytest.mark.parametrize("writer", WRITERS, ids=["folder", "zip", "tar.gz", "tar.xz"])
def test_image_folder_from_any_container(
    tmp_path: Path, cache: Path, writer: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    files, arrays = image_files()
    path = writer(tmp_path / "images", files)
    data = load_dataset(f"cifar10:{path}")
    assert data.name == "CIFAR-10 (image folder)"
    order = ["train/cat/1.png", "train/cat/10.png", "train/truck/2.png"]
    assert np.array_equal(data.train_pixels, np.stack([arrays[name] for name in order]))
    assert data.train_y.tolist() == [3, 3, 9]
    assert data.test_y.tolist() == [8]
    assert load_dataset(f"cifar10:{path}").hash == data.hash


def test_decoded_archives_are_cached_by_content(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = image_files()
    path = write_zip(tmp_path / "a.zip", files)
    first = load_dataset(f"cifar10:{path}")
    kept = list(cache.iterdir())
    assert len(kept) == 1
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "decode", None)  # a second decoding would fail
        assert load_dataset(f"cifar10:{path}").hash == first.hash
    kept[0].write_bytes(b"damaged")
    assert load_dataset(f"cifar10:{path}").hash == first.hash
    del files["cifar10/train/cat/1.png"]
    assert load_dataset(f"cifar10:{write_zip(tmp_path / 'a.zip', files)}").hash != first.hash


def test_jpeg_copies_say_so(tmp_path: Path, cache: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="image folders need pillow")
    stream = io.BytesIO()
    image.new("RGB", (32, 32), (200, 10, 30)).save(stream, format="JPEG")
    files = {f"{split}/dog/0.jpg": stream.getvalue() for split in ("train", "test")}
    assert load_dataset(f"cifar10:{write_folder(tmp_path / 'jpg', files)}").name == "CIFAR-10 (JPEG copy)"


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ({"train/unicorn/0.png": (32, 32), "test/cat/0.png": (32, 32)}, "class 'unicorn': must be one of airplane"),
        ({"train/cat/0.png": (32, 32)}, "no test images"),
        ({"train/cat/0.png": (32, 32), "test/cat/0.png": (16, 32)}, "images of 2 sizes"),
        ({"train/cat/0.png": (8, 16), "test/cat/0.png": (8, 16)}, "images are 8x16: must be 32x32"),
        ({"train/cat/0.png": (8, 2000), "test/cat/0.png": (8, 16)}, "sides must be at most 1024"),
        ({"notes.txt": (8, 8)}, "no CIFAR-10 in it"),
    ],
)
def test_image_folders_that_do_not_fit_are_named(
    tmp_path: Path, cache: Path, files: dict[str, tuple[int, int]], rule: str
) -> None:
    made = {name: png(np.zeros((3, *size), np.uint8)) for name, size in files.items()}
    with pytest.raises(InputError, match=rule):
        cifar10.load(write_folder(tmp_path / "images", made))


def test_images_that_are_none_are_named(tmp_path: Path, cache: Path) -> None:
    pytest.importorskip("PIL.Image", reason="image folders need pillow")
    path = write_folder(tmp_path / "images", {"train/cat/0.png": b"no image"})
    with pytest.raises(InputError, match=r"train/cat/0.png: not a whole JPEG or PNG"):
        cifar10.load(path)


def test_without_pillow_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(InputError, match=r"x: images need pillow; run: pip install pillow, or use cifar-10-binary"):
        image_folder.decode(b"", "x")


def test_damaged_archives_are_bad_input(tmp_path: Path, cache: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", {"data_batch_1.bin": records(40, 0)[0]})
    path.write_bytes(path.read_bytes()[:-30000])
    with pytest.raises(InputError, match="not a whole tar or zip archive"):
        cifar10.load(path)
    path.write_bytes(b"no archive at all")
    with pytest.raises(InputError, match="not a whole tar or zip archive"):
        cifar10.load(path)


def test_members_over_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 10)
    path = write_zip(tmp_path / "a.zip", {"small": b"x" * 10, "large": b"x" * 11})
    assert [name for name, _ in archive.members(path, lambda name: name == "small")] == ["small"]
    with pytest.raises(InputError, match="large is over 10 bytes"):
        list(archive.members(path, lambda name: True))
    monkeypatch.setattr(archive, "MAX_MEMBERS", 1)
    with pytest.raises(InputError, match="more than 1 members"):
        list(archive.members(path, lambda name: name == "small"))


@pytest.mark.skipif(not SHARED_IMAGES.is_file(), reason="needs the development data, cifar10_images.tar.xz")
def test_the_jpeg_copy_of_cifar10_is_what_its_readme_says() -> None:
    found = image_folder.Collected()
    names = set()

    def wanted(name: str) -> bool:
        if image_folder.is_image(name):
            names.add(name)
        return name.startswith("test/") and name.endswith("7.jpg")

    for name, content in archive.members(SHARED_IMAGES, wanted):
        found.add(name, content, name)
    assert len(names) == 60_000
    pixels = np.stack(list(found.items.values()))
    assert pixels.shape == (1000, 3, 32, 32)
    np.testing.assert_allclose(pixels.mean(axis=(0, 2, 3)) / 255, cifar10.NORMALIZATION.mean, atol=0.015)
