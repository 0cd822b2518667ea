"""Images as train/<class>/NAME and test/<class>/NAME, in a folder or an archive, decoded by pillow.

A JPEG's pixels depend on the decoder, so a run records the hash of what was decoded. Decoding an archive
takes a minute; its pixels are kept in the user's cache folder, by archive's hash and decoder's version.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fqtsim.errors import InputError

Split = Literal["train", "test"]
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
_SUFFIXES = (".jpg", ".jpeg", ".png")
#: An image of more pixels than this is not one of a training set of small images.
MAX_SIDE = 1024


@dataclass(frozen=True)
class Splits:
    """Decoded images of both splits."""

    #: "train" and "test": pixels (N, 3, H, W) and labels (N,).
    splits: dict[Split, Arrays]
    #: Whether any image is a JPEG.
    lossy: bool


def _place(name: str) -> tuple[str, str, str] | None:
    """Return (split, class, file name) of `.../train/<class>/NAME`, or None."""
    parts = PurePosixPath(name).parts
    if len(parts) < 3 or parts[-3] not in get_args(Split) or not parts[-1].lower().endswith(_SUFFIXES):
        return None
    return parts[-3], parts[-2], parts[-1]


def is_image(name: str) -> bool:
    """Whether a file of an archive is one of its images."""
    return _place(name) is not None


def decode(content: bytes, origin: str) -> NDArray[np.uint8]:
    """Return the pixels of an image, (3, H, W). Raises InputError without pillow, or where it cannot read."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError(
            f"{origin}: images need pillow; run: pip install pillow, or use cifar-10-binary.tar.gz"
        ) from error
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if max(image.size) > MAX_SIDE:
                raise InputError(f"{origin}: {image.size} pixels: sides must be at most {MAX_SIDE}; check the path")
            pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{origin}: not a whole JPEG or PNG ({error}); get the file again") from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


@dataclass
class Collected:
    """Images as they come out of an archive, in any order."""

    items: dict[tuple[str, str, str], NDArray[np.uint8]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.items)

    def add(self, name: str, content: bytes, origin: str) -> None:
        """Decode and keep one image for which is_image() holds."""
        place = _place(name)
        if place is None:
            raise InputError(f"{origin}: must be train/<class>/NAME or test/<class>/NAME; check the path")
        self.items[place] = decode(content, origin)

    def arrays(self, classes: tuple[str, ...], origin: str) -> Splits:
        """Return both splits, sorted by class and file name, whatever order the archive has."""
        unknown = sorted({place[1] for place in self.items} - set(classes))
        if unknown:
            raise InputError(f"{origin}: class {unknown[0]!r}: must be one of {', '.join(classes)}; rename the folder")
        sizes = {pixels.shape for pixels in self.items.values()}
        if len(sizes) > 1:
            raise InputError(f"{origin}: images of {len(sizes)} sizes, {sorted(sizes)[:2]}: must have one size")
        splits: dict[Split, Arrays] = {}
        for split in get_args(Split):
            places = sorted(place for place in self.items if place[0] == split)
            if not places:
                raise InputError(f"{origin}: no {split} images: must have {split}/<class>/*; check the path")
            labels = np.array([classes.index(place[1]) for place in places], dtype=np.int64)
            splits[split] = (np.stack([self.items[place] for place in places]), labels)
        return Splits(splits, lossy=any(not place[2].lower().endswith(".png") for place in self.items))


def _cache_file(path: Path) -> Path | None:
    """Where the pixels of an archive are kept; None for folders, whose content has no single hash."""
    if not path.is_file() or path.name.endswith((".bin", ".npz")):
        return None
    try:
        from PIL import features
    except ImportError:
        return None
    with path.open("rb") as stream:
        content = hashlib.file_digest(stream, "sha256").hexdigest()
    decoder = f"{version('pillow')} {features.version('jpg')} {features.version('zlib')}"
    key = hashlib.sha256(f"{content} {decoder}".encode()).hexdigest()[:32]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "fqtsim" / f"images-{key}.npz"


def cached(path: Path) -> Splits | None:
    """Return the pixels kept from an earlier decoding of this very archive, or None."""
    file = _cache_file(path)
    if file is None or not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:
            splits: dict[Split, Arrays] = {
                split: (kept[f"{split}_pixels"], kept[f"{split}_labels"]) for split in get_args(Split)
            }
            return Splits(splits, lossy=bool(kept["lossy"]))
    # A damaged cache is no source of data: decode again.
    except (OSError, ValueError, KeyError, EOFError):
        return None


def store(path: Path, arrays: Splits) -> None:
    """Keep decoded pixels for the next run; a cache folder that cannot be written is no error."""
    file = _cache_file(path)
    if file is None:
        return
    columns: dict[str, Any] = {}
    for split, (pixels, labels) in arrays.splits.items():
        columns[f"{split}_pixels"], columns[f"{split}_labels"] = pixels, labels
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.savez(stream, lossy=np.array(arrays.lossy), **columns)
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
