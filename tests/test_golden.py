"""Golden sets: what they reach, what they reject, that files hold them whole and strangers' files do no harm."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fqtsim
from fqtsim.backends import get_backend
from fqtsim.cli import main
from fqtsim.errors import InputError
from fqtsim.golden.case import Case, GoldenSet, kernel_arguments
from fqtsim.golden.coverage import total_coverage, unlimited_datapath
from fqtsim.golden.files import load, save
from fqtsim.golden.inputs import Draw, extent
from fqtsim.golden.make import KINDS, hardware_sha256, make_golden
from fqtsim.golden.readmem import step_registers
from fqtsim.golden.sums import owners
from fqtsim.golden.vacuity import FAULTS, accepted_faults, refuse_vacuous
from fqtsim.hw.load import load_hardware, parse_hardware
from fqtsim.hw.spec import Datapath, Hardware
from fqtsim.words import Overflow

Array = np.ndarray[Any, Any]

DROPPING = parse_hardware(
    """
schema: 1
name: dropping
summary: bits dropped at two levels, lanes between them
source: hypothetical
checked_against: nothing
datapath:
  a: int8
  b: int8
  zero_point: none
  levels:
    - {lanes: 4, item: {drop_bits: 3, rounding: ties_to_even}, register: int17, overflow: saturate}
    - {terms: all, item: {drop_bits: 2, rounding: ties_to_away}, register: int16, overflow: saturate_symmetric}
random: {generator: philox4x32-10, bits: 8}
"""
)
HARDWARE = ("int8_acc24_saturate", "int8_acc12_saturate", "int8_acc32_wrap", "dropping")


@cache
def golden(name: str, *kinds: str) -> GoldenSet:
    hardware = DROPPING if name == "dropping" else name
    return make_golden(hardware, kinds=kinds or ("gemm",), large=name == "int8_acc32_wrap")


def by_name(made: GoldenSet) -> dict[str, Case]:
    return {case.name: case for case in made.cases}


def datapath_of(made: GoldenSet, case: Case) -> Datapath:
    return made.hardware.datapath_for(case.parameters["gemm"])


@pytest.mark.parametrize("name", HARDWARE)
def test_every_code_is_what_performing_every_addition_gives(name: str) -> None:
    made = golden(name)
    stepwise = get_backend("stepwise")
    for case in made.cases:
        if case.name.startswith("large_4096x4096"):
            continue  # 69 G additions; its digest is that of the exact product, which the test below repeats in part
        inputs = case.inputs
        found = stepwise.gemm(inputs["a"], inputs["b"], datapath_of(made, case), inputs.get("c"))
        assert np.array_equal(found.codes, case.expected["codes"]), case.name
        assert found.events.altered == case.events["altered"]
        assert found.events.transient == case.events["transient"]


@pytest.mark.parametrize("name", HARDWARE)
def test_sets_reach_rails_limits_and_events(name: str) -> None:
    made = golden(name)
    coverage = total_coverage(made.cases)
    for reached in ("rails", "landed_on_rail", "one_inside", "one_beyond"):
        assert coverage[reached] >= 10, reached
    if name != "int8_acc32_wrap":  # one wrapping level: order cannot matter and no event is transient
        assert coverage["order_dependent"] >= 20
        assert sum(case.events["transient"] for case in made.cases) >= 10
    for index, level in enumerate(datapath_of(made, made.cases[0]).levels):
        if level.register_format is not None:
            word = "wraps" if level.overflow == "wrap" else "saturations"
            assert coverage[f"level{index}.{word}"] > 20
        if level.item is not None:
            assert coverage[f"level{index}.ties"] > 100
            assert coverage[f"level{index}.inexact"] > coverage[f"level{index}.ties"]


def test_the_library_has_what_its_names_promise() -> None:
    cases = by_name(golden("dropping"))
    sizes = {case.inputs["a"].shape[1] for case in cases.values()}
    assert {1, 2, 3, 31, 32, 33, 63, 64, 65, 127, 128, 129, 131_071, 131_072} <= sizes
    assert any(case.inputs["a"].shape[0] == 1 for case in cases.values())
    assert any(case.inputs["b"].shape[1] == 1 for case in cases.values())
    a, b = cases["rails"].inputs["a"], cases["rails"].inputs["b"]
    assert a.min() == b.min() == -128
    assert a.max() == b.max() == 127
    assert cases["most_negative"].coverage["most_negative"] == 600
    ties = cases["level0_ties"]
    products = ties.inputs["a"].astype(int)[:, None, :] * ties.inputs["b"].astype(int).T[None]
    exact = products[products % 8 == 4]
    assert (exact > 0).sum() > 20
    assert (exact < 0).sum() > 20
    assert {3, 5} <= set((products % 8).ravel().tolist())
    assert sum("c" in case.inputs for case in cases.values()) >= 4


def test_limits_are_met_exactly_and_on_both_sides() -> None:
    made = golden("int8_acc24_saturate")
    case = by_name(made)["level1_high"]
    unlimited = get_backend("stepwise").gemm(
        case.inputs["a"], case.inputs["b"], unlimited_datapath(datapath_of(made, case))
    )
    top = (1 << 23) - 1
    assert np.diagonal(unlimited.codes).tolist() == [top - 2, top - 1, top, top + 1, top + 2]
    assert np.diagonal(case.expected["codes"]).tolist() == [top - 2, top - 1, top, top, top]


def test_long_limits_reach_31_bits_without_start_values() -> None:
    case = by_name(golden("int8_acc32_wrap"))["long_high"]
    assert "c" not in case.inputs
    top = (1 << 31) - 1
    assert np.diagonal(case.expected["codes"]).tolist() == [top - 1, top, -top - 1]


def test_differences_span_what_zero_points_allow() -> None:
    """int8 less int8 is -255..255, though nine bits would hold -256."""
    hardware = load_hardware("tflite_double")
    assert extent(hardware.datapath, "a") == (-255, 255)
    for case in everything().cases:
        if case.kind == "gemm" and not case.is_large:
            assert case.inputs["a"].min() >= -255
            assert case.inputs["b"].min() >= -255


def test_owners_follow_the_definition() -> None:
    lanes, total = owners(DROPPING.datapath, 10)
    assert lanes.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert total.tolist() == [0] * 10


# What a set must reject.


def runs(datapath: Datapath, **change: Callable[[Array], Array]) -> Callable[..., Array]:
    """Return a kernel that runs another datapath, or the operands after a change."""

    def kernel(a: Array, b: Array, c: Array | None = None) -> Array:
        a, b = change.get("a", lambda x: x)(a), change.get("b", lambda x: x)(b)
        return get_backend("stepwise").gemm(np.ascontiguousarray(a), np.ascontiguousarray(b), datapath, c).codes

    return kernel


def lost_terms(multiple: int) -> Callable[[Array, int], Array]:
    return lambda x, axis: x.take(range(x.shape[axis] // multiple * multiple), axis)


def mutants() -> dict[str, Callable[..., Array]]:
    hardware = load_hardware("int8_acc12_saturate")
    right = hardware.datapath_for("fprop")
    wide = unlimited_datapath(right)

    def saturated_at_the_end(a: Array, b: Array, c: Array | None = None) -> Array:
        return np.clip(runs(wide)(a, b, c), -2048, 2047)

    def split(parts: int) -> Callable[..., Array]:
        def kernel(a: Array, b: Array, c: Array | None = None) -> Array:
            total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c
            for part in np.array_split(np.arange(a.shape[1]), parts):
                total = total + runs(right)(a[:, part], b[part])
            return np.clip(total, -2048, 2047)

        return kernel

    def lost(multiple: int) -> Callable[..., Array]:
        keep = lost_terms(multiple)
        return lambda a, b, c=None: runs(right)(keep(a, 1), keep(b, 0), c)

    def register(bits: int, overflow: Overflow = Overflow.SATURATE) -> Datapath:
        level = right.levels[0].model_copy(update={"register_word": f"int{bits}", "overflow": overflow})
        return right.model_copy(update={"levels": (level,)})

    def narrow(a: Array, b: Array, c: Array | None = None) -> Array:
        start = c if c is None or bits_fit(c, 11) else np.clip(c, -1024, 1023)
        return runs(register(11))(a, b, start)

    return {
        "wrap": runs(register(12, Overflow.WRAP)),
        "one bit more": runs(register(13)),
        "one bit less": narrow,
        "k backwards": runs(right, a=lambda a: a[:, ::-1], b=lambda b: b[::-1]),
        "even k first": runs(right, a=lambda a: np.hstack([a[:, ::2], a[:, 1::2]]),
                             b=lambda b: np.vstack([b[::2], b[1::2]])),
        "saturated once": saturated_at_the_end,
        "split in 2": split(2),
        "split in 4": split(4),
        "last k lost": lambda a, b, c=None: runs(right)(a[:, :-1], b[:-1], c),
        **{f"k down to a multiple of {multiple}": lost(multiple) for multiple in (4, 8, 16, 32, 64)},
        "a read as signed": runs(right, a=lambda a: np.clip(a.astype(np.int8), 0, None).astype(np.uint8)),
        "start ignored": lambda a, b, c=None: runs(right)(a, b),
        "symmetric": lambda a, b, c=None: np.maximum(runs(right)(a, b, c), -2047),
        "float16": lambda a, b, c=None: runs(right)(a, b, c).astype(np.float16).astype(np.int64) // 2 * 2,
        "zero beyond 1000 terms": lambda a, b, c=None: runs(right)(a[:, :1000], b[:1000], c),
    }  # fmt: skip


def bits_fit(values: Array, bits: int) -> bool:
    return bool((np.abs(values) < 1 << (bits - 1)).all())


@pytest.mark.parametrize("name", list(mutants()))
def test_the_set_rejects_a_faulty_gemm(name: str) -> None:
    kernel = mutants()[name]
    made = golden("int8_acc12_saturate")
    wrong = [
        case.name
        for case in made.cases
        if not case.is_large and not np.array_equal(kernel(**kernel_arguments(case)), case.expected["codes"])
    ]
    assert wrong
    assert runs(made.hardware.datapath_for("fprop"))(**kernel_arguments(made.cases[0])).shape


def test_the_set_rejects_float32_accumulation_and_31_bits_on_wide_registers() -> None:
    made = golden("int8_acc32_wrap")
    cases = [case for case in made.cases if not case.is_large]
    products = [(case, np.float32(case.inputs["a"]), np.float32(case.inputs["b"])) for case in cases]

    def in_float32(a: Array, b: Array) -> Array:
        total = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for k in range(a.shape[1]):
            total = total + a[:, k : k + 1] * b[k : k + 1]
        return total.astype(np.int64)

    wrong = [
        case.name
        for case, a, b in products
        if "c" not in case.inputs and not np.array_equal(in_float32(a, b), case.expected["codes"])
    ]
    assert "powers_of_two" in wrong
    assert not {"random_full", "k_128"} & set(wrong)  # this is what random data misses


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["int8_acc24_saturate", "dropping"])
def test_vacuous_answers_fail_many_cases(name: str, fault: str) -> None:
    made = golden(name)
    failed = 0
    for case in made.cases:
        right = case.expected["codes"]
        wrong = FAULTS[fault](case, "codes", right, made.hardware)
        failed += wrong is not None and not np.array_equal(wrong, right)
    assert failed >= 3, failed


def lonely(a: list[list[int]], b: list[list[int]]) -> GoldenSet:
    """A set of one case on an exact-enough hardware, as a stranger might make it."""
    made = golden("int8_acc24_saturate")
    inputs = {"a": np.array(a, np.uint8), "b": np.array(b, np.int8)}
    result = get_backend("stepwise").gemm(inputs["a"], inputs["b"], made.hardware.datapath_for("fprop"))
    case = replace(made.cases[0], name="mine", inputs=inputs, expected={"codes": result.codes})
    return replace(made, cases=(case,))


@pytest.mark.parametrize(
    ("a", "b", "accepted"),
    [
        ([[0, 0], [0, 0]], [[1, 2], [3, 4]], "zeros"),
        ([[1, 2], [1, 2]], [[1, 1], [3, 3]], "one constant"),
        ([[1, 0], [0, 2]], [[1, 0], [0, 4]], "transposed outputs"),
        ([[1, 2], [3, 4]], [[1, 5], [7, 2]], "an upper rail one too low"),
    ],
)
def test_a_set_that_proves_nothing_is_refused(a: list[list[int]], b: list[list[int]], accepted: str) -> None:
    weak = lonely(a, b)
    assert f"gemm: {accepted}" in accepted_faults(weak)
    with pytest.raises(InputError, match=accepted):
        refuse_vacuous(weak)
    refuse_vacuous(golden("int8_acc24_saturate"))


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(InputError, match="has no cases"):
        refuse_vacuous(replace(golden("int8_acc24_saturate"), cases=()))


def test_a_set_without_start_values_that_reaches_no_rail_is_refused() -> None:
    wide = load_hardware("int8_acc24_saturate", {"gemms.fprop.levels": [
        {"terms": "all", "register": "int60", "overflow": "saturate"}]})  # fmt: skip
    with pytest.raises(InputError, match="an upper rail one too low"):
        make_golden(wide, start=False, large=False)
    assert make_golden(wide, large=False).cases


# The same set, in memory and in files.


@cache
def everything() -> GoldenSet:
    """All kinds, with registers, of a hardware with scalars, None and floats among its parameters."""
    return make_golden("tflite_double", kinds=KINDS, trace=True, large=False)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_hold_the_whole_set_and_equal_sets_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    made = everything()
    first, second = save(made, tmp_path / f"1{suffix}"), save(made, tmp_path / f"2{suffix}")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"1{suffix}", f"2{suffix}"]
    again = load(first)
    assert hardware_sha256(again.hardware) == again.hardware_sha256 == made.hardware_sha256
    assert (again.seed, again.version, again.schema) == (made.seed, made.version, made.schema)
    for before, after in zip(made.cases, again.cases, strict=True):
        assert (before.name, before.kind, before.parameters) == (after.name, after.kind, after.parameters)
        assert (before.events, before.coverage) == (after.events, after.coverage)
        for group in ("inputs", "expected", "trace"):
            ours, theirs = getattr(before, group), getattr(after, group)
            assert set(ours) == set(theirs), (before.name, group)
            for key in ours:
                assert ours[key].dtype == theirs[key].dtype
                assert ours[key].shape == theirs[key].shape
                assert np.array_equal(ours[key], theirs[key])
    assert save(again, tmp_path / f"3{suffix}").read_bytes() == first.read_bytes()
    assert any(case.trace for case in again.cases)


def test_a_set_depends_on_hardware_and_seed_alone() -> None:
    first, again = golden("int8_acc12_saturate"), make_golden("int8_acc12_saturate", large=False)
    other = make_golden("int8_acc12_saturate", seed=1, large=False)
    a, b, c = (by_name(made)["random_full"] for made in (first, again, other))
    assert np.array_equal(a.inputs["a"], b.inputs["a"])
    assert not np.array_equal(a.inputs["a"], c.inputs["a"])
    assert first.hardware_sha256 == other.hardware_sha256 != golden("int8_acc24_saturate").hardware_sha256


def test_random_integers_are_pinned() -> None:
    """The generator's version promises them; Philox of (0, crc32 of the name, number of the call)."""
    draw = Draw(0, "random_full")
    words = fqtsim.random_bits(0, zlib.crc32(b"random_full"), 1, 4, 32)
    found = draw.integers(-128, 127, (4,), "int8")
    assert found.tolist() == [int(word) * 256 // (1 << 32) - 128 for word in words]
    wide = Draw(1, "x").integers(-(1 << 61), 1 << 61, (1000,))
    assert wide.min() < -(1 << 59)
    assert wide.max() > 1 << 59


def test_the_default_set_is_small_and_holds_large_cases_as_seed_and_digest(tmp_path: Path) -> None:
    made = golden("int8_acc32_wrap")
    path = save(made, tmp_path / "set.safetensors")
    assert path.stat().st_size < 10_000_000
    again = load(path)
    large = by_name(again)["large_4096x4096x4096"]
    assert large.seeded is not None
    assert large.seeded["inputs"]["a"]["shape"] == [4096, 4096]
    a, b = (large.inputs[name].astype(np.int64) for name in ("a", "b"))
    assert np.array_equal(a[[0, 4095]] @ b, large.expected["codes"][[0, 4095]])
    long = by_name(again)["k_131072_rails"]
    assert long.is_large
    before = by_name(made)["k_131072_rails"]
    assert np.array_equal(long.inputs["a"], before.inputs["a"])
    assert long.expected["codes"].tolist() == before.expected["codes"].tolist()


def test_a_seeded_case_that_was_changed_or_has_another_version_is_refused(tmp_path: Path) -> None:
    made = golden("int8_acc12_saturate")
    case = by_name(made)["k_131072"]
    assert case.seeded is not None
    wrong = {
        **case.seeded,
        "inputs": {**case.seeded["inputs"], "a": {**case.seeded["inputs"]["a"], "sha256": "0" * 64}},
    }
    path = save(replace(made, cases=(*made.cases[:3], replace(case, seeded=wrong))), tmp_path / "set.npz")
    with pytest.raises(InputError, match="seed does not give the arrays"):
        load(path).cases[-1].inputs["a"]
    save(replace(made, version="0", cases=(*made.cases[:3], case)), path)
    with pytest.raises(InputError, match="generator version 0"):
        load(path).cases[-1].expected["codes"]
    assert load(path).cases[0].inputs["a"].size  # what the file holds can still be used


# Files from strangers.


@pytest.fixture
def small(tmp_path: Path) -> Callable[[str], Path]:
    made = golden("int8_acc12_saturate")
    few = replace(made, cases=tuple(case for case in made.cases if case.name in ("k_3", "rails", "start_ends")))
    return lambda suffix: save(few, tmp_path / f"set{suffix}")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_damage_is_an_input_error(small: Callable[[str], Path], suffix: str) -> None:
    path = small(suffix)
    raw = path.read_bytes()
    positions = np.linspace(0, len(raw) - 1, 150).astype(int)
    refused = 0
    for position in positions:
        for content in (raw[:position], raw[:position] + bytes([raw[position] ^ 0x41]) + raw[position + 1 :]):
            path.write_bytes(content)
            try:
                load(path)
            except InputError:
                refused += 1
    # A flipped byte among a zip's own dates and flags changes nothing that is read.
    assert refused >= (300 if suffix == ".safetensors" else 250)


def npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: Array | None, header: dict[str, Any] | None = None) -> bytes:
    stream = io.BytesIO()
    if header is None:
        np.lib.format.write_array(stream, array, allow_pickle=True)
    else:
        np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pickle_ran",)


def test_no_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = npz(tmp_path / "set.npz", {"fqtsim_golden.npy": npy(np.array([Bomb()], object))})
    with pytest.raises(InputError, match="does not fit"):
        load(path)
    Path("raw.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError):
        load("raw.npz")
    assert not Path("pickle_ran").exists()


def test_a_header_that_claims_much_allocates_nothing(tmp_path: Path) -> None:
    claim = npy(None, {"descr": "<i8", "fortran_order": False, "shape": (1 << 40, 1 << 10)})
    with pytest.raises(InputError, match="does not fit its 0 bytes"):
        load(npz(tmp_path / "set.npz", {"fqtsim_golden.npy": claim}))


def test_an_archive_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "bomb.npz", {f"{number}.npy": bytes(64 << 20) for number in range(5)})
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match="unpack to more than"):
        load(path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    with path.open("wb") as stream:
        stream.truncate(300 << 20)  # sparse: no byte is written
    with pytest.raises(InputError, match="must be at most"):
        load(path)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"schema": 99}, "schema = 99"),
        ({"schema": 1, "content_sha256": "00"}, "content_sha256"),
        ([1], "schema = None"),
        ({"schema": 1}, "not a readable golden set"),
    ],
)
def test_another_description_is_refused(tmp_path: Path, content: Any, rule: str) -> None:
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    with pytest.raises(InputError, match=rule):
        load(npz(tmp_path / "set.npz", {"fqtsim_golden.npy": npy(text)}))


def test_other_files_are_no_sets(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "weights.safetensors")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    for name in ("weights.safetensors", "arrays.npz", "long.safetensors"):
        with pytest.raises(InputError, match=name):
            load(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "missing.npz")
    with pytest.raises(InputError, match="is not a file"):
        load(tmp_path)


def test_a_changed_hardware_is_noticed(small: Callable[[str], Path]) -> None:
    path = small(".safetensors")
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = raw[8 : 8 + length].replace(b"int12", b"int13")
    assert header != raw[8 : 8 + length]
    path.write_bytes(raw[:8] + header + raw[8 + length :])
    with pytest.raises(InputError, match="content_sha256"):
        load(path)


# Other languages.


def words(path: Path) -> list[int]:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("// ")
    bits = int(lines[0].split(" words of ")[1].split()[0])
    return [int(word, 16) - (1 << bits) * (int(word, 16) >> (bits - 1)) for word in lines[1:]]


def test_readmemh_folders_hold_operands_codes_and_every_register(tmp_path: Path) -> None:
    made = golden("dropping")
    folder = save(made, tmp_path / "rtl", "readmemh")
    index = json.loads((folder / "index.json").read_text())
    assert index["hardware_sha256"] == made.hardware_sha256
    assert len(index["cases"]) > 35
    assert len(index["cases"]) + len(index["left_out"]) == len(made.cases)
    cases = by_name(made)
    for name in ("k_65", "start_ends", "level0_ties"):
        case = cases[name]
        assert words(folder / name / "a.hex") == case.inputs["a"].ravel().tolist()
        assert words(folder / name / "b.hex") == case.inputs["b"].ravel().tolist()
        assert words(folder / name / "expected.hex") == case.expected["codes"].ravel().tolist()
        assert (
            words(folder / name / "c.hex")
            == case.inputs.get("c", np.zeros(case.expected["codes"].shape, int)).ravel().tolist()
        )
        assert f"`define GOLDEN_K {case.inputs['a'].shape[1]}\n" in (folder / name / "params.vh").read_text()
    last = np.array(words(folder / "k_65" / "level1.hex")).reshape(5, 3, -1)
    assert np.array_equal(last[:, :, -1], cases["k_65"].expected["codes"])
    with pytest.raises(InputError, match="already exists"):
        save(made, folder, "readmemh")


def test_registers_after_each_step() -> None:
    """By hand: 100 * 100 dropped by 3 is 1250, in lane 0; -4 / 8 is a tie and goes to even, 0."""
    a, b = np.array([[100, 1, 3]]), np.array([[100], [-4], [12]])
    first, second = step_registers(a, b, np.array([[7]]), DROPPING.datapath)
    assert first.ravel().tolist() == [1250, 0, 4]
    # Lanes 1250, 0, 4, 0, each / 4, ties away: 313 (312.5), 0, 1, 0, on a start of 7.
    assert second.ravel().tolist() == [320, 320, 321, 321]


C_PROGRAM = """
#include "golden.h"
#include <stdio.h>
int main(void) {
    size_t wrong = 0, outputs = 0;
    for (size_t t = 0; t < golden_gemm_count; t++) {
        const golden_gemm_t *g = &golden_gemms[t];
        for (int i = 0; i < g->m; i++)
            for (int j = 0; j < g->n; j++, outputs++) {
                long acc = g->c ? (long)g->c[i * g->n + j] : 0;
                for (int k = 0; k < g->k; k++) {
                    acc += (long)g->a[i * g->k + k] * g->b[k * g->n + j];
                    acc = acc > HIGH ? HIGH : acc < -2048 ? -2048 : acc;
                }
                wrong += acc != g->expected[i * g->n + j];
            }
    }
    printf("%zu %zu\\n", outputs, wrong);
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler called cc")
def test_the_c_header_compiles_and_judges_a_c_kernel(tmp_path: Path) -> None:
    save(golden("int8_acc12_saturate"), tmp_path / "golden.h")
    (tmp_path / "main.c").write_text(C_PROGRAM)
    found = {}
    for high in (2047, 2048):
        build = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", f"-DHIGH={high}", "main.c", "-o", "main"]
        subprocess.run(build, cwd=tmp_path, check=True)
        done = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
        found[high] = [int(word) for word in done.stdout.split()]
    assert found[2047][0] > 10_000
    assert found[2047][1] == 0
    assert found[2048][1] > 100


# Convolutions, quantizers, requantization, a layer step.


def conv_of(case: Case) -> Array:
    """The same outputs from torch's float64 convolution, where no register overflows."""
    tensors = {name: torch.from_numpy(array.astype(np.float64)) for name, array in case.inputs.items()}
    options = {key: case.parameters[key] for key in ("stride", "dilation", "groups")}
    fill, (down, right) = case.parameters["fill"], case.parameters["padding"]
    if case.kind == "conv_fprop":
        padded = torch.nn.functional.pad(tensors["x"], (right, right, down, down), value=fill)
        return torch.nn.functional.conv2d(padded, tensors["w"], **options).numpy()
    assert fill == 0
    if case.kind == "conv_dgrad":
        shape = (case.inputs["dh"].shape[0], case.inputs["w"].shape[1] * options["groups"], *case.parameters["size"])
        return torch.nn.grad.conv2d_input(shape, tensors["w"], tensors["dh"], padding=(down, right), **options).numpy()
    channels = case.inputs["x"].shape[1] // options["groups"]
    shape = (case.inputs["dh"].shape[1], channels, *case.parameters["kernel"])
    return torch.nn.grad.conv2d_weight(tensors["x"], shape, tensors["dh"], padding=(down, right), **options).numpy()


@pytest.mark.parametrize("kind", ["conv_fprop", "conv_dgrad", "conv_wgrad"])
def test_convolutions_equal_those_of_torch(kind: str) -> None:
    """tflite_double subtracts zero points first, so padding is 0 and int32 never overflows here."""
    cases = [case for case in golden("tflite_double", "conv").cases if case.kind == kind]
    assert len(cases) >= 12
    for case in cases:
        assert np.array_equal(conv_of(case), case.expected["codes"]), case.name


def test_padding_carries_the_code_of_real_zero() -> None:
    cases = [case for case in golden("int8_acc32_wrap", "conv").cases if case.kind == "conv_fprop"]
    assert sum(case.parameters["fill"] != 0 for case in cases) > 5
    for case in cases:
        assert np.array_equal(conv_of(case), case.expected["codes"]), case.name


def rounded(x: Array, how: str) -> Array:
    return {"ties_to_even": np.rint, "floor": np.floor, "half_up": lambda v: np.floor(v + 0.5),
            "away": lambda v: np.copysign(np.floor(np.abs(v) + 0.5), v)}[how](x)  # fmt: skip


@pytest.mark.parametrize("how", ["ties_to_even", "floor", "half_up", "away"])
def test_quantizers_are_told_apart_by_their_ties(how: str) -> None:
    wrong = []
    for case in golden("int8_acc24_saturate", "quantize").cases:
        if case.parameters["rounding"] != "ties_to_even":
            continue
        x, step, zero = case.inputs["x"], case.expected["step"], case.expected["zero_point"]
        column = (-1,) + (1,) * (x.ndim - 1) if step.ndim else ()
        codes = rounded(x / step.reshape(column), how) + zero.reshape(column)
        if not np.array_equal(np.clip(codes, 0, 255), case.expected["codes"]):
            wrong.append(case.name)
    assert bool(wrong) == (how != "ties_to_even"), wrong


def test_stochastic_cases_bring_their_random_bits() -> None:
    cases = [case for case in golden("int8_acc24_saturate", "quantize").cases if "rand_bits" in case.inputs]
    assert len(cases) >= 4
    for case in cases:
        arguments = kernel_arguments(case)
        x, step, zero = arguments["x"], case.expected["step"], case.expected["zero_point"]
        column = (-1, 1) if step.ndim else ()
        y = (x / step.reshape(column)).astype(object)
        n, words_ = arguments["random_bits"], arguments["rand_bits"].astype(object)
        codes = [(math.floor(v * 2**n) + 2**n - 1 - r) >> n for v, r in zip(y.ravel(), words_.ravel(), strict=True)]
        found = np.array(codes, float).reshape(x.shape) + zero.reshape(column)
        assert np.array_equal(np.clip(found, 0, 255), case.expected["codes"]), case.name


def stages_changed(key: str, value: object) -> Hardware:
    return load_hardware("tflite_double", {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output.1.rounding", "ties_to_even"),
        ("output.1.rounding", "ties_to_away"),
        ("output.1.rounding", "toward_negative"),
        ("output.3.rounding", "ties_to_even"),
        ("output.3.rounding", "ties_to_positive"),
        ("output.3.rounding", "ties_to_zero"),
        ("output.5.overflow", "wrap"),
        ("output.5.overflow", "saturate_symmetric"),
        ("output.5.register", "int9"),
    ],
)
def test_requantization_is_told_from_its_neighbours(key: str, value: str) -> None:
    wrong, other = 0, stages_changed(key, value)
    for case in golden("tflite_double", "requantize").cases:
        found = fqtsim.requantize(case.inputs["acc"], other, **case.parameters).codes
        wrong += int((found != case.expected["codes"]).sum())
    assert wrong > 3


def test_single_rounding_is_told_from_double() -> None:
    wrong = 0
    for case in golden("tflite_double", "requantize").cases:
        parameters = {**case.parameters, "shift": case.parameters["shift"] + 31}
        found = fqtsim.requantize(case.inputs["acc"], "tflite_single", **parameters).codes
        wrong += int((found != case.expected["codes"]).sum())
    assert wrong > 10
    ends = {case.parameters["zero_point"] for case in golden("tflite_double", "requantize").cases}
    assert {-128, 0, 127} <= ends


def test_float_scales_are_told_from_bf16_and_other_roundings() -> None:
    cases = golden("xnnpack_fp32", "requantize").cases
    narrow = sum(
        int((fqtsim.requantize(case.inputs["acc"], "xnnpack_fp32", scale=torch.tensor(case.parameters["scale"])
             .bfloat16().float(), zero_point=case.parameters["zero_point"]).codes != case.expected["codes"]).sum())
        for case in cases
    )  # fmt: skip
    away = load_hardware("xnnpack_fp32", {"output.1.round": "ties_to_away"})
    other = sum(
        int((fqtsim.requantize(case.inputs["acc"], away, scale=np.float32(case.parameters["scale"]),
             zero_point=case.parameters["zero_point"]).codes != case.expected["codes"]).sum())
        for case in cases
    )  # fmt: skip
    assert narrow > 10
    assert other > 10


def test_a_layer_step_holds_every_port_and_product() -> None:
    made = golden("int8_acc24_saturate", "linear")
    for case in made.cases:
        assert {"y", "dx", "dw", "x.codes", "w.codes", "dh_for_wgrad.codes", "fprop.codes"} <= set(case.expected)
        x, w = case.inputs["x"].astype(np.float64), case.inputs["w"].astype(np.float64)
        assert case.expected["y"].shape == (len(x), len(w))
        if not case.events["altered"]:
            scale = float(case.expected["x.step"]) * 64 + float(case.expected["w.step"]) * 64
            assert np.abs(case.expected["y"] - x @ w.T).max() < scale * x.shape[1]
    assert any(case.events["altered"] for case in made.cases)


# The command line.


def test_make_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set.npz"
    arguments = ["golden", "make", "--hardware", "tflite_double", "--kind", "requantize,quantize", "--out", str(out)]
    assert main([*arguments, "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "reached by requantize" in said
    assert "stage1.ties" in said
    assert load(out).seed == 3
    assert {case.kind for case in load(out).cases} == {"quantize", "requantize"}


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (["--kind", "gem"], "kind = 'gem'"),
        (["--kind", ""], "has no cases"),
        (["--kind", "requantize"], "has no output stages"),
        (["--out", "set.txt"], "its name tells no format"),
        (["--hardware", "int8_acc99"], "int8_acc99"),
        (["--out", "missing/folder/set.npz", "--kind", "quantize"], "cannot be written"),
        (["--kind", "quantize", "--format", "c"], "has no GEMM"),
    ],
)
def test_bad_input_is_one_line(
    more: list[str], rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["golden", "make", "--hardware", "int8_acc12_saturate", "--out", "set.npz", *more]) == 2
    said = capsys.readouterr().err
    assert rule in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


KERNELS = """
import numpy as np

def right(a, b, c=None):
    total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c.copy()
    for k in range(a.shape[1]):
        total = np.clip(total + a[:, k:k+1].astype(np.int64) * b[k:k+1], -2048, 2047)
    return total

def late(a, b, c=None):
    return np.clip(a.astype(np.int64) @ b + (0 if c is None else c), -2048, 2047)
"""


def test_check_takes_one_kernel_and_the_cases_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(KERNELS)
    save(golden("int8_acc12_saturate"), "set.npz")
    check = ["golden", "check", "set.npz", "--no-large", "--case", "k_?", "--case", "order"]
    assert main([*check, "--kernel", "mine.py:right"]) == 0
    assert "all 5 cases" in capsys.readouterr().out
    assert main([*check, "--kernel", "mine.py:late"]) == 1
    for wrong, rule in (
        (["--kernel", "mine.py:right", "--command", "x"], "give exactly one of"),
        ([], "no kernel: give exactly one of"),
        (["--kernel", "mine.py:right", "--case", "nothing_like_it"], None),
        (["--kernel", "mine.py:absent"], "mine.py"),
    ):
        code = main([*check, *wrong])
        said = capsys.readouterr().err
        assert (code, rule is None or rule in said) == ((0 if rule is None else 2), True), (wrong, said)
    assert main(["golden", "check", "set.npz", "--case", "none", "--kernel", "mine.py:right"]) == 2
    assert "no case of set.npz fits" in capsys.readouterr().err
