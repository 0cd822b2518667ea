"""One 256-bit value for all training state (S5.10)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fqtsim.train.operands import Array


@dataclass(frozen=True)
class Digest:
    """The digest of a training state."""

    #: SHA-256 over the sorted lines, 64 hexadecimal digits.
    hex: str
    #: SHA-256 of each tensor's bytes, by name.
    tensors: dict[str, str]
    #: The platform's own float GEMM took part: the digest holds for this machine only.
    platform: bool = False

    def __str__(self) -> str:
        return f"{self.hex}{' (platform)' if self.platform else ''}"


def tensor_digest(array: Array) -> str:
    """Return the SHA-256 of the elements, little-endian, in logical (row-major) order."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.tobytes()).hexdigest()


def state_digest(tensors: Mapping[str, Array], platform: bool = False) -> Digest:
    """Return the digest of the lines `name dtype d0xd1x... hex`, sorted by name."""
    hexes = {name: tensor_digest(array) for name, array in tensors.items()}
    lines = [
        f"{name} {tensors[name].dtype.name} {'x'.join(map(str, tensors[name].shape))} {hexes[name]}\n"
        for name in sorted(tensors)
    ]
    return Digest(hashlib.sha256("".join(lines).encode("utf-8")).hexdigest(), hexes, platform)
