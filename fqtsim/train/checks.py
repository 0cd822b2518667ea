"""Cheap checks of a run at full speed: `sample:F` and `freivalds[:F]` (`train --check`).

sample recomputes a share F of the outputs of every product of a layer with `stepwise`, zero points and steps included,
and compares the float32 numbers that the layer got; whatever kernel ran is not disturbed. freivalds compares s A B with
s C modulo 2**bits for two random rows of words s, on every GEMM whose accumulator wraps (or on a share F of them):
whoever multiplies sums its codes (backends/checksum.py), and expected_sums.py says what they must sum to. All
draws are Philox words of seed and step, so a check repeats exactly. Arrays of NumPy are checked at once, tensors of a
device after the step, so that no layer waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fqtsim.backends.chains import stepwise_codes
from fqtsim.backends.checksum import Checksum, row_words
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.backends.stepwise import Stepwise, prepare, prepare_for_formats
from fqtsim.errors import FqtsimError, InputError
from fqtsim.hw.spec import Datapath
from fqtsim.streams import CHECK_FREIVALDS, CHECK_SAMPLE, CHECK_TURN, stream_id
from fqtsim.train.check_queue import Check, Found, Queue
from fqtsim.train.check_report import Checks, Counts, check_report
from fqtsim.train.expected_sums import expected_sums
from fqtsim.train.module import FQTModule
from fqtsim.train.operands import Array
from fqtsim.train.products import Part, Product, scaled
from fqtsim.train.reproducer import Reproducer, of_product
from fqtsim.words import Overflow

TURNS, SHARE_OF_A_TURN = 16, 0.2
"""Up to so many products share one turn, as long as no more than this share of a product's outputs is recomputed."""
TILE_ROWS = 8
"""A few more rows than these cost a second tile of the kernel that recomputes (fqtsim/kernels/tile.py)."""
SEARCHED_ROWS = 1 << 14
"""Rows of a wrong column that are recomputed at a time."""
SAVED_ROWS, SAVED_COLUMNS = 256, 64
"""Rows and columns around a wrong output that its reproducer holds."""
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

    def _result(self, name: str) -> np.float32:
        place = self.reproducer.place
        return self.reproducer.results[name][place["row"], place["col"]]  # type: ignore[no-any-return]

    @property
    def found(self) -> np.float32:
        """The wrong number of the layer's product."""
        return self._result(self.backend)

    @property
    def expected(self) -> np.float32:
        """What stepwise gives."""
        return self._result("stepwise")

    def save(self, folder: Path) -> Path:
        """Write the reproducer into a folder and name it in the message."""
        self.path = self.reproducer.save(folder / self.reproducer.file_name)
        self.args = (self._message(),)
        return self.path

    def _message(self) -> str:
        place, (row, col) = self.reproducer.place, self.original
        text = f"step {place['step']}, layer {place['layer']!r}, {self.reproducer.name}, "
        text += f"group {self.group}, " if self.group else ""
        if self.found.tobytes() == self.expected.tobytes():
            text += f"column {col}: its codes have another sum than they must, though no float32 number is wrong"
        else:
            text += (
                f"row {row}, column {col}: {self.backend} has {_shown(self.found)}, stepwise {_shown(self.expected)}"
            )
        text += f" ({self.method})"
        return text if self.path is None else f"{text}; look at it with: fqtsim explain {self.path}"


def _shown(value: np.float32) -> str:
    return f"{value.view(np.uint32):#010x} ({value})"


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
        self._queue = Queue()
        #: This step's words, of which each says who has a turn.
        self._turns: list[int] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Check every GEMM of one training step. Raises CheckFailed, at the GEMM or at the end."""
        self._queue = Queue()
        self._turns.clear()
        self.net.checks = self
        try:
            yield
        finally:
            self.net.checks = None
        self._queue.settle()
        self.counts.steps += 1

    # ---- a step that is recorded ----

    @property
    def recordable(self) -> bool:
        """Whether every step does the same: a share of outputs or of GEMMs is another one in each step."""
        return self.checks.sample is None and self.checks.freivalds == 1

    @contextmanager
    def apart(self) -> Iterator[Found]:
        """Collect what a step finds in a thing of its own, without waiting for the device."""
        kept, found = (self.counts, self._queue), Found(Counts())
        self.counts, self._queue = found.counts, Queue(bounded=False)
        try:
            yield found
            found.take(self._queue)
        finally:
            self.counts, self._queue = kept

    def merge(self, found: Found) -> None:
        """Take what a recorded step, or a replay of it, has found, to be looked at when the step is done."""
        self.counts.add(found.counts)
        found.put(self._queue, self.net.step_index)

    # ---- every product ----

    def watch(self, product: Product) -> None:
        """Count one product of a layer and check it, now or at the end of the step."""
        m, n, k = product.shape
        self.counts.gemms += product.groups
        self.counts.outputs += m * n * product.groups
        if self.checks.freivalds is not None:
            self.counts.wrapping += product.groups * (wrapping_bits(product.datapath) is not None)
        if not (m and n and k):
            return
        if product.gemm.checksum is not None:
            self.counts.products += product.groups
            self._freivalds(product, product.gemm.checksum)
        if self.checks.sample is not None:
            self._sample(product, self.checks.sample)

    # ---- sample ----

    def _sample(self, product: Product, share: float) -> None:
        """Recompute a part of a product's outputs, if it has a turn."""
        turns = max(1, min(TURNS, int(SHARE_OF_A_TURN / share)))
        if not self._has_turn(self._number(*product.names), turns):
            return
        for group, rows, cols in self._picked(product, min(1.0, share * turns)):
            self.counts.recomputed += len(rows) * len(cols)
            self._queue.do(self.net.step_index, product, self._sampled(product, group, rows, cols))

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
        seed, stream, count = self._seed(*product.names), stream_id(0, CHECK_SAMPLE), groups * (1 + rows + cols)
        words = DEFAULT_PRIMITIVES.random_words(seed, stream, self.net.step_index, count)
        own = words[groups:].reshape(groups, rows + cols)
        for group, drawn in zip(_strata(product.groups, words[:groups]), own, strict=True):
            yield int(group), _strata(m, drawn[:rows]), _strata(n, drawn[rows:])

    def _sampled(self, product: Product, group: int, rows: Array, cols: Array) -> Check:
        """Gather a part of a product; return what recomputes it."""
        gathered = product.part(group, rows, cols)

        def check(step: int, _words: Array) -> None:
            part = gathered.on_host()
            expected, wrong = _recomputed(part, product.datapath)
            if wrong.any():
                row, col = (int(i[0]) for i in np.nonzero(wrong))
                original = int(rows[row]), int(cols[col])
                raise self._failure("sample", product, step, group, part, expected, (row, col), original)

        return check

    # ---- freivalds ----

    def checksum(self, layer: str, gemm: str, datapath: Datapath, shape: tuple[int, int]) -> Checksum | None:
        """Return what takes this step's sums of a GEMM's codes, or None where it gets no Freivalds check."""
        share = self.checks.freivalds or 0.0
        if wrapping_bits(datapath) is None or not share:
            return None
        seed, stream = self._seed(layer, gemm), stream_id(0, CHECK_FREIVALDS)
        if share < 1:
            chance = DEFAULT_PRIMITIVES.random_words(seed, stream, self.net.step_index, 1)
            if int(chance[0]) >= share * 2**32:
                return None
        primitives, count = self.net.backend.primitives, 2 * sum(shape)
        return Checksum(row_words(primitives.random_words(seed, stream, self.net.draw_index, 1 + count)[1:], *shape))

    def _freivalds(self, product: Product, checksum: Checksum) -> None:
        """Compare what the codes sum to with what they must."""
        unused = 32 - (wrapping_bits(product.datapath) or 32)
        difference = checksum.difference(expected_sums(product, checksum.words))

        def check(step: int, words: Array) -> None:
            wrong = np.flatnonzero((words << np.uint32(unused)).any(axis=0))
            if wrong.size:
                raise self._first_wrong(product, *divmod(int(wrong[0]), product.shape[1]), step)

        self._queue.do(self.net.step_index, product, check, difference)

    def _first_wrong(self, product: Product, group: int, col: int, step: int) -> CheckFailed:
        """Return what says which number of a wrong column is the first one that differs."""
        (m, n, _), path, row = product.shape, product.datapath, 0
        for first in range(0, m, SEARCHED_ROWS):
            rows = np.arange(first, min(first + SEARCHED_ROWS, m))
            wrong = _recomputed(product.part(group, rows, np.array([col])).on_host(), path)[1]
            if wrong.any():
                row = first + int(wrong[:, 0].argmax())
                break
        rows, cols = _around(row, m, SAVED_ROWS), _around(col, n, SAVED_COLUMNS)
        part = product.part(group, rows, cols).on_host()
        place = row - int(rows[0]), col - int(cols[0])
        return self._failure("freivalds", product, step, group, part, _recomputed(part, path)[0], place, (row, col))

    # ---- both ----

    def _failure(
        self, method: str, product: Product, step: int, group: int, part: Part, expected: Array, place: Cell,
        original: Cell,
    ) -> CheckFailed:  # fmt: skip
        """Return what names and saves a wrong output: at `place` in a part, at `original` in the product."""
        (layer, name), label = product.names, self._label
        where = {"step": step + 1, "layer": layer, "row": place[0], "col": place[1], "group": group}
        where["cut_from"] = list(original)
        found = {label: part.found, "stepwise": expected}
        return CheckFailed(method, label, of_product(where, name, product.datapath, part, found), original, group)

    @property
    def _label(self) -> str:
        backend = self.net.backend
        if isinstance(backend, Stepwise):  # its result stands beside that of the same backend, computed again
            return f"{backend.name} (run)"
        return backend.name if backend.device == "cpu" else f"{backend.name}@{backend.device}"

    def _number(self, layer: str, gemm: str) -> int:
        return self._numbers.setdefault((layer, gemm), len(self._numbers))

    def _seed(self, layer: str, gemm: str) -> int:
        return (self.net.seed ^ (_GOLDEN * (self._number(layer, gemm) + 1))) & ((1 << 64) - 1)

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


def _around(index: int, count: int, most: int) -> Array:
    """Return up to `most` successive indices of 0..count - 1, with `index` among them."""
    first = max(0, min(index - most // 2, count - most))
    return np.arange(first, min(first + most, count))


def _recomputed(part: Part, datapath: Datapath) -> tuple[Array, Array]:
    """Return the float32 numbers of a part by stepwise, and where those found differ."""
    lowered = prepare_for_formats(part.a.shape[1], datapath, None) or prepare(part.a, part.b, datapath, None)
    codes = stepwise_codes(part.a, part.b, lowered, None)
    expected = scaled(codes, part, datapath.dropped_bits)
    return expected, part.found.view(np.int32) != expected.view(np.int32)
