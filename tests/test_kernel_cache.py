"""Kernels on disk: found again, never stale, never damaged, and out of the way where they cannot be kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fqtsim.kernels import cache
from fqtsim.kernels import tile as tiles
from fqtsim.kernels.jit import kernel, kernel_of, made_once

#: Codes by a kernel that has a callee in another file, and how many functions were compiled for it.
SCRIPT = """
import numpy as np
from numba.core import event
compiled = []
class Listener(event.Listener):
    def on_start(self, _event): pass
    def on_end(self, found): compiled.append(found.data["dispatcher"].py_func.__name__)
event.register("numba:compile", Listener())
from fqtsim.kernels.gemm import int_rows_to_codes
codes = np.zeros((2, 3), np.int32)
int_rows_to_codes(np.arange(6, dtype=np.int32).reshape(2, 3) - 3, 0, 1, codes, 0, 2)
print(codes.reshape(-1).tolist(), len(compiled) > 0)
"""
HALVED = [-2, -1, -1, 0, 0, 1]
#: An edit of the callee, which then shifts zeros in, and the codes after it.
EDIT = ("builder.ashr if", "builder.lshr if")
EDITED = [2147483646, 2147483647, 2147483647, 0, 0, 1]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that may be edited."""
    shutil.copytree(cache.PACKAGE, tmp_path / "fqtsim", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(package: Path, script: str = SCRIPT, where: str | None = None) -> tuple[list[int], bool]:
    """Return the codes, and whether anything was compiled."""
    chosen = where or str(package / "kernels")
    environment = os.environ | {"PYTHONPATH": str(package), "FQTSIM_KERNEL_CACHE": chosen}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=package, capture_output=True, text=True, check=True
    )
    codes, compiled = done.stdout.rsplit(" ", 1)
    return eval(codes), eval(compiled)


def test_another_process_compiles_nothing(package: Path) -> None:
    assert run(package) == (HALVED, True)
    assert run(package) == (HALVED, False)
    assert not list((package / "kernels").rglob("*.partial"))


def test_an_edit_in_a_callee_of_another_file_is_seen(package: Path) -> None:
    run(package)
    source = package / "fqtsim" / "kernels" / "shift.py"
    text, before = source.read_text(encoding="utf-8"), source.stat()
    edited = text.replace(*EDIT)
    assert edited != text
    source.write_text(edited, encoding="utf-8")
    assert run(package) == (EDITED, True)
    # Python would take the bytecode of the edit for current, were the second of the change and the size the same.
    source.write_text(text, encoding="utf-8")
    os.utime(source, (time.time() + 10, time.time() + 10))
    assert run(package) == (HALVED, True)  # the time of its change is another
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(package) == (HALVED, False)


def test_an_edit_while_a_process_runs_keeps_it_from_the_cache(package: Path) -> None:
    """It runs the sources of before: what it compiles must not stand for those of now, nor the other way round."""
    source = package / "fqtsim" / "kernels" / "shift.py"
    edit = f"""
import time, pathlib, fqtsim
time.sleep(0.05)
source = pathlib.Path({str(source)!r})
import fqtsim.kernels.shift
source.write_text(source.read_text().replace(*{EDIT}))
"""
    assert run(package, edit + SCRIPT) == (HALVED, True)
    assert run(package) == (EDITED, True)
    assert run(package) == (EDITED, False)


def test_a_source_replaced_by_an_older_file_while_a_process_runs(package: Path) -> None:
    source, older = package / "fqtsim" / "kernels" / "shift.py", package / "older.py"
    older.write_text(source.read_text(encoding="utf-8").replace(*EDIT), encoding="utf-8")
    os.utime(older, (1e9, 1e9))
    replace = f"""
import os, fqtsim
import fqtsim.kernels.shift
os.replace({str(older)!r}, {str(source)!r})
"""
    assert run(package, replace + SCRIPT) == (HALVED, True)
    assert run(package) == (EDITED, True)


#: Two walks made by one function, whose machine code differs though their names in the sources do not.
TWO = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from mac import chain, datapath
from fqtsim.backends import chains, exact
from fqtsim.backends.stepwise import prepare
chains.SMALLEST_WALK = 0
random = np.random.RandomState(1)
a, b = random.randint(-128, 128, (5, 90)).astype(np.int8), random.randint(-128, 128, (90, 7)).astype(np.int8)
paths = [datapath(*chain(words)) for words in ("terms 4 exact, int14 saturate", "terms 3 int12 saturate, int13 wrap")]
wrong = 0
for path in paths[:: int(sys.argv[2])] * 2:
    lowered = prepare(a, b, path, None)
    expected = exact.run_chain(a, b, None, lowered.table, 64)
    wrong += not np.array_equal(chains.stepwise_codes(a, b, lowered, None), expected)
print(wrong)
"""


@pytest.mark.skipif(not tiles.HAS_MULTIPLY_ADD, reason="this CPU has no product of 16-bit pairs")
def test_two_forms_of_one_function_from_disk_in_one_process(package: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(package), "FQTSIM_KERNEL_CACHE": str(package / "kernels")}
    for order in ("1", "-1", "1"):
        command = [sys.executable, "-c", TWO, str(Path(__file__).parent), order]
        done = subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "0"


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another's"])
def test_a_damaged_file_is_compiled_again(package: Path, damage: str) -> None:
    run(package)
    files = sorted((package / "kernels").rglob("*.kernel"))
    contents = [file.read_bytes() for file in files]
    for file, content, other in zip(files, contents, contents[1:] + contents[:1], strict=True):
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        wrong = {"flipped": flipped, "cut": content[:middle], "empty": b"", "another's": other}[damage]
        file.write_bytes(wrong)
    if damage == "another's" and len(files) == 1:
        files[0].rename(files[0].with_name("0" * 64 + ".kernel"))
    assert run(package) == (HALVED, True)
    assert run(package) == (HALVED, False)


def test_without_a_folder(package: Path) -> None:
    assert run(package, where="off") == (HALVED, True)
    (package / "file").write_text("", encoding="utf-8")
    assert run(package, where=str(package / "file")) == (HALVED, True)
    assert not (package / "kernels").exists()


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.Path, "home", nowhere)
    assert cache.folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "there")
    assert cache.folder() == Path("there/fqtsim/kernels")


def test_old_kernels_of_other_sources_are_removed(tmp_path: Path) -> None:
    old, young, mixed = (tmp_path / (cache.PREFIX + letter * 32) for letter in "abd")
    foreign = tmp_path / ("a" * 32)
    for folder in (old, young, mixed, foreign):
        folder.mkdir()
        (folder / "x.kernel").write_bytes(b"x")
    (mixed / "mine.txt").write_text("not a kernel", encoding="utf-8")
    for folder in (old, mixed, foreign):
        os.utime(folder, (0, 0))
    cache._make(tmp_path / f"{cache.PREFIX}{'c' * 32}")
    assert {path.name[-32:] for path in tmp_path.iterdir()} == {letter * 32 for letter in "abcd"}
    assert not old.exists()


def test_threads_that_ask_at_once_get_the_same() -> None:
    made = []

    @made_once
    def slow(number: int) -> object:
        time.sleep(0.05)
        made.append(number)
        return object()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(slow, [1] * 8))
    assert made == [1]
    assert len(set(map(id, found))) == 1


def test_no_two_kernels_share_a_name() -> None:
    def made(form: str, number: int) -> None:
        @kernel_of(form)
        def plus(x: int) -> int:
            return x + number

    made("plus 1", 1)
    with pytest.raises(ValueError, match="two kernels of one name"):
        made("plus 1", 2)
    number = 3

    def plus_three(x: int) -> int:
        return x + number

    with pytest.raises(TypeError, match="depends on where it was made"):
        kernel(plus_three)
