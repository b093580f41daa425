"""One SQLite file: opened safely, written in transactions, searched with FTS5, erased to the byte.

Write-ahead log and synchronous=FULL: what was committed survives a killed process and a power cut.
A new file is made complete under a temporary name and linked into place, so two processes that
start at once never see half a schema.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from importlib import resources
from pathlib import Path
from typing import Any  # whatever a column holds

from loci.errors import BusyError, LociError, SchemaError, StorageError, StoreError
from loci.store.database import VERSION, Database, Field
from loci.store.relational import RelationalStore
from loci.store.scan import count
from loci.store.sqlite_words import SqliteWords
from loci.store.vector_file import FileVectors

APPLICATION = 0x4C6F6369
"""SQLite's application id of a memory: "Loci"."""

_CACHE_KIB = 16 * 1024  # of pages; SQLite's 2 MiB make searches in 100,000 turns twice as slow
_FULL = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_TRUNCATE"}
_FULL |= {"SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMOPEN", "SQLITE_IOERR"}


class SqliteStore(RelationalStore):
    """A store in one file of mode 0600, with its vectors in a file beside it."""

    database: SqliteDatabase

    def __init__(self, path: Path, *, busy_s: float = 10.0) -> None:
        self.path = path
        database = SqliteDatabase(path, busy_s)
        super().__init__(database, FileVectors(database, path.with_name(path.name + ".vec")))


class SqliteDatabase(Database):
    """A connection to a file."""

    same = "IS"

    def __init__(self, path: Path, busy_s: float) -> None:
        super().__init__(busy_s)
        self.path = path
        self.words: SqliteWords = SqliteWords(self)
        self._depth = 0
        with told(path, busy_s):
            if not path.exists() or path.stat().st_size == 0:
                _create(path)
            self.connection: sqlite3.Connection = _connect(path, busy_s)
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

    @property
    def name(self) -> str:
        """Return the path."""
        return str(self.path)

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

    def next_seq(self, table: str, count: int = 1) -> int:
        """Return the next number of a table; SQLite itself counts what is inserted."""
        row = self.connection.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)
        ).fetchone()
        return 1 if row is None else int(row[0]) + 1

    def holds(self, column: str, *, folded: bool = False) -> str:
        """Return the condition that a column of text has `?` in it."""
        return f"instr(lower({column}), lower(?)) > 0" if folded else f"instr({column}, ?) > 0"

    def field(self, data: str, path: Sequence[str]) -> Field:
        """Return one field of JSON; SQLite gives it the type it has."""
        steps = "$" + "".join(f'."{part}"' for part in path)
        value = f"json_extract({data}, '{steps.replace(chr(39), chr(39) * 2)}')"
        return Field(
            any=value,
            text=f"CASE typeof({value}) WHEN 'text' THEN {value} END",
            number=f"CASE WHEN typeof({value}) IN ('integer', 'real') THEN {value} END",
        )

    def scrub(self) -> list[str]:
        """Rewrite the index and the file, and empty the log."""
        self.words.rebuild()
        try:
            with told(self.path, self.busy_s):
                self.connection.execute("VACUUM")
                log = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            busy = bool(log[0])
        except BusyError:
            busy = True
        if not busy:
            return []
        return [
            "the write-ahead log, which another process is reading: run it again when it has ended"
        ]

    def find(self, texts: Sequence[str]) -> dict[str, int]:
        """Return {file: how often one of these texts was found in its bytes}."""
        patterns = [text.encode() for text in texts]
        with told(self.path, self.busy_s):
            return {path.name: count(path, patterns) for path in self.files()}

    def beside(self, texts: Sequence[str]) -> dict[str, int]:
        """Return the same for files beside it that are named like it: old copies, most likely."""
        own, name = {path.name for path in self.files()}, self.path.name
        patterns = [text.encode() for text in texts]
        found: dict[str, int] = {}
        with told(self.path, self.busy_s):
            for path in sorted(self.path.parent.iterdir()):
                like = path.name.startswith((f"{name}.", f"{name}-", f".{name}."))
                if like and path.name not in own and path.is_file():
                    found[path.name] = count(path, patterns)
        return {path: times for path, times in found.items() if times}

    def damage(self) -> list[str]:
        """Return what SQLite finds wrong with its pages, indexes and full text."""
        found = [str(row[0]) for row in self.rows("PRAGMA integrity_check")]
        found = [] if found == ["ok"] else found
        for kind in ("turn", "item"):
            sql = f"SELECT (SELECT count(*) FROM {kind}s) - (SELECT count(*) FROM {kind}_words)"
            if self.rows(sql) != [(0,)]:
                found.append(f"the full text of {kind}s has more rows or less than they have")
            try:
                with self.write() as db:
                    db.execute(
                        f"INSERT INTO {kind}_words ({kind}_words, rank) "
                        "VALUES ('integrity-check', 0)"
                    )
            except StoreError:
                found.append(f"the full text of {kind}s is damaged")
        return found

    @property
    def out_of_reach(self) -> tuple[str, ...]:
        """Return nothing: it is all in these files."""
        return ()

    def files(self) -> list[Path]:
        """Return the files that belong to this memory and exist."""
        names = ("", "-wal", "-shm", "-journal", ".vec")
        paths = [self.path.with_name(self.path.name + end) for end in names]
        indexes = self.path.parent.glob(f"{escape(self.path.name)}.vec.*")
        paths += sorted(indexes)
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
