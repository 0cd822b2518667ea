"""The results file: no full disk, foreign file or second writer loses a finished run."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_sweep import row

from fqtsim.errors import InputError
from fqtsim.evaluate import store
from fqtsim.evaluate.store import Store


def test_rows_come_back_and_a_finished_one_stands(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with Store.create(path) as results:
        assert results.add(row("a", "diverged"))
        assert not results.add(row("a", "done"))
        assert results.add(row("b", "failed"))
        assert results.add(row("b", "failed", 2.0))
        assert results.add(row("b", "done"))
        assert not results.add(row("b", "failed"))
        results.write_plan({"keys": ["a"]})
        results.write_plan({"keys": ["b", "a"]})
    with Store.create(path) as results:
        assert results.status() == {"a": "diverged", "b": "done"}
    with Store.read(path) as results:
        assert results.rows() == {"a": row("a", "diverged"), "b": row("b")}
        assert results.plan() == {"keys": ["b", "a"]}
        with pytest.raises(InputError, match="attempt to write a readonly database"):
            results.add(row("c"))


def refuse(path: Path, opened: Callable[[Path], Store] = Store.create) -> str:
    with pytest.raises(InputError) as error:
        opened(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    text, other, newer = tmp_path / "text", tmp_path / "other", tmp_path / "newer"
    text.write_text("no database, but long enough to be looked at " * 50)
    for opened in (Store.create, Store.read):
        assert refuse(text, opened) == "is not a file of results; move it away, or name another folder"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE rows (key, row)")
    connection.close()
    assert refuse(other) == "is not a file of results; move it away, or name another folder"
    Store.create(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    assert refuse(newer).startswith("holds results in version 2 of their format, this fqtsim writes version 1; ")
    assert "no such file" in refuse(tmp_path / "none", Store.read)
    assert not (tmp_path / "none").exists()
    assert "cannot be written (unable to open database file)" in refuse(tmp_path / "no folder" / "r")
    (tmp_path / "empty").touch()
    Store.create(tmp_path / "empty").close()
    assert "is not a file of results" in refuse(tmp_path / "text", Store.read)


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with Store.create(path) as results:
        results.add(row("a"))
    content = bytearray(path.read_bytes())
    content[18] = 3  # SQLite's file format: written by a version that this one may only read
    path.write_bytes(content)
    assert refuse(path) == (
        "cannot be written (attempt to write a readonly database); allow writing, or name another folder"
    )
    with Store.read(path) as results:
        assert results.rows() == {"a": row("a")}


def test_a_file_in_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0.1)
    path = tmp_path / "r.sqlite"
    Store.create(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert refuse(path).startswith("cannot be written (database is locked); another process uses it: wait")
    other.close()


#: Fill a results file under a limit on file sizes, as a quota sets it, and print what the error says.
FILL = """
import resource, signal, sys
from pathlib import Path
from fqtsim.errors import InputError
from fqtsim.evaluate.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
with Store.create(Path(sys.argv[1])) as results:
    for number in range(100):
        try:
            results.add({"key": str(number), "status": "done", "text": "x" * 5000})
        except InputError as error:
            print(number, error)
            break
"""


def test_a_full_disk_leaves_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    number, _, message = done.stdout.strip().partition(" ")
    assert message.startswith(f"{path}: cannot be written (disk I/O error); make room")
    with Store.create(path) as results:
        assert list(results.rows()) == [str(i) for i in range(int(number))]
        results._connection.execute(
            f"PRAGMA max_page_count = {results._connection.execute('PRAGMA page_count').fetchone()[0]}"
        )
        with pytest.raises(InputError, match=r"cannot be written \(database or disk is full\); make room and give the"):
            results.add(row("more") | {"text": "x" * 9000})
        assert len(results.rows()) == int(number) > 3
