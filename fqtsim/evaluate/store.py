"""The rows of a sweep in one SQLite file, each written in a transaction of its own; a kill loses no finished run."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from fqtsim.errors import InputError

#: "fqts": what SQLite's header says that the file is.
APPLICATION = 0x66717473
SCHEMA = 1
#: Seconds to wait for another process that writes.
PATIENCE = 10.0
_TABLES = (
    "CREATE TABLE plan (one INTEGER PRIMARY KEY CHECK (one = 1), plan TEXT NOT NULL)",
    "CREATE TABLE rows (key TEXT PRIMARY KEY, status TEXT NOT NULL, row TEXT NOT NULL)",
)


class Store:
    """One results file: the plan last run and every row so far. Use it in a `with` statement."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._connection = path, connection

    @classmethod
    def create(cls, path: Path) -> Store:
        """Open `path` for writing, made where it is missing.

        Raises InputError where it cannot be written or is not a results file of this version.
        """
        store = cls._open(path, "rwc", "written")
        try:
            with store._named("written"):
                store._begin()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def read(cls, path: Path) -> Store:
        """Open `path` for reading. Raises InputError where it is missing or not a results file of this version."""
        if not path.is_file():
            raise InputError(f"{path}: no such file; name a folder that `fqtsim sweep --out` wrote")
        store = cls._open(path, "ro", "read")
        try:
            with store._named("read"):
                store._check()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def _open(cls, path: Path, mode: str, verb: str) -> Store:
        try:
            # Autocommit: a transaction is where BEGIN says so, and each other statement is one.
            connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=PATIENCE, isolation_level=None
            )
        except sqlite3.Error as error:
            raise _refusal(path, verb, error) from None
        return cls(path, connection)

    def _begin(self) -> None:
        """Write the tables into an empty file, and check any other; a file that cannot be written fails here."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            if execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                self._check()
            else:
                for table in _TABLES:
                    execute(table)
                execute(f"PRAGMA application_id = {APPLICATION}")
                execute(f"PRAGMA user_version = {SCHEMA}")
            execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                execute("ROLLBACK")

    def _check(self) -> None:
        ours = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if ours != APPLICATION:
            raise InputError(f"{self.path}: is not a file of results; move it away, or name another folder")
        if version != SCHEMA:
            rule = f"holds results in version {version} of their format, this fqtsim writes version {SCHEMA}"
            raise InputError(f"{self.path}: {rule}; name another folder, or use the fqtsim that wrote it")

    @contextmanager
    def _named(self, verb: str) -> Iterator[None]:
        """Turn SQLite's errors into one that names the file."""
        try:
            yield
        except sqlite3.Error as error:
            raise _refusal(self.path, verb, error) from None

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Replace the plan. Raises InputError where the file cannot be written."""
        with self._named("written"):
            self._connection.execute("INSERT OR REPLACE INTO plan VALUES (1, ?)", (json.dumps(plan),))

    def plan(self) -> dict[str, Any]:
        """Return the plan last written. Raises InputError where there is none."""
        with self._named("read"):
            found = self._connection.execute("SELECT plan FROM plan").fetchone()
        if found is None:
            raise InputError(f"{self.path}: no sweep was started in it; run fqtsim sweep first")
        plan: dict[str, Any] = json.loads(found[0])
        return plan

    def add(self, row: Mapping[str, Any]) -> bool:
        """Write a row, and return whether it is new.

        A finished row stands for good: a second one of the same key is dropped. One that failed is replaced.
        Raises InputError where the file cannot be written; all rows before this one stand.
        """
        values = (row["key"], row["status"], json.dumps(row))
        replace = "ON CONFLICT (key) DO UPDATE SET status = excluded.status, row = excluded.row"
        with self._named("written"):
            done = self._connection.execute(
                f"INSERT INTO rows VALUES (?, ?, ?) {replace} WHERE rows.status = 'failed'", values
            )
        return done.rowcount == 1

    def status(self) -> dict[str, str]:
        """Return key -> status of every row."""
        with self._named("read"):
            return dict(self._connection.execute("SELECT key, status FROM rows"))

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return key -> row of every row."""
        with self._named("read"):
            return {key: json.loads(row) for key, row in self._connection.execute("SELECT key, row FROM rows")}

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def _refusal(path: Path, verb: str, error: sqlite3.Error) -> InputError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return InputError(f"{path}: is not a file of results; move it away, or name another folder")
    remedies = {
        sqlite3.SQLITE_FULL: "make room and give the same command again: what is written stands",
        sqlite3.SQLITE_IOERR: "make room or mend the disk and give the same command again: what is written stands",
        sqlite3.SQLITE_BUSY: "another process uses it: wait for that one and give the same command again",
        sqlite3.SQLITE_READONLY: "allow writing, or name another folder",
        sqlite3.SQLITE_CORRUPT: "restore the file, or name another folder",
    }
    return InputError(f"{path}: cannot be {verb} ({error}); {remedies.get(code, 'check the path and its permissions')}")
