"""Read the files of a folder, tar or zip one by one, in memory and within bounds; unpack nothing to disk."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from fqtsim.errors import InputError

#: The largest file of any CIFAR-10 form is 31 MB.
MAX_MEMBER_BYTES = 1 << 26
#: CIFAR-10 is 60,000 images; more members than this is another archive.
MAX_MEMBERS = 200_000

Wanted = Callable[[str], bool]


def members(path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Yield (name with forward slashes, content) of each wanted file of a folder, tar or zip.

    Raises InputError for a damaged or unknown archive and for a file over 64 MiB.
    """
    if path.is_dir():
        yield from _folder(path, wanted)
    elif zipfile.is_zipfile(path):
        yield from _guard(path, _zip(path, wanted))
    else:
        yield from _guard(path, _tar(path, wanted))


def _guard(path: Path, found: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    try:
        yield from found
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise InputError(f"{path}: not a whole tar or zip archive ({error}); get the file again") from error


def _folder(path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if wanted(name) and file.is_file():
            with file.open("rb") as stream:
                yield name, _bounded(stream, path, name)


def _zip(path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        _count(path, len(archive.infolist()))
        for info in archive.infolist():
            if wanted(info.filename) and not info.is_dir():
                with archive.open(info) as stream:
                    yield info.filename, _bounded(stream, path, info.filename)


def _tar(path: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    # "r|*" reads forward only: a compressed archive is decompressed once.
    with tarfile.open(path, mode="r|*") as archive:
        for number, info in enumerate(archive, start=1):
            _count(path, number)
            if wanted(info.name) and info.isfile():
                stream = archive.extractfile(info)
                if stream is not None:
                    yield info.name, _bounded(stream, path, info.name)


def _count(path: Path, number: int) -> None:
    if number > MAX_MEMBERS:
        raise InputError(f"{path}: more than {MAX_MEMBERS} members: must be an archive of CIFAR-10; check the path")


def _bounded(stream: IO[bytes], path: Path, name: str) -> bytes:
    content = stream.read(MAX_MEMBER_BYTES + 1)
    if len(content) > MAX_MEMBER_BYTES:
        raise InputError(f"{path}: {name} is over {MAX_MEMBER_BYTES} bytes: must be a file of CIFAR-10; check the path")
    return content
