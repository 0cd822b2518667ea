"""Cheap checks of a run at full speed: `sample:F` and `freivalds[:F]`, observers of a network's GEMMs.

sample recomputes a share F of the outputs of every GEMM with `stepwise`, at least one of each. freivalds compares
s A B with s C modulo 2**bits for two random rows of words s, on every GEMM whose accumulator wraps (or on a share F
of them). All draws are Philox words of seed and step, so a check repeats exactly. Operands may be NumPy arrays, which
are checked at once, or torch tensors of any device, which are checked after the step, so that no layer waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fqtsim.backends.chains import stepwise_codes
from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.backends.stepwise import Stepwise, prepare, start_values
from fqtsim.errors import FqtsimError, InputError
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import freivalds
from fqtsim.streams import CHECK_FREIVALDS, CHECK_SAMPLE, stream_id
from fqtsim.train.module import FQTModule
from fqtsim.train.operands import Array
from fqtsim.train.reproducer import Reproducer, of_gemm
from fqtsim.words import Overflow

HELD_BYTES = 1 << 30
"""Operands on a device that may wait for the end of the step."""
_GOLDEN = 0x9E3779B97F4A7C15
_RULE = "must be sample:F or freivalds[:F] with 0 < F <= 1, with commas"


@dataclass(frozen=True)
class Checks:
    """What `--check` asks for; None where a check is not wanted."""

    #: Share of the outputs of each GEMM that are recomputed.
    sample: float | None = None
    #: Share of the wrapping GEMMs that get a Freivalds check.
    freivalds: float | None = None


def parse_checks(text: str) -> Checks:
    """Return what `sample:0.01,freivalds` asks for. Raises InputError for anything else."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = part.strip().partition(":")
        if name not in ("sample", "freivalds") or (name == "sample" and not colon):
            raise InputError(f"check = {text}: {_RULE}; for example sample:0.01")
        try:
            share = float(number) if colon else 1.0
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise InputError(f"check = {text}: {_RULE}; for example {name}:0.01")
        if name in found:
            raise InputError(f"check = {text}: {name} is given twice; keep one")
        found[name] = share
    return Checks(**found)


class CheckFailed(FqtsimError):
    """A GEMM's result is wrong. `reproducer` holds it; `path` is the file, once saved."""

    def __init__(self, method: str, backend: str, reproducer: Reproducer, original: tuple[int, int]) -> None:
        self.method, self.backend, self.reproducer, self.original = method, backend, reproducer, original
        self.path: Path | None = None
        super().__init__(self._message())

    @property
    def found(self) -> int:
        """The wrong code."""
        return int(self.reproducer.results[self.backend][self.reproducer.place["row"], self.reproducer.place["col"]])

    @property
    def expected(self) -> int:
        """The code that stepwise gives."""
        return int(self.reproducer.results["stepwise"][self.reproducer.place["row"], self.reproducer.place["col"]])

    def save(self, folder: Path) -> Path:
        """Write the reproducer into a folder and name it in the message."""
        self.path = self.reproducer.save(folder / self.reproducer.file_name)
        self.args = (self._message(),)
        return self.path

    def _message(self) -> str:
        place, (row, col) = self.reproducer.place, self.original
        format_ = self.reproducer.datapath.accumulator.register_format
        codes = {
            who: f"{code:#x} ({code})" if format_ is None else f"{code & ((1 << format_.bits) - 1):#x} ({code})"
            for who, code in ((self.backend, self.found), ("stepwise", self.expected))
        }
        text = (
            f"step {place['step']}, layer {place['layer']!r}, {self.reproducer.name}, row {row}, column {col}: "
            f"{self.backend} has {codes[self.backend]}, stepwise {codes['stepwise']} ({self.method})"
        )
        return text if self.path is None else f"{text}; look at it with: fqtsim explain {self.path}"


class _Call(NamedTuple):
    """One GEMM as an observer sees it; arrays of NumPy or tensors of torch."""

    layer: str
    gemm: str
    a: Any
    b: Any
    datapath: Datapath
    c: Any
    codes: Any
    #: Training step, counted from 0, and the number of this GEMM within it.
    step: int
    number: int


@dataclass
class Counts:
    """What the checks of a run have done so far; whole numbers, so that a resumed run adds up to the same."""

    steps: int = 0
    gemms: int = 0
    #: Outputs of all GEMMs, and those recomputed.
    outputs: int = 0
    recomputed: int = 0
    #: GEMMs whose accumulator wraps, and those that got a Freivalds check.
    wrapping: int = 0
    products: int = 0


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
        self._number = 0
        self._pending: list[Callable[[], None]] = []
        self._held = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Check every GEMM of one training step. Raises CheckFailed, at the GEMM or at the end."""
        self._number, self._held = 0, 0
        self._pending.clear()
        self.net.observers.append(self.observe)
        try:
            yield
        finally:
            self.net.observers.remove(self.observe)
        self._settle()
        self.counts.steps += 1

    def observe(self, layer: str, gemm: str, a: Any, b: Any, datapath: Datapath, c: Any, result: Any) -> None:
        """Check one GEMM, now or at the end of the step."""
        call = _Call(layer, gemm, a, b, datapath, c, result.codes, self.net.step_index, self._number)
        self._number += 1
        self.counts.gemms += 1
        m, n, k = a.shape[0], b.shape[1], a.shape[1]
        self.counts.outputs += m * n
        if not m * n * k:
            return
        if self.checks.sample is not None:
            self._do(call, self._sample(call))
        if self.checks.freivalds is not None:
            bits = wrapping_bits(datapath)
            self.counts.wrapping += bits is not None
            if bits is not None and self._chosen(call):
                self.counts.products += 1
                self._do(call, self._freivalds(call, bits), held=True)

    def _do(self, call: _Call, check: Callable[[], None], held: bool = False) -> None:
        if not isinstance(call.a, torch.Tensor):
            check()
            return
        self._pending.append(check)
        if held:
            self._held += sum(x.numel() * x.element_size() for x in (call.a, call.b, call.codes))
            if self._held > HELD_BYTES:
                self._settle()

    def _settle(self) -> None:
        for check in self._pending:
            check()
        self._pending.clear()
        self._held = 0

    def _words(self, call: _Call, port: int, count: int) -> Array:
        seed = (self.net.seed ^ (_GOLDEN * (call.number + 1))) & ((1 << 64) - 1)
        return DEFAULT_PRIMITIVES.random_words(seed, stream_id(0, port), call.step, count)

    def _sample(self, call: _Call) -> Callable[[], None]:
        """Gather whole rows, or parts of rows of a narrow matrix; return what recomputes them."""
        m, n = call.a.shape[0], call.b.shape[1]
        stride = max(1, int(1 / (self.checks.sample or 1)))
        row_stride = min(m, stride)
        row_count, col_count = -(-m // row_stride), -(-n // min(n, max(1, stride // row_stride)))
        words = self._words(call, CHECK_SAMPLE, row_count + col_count)
        rows, cols = _strata(m, words[:row_count]), _strata(n, words[row_count:])
        self.counts.recomputed += len(rows) * len(cols)
        whole = len(cols) == n
        a, b = _rows(call.a, rows), call.b if whole else _columns(call.b, cols)
        codes = _rows(call.codes, rows) if whole else _columns(_rows(call.codes, rows), cols)
        c = None if call.c is None else _array(call.c)

        def check() -> None:
            start = None if c is None else np.broadcast_to(c, (m, n))[np.ix_(rows, cols)]
            left, right, found = _array(a), np.ascontiguousarray(_array(b)), _array(codes)
            expected = _stepwise(left, right, call.datapath, start)
            if not np.array_equal(found, expected):
                row, col = (int(i[0]) for i in np.nonzero(found != expected))
                self._fail("sample", call, (left, right, start), (found, expected), (row, col), (rows[row], cols[col]))

        return check

    def _chosen(self, call: _Call) -> bool:
        share = self.checks.freivalds or 0.0
        return share >= 1 or int(self._words(call, CHECK_FREIVALDS, 1)[0]) < share * 2**32

    def _freivalds(self, call: _Call, bits: int) -> Callable[[], None]:
        m = call.a.shape[0]
        weights = self._words(call, CHECK_FREIVALDS, 4 + 2 * m)[4:].reshape(2, m).copy()
        # An odd factor keeps any non-zero error non-zero, so one wrong output in a column is always seen; uniform
        # words see any wrong column with probability 1/2 or more.
        weights[0] |= np.uint32(1)
        expected = _combine(_combine(weights, call.a), call.b)
        found = _combine(weights, call.codes)

        def check() -> None:
            difference = _words32(found) - _words32(expected)
            if call.c is not None:
                start = start_values(_array(call.c), m, call.b.shape[1])
                difference = difference - freivalds.combine(weights, np.ascontiguousarray(start))
            wrong = np.flatnonzero((difference << np.uint32(32 - bits)).any(axis=0))
            if wrong.size:
                self._find_row(call, int(wrong[0]))

        return check

    def _find_row(self, call: _Call, col: int) -> None:
        a, b = _array(call.a), np.ascontiguousarray(_array(call.b))
        start = None if call.c is None else start_values(_array(call.c), a.shape[0], b.shape[1])
        found = _array(call.codes)
        column = np.ascontiguousarray(b[:, col : col + 1])
        expected = np.array(found)
        begun = None if start is None else start[:, col : col + 1]
        expected[:, col] = _stepwise(a, column, call.datapath, begun)[:, 0]
        rows = np.flatnonzero(found[:, col] != expected[:, col])
        row = int(rows[0]) if rows.size else 0
        self._fail("freivalds", call, (a, b, start), (found, expected), (row, col), (row, col))

    def _fail(
        self, method: str, call: _Call, operands: tuple[Array, Array, Array | None], codes: tuple[Array, Array],
        place: tuple[int, int], original: tuple[int, int],
    ) -> None:  # fmt: skip
        backend = self.net.backend
        label = backend.name if backend.device == "cpu" else f"{backend.name}@{backend.device}"
        where = {"step": call.step + 1, "layer": call.layer, "row": place[0], "col": place[1]}
        arrays = {name: array for name, array in zip("abc", operands, strict=True) if array is not None}
        found = {label: codes[0], "stepwise": codes[1]}
        reproducer = of_gemm(where, call.gemm, call.datapath, arrays, found)
        raise CheckFailed(method, label, reproducer, (int(original[0]), int(original[1])))

    def report(self) -> dict[str, Any]:
        """Return counts and detection probabilities, as events.json keeps them."""
        return check_report(self.checks, self.counts)

    def restore(self, counts: Mapping[str, int]) -> None:
        """Go on from the counts of a checkpoint."""
        self.counts = Counts(**counts)


def check_report(checks: Checks, counts: Counts) -> dict[str, Any]:
    """Return what the checks did and the least probability with which they would have seen a fault.

    `wrong_output`: one output of one GEMM of the run is wrong. `wrong_kernel`: at least one output of some GEMM is
    wrong in every step. Assumed: the random words do not depend on the fault, and the operands seen are those
    multiplied. Nothing but the codes of GEMMs is checked: no quantizer, no float operation.
    """
    plain: dict[str, Any] = {"steps": counts.steps, "gemms": counts.gemms, "outputs": counts.outputs}
    if checks.sample is not None:
        plain["sample"] = {
            "share": checks.sample, "recomputed": counts.recomputed, "wrong_output": checks.sample,
            "wrong_kernel": -np.expm1(counts.steps * np.log1p(-checks.sample)) if checks.sample < 1 else 1.0,
        }  # fmt: skip
    if checks.freivalds is not None:
        half = checks.freivalds / 2
        plain["freivalds"] = {
            "share": checks.freivalds, "checked": counts.products, "wrapping": counts.wrapping,
            "wrong_output": checks.freivalds,
            "wrong_kernel": float(-np.expm1(counts.steps * np.log1p(-half))),
        }  # fmt: skip
    return plain


def check_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report of the checks as lines of text."""
    lines = []
    sample, products = report.get("sample"), report.get("freivalds")
    if sample is not None:
        lines += [
            f"sample     {sample['recomputed']} of {report['outputs']} outputs in {report['gemms']} GEMMs "
            "recomputed with stepwise, all equal",
            *_probabilities(sample, report["steps"], "some GEMM"),
        ]
    if products is not None:
        lines.append(
            f"freivalds  {products['checked']} of {products['wrapping']} wrapping GEMMs of {report['gemms']} "
            "checked modulo 2**bits, all equal"
        )
        if products["wrapping"]:
            lines += _probabilities(products, report["steps"], "a wrapping GEMM")
    return lines


def _probabilities(numbers: Mapping[str, Any], steps: int, where: str) -> list[str]:
    return [
        f"           one wrong output, once, in {where}: seen with probability >= {_shown(numbers['wrong_output'])}",
        f"           a kernel wrong in {where} in each of {steps} steps: >= {_shown(numbers['wrong_kernel'])}",
    ]


def _shown(probability: float) -> str:
    return f"{probability:.6f}" if probability < 0.999999 else "1" if probability == 1 else "0.999999"


def _strata(count: int, words: Array) -> Array:
    """Return one index of 0..count - 1 in each of len(words) runs that cover them, chosen by the words."""
    edges = np.arange(len(words) + 1, dtype=np.uint64) * np.uint64(count) // np.uint64(len(words))
    offsets = (words.astype(np.uint64) * (edges[1:] - edges[:-1])) >> np.uint64(32)
    return (edges[:-1] + offsets).astype(np.int64)


def _rows(x: Any, rows: Array) -> Any:
    return x[torch.from_numpy(rows).to(x.device)] if isinstance(x, torch.Tensor) else x[rows]


def _columns(x: Any, cols: Array) -> Any:
    return x[:, torch.from_numpy(cols).to(x.device)] if isinstance(x, torch.Tensor) else x[:, cols]


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
