"""Compiled kernels on disk, so that a process need not compile what another one has (docs/decisions/0003).

A file is named by everything that its machine code depends on: every source of the package and when it was changed,
the versions of Python, NumPy, Numba and llvmlite, Numba's settings, the CPU and its features, the function, its form
and the argument types. Whatever changes gives another name, so nothing stale can be met; a damaged file fails its
checksum and is compiled again. A process whose sources are no longer those that it found when it began to import the
package neither reads nor writes: it may run the ones before.
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

from fqtsim.started import AT_IMPORT, PACKAGE, stamp

VARIABLE = "FQTSIM_KERNEL_CACHE"
OLD = 30 * 86400
"""Seconds after which the kernels of other sources, which nobody has used since, are removed."""


SETTINGS = ("OPT", "BOUNDSCHECK", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT", "ENABLE_AVX", "CPU_NAME",
            "CPU_FEATURES", "ENABLE_PROFILING", "CAPTURED_ERRORS")  # fmt: skip
"""What of Numba's configuration, by whatever file or variable, can reach machine code."""
PREFIX = "sources-"


@cache
def _digest() -> str:
    """Return the SHA-256 of all that kernels depend on beside CPU and arguments, from the files as they are now.

    Times of change are part of it: Python takes bytecode for current whose source has the same second and size, and
    what was compiled from such bytecode must not outlive it.
    """
    digest = hashlib.sha256()
    versions = (platform.python_version(), np.__version__, numba.__version__, llvmlite.__version__)
    settings = [(name, getattr(numba.config, name, None)) for name in SETTINGS]
    digest.update(repr((versions, settings)).encode())
    for name, changed, *_ in AT_IMPORT:
        content = Path(name).read_bytes()
        digest.update(f"{os.path.relpath(name, PACKAGE)} {changed} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def sources_digest() -> str | None:
    """Return the digest of the sources that this process runs, or None where it may run others than the files hold."""
    try:
        digest = _digest()
        return digest if AT_IMPORT and stamp() == AT_IMPORT else None
    except OSError:
        return None


def folder() -> Path | None:
    """Return where compiled kernels are kept, or None where they are not to be."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "off":
        return None
    if chosen:
        return Path(chosen)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    return Path(base) / "fqtsim" / "kernels"


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
        return where / (PREFIX + digest[:32]) / f"{hashlib.sha256(key).hexdigest()}.kernel", key

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
        _mark_as_used(path.parent)
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


@cache
def _mark_as_used(path: Path) -> None:
    """Say that the kernels of these sources are in use, once in a process."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _make(path: Path) -> None:
    """Make the folder of these sources, and remove those of others that nobody has used for long."""
    path.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f"{PREFIX}{'[0-9a-f]' * 32}"):
        kernels_only = other.is_dir() and all(file.suffix in (".kernel", ".partial") for file in other.iterdir())
        if kernels_only and time.time() - other.stat().st_mtime > OLD:
            shutil.rmtree(other, ignore_errors=True)
