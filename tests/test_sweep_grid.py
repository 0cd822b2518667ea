"""The grid of a sweep is what was asked, and its jobs pair seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sweep import PLAN, REGISTER, TREE, WRAP

from fqtsim.errors import InputError
from fqtsim.evaluate.grid import designs, split_list, values
from fqtsim.evaluate.job import Design
from fqtsim.evaluate.sweep import baselines, make_jobs


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("int16..int19", ["int16", "int17", "int18", "int19"]),
        ("int12..32/10", ["int12", "int22", "int32"]),
        ("1,4,16", ["1", "4", "16"]),
        ("exact,int8..int9", ["exact", "int8", "int9"]),
        ("7..7", ["7"]),
        ("[1, 2],[3]", ["[1, 2]", "[3]"]),
        ("{a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("0.05", ["0.05"]),
    ],
)
def test_values(text: str, found: list[str]) -> None:
    assert values(text, "--set x") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int16..", "--set x: int16.. is no range; write FIRST..LAST or FIRST..LAST/STEP, for example int12..int32/4"),
        ("int32..int16", "--set x: int32..int16 runs backwards; write int16..int32"),
        ("int8..uint16", "--set x: the ends of int8..uint16 differ before the number; write int8..int16"),
        ("1..8/3", "--set x: steps of 3 from 1 do not reach 8; end at 7, or choose another step"),
        ("1..8/0", "--set x: steps of 0 from 1 do not reach 8; end at 1, or choose another step"),
        ("1,,2", "--set x: has an empty value; write values such as int16..int32 or 1,4,16"),
        ("", "--set x: has an empty value; write values such as int16..int32 or 1,4,16"),
        ("1,1..2", "--set x: 1 is listed twice; keep one"),
        ("1..100000", "--set x: 1..100000 has more than 10000 values; sweep fewer"),
    ],
)
def test_values_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        values(text, "--set x")
    assert str(error.value) == message


@given(st.sampled_from(["", "int", "uint", "fixed8_"]), st.integers(0, 99), st.integers(0, 30), st.integers(1, 9))
def test_a_range_has_both_ends_and_equal_steps(stem: str, low: int, count: int, step: int) -> None:
    found = values(f"{stem}{low}..{stem}{low + count * step}/{step}", "x")
    assert found == [f"{stem}{low + i * step}" for i in range(count + 1)]


@given(st.lists(st.sampled_from(["1", "a b", "[1, 2]", "{a: [3, 4], b: 5}", "'x, ]'", '"[, y"']), min_size=1))
def test_splitting_undoes_joining(parts: list[str]) -> None:
    assert split_list(",".join(parts)) == parts
    assert split_list(" , ".join(parts)) == parts


def test_the_grid_is_the_product() -> None:
    sets = [f"{REGISTER}=int20..int24/2", "recipe.optimizer.lr=0.1", "hardware.random.bits=8,16"]
    found = designs([WRAP, f"{TREE},int8_acc24_saturate"], ["bhq5,psq5", "ptq8"], sets)
    assert len(found) == len({design.label for design in found}) == 3 * 3 * 3 * 2
    first, second = found[0], found[1]
    assert (first.recipe, first.hardware) == ("bhq5", (WRAP,))
    assert first.set_hardware == {"datapath.levels.-1.register": "int20", "random.bits": "8"}
    assert second.set_hardware == {"datapath.levels.-1.register": "int20", "random.bits": "16"}
    assert {tuple(design.set_recipe.items()) for design in found} == {(("optimizer.lr", "0.1"),)}
    assert [design.hardware for design in found[::18]] == [(WRAP,), (TREE,), ("int8_acc24_saturate",)]


def test_patterns_with_commas_are_one_design() -> None:
    (design,) = designs([f"conv*={WRAP},*={TREE}"], ["ptq8"], [])
    assert design.hardware == (f"conv*={WRAP}", f"*={TREE}")


@pytest.mark.parametrize(
    ("hardware", "recipes", "sets", "message"),
    [
        ([], ["ptq8"], [], "--hardware: is required"),
        ([WRAP], [], [], "--recipe: is required"),
        ([f"{WRAP},"], ["ptq8"], [], "has an empty name between commas"),
        ([WRAP], ["fp32"], [], "--recipe fp32: every sweep trains fp32 and qat already; leave it out"),
        ([WRAP, WRAP], ["ptq8"], [], f"design ptq8 on {WRAP}: is given twice; keep one"),
        (["a/x.yaml", "b/x.yaml"], ["ptq8"], [], "would stand for a/x.yaml and for b/x.yaml"),
        ([f"conv*={WRAP},{TREE}"], ["ptq8"], [], "mixes PATTERN=NAME"),
        ([WRAP], ["ptq8"], ["register=int8"], "must be hardware.KEY=VALUES or recipe.KEY=VALUES"),
        ([WRAP], ["ptq8"], [f"{REGISTER}=int8", f"{REGISTER}=int9"], "is set twice; list all values in one --set"),
        ([WRAP], ["ptq8"], ["hardware.a=1..200", "hardware.b=1..200"], "the grid has 40000 points"),
    ],
)
def test_grids_that_are_refused(hardware: list[str], recipes: list[str], sets: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        designs(hardware, recipes, sets)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (designs([WRAP], ["ptq8"], [f"{REGISTER}=int20,int99"]), f"design ptq8 on {WRAP} register=int99: --set"),
        (designs([WRAP], ["ptq8"], ["recipe.weight.bits=8,9"]), f"design ptq8 on {WRAP} weight.bits=9: --set"),
        (designs([f"fc={WRAP}"], ["ptq8"], []), f"design ptq8 on fc={WRAP}: hardware: no pattern of 'fc'"),
        (designs([TREE], ["ptq8"], ["hardware.datapath.a=int4"]), f"design ptq8 on {TREE} a=int4:"),
        (
            designs([TREE], ["ptq8"], ["recipe.optimizer.lr=0.1,1e-1"]),
            f"design ptq8 on {TREE} optimizer.lr=1e-1: is the same as",
        ),
        (designs([TREE], ["ptq8"], ["recipe.optimizer.lr=0.1,0.2"]), "in optimizer.lr, and fp32 and qat train one way"),
    ],
)
def test_a_point_that_cannot_run_is_named_before_anything_runs(found: list[Design], message: str) -> None:
    with pytest.raises(InputError) as error:
        make_jobs(replace(PLAN, designs=found))
    assert message in str(error.value)


def test_baselines_train_as_the_designs_do() -> None:
    sets = ["recipe.optimizer.lr=0.05", "recipe.optimizer.nesterov=true", "recipe.grad_for_dgrad.bits=4,6"]
    fp32, qat = baselines(replace(PLAN, designs=designs([TREE], ["ptq8"], sets)))
    assert (fp32.recipe, qat.recipe) == ("fp32", "qat")
    assert fp32.set_recipe == qat.set_recipe == {"optimizer.lr": "0.05", "optimizer.nesterov": "true"}
    assert fp32.set_hardware == qat.set_hardware == {}


def test_jobs_pair_seeds_and_begin_with_baselines() -> None:
    jobs = make_jobs(replace(PLAN, designs=designs([TREE, WRAP], ["ptq8"], [])))
    assert [(job.design.label.split()[0], job.plain["seed"]) for job in jobs] == [
        ("fp32", 0), ("qat", 0), ("fp32", 1), ("qat", 1), ("ptq8", 0), ("ptq8", 0), ("ptq8", 1), ("ptq8", 1),
    ]  # fmt: skip
    assert len({job.key for job in jobs}) == 8
    with pytest.raises(InputError, match=r"^seeds = \[1, 1\]: one is given twice"):
        make_jobs(replace(PLAN, seeds=(1, 1)))
