"""For a kernel engineer: is my INT8 GEMM right, to the bit, and if not, where and why?"""

import numpy as np

import fqtsim


def my_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A GEMM with a bug that random data rarely shows: it adds pairs of products in 16 bits, which saturate."""
    pairs = np.int32(a[:, :, None]) * np.int32(b[None])
    sums = np.clip(pairs[:, 0::2] + pairs[:, 1::2], -(2**15), 2**15 - 1)
    return sums.sum(axis=1, dtype=np.int32)


rng = np.random.default_rng(0)
a = rng.integers(-128, 128, (16, 64)).astype(np.int8)
b = rng.integers(-128, 128, (64, 16)).astype(np.int8)
print("random operands:", fqtsim.compare(a, b, "int8_acc32_wrap", my_kernel(a, b), gemm="dgrad"))

a[3, 10:12], b[10:12, 5] = -128, -128  # most negative times most negative, twice in a row
try:
    fqtsim.assert_bitexact(my_kernel(a, b), a, b, "int8_acc32_wrap", gemm="dgrad")
except AssertionError as error:
    print("corner operands:", str(error).split("expected from")[0])
