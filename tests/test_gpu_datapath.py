"""Any datapath on a device's integer ALUs: Triton's kernels and torch operations against stepwise and the reference."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

#: Triton reads it when it is imported.
os.environ["TRITON_INTERPRET"] = "1"
if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: pip install 'fqtsim[triton]'", allow_module_level=True)

from fqtsim.backends import get_backend
from fqtsim.backends.exact import subset_limit as subset_limit_of_the_emulator
from fqtsim.backends.stepwise import prepare
from fqtsim.hw.load import load_hardware
from fqtsim.hw.lower import Range, lower
from fqtsim.hw.spec import Datapath
from fqtsim.kernels.gpu import bounds as bounding
from fqtsim.kernels.gpu import datapath as device
from fqtsim.kernels.gpu.launch import through_interpreter
from fqtsim.testing import datapaths, operands
from fqtsim.words import IntFormat, Overflow

Array = np.ndarray[Any, Any]
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


def tensor(codes: Array | None) -> torch.Tensor | None:
    """Return codes as torch holds them: uint16 as int32."""
    if codes is None:
        return None
    return torch.from_numpy(np.ascontiguousarray(codes.astype(np.int32) if codes.dtype == np.uint16 else codes))


def facts(result: Any) -> tuple[Any, ...]:
    """Return everything that a result of numpy or of the device says."""
    if isinstance(result, device.DatapathResult):
        codes = result.codes.numpy()
        return codes.tolist(), codes.dtype, *result.events.tolist(), *result.extremes.tolist(), *result.at_rail.tolist()
    events = result.events
    counts = events.altered, events.out_of_range, events.transient, result.minimum, result.maximum, result.at_rail
    return result.codes.tolist(), result.codes.dtype, *counts


def stepwise(a: Array, b: Array, path: Datapath, c: Array | None) -> tuple[Any, ...]:
    """Return what stepwise says; of codes in one type, since each pair of types is compiled anew."""
    return facts(get_backend("stepwise").gemm(a.astype(np.int32), b.astype(np.int32), path, c))


def check(a: Array, b: Array, path: Datapath, c: Array | None = None, reference: bool = True) -> tuple[Any, ...]:
    """Compare every form with stepwise and the reference; return what they agree on."""
    expected = stepwise(a, b, path, c)
    if reference:
        assert facts(get_backend("reference").gemm(a, b, path, c)) == expected
    x, y, start, lowered = tensor(a), tensor(b), tensor(c), prepare(a, b, path, c)
    assert x is not None
    assert y is not None
    assert facts(device.composed_datapath_gemm(x, y, lowered, start)) == expected, "composed"
    assert facts(device.datapath_gemm(x, y, lowered, start)) == expected, "shortcuts, composed"
    with through_interpreter():
        assert facts(device.datapath_gemm(x, y, lowered, start)) == expected, "shortcuts, kernels"
        if x.numel() and y.numel():
            assert both_kernels(x, y, lowered, start) == [expected[0]] * 2, "kernels of everything"
    return expected


def both_kernels(x: torch.Tensor, y: torch.Tensor, lowered: Any, start: torch.Tensor | None) -> list[Any]:
    """Return the codes of every output, by the kernel that fits best and by that of any chain, without a bound."""
    shape = (1, x.shape[0], y.shape[1])
    begin = None if start is None else start.to(torch.int64).expand(shape)
    found = []
    for general in (False, True):
        out = torch.full(shape, -99, dtype=device.code_dtype(lowered))
        found.append(device.stepped(x[None], y[None], lowered, begin, out, general=general)[0].tolist())
    return found


def one_level(register: str, overflow: str, group: int = 1, a: str = "int8", b: str = "int8") -> Datapath:
    levels: list[dict[str, Any]] = [{"terms": "all", "register": register, "overflow": overflow}]
    if group > 1:
        levels.insert(0, {"terms": group, "register": "exact"})
    return Datapath.model_validate({"a": a, "b": b, "zero_point": "none", "levels": levels})


@settings(max_examples=4, deadline=None, suppress_health_check=SLOW)
@given(st.data(), datapaths(max_levels=3))
def test_any_datapath(data: st.DataObject, path: Datapath) -> None:
    """Few, since Triton's interpreter takes about a second for each."""
    check(*_in_order(path, data.draw(operands(path, max_k=10, max_m=2, max_n=2))))


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(st.data(), datapaths())
def test_any_datapath_by_torch_operations(data: st.DataObject, path: Datapath) -> None:
    drawn = data.draw(operands(path))
    expected = stepwise(drawn.a, drawn.b, path, drawn.c)
    x, y, start, lowered = tensor(drawn.a), tensor(drawn.b), tensor(drawn.c), prepare(drawn.a, drawn.b, path, drawn.c)
    for form in (device.composed_datapath_gemm, device.datapath_gemm):
        assert facts(form(x, y, lowered, start)) == expected, form


# One chain for each path through the kernel of any chain, so that no draw decides whether it is taken.
CHAINS = {
    "lanes, then parts": [
        {"lanes": 3, "item": {"drop_bits": 2, "rounding": "ties_to_even"}, "register": "int12", "overflow": "saturate"},
        {"parts": 2, "register": "int10", "overflow": "wrap"},
    ],
    "terms in terms": [
        {"terms": 2, "register": "int14", "overflow": "saturate_symmetric"},
        {"terms": 2, "item": {"drop_bits": 1, "rounding": "to_odd"}, "register": "exact"},
    ],
    "unsigned, more lanes than items": [
        {"terms": 4, "register": "uint13", "overflow": "wrap"},
        {
            "lanes": 5,
            "item": {"drop_bits": 1, "rounding": "away_from_zero"},
            "register": "uint9",
            "overflow": "saturate",
        },
    ],
}


@pytest.mark.parametrize("name", CHAINS)
def test_each_path_through_the_kernel_of_any_chain(name: str) -> None:
    last = {"terms": "all", "register": "int13", "overflow": "saturate"}
    path = Datapath.model_validate({"a": "int8", "b": "int8", "zero_point": "none", "levels": [*CHAINS[name], last]})
    rng = np.random.default_rng(11)
    a, b = (rng.choice([-128, 127, 3, -50], shape).astype(np.int8) for shape in ((3, 11), (11, 4)))
    check(a, b, path, np.array([[4095, -4096, 0, 77]] * 3))


def _in_order(path: Datapath, drawn: Any) -> tuple[Array, Array, Datapath, Array | None]:
    return drawn.a, drawn.b, path, drawn.c


@settings(max_examples=5, deadline=None, suppress_health_check=SLOW)
@given(
    st.data(),
    st.integers(9, 33),
    st.sampled_from(["saturate", "saturate_symmetric"]),
    st.sampled_from([1, 2, 3, 4, 5, 9]),
    st.sampled_from(["int8", "uint8", "int9"]),
    st.sampled_from(["int8", "uint8", "int12"]),
)
def test_one_saturating_register(
    data: st.DataObject, bits: int, overflow: str, group: int, a: str, b: str
) -> None:  # fmt: skip
    """The fast kernel: words of one code and of four, every way to keep a register."""
    path = one_level(f"int{bits}", overflow, group, a, b)
    check(*_in_order(path, data.draw(operands(path, max_k=2 * group + 3, max_m=2, max_n=2))), reference=False)


@pytest.mark.parametrize(
    ("register", "overflow", "group", "operand", "limit", "word"),
    [
        ("int20", "saturate", 1, "int8", device.BIASED, torch.int32),
        ("int20", "saturate", 4, "int8", device.BIASED, torch.int32),
        ("uint20", "saturate", 3, "int9", device.BIASED, torch.int32),
        ("int31", "saturate", 1, "int8", device.BIASED, torch.int32),
        ("int32", "saturate", 4, "int8", device.FULL, torch.int32),
        ("int32", "saturate_symmetric", 1, "int8", device.RAILS, torch.int64),
        ("int33", "saturate", 2, "int12", device.RAILS, torch.int64),
    ],
)
def test_how_a_register_is_kept(
    register: str, overflow: str, group: int, operand: str, limit: int, word: torch.dtype
) -> None:
    """Rails met and passed both ways, start values on and beside them."""
    path = one_level(register, overflow, group, operand, operand)
    form = IntFormat.parse(operand)
    accumulator = path.accumulator.register_format
    assert accumulator is not None
    low, high = accumulator.rails(Overflow(overflow))
    lowered = lower(path, 37, *[Range(form.minimum, form.maximum)] * 2, Range(low, high))
    x = torch.zeros((1, 1), dtype=torch.int8 if form.bits == 8 else torch.int16)
    chosen = device.saturating_form(x, x, lowered)
    if (register, limit) == ("int31", device.BIASED):
        assert chosen is not None
        assert chosen.limit == device.RAILS  # 2**31 - 1 between the rails leave no room for an item
    else:
        assert chosen is not None
        assert (chosen.limit, chosen.word) == (limit, word)
    rng = np.random.default_rng(group)
    a = rng.choice([form.minimum, form.maximum, 1, -1], (5, 37)).astype(form.storage)
    b = np.repeat(rng.choice([form.minimum, form.maximum], (37, 1)), 6, 1).astype(form.storage)
    c = np.tile(np.array([low, high, low + 1, high - 1, 0, high // 2]), (5, 1))
    assert check(a, b, path, c)[2] > 0


def test_every_sum_of_a_small_register() -> None:
    """Every start value of a 5-bit register plus every product of 3-bit codes, then one of each sign."""
    for overflow in ("saturate", "saturate_symmetric", "wrap"):
        path = one_level("int5", overflow, a="int3", b="int3")
        codes = np.array([(x, y) for x in range(-4, 4) for y in (-4, -1, 3)], np.int8)
        starts = range(-15, 16) if overflow == "saturate_symmetric" else range(-16, 16)
        columns = np.resize(np.array([[-4, 3], [3, -4]], np.int8), (2, len(starts)))
        check(codes, columns, path, np.tile(np.array(list(starts)), (len(codes), 1)))


@pytest.mark.parametrize(
    "name",
    ["int8_acc12_saturate", "int8_acc20_tree4", "int8_acc24_saturate", "x86_avx2_pmaddubsw", "x86_vnni_saturate"],
)
def test_shipped_hardware(name: str) -> None:
    """Several tiles, and tails of each; operands that lie along k, and those that do not."""
    path = load_hardware(name).datapath_for("fprop")
    rng = np.random.default_rng(3)
    x, y = path.multiplier_format("a"), path.multiplier_format("b")
    a = rng.choice([x.minimum, x.maximum, 5], (34, 14), p=[0.1, 0.5, 0.4]).astype(x.storage)
    b = rng.choice([y.minimum, y.maximum, -7], (14, 33), p=[0.2, 0.4, 0.4]).astype(y.storage)
    expected = check(a, b, path, reference=False)
    left, right = torch.from_numpy(a.T.copy()).t(), torch.from_numpy(b.T.copy()).t()
    lowered = lower(path, 14, Range(x.minimum, x.maximum), Range(y.minimum, y.maximum), Range(0, 0))
    with through_interpreter():  # as a device lowers: for the formats
        assert facts(device.datapath_gemm(left, right, lowered)) == expected


def test_groups_count_together() -> None:
    path = load_hardware("int8_acc12_saturate").datapath_for("dgrad")
    rng = np.random.default_rng(5)
    a, b = rng.integers(-128, 128, (3, 4, 20)).astype(np.int8), rng.integers(-128, 128, (3, 20, 2)).astype(np.int8)
    each = [facts(get_backend("stepwise").gemm(a[g], b[g], path)) for g in range(3)]
    lowered = lower(path, 20, *[Range(-128, 127)] * 2, Range(0, 0))
    for context in (through_interpreter(), None):
        if context is not None:
            context.__enter__()
        found = facts(device.datapath_gemm(torch.from_numpy(a), torch.from_numpy(b), lowered))
        if context is not None:
            context.__exit__(None, None, None)
        assert found[0] == [one[0] for one in each]
        assert list(found[2:5]) == [sum(one[place] for one in each) for place in (2, 3, 4)]
        assert found[5:] == (min(one[5] for one in each), max(one[6] for one in each), sum(one[7] for one in each))


def test_proven_tiles_are_left_alone() -> None:
    """A kernel writes the open outputs and, besides, at most those of their tiles; none where all are proven."""
    path = one_level("int16", "saturate")
    rng = np.random.default_rng(7)
    a, b = rng.integers(-3, 4, (70, 30)).astype(np.int8), rng.integers(-3, 4, (30, 65)).astype(np.int8)
    a[[3, 50]], b[:, [7, 60]] = 127, 127
    lowered = lower(path, 30, *[Range(-128, 127)] * 2, Range(0, 0))
    x, y = torch.from_numpy(a)[None], torch.from_numpy(b.T.copy()).t()[None]
    found = bounding.bounds(x, y, lowered)
    assert found is not None
    assert found.row_order is not None
    assert found.column_order is not None
    needed = bounding.open_outputs(found, None)[0]
    assert needed.nonzero().tolist() == [[i, j] for i in (3, 50) for j in (7, 60)]
    right = get_backend("stepwise").gemm(a, b, path).codes
    for general in (False, True):
        out = torch.full((1, 70, 65), -99, dtype=torch.int32)
        device.stepped(x, y, lowered, None, out, found, general)
        assert (out[0].numpy()[needed] == right[needed]).all()
        assert int((out != -99).sum()) == 32 * 32  # sorted by norm, the open outputs share one tile
        out.fill_(-99)
        none = found._replace(rows=found.rows * 0, columns=found.columns * 0)
        device.stepped(x, y, lowered, None, out, none, general)
        assert (out == -99).all()


@settings(max_examples=100, deadline=None)
@given(st.data(), datapaths())
def test_bounds_are_those_of_the_emulator(data: st.DataObject, path: Datapath) -> None:
    drawn = data.draw(operands(path))
    lowered = prepare(drawn.a, drawn.b, path, drawn.c)
    if any(level.register != "exact" for level in path.levels):
        assert bounding.subset_limit(lowered) == subset_limit_of_the_emulator(lowered)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_nothing_to_add(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    path = one_level("int8", "saturate")
    start = np.full((m, n), 127)
    for c in (None, start):
        check(np.zeros((m, k), np.int8), np.zeros((k, n), np.int8), path, c)


@pytest.mark.parametrize("group", [1, 2, 3, 4, 6, 8])
def test_words_hold_whole_groups(group: int) -> None:
    codes = torch.arange(-20, 22, dtype=torch.int8).view(1, 2, 21)
    words = device.packed_words(codes, group)
    wide = -(-group // 4) * 4
    found = words.contiguous().view(torch.int8).view(2, -1, wide)
    assert found[:, :, group:].abs().sum() == 0
    flat = found[:, :, :group].reshape(2, -1)
    assert torch.equal(flat[:, :21], codes[0])
    assert flat[:, 21:].abs().sum() == 0


def test_a_start_value_beyond_the_limit_proves_nothing() -> None:
    """The inner register holds 7, the start value is 100: what is left, -93, must not be squared into room."""
    levels = [
        {"terms": 1, "register": "int4", "overflow": "saturate"},
        {"terms": "all", "register": "int8", "overflow": "saturate"},
    ]
    path = Datapath.model_validate({"a": "int8", "b": "int8", "zero_point": "none", "levels": levels})
    expected = check(np.array([[5]], np.int8), np.array([[3]], np.int8), path, np.array([[100]]))
    assert (expected[0], expected[2]) == ([[107]], 1)
