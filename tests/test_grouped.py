"""All groups of a convolution in one call: each group's codes, events and order of calls are those of its own GEMM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fqtsim.backends import GemmResult, get_backend
from fqtsim.backends import grouped as grouped_code
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Datapath
from fqtsim.testing import datapaths, operands
from fqtsim.train import functional
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Window
from fqtsim.train.operands import Operand
from fqtsim.train.run import Run

BACKENDS = ("stepwise", "emulator")


def facts(result: GemmResult) -> tuple[Any, ...]:
    """Everything that a result says, the type and shape of its codes included."""
    codes = result.codes
    return (
        codes.dtype, codes.shape, codes.tolist(), result.events, result.minimum, result.maximum, result.at_rail,
        None if result.trace is None else [(vars(one) | {"registers": one.registers.tolist()}) for one in result.trace],
    )  # fmt: skip


def agree(a: np.ndarray, b: np.ndarray, datapath: Datapath, trace: bool = False) -> list[GemmResult]:
    """Compare both backends with the reference's GEMM of each group, and return the results."""
    reference = get_backend("reference")
    expected = [facts(reference.gemm(a[g], b[g], datapath, None, trace)) for g in range(len(a))]
    found: list[GemmResult] = []
    for name in BACKENDS:
        found = get_backend(name).gemm_groups(a, b, datapath, trace)
        assert [facts(result) for result in found] == expected, name
    return found


@settings(max_examples=80, deadline=None)
@given(st.data(), datapaths(max_bits=8), st.integers(1, 6))
def test_groups_agree_with_the_reference_of_each(data: st.DataObject, datapath: Datapath, groups: int) -> None:
    first = data.draw(operands(datapath, max_k=70, start=False))
    shape = (first.a.shape, first.b.shape)
    same = operands(datapath, max_k=70, start=False).map(lambda other: _cut(other, shape))
    others = [data.draw(same) for _ in range(groups - 1)]
    a, b = (np.stack([one, *(other[i] for other in others)]) for i, one in enumerate((first.a, first.b)))
    agree(a, b, datapath)


def _cut(other: Any, shape: tuple[tuple[int, int], tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Repeat or cut drawn operands to the shapes of another group."""
    (m, k), (_, n) = shape
    return np.resize(other.a, (m, k)).astype(other.a.dtype), np.resize(other.b, (k, n)).astype(other.b.dtype)


@pytest.mark.parametrize("name", ["int8_acc16_saturate", "int8_acc20_tree4", "int8_acc32_wrap", "int8_acc12_saturate"])
@pytest.mark.parametrize("shape", [(5, 9, 3000), (8, 700, 9), (4, 1, 33)])
def test_long_strips_and_many_blocks_agree_with_each_groups_own_gemm(name: str, shape: tuple[int, int, int]) -> None:
    """More lanes than a strip holds and more products than a block: (groups, M, K)."""
    groups, m, k = shape
    rng = np.random.default_rng(0)
    a = rng.integers(-128, 128, (groups, m, k)).astype(np.int8)
    b = rng.integers(-128, 128, (groups, k, 1)).astype(np.int8)
    b[0] = 0  # a group that nothing can change, beside others
    datapath = load_hardware(name).datapath_for("dgrad")
    assert grouped_code.lowered_groups(a, b, datapath) is not None
    for backend in map(get_backend, BACKENDS):
        own = [facts(backend.gemm(a[g], b[g], datapath)) for g in range(groups)]
        assert [facts(result) for result in backend.gemm_groups(a, b, datapath)] == own


def test_a_strip_begins_with_empty_registers() -> None:
    """Two products are left over at the end of k: the next strip must not take them for its own."""
    levels = [{"terms": 4, "register": "int16", "overflow": "saturate"},
              {"terms": "all", "register": "int17", "overflow": "saturate"}]  # fmt: skip
    datapath = Datapath.model_validate({"a": "int8", "b": "int8", "zero_point": "none", "levels": levels})
    rng = np.random.default_rng(1)
    a = rng.choice(np.array([-128, 127], np.int8), (4, 1500, 10))
    b = rng.choice(np.array([-128, 127], np.int8), (4, 10, 1))
    for backend in map(get_backend, BACKENDS):
        own = [facts(backend.gemm(a[g], b[g], datapath)) for g in range(4)]
        assert [facts(result) for result in backend.gemm_groups(a, b, datapath)] == own
        assert all(result.events.altered for result in backend.gemm_groups(a, b, datapath))


def test_a_call_of_four_groups_takes_the_fast_way_and_alters_outputs() -> None:
    """The law above is about something: here outputs are altered, some with U in range."""
    a = np.full((4, 6, 40), 255, np.uint8)
    b = np.repeat(np.array([127] * 20 + [-128] * 20, np.int8)[None, :, None], 4, axis=0)
    b[1] = 1
    datapath = load_hardware("int8_acc16_saturate").datapath_for("fprop")
    assert grouped_code.lowered_groups(a, b, datapath) is not None
    results = agree(a, b, datapath)
    assert [result.events.altered for result in results] == [6, 0, 6, 6]
    assert [result.events.transient for result in results] == [6, 0, 6, 6]
    assert all(result.trace for result in agree(a, b, datapath, trace=True))


class Seen:
    """Records what an observer is told."""

    def __init__(self, name: str, backend: str, hardware: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.run = Run(get_backend(backend), 0, observers=[self.observe])
        self.gemm = Gemm("layer", name, load_hardware(hardware).datapath_for(name), self.run)

    def observe(self, layer: str, gemm: str, a: Any, b: Any, datapath: Any, c: Any, result: GemmResult) -> None:
        operands_seen = [(one.dtype, one.shape, one.tolist()) for one in (a, b)]
        self.calls.append((layer, gemm, *operands_seen, c, facts(result)))


CASES = [
    # groups, input channels of each, output channels of each, window, size
    (6, 1, 1, Window((3, 3), (1, 1), (1, 1), (1, 1)), (5, 4)),
    (6, 1, 1, Window((3, 3), (2, 2), (1, 1), (1, 1)), (6, 5)),
    (4, 1, 2, Window((3, 2), (1, 2), (1, 0), (0, 1), (2, 1)), (6, 5)),
    (5, 2, 1, Window((1, 1), (1, 1), (0, 0), (0, 0)), (3, 3)),
    (2, 3, 5, Window((3, 3), (1, 1), (1, 1), (1, 1)), (4, 4)),
    (9, 1, 1, Window((3, 3), (1, 1), (1, 1), (1, 1)), (4, 4)),
]


def operand(rng: np.random.Generator, shape: tuple[int, ...], form: Any, rows: bool) -> Operand:
    codes = rng.integers(np.iinfo(form).min, np.iinfo(form).max + 1, shape).astype(form)
    count = (shape[0],) if rows else ()
    step = (2.0 ** rng.integers(-6, 2, count)).astype(np.float32)
    return Operand(codes, np.asarray(step), np.asarray(rng.integers(0, 9, count), np.int64))


@pytest.mark.parametrize("hardware", ["int8_acc16_saturate", "int8_acc32_wrap"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [False, True], ids=["per tensor", "per row"])
@pytest.mark.parametrize("most_bytes", [1 << 24, 400], ids=["whole", "cut"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} groups")
def test_a_grouped_convolution_is_one_convolution_per_group(
    case: Any, most_bytes: int, rows: bool, backend: str, hardware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same bits, same report, and observers called with the same operands and results in the same order."""
    monkeypatch.setattr(functional, "MOST_BYTES", most_bytes)
    groups, inputs, outputs, window, size = case
    rng = np.random.default_rng(groups)
    positions = window.positions(size)
    x = operand(rng, (3, groups * inputs, *size), np.uint8, rows)
    w = operand(rng, (groups * outputs, inputs, *window.kernel), np.int8, rows)
    whole = operand(rng, w.codes.shape, np.int8, False)
    dh = operand(rng, (3, groups * outputs, *positions), np.int8, rows)
    flat_x, flat_dh = operand(rng, x.codes.shape, np.uint8, False), operand(rng, dh.codes.shape, np.int8, False)

    def own(of: Operand, axis: int, count: int, g: int) -> Operand:
        return of.channels(axis, g * count, (g + 1) * count)

    ways = {
        "fprop": (
            lambda gemm: functional.conv_fprop(x, w, window, groups, gemm),
            lambda gemm, g: functional.conv_fprop(own(x, 1, inputs, g), own(w, 0, outputs, g), window, 1, gemm),
            1,
        ),
        "dgrad": (
            lambda gemm: functional.conv_dgrad(dh, whole, window, groups, size, gemm),
            lambda gemm, g: functional.conv_dgrad(
                own(dh, 1, outputs, g), own(whole, 0, outputs, g), window, 1, size, gemm
            ),
            1,
        ),
        "wgrad": (
            lambda gemm: functional.conv_wgrad(flat_x, flat_dh, window, groups, gemm),
            lambda gemm, g: functional.conv_wgrad(
                own(flat_x, 1, inputs, g), own(flat_dh, 1, outputs, g), window, 1, gemm
            ),
            0,
        ),
    }
    for name, (together, alone, axis) in ways.items():
        ours, theirs = Seen(name, backend, hardware), Seen(name, backend, hardware)
        out = together(ours.gemm)
        parts = [alone(theirs.gemm, g) for g in range(groups)]
        assert out.tobytes() == np.ascontiguousarray(np.concatenate(parts, axis=axis)).tobytes(), name
        assert ours.calls == theirs.calls, name
        assert ours.run.records == theirs.run.records, name
        assert len(ours.calls) == groups
