"""Short names for tests: hardware and datapaths from a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from fqtsim.hw.load import parse_hardware
from fqtsim.hw.spec import Datapath, Hardware


def level(register: str, overflow: str | None = None, **grouping: Any) -> dict[str, Any]:
    """Return a level as in YAML; `terms: all` where no grouping is given. drop=(bits, rounding) drops bits."""
    drop = grouping.pop("drop", None)
    item = {} if drop is None else {"item": {"drop_bits": drop[0], "rounding": drop[1]}}
    word = {} if overflow is None else {"overflow": overflow}
    return {**(grouping or {"terms": "all"}), **item, "register": register, **word}


def chain(text: str) -> list[dict[str, Any]]:
    """Return levels from words: "lanes 4 drop 2 to_odd int8 wrap, int16 saturate"."""
    levels = []
    for words in (part.split() for part in text.split(",")):
        found: dict[str, Any] = {}
        while words:
            word = words.pop(0)
            if word in ("terms", "parts", "lanes"):
                found[word] = int(words.pop(0))
            elif word == "drop":
                found["drop"] = int(words.pop(0)), words.pop(0)
            else:
                found["register"], found["overflow"] = word, words.pop(0) if words else None
        levels.append(level(**found))
    return levels


def datapath(*levels: dict[str, Any], a: str = "int8", b: str = "int8", zero_point: str = "none") -> Datapath:
    return Datapath.model_validate({"a": a, "b": b, "zero_point": zero_point, "levels": list(levels)})


def hardware(
    *levels: Mapping[str, Any],
    a: str = "int8",
    b: str = "int8",
    zero_point: str = "none",
    output: Sequence[Mapping[str, Any]] | None = None,
) -> Hardware:
    chain = [dict(one) for one in levels] or [level("int32", "wrap")]
    file: dict[str, Any] = {
        "schema": 1, "name": "test", "summary": "test", "source": "hypothetical", "checked_against": "nothing",
        "datapath": {"a": a, "b": b, "zero_point": zero_point, "levels": chain},
    }  # fmt: skip
    if output is not None:
        file["output"] = [dict(stage) for stage in output]
    return parse_hardware(yaml.safe_dump(file))
