"""Convolutions whose registers matter, straight from padded planes: equal to the GEMM on patches bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from convolutions import GEOMETRIES, Counting, Matrices, agree, calls, events, geometries, outcome
from hypothesis import given
from hypothesis import strategies as st
from mac import chain, datapath

from fqtsim.backends import direct, direct_chain, get_backend
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import correlate_chain as chain_kernels
from fqtsim.kernels import threads
from fqtsim.kernels import tile as tiles
from fqtsim.train import functional
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Window
from fqtsim.train.operands import Operand
from fqtsim.train.run import Run

pytestmark = pytest.mark.skipif(not tiles.HAS_DOT, reason="this CPU has no 16-bit dot product, so nothing is direct")
#: Whether fprop and dgrad are direct for any number of channels, or where it is even; and whether wgrad is.
CHAINS = {
    "int16 saturate": (True, True),
    "int12 saturate_symmetric": (True, True),
    "uint13 saturate": (True, True),
    "int14 wrap": (False, False),
    "terms 4 exact, int18 saturate": (False, False),
    "terms 3 int12 saturate, int14 saturate": (True, False),
    "terms 2 exact, terms 1 int16 saturate, terms 2 exact, int32 wrap": (False, False),
}
CHANNELS = [(1, 1), (3, 16), (4, 17), (6, 40), (16, 65)]


def path(words: str, gemm: str, before: bool) -> Datapath:
    """Return a datapath that takes zero points before the multiplier (differences, int16) or after it (bytes)."""
    a = "int8" if gemm == "dgrad" and not before else "uint8"
    return datapath(*chain(words), a=a, b="int8", zero_point="before_multiply" if before else "after_accumulate")


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest convolution be worth a kernel of its own."""
    monkeypatch.setattr(direct_chain, "SMALLEST", 0)


def three(rng: Any, window: Window, size: Any, channels: tuple[int, int], before: bool, largest: int = 256) -> Any:
    """Return the GEMMs of a convolution: differences of 9 bits throughout, or bytes with zero points."""
    if before:
        return calls(rng, window, size, channels, np.int16, min(largest, 255), np.int16, shifted=False)
    return calls(rng, window, size, channels, np.uint8, largest)


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("words", CHAINS)
def test_named_convolutions(words: str, before: bool) -> None:
    any_channels, any_gradient = CHAINS[words]
    for window, size in GEOMETRIES:
        for channels in CHANNELS:
            for gemm, call in three(np.random.default_rng(channels[0]), window, size, channels, before):
                counting, chosen = Counting(), path(words, gemm, before)
                agree(outcome(call, gemm, chosen, counting, True), outcome(call, gemm, chosen, Matrices(), True))
                contracted = channels[0] if gemm == "fprop" else channels[1]
                if gemm == "wgrad" and before:  # with zero points it would need the sums of patches
                    assert counting.direct == any_gradient
                elif gemm != "wgrad" and (any_channels or contracted % 2 == 0):
                    assert counting.direct == 1


@pytest.mark.usefixtures("walks")
@given(
    geometries(), st.tuples(st.integers(1, 21), st.integers(1, 70)), st.sampled_from(list(CHAINS)[:5]), st.booleans(),
    st.sampled_from([2, 12, 128, 256]), st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
def test_any_convolution(
    geometry: tuple[Window, tuple[int, int]], channels: tuple[int, int], words: str, before: bool, largest: int,
    observe: bool, seed: int,
) -> None:  # fmt: skip
    for gemm, call in three(np.random.default_rng(seed), *geometry, channels, before, largest):
        chosen = path(words, gemm, before)
        ours = outcome(call, gemm, chosen, get_backend("emulator"), observe)
        agree(ours, outcome(call, gemm, chosen, Matrices(), observe))


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize("words", ["int12 saturate", "terms 4 exact, int13 saturate"])
def test_against_every_addition_of_the_reference(words: str) -> None:
    window, size = GEOMETRIES[4]
    for before in (True, False):
        for gemm, call in three(np.random.default_rng(1), window, size, (2, 4), before):
            chosen = path(words, gemm, before)
            ours, theirs = (outcome(call, gemm, chosen, get_backend(name), True) for name in ("emulator", "reference"))
            agree(ours, theirs)
            assert ours[2]["transient"] + ours[2]["altered"] > 0


@pytest.mark.usefixtures("walks")
def test_parts_of_samples_channels_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    window, size = GEOMETRIES[0]

    def outcomes(backend: Any) -> list[Any]:
        found = three(np.random.default_rng(4), window, size, (19, 9), True)
        return [outcome(call, gemm, path("int16 saturate", gemm, True), backend, True) for gemm, call in found]

    expected = outcomes(Matrices())
    monkeypatch.setattr(threads, "SMALLEST_PART", 16)
    monkeypatch.setattr(threads.numba, "get_num_threads", lambda: 3)
    for most_words in (1, 1 << 9, 1 << 22):  # one sample of wgrad at a time, two, and all
        monkeypatch.setattr(direct_chain, "MOST_WORDS", most_words)
        counting = Counting()
        for ours, theirs in zip(outcomes(counting), expected, strict=True):
            agree(ours, theirs)
        assert counting.direct == 4


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize(
    "register", ["int32 saturate", "int31 saturate", "uint31 saturate", "int32 saturate_symmetric"]
)
def test_wide_registers_of_wgrad_beyond_their_rails(register: str) -> None:
    """Sums of 135 000 products of 2**14 pass 2**31, and so would those of U in int32 for more than two samples."""
    window = Window((1, 1), (1, 1), (0, 0), (0, 0))
    x = Operand(np.full((3, 2, 3, 15000), -128, np.int8), np.asarray(np.float32(1)), np.zeros((), np.int64))
    dh = Operand(np.full((3, 2, 3, 15000), -128, np.int8), np.asarray(np.float32(1)), np.zeros((), np.int64))
    x.codes[:, 1], dh.codes[:, 1, :, 1::2] = 127, 127
    chosen = datapath(*chain(register), a="int8", b="int8", zero_point="after_accumulate")
    counting = Counting()
    ours, theirs = (
        outcome(lambda gemm: functional.conv_wgrad(x, dh, window, 1, gemm), "wgrad", chosen, backend, True)
        for backend in (counting, Matrices())
    )
    agree(ours, theirs)
    assert counting.direct == 1
    assert theirs[2]["altered"] > 0


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize(
    ("code", "count", "is_direct"),
    [
        (32767, 2, True),  # 32767 * 65534 = 2**31 - 65536 - 65534 + ..., below 2**31
        (-32768, 2, False),  # 2 * 2**15 * 2**15 = 2**31
    ],
)
def test_sums_that_int32_does_not_hold_go_to_matrices(code: int, count: int, is_direct: bool) -> None:
    window, one = Window((1, 1), (1, 1), (0, 0), (0, 0)), np.asarray(np.float32(1))
    x = Operand(np.full((1, count, 1, 1), code, np.int16), one, np.zeros((), np.int64))
    w = Operand(np.full((1, count, 1, 1), code, np.int16), one, np.zeros((), np.int64))
    chosen = datapath(*chain("int31 saturate"), a="int16", b="int16")
    counting = Counting()
    ours, theirs = (
        outcome(lambda gemm: functional.conv_fprop(x, w, window, 1, gemm), "fprop", chosen, backend, True)
        for backend in (counting, get_backend("reference"))
    )
    agree(ours, theirs)
    assert counting.direct == is_direct


def test_small_convolutions_go_to_matrices() -> None:
    window, size = GEOMETRIES[0]
    counting = Counting()
    for gemm, call in three(np.random.default_rng(1), window, size, (2, 4), True):
        outcome(call, gemm, path("int16 saturate", gemm, True), counting, False)
    assert (counting.direct, counting.asked) == (0, 4)


@pytest.mark.usefixtures("walks")
def test_dropped_bits_and_traces_go_to_matrices() -> None:
    window, size = GEOMETRIES[0]
    counting = Counting()
    for gemm, call in three(np.random.default_rng(1), window, size, (2, 4), True):
        outcome(call, gemm, path("drop 2 to_odd int16 saturate", gemm, True), counting, False)
    assert (counting.direct, counting.asked) == (0, 4)
    run = Run(counting, 0, trace=True)
    _, call = next(three(np.random.default_rng(1), window, size, (2, 3), True))
    call(Gemm("layer", "fprop", path("int16 saturate", "fprop", True), run))
    assert counting.asked == 4
    assert "bits_needed_partial" in events("fprop", run)


# --- tiles that partial sums prove ------------------------------------------------------------------------------------


def quiet_and_loud(rng: Any, channels: int, outputs: int, backwards: bool, spread: int) -> direct.Images:
    """Return images of which some rows and samples are louder than others, met by random weights."""
    walk = direct.Walk((9, 13), (3, 2), (1, 1), (1, 1), (-1, 0))
    x = rng.integers(-spread, spread, (4, channels, 9, 13), endpoint=True)
    x[1], x[2, :, :4] = x[1] // 3, x[2, :, :4] * 2
    weight = rng.integers(-30, 31, (outputs, 3, 2, channels)).astype(np.int16)
    samples = direct.Side(rng.integers(-9, 9, 4), rng.random(4) + 0.1)
    columns = direct.Side(rng.integers(-9, 9, outputs), rng.random(outputs) + 0.1)
    return direct.Images(x.astype(np.int16), np.full(4, 2, np.int16), walk, weight, samples, columns, backwards)


def as_matrices(job: direct.Images) -> tuple[Any, Any]:
    """Return the operands of the GEMM, k in its order."""
    patches = direct._patches(job.codes, job.fill, job.walk)
    taps = patches.reshape(-1, job.weight[0, ..., 0].size, job.weight.shape[3])
    weight = job.weight.reshape(len(job.weight), *taps.shape[1:])
    order = slice(None, None, -1 if job.backwards else 1)
    a, b = taps[:, order].reshape(len(taps), -1), weight[:, order].reshape(len(weight), -1)
    return a.astype(np.int16), np.ascontiguousarray(b.T)


def opened_tiles(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that takes, for each walk, which tiles of its last sample were stepped."""
    found: list[Any] = []
    make = chain_kernels.image_work

    def made(*arguments: Any) -> Any:
        work = make(*arguments)
        found.append(work.opened)
        return work

    monkeypatch.setattr(chain_kernels, "image_work", made)
    return found


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("channels", [1, 5, 16, 40, 70])
def test_tiles_are_proven_where_no_sum_leaves(backwards: bool, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, kinds = opened_tiles(monkeypatch), set()
    for seed, spread, nearer in itertools.product(range(3), (3, 60), (0.5, 0.9, 1.0, 1.3, 2.5)):
        job = quiet_and_loud(np.random.default_rng(seed), channels, 11, backwards, spread)
        a, b = as_matrices(job)
        sums = (a.T[:, :, None].astype(np.int64) * b[:, None, :]).cumsum(axis=0)
        bits = max(4, int(np.abs(sums).max() * nearer).bit_length())
        for register in (f"int{bits} saturate", f"int{bits + 1} saturate_symmetric"):
            chosen = datapath(*chain(register), a="int16", b="int16")
            expected = get_backend("stepwise").gemm(a, b, chosen)
            out = np.empty((4, 11, 9, 13), np.float32)
            found = direct_chain.images(job, chosen, out, True)
            assert found is not None
            assert np.array_equal(found.codes, expected.codes)
            assert replace(found, codes=None) == replace(expected, codes=None)
            assert np.array_equal(out, direct_output(job, expected.codes, a, b))
            kinds.add((bool(opened[-1].any()), bool(opened[-1].all())))
    assert {(False, False), (True, True)} <= kinds  # all proven, and none


def direct_output(job: direct.Images, codes: Any, a: Any, b: Any) -> Any:
    """Return the epilogue's float32 output for the codes of a GEMM (S5.8)."""
    za, zb = job.samples.zero_points[:, None, None], job.channels.zero_points
    shape = (len(job.codes), -1, len(job.weight))
    moved = codes.reshape(shape).astype(np.int64) - za * b.sum(axis=0, dtype=np.int64) + len(b) * za * zb
    moved = moved - zb * a.sum(axis=1, dtype=np.int64).reshape(len(job.codes), -1, 1)
    scaled = (moved * (job.samples.steps[:, None, None] * job.channels.steps)).astype(np.float32)
    return scaled.transpose(0, 2, 1).reshape(*shape[::2], *job.walk.outputs)


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize("run", [1, 2, 3])
def test_sums_that_leave_within_a_group_and_come_back(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels of one sign, then of the other: small at every look, and at the end."""
    opened = opened_tiles(monkeypatch)
    x = np.full((2, 64, 6, 7), 100, np.int16)
    weight = np.zeros((9, 1, 3, 64), np.int16)
    weight[:, 0, :, : 10 * run], weight[:, 0, :, 10 * run : 20 * run] = 90, -90
    sides = direct.Side(np.zeros(2, np.int64), np.ones(2)), direct.Side(np.zeros(9, np.int64), np.ones(9))
    job = direct.Images(x, np.zeros(2, np.int16), direct.Walk((6, 5), (1, 3)), weight, *sides)
    top = 10 * run * 9000
    for room, leaves in ((0, True), (1, True), (top * 4, False)):
        register = f"int{(top + room).bit_length() + (room > 1)} saturate"
        chosen = datapath(*chain(register), a="int16", b="int16")
        high = chosen.accumulator.register_format.maximum
        out = np.empty((2, 9, 6, 5), np.float32)
        found = direct_chain.images(job, chosen, out, True)
        expected = get_backend("stepwise").gemm(*as_matrices(job), chosen)
        assert found is not None
        assert np.array_equal(found.codes, expected.codes)
        assert replace(found, codes=None) == replace(expected, codes=None)
        assert (expected.events.altered > 0) == (high < top) == leaves
        assert opened[-1].all() if leaves else not opened[-1].any()


def constant_job(x: Any, weight: Any, backwards: bool = False) -> direct.Images:
    """Return images without zero points or padding that meet a weight (CO, 1, KW, C)."""
    count, outputs, width = len(x), len(weight), weight.shape[2]
    walk = direct.Walk((x.shape[2], x.shape[3] - width + 1), (1, width))
    sides = [direct.Side(np.zeros(size, np.int64), np.ones(size)) for size in (count, outputs)]
    return direct.Images(x, np.zeros(count, np.int16), walk, weight, *sides, backwards)


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize("backwards", [False, True])
def test_a_look_pairs_each_sum_with_the_taps_that_follow(backwards: bool) -> None:
    """Four quiet taps bring sums near the rail; the last one, loud and back, passes it."""
    weight = np.full((8, 1, 5, 64), 16, np.int16)
    weight[:, 0, 0 if backwards else 4] = np.repeat([45, -45], 32)
    job = constant_job(np.full((1, 64, 3, 9), 100, np.int16), weight, backwards)
    chosen = datapath(*chain("int20 saturate"), a="int16", b="int16")
    found = direct_chain.images(job, chosen, np.empty((1, 8, 3, 5), np.float32), True)
    assert found is not None
    assert found.events.altered == found.events.transient == found.codes.size
    assert np.array_equal(found.codes, get_backend("stepwise").gemm(*as_matrices(job), chosen).codes)


@pytest.mark.usefixtures("walks")
@pytest.mark.parametrize("sign", [-1, 1])
def test_outputs_at_a_rail_are_counted_where_nothing_overflows(sign: int) -> None:
    job = constant_job(np.full((1, 151, 3, 5), 7, np.int16), np.full((2, 1, 1, 151), 31 * sign, np.int16))
    job.weight[1] -= sign
    chosen = datapath(*chain("int16 saturate_symmetric"), a="int16", b="int16")
    found = direct_chain.images(job, chosen, np.empty((1, 2, 3, 5), np.float32), True)
    assert found is not None
    assert (found.codes[:, 0] == 32767 * sign).all()
    assert (found.at_rail, found.events.altered) == (15, 0)
