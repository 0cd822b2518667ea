"""A reproducer: one GEMM or primitive whose result is in doubt, with its operands, in one small safetensors file.

Tensors are `operand.NAME` and `result.BACKEND`; the metadata key `reproducer` holds the rest as JSON. What a file
shows is said by fqtsim.crosscheck.reproducer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fqtsim.errors import InputError
from fqtsim.hw.spec import Datapath
from fqtsim.train.operands import Array
from fqtsim.train.products import Part, Side

FORMAT = "fqtsim-reproducer-1"
KINDS = ("gemm", "product", "primitive")
SIDES = ("step", "zero_point", "offset")
"""What a product's rows and columns have: operands `rows.step`, `columns.zero_point` and so on."""
WHOLE_BYTES = 1 << 22
"""Operands up to this size are kept whole; of larger ones the row and the column of the output in doubt."""
MOST_BYTES = 1 << 30
"""Larger files are refused before they are read."""
_REMEDY = "give a file that crosscheck, verify-run or train --check saved"


@dataclass(frozen=True)
class Reproducer:
    """What is needed to do one operation again."""

    #: "gemm", "product" (a layer's: a GEMM and the float32 numbers that its accumulators mean) or "primitive".
    kind: str
    #: fprop, dgrad or wgrad; or the primitive's name.
    name: str
    #: Where it happened: step (from 1), layer, and row and col of the output in doubt within the arrays below.
    place: Mapping[str, Any]
    #: The datapath of a GEMM; the arguments of a primitive that are no arrays, by name.
    parameters: Mapping[str, Any]
    #: Arrays by name: a, b and c of a GEMM; a, b, met and those of SIDES of a product; a primitive's by position or
    #: keyword.
    operands: Mapping[str, Array]
    #: Backend -> what it gave.
    results: Mapping[str, Array]
    #: Versions and devices, for the reader.
    notes: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """Write the file, in one move. Raises InputError where it cannot be written."""
        arrays = {f"operand.{name}": np.ascontiguousarray(array) for name, array in self.operands.items()}
        arrays |= {f"result.{name}": np.ascontiguousarray(array) for name, array in self.results.items()}
        plain = {
            "kind": self.kind, "name": self.name, "place": dict(self.place), "parameters": dict(self.parameters),
            "notes": dict(self.notes),
        }  # fmt: skip
        partial = path.with_name(f".{path.name}.partial")
        try:
            save_file(arrays, partial, metadata={"format": FORMAT, "reproducer": json.dumps(plain)})
        except SafetensorError as error:
            raise InputError(f"{path}: cannot be written ({error}); check the folder and its disk") from None
        os.replace(partial, path)
        return path

    @property
    def file_name(self) -> str:
        """A name that says where it happened: `reproducer_step3_conv1_fprop.safetensors`."""
        parts = [f"step{self.place.get('step', 0)}", str(self.place.get("layer") or ""), self.name]
        text = "_".join(part for part in parts if part)
        return f"reproducer_{''.join(c if c.isalnum() or c in '_-' else '-' for c in text)}.safetensors"

    @property
    def datapath(self) -> Datapath:
        """The datapath of a GEMM or product."""
        return Datapath.model_validate(self.parameters)

    @property
    def part(self) -> Part:
        """What a product was made from, and the first result."""
        sides = [Side(*(self.operands.get(f"{side}.{name}") for name in SIDES)) for side in ("rows", "columns")]
        found = next(iter(self.results.values()))
        return Part(self.operands["a"], self.operands["b"], sides[0], sides[1], found, self.operands.get("met"))


def of_gemm(
    place: Mapping[str, Any], name: str, datapath: Datapath, operands: Mapping[str, Array], results: Mapping[str, Array]
) -> Reproducer:
    """Return the reproducer of a GEMM: a (M, K), b (K, N), perhaps c (M, N), results (M, N).

    `place` has the row and col in doubt. Operands beyond WHOLE_BYTES are cut to that row and column.
    """
    arrays, found, where = dict(operands), dict(results), dict(place)
    if sum(array.nbytes for array in arrays.values()) > WHOLE_BYTES:
        row, col = int(where["row"]), int(where["col"])
        arrays["a"], arrays["b"] = arrays["a"][row : row + 1], arrays["b"][:, col : col + 1]
        if "c" in arrays:
            arrays["c"] = arrays["c"][row : row + 1, col : col + 1]
        found = {name: codes[row : row + 1, col : col + 1] for name, codes in found.items()}
        where |= {"row": 0, "col": 0, "cut_from": [row, col]}
    plain = datapath.model_dump(mode="json", by_alias=True, exclude_none=True)
    return Reproducer("gemm", name, where, plain, arrays, found, versions())


def of_product(
    place: Mapping[str, Any], name: str, datapath: Datapath, part: Part, results: Mapping[str, Array]
) -> Reproducer:
    """Return the reproducer of a layer's product, float32 results (R, C); cut as a GEMM is.

    `place` has row and col in these, and as `cut_from` and `group` those of the whole product.
    """
    sides = {"rows": part.rows, "columns": part.columns}
    arrays = {"a": part.a, "b": part.b} | ({} if part.met is None else {"met": part.met})
    arrays |= {
        f"{side}.{field_}": values
        for side, own in sides.items()
        for field_, values in zip(SIDES, own, strict=True)
        if values is not None
    }
    found, where = dict(results), dict(place)
    if sum(array.nbytes for array in arrays.values()) > WHOLE_BYTES:
        row, col = int(where["row"]), int(where["col"])
        for key, array in arrays.items():
            arrays[key] = (
                array[:, col : col + 1]
                if key == "b"
                else (array[col : col + 1] if key.startswith("columns.") else array[row : row + 1])
            )
        found = {name: values[row : row + 1, col : col + 1] for name, values in found.items()}
        where |= {"row": 0, "col": 0}
    plain = datapath.model_dump(mode="json", by_alias=True, exclude_none=True)
    return Reproducer("product", name, where, plain, arrays, found, versions())


def versions() -> dict[str, str]:
    """Return the versions that a report of a fault should name."""
    import platform

    import torch

    from fqtsim import __version__

    return {"fqtsim": __version__, "torch": str(torch.__version__), "machine": platform.machine()}


def read(path: Path) -> Reproducer:
    """Return what a file holds. Raises InputError for any other content."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; {_REMEDY}")
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path}: has {path.stat().st_size} bytes: must be at most 1 GiB; {_REMEDY}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a readable .safetensors ({error}); {_REMEDY}") from None
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: format = {metadata.get('format')}: must be {FORMAT}; {_REMEDY}")
    try:
        found = _parsed(json.loads(metadata["reproducer"]), arrays)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its description is damaged ({error}); {_REMEDY}") from None
    return found


def _parsed(plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> Reproducer:
    sides: dict[str, dict[str, Array]] = {"operand": {}, "result": {}}
    for key, array in arrays.items():
        side, _, name = key.partition(".")
        sides[side][name] = array
    if plain["kind"] not in KINDS:
        raise ValueError(f"kind = {plain['kind']}")
    found = Reproducer(
        plain["kind"], str(plain["name"]), dict(plain["place"]), dict(plain["parameters"]), sides["operand"],
        sides["result"], {str(key): str(value) for key, value in plain["notes"].items()},
    )  # fmt: skip
    if found.kind != "primitive":
        _check_gemm(found)
    if found.kind == "product":
        _check_product(found)
    return found


def _check_gemm(found: Reproducer) -> None:
    a, b = found.operands["a"], found.operands["b"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or a.dtype.kind not in "iu" or b.dtype.kind not in "iu":
        raise ValueError(f"operands {a.dtype}{a.shape} and {b.dtype}{b.shape}")
    shape = (a.shape[0], b.shape[1])
    if any(codes.shape != shape for codes in found.results.values()) or not found.results:
        raise ValueError(f"results are not {shape}")
    for key, size in (("row", shape[0]), ("col", shape[1])):
        if not (type(found.place[key]) is int and 0 <= found.place[key] < size):
            raise ValueError(f"{key} = {found.place[key]} of {size}")
    _ = found.datapath


def _check_product(found: Reproducer) -> None:
    shape = dict(zip(("rows", "columns"), next(iter(found.results.values())).shape, strict=True))
    if any(values.dtype != np.float32 for values in found.results.values()):
        raise ValueError("results are not float32")
    for side, count in shape.items():
        for name, kind in zip(SIDES, (np.float32, np.int64, np.float32), strict=True):
            values = found.operands.get(f"{side}.{name}")
            if values is None and name == "offset":
                continue
            if values is None or values.shape != (count,) or values.dtype != kind:
                raise ValueError(f"{side}.{name} is not {count} numbers of {np.dtype(kind)}")
    met = found.operands.get("met")
    if met is not None and (met.dtype != np.bool_ or met.shape != found.operands["a"].shape):
        raise ValueError("met is not one truth value for each code of a")
