"""Random convolutions, and their three GEMMs by any backend: outputs, report and what observers see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fqtsim.backends.base import GemmResult
from fqtsim.backends.checksum import Checksum, row_words
from fqtsim.backends.emulator import Emulator
from fqtsim.hw.spec import Datapath
from fqtsim.train import functional
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Window
from fqtsim.train.operands import Operand
from fqtsim.train.run import Run


def random_operand(
    rng: np.random.Generator, shape: tuple[int, ...], kind: Any, steps: int | None, largest: int
) -> Operand:
    """Random codes up to `largest`, half of them at the ends; so many steps and zero points, None: one of each."""
    ends = np.iinfo(kind)
    low, high = max(ends.min, -largest), min(ends.max, largest - 1)
    codes = np.where(rng.random(shape) < 0.5, rng.integers(low, high + 1, shape), rng.choice([low, high], shape))
    count = () if steps is None else (steps,)
    scale = rng.random(count).astype(np.float32) + np.float32(0.1)
    return Operand(codes.astype(kind), np.asarray(scale), np.asarray(rng.integers(low, high + 1, count), np.int64))


@st.composite
def geometries(draw: st.DrawFn) -> tuple[Window, tuple[int, int]]:
    """Windows that fit an image, of any stride, padding and dilation."""
    axes = []
    for _ in range(2):
        kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        span = dilation * (kernel - 1) + 1
        size = draw(st.integers(max(1, span - before - after), span + 14))
        axes.append((kernel, draw(st.integers(1, 4)), before, after, dilation, size))
    kernel, stride, before, after, dilation, size = zip(*axes, strict=True)
    return Window(kernel, stride, before, after, dilation), size


def events(name: str, run: Run) -> dict[str, Any]:
    return run.records[("layer", name)].row("layer", name)


Call = Callable[[Gemm], Any]


@dataclass(frozen=True)
class Convolution:
    """One of the three GEMMs, and what its rows count: samples and positions, or taps and channels."""

    call: Call
    rows: tuple[int, int]

    def __call__(self, gemm: Gemm) -> Any:
        return self.call(gemm)

    def checksum(self) -> Checksum:
        """Return what takes the sums of the codes, with words at the ends of their range and between."""
        rng = np.random.default_rng(self.rows)
        words = rng.integers(0, 1 << 32, 2 * sum(self.rows), np.uint64)
        ends = rng.choice(np.array([1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1], np.uint64), words.size)
        return Checksum(row_words(np.where(rng.random(words.size) < 0.5, words, ends).astype(np.uint32), *self.rows))


def outcome(call: Call, name: str, chosen: Datapath, backend: Any, observe: bool) -> tuple[Any, ...]:
    """Return output bits, the report, what the codes sum to with random words, and each GEMM as observers see it."""
    seen: list[Any] = []
    run = Run(backend, 0)
    if observe:
        run.observers.append(lambda layer, gemm, a, b, p, c, result: seen.append((a, b, result)))
    checksum = call.checksum() if isinstance(call, Convolution) else None
    out = call(Gemm("layer", name, chosen, run, checksum))
    sums = [] if checksum is None else [one.tolist() for one in checksum.sums]
    if checksum is not None and observe:
        outer, inner = (words.astype(object) for words in (checksum.words.outer, checksum.words.inner))
        flat = (outer[:, :, None] * inner[:, None, :]).reshape(2, -1)
        assert [(flat @ result.codes.astype(object) % (1 << 32)).tolist() for _, _, result in seen] == sums
    return out.view(np.int32).tolist(), out.shape, events(name, run), sums, seen


def agree(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    """Assert that two outcomes are the same, and that observers saw the same GEMMs."""
    assert ours[:4] == theirs[:4]
    for (a1, b1, r1), (a2, b2, r2) in zip(ours[4], theirs[4], strict=True):
        assert np.array_equal(a1, a2)
        assert np.array_equal(b1, b2)
        assert r1.codes.dtype == r2.codes.dtype
        assert np.array_equal(r1.codes, r2.codes)
        assert replace(r1, codes=None) == replace(r2, codes=None)


class Matrices(Emulator):
    """The emulator on matrices of patches."""

    def convolve(self, *_: Any) -> None:
        return None

    def correlate(self, *_: Any) -> None:
        return None


class Counting(Emulator):
    """Counts what went directly."""

    def __init__(self) -> None:
        self.direct = self.asked = 0

    def convolve(self, *args: Any) -> GemmResult | None:
        return self._counted(super().convolve(*args))

    def correlate(self, *args: Any) -> Any:
        return self._counted(super().correlate(*args))

    def _counted(self, found: Any) -> Any:
        self.asked += 1
        self.direct += found is not None
        return found


def calls(
    rng: np.random.Generator, window: Window, size: tuple[int, int], channels: tuple[int, int], kind: Any, largest: int,
    gradient: Any = np.int8, shifted: bool = True,
) -> Iterator[tuple[str, Call]]:  # fmt: skip
    """Yield the three GEMMs of a convolution on random operands; without zero points unless `shifted`."""
    inputs, outputs = channels

    def operand(*args: Any) -> Operand:
        made = random_operand(*args)
        return made if shifted else replace(made, zero_point=np.zeros_like(made.zero_point))

    x = operand(rng, (3, inputs, *size), kind, 3, largest)
    whole = operand(rng, (3, inputs, *size), kind, None, largest)
    w = operand(rng, (outputs, inputs, *window.kernel), np.int8, None, largest)
    per_channel = operand(rng, (outputs, inputs, *window.kernel), np.int8, outputs, largest)
    dh = operand(rng, (3, outputs, *window.positions(size)), gradient, 3, largest)
    one = operand(rng, dh.codes.shape, gradient, None, largest)
    forward, backward = (3, math.prod(window.positions(size))), (3, math.prod(size))
    taps = math.prod(window.kernel), inputs
    yield "fprop", Convolution(lambda gemm: functional.conv_fprop(x, w, window, 1, gemm), forward)
    yield "fprop", Convolution(lambda gemm: functional.conv_fprop(x, per_channel, window, 1, gemm), forward)
    yield "dgrad", Convolution(lambda gemm: functional.conv_dgrad(dh, w, window, 1, size, gemm), backward)
    yield "wgrad", Convolution(lambda gemm: functional.conv_wgrad(whole, one, window, 1, gemm), taps)


GEOMETRIES = [
    (Window((3, 3), (1, 1), (1, 1), (1, 1)), (6, 7)),
    (Window((1, 1), (2, 2), (0, 0), (0, 0)), (5, 6)),  # no place past the end of a row
    (Window((2, 2), (3, 3), (0, 0), (0, 0)), (8, 8)),
    (Window((7, 7), (2, 2), (3, 3), (3, 3)), (19, 18)),
    (Window((3, 2), (2, 3), (4, 0), (0, 5), (2, 1)), (8, 9)),  # taps that meet nothing of the image
    (Window((1, 3), (1, 1), (0, 2), (0, 2)), (1, 1)),
]
