"""The x86 instructions against a formula in NumPy and against the gate-level model; each count is printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from independent import model
from numpy.random import RandomState
from numpy.typing import NDArray

from fqtsim.backends import silicon
from fqtsim.errors import BackendRefused, InputError

HWCONFIGS = Path(__file__).parents[1] / "hwconfigs"
Array = NDArray[Any]

pytestmark = pytest.mark.filterwarnings("error")


def needs(name: str) -> None:
    reason = silicon.available(name)
    if reason:
        pytest.skip(reason)


def wrap32(total: Array) -> Array:
    return total.astype(np.int64).astype(np.uint32).view(np.int32)


def products(a: Array, b: Array, k: int) -> Array:
    return np.multiply.outer(a[:, k].astype(np.int32), b[k].astype(np.int32))


def pmaddubsw(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Pairs clipped to 16 bits, then everything modulo 2**32; and where a pair was clipped."""
    total, clipped = c.astype(np.int64), np.zeros(c.shape, bool)
    for k in range(0, a.shape[1], 2):
        pair = products(a, b, k) + (products(a, b, k + 1) if k + 1 < a.shape[1] else 0)
        held = np.clip(pair, -(2**15), 2**15 - 1)
        clipped |= held != pair
        total += held
    return wrap32(total), clipped


def vpdpbusds(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Four products and the register added, then clipped to 32 bits; and where that was needed."""
    total, clipped = c.astype(np.int64), np.zeros(c.shape, bool)
    for k in range(0, a.shape[1], 4):
        for term in range(k, min(k + 4, a.shape[1])):
            total += products(a, b, term)
        held = np.clip(total, -(2**31), 2**31 - 1)
        clipped |= held != total
        total = held
    return total.astype(np.int32), clipped


def vpdpbusd(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """All products modulo 2**32; and where that changed the sum."""
    total = c.astype(np.int64)
    for k in range(a.shape[1]):
        total += products(a, b, k)
    return wrap32(total), wrap32(total) != total


FORMULAS: dict[str, Callable[[Array, Array, Array], tuple[Array, Array]]] = {
    "x86_avx2_pmaddubsw": pmaddubsw,
    "x86_vnni_saturate": vpdpbusds,
    "x86_vnni_wrap": vpdpbusd,
}
INT32 = {"terms": "all", "register": "int32", "overflow": "wrap"}
VNNI_WRAP = {"a": "uint8", "b": "int8", "zero_point": "after_accumulate", "levels": [INT32]}


def declared(name: str) -> dict[str, Any]:
    """Return the datapath that the shipped hardware file of this name declares."""
    file = HWCONFIGS / f"{name}.yaml"
    return yaml.safe_load(file.read_text())["datapath"] if file.exists() else VNNI_WRAP


def adversarial(seed: int, m: int, k: int, n: int) -> tuple[Array, Array, Array]:
    """Codes at the corners and anywhere, start values beside the rails of 32 bits and anywhere."""
    random = RandomState(seed)

    def mixed(size: tuple[int, int], special: list[int], low: int, high: int, share: float) -> Array:
        anywhere = random.randint(low, high, size, dtype=np.int64)
        return np.where(random.rand(*size) < share, random.choice(special, size), anywhere)

    a = mixed((m, k), [0, 1, 127, 128, 254, 255, 255], 0, 256, random.rand())
    b = mixed((k, n), [-128, -128, -127, -1, 0, 1, 127, 127], -128, 128, random.rand())
    near = mixed((m, n), [0, 1, 2, 255, 32640, 65025, 130560], 0, 2**18, 0.5)
    rails = np.where(random.rand(m, n) < 0.5, -(2**31) + near, 2**31 - 1 - near)
    c = np.where(random.rand(m, n) < 0.6, rails, random.randint(-(2**31), 2**31, (m, n)))
    return a.astype(np.uint8), b.astype(np.int8), c


@pytest.mark.parametrize("name", silicon.DATAPATHS)
def test_ten_million_outputs(name: str) -> None:
    needs(name)
    gemm = silicon.silicon_gemm(name)
    outputs = saturated = 0
    for seed, k in enumerate([1, 2, 3, 4, 5, 7, 8, 11, 14, 17, 22]):
        a, b, c = adversarial(seed, 1001, k, 999)
        expected, clipped = FORMULAS[name](a, b, c)
        assert np.array_equal(gemm(a, b, c), expected), f"K = {k}"
        outputs, saturated = outputs + expected.size, saturated + int(clipped.sum())
    print(f"{name}: {outputs} outputs equal, {saturated} of them past a rail on the way")
    assert outputs >= 10**7
    assert saturated > 10**5


@pytest.mark.parametrize("name", silicon.DATAPATHS)
def test_each_vector_width_on_every_ragged_size(name: str) -> None:
    needs(name)
    for bits in silicon.vector_bits(name):
        for seed in range(40):
            random = RandomState(seed)
            m, k, n = random.randint(0, 10), random.randint(0, 20), random.randint(0, 70)
            a, b, c = adversarial(seed, m, k, n)
            expected, _ = FORMULAS[name](a, b, c)
            assert np.array_equal(silicon._gemm(name, a, b, c, bits), expected)
            transposed = silicon._gemm(name, np.asfortranarray(a), b[:, ::-1], c, bits)
            assert np.array_equal(transposed, FORMULAS[name](a, b[:, ::-1], c)[0])


@pytest.mark.parametrize("name", silicon.DATAPATHS)
def test_the_silicon_is_the_declared_datapath(name: str) -> None:
    """Ties the hardware file, the gate-level model and the instruction together, events included."""
    needs(name)
    altered = 0
    for seed in range(12):
        a, b, c = adversarial(100 + seed, 5, 1 + 3 * seed, 9)
        codes, events = model.gemm(a.tolist(), b.tolist(), declared(name), c.tolist())
        assert silicon.silicon_gemm(name)(a, b, c).tolist() == codes
        altered += events["altered"]
    assert altered > 50


@pytest.mark.parametrize("name", silicon.DATAPATHS)
def test_long_sums_reach_the_rails_without_a_start_value(name: str) -> None:
    needs(name)
    a = np.full((2, 70_001), 255, np.uint8)
    b = np.repeat(np.array([[127, -128, 127]], np.int8), 70_001, axis=0)
    b[-2:, 2] = -128  # reached the upper rail, then comes back from it
    expected, clipped = FORMULAS[name](a, b, np.zeros((2, 3), np.int64))
    assert np.array_equal(silicon.silicon_gemm(name)(a, b), expected)
    assert clipped.all()


@pytest.mark.parametrize(
    ("name", "mnemonics"),
    [
        ("x86_avx2_pmaddubsw", {"vpmaddubsw", "vpmaddwd", "vpaddd"}),
        ("x86_vnni_saturate", {"vpdpbusds"}),
        ("x86_vnni_wrap", {"vpdpbusd"}),
    ],
)
def test_the_machine_code_holds_the_instruction(name: str, mnemonics: set[str]) -> None:
    needs(name)
    for bits in silicon.vector_bits(name):
        found = silicon.instructions(name, bits)
        assert mnemonics <= found
        # No clipping in software, and no other dot product in its place.
        assert not {word for word in found if word.startswith(("vpmin", "vpmax", "vpack", "vpdpw"))}


def test_published_pair() -> None:
    needs("x86_avx2_pmaddubsw")
    a, b = np.array([[255, 255]], np.uint8), np.array([[127], [127]], np.int8)
    assert silicon.pmaddubsw_gemm(a, b).tolist() == [[32767]]


def test_start_values_broadcast() -> None:
    needs("x86_avx2_pmaddubsw")
    a, b = np.ones((2, 1), np.uint8), np.ones((1, 3), np.int8)
    assert silicon.pmaddubsw_gemm(a, b, 5).tolist() == [[6] * 3] * 2
    assert silicon.pmaddubsw_gemm(a, b, [[1, 2, 3]]).tolist() == [[2, 3, 4]] * 2
    assert silicon.pmaddubsw_gemm(a[:, :0], b[:0], -7).tolist() == [[-7] * 3] * 2


def test_other_processors_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    silicon.cpu_features.cache_clear()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    try:
        assert silicon.cpu_features() == frozenset()
        for name in silicon.DATAPATHS:
            assert silicon.vector_bits(name) == ()
            with pytest.raises(BackendRefused, match="x86-64 processor; this one is aarch64"):
                silicon.silicon_gemm(name)
        with pytest.raises(BackendRefused, match="aarch64"):
            silicon.vnni_wrap_gemm(np.ones((1, 1), np.uint8), np.ones((1, 1), np.int8))
    finally:
        silicon.cpu_features.cache_clear()


def test_features_that_numba_leaves_out_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    silicon.cpu_features.cache_clear()
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("numba.config.CPU_FEATURES", "+sse2,+avx2,-avx512vnni,+avxvnni")
    try:
        assert silicon.vector_bits("x86_vnni_saturate") == (256,)
        monkeypatch.setattr("numba.config.CPU_FEATURES", "+sse2,+avx2,+avx512f,-avx512vnni")
        silicon.cpu_features.cache_clear()
        assert silicon.available("x86_avx2_pmaddubsw") is None
        reason = silicon.available("x86_vnni_saturate")
        assert reason is not None
        assert "avx512f+avx512vnni or avx512vl+avx512vnni or avxvnni" in reason
    finally:
        silicon.cpu_features.cache_clear()


def test_bad_input_is_named() -> None:
    needs("x86_avx2_pmaddubsw")
    a, b = np.ones((2, 3), np.uint8), np.ones((3, 2), np.int8)
    with pytest.raises(InputError, match="a = 2-dimensional int8: must be a matrix of uint8"):
        silicon.pmaddubsw_gemm(b.T, b)
    with pytest.raises(InputError, match="contracted sizes"):
        silicon.pmaddubsw_gemm(a, b[:2])
    with pytest.raises(InputError, match="fit int32"):
        silicon.pmaddubsw_gemm(a, b, 2**31)
    with pytest.raises(InputError, match="fit int32"):
        silicon.pmaddubsw_gemm(a, b, 0.5)
    with pytest.raises(InputError, match="must broadcast"):
        silicon.pmaddubsw_gemm(a, b, np.zeros((3, 2), np.int64))
    with pytest.raises(InputError, match="must be one of x86_avx2_pmaddubsw"):
        silicon.available("avx1024")
