"""Compiled kernels on disk, so that a process need not compile what another one has (docs/decisions/0003).

A file is named by everything that its machine code depends on: every source of the package, the versions of Python,
NumPy, Numba and llvmlite, Numba's settings, the CPU and its features, the function, its form and the argument types.
Whatever changes gives another name, so nothing stale can be met; a damaged file fails its checksum and is compiled
again. A process whose sources were edited after it started neither reads nor writes: it may run the ones before.
FQTSIM_KERNEL_CACHE names another folder, or turns this off ("off").
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import platform
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import serialize
from numba.core.compiler import CompileResult

from fqtsim.started import AT

VARIABLE = "FQTSIM_KERNEL_CACHE"
OLD = 30 * 86400
"""Seconds after which the kernels of other sources, which nobody has used since, are removed."""


PACKAGE = Path(__file__).parents[1]
Stamp = tuple[tuple[str, int, int], ...]


def _stamp() -> Stamp:
    """Return name, time of change and size of every source of the package."""
    found = []
    for directory, _, files in os.walk(PACKAGE):
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(directory, name)
                state = os.stat(path)
                found.append((path, state.st_mtime_ns, state.st_size))
    return tuple(sorted(found))


@cache
def _sources() -> tuple[Stamp, str]:
    """Return what the sources look like, and the SHA-256 of all that kernels depend on beside CPU and arguments."""
    stamp, digest = _stamp(), hashlib.sha256()
    versions = (platform.python_version(), np.__version__, numba.__version__, llvmlite.__version__)
    settings = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    digest.update(repr((versions, settings)).encode())
    for name, _, _ in stamp:
        content = Path(name).read_bytes()
        digest.update(f"{os.path.relpath(name, PACKAGE)} {len(content)}\n".encode())
        digest.update(content)
    return stamp, digest.hexdigest()


def sources_digest() -> str | None:
    """Return the digest of the sources that this process runs, or None where it may run others than the files hold."""
    try:
        stamp, digest = _sources()
        same = _stamp() == stamp
    except OSError:
        return None
    return digest if same and max(time_ns for _, time_ns, _ in stamp) < 1e9 * AT else None


def folder() -> Path | None:
    """Return where compiled kernels are kept, or None where they are not to be."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "off":
        return None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base) / "fqtsim" / "kernels"


class KernelCache:
    """What Numba's dispatcher asks for compiled code, and gives it to; one for each function and form."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _path(self, sig: Any, codegen: Any) -> tuple[Path | None, bytes]:
        where = folder()
        digest = None if where is None else sources_digest()
        if where is None or digest is None:
            return None, b""
        key = repr((self.name, sig, codegen.magic_tuple(), digest)).encode()
        return where / digest[:32] / f"{hashlib.sha256(key).hexdigest()}.kernel", key

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function of these argument types, or None."""
        target_context.refresh()
        path, key = self._path(sig, target_context.codegen())
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        checksum, content = content[:32], content[32:]
        if hashlib.sha256(content).digest() != checksum:
            return None
        stored, payload = pickle.loads(content)
        if stored != key:
            return None
        return CompileResult._rebuild(target_context, *payload)  # type: ignore[no-untyped-call]

    def save_overload(self, sig: Any, compiled: Any) -> None:
        """Keep a compiled function, in one move; without room or right to write there, do nothing."""
        path, key = self._path(sig, compiled.codegen)
        if path is None or compiled.lifted or compiled.library.has_dynamic_globals:
            return
        content = serialize.dumps((key, compiled._reduce()))  # type: ignore[no-untyped-call]
        with contextlib.suppress(OSError):
            if not path.parent.is_dir():
                _make(path.parent)
            handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(hashlib.sha256(content).digest() + content)
                os.replace(partial, path)
            except BaseException:
                os.unlink(partial)
                raise

    def enable(self) -> None:
        """Numba's switch; the environment is ours."""

    def disable(self) -> None:
        """Numba's switch; the environment is ours."""

    def flush(self) -> None:
        """Forget nothing: files of other sources have other names."""


def _make(path: Path) -> None:
    """Make the folder of these sources, and remove those of others that are old."""
    path.mkdir(parents=True, exist_ok=True)
    for other in path.parent.iterdir():
        if len(other.name) == len(path.name) and time.time() - other.stat().st_mtime > OLD:
            shutil.rmtree(other, ignore_errors=True)
