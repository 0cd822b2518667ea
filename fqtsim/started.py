"""The package's sources as this process found them when it began to import the package."""

from __future__ import annotations

import os

PACKAGE = os.path.dirname(os.path.abspath(__file__))
Stamp = tuple[tuple[str, int, int, int, int, int], ...]


def stamp() -> Stamp:
    """Return name, times, size and place of every source: whatever replaces or edits one changes it."""
    found = []
    for directory, _, files in os.walk(PACKAGE):
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(directory, name)
                state = os.stat(path)
                found.append((path, state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino, state.st_dev))
    return tuple(sorted(found))


def _stamp_or_nothing() -> Stamp:
    try:
        return stamp()
    except OSError:  # a package that is no folder, or is being replaced
        return ()


AT_IMPORT = _stamp_or_nothing()
