"""Full text in SQLite: two FTS5 tables, and queries that score no more rows than they must.

FTS5 scores a row in some two microseconds, and nearly all rows that a question finds have nothing
of it but a common word. So where the rows with a rarer word are enough to fill the list, they are
scored alone: by the rare words, and again where a common one stands beside them. When the last of
the list has more than a row could get from the common words alone, the rest cannot change it, and
the list is the same that scoring every row gives; otherwise every row is scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any  # values of SQL parameters

from loci.store.fulltext import Condition, FullText, Layer, Whose
from loci.store.rows import key_words

if TYPE_CHECKING:
    from loci.store.sqlite import SqliteDatabase

_MOST = 2.2  # times its idf: what a word can add to a row's score, however often it stands there
_LEAST_IDF = 1e-6  # FTS5's for a word that most rows have
_WORTH_IT = 4_000  # rows with common words alone, below which all are scored at once
_ENOUGH = 1.25  # times the list: rows with rare words, so that its last is a good one
_HOPE = 1.2  # times its idf: what a rare word adds to a short row


class SqliteWords(FullText):
    """FTS5 tables. A row has a second column that says whose it is, in words a query must match.

    So other people's rows cost nothing and cannot be seen; the column weighs 0.
    """

    def __init__(self, database: SqliteDatabase) -> None:
        self.database = database

    def add(self, kind: Layer, whose: Whose, entries: Sequence[tuple[int, str]]) -> None:
        """Index rows: (number, stems)."""
        key = key_words(whose.owner, whose.agent, whose.session)
        self.database.connection.executemany(
            f"INSERT INTO {kind}_words (rowid, key, words) VALUES (?, ?, ?)",
            [(seq, key, words) for seq, words in entries],
        )

    def replace(self, kind: Layer, seq: int, words: str) -> bool:
        """Index a row anew; returns whether its words changed."""
        db, table = self.database.connection, f"{kind}_words"
        row = db.execute(f"SELECT words FROM {table} WHERE rowid = ?", (seq,)).fetchone()
        if row is None or row[0] == words:
            return False
        db.execute(f"UPDATE {table} SET words = ? WHERE rowid = ?", (words, seq))
        return True

    def remove(self, kind: Layer, seq: int) -> None:
        """Take a row out."""
        self.database.connection.execute(f"DELETE FROM {kind}_words WHERE rowid = ?", (seq,))

    def rebuild(self) -> None:
        """Write the index anew: deleted words stay in its segments until then."""
        with self.database.write() as db:
            db.execute("INSERT INTO turn_words (turn_words) VALUES ('rebuild')")
            db.execute("INSERT INTO item_words (item_words) VALUES ('rebuild')")

    def match(
        self,
        kind: Layer,
        phrases: Sequence[str],
        limit: int,
        whose: Whose,
        condition: Condition | None,
    ) -> list[tuple[int, float]]:
        """Return (number, BM25) of rows with any of the phrases."""
        asked = [quoted for quoted in map(_quoted, phrases) if quoted]
        if not asked:
            return []
        query = _Query(self.database, kind, condition, "" if self._is_alone(whose) else _key(whose))
        parted = _parted(query, asked, limit) if len(asked) > 1 else None
        if parted is not None:
            rare, common, bound = parted
            both = f"({' OR '.join(rare)}) AND ({' OR '.join(common)})"
            found = dict(query.scored(" OR ".join(rare), limit))
            found.update(query.scored(both, limit))  # the same rows, and now all their words
            best = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]
            if len(best) == limit and best[-1][1] >= bound:
                return best
        return query.scored(" OR ".join(asked), limit)

    def _is_alone(self, whose: Whose) -> bool:
        """Return whether there are no other rows to leave out."""
        return whose.marks == 1 and not self.database.rows(
            "SELECT 1 FROM owners WHERE seq != ? LIMIT 1", (whose.owner,)
        )


class _Query:
    """A search of one table, limited to an owner and a condition."""

    def __init__(
        self, database: SqliteDatabase, kind: Layer, condition: Condition | None, key: str
    ) -> None:
        self.database, self.table = database, f"{kind}_words"
        self._key, self._allowed, self._values = key, "", list[Any]()
        self.is_limited = bool(key)
        if condition is not None:
            source = "turns t" if kind == "turn" else "items i"
            self._allowed = (
                f" AND EXISTS (SELECT 1 FROM {source} "
                f"WHERE {source[-1]}.seq = {self.table}.rowid AND {condition[0]})"
            )
            self._values = list(condition[1])

    def scored(self, asked: str, limit: int) -> list[tuple[int, float]]:
        """Return (number, BM25) of the best rows."""
        sql = (
            f"SELECT rowid, -bm25({self.table}, 0.0, 1.0) AS score FROM {self.table} "
            f"WHERE {self.table} MATCH ?{self._allowed} ORDER BY score DESC, rowid LIMIT ?"
        )
        found = self.database.rows(sql, [self._full(asked), *self._values, limit])
        return [(int(seq), float(score)) for seq, score in found]

    def count(self, asked: str, *, everyones: bool = False) -> int:
        """Return how many rows have a phrase; the condition does not matter."""
        sql = f"SELECT count(*) FROM {self.table} WHERE {self.table} MATCH ?"
        full = f"words : ({asked})" if everyones else self._full(asked)
        return int(self.database.rows(sql, [full])[0][0])

    def most_rows(self) -> int:
        """Return at least how many rows there are, without counting them: how many there were."""
        sql = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?"
        return int(self.database.rows(sql, (self.table.replace("_words", "s"),))[0][0])

    def _full(self, asked: str) -> str:
        return f"{self._key}words : ({asked})"


def _parted(
    query: _Query, asked: Sequence[str], limit: int
) -> tuple[list[str], list[str], float] | None:
    """Return (rare, common, most that the common can give); None to score all rows at once."""
    counts = {phrase: query.count(phrase) for phrase in asked}
    ordered = sorted(asked, key=lambda phrase: counts[phrase])
    rows, cut = 0, 0
    while rows < _ENOUGH * limit and cut < len(ordered):
        rows += counts[ordered[cut]]
        cut += 1
    everyone = query.most_rows()

    def idf(phrase: str) -> float:
        """Return at least what FTS5 gives a phrase for its rareness."""
        having = query.count(phrase, everyones=True) if query.is_limited else counts[phrase]
        return max(_LEAST_IDF, math.log((everyone - having + 0.5) / (having + 0.5)))

    while cut < len(ordered):
        rare, common = ordered[:cut], ordered[cut:]
        if sum(counts[phrase] for phrase in common) < _WORTH_IT:
            return None
        bound = sum(_MOST * idf(phrase) for phrase in common)
        if bound <= _HOPE * idf(rare[-1]):
            return rare, common, bound
        cut += 1
    return None


def _key(whose: Whose) -> str:
    """Return the part of a query that leaves one owner's rows."""
    words = key_words(whose.owner, whose.agent, whose.session).split()
    mine = " ".join(f'"{word}"' for word in words)
    return f"key : ({mine}) AND "


def _quoted(phrase: str) -> str:
    """Return a word or name as FTS5 wants it: in quotes; empty where nothing is left."""
    cleaned = phrase.replace('"', " ").replace("\0", " ").strip()
    return f'"{cleaned}"' if any(map(str.isalnum, cleaned)) else ""
