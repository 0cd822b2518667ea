"""Golden sets in files: safetensors or npz, with everything that is not an array as one JSON text beside them.

A file may come from a stranger: no pickle is ever read, sizes are bounded before anything is allocated, schema, hashes
and shapes are checked, and what does not fit is an InputError. The JSON holds schema, generator version, seed, the
hardware as YAML with its SHA-256, the SHA-256 of all arrays and cases, and the cases.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fqtsim.errors import InputError
from fqtsim.golden.case import KINDS, SCHEMA, Array, Case, GoldenSet, description_of
from fqtsim.golden.make import deferred, hardware_sha256
from fqtsim.hw.load import dump_hardware, parse_hardware
from fqtsim.train import rundir
from fqtsim.words import GEMMS

MAX_FILE_BYTES = 256 << 20
"""Largest file, and most bytes of all its arrays together."""
MAX_TEXT_BYTES = 16 << 20
"""Longest JSON text."""
MAX_CASES = 10_000
KEY = "fqtsim_golden"
FORMATS = ("safetensors", "npz", "readmemh", "c")
_GROUPS = ("inputs", "expected", "trace")
_DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
_AGAIN = "make it again with `fqtsim golden make`"
#: What zipfile, zlib, NumPy and JSON raise for bytes that are no file of ours; a header may claim any shape.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, ValueError, EOFError, MemoryError, NotImplementedError,
    RuntimeError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError,
)  # fmt: skip


def format_of(path: Path, given: str | None = None) -> str:
    """Return the format of a file to write: the one given, else what its name ends in. Raises InputError."""
    if given is not None and given not in FORMATS:
        raise InputError(f"format = {given!r}: must be one of {', '.join(FORMATS)}")
    by_name = {".safetensors": "safetensors", ".npz": "npz", ".h": "c"}.get(path.suffix)
    if given is None and by_name is None:
        raise InputError(f"{path}: its name tells no format; end it in .safetensors, .npz or .h, or give --format")
    return given or str(by_name)


def save(golden: GoldenSet, path: str | os.PathLike[str], format: str | None = None) -> Path:
    """Write a set, whole or not at all: to a temporary name, then in place. Returns the path.

    format: safetensors, npz, readmemh (a folder) or c (a header); by default as the name ends. Equal sets give equal
    bytes. Raises InputError for an unknown format, and for a folder that exists.
    """
    path = Path(path)
    kind = format_of(path, format)
    if kind == "readmemh":
        from fqtsim.golden.readmem import write_folder

        write_folder(golden, path)
        return path
    if kind == "c":
        from fqtsim.golden.cheader import header_text

        content = header_text(golden).encode()
    else:
        text, arrays = _as_arrays(golden)
        content = _safetensors_bytes(text, arrays) if kind == "safetensors" else _npz_bytes(text, arrays)
    replace_file(path, content)
    return path


def replace_file(path: Path, content: bytes) -> None:
    """Put a file in place in one move. Raises InputError where its folder cannot be written."""
    try:
        rundir.replace_file(path, lambda partial: _write(partial, content))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); check the folder and its permissions"
        ) from None


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _as_arrays(golden: GoldenSet) -> tuple[str, dict[str, Array]]:
    """Return the JSON text and all arrays by name, "0007/inputs/a"."""
    arrays: dict[str, Array] = {}
    cases = []
    for number, case in enumerate(golden.cases):
        held = _GROUPS if case.seeded is None else ("trace",)
        for group in held:
            for name, array in getattr(case, group).items():
                arrays[f"{number:04d}/{group}/{name}"] = np.asarray(array, order="C")
        cases.append({
            "name": case.name, "kind": case.kind, "parameters": dict(case.parameters), "events": dict(case.events),
            "coverage": dict(case.coverage), "seeded": case.seeded,
        })  # fmt: skip
    content: dict[str, Any] = {
        "schema": golden.schema, "version": golden.version, "seed": golden.seed,
        "hardware": dump_hardware(golden.hardware), "hardware_sha256": golden.hardware_sha256, "cases": cases,
    }  # fmt: skip
    content["content_sha256"] = _content_sha256(content, arrays)
    return json.dumps(content), arrays


def _content_sha256(content: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """Return the SHA-256 over every array and all that the JSON says beside it."""
    plain = {key: value for key, value in content.items() if key != "content_sha256"}
    lines = [json.dumps(plain, sort_keys=True)]
    lines += [f"{name} {json.dumps(description_of(arrays[name]), sort_keys=True)}" for name in sorted(arrays)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _safetensors_bytes(text: str, arrays: Mapping[str, Array]) -> bytes:
    from safetensors.numpy import save as to_bytes

    return bytes(to_bytes(dict(arrays), metadata={KEY: text}))


def _npz_bytes(text: str, arrays: Mapping[str, Array]) -> bytes:
    stream = io.BytesIO()
    stored = {KEY: np.frombuffer(text.encode(), np.uint8), **arrays}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in stored.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            # A ZipInfo of its own: its date is fixed, so that equal sets give equal bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def load(path: str | os.PathLike[str]) -> GoldenSet:
    """Return the set in a safetensors or npz file. Raises InputError for any other content.

    Sizes: at most 256 MiB of file and of arrays, 16 MiB of JSON, 10,000 cases. Arrays of seeded cases are made, and
    checked against their digests, when they are first used.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise InputError(f"{path}: is not a file; give a .safetensors or .npz file of `fqtsim golden make`")
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path}: has {size} bytes: must be at most {MAX_FILE_BYTES}; make a smaller set")
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    read: Callable[[bytes], tuple[str, dict[str, Array]]] = _read_npz if raw[:2] == b"PK" else _read_safetensors
    try:
        text, arrays = read(raw)
        return _as_set(str(path), text, arrays)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(f"{path}:") else f"{path}: {message}") from None
    except _DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise InputError(f"{path}: not a readable golden set ({reason}); {_AGAIN}") from None


def _read_safetensors(raw: bytes) -> tuple[str, dict[str, Array]]:
    """Return text and arrays. The header's claims are checked by the library against the bytes that are there."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    if len(raw) < 8 or (length := struct.unpack("<Q", raw[:8])[0]) > min(len(raw) - 8, 2 * MAX_TEXT_BYTES):
        raise InputError(f"not a safetensors file, nor an npz one; {_AGAIN}")
    header = json.loads(raw[8 : 8 + length])
    text = header.get("__metadata__", {}).get(KEY)
    if not isinstance(text, str):
        raise InputError(f"a safetensors file, but no golden set; {_AGAIN}")
    try:
        return text, from_bytes(raw)
    except SafetensorError as error:
        raise InputError(f"damaged safetensors file ({error}); {_AGAIN}") from None


def _read_npz(raw: bytes) -> tuple[str, dict[str, Array]]:
    """Return text and arrays. Each header must claim exactly the bytes that its member holds, before any is read."""
    arrays: dict[str, Array] = {}
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > MAX_FILE_BYTES:
            raise InputError(f"its arrays unpack to more than {MAX_FILE_BYTES} bytes; make a smaller set")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise InputError(f"array {name[:80]!r} is there twice; {_AGAIN}")
            with archive.open(member) as stream:
                arrays[name] = _checked_array(io.BytesIO(stream.read(MAX_FILE_BYTES)))
    if KEY not in arrays or arrays[KEY].dtype != np.uint8:
        raise InputError(f"an npz file, but no golden set; {_AGAIN}")
    return arrays.pop(KEY).tobytes().decode(), arrays


def _checked_array(stream: io.BytesIO) -> Array:
    """Return the array of an .npy member whose header tells no lie about its size."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        raise InputError(f"an array has .npy version {version}, not (1, 0); {_AGAIN}")
    payload = stream.read()
    count = 1
    for side in shape:
        count *= side
    if dtype.hasobject or dtype.name not in _DTYPES or fortran or count * dtype.itemsize != len(payload):
        raise InputError(f"an array of {dtype} and shape {shape} does not fit its {len(payload)} bytes; {_AGAIN}")
    return np.frombuffer(payload, dtype).reshape(shape).copy()


def _as_set(path: str, text: str, arrays: dict[str, Array]) -> GoldenSet:
    if len(text) > MAX_TEXT_BYTES:
        raise InputError(f"its description has more than {MAX_TEXT_BYTES} bytes; make a smaller set")
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise InputError(f"schema = {found!r}: this fqtsim reads schema {SCHEMA}; {_AGAIN}")
    if _content_sha256(content, arrays) != content["content_sha256"]:
        raise InputError(f"content_sha256: does not fit the content, so the file was changed or damaged; {_AGAIN}")
    hardware = parse_hardware(str(content["hardware"]), f"{path}, hardware")
    if hardware_sha256(hardware) != content["hardware_sha256"]:
        raise InputError(f"hardware_sha256: does not fit the hardware in the file; {_AGAIN}")
    seed, version, cases = content["seed"], content["version"], content["cases"]
    if type(seed) is not int or not 0 <= seed < 1 << 64 or not isinstance(version, str) or not isinstance(cases, list):
        raise InputError(f"seed, version or cases: are not what `fqtsim golden make` writes; {_AGAIN}")
    if len(cases) > MAX_CASES:
        raise InputError(f"has {len(cases)} cases: must be at most {MAX_CASES}; make a smaller set")
    grouped: dict[str, dict[str, dict[str, Array]]] = {}
    for name, array in arrays.items():
        number, group, key = name.split("/", 2)
        grouped.setdefault(number, {}).setdefault(group, {})[key] = array

    def seeded(case: Mapping[str, Any]) -> Any:
        return deferred(hardware, case["parameters"]["gemm"], seed, version, _checked_seeded(case))

    found = tuple(_as_case(case, grouped.get(f"{number:04d}", {}), seeded) for number, case in enumerate(cases))
    if len({case.name for case in found}) != len(found):
        raise InputError(f"cases: two have one name; {_AGAIN}")
    return GoldenSet(hardware, content["hardware_sha256"], seed, version, SCHEMA, found)


def _as_case(case: Mapping[str, Any], arrays: Mapping[str, Any], seeded: Callable[[Mapping[str, Any]], Any]) -> Case:
    """Return one case. Raises InputError where a part of it is missing or of another type."""
    name, kind = case["name"], case["kind"]
    counts = [*case["events"].items(), *case["coverage"].items()]
    if not isinstance(name, str) or kind not in KINDS or not all(type(count) is int for _, count in counts):
        raise InputError(f"case {str(name)[:80]!r}: is not what `fqtsim golden make` writes; {_AGAIN}")
    if kind == "gemm" and case["parameters"].get("gemm") not in GEMMS:
        raise InputError(f"case {name[:80]!r}: parameters name none of {', '.join(GEMMS)}; {_AGAIN}")
    if case["seeded"] is not None:
        inputs, expected = seeded(case)
    else:
        inputs, expected = arrays.get("inputs", {}), arrays.get("expected", {})
        _check_shapes(name, kind, inputs, expected)
    return Case(name, kind, case["parameters"], inputs, expected, case["events"], case["coverage"],
                arrays.get("trace", {}), case["seeded"])  # fmt: skip


def _check_shapes(name: str, kind: str, inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    wrong = not inputs or not expected
    if kind == "gemm" and not wrong:
        a, b, codes = inputs["a"], inputs["b"], expected["codes"]
        wrong = a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or codes.shape != (a.shape[0], b.shape[1])
        wrong = wrong or ("c" in inputs and inputs["c"].shape != codes.shape)
    if wrong:
        raise InputError(f"case {name[:80]!r}: its arrays are missing or do not fit each other; {_AGAIN}")


def _checked_seeded(case: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what regenerates a case. Raises InputError unless it is a GEMM and each array is described."""
    seeded = case["seeded"]
    if case["kind"] != "gemm" or not isinstance(seeded["builder"], str):
        raise InputError(f"case {case['name'][:80]!r}: only a GEMM has a seed in place of arrays; {_AGAIN}")
    for group in ("inputs", "expected"):
        for array in seeded[group].values():
            sides = array["shape"]
            if array["dtype"] not in _DTYPES or len(array["sha256"]) != 64 or not all(type(s) is int for s in sides):
                raise InputError(f"case {case['name'][:80]!r}: a seeded array is described badly; {_AGAIN}")
    return dict(seeded)
