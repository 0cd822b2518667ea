"""Read a CIFAR-10 "python version" batch without running what a pickle says.

A pickle may name any function to call. This reader admits numpy's array and dtype, answering both with inert
stand-ins, and the encoder that Python 3 writes for bytes; the array is then built from the bytes given to it.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqtsim.errors import InputError


class _ArrayState:
    """What the pickle hands to an array: (version, shape, dtype, fortran order, bytes)."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _TypeState:
    """What the pickle hands to a dtype: the name comes first."""

    def __init__(self, name: Any = None, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """Ignore byte order and flags: one-byte numbers have none."""


def _encode(text: str, _: str = "latin1") -> bytes:
    """Python 3 writes bytes into a protocol 2 pickle as this call."""
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encode,
    ("numpy.core.multiarray", "_reconstruct"): _ArrayState,
    ("numpy._core.multiarray", "_reconstruct"): _ArrayState,
    ("numpy", "ndarray"): _ArrayState,
    ("numpy", "dtype"): _TypeState,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get((module, name))
        if admitted is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a batch of CIFAR-10 does not")
        return admitted


def read_batch(content: bytes, origin: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pixels (N, 3, 32, 32) and labels (N,) of one batch. Raises InputError for any other content."""
    try:
        batch = _Reader(io.BytesIO(content), encoding="bytes").load()
        data, labels = batch[b"data"].state, batch[b"labels"]
        kind = data[2].name
        if kind not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"pixels are {kind!r}, not u1")
        pixels = np.frombuffer(data[4], dtype=np.uint8).reshape(-1, 3, 32, 32)
        if len(pixels) != len(labels) or not all(type(label) is int and 0 <= label < 10 for label in labels):
            raise pickle.UnpicklingError(f"{len(pixels)} images and {len(labels)} labels, or labels outside 0..9")
    # A damaged pickle can raise nearly anything; nothing that it names has run.
    except Exception as error:
        raise InputError(
            f"{origin}: not a batch of the CIFAR-10 python version ({error}); use cifar-10-binary.tar.gz"
        ) from error
    return pixels, np.array(labels, dtype=np.int64)
