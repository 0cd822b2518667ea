"""CIFAR-10 from its archives and from image folders, none of which is trusted."""

from __future__ import annotations

import functools
import io
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fqtsim.data import archive, cifar10, image_folder, load_dataset
from fqtsim.data.safe_pickle import read_batch
from fqtsim.errors import InputError

SHARED_IMAGES = Path(__file__).parents[2] / "shared" / "data" / "cifar10_images.tar.xz"


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
