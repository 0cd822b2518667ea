"""Hardware files: what loads and what it means, what is refused and in which words, overrides."""

from __future__ import annotations

import json
import pickle
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fqtsim.errors import FileError, InputError
from fqtsim.hw.fields import FIXED_ROUNDINGS
from fqtsim.hw.load import (
    dump_hardware,
    load_hardware,
    parse_hardware,
)
from fqtsim.hw.spec import Datapath, Level
from fqtsim.strict_yaml import MAX_BYTES
from fqtsim.words import GEMMS, IntFormat, Overflow, Rounding, ZeroPoint

BAD = Path(__file__).parent / "bad_files"
GOOD = (BAD / "hardware.yaml").read_text()


def cases(name: str) -> list[Any]:
    rows = tomllib.loads((BAD / f"{name}.toml").read_text())["case"]
    return [pytest.param(row, id=row["name"]) for row in rows]


# --- refusals, whole texts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("hardware_edits"))
def test_a_broken_file_is_refused_in_these_words(case: dict[str, str]) -> None:
    assert GOOD.count(case["old"]) == 1
    with pytest.raises(FileError) as caught:
        parse_hardware(GOOD.replace(case["old"], case["new"]), "bad.yaml")
    assert str(caught.value) == case["error"]


@pytest.mark.parametrize("case", cases("hardware_whole"))
def test_a_hopeless_file_is_refused_in_these_words(case: dict[str, str]) -> None:
    with pytest.raises(FileError) as caught:
        parse_hardware(case["text"], "bad.yaml")
    assert str(caught.value) == case["error"]


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"schema: 1\nname: caf\xe9\n", "bad.yaml:2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"\xff\xfes\x00c\x00", "bad.yaml:1: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"#" * (MAX_BYTES + 1), "bad.yaml:1: is longer than 1048576 bytes; remove what is not needed"),
        (b"", "bad.yaml:1: the file is empty; `fqtsim new NAME` writes a commented file to start from"),
    ],
)
def test_unreadable_bytes(raw: bytes, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_bytes(raw)
    with pytest.raises(FileError) as caught:
        load_hardware("bad.yaml")
    assert str(caught.value) == error


def test_unknown_names_and_paths(tmp_path: Path) -> None:
    messages = {
        "int8_acc24": "hardware = int8_acc24: is not the name of a shipped file, nor a path (with / or ending in "
        ".yaml); did you mean int8_acc24_saturate?",
        "no/such.yaml": "no/such.yaml: cannot be read (No such file or directory); check the path",
        "nul\0.yaml": "'nul\\x00.yaml': cannot be read (embedded null byte); check the path",
    }
    for name, message in messages.items():
        with pytest.raises(InputError) as caught:
            load_hardware(name)
        assert str(caught.value) == message
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        load_hardware(tmp_path)
    with pytest.raises(InputError, match=r"did you mean|use one of int4_acc16_saturate, int8_acc12_saturate"):
        load_hardware("something_else_entirely")


def test_an_error_has_its_parts() -> None:
    with pytest.raises(FileError) as caught:
        parse_hardware(GOOD.replace("int24", "int99"), "x.yaml")
    error = caught.value
    assert (error.file, error.line, error.key, error.value) == ("x.yaml", 13, "datapath.levels.1.register", "int99")


def test_lines_survive_a_byte_order_mark_and_other_line_ends(tmp_path: Path) -> None:
    for raw in (b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace("\n", "\r\n").encode()):
        path = tmp_path / "x.yaml"
        path.write_bytes(raw)
        assert load_hardware(path).location("datapath.levels.1.register") == f"{path}:13"


# --- what a good file means ------------------------------------------------------------------------------------------


def test_the_parts_of_a_good_file() -> None:
    hardware = parse_hardware(GOOD, "good.yaml")
    datapath = hardware.datapath
    assert (datapath.a_format, datapath.b_format) == (IntFormat(8, True), IntFormat(8, True))
    assert datapath.zero_point is ZeroPoint.AFTER_ACCUMULATE
    assert [level.grouping for level in datapath.levels] == ["terms", "all"]
    assert [level.count for level in datapath.levels] == [4, None]
    assert datapath.levels[0].register_format is None
    assert datapath.levels[0].register == "exact"
    assert datapath.accumulator.register_format == IntFormat(24, True)
    assert datapath.accumulator.overflow is Overflow.SATURATE
    assert hardware.output is not None
    assert [stage.kind for stage in hardware.output] == ["multiply", "shift", "register", "shift", "add", "register"]
    assert [stage.shift for stage in hardware.output] == [None, 31, None, "call", None, None]
    assert hardware.output[2].register_format == IntFormat(32, True)
    assert hardware.random is not None
    assert hardware.random.bits == 16


def test_a_gemm_replaces_whole_keys() -> None:
    hardware = parse_hardware(GOOD)
    fprop, dgrad, wgrad = (hardware.datapath_for(gemm) for gemm in GEMMS)
    assert dgrad == hardware.datapath
    assert (fprop.a, fprop.levels) == ("uint8", hardware.datapath.levels)
    assert (wgrad.a, wgrad.b, len(wgrad.levels)) == ("uint8", "int8", 1)
    assert wgrad.zero_point is hardware.datapath.zero_point
    with pytest.raises(InputError, match=r"^gemm = 'forward': must be one of fprop, dgrad, wgrad; use one of them$"):
        hardware.datapath_for("forward")


@pytest.mark.parametrize(
    ("grouping", "expected"),
    [
        ("terms: 3", ("terms", 3)),
        ("parts: 2", ("parts", 2)),
        ("lanes: 16", ("lanes", 16)),
        ("terms: all", ("all", None)),
    ],
)
def test_groupings(grouping: str, expected: tuple[str, int | None]) -> None:
    level = parse_hardware(GOOD.replace("{terms: 4,", "{" + grouping + ",")).datapath.levels[0]
    assert (level.grouping, level.count) == expected


def test_dropped_bits_add_up_and_none_is_no_item() -> None:
    item = "{terms: 4, item: {drop_bits: 3, rounding: to_odd},"
    hardware = parse_hardware(
        GOOD.replace("{terms: 4,", item).replace(
            "{terms: all, register: int24",
            item + " register: int20, overflow: wrap}\n    - {terms: all, item: {drop_bits: 0}, register: int24",
        )
    )
    assert hardware.datapath.dropped_bits == 6
    assert [level.dropped_bits for level in hardware.datapath.levels] == [3, 3, 0]
    assert hardware.datapath.levels[2].item is None
    assert hardware.datapath.levels[0].item is not None
    assert hardware.datapath.levels[0].item.rounding is Rounding.TO_ODD


@pytest.mark.parametrize("rounding", FIXED_ROUNDINGS)
def test_every_rounding_loads(rounding: str) -> None:
    item = f"{{terms: 4, item: {{drop_bits: 1, rounding: {rounding}}},"
    loaded = parse_hardware(GOOD.replace("{terms: 4,", item).replace("ties_to_away", rounding))
    assert loaded.output is not None
    assert loaded.output[3].rounding == rounding


def test_limits_of_widths() -> None:
    for word in ("int2", "int62", "uint2", "uint62"):
        assert parse_hardware(GOOD.replace("int24", word)).datapath.accumulator.register == word
    for word in ("int2", "int16", "uint2", "uint16"):
        assert parse_hardware(GOOD.replace("  b: int8", f"  b: {word}")).datapath.b == word
    for bits in (1, 32):
        random = parse_hardware(GOOD.replace("bits: 16", f"bits: {bits}")).random
        assert random is not None
        assert random.bits == bits


def test_a_result_may_end_in_float32() -> None:
    output = GOOD[GOOD.index("output:") : GOOD.index("random:")]
    hardware = parse_hardware(GOOD.replace(output, "output: [{multiply: float32}]\n"))
    assert hardware.output is not None
    assert [stage.kind for stage in hardware.output] == ["multiply"]


def test_words_of_yaml_1_1_stay_text() -> None:
    hardware = parse_hardware(GOOD.replace("checked_against: nothing", "checked_against: no"))
    assert hardware.checked_against == "no"
    assert parse_hardware(GOOD.replace("source: hypothetical", "source: 2024-01-31")).source == "2024-01-31"


def test_hardware_is_frozen_hashable_and_travels_between_processes() -> None:
    hardware = parse_hardware(GOOD, "good.yaml")
    twin = parse_hardware(GOOD, "good.yaml")
    assert (hardware == twin, hash(hardware) == hash(twin)) == (True, True)
    assert len({hardware.datapath, twin.datapath, hardware.datapath_for("fprop")}) == 2
    assert pickle.loads(pickle.dumps(hardware)).location("random.bits") == "good.yaml:24"
    with pytest.raises(ValidationError, match="frozen"):
        hardware.datapath.a = "int4"  # type: ignore[misc]


def test_a_datapath_can_be_built_in_python_by_the_same_rules() -> None:
    level = Level(terms="all", register="int32", overflow=Overflow.WRAP)
    datapath = Datapath(a="int8", b="int8", zero_point=ZeroPoint.NONE, levels=(level,))
    assert datapath.accumulator is level
    with pytest.raises(ValidationError, match="is required and has no default"):
        Level(terms="all", register="int32")


def test_locations() -> None:
    hardware = parse_hardware(GOOD, "good.yaml")
    assert hardware.origin == "good.yaml"
    assert hardware.location("datapath.levels.1.register") == "good.yaml:13"
    assert hardware.location("datapath.levels.1.item") == "good.yaml:13"
    assert hardware.location("gemms.dgrad") == "good.yaml:14"
    assert hardware.location("nothing") == "good.yaml:2"
    assert hardware.datapath_location("wgrad", "levels") == "good.yaml:16: gemms.wgrad.levels"
    assert hardware.datapath_location("wgrad", "b") == "good.yaml:9: datapath.b"


def test_dumped_text_is_quoted_where_it_would_be_read_as_something_else() -> None:
    for word in ("1e-4", "no", "007", "1.", "null", "~", "true", "a: b", "#", "- x", "ünï", "'", "two\nlines", "1:30"):
        hardware = parse_hardware(GOOD, "good.yaml", {"source": json.dumps(word)})
        assert hardware.source == word
        assert parse_hardware(dump_hardware(hardware)).source == word


# --- overrides -------------------------------------------------------------------------------------------------------


def test_overrides_change_any_key() -> None:
    changes: dict[str, object] = {
        "datapath.levels.-1.register": "int16",
        "random.bits": "4",
        "gemms.dgrad.b": "int4",
        "output": "[{multiply: float32}]",
        "name": "other",
    }
    hardware = parse_hardware(GOOD, "good.yaml", changes)
    assert hardware.datapath.accumulator.register == "int16"
    assert hardware.random is not None
    assert hardware.random.bits == 4
    assert (hardware.datapath_for("dgrad").b, hardware.datapath.b) == ("int4", "int8")
    assert hardware.output is not None
    assert len(hardware.output) == 1
    assert hardware.location("random.bits") == "--set hardware.random.bits=4"
    assert hardware.location("output.0.multiply") == "--set hardware.output=[{multiply: float32}]"
    assert hardware.location("random.generator") == "good.yaml:24"


def test_overrides_of_a_loaded_hardware_keep_earlier_ones() -> None:
    first = load_hardware(parse_hardware(GOOD, "good.yaml"), {"random.bits": 4})
    second = load_hardware(first, {"datapath.levels.1": "{terms: all, register: exact}"})
    assert (first.random, second.random) == (second.random, first.random)
    assert second.datapath.accumulator.register_format is None
    assert first.datapath.accumulator.register == "int24"
    assert load_hardware(second) is second


@pytest.mark.parametrize("case", cases("overrides"))
def test_an_override_is_refused_by_its_name(case: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_hardware(GOOD, "good.yaml", {case["key"]: case["value"]})
    assert str(caught.value) == case["error"]
