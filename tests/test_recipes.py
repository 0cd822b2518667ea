"""Recipes: what ships, what is refused and in which words, and conflicts with hardware that name both lines."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fqtsim.errors import FileError, InputError
from fqtsim.hw.load import hardware_names, load_hardware, parse_hardware
from fqtsim.recipe.conflicts import FEEDS, check_compatible
from fqtsim.recipe.load import load_recipe, parse_recipe, recipe_names
from fqtsim.recipe.spec import PORTS, QUANTIZERS, SCHEDULES, ZEROS, QuantizerSpec, Recipe
from fqtsim.words import Rounding

BAD = Path(__file__).parent / "bad_files"
GOOD = (BAD / "recipe.yaml").read_text()
HARDWARE = (BAD / "hardware.yaml").read_text()
DOCS = Path(__file__).parent.parent / "docs" / "hwconfig.md"


def cases(name: str) -> list[Any]:
    return [pytest.param(row, id=row["name"]) for row in tomllib.loads((BAD / f"{name}.toml").read_text())["case"]]


@pytest.mark.parametrize("case", cases("recipe_edits"))
def test_a_broken_file_is_refused_in_these_words(case: dict[str, str]) -> None:
    assert GOOD.count(case["old"]) == 1
    with pytest.raises(FileError) as caught:
        parse_recipe(GOOD.replace(case["old"], case["new"]), "bad.yaml")
    assert str(caught.value) == case["error"]


def test_an_empty_recipe_names_its_own_starting_point() -> None:
    with pytest.raises(FileError) as caught:
        parse_recipe("", "bad.yaml")
    expected = "bad.yaml:1: the file is empty; start from one that ships: `fqtsim recipe show bhq5`"
    assert str(caught.value) == expected


def test_an_unknown_name() -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("bqh5")
    rule = "is not the name of a shipped file, nor a path (with / or ending in .yaml)"
    assert str(caught.value) == f"recipe = bqh5: {rule}; did you mean bhq5?"


# --- shipped recipes -------------------------------------------------------------------------------------------------


def test_the_shipped_recipes() -> None:
    swept = [f"{q}{bits}{form}" for q in ("ptq", "psq", "bhq") for bits in (4, 5, 6, 7, 8) for form in ("", "_offset")]
    authors = [f"authors_ptq{bits}" for bits in (4, 5, 6, 7, 8)]
    assert recipe_names() == sorted(
        [
            "fp32",
            "qat",
            "bhq4_int4",
            "ptq5_pow2",
            "ptq5_banner",
            "bhq5_group",
            "luq4",
            "psq5_channel",
            "ptq8_hindsight",
            *swept,
            *authors,
        ]
    )


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_what_its_name_says(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.optimizer.model_dump() == {
        "name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "decay_norm": False,
    }  # fmt: skip
    assert recipe.schedule.name == "cosine"
    assert {port: recipe.port(port) for port in PORTS} == _ports(name)


def _ports(name: str) -> dict[str, QuantizerSpec | None]:
    everywhere = 4 if name == "bhq4_int4" else 8
    near = QuantizerSpec(quantizer="ptq", bits=everywhere, rounding=Rounding.TIES_TO_EVEN, zero="aligned")
    wgrad = QuantizerSpec(quantizer="ptq", bits=everywhere, rounding=Rounding.STOCHASTIC, zero="aligned")
    wgrad = wgrad.model_copy(update={"per_channel": name.endswith("_channel")})
    if name == "fp32":
        return dict.fromkeys(PORTS)
    if name == "qat":
        return {"activation": near, "weight": near, "grad_for_wgrad": None, "grad_for_dgrad": None}
    if name == "luq4":
        four = {"bits": 4, "rounding": "ties_to_even", "quantizer": "ptq"}
        log = QuantizerSpec.model_validate({**four, "quantizer": "luq", "rounding": "stochastic", "zero": "symmetric"})
        activation, weight = (QuantizerSpec.model_validate({**four, "zero": zero}) for zero in ("aligned", "symmetric"))
        return {"activation": activation, "weight": weight, "grad_for_wgrad": log, "grad_for_dgrad": log}
    if name == "ptq8_hindsight":
        near, wgrad = (spec.model_copy(update={"range": "hindsight"}) for spec in (near, wgrad))
        weight = near.model_copy(update={"range": "current"})
        return {"activation": near, "weight": weight, "grad_for_wgrad": wgrad, "grad_for_dgrad": wgrad}
    zero = "float_offset" if name.endswith("_offset") else "authors" if name.startswith("authors_") else "aligned"
    kind, bits = name.removeprefix("authors_")[:3], int(name.removeprefix("authors_")[3])
    step = "power_of_two" if name.endswith("_pow2") else "free"
    span = "mean_of_rows" if name.endswith("_banner") else "current"
    words = {"rounding": "stochastic", "zero": zero, "step": step, "range": span,
             "scale": "per_group" if name.endswith("_group") else "per_row"}  # fmt: skip
    dgrad = QuantizerSpec.model_validate({"quantizer": kind, "bits": bits, **words})
    return {"activation": near, "weight": near, "grad_for_wgrad": wgrad, "grad_for_dgrad": dgrad}


def test_schedules_and_options_load() -> None:
    text = GOOD.replace("{name: constant}", "{name: step, milestones: [10, 20], factor: 0.1, warmup_steps: 5}")
    recipe = parse_recipe(text.replace("weight: {", "weight: {per_channel: true, "))
    assert (recipe.schedule.milestones, recipe.schedule.factor, recipe.schedule.warmup_steps) == ((10, 20), 0.1, 5)
    assert isinstance(recipe.weight, QuantizerSpec)
    assert recipe.weight.per_channel
    assert parse_recipe(GOOD.replace("{name: constant}", "{name: cosine, steps: 400}")).schedule.steps == 400
    assert parse_recipe(GOOD.replace("lr: 0.1", "lr: 1")).optimizer.lr == 1.0
    assert isinstance(parse_recipe(GOOD.replace("lr: 0.1", "lr: 1")).optimizer.lr, float)


def test_overrides() -> None:
    recipe = load_recipe("bhq5", {"grad_for_dgrad.bits": "4", "optimizer.lr": "0.05", "schedule.steps": 100})
    assert isinstance(recipe.grad_for_dgrad, QuantizerSpec)
    assert (recipe.grad_for_dgrad.bits, recipe.optimizer.lr, recipe.schedule.steps) == (4, 0.05, 100)
    assert load_recipe(recipe, {"optimizer.lr": 0.2}).location("grad_for_dgrad.bits") == (
        "--set recipe.grad_for_dgrad.bits=4"
    )
    with pytest.raises(InputError) as caught:
        load_recipe("bhq5", {"grad_for_dgrad.bits": "9"})
    assert str(caught.value) == "--set recipe.grad_for_dgrad.bits=9: grad_for_dgrad.bits = 9: must be 2..8; use 8"


# --- conflicts -------------------------------------------------------------------------------------------------------


def conflict(recipe: str, hardware: str) -> str:
    with pytest.raises(InputError) as caught:
        check_compatible(parse_recipe(recipe, "recipe.yaml"), parse_hardware(hardware, "hw.yaml"))
    return str(caught.value)


def test_the_good_files_are_compatible() -> None:
    check_compatible(parse_recipe(GOOD), parse_hardware(HARDWARE))


def test_a_quantizer_wider_than_its_operand() -> None:
    assert conflict(GOOD, HARDWARE.replace("  b: int8", "  b: int6")) == (
        "recipe.yaml:5: weight.bits = 8: does not fit the int6 of fprop at hw.yaml:9: datapath.b; "
        "use at most 6 bits, or a wider operand"
    )
    assert conflict(GOOD, HARDWARE.replace("wgrad: {a: uint8,", "wgrad: {a: uint7,")) == (
        "recipe.yaml:4: activation.bits = 8: does not fit the uint7 of wgrad at hw.yaml:16: gemms.wgrad.a; "
        "use at most 7 bits, or a wider operand"
    )
    assert conflict(GOOD, HARDWARE.replace("  a: int8", "  a: int4")) == (
        "recipe.yaml:7: grad_for_dgrad.bits = 5: does not fit the int4 of dgrad at hw.yaml:8: datapath.a; "
        "use at most 4 bits, or a wider operand"
    )


def test_stochastic_rounding_without_random_bits() -> None:
    assert conflict(GOOD, HARDWARE[: HARDWARE.index("random:")]) == (
        "recipe.yaml:6: grad_for_wgrad.rounding = stochastic: needs random bits, but hw.yaml:2 gives no `random`; "
        "add random: {generator: philox4x32-10, bits: 16} there, or round another way"
    )


def test_a_zero_point_where_there_is_none() -> None:
    assert conflict(GOOD, HARDWARE.replace("zero_point: after_accumulate", "zero_point: none")) == (
        "recipe.yaml:4: activation.zero = aligned: needs a zero point, but fprop has none at hw.yaml:10: "
        "datapath.zero_point; use zero: symmetric, or another zero_point in the hardware"
    )
    symmetric, none = GOOD.replace("aligned", "symmetric"), HARDWARE.replace("after_accumulate", "none")
    check_compatible(parse_recipe(symmetric), parse_hardware(none.replace("uint8", "int8")))
    assert conflict(symmetric, none.replace("wgrad: {a: uint8", "wgrad: {a: int8")) == (
        "recipe.yaml:4: activation.zero = symmetric: would need a zero point in one of hw.yaml:15: gemms.fprop.a and "
        "hw.yaml:16: gemms.wgrad.a, which differ in signedness; make both operands signed or both unsigned"
    )


def test_symmetric_codes_of_a_signed_tensor_in_an_unsigned_operand() -> None:
    text = HARDWARE.replace("  b: int8", "  b: uint8")
    assert conflict(GOOD.replace("aligned", "symmetric"), text) == (
        "recipe.yaml:5: weight.zero = symmetric: cannot be negative in the unsigned operand at hw.yaml:9: datapath.b; "
        "use zero: aligned, or a signed operand"
    )
    check_compatible(parse_recipe(GOOD), parse_hardware(text))


def test_a_float_offset_needs_hardware_with_a_zero_point() -> None:
    text = GOOD.replace("bits: 5, rounding: stochastic, zero: aligned", "bits: 5, rounding: to_odd, zero: float_offset")
    check_compatible(parse_recipe(text), parse_hardware(HARDWARE))
    assert conflict(text, HARDWARE.replace("after_accumulate", "none")).startswith("recipe.yaml:4: activation.zero")
    only = text.replace("zero: aligned", "zero: symmetric")
    assert conflict(only, HARDWARE.replace("after_accumulate", "none").replace("uint8", "int8")) == (
        "recipe.yaml:7: grad_for_dgrad.zero = float_offset: needs a zero point, but dgrad has none at "
        "hw.yaml:10: datapath.zero_point; use zero: symmetric, or another zero_point in the hardware"
    )


def test_an_override_is_named_in_a_conflict() -> None:
    recipe = parse_recipe(GOOD, "recipe.yaml")
    hardware = load_hardware(parse_hardware(HARDWARE, "hw.yaml"), {"gemms.dgrad.a": "int4"})
    with pytest.raises(InputError) as caught:
        check_compatible(recipe, hardware)
    assert str(caught.value) == (
        "recipe.yaml:7: grad_for_dgrad.bits = 5: does not fit the int4 of dgrad at --set hardware.gemms.dgrad.a=int4: "
        "gemms.dgrad.a; use at most 4 bits, or a wider operand"
    )


def test_float_gemms_do_not_meet_the_hardware() -> None:
    narrow = HARDWARE.replace("  a: int8", "  a: int2").replace("  b: int8", "  b: int2")
    check_compatible(load_recipe("fp32"), parse_hardware(narrow[: narrow.index("random:")]))
    with_forward = narrow.replace("fprop: {a: uint8}", "fprop: {a: uint8, b: int8}")
    check_compatible(load_recipe("qat"), parse_hardware(with_forward))


def test_shipped_recipes_and_hardware_fit_where_they_should() -> None:
    eight_bit = [name for name in recipe_names() if name not in ("fp32", "bhq4_int4")]
    inference = {"tflite_double", "tflite_single", "xnnpack_fp32"}
    for hardware in (load_hardware(name) for name in hardware_names()):
        for recipe in (load_recipe(name) for name in recipe_names()):
            stochastic = recipe.name not in ("fp32", "qat")
            too_wide = hardware.name == "int4_acc16_saturate" and recipe.name in eight_bit
            unsigned = recipe.name == "luq4" and not hardware.datapath_for("dgrad").a_format.signed
            if too_wide or unsigned or (stochastic and hardware.name in inference):
                with pytest.raises(InputError, match=re.escape(f"{hardware.name}.yaml:")):
                    check_compatible(recipe, hardware)
            else:
                check_compatible(recipe, hardware)


def test_every_gemm_operand_is_fed_once() -> None:
    fed = [operand for feeds in FEEDS.values() for operand in feeds]
    assert sorted(fed) == [(gemm, operand) for gemm in ("dgrad", "fprop", "wgrad") for operand in "ab"]
    assert list(FEEDS) == list(PORTS)


# --- docs ------------------------------------------------------------------------------------------------------------


def test_every_key_and_word_is_explained() -> None:
    schema = Recipe.model_json_schema()
    keys = {key for part in (schema, *schema["$defs"].values()) for key in part.get("properties", ())}
    words = {*keys, *QUANTIZERS, *ZEROS, *SCHEDULES, "float", "stochastic"}
    text = DOCS.read_text()
    assert {word for word in words if not re.search(rf"\b{word}\b", text)} == set()


def test_the_recipe_of_the_docs_is_the_shipped_one() -> None:
    block = re.search(r"```yaml\n([^`]*\nactivation.*?)```", DOCS.read_text(), re.DOTALL)
    assert block is not None
    assert parse_recipe(block[1]).model_dump() == load_recipe("bhq5").model_dump()


def test_a_key_that_older_versions_lack_is_written_only_where_it_acts() -> None:
    assert "step" not in load_recipe("ptq5").model_dump()["grad_for_dgrad"]
    assert load_recipe("ptq5_pow2").model_dump()["grad_for_dgrad"]["step"] == "power_of_two"
