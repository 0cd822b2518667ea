"""Shipped hardware files, the JSON schema and the manual: each says the same as the loader."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from fqtsim.errors import InputError
from fqtsim.hw.fields import FIXED_ROUNDINGS
from fqtsim.hw.load import (
    dump_hardware,
    hardware_names,
    hwconfigs_dir,
    load_hardware,
    parse_hardware,
    template_text,
)
from fqtsim.hw.schema import json_schema, schema_text
from fqtsim.hw.spec import Datapath, Hardware
from fqtsim.hw.stages import KINDS
from fqtsim.ref.requantize import requantize
from fqtsim.words import GEMMS, Overflow, ZeroPoint

BAD = Path(__file__).parent / "bad_files"
GOOD = (BAD / "hardware.yaml").read_text()
DOCS = Path(__file__).parent.parent / "docs" / "hwconfig.md"
INFERENCE_ONLY = {"tflite_double", "tflite_single", "xnnpack_fp32"}


def names(with_template: bool = True) -> list[str]:
    return [*hardware_names(), *(["template"] if with_template else [])]


@pytest.mark.parametrize("name", names())
def test_a_shipped_file_loads_under_its_name(name: str) -> None:
    hardware = load_hardware(name)
    assert hardware.name == name
    assert Path(hardware.origin).name == f"{name}.yaml"
    again = parse_hardware(dump_hardware(hardware))
    assert again.model_dump() == hardware.model_dump()


@pytest.mark.parametrize("name", names(with_template=False))
def test_a_summary_names_the_gemms_that_are_narrowed(name: str) -> None:
    hardware = load_hardware(name)
    narrowed = {gemm for gemm in GEMMS if _narrowest(hardware.datapath_for(gemm)) < 32}
    named = {gemm for gemm in GEMMS if gemm in hardware.summary}
    assert named == narrowed or (narrowed in (set(GEMMS), set()) and "all" in hardware.summary and not named)


def _narrowest(datapath: Datapath) -> int:
    return min(level.register_format.bits for level in datapath.levels if level.register_format is not None)


@pytest.mark.parametrize("name", sorted(set(names()) - INFERENCE_ONLY))
def test_files_for_training_have_random_bits_and_correct_zero_points(name: str) -> None:
    hardware = load_hardware(name)
    assert hardware.random is not None
    assert hardware.random.bits == (4 if name == "int4_acc16_saturate" else 16)
    narrow = name in ("int8_acc20_tree4", "int8_acc16_saturate")  # docs/decisions/0006
    where = ZeroPoint.BEFORE_MULTIPLY if narrow else ZeroPoint.AFTER_ACCUMULATE
    assert {hardware.datapath_for(gemm).zero_point for gemm in GEMMS} == {where}


def test_int8_silicon_takes_the_operands_of_the_baseline() -> None:
    hardware = load_hardware("int8_acc32_wrap")
    for gemm in GEMMS:
        datapath = hardware.datapath_for(gemm)
        assert datapath.a in ("int8", "uint8")
        assert datapath.b == "int8"
        assert [(level.grouping, level.register, level.overflow) for level in datapath.levels] == [
            ("all", "int32", Overflow.WRAP)
        ]


def test_x86_chains_are_those_of_the_specification() -> None:
    avx2 = load_hardware("x86_avx2_pmaddubsw").datapath
    chain = [(level.count, level.register, level.overflow) for level in avx2.levels]
    assert chain == [(2, "exact", None), (1, "int16", "saturate"), (2, "exact", None), (None, "int32", "wrap")]
    vnni = load_hardware("x86_vnni_saturate").datapath
    assert [(level.count, level.register, level.overflow) for level in vnni.levels] == [
        (4, "exact", None),
        (None, "int32", "saturate"),
    ]
    assert (avx2.a, avx2.b, vnni.a, vnni.b) == ("uint8", "int8", "uint8", "int8")


def test_tflite_requantization_gives_the_published_vector() -> None:
    """TensorFlow issue 25087: 7984 by 1583594044 at exponent -9 is 12 rounded twice, 11 rounded once."""
    double, single = load_hardware("tflite_double"), load_hardware("tflite_single")
    assert double.output is not None
    assert single.output is not None
    assert requantize(7984, double.output, multiplier=1583594044, shift=9) == 12
    assert requantize(7984, single.output, multiplier=1583594044, shift=31 + 9) == 11


def test_a_new_file_starts_from_the_template() -> None:
    text = template_text("my_mac")
    assert parse_hardware(text).name == "my_mac"
    assert text.count("my_mac") == 1
    assert text.count("#") > 30
    for name in ("My MAC", "", "../up", "a\nb: c", "\\1"):
        with pytest.raises(InputError):
            template_text(name)


# --- schema and docs -------------------------------------------------------------------------------------------------


def test_the_schema_file_is_the_generated_one() -> None:
    current = (hwconfigs_dir() / "schema.json").read_text()
    assert current == schema_text(), "run: python -m fqtsim.hw.schema > hwconfigs/schema.json"
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("name", names())
def test_shipped_files_fit_the_schema(name: str) -> None:
    jsonschema.validate(yaml.safe_load((hwconfigs_dir() / f"{name}.yaml").read_text()), json_schema())


@pytest.mark.parametrize(
    "case",
    [
        "missing_overflow", "overflow_on_exact", "overflow_misspelled", "rounding_of_nothing", "no_grouping",
        "missing_rounding_of_item", "two_groupings", "unknown_key_in_level", "register_too_wide", "operand_too_wide",
        "terms_is_true", "stage_of_two_kinds", "stage_with_idle_rounding", "missing_rounding_of_shift", "bits_zero",
        "levels_empty", "stochastic_in_a_level", "schema_of_the_future", "name_with_a_space", "source_is_blank",
    ],
)  # fmt: skip
def test_the_schema_refuses_too(case: str) -> None:
    edits = tomllib.loads((BAD / "hardware_edits.toml").read_text())["case"]
    rows = {row["name"]: row for row in edits}
    text = GOOD.replace(rows[case]["old"], rows[case]["new"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), json_schema())


def test_the_schema_accepts_an_item_that_drops_nothing() -> None:
    text = GOOD.replace("{terms: 4,", "{terms: 4, item: {drop_bits: 0},")
    parse_hardware(text)
    jsonschema.validate(yaml.safe_load(text), json_schema())


def _keys_and_words() -> set[str]:
    keys = {key for part in (json_schema(), *json_schema()["$defs"].values()) for key in part["properties"]}
    words = {*FIXED_ROUNDINGS, *Overflow, *ZeroPoint, *GEMMS, *KINDS, "exact", "all", "call", "philox4x32-10"}
    return keys | {str(word) for word in words}


@pytest.mark.parametrize("path", [hwconfigs_dir() / "template.yaml", DOCS], ids=["template", "docs"])
def test_every_key_and_word_is_explained(path: Path) -> None:
    text = path.read_text()
    assert {word for word in _keys_and_words() if not re.search(rf"\b{re.escape(word)}\b", text)} == set()


def test_the_yaml_blocks_of_the_docs_load() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    whole = [block for block in blocks if "\ndatapath:" in block]
    assert whole
    for block in whole:
        assert isinstance(parse_hardware(block, "docs"), Hardware)


def test_the_schema_is_plain_json() -> None:
    assert json.loads(schema_text()) == json_schema()
