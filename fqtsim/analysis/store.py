"""The state of an analysis: parts, each finished or not there, in one file that is replaced whole.

A part is what one batch, or one point of the curve on one batch, gave. Parts do not know each other, so analyses of
different batches merge by putting their parts together; two of the same batch merge where both kept their sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fqtsim.analysis.result import (
    Analysis,
    Bias,
    Bound,
    Contribution,
    CurvePoint,
    Histogram,
    Variance,
)
from fqtsim.analysis.statistics import Moments, Products
from fqtsim.errors import InputError
from fqtsim.train.rundir import replace_file, write_text

STATE, RESULT = "analysis.safetensors", "analysis.json"
FORMAT = "fqtsim-analysis-1"


@dataclass
class Part:
    """Named arrays, and what JSON holds."""

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, moments: Moments, keep: bool) -> Products:
        """Keep the products of the errors, and with `keep` their sums too, which more repeats can be merged with."""
        products = moments.products()
        numbers = sorted(moments.blocks)
        self.arrays |= {
            f"{name}.gram": products.gram, f"{name}.squares": products.squares, f"{name}.counts": products.counts,
        }  # fmt: skip
        if keep:
            self.arrays[f"{name}.sums"] = np.stack([moments.blocks[number][0] for number in numbers])
            self.info.setdefault("sums", {})[name] = [list(moments.sizes), moments.block, numbers]
        return products

    def products(self, name: str) -> Products:
        """Return what `put` kept."""
        gram, squares, counts = (self.arrays[f"{name}.{key}"] for key in ("gram", "squares", "counts"))
        return Products(gram, squares, counts)

    def moments(self, name: str) -> Moments:
        """Return the sums that `put` kept, where it did."""
        sizes, block, numbers = self.info["sums"][name]
        sums, squares, counts = (self.arrays[f"{name}.{key}"] for key in ("sums", "squares", "counts"))
        blocks = {
            number: (sums[place], squares[:, place].copy(), int(counts[place])) for place, number in enumerate(numbers)
        }
        return Moments(tuple(sizes), block, blocks)

    def merge(self, other: Part, name: str) -> Part:
        """Return one part for the repeats of both. Raises InputError where their sums were not kept."""
        if "sums" not in self.info or self.info["sums"].keys() != other.info.get("sums", {}).keys():
            if not any(key.endswith(".gram") for key in self.arrays):
                return self
            raise InputError(f"{name}: in both analyses; analyse with keep_sums to merge repeats of one batch")
        merged = Part(dict(self.arrays), dict(self.info) | {"sums": {}})
        for key in self.info["sums"]:
            merged.put(key, self.moments(key).merge(other.moments(key)), keep=True)
        return merged


@dataclass
class State:
    """Everything measured so far; `save` is called after each part."""

    settings: dict[str, Any]
    #: Name -> part, in the order of being measured.
    parts: dict[str, Part] = field(default_factory=dict)
    #: Where it is kept; None: in memory only.
    folder: Path | None = None

    @classmethod
    def open(cls, settings: dict[str, Any], out: Path | None, resume: bool) -> State:
        """Return a new state, or with `resume` the one in `out`.

        Raises InputError for a folder with a state without `resume`, none with it, and for other settings.
        """
        state = cls(settings, {}, out)
        if out is None:
            if resume:
                raise InputError("resume: needs the folder of an earlier analysis; give out")
            return state
        path = out / STATE
        if not resume and (path.exists() or (out / RESULT).exists()):
            raise InputError(f"{out}: holds an analysis; resume it, or name another folder")
        if not resume:
            out.mkdir(parents=True, exist_ok=True)
            state.save()  # a kill before the first part leaves something to resume
            return state
        if not path.is_file():
            raise InputError(f"{path}: no such file; resume needs the folder of an earlier analysis, check out")
        old = cls.read(path)
        for key in sorted({*settings, *old.settings}):
            if settings.get(key) != old.settings.get(key):
                raise InputError(
                    f"{path}: {key} = {old.settings.get(key)}: this analysis has {settings.get(key)}; "
                    "resume with the same settings, or name another folder"
                )
        state.parts = old.parts
        return state

    @classmethod
    def read(cls, path: Path) -> State:
        """Return the state in a file. Raises InputError where there is none."""
        if not path.is_file():
            raise InputError(f"{path}: no such file; name the {STATE} of an analysis")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{path}: not a safetensors file ({error}); name the {STATE} of an analysis") from None
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path}: not the state of an analysis; name the {STATE} of one")
        parts = {name: Part({}, info) for name, info in json.loads(metadata["parts"]).items()}
        for name, array in arrays.items():
            part, _, key = name.partition("/")
            parts[part].arrays[key] = array
        return cls(json.loads(metadata["settings"]), parts)

    def once(self, name: str, measure: Callable[[], Part]) -> Part:
        """Return a part, measured and saved where it is not there yet."""
        if name not in self.parts:
            self.parts[name] = measure()
            self.save()
        return self.parts[name]

    def save(self) -> None:
        """Write the state in one move: a kill leaves the old file or the new one."""
        if self.folder is None:
            return
        arrays = {
            f"{name}/{key}": np.ascontiguousarray(array)
            for name, part in self.parts.items()
            for key, array in part.arrays.items()
        }
        metadata = {
            "format": FORMAT,
            "settings": json.dumps(self.settings),
            "parts": json.dumps({name: part.info for name, part in self.parts.items()}),
        }
        try:
            replace_file(self.folder / STATE, lambda partial: save_file(arrays, partial, metadata))
        except (SafetensorError, OSError) as error:
            rule = "check the folder and the space on its disk"
            raise InputError(f"{self.folder / STATE}: cannot be written ({error}); {rule}") from None

    def merge(self, other: State) -> State:
        """Return the state of both analyses. Raises InputError where they differ in more than batches and repeats."""
        varying = ("batch_numbers", "repeat_numbers", "batches", "repeats")
        for key in sorted({*self.settings, *other.settings} - {*varying}):
            if self.settings.get(key) != other.settings.get(key):
                rule = f"the other analysis has {other.settings.get(key)}; merge analyses of the same settings"
                raise InputError(f"{key} = {self.settings.get(key)}: {rule}")
        parts = dict(self.parts)
        for name, part in other.parts.items():
            parts[name] = parts[name].merge(part, name) if name in parts else part
        settings = dict(self.settings)
        for numbers, count in (("batch_numbers", "batches"), ("repeat_numbers", "repeats")):
            settings[numbers] = sorted({*self.settings[numbers], *other.settings[numbers]})
            settings[count] = len(settings[numbers])
        return State(settings, dict(sorted(parts.items(), key=lambda item: _order(item[0]))))


def _order(name: str) -> tuple[str, int]:
    kind, _, number = name.rpartition(" ")
    return kind, int(number)


def as_plain(analysis: Analysis) -> dict[str, Any]:
    """Return an analysis as JSON has it."""
    return {"format": FORMAT, **asdict(analysis)}


def write_result(analysis: Analysis, out: Path) -> None:
    """Write OUT/analysis.json, which `read_result` reads."""
    write_text(out / RESULT, json.dumps(as_plain(analysis), indent=1) + "\n")


_ROWS: Mapping[str, type[Any]] = {
    "biases": Bias, "variances": Variance, "contributions": Contribution, "bounds": Bound, "histograms": Histogram,
    "curve": CurvePoint,
}  # fmt: skip


def read_result(path: Path) -> Analysis:
    """Return the analysis in a file that `write_result` wrote, or in its folder. Raises InputError."""
    path = path / RESULT if path.is_dir() else path
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); name the {RESULT} of an analysis") from None
    if not isinstance(plain, dict) or plain.pop("format", None) != FORMAT:
        raise InputError(f"{path}: not the result of an analysis; name the {RESULT} of one")
    rows = {key: tuple(kind(**_tuples(row)) for row in plain[key]) for key, kind in _ROWS.items()}
    return Analysis(**plain | rows | {"events": tuple(plain["events"])})


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
