"""One SQLite file: opened safely, written in transactions, its errors said in our words.

Write-ahead log and synchronous=FULL: what was committed survives a killed process and a power cut.
A new file is made complete under a temporary name and linked into place, so two processes that
start at once never see half a schema.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any  # whatever a column holds

from loci.errors import BusyError, LociError, SchemaError, StorageError, StoreError

VERSION = 2
"""The schema this Loci writes; `migrations` brings older files here."""

APPLICATION = 0x4C6F6369
"""SQLite's application id of a memory: "Loci"."""

_CACHE_KIB = 16 * 1024  # of pages; SQLite's 2 MiB make searches in 100,000 turns twice as slow
_FULL = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_TRUNCATE"}
_FULL |= {"SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR"}


class Database:
    """A connection that threads may share; processes share the file.

    `write()` is one transaction: everything in it is there after it ends, or nothing.
    """

    def __init__(self, path: Path, busy_s: float) -> None:
        self.path = path
        self.busy_s = busy_s
        self.lock = threading.RLock()
        self._depth = 0
        with told(path, busy_s):
            if not path.exists() or path.stat().st_size == 0:
                _create(path)
            self.connection = _connect(path, busy_s)
        try:
            with told(path, busy_s):
                self._check_schema()
                self.connection.execute("PRAGMA journal_mode=WAL")
                self.connection.execute("PRAGMA synchronous=FULL")
                self.connection.execute("PRAGMA secure_delete=ON")
                self.connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        except BaseException:
            self.connection.close()
            raise

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction; errors undo all of it."""
        with self.lock, told(self.path, self.busy_s):
            if self._depth:  # already inside one: it ends with the outer
                yield self.connection
                return
            self.connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self.lock, told(self.path, self.busy_s):
            return self.connection.execute(sql, values).fetchall()

    def one(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """Return the first row of a query, None where there is none."""
        with self.lock, told(self.path, self.busy_s):
            row: tuple[Any, ...] | None = self.connection.execute(sql, values).fetchone()
            return row

    def meta(self, key: str) -> str | None:
        """Return a value from the table of facts about this file."""
        row = self.one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Keep a fact about this file."""
        with self.write() as db:
            db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def next_seq(self, table: str) -> int:
        """Return the next number of a table; call it inside `write`. Numbers never come back."""
        row = self.connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)
        ).fetchone()
        return 1 if row is None else int(row[0]) + 1

    def files(self) -> list[Path]:
        """Return the files that belong to this memory and exist."""
        names = ("", "-wal", "-shm", "-journal", ".vec")
        paths = [self.path.with_name(self.path.name + end) for end in names]
        return [path for path in paths if path.exists()]

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with self.lock:
            self.connection.close()

    def _check_schema(self) -> None:
        application = self.connection.execute("PRAGMA application_id").fetchone()[0]
        version = self.connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION:
            raise StoreError(
                "this file is a database, but no memory of Loci",
                value=str(self.path),
                way_out="name another file",
            )
        if version > VERSION:
            raise SchemaError(
                "this memory was written by a newer Loci",
                value=version,
                allowed=f"schema {VERSION} or older",
                way_out="pip install --upgrade loci",
            )
        if version < VERSION:
            from loci.store.migrations import migrate  # here: SQLAlchemy and Alembic

            self.connection.close()
            migrate(self.path, VERSION, self.busy_s)
            self.connection = _connect(self.path, self.busy_s)


@contextmanager
def told(path: Path, busy_s: float) -> Iterator[None]:
    """Raise SQLite's errors and those of the file system as ours."""
    try:
        yield
    except sqlite3.Error as problem:
        raise _ours(problem, path, busy_s) from problem
    except LociError:
        raise
    except OSError as problem:
        raise StorageError(
            f"cannot use the memory file: {problem.strerror or problem}", value=str(path)
        ) from problem


def _ours(problem: sqlite3.Error, path: Path, busy_s: float) -> LociError:
    name = getattr(problem, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return BusyError(
            f"another process has been writing to the memory for more than {busy_s:g} s",
            value=str(path),
            way_out="try again when it has finished; nothing was changed",
        )
    if name in _FULL:
        return StorageError(
            "the disk is full or a write failed; everything acknowledged before is still there",
            value=str(path),
            way_out="free some space and try again",
        )
    if name == "SQLITE_NOTADB":
        return StoreError("this file is no memory of Loci", value=str(path))
    if name == "SQLITE_CORRUPT":
        return StoreError(
            "the memory file is damaged", value=str(path), way_out="restore it from a backup"
        )
    if name.startswith("SQLITE_READONLY"):
        return StoreError("the memory file is read-only", value=str(path))
    if "closed database" in str(problem):
        return StoreError("this memory is closed", value=str(path))
    return StoreError(f"the memory file cannot be used: {problem}", value=str(path))


def _connect(path: Path, busy_s: float) -> sqlite3.Connection:
    return sqlite3.connect(
        path, timeout=busy_s, isolation_level=None, check_same_thread=False, cached_statements=256
    )


def _create(path: Path) -> None:
    if not path.parent.is_dir():
        raise StoreError(
            "there is no such folder", value=str(path.parent), way_out="make the folder first"
        )
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        connection = sqlite3.connect(fresh, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=OFF")  # flushed once, below
            connection.execute("PRAGMA journal_mode=MEMORY")
            script = resources.files("loci.store").joinpath("migrations/sqlite.sql")
            connection.executescript(f"BEGIN;{script.read_text('utf-8')}COMMIT;")
            connection.execute(f"PRAGMA application_id={APPLICATION}")
            connection.execute(f"PRAGMA user_version={VERSION}")
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()
        with open(fresh, "rb+") as file:
            os.fsync(file.fileno())
        if path.exists() and path.stat().st_size == 0:
            os.replace(fresh, path)  # an empty file somebody touched
        else:
            try:
                os.link(fresh, path)
            except FileExistsError:
                return  # another process was first; its file is complete
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        for end in ("", "-wal", "-shm", "-journal"):
            fresh.with_name(fresh.name + end).unlink(missing_ok=True)
