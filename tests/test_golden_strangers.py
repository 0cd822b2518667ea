"""Golden sets from strangers: damage, pickles and claims of size do no harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_sets import golden

from fqtsim.errors import InputError
from fqtsim.golden.case import SCHEMA
from fqtsim.golden.files import load, save

Array = np.ndarray[Any, Any]


@pytest.fixture
def small(tmp_path: Path) -> Callable[[str], Path]:
    made = golden("int8_acc12_saturate")
    few = replace(made, cases=tuple(case for case in made.cases if case.name in ("k_3", "rails", "start_ends")))
    return lambda suffix: save(few, tmp_path / f"set{suffix}")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_damage_is_an_input_error(small: Callable[[str], Path], suffix: str) -> None:
    path = small(suffix)
    raw = path.read_bytes()
    positions = np.linspace(0, len(raw) - 1, 150).astype(int)
    refused = 0
    for position in positions:
        for content in (raw[:position], raw[:position] + bytes([raw[position] ^ 0x41]) + raw[position + 1 :]):
            path.write_bytes(content)
            try:
                load(path)
            except InputError:
                refused += 1
    # A flipped byte among a zip's own dates and flags changes nothing that is read.
    assert refused >= (300 if suffix == ".safetensors" else 250)


def npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: Array | None, header: dict[str, Any] | None = None) -> bytes:
    stream = io.BytesIO()
    if header is None:
        np.lib.format.write_array(stream, array, allow_pickle=True)
    else:
        np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pickle_ran",)


def test_no_pickle_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = npz(tmp_path / "set.npz", {"fqtsim_golden.npy": npy(np.array([Bomb()], object))})
    with pytest.raises(InputError, match="does not fit"):
        load(path)
    Path("raw.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError):
        load("raw.npz")
    assert not Path("pickle_ran").exists()


def test_a_header_that_claims_much_allocates_nothing(tmp_path: Path) -> None:
    claim = npy(None, {"descr": "<i8", "fortran_order": False, "shape": (1 << 40, 1 << 10)})
    with pytest.raises(InputError, match="does not fit its 0 bytes"):
        load(npz(tmp_path / "set.npz", {"fqtsim_golden.npy": claim}))


def test_an_archive_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path / "bomb.npz", {f"{number}.npy": bytes(64 << 20) for number in range(5)})
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match="unpack to more than"):
        load(path)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    with path.open("wb") as stream:
        stream.truncate(300 << 20)  # sparse: no byte is written
    with pytest.raises(InputError, match="must be at most"):
        load(path)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"schema": 99}, "schema = 99"),
        ({"schema": 1}, "schema = 1"),
        ({"schema": SCHEMA, "content_sha256": "00"}, "content_sha256"),
        ([1], "schema = None"),
        ({"schema": SCHEMA}, "not a readable golden set"),
    ],
)
def test_another_description_is_refused(tmp_path: Path, content: Any, rule: str) -> None:
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    with pytest.raises(InputError, match=rule):
        load(npz(tmp_path / "set.npz", {"fqtsim_golden.npy": npy(text)}))


def test_other_files_are_no_sets(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3)}, tmp_path / "weights.safetensors")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    for name in ("weights.safetensors", "arrays.npz", "long.safetensors"):
        with pytest.raises(InputError, match=name):
            load(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "missing.npz")
    with pytest.raises(InputError, match="is not a file"):
        load(tmp_path)


def test_a_changed_hardware_is_noticed(small: Callable[[str], Path]) -> None:
    path = small(".safetensors")
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = raw[8 : 8 + length].replace(b"int12", b"int13")
    assert header != raw[8 : 8 + length]
    path.write_bytes(raw[:8] + header + raw[8 + length :])
    with pytest.raises(InputError, match="content_sha256"):
        load(path)
