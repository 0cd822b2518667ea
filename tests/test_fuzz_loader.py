"""No bytes make a loader fail in any way but its own: a model, or one line that names file and line.

The long form (marker `exhaustive`) runs for FQTSIM_FUZZ_SECONDS, 1800 by default.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fqtsim.errors import FileError, InputError
from fqtsim.hw.load import dump_hardware, hwconfigs_dir, load_hardware, parse_hardware
from fqtsim.hw.schema import json_schema
from fqtsim.hw.spec import Hardware
from fqtsim.recipe.load import load_recipe, parse_recipe
from fqtsim.strict_yaml import MAX_BYTES, read_text

BAD = Path(__file__).parent / "bad_files"
HARDWARE = (BAD / "hardware.yaml").read_text()
RECIPE = (BAD / "recipe.yaml").read_text()
SEEDS = [*(path.read_text() for path in sorted(hwconfigs_dir().glob("*.yaml"))), HARDWARE, RECIPE]
LOADERS: list[Callable[[str, str], Any]] = [parse_hardware, parse_recipe]
# What YAML and the loader give meaning to, so that random edits get past the scanner.
TOKENS = [
    "{", "}", "[", "]", ":", ": ", ",", "- ", "? ", "&a ", "*a", "!!str ", "! ", "<<: ", "|", ">", "'", '"', "#",
    "\n", "\n  ", "\t", " ", "---\n", "...\n", "~", "null", "true", "no", "0", "-1", "1", "62", "63", "9" * 20, "1e999",
    "all", "call", "exact", "int8", "uint8", "int63", "wrap", "saturate", "saturate_symmetric", "stochastic", "to_odd",
    "drop_bits", "rounding", "overflow", "register", "terms", "parts", "lanes", "item", "levels", "datapath", "fprop",
    "%", "@", ".nan", "\ufeff", "\u2028", "\x85", "\0", "\x07", "\\x00", "\\UFFFFFFFF", "\U0001f600",
]  # fmt: skip
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def check(load: Callable[[str, str], Any], text: str) -> None:
    """A model that the schema accepts too and that survives a round trip, or an error of the promised form."""
    try:
        loaded = load(text, "f.yaml")
    except FileError as error:
        message = str(error)
        found = re.match(r"f\.yaml:([0-9]+): ", message)
        assert found, message
        assert 1 <= int(found[1]) <= len(re.split(r"\r\n|[\n\r\x85\u2028\u2029]", text)), message
        assert message.isprintable(), message
        assert "; " in message, message
        assert len(message) < 1500, message
        return
    if isinstance(loaded, Hardware):
        VALIDATOR.validate(loaded.model_dump(mode="json", by_alias=True, exclude_none=True))
        assert parse_hardware(dump_hardware(loaded)).model_dump() == loaded.model_dump()


@st.composite
def edited(draw: st.DrawFn) -> str:
    """A good file with a few pieces cut, repeated, swapped or put in."""
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 4))):
        first, second = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        second = min(second, first + draw(st.integers(0, 30)))
        put = draw(st.sampled_from(TOKENS) | st.just("") | st.just(text[first:second] * 2) | st.text(max_size=5))
        text = text[:first] + put + text[second:]
    return text


scalars = (
    st.none() | st.booleans() | st.integers(-5, 70) | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(TOKENS)
)  # fmt: skip
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def places(tree: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every key path of a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


@st.composite
def regrown(draw: st.DrawFn) -> str:
    """A good file with one value replaced by any tree, written as YAML again."""
    tree = yaml.safe_load(draw(st.sampled_from(SEEDS)))
    path = draw(st.sampled_from(places(tree)[1:]))
    node = tree
    for key in path[:-1]:
        node = node[key]
    if draw(st.booleans()) and isinstance(node, dict):
        del node[path[-1]]
    else:
        node[path[-1]] = draw(trees)
    return yaml.safe_dump(
        tree, allow_unicode=draw(st.booleans()), default_flow_style=draw(st.sampled_from([None, True]))
    )


@given(st.sampled_from(LOADERS), st.text() | st.lists(st.sampled_from(TOKENS), max_size=40).map("".join))
@example(parse_hardware, "? a")
@example(parse_hardware, "a: *b")
def test_any_text(load: Callable[[str, str], Any], text: str) -> None:
    check(load, text)


@given(st.sampled_from(LOADERS), edited())
def test_edited_files(load: Callable[[str, str], Any], text: str) -> None:
    check(load, text)


@given(st.sampled_from(LOADERS), regrown())
def test_files_with_another_tree_inside(load: Callable[[str, str], Any], text: str) -> None:
    check(load, text)


@given(st.binary(max_size=300))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(raw)
    with pytest.raises(InputError) as caught:
        load_hardware(path)
    assert str(caught.value).isprintable()
    with pytest.raises(InputError):
        load_recipe(path)


@given(
    st.text(max_size=30) | st.sampled_from(["datapath.levels.-1.register", "random.bits", "output.0"]),
    st.text() | trees,
)
@example("random.bits", "\n")
@example("random.bits", 10**5000)
@example("random", {1: 2})
@example("random.bits", object())
@example("datapath.levels.-999999999999.terms", "1")
@example("", "")
def test_any_override(key: str, value: object) -> None:
    try:
        parse_hardware(HARDWARE, "f.yaml", {key: value})
    except InputError as error:
        assert str(error).startswith(("--set hardware.", "f.yaml:"))  # noqa: PT017
        assert str(error).isprintable()  # noqa: PT017


@pytest.mark.parametrize(
    "text",
    [
        "[" * MAX_BYTES, "{" * MAX_BYTES, "- " * (MAX_BYTES // 2), "? " * (MAX_BYTES // 2), "a:\n" * 300_000,
        "\n".join(f"k{i}: 1" for i in range(80_000)), "a: x\n" + "  x\n" * 200_000, "#" * MAX_BYTES, "\n" * MAX_BYTES,
        "a: " + "9" * 100_000, "a: 1e" + "9" * 100_000, "a: &a " + "[*a, " * 1000, "k" * 100_000 + ": 1",
        "%YAML " + "1" * 10_000 + ".1\n---\na: 1", 'a: "' + "\\x41" * 100_000 + '"',
    ],
    ids=range(15),
)  # fmt: skip
@pytest.mark.timeout(60)
def test_large_files_end_soon(text: str) -> None:
    check(parse_hardware, text)


def mutate(rng: random.Random, raw: bytes) -> bytes:
    """Return `raw` with a few bytes, tokens or blocks changed; as a fuzzer does, without a grammar."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((0, 1, 1, 2, 5, 20, 80)))
        choice = rng.randrange(4)
        if choice == 0:
            data[at:end] = rng.choice(TOKENS).encode()
        elif choice == 1:
            data[at:end] = rng.randbytes(rng.randint(0, 4))
        elif choice == 2:
            data[at:end] = b""
        else:
            source = rng.choice(SEEDS).encode()
            first = rng.randrange(len(source))
            data[at:end] = source[first : first + rng.randint(1, 120)]
    return bytes(data)


def graft(rng: random.Random, text: str) -> bytes:
    """Return a good file with one value replaced by a part of another, or by a value of another type."""
    tree, other = yaml.safe_load(text), yaml.safe_load(rng.choice(SEEDS))
    path = rng.choice(places(tree)[1:])
    node, put = tree, other
    for key in path[:-1]:
        node = node[key]
    for key in rng.choice(places(other)):
        put = put[key]
    node[path[-1]] = rng.choice([put, put, [], {}, [put], {"terms": put}, True, 1.5, -1, 2**70, "", "x" * 200, "int9"])
    return yaml.safe_dump(tree).encode()


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
def test_fuzz_for_a_long_time(tmp_path: Path) -> None:
    rng = random.Random(0)
    pool = [seed.encode() for seed in SEEDS]
    path = tmp_path / "fuzz.yaml"
    ends = time.monotonic() + float(os.environ.get("FQTSIM_FUZZ_SECONDS", "1800"))
    tried = loaded = 0
    while time.monotonic() < ends:
        raw = graft(rng, rng.choice(SEEDS)) if rng.random() < 0.5 else mutate(rng, rng.choice(pool))
        path.write_bytes(raw)
        tried += 1
        try:
            text = read_text(path)
        except InputError as error:
            assert str(error).isprintable(), raw  # noqa: PT017
            continue
        for load in LOADERS:
            check(load, text)
        # Keep what still loads as a start for more, so that edits add up.
        try:
            parse_hardware(text)
        except InputError:
            continue
        loaded += 1
        pool[rng.randrange(len(pool))] = raw
    print(f"{tried} files, {loaded} of them valid hardware")
    assert loaded > 0
