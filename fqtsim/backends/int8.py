"""INT8 matrix products of this machine through torch, behind a self-test (`torch._int_mm`).

On a CPU without VNNI `torch._int_mm` is silently wrong (pytorch issue 136746), so nobody calls it before it has
multiplied the operands that show the fault. Where it fails, exact float32 products of K-chunks take its place and
say so.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fqtsim.backends.base import Array
from fqtsim.errors import BackendRefused

SILICON = "INT8 silicon (torch._int_mm)"
FALLBACK = "exact fp32 chunks (independent oracle, not INT8 silicon)"
FLOAT_EXACT_LIMIT = 1 << 24
# CUDA's _int_mm wants more than 16 rows, and K and N in multiples of 8.
_CUDA_ROWS, _CUDA_MULTIPLE = 32, 8
# Enough products of rails to pass 2**31, so that the silicon's own wrap is part of the self-test.
_WRAPS = (2, 140_001, 3)


def _torch() -> Any:
    import torch

    return torch


@cache
def silicon_fault(device: str) -> str | None:
    """Return why this device's INT8 product cannot be trusted, or None where it passed the self-test."""
    torch = _torch()
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    rng = np.random.RandomState(0)
    for shape in ((64, 64, 64), (1, 64, 64), (64, 64, 1), (1, 512, 512), (33, 130, 17), (3, 7, 5), _WRAPS):
        m, k, n = shape
        for a_type in (np.int8, np.uint8):
            high = (127, -128) if a_type is np.int8 else (255, 0)
            a = rng.choice(high, size=(m, k)).astype(a_type)
            b = rng.choice((127, -128), size=(k, n)).astype(np.int8)
            if shape is _WRAPS:
                a[0], b[:, 0] = high[-1 if a_type is np.int8 else 0], -128
            try:
                got = _int_mm(a, b, device)
            except RuntimeError as error:
                return f"torch._int_mm refuses {a.dtype} x int8 {shape}: {str(error).splitlines()[0]}"
            exact = a.astype(np.int64) @ b.astype(np.int64)
            if not np.array_equal(got, exact.astype(np.int32)):  # the cast wraps
                return f"torch._int_mm is wrong for full-range {a.dtype} x int8 operands {shape}"
    return None


def _tensor(codes: Array) -> Any:
    """Return a matrix as a torch tensor whose strides are those of its shape.

    A row taken from a column counts as contiguous with strides (1, 1); oneDNN takes its leading dimension from there
    and reads beyond the row.
    """
    flat = np.ascontiguousarray(codes).ravel()
    # torch warns of arrays that it could not write to.
    return _torch().from_numpy(flat if flat.flags.writeable else flat.copy()).view(codes.shape)


def _int_mm(a: Array, b: Array, device: str) -> Array:
    """Return a (int8; uint8 on a CPU) times b (int8) as int32, wrapped modulo 2**32."""
    torch = _torch()
    a_torch, b_torch = _tensor(a), _tensor(b)
    if device == "cpu":
        product: Array = torch._int_mm(a_torch, b_torch).numpy()
        return product
    if a_torch.dtype == torch.uint8:
        shifted = _int_mm((a ^ np.uint8(128)).view(np.int8), b, device)  # a - 128
        columns: Array = (b.sum(axis=0, dtype=np.int64) * 128).astype(np.int32)
        with np.errstate(over="ignore"):
            return shifted + columns
    m, k = a.shape
    n = b.shape[1]
    pad = torch.nn.functional.pad
    a_torch = pad(a_torch, (0, -k % _CUDA_MULTIPLE, 0, max(_CUDA_ROWS - m, 0))).to(device)
    b_torch = pad(b_torch, (0, -n % _CUDA_MULTIPLE, 0, -k % _CUDA_MULTIPLE)).to(device)
    out: Array = torch._int_mm(a_torch, b_torch)[:m, :n].cpu().numpy()
    return np.ascontiguousarray(out)


def wrapped_product(a: Array, b: Array, device: str) -> Array:
    """Return a (M, K) times b (K, N) modulo 2**32 as int32, by INT8 instructions; any mix of int8 and uint8.

    Raises BackendRefused where the device failed its self-test or a code needs more than 8 bits.
    """
    fault = silicon_fault(device)
    if fault is not None:
        raise BackendRefused(f"native@{device}: {fault}; use backend emulator")
    if not a.shape[1] or not a.shape[0] or not b.shape[1]:
        return np.zeros((a.shape[0], b.shape[1]), np.int32)
    if b.dtype == np.int8:
        return _int_mm(a, b, device)
    if a.dtype == np.int8:
        return np.ascontiguousarray(_int_mm(b.T, a.T, device).T)
    shifted = _int_mm(a, (b ^ np.uint8(128)).view(np.int8), device)  # b - 128
    row: Array = (a.sum(axis=1, dtype=np.int64) * 128).astype(np.int32)
    with np.errstate(over="ignore"):
        return shifted + row[:, None]


def float_product(a: Array, b: Array, device: str) -> Array:
    """Return the exact int64 product by float32 products of K-chunks that stay below 2**24."""
    torch = _torch()
    largest = int(np.abs(a.astype(np.int64)).max(initial=1)) * int(np.abs(b.astype(np.int64)).max(initial=1))
    run = max(1, FLOAT_EXACT_LIMIT // max(largest, 1))
    total = np.zeros((a.shape[0], b.shape[1]), np.int64)
    for k in range(0, a.shape[1], run):
        left = torch.from_numpy(a[:, k : k + run].astype(np.float32)).to(device)
        right = torch.from_numpy(b[k : k + run].astype(np.float32)).to(device)
        total += (left @ right).cpu().numpy().astype(np.int64)
    return total


def exact_product(a: Array, b: Array, device: str) -> Array:
    """Return the exact product by INT8 instructions: K in runs whose sums fit int32; int64 where there are several."""
    largest = int(np.iinfo(a.dtype).max + 1) * int(np.iinfo(b.dtype).max + 1)
    run = max(1, ((1 << 31) - 1) // largest)
    if a.shape[1] <= run:
        return wrapped_product(a, b, device)
    total = np.zeros((a.shape[0], b.shape[1]), np.int64)
    for k in range(0, a.shape[1], run):
        total += wrapped_product(a[:, k : k + run], b[k : k + run], device)
    return total
