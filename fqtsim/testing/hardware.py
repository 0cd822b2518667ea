"""Hypothesis strategies for datapaths and for whole hardware files.

A datapath is built as the mapping that a file would hold and parsed by the loader's own models, so that whatever the
schema allows can be drawn and nothing else.
"""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import strategies as st

from fqtsim.hw.spec import Datapath
from fqtsim.testing.formats import formats
from fqtsim.words import GEMMS, IntFormat, Overflow, Rounding, ZeroPoint

INNER_BITS = 40
"""Widest inner register: exact levels behind it then need less than 63 bits for every K up to 4096."""
FIXED = [rounding.value for rounding in Rounding if rounding is not Rounding.STOCHASTIC]
WORDS = "abcdefghijklmnopqrstuvwxyz 0123456789.,;()/+*_#:'\"-"


@st.composite
def datapaths(draw: st.DrawFn, max_levels: int = 4, max_bits: int = 16) -> Datapath:
    """Return a strategy for datapaths of 1..max_levels levels and operands of up to max_bits bits.

    Every grouping, rounding word and overflow word occurs; registers are mostly about as wide as the sums, so that
    operands of `operands` reach their rails. Every K up to 4096 is allowed.

        @given(st.data(), datapaths())
        def test_mine(data, datapath): a, b, c = data.draw(operands(datapath)); ...
    """
    return Datapath.model_validate(draw(_datapath_mappings(max_levels, max_bits)))


@st.composite
def hardware_files(draw: st.DrawFn) -> str:
    """Return a strategy for the YAML text of hardware files that the loader accepts.

    @given(hardware_files())
    def test_load(text):
        fqtsim.hw.load.parse_hardware(text)
    """
    # From a letter on: text like 0e0 is a number to the loader, but not to PyYAML, which would not quote it.
    sentences = st.text(WORDS, max_size=40).map(lambda rest: f"as {rest}".strip())
    file: dict[str, Any] = {
        "schema": 1,
        "name": draw(st.from_regex("[a-z][a-z0-9_]{0,9}", fullmatch=True)),
        **{key: draw(sentences) for key in ("summary", "source", "checked_against")},
        "datapath": draw(_datapath_mappings(4, 16)),
    }
    if draw(st.booleans()):
        file["gemms"] = {name: draw(_changes()) for name in GEMMS if draw(st.booleans())}
    if draw(st.booleans()):
        file["output"] = draw(_outputs())
    if draw(st.booleans()):
        file["random"] = {"generator": "philox4x32-10", "bits": draw(st.integers(1, 32))}
    style = draw(st.sampled_from([None, True, False]))
    return str(yaml.safe_dump(file, sort_keys=draw(st.booleans()), default_flow_style=style))


@st.composite
def _datapath_mappings(draw: st.DrawFn, max_levels: int, max_bits: int) -> dict[str, Any]:
    a, b = draw(formats(max_bits=max_bits)), draw(formats(max_bits=max_bits))
    count = draw(st.integers(1, max_levels))
    product_bits = a.bits + b.bits
    levels = [draw(_levels(product_bits, last=index == count - 1)) for index in range(count)]
    zero_point = draw(st.sampled_from(list(ZeroPoint))).value
    return {"a": a.name, "b": b.name, "zero_point": zero_point, "levels": levels}


@st.composite
def _levels(draw: st.DrawFn, product_bits: int, last: bool) -> dict[str, Any]:
    level: dict[str, Any] = {"terms": "all"} if last else draw(_groupings())
    if draw(st.integers(0, 3)) == 3:
        bits = draw(st.integers(1, 4) | st.integers(1, 20))
        level["item"] = {"drop_bits": bits, "rounding": draw(st.sampled_from(FIXED))}
    if draw(st.integers(0, 4)) == 4:
        return {**level, "register": "exact"}
    widest = 62 if last else INNER_BITS
    near = st.integers(-6, 4).map(lambda more: min(max(product_bits + more, 2), widest))
    return {**level, **draw(_registers(near | near | st.integers(2, widest)))}


def _groupings() -> st.SearchStrategy[dict[str, Any]]:
    terms = st.integers(1, 9) | st.just("all")
    return st.one_of(
        *(st.fixed_dictionaries({key: count}) for key, count in
          (("terms", terms), ("parts", st.integers(1, 6)), ("lanes", st.integers(1, 6))))
    )  # fmt: skip


@st.composite
def _registers(draw: st.DrawFn, bits: st.SearchStrategy[int]) -> dict[str, Any]:
    form = IntFormat(draw(bits), draw(st.integers(0, 5)) < 5)
    words = [word.value for word in Overflow if form.signed or word is not Overflow.SATURATE_SYMMETRIC]
    return {"register": form.name, "overflow": draw(st.sampled_from(words))}


@st.composite
def _changes(draw: st.DrawFn) -> dict[str, Any]:
    """What one GEMM replaces: some keys of a datapath of its own."""
    whole = draw(_datapath_mappings(3, 16))
    return {key: value for key, value in whole.items() if draw(st.booleans())}


@st.composite
def _outputs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw stages in an order that has a meaning: an integer part or a float part, zero point, last register."""
    registers = _registers(st.integers(2, 62))
    rounding = st.sampled_from(FIXED)
    fixed_shift = st.fixed_dictionaries({"shift": st.integers(1, 62), "rounding": rounding})
    stages: list[dict[str, Any]] = draw(st.lists(fixed_shift | registers, max_size=2))
    if draw(st.booleans()):
        stages += [{"multiply": "float32"}, {"round": draw(rounding)}]
    else:
        stages += [{"multiply": "integer"}, *draw(st.lists(fixed_shift | registers, max_size=2))]
        stages += [{"shift": "call", "rounding": draw(rounding)}] if draw(st.booleans()) else []
    stages += [{"add": "zero_point"}] if draw(st.booleans()) else []
    return [*stages, draw(registers)]
