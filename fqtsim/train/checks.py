"""Cheap checks of a run at full speed: `sample:F` and `freivalds[:F]` (`train --check`).

sample recomputes a share F of the outputs of every product of a layer with `stepwise`, zero points and steps included,
and compares the float32 numbers that the layer got; whatever kernel ran is not disturbed. freivalds compares s A B with
s C modulo 2**bits for two random rows of words s, on every GEMM whose accumulator wraps (or on a share F of them), and
so asks the backend for operands and codes as matrices. All draws are Philox words of seed and step, so a check repeats
exactly. Arrays of NumPy are checked at once, tensors of a device after the step, so that no layer waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fqtsim.backends.chains import stepwise_codes
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.backends.stepwise import Stepwise, prepare, prepare_for_formats, start_values
from fqtsim.errors import FqtsimError, InputError
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import freivalds
from fqtsim.streams import CHECK_FREIVALDS, CHECK_SAMPLE, CHECK_TURN, stream_id
from fqtsim.train.check_report import Checks, Counts, check_report
from fqtsim.train.module import FQTModule
from fqtsim.train.operands import Array
from fqtsim.train.products import Product, scaled
from fqtsim.train.reproducer import Reproducer, of_gemm, of_product
from fqtsim.words import Overflow

TURNS, SHARE_OF_A_TURN = 16, 0.2
"""Up to so many products share one turn, as long as no more than this share of a product's outputs is recomputed."""
TILE_ROWS = 8
"""A few more rows than these cost a second tile of the kernel that recomputes (fqtsim/kernels/tile.py)."""
HELD_BYTES = 1 << 30
"""Operands on a device that may wait for the end of the step."""
_GOLDEN = 0x9E3779B97F4A7C15

Cell = tuple[int, int]
"""Row and column."""


class CheckFailed(FqtsimError):
    """A product is wrong. `reproducer` holds it; `path` is the file, once saved."""

    def __init__(self, method: str, backend: str, reproducer: Reproducer, original: Cell, group: int = 0) -> None:
        self.method, self.backend, self.reproducer = method, backend, reproducer
        #: Row and column within the GEMM, and which group of a convolution that is.
        self.original, self.group = original, group
        self.path: Path | None = None
        super().__init__(self._message())

    def _result(self, name: str) -> Any:
        place = self.reproducer.place
        return self.reproducer.results[name][place["row"], place["col"]].item()

    @property
    def found(self) -> int | float:
        """The wrong code, or the wrong float32 number of a layer's product."""
        return self._result(self.backend)  # type: ignore[no-any-return]

    @property
    def expected(self) -> int | float:
        """What stepwise gives."""
        return self._result("stepwise")  # type: ignore[no-any-return]

    def save(self, folder: Path) -> Path:
        """Write the reproducer into a folder and name it in the message."""
        self.path = self.reproducer.save(folder / self.reproducer.file_name)
        self.args = (self._message(),)
        return self.path

    def _message(self) -> str:
        place, (row, col) = self.reproducer.place, self.original
        group = f"group {self.group}, " if self.group else ""
        text = (
            f"step {place['step']}, layer {place['layer']!r}, {self.reproducer.name}, {group}row {row}, column {col}: "
            f"{self.backend} has {self._shown(self.found)}, stepwise {self._shown(self.expected)} ({self.method})"
        )
        return text if self.path is None else f"{text}; look at it with: fqtsim explain {self.path}"

    def _shown(self, value: int | float) -> str:
        if isinstance(value, float):
            return f"{np.float32(value).view(np.uint32):#010x} ({np.float32(value)})"
        format_ = self.reproducer.datapath.accumulator.register_format
        return f"{value if format_ is None else value & ((1 << format_.bits) - 1):#x} ({value})"


class _Call(NamedTuple):
    """One GEMM as an observer sees it; arrays of NumPy or tensors of torch."""

    layer: str
    gemm: str
    a: Any
    b: Any
    datapath: Datapath
    c: Any
    codes: Any


def wrapping_bits(datapath: Datapath) -> int | None:
    """Return the width of an accumulator that wraps whatever the order (at most 32 bits), None for any other."""
    last = datapath.accumulator.register_format
    if last is None or last.bits > 32 or datapath.dropped_bits:
        return None
    for level in datapath.levels:
        register = level.register_format
        if register is not None and (level.overflow is not Overflow.WRAP or register.bits < last.bits):
            return None
    return last.bits


class Checker:
    """The checks of one run. Attach it to a network for the length of each training step with `watching`."""

    def __init__(self, net: FQTModule, checks: Checks) -> None:
        if isinstance(net.backend, Stepwise) and checks.sample is not None:
            raise InputError(
                "check = sample: backend stepwise would be compared with itself; use emulator or native, or freivalds"
            )
        if net.platform and not net.recipe.port("activation"):
            raise InputError(
                "check: this recipe has no integer GEMM to check; use a quantized recipe, for example bhq8"
            )
        self.net, self.checks, self.counts = net, checks, Counts()
        #: Layers' products in the order in which a step meets them: random words depend on the place.
        self._numbers: dict[tuple[str, str], int] = {}
        self._pending: list[Callable[[], None]] = []
        self._held = 0
        #: This step's words, of which each says who has a turn.
        self._turns: list[int] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Check every GEMM of one training step. Raises CheckFailed, at the GEMM or at the end."""
        self._held = 0
        self._pending.clear()
        self._turns.clear()
        self.net.watchers.append(self.watch)
        if self.checks.freivalds is not None:
            self.net.observers.append(self)
        try:
            yield
        finally:
            self.net.watchers.remove(self.watch)
            if self.checks.freivalds is not None:
                self.net.observers.remove(self)
        self._settle()
        self.counts.steps += 1

    # ---- sample ----

    def watch(self, product: Product) -> None:
        """Count one product of a layer and recompute a part of its outputs, now or at the end of the step."""
        m, n, k = product.shape
        self.counts.gemms += product.groups
        self.counts.outputs += m * n * product.groups
        if self.checks.freivalds is not None:
            self.counts.wrapping += product.groups * (wrapping_bits(product.datapath) is not None)
        if self.checks.sample is None or not (m and n and k):
            return
        turns = max(1, min(TURNS, int(SHARE_OF_A_TURN / self.checks.sample)))
        if not self._has_turn(self._number(*product.names), turns):
            return
        for group, rows, cols in self._picked(product, min(1.0, self.checks.sample * turns)):
            self.counts.recomputed += len(rows) * len(cols)
            self._do(self._sampled(product, group, rows, cols), isinstance(product.out, torch.Tensor))

    def _has_turn(self, number: int, turns: int) -> bool:
        """Tell whether a product is the one of `turns` successive ones whose outputs are recomputed in this step.

        A GEMM's call costs more than a few of its outputs: one with 16 % of them is cheaper than sixteen with 1 %.
        """
        if turns == 1:
            return True
        block, place = divmod(number, turns)
        if block >= len(self._turns):
            stream, step = stream_id(0, CHECK_TURN), self.net.step_index
            words = DEFAULT_PRIMITIVES.random_words(self.net.seed, stream, step, 2 * block + 64)
            self._turns = [int(word) for word in words]
        return place == self._turns[block] * turns >> 32

    def _picked(self, product: Product, share: float) -> Iterator[tuple[int, Array, Array]]:
        """Yield groups with rows and columns of them, so that each output is chosen with probability >= share.

        About as many rows as columns where there are that many: what is read grows with their sum.
        """
        (m, n, _), stride = product.shape, max(1, int(1 / share))
        group_stride = min(product.groups, stride)
        stride //= group_stride
        square = math.isqrt(m * n // stride) or 1
        square = TILE_ROWS if TILE_ROWS < square < 3 * TILE_ROWS else square
        col_stride = max(1, min(n // square, n, stride))
        row_stride = min(m, stride // col_stride)
        col_stride = min(n, stride // row_stride)
        groups, rows, cols = (
            -(-count // each) for count, each in ((product.groups, group_stride), (m, row_stride), (n, col_stride))
        )
        words = self._words(product.gemm.layer, product.gemm.name, CHECK_SAMPLE, groups * (1 + rows + cols))
        own = words[groups:].reshape(groups, rows + cols)
        for group, drawn in zip(_strata(product.groups, words[:groups]), own, strict=True):
            yield int(group), _strata(m, drawn[:rows]), _strata(n, drawn[rows:])

    def _sampled(self, product: Product, group: int, rows: Array, cols: Array) -> Callable[[], None]:
        """Gather a part of a product; return what recomputes it."""
        step, gathered, layer, name = self.net.step_index, product.part(group, rows, cols), *product.names
        datapath = product.datapath

        def check() -> None:
            part = gathered.on_host()
            lowered = prepare_for_formats(part.a.shape[1], datapath, None) or prepare(part.a, part.b, datapath, None)
            codes = stepwise_codes(part.a, part.b, lowered, None)
            expected = scaled(codes, part, datapath.dropped_bits)
            wrong = part.found.view(np.int32) != expected.view(np.int32)
            if wrong.any():
                row, col = (int(i[0]) for i in np.nonzero(wrong))
                original = int(rows[row]), int(cols[col])
                where = {"step": step + 1, "layer": layer, "row": row, "col": col, "group": group}
                where["cut_from"] = list(original)
                label = self._label
                found = {label: part.found, "stepwise": expected}
                reproducer = of_product(where, name, datapath, part, found)
                raise CheckFailed("sample", label, reproducer, original, group)

        return check

    # ---- freivalds ----

    def wants(self, layer: str, gemm: str, datapath: Datapath) -> bool:
        """Tell whether this step's GEMM gets a Freivalds check, for which its operands and codes must be matrices."""
        share = self.checks.freivalds or 0.0
        if wrapping_bits(datapath) is None or not share:
            return False
        return share >= 1 or int(self._words(layer, gemm, CHECK_FREIVALDS, 1)[0]) < share * 2**32

    def __call__(self, layer: str, gemm: str, a: Any, b: Any, datapath: Datapath, c: Any, result: Any) -> None:
        """Check one GEMM by Freivalds, now or at the end of the step."""
        bits = wrapping_bits(datapath)
        if bits is None or not (a.shape[0] and a.shape[1] and b.shape[1]):
            return
        self.counts.products += 1
        call = _Call(layer, gemm, a, b, datapath, c, result.codes)
        on_device = isinstance(a, torch.Tensor)
        self._do(self._freivalds(call, bits), on_device)
        if on_device:
            self._held += sum(x.numel() * x.element_size() for x in (a, b, result.codes))
            if self._held > HELD_BYTES:
                self._settle()

    def _freivalds(self, call: _Call, bits: int) -> Callable[[], None]:
        m = call.a.shape[0]
        words = self._words(call.layer, call.gemm, CHECK_FREIVALDS, 4 + 2 * m)
        weights = words[4:].reshape(2, m).copy()
        # An odd factor keeps any non-zero error non-zero, so one wrong output in a column is always seen; uniform
        # words see any wrong column with probability 1/2 or more.
        weights[0] |= np.uint32(1)
        expected = _combine(_combine(weights, call.a), call.b)
        found = _combine(weights, call.codes)
        step = self.net.step_index

        def check() -> None:
            difference = _words32(found) - _words32(expected)
            if call.c is not None:
                start = start_values(_array(call.c), m, call.b.shape[1])
                difference = difference - freivalds.combine(weights, np.ascontiguousarray(start))
            wrong = np.flatnonzero((difference << np.uint32(32 - bits)).any(axis=0))
            if wrong.size:
                self._find_row(call, int(wrong[0]), step)

        return check

    def _find_row(self, call: _Call, col: int, step: int) -> None:
        a, b = _array(call.a), np.ascontiguousarray(_array(call.b))
        start = None if call.c is None else start_values(_array(call.c), a.shape[0], b.shape[1])
        found = _array(call.codes)
        column = np.ascontiguousarray(b[:, col : col + 1])
        expected = np.array(found)
        begun = None if start is None else start[:, col : col + 1]
        expected[:, col] = _stepwise(a, column, call.datapath, begun)[:, 0]
        rows = np.flatnonzero(found[:, col] != expected[:, col])
        row, label = int(rows[0]) if rows.size else 0, self._label
        where = {"step": step + 1, "layer": call.layer, "row": row, "col": col}
        arrays = {name: array for name, array in zip("abc", (a, b, start), strict=True) if array is not None}
        reproducer = of_gemm(where, call.gemm, call.datapath, arrays, {label: found, "stepwise": expected})
        raise CheckFailed("freivalds", label, reproducer, (row, col))

    # ---- both ----

    @property
    def _label(self) -> str:
        backend = self.net.backend
        return backend.name if backend.device == "cpu" else f"{backend.name}@{backend.device}"

    def _number(self, layer: str, gemm: str) -> int:
        return self._numbers.setdefault((layer, gemm), len(self._numbers))

    def _words(self, layer: str, gemm: str, port: int, count: int) -> Array:
        seed = (self.net.seed ^ (_GOLDEN * (self._number(layer, gemm) + 1))) & ((1 << 64) - 1)
        return DEFAULT_PRIMITIVES.random_words(seed, stream_id(0, port), self.net.step_index, count)

    def _do(self, check: Callable[[], None], on_device: bool) -> None:
        if on_device:
            self._pending.append(check)
        else:
            check()

    def _settle(self) -> None:
        for check in self._pending:
            check()
        self._pending.clear()
        self._held = 0

    def report(self) -> dict[str, Any]:
        """Return counts and detection probabilities, as events.json keeps them."""
        return check_report(self.checks, self.counts)

    def restore(self, counts: Mapping[str, int]) -> None:
        """Go on from the counts of a checkpoint."""
        self.counts = Counts(**counts)


def _strata(count: int, words: Array) -> Array:
    """Return one index of 0..count - 1 in each of len(words) runs that cover them, chosen by the words."""
    edges = np.arange(len(words) + 1, dtype=np.uint64) * np.uint64(count) // np.uint64(len(words))
    offsets = (words.astype(np.uint64) * (edges[1:] - edges[:-1])) >> np.uint64(32)
    return (edges[:-1] + offsets).astype(np.int64)


def _array(x: Any) -> Array:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def _stepwise(a: Array, b: Array, datapath: Datapath, start: Array | None) -> Array:
    a = np.ascontiguousarray(a)
    return stepwise_codes(a, b, prepare(a, b, datapath, start), start)


def _combine(weights: Any, matrix: Any) -> Any:
    """Return weights (2, R) times a matrix of codes, modulo 2**32: uint32 array, or int64 tensor on its device."""
    if isinstance(matrix, torch.Tensor):
        return combine_tensor(weights, matrix)
    return freivalds.combine(weights, matrix)


def _words32(x: Any) -> Array:
    return _array(x).astype(np.uint32) if isinstance(x, torch.Tensor) else x


def combine_tensor(weights: Any, matrix: torch.Tensor) -> torch.Tensor:
    """Return weights (2, R) times an integer matrix (R, C) modulo 2**32, as int64 (2, C) on the matrix's device.

    By float64 products of 16-bit halves: each product is below 2**32 and at most 2**20 are summed, so that every
    partial sum, in whatever order, is an integer below 2**53 and exact.
    """
    if not isinstance(weights, torch.Tensor):
        weights = torch.from_numpy(weights.astype(np.int64)).to(matrix.device)
    total = torch.zeros((2, matrix.shape[1]), dtype=torch.int64, device=matrix.device)
    # Low and high halves of both rows of weights: (4, R).
    halves = torch.cat([weights & 0xFFFF, weights >> 16]).to(torch.float64)
    narrow = matrix.element_size() <= 2
    for first in range(0, matrix.shape[0], 1 << 20):
        last = min(first + (1 << 20), matrix.shape[0])
        part, rows = matrix[first:last], halves[:, first:last]
        words = [(part, 0)] if narrow else [(part & 0xFFFF, 0), ((part >> 16) & 0xFFFF, 16)]
        for codes, shift in words:
            sums = (rows @ codes.to(torch.float64)).to(torch.int64)
            low, high = sums[:2] & 0xFFFFFFFF, sums[2:] & 0xFFFF
            # The high half of a code times the high half of a word is a multiple of 2**32.
            total += (low << shift) + (high << 16 if not shift else 0)
    return total & 0xFFFFFFFF
