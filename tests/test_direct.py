"""Convolutions straight from padded planes: equal to the GEMM on patches bit for bit, and only where that is proven."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from convolutions import GEOMETRIES, Counting, Matrices, agree, calls, events, geometries, outcome
from hypothesis import given
from hypothesis import strategies as st
from mac import chain, datapath

from fqtsim.backends import direct, get_backend
from fqtsim.backends.base import GemmResult
from fqtsim.backends.emulator import Emulator
from fqtsim.errors import BackendRefused
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import threads
from fqtsim.kernels import tile as tiles
from fqtsim.train import functional
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Window
from fqtsim.train.operands import Operand
from fqtsim.train.run import Run

pytestmark = pytest.mark.skipif(not tiles.HAS_DOT, reason="this CPU has no VPDPBUSD, so nothing is direct")
PATHS = {
    "int32 wraps": "int32 wrap",
    "int32 saturates": "int32 saturate",
    "sums of 4, int24": "terms 4 exact, int24 saturate",
    "exact": "exact",
    "int12 saturates": "int12 saturate",
    "int20 wraps": "int20 wrap",
}


def path(name: str, a: str = "uint8", zero_point: str = "after_accumulate") -> Datapath:
    return datapath(*chain(PATHS.get(name, name)), a=a, b="int8", zero_point=zero_point)


@given(
    geometries(), st.tuples(st.integers(1, 21), st.integers(1, 70)), st.sampled_from([np.int8, np.uint8]),
    st.sampled_from(list(PATHS)), st.sampled_from([2, 12, 128, 256]), st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
def test_any_convolution(
    geometry: tuple[Window, tuple[int, int]], channels: tuple[int, int], kind: Any, name: str, largest: int,
    observe: bool, seed: int,
) -> None:  # fmt: skip
    for gemm, call in calls(np.random.default_rng(seed), *geometry, channels, kind, largest):
        a = "int8" if gemm == "dgrad" else np.dtype(kind).name
        chosen = path(name, a)
        ours = outcome(call, gemm, chosen, get_backend("emulator"), observe)
        theirs = outcome(call, gemm, chosen, Matrices(), observe)
        agree(ours, theirs)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{g[0].kernel}-{g[0].stride}-{g[1]}")
@pytest.mark.parametrize("channels", [(1, 1), (3, 16), (4, 17), (5, 40), (16, 65)])
def test_named_convolutions_against_every_addition(geometry: Any, channels: tuple[int, int]) -> None:
    rng = np.random.default_rng(channels[0])
    for gemm, call in calls(rng, *geometry, channels, np.uint8, 256):
        chosen = path("int32 wraps", "int8" if gemm == "dgrad" else "uint8")
        counting = Counting()
        ours = outcome(call, gemm, chosen, counting, False)
        assert counting.direct == 1
        assert ours == outcome(call, gemm, chosen, get_backend("stepwise"), False)


def test_parts_of_samples_and_sums_that_int32_holds_for_few(monkeypatch: pytest.MonkeyPatch) -> None:
    direct.prove_gradient(1)  # whose own sums need the room that is taken away below
    window, size = GEOMETRIES[0]
    rng = np.random.default_rng(4)
    expected = [outcome(call, gemm, path("int32 wraps", "int8" if gemm == "dgrad" else "uint8"), Matrices(), True)
                for gemm, call in calls(rng, window, size, (5, 9), np.uint8, 256)]  # fmt: skip
    monkeypatch.setattr(threads, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 3)
    # All the room there is; that of one sample of wgrad; of one and a part of another; of two.
    for limit in (direct.INT32 - 1, 42 << 15, (42 << 16) - 1, 42 << 16):
        monkeypatch.setattr(direct, "INT32", limit + 1)
        rng = np.random.default_rng(4)
        for (gemm, call), theirs in zip(calls(rng, window, size, (5, 9), np.uint8, 256), expected, strict=True):
            counting = Counting()
            ours = outcome(call, gemm, path("int32 wraps", "int8" if gemm == "dgrad" else "uint8"), counting, True)
            assert ours[:3] == theirs[:3]
            assert counting.direct == 1 or (gemm != "wgrad" and limit < 1 << 30)


def _line(codes: list[int]) -> Operand:
    return Operand(np.array(codes, np.uint8).reshape(1, -1, 1, 1), np.asarray(np.float32(1)), np.zeros((), np.int64))


def _weights(codes: list[int]) -> Operand:
    return Operand(np.array(codes, np.int8).reshape(1, -1, 1, 1), np.asarray(np.float32(1)), np.zeros((), np.int64))


@pytest.mark.parametrize(
    ("a", "b", "is_direct"),
    [
        # int12 holds -2048..2047. The bound is max |a| times the sum of |b|, here what the sum comes to.
        ([127, 127, 127, 127], [4, 4, 4, 4], True),  # 2032
        ([31, 31, 31, 31], [66, 0, 0, 0], True),  # 2046: below the rail
        ([23, 23, 23, 23], [89, 0, 0, 0], False),  # 2047: at the rail, which is counted
        ([32, 32, 32, 32], [64, 0, 0, 0], False),  # 2048: beyond it
        ([32, 32, 32, 32], [-64, 0, 0, 0], False),  # -2048: the lower rail
        ([255, 255, 255, 255], [8, 8, -8, -8], False),  # passes the rail and comes back
        ([255, 255, 1, 1], [-8, 8, 8, 8], False),  # might in another order
    ],
)
def test_the_bound_is_where_the_proof_puts_it(a: list[int], b: list[int], is_direct: bool) -> None:
    window = Window((1, 1), (1, 1), (0, 0), (0, 0))
    counting = Counting()
    chosen = path("int12 saturates")
    results = [
        outcome(lambda gemm: functional.conv_fprop(_line(a), _weights(b), window, 1, gemm), "fprop", chosen, one, False)
        for one in (counting, get_backend("stepwise"), get_backend("reference"))
    ]
    assert results[0] == results[1] == results[2]
    assert counting.direct == is_direct


def test_a_code_of_zero_outside_the_image_counts_too() -> None:
    """Padding carries the zero point, which may be larger than any code of the image."""
    x = Operand(np.ones((1, 1, 3, 3), np.uint8), np.asarray(np.float32(1)), np.asarray(255, np.int64))
    w = Operand(np.full((1, 1, 3, 3), 2, np.int8), np.asarray(np.float32(1)), np.zeros((), np.int64))
    window, chosen = Window((3, 3), (1, 1), (1, 1), (1, 1)), path("int12 saturates")
    counting = Counting()
    ours, theirs = (
        outcome(lambda gemm: functional.conv_fprop(x, w, window, 1, gemm), "fprop", chosen, one, False)
        for one in (counting, get_backend("reference"))
    )
    assert ours == theirs
    assert ours[2]["altered"] > 0
    assert counting.direct == 0


def test_a_backend_with_a_gemm_of_its_own_is_not_passed_by() -> None:
    class AddsOne(Emulator):
        def gemm(self, a: Any, b: Any, datapath: Datapath, c: Any = None, trace: bool = False) -> GemmResult:
            result = super().gemm(a, b, datapath, c, trace)
            return replace(result, codes=result.codes + 1)

    window, size = GEOMETRIES[0]
    for gemm, call in calls(np.random.default_rng(1), window, size, (2, 3), np.uint8, 256):
        chosen = path("int32 wraps", "int8" if gemm == "dgrad" else "uint8")
        assert outcome(call, gemm, chosen, AddsOne(), False)[0] != outcome(call, gemm, chosen, Emulator(), False)[0]


def test_what_does_not_qualify_goes_to_matrices() -> None:
    window, size = GEOMETRIES[0]
    nine_bits = path("int32 wraps", "uint8", "before_multiply")
    dropping = datapath(*chain("drop 2 to_odd int32 wrap"), a="uint8", b="int8", zero_point="after_accumulate")
    for kind, chosen in ((np.int16, nine_bits), (np.uint8, dropping)):
        counting = Counting()
        for gemm, call in calls(np.random.default_rng(1), window, size, (2, 3), kind, 100):
            if gemm != "dgrad":
                outcome(call, gemm, chosen, counting, False)
        assert (counting.direct, counting.asked) == (0, 3)


def test_a_trace_needs_matrices() -> None:
    window, size = GEOMETRIES[0]
    counting = Counting()
    run = Run(counting, 0, trace=True)
    _, call = next(calls(np.random.default_rng(1), window, size, (2, 3), np.uint8, 256))
    call(Gemm("layer", "fprop", path("int32 wraps"), run))
    assert counting.asked == 0
    assert "bits_needed_partial" in events("fprop", run)


def test_the_proof_at_first_use_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = direct._patches
    monkeypatch.setattr(direct, "_patches", lambda *args: honest(*args) + 1)
    for proof in (direct.prove_images.__wrapped__, lambda: direct.prove_gradient.__wrapped__(1)):
        with pytest.raises(BackendRefused, match="direct convolutions differ from plain sums on this CPU"):
            proof()
