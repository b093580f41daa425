"""What the store asks of a database, in SQL that all of ours understand.

Statements are written once, with `?` for each value, `ON CONFLICT` instead of a dialect's own
words, and "user" in quotes. What no common SQL says is a method here: `holds`, `same`, fields of
JSON, the next number of a table, full text, and what erasing takes.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol  # whatever a column holds

if TYPE_CHECKING:
    from loci.store.fulltext import FullText

VERSION = 3
"""The schema this Loci writes; `migrations` brings older memories here."""

_MANY = 500  # how many rows one query is asked for by number


class Rows(Protocol):
    """What a statement left: rows to fetch, or how many it touched."""

    @property
    def rowcount(self) -> int:
        """Return how many rows were written."""
        ...

    def fetchone(self) -> Any:
        """Return the next row, None at the end."""
        ...

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        ...


class Writer(Protocol):
    """Runs statements inside a transaction."""

    def execute(self, sql: str, values: Sequence[Any] = (), /) -> Rows:
        """Run one statement."""
        ...

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> object:
        """Run one statement for many rows of values."""
        ...


@dataclass(frozen=True)
class Field:
    """One field of JSON in SQL.

    Attributes:
        any: whatever it holds; only good to be compared with NULL.
        text: the field if it is text, else NULL. A list or an object is text too: its JSON.
        number: the field if it is a number, true or false, else NULL.
    """

    any: str
    text: str
    number: str


class Database(ABC):
    """A connection that threads may share; processes share the database.

    `write()` is one transaction: everything in it is there after it ends, or nothing; when it has
    ended, it survives a killed process and a power cut. Writers take turns, so that what a method
    read in its transaction still holds when it writes.

    Attributes:
        same: compares two values so that NULL is the same as NULL.
        connection: runs statements; to write, only inside `write()`.
        words: full text over turns and items.
    """

    same: str
    connection: Writer
    words: FullText

    def __init__(self, busy_s: float) -> None:
        self.busy_s = busy_s
        self.lock = threading.RLock()

    @property
    @abstractmethod
    def name(self) -> str:
        """Return how errors call this memory; no password is in it."""

    @abstractmethod
    def write(self) -> AbstractContextManager[Writer]:
        """Run a transaction; errors undo all of it. Inside another it is part of that one."""

    @abstractmethod
    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""

    @abstractmethod
    def next_seq(self, table: str, count: int = 1) -> int:
        """Return the first of the next `count` numbers of turns, items or changes.

        Call it inside `write`, and use them all there. Numbers never come back.
        """

    @abstractmethod
    def holds(self, column: str, *, folded: bool = False) -> str:
        """Return the condition that a column of text has `?` in it.

        `folded` does not tell A to Z from a to z.
        """

    @abstractmethod
    def field(self, data: str, path: Sequence[str]) -> Field:
        """Return one field of a column of JSON, for conditions."""

    @abstractmethod
    def scrub(self) -> list[str]:
        """Rewrite what deletion leaves behind; returns what could not be rewritten."""

    @abstractmethod
    def find(self, texts: Sequence[str]) -> dict[str, int]:
        """Return {part of the store: how often one of these texts was found in it}."""

    @abstractmethod
    def damage(self) -> list[str]:
        """Return what is wrong with the database and its full text, for `check_integrity`."""

    def beside(self, texts: Sequence[str]) -> dict[str, int]:
        """Return {what is no part of the store but lies beside it: how often a text is in it}."""
        return {}

    @property
    @abstractmethod
    def out_of_reach(self) -> tuple[str, ...]:
        """Return what of this kind of database erasing cannot reach."""

    @abstractmethod
    def close(self) -> None:
        """Close it; closing twice is fine."""

    def one(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """Return the first row of a query, None where there is none."""
        found = self.rows(sql, values)
        return found[0] if found else None

    def many(
        self, sql: str, seqs: Sequence[int], before: Sequence[Any] = (), after: Sequence[Any] = ()
    ) -> list[tuple[Any, ...]]:
        """Run a query for many rows by number; its `%s` is the list, between other values."""
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(seqs), _MANY):
            part = seqs[start : start + _MANY]
            marks = ",".join("?" * len(part))
            found += self.rows(sql.replace("%s", marks, 1), [*before, *part, *after])
        return found

    def meta(self, key: str) -> str | None:
        """Return a value from the table of facts about this memory."""
        row = self.one("SELECT value FROM meta WHERE key = ?", (key,))
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Keep a fact about this memory."""
        with self.write() as db:
            db.execute(
                "INSERT INTO meta (key, value) VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
            )
