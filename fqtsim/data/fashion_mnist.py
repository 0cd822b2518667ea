"""Fashion-MNIST (28x28, 60,000 + 10,000 images, MIT licence) from the four IDX files, checked by content."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fqtsim.data.dataset import Dataset, Normalization
from fqtsim.errors import InputError

#: SHA-256 of the decompressed files (archives differ in how they compress).
CONTENT = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
#: Of the 60,000 training images, pixels in 0..255.
NORMALIZATION = Normalization(full_scale=255, mean=(0.2860,), std=(0.3530,))
DEBIAN_PACKAGE = "dataset-fashion-mnist"
#: Where that package puts the files.
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
#: More than the largest file (47,040,016 bytes) decompresses to.
MAX_BYTES = 1 << 26


def read_idx(content: bytes, origin: str) -> NDArray[np.uint8]:
    """Return the array in an IDX file of bytes. Raises InputError for any other content.

    Source: the MNIST file format: magic 0, 0, 8 (unsigned byte), rank; big-endian dimensions; data.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise InputError(
            f"{origin}: magic {content[:4].hex()}: must be an IDX file of bytes (000008..); check the file"
        )
    rank = content[3]
    header = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise InputError(f"{origin}: {len(content)} bytes: must be {expected} for shape {shape}; get the file again")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{folder}: no {name} or {name}.gz: must hold the four Fashion-MNIST files; "
        "run: fqtsim data fetch fashion-mnist --out DIR"
    )


def read_content(folder: Path, name: str) -> bytes:
    """Return the decompressed content of one of the four files. Raises InputError for any other content."""
    path = _find(folder, name)
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.open(io.BytesIO(content)) as stream:
                content = stream.read(MAX_BYTES)
        except (OSError, EOFError) as error:
            raise InputError(f"{path}: not a whole gzip file ({error}); get the file again") from error
    found = hashlib.sha256(content).hexdigest()
    if found != CONTENT[name]:
        raise InputError(
            f"{path}: SHA-256 of the decompressed content = {found}: must be {CONTENT[name]}; get the file again"
        )
    return content


def load(folder: Path) -> Dataset:
    """Return Fashion-MNIST from a folder of the four files, gzipped or not."""
    arrays = [read_idx(read_content(folder, name), str(folder / name)) for name in CONTENT]
    train_x, train_y, test_x, test_y = arrays
    return Dataset(
        name="fashion-mnist",
        train_pixels=train_x[:, None],
        train_y=train_y.astype(np.int64),
        test_pixels=test_x[:, None],
        test_y=test_y.astype(np.int64),
        classes=CLASSES,
        normalization=NORMALIZATION,
    )


def _run(command: list[str], folder: Path, remedy: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise InputError(f"{command[0]}: not on this system; {remedy}") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines()
        raise InputError(f"{' '.join(command)}: {said[-1] if said else 'failed'}; {remedy}") from error


def fetch(out: Path, source: Path | None = None) -> list[Path]:
    """Put the four files, decompressed and checked, into `out`; return their paths.

    They come from the folder `source`, or else from Debian's package, unpacked without root.
    """
    if source is not None:
        return _copy(source, out)
    remedy = "run apt-get update first, or give a folder that has the four files with --from FOLDER"
    with tempfile.TemporaryDirectory(prefix="fqtsim-") as name:
        temporary = Path(name)
        # apt drops root to its own user, which must be able to write here.
        temporary.chmod(0o777)
        _run(["apt-get", "download", DEBIAN_PACKAGE], temporary, remedy)
        for package in temporary.glob("*.deb"):
            _run(["dpkg", "-x", package.name, "unpacked"], temporary, remedy)
        return _copy(temporary / "unpacked" / SYSTEM_FOLDER.relative_to("/"), out)


def _copy(source: Path, out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name in CONTENT:
        content = read_content(source, name)
        partial = out / f"{name}.partial"
        partial.write_bytes(content)
        shutil.move(partial, out / name)
        written.append(out / name)
    return written
