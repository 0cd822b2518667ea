"""Reading an .npz from a stranger: no pickle, bounded sizes, one sentence for every damage."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fqtsim.errors import InputError

if TYPE_CHECKING:
    import numpy as np

#: Larger arrays are refused before they are read.
MAX_ARRAY_BYTES = 1 << 30

#: What zipfile, zlib and NumPy raise for bytes that are no .npz of numbers; a header may claim any shape.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, ValueError, EOFError, OSError, MemoryError,
    NotImplementedError, RuntimeError, KeyError,
)  # fmt: skip


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of an .npz file by name. Raises InputError for a file that holds anything else."""
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.file_size > MAX_ARRAY_BYTES:
                    raise InputError(f"{path}: {info.filename} has {info.file_size} bytes: must be at most 1 GiB")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except _DAMAGE as error:
        if isinstance(error, InputError | FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise InputError(f"{path}: not a readable .npz of numbers ({error}); write it with numpy.savez") from error
