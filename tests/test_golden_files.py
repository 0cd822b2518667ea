"""Golden sets in files: held whole, small, the same for the same seed; other languages read them too."""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_sets import DROPPING, by_name, everything, golden

import fqtsim
from fqtsim.errors import InputError
from fqtsim.golden.files import load, save
from fqtsim.golden.inputs import Draw
from fqtsim.golden.make import hardware_sha256, make_golden
from fqtsim.golden.readmem import step_registers

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_hold_the_whole_set_and_equal_sets_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    made = everything()
    first, second = save(made, tmp_path / f"1{suffix}"), save(made, tmp_path / f"2{suffix}")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"1{suffix}", f"2{suffix}"]
    again = load(first)
    assert hardware_sha256(again.hardware) == again.hardware_sha256 == made.hardware_sha256
    assert (again.seed, again.version, again.schema) == (made.seed, made.version, made.schema)
    for before, after in zip(made.cases, again.cases, strict=True):
        assert (before.name, before.kind, before.parameters) == (after.name, after.kind, after.parameters)
        assert (before.events, before.coverage) == (after.events, after.coverage)
        for group in ("inputs", "expected", "trace"):
            ours, theirs = getattr(before, group), getattr(after, group)
            assert set(ours) == set(theirs), (before.name, group)
            for key in ours:
                assert ours[key].dtype == theirs[key].dtype
                assert ours[key].shape == theirs[key].shape
                assert np.array_equal(ours[key], theirs[key])
    assert save(again, tmp_path / f"3{suffix}").read_bytes() == first.read_bytes()
    assert any(case.trace for case in again.cases)


def test_a_set_depends_on_hardware_and_seed_alone() -> None:
    first, again = golden("int8_acc12_saturate"), make_golden("int8_acc12_saturate", large=False)
    other = make_golden("int8_acc12_saturate", seed=1, large=False)
    a, b, c = (by_name(made)["random_full"] for made in (first, again, other))
    assert np.array_equal(a.inputs["a"], b.inputs["a"])
    assert not np.array_equal(a.inputs["a"], c.inputs["a"])
    assert first.hardware_sha256 == other.hardware_sha256 != golden("int8_acc24_saturate").hardware_sha256


def test_random_integers_are_pinned() -> None:
    """The generator's version promises them; Philox of (0, crc32 of the name, number of the call)."""
    draw = Draw(0, "random_full")
    words = fqtsim.random_bits(0, zlib.crc32(b"random_full"), 1, 4, 32)
    found = draw.integers(-128, 127, (4,), "int8")
    assert found.tolist() == [int(word) * 256 // (1 << 32) - 128 for word in words]
    wide = Draw(1, "x").integers(-(1 << 61), 1 << 61, (1000,))
    assert wide.min() < -(1 << 59)
    assert wide.max() > 1 << 59


def test_the_default_set_is_small_and_holds_large_cases_as_seed_and_digest(tmp_path: Path) -> None:
    made = golden("int8_acc32_wrap")
    path = save(made, tmp_path / "set.safetensors")
    assert path.stat().st_size < 10_000_000
    again = load(path)
    large = by_name(again)["large_4096x4096x4096"]
    assert large.seeded is not None
    assert large.seeded["inputs"]["a"]["shape"] == [4096, 4096]
    a, b = (large.inputs[name].astype(np.int64) for name in ("a", "b"))
    assert np.array_equal(a[[0, 4095]] @ b, large.expected["codes"][[0, 4095]])
    long = by_name(again)["k_131072_rails"]
    assert long.is_large
    before = by_name(made)["k_131072_rails"]
    assert np.array_equal(long.inputs["a"], before.inputs["a"])
    assert long.expected["codes"].tolist() == before.expected["codes"].tolist()


def test_a_seeded_case_that_was_changed_or_has_another_version_is_refused(tmp_path: Path) -> None:
    made = golden("int8_acc32_wrap")
    case = by_name(made)["k_131072"]
    assert case.seeded is not None
    wrong = {
        **case.seeded,
        "inputs": {**case.seeded["inputs"], "a": {**case.seeded["inputs"]["a"], "sha256": "0" * 64}},
    }
    path = save(replace(made, cases=(*made.cases[:3], replace(case, seeded=wrong))), tmp_path / "set.npz")
    with pytest.raises(InputError, match="seed does not give the arrays"):
        load(path).cases[-1].inputs["a"]
    save(replace(made, version="0", cases=(*made.cases[:3], case)), path)
    with pytest.raises(InputError, match="generator version 0"):
        load(path).cases[-1].expected["codes"]
    assert load(path).cases[0].inputs["a"].size  # what the file holds can still be used


# Other languages.


def words(path: Path) -> list[int]:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("// ")
    bits = int(lines[0].split(" words of ")[1].split()[0])
    return [int(word, 16) - (1 << bits) * (int(word, 16) >> (bits - 1)) for word in lines[1:]]


def test_readmemh_folders_hold_operands_codes_and_every_register(tmp_path: Path) -> None:
    made = golden("dropping")
    folder = save(made, tmp_path / "rtl", "readmemh")
    index = json.loads((folder / "index.json").read_text())
    assert index["hardware_sha256"] == made.hardware_sha256
    assert len(index["cases"]) > 35
    assert len(index["cases"]) + len(index["left_out"]) == len(made.cases)
    assert index["left_out"]["start_empty_k"].startswith("K = 0")
    cases = by_name(made)
    for name in ("k_65", "start_ends", "level0_ties"):
        case = cases[name]
        assert words(folder / name / "a.hex") == case.inputs["a"].ravel().tolist()
        assert words(folder / name / "b.hex") == case.inputs["b"].ravel().tolist()
        assert words(folder / name / "expected.hex") == case.expected["codes"].ravel().tolist()
        assert (
            words(folder / name / "c.hex")
            == case.inputs.get("c", np.zeros(case.expected["codes"].shape, int)).ravel().tolist()
        )
        assert f"`define GOLDEN_K {case.inputs['a'].shape[1]}\n" in (folder / name / "params.vh").read_text()
    last = np.array(words(folder / "k_65" / "level1.hex")).reshape(5, 3, -1)
    assert np.array_equal(last[:, :, -1], cases["k_65"].expected["codes"])
    with pytest.raises(InputError, match="already exists"):
        save(made, folder, "readmemh")


def test_registers_after_each_step() -> None:
    """By hand: 100 * 100 dropped by 3 is 1250, in lane 0; -4 / 8 is a tie and goes to even, 0."""
    a, b = np.array([[100, 1, 3]]), np.array([[100], [-4], [12]])
    first, second = step_registers(a, b, np.array([[7]]), DROPPING.datapath)
    assert first.ravel().tolist() == [1250, 0, 4]
    # Lanes 1250, 0, 4, 0, each / 4, ties away: 313 (312.5), 0, 1, 0, on a start of 7.
    assert second.ravel().tolist() == [320, 320, 321, 321]


C_PROGRAM = """
#include "golden.h"
#include <stdio.h>
int main(void) {
    size_t wrong = 0, outputs = 0;
    for (size_t t = 0; t < golden_gemm_count; t++) {
        const golden_gemm_t *g = &golden_gemms[t];
        for (int i = 0; i < g->m; i++)
            for (int j = 0; j < g->n; j++, outputs++) {
                long acc = g->c ? (long)g->c[i * g->n + j] : 0;
                for (int k = 0; k < g->k; k++) {
                    acc += (long)g->a[i * g->k + k] * g->b[k * g->n + j];
                    acc = acc > HIGH ? HIGH : acc < -2048 ? -2048 : acc;
                }
                wrong += acc != g->expected[i * g->n + j];
            }
    }
    printf("%zu %zu\\n", outputs, wrong);
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler called cc")
def test_the_c_header_compiles_and_judges_a_c_kernel(tmp_path: Path) -> None:
    save(golden("int8_acc12_saturate"), tmp_path / "golden.h")
    (tmp_path / "main.c").write_text(C_PROGRAM)
    found = {}
    for high in (2047, 2048):
        build = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", f"-DHIGH={high}", "main.c", "-o", "main"]
        subprocess.run(build, cwd=tmp_path, check=True)
        done = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
        found[high] = [int(word) for word in done.stdout.split()]
    assert found[2047][0] > 10_000
    assert found[2047][1] == 0
    assert found[2048][1] > 100
