"""The C kernel of avx2_gemm.c as a Python function: compiled on first use, called through ctypes.

    fqtsim golden make --hardware int8_acc32_wrap --out set.safetensors
    fqtsim golden check set.safetensors --no-large --kernel avx2_gemm.py:matmul

It sums pairs of products in 16 bits, which saturate. On operands quantized from random normal numbers it passes
`torch.equal`; the set finds it, and against `--hardware x86_avx2_pmaddubsw`, which has those registers, it is right.
"""

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).with_suffix(".c")


@cache
def library() -> Any:
    """Compile and load the kernel. Raises OSError without a C compiler, CalledProcessError where it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "avx2_gemm.so")
        subprocess.run(["cc", "-O2", "-mavx2", "-shared", "-fPIC", "-o", built, SOURCE], check=True)
        return ctypes.CDLL(str(built))


def matmul(a: Any, b: Any, c: Any = None) -> Any:
    """Return c + a @ b in int32: a (M, K) uint8, b (K, N) int8, c (M, N) or None."""
    left, right = np.ascontiguousarray(a, np.uint8), np.ascontiguousarray(np.asarray(b, np.int8).T)
    start = None if c is None else np.ascontiguousarray(c, np.int32)
    out = np.empty((left.shape[0], right.shape[0]), np.int32)
    pointers = [None if array is None else array.ctypes.data_as(ctypes.c_void_p) for array in (left, right, start, out)]
    library().gemm(*pointers, left.shape[0], left.shape[1], right.shape[0])
    return out
