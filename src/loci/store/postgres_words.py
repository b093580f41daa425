"""Full text in PostgreSQL: postings of ours, scored by BM25 just as SQLite's FTS5 scores.

PostgreSQL's own ranks know neither how rare a word is nor how long a text is, and recall fuses
scores that must mean the same in every database. So the store keeps, for each word and text, the
places where it stands; a query reads the postings of its words alone, of one owner.

FTS5 cuts words where something stands that is neither letter nor digit, and so does this. Words
longer than PostgreSQL can index are kept as their digests.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any  # values of SQL parameters

from loci.store.fulltext import Condition, FullText, Layer, Whose
from loci.store.rows import ITEM, TURN

if TYPE_CHECKING:
    from loci.store.postgres import PostgresDatabase

_TOKEN = re.compile(r"[^\W_]+")
_LONGEST = 500  # characters of a word, at most 2,000 bytes: a page of an index holds 2,700
_K1, _B = 1.2, 0.75  # as in FTS5
_LEAST = 1e-6  # FTS5's idf of a word that most texts have
_LAYERS = {"turn": TURN, "item": ITEM}


class PostgresWords(FullText):
    """The tables `words`, `postings`, `documents` and `corpus`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self.database = database

    def add(self, kind: Layer, whose: Whose, entries: Sequence[tuple[int, str]]) -> None:
        """Index rows: (number, stems)."""
        if not entries:
            return
        layer, run = _LAYERS[kind], self.database.run
        places = {seq: _places(words) for seq, words in entries}
        lengths = {seq: whose.marks + sum(map(len, at.values())) for seq, at in places.items()}
        ids = self._count(layer, Counter(word for at in places.values() for word in at))
        run(
            "INSERT INTO corpus (layer, documents, tokens) VALUES (?, ?, ?) ON CONFLICT (layer) "
            "DO UPDATE SET documents = corpus.documents + excluded.documents, "
            "tokens = corpus.tokens + excluded.tokens",
            (layer, len(entries), sum(lengths.values())),
        )
        documents = [
            (layer, seq, whose.owner, whose.marks, lengths[seq], words) for seq, words in entries
        ]
        self.database.connection.executemany(
            "INSERT INTO documents (layer, seq, owner, marks, length, words) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            documents,
        )
        columns = "layer, word, owner, seq, length, places"
        with (
            self.database.raw.cursor() as cursor,
            cursor.copy(f"COPY postings ({columns}) FROM STDIN".encode()) as copy,
        ):
            for seq, at in places.items():
                for word, where in at.items():
                    copy.write_row((layer, ids[word], whose.owner, seq, lengths[seq], where))

    def replace(self, kind: Layer, seq: int, words: str) -> bool:
        """Index a row anew; returns whether its words changed."""
        row = self.database.run(
            "SELECT owner, marks, words FROM documents WHERE layer = ? AND seq = ?",
            (_LAYERS[kind], seq),
        ).fetchone()
        if row is None or row[2] == words:
            return False
        self.remove(kind, seq)
        # Only the number of marks is kept: which they are does not matter here.
        marks = ("", "")[: int(row[1]) - 1]
        self.add(kind, Whose(int(row[0]), *marks), [(seq, words)])
        return True

    def remove(self, kind: Layer, seq: int) -> None:
        """Take a row out, and words that no other row has."""
        layer, run = _LAYERS[kind], self.database.run
        row = run(
            "DELETE FROM documents WHERE layer = ? AND seq = ? RETURNING length, words",
            (layer, seq),
        ).fetchone()
        if row is None:
            return
        words = list(_places(row[1]))
        run(
            "DELETE FROM postings WHERE layer = ? AND seq = ? AND word IN "
            "(SELECT id FROM words WHERE layer = ? AND word = ANY(CAST(? AS text[])))",
            (layer, seq, layer, words),
        )
        run(
            "UPDATE words SET documents = documents - 1 "
            "WHERE layer = ? AND word = ANY(CAST(? AS text[]))",
            (layer, words),
        )
        run(
            "DELETE FROM words WHERE layer = ? AND documents <= 0 "
            "AND word = ANY(CAST(? AS text[]))",
            (layer, words),
        )
        run(
            "UPDATE corpus SET documents = documents - 1, tokens = tokens - ? WHERE layer = ?",
            (row[0], layer),
        )

    def match(
        self,
        kind: Layer,
        phrases: Sequence[str],
        limit: int,
        whose: Whose,
        condition: Condition | None,
    ) -> list[tuple[int, float]]:
        """Return (number, BM25) of rows with any of the phrases."""
        asked = [tokens for tokens in map(_tokens, phrases) if tokens]
        corpus = self.database.one(
            "SELECT documents, tokens FROM corpus WHERE layer = ?", (_LAYERS[kind],)
        )
        if not asked or corpus is None or not corpus[0]:
            return []
        known = self._known(_LAYERS[kind], [word for tokens in asked for word in tokens])
        parts, values = [], list[Any]()
        for number, tokens in enumerate(asked):
            if all(word in known for word in tokens):
                sql, more = self._hits(number, _LAYERS[kind], tokens, known, whose.owner, corpus[0])
                parts.append(sql)
                values += more
        if not parts:
            return []
        joined, limits = _limits(kind, whose, condition)
        # The sum runs in the order of the phrases, as FTS5's does: equal texts score equal.
        sql = (
            f"SELECT h.seq, sum(h.idf * ((h.times * {_float(_K1 + 1)}) / (h.times + {_float(_K1)} "
            f"* ({_float(1 - _B)} + {_float(_B)} * h.length / CAST(? AS float8)))) "
            f"ORDER BY h.number) AS score FROM ({' UNION ALL '.join(parts)}) h {joined} "
            "GROUP BY h.seq ORDER BY score DESC, h.seq LIMIT ?"
        )
        given = [corpus[1] / corpus[0], *values, *limits, limit]
        return [(int(seq), float(score)) for seq, score in self.database.rows(sql, given)]

    # -- private ------------------------------------------------------------------------------

    def _count(self, layer: int, counts: Mapping[str, int]) -> dict[str, int]:
        """Note in how many more texts these words stand; returns their numbers."""
        rows = self.database.run(
            "INSERT INTO words (layer, word, documents) SELECT ?, w, n FROM "
            "unnest(CAST(? AS text[]), CAST(? AS int[])) AS given (w, n) "
            "ON CONFLICT (layer, word) DO UPDATE SET documents = words.documents + "
            "excluded.documents RETURNING word, id",
            (layer, list(counts), list(counts.values())),
        ).fetchall()
        return {word: int(id) for word, id in rows}

    def _known(self, layer: int, words: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return {word: (its number, texts that have it)}."""
        found = self.database.rows(
            "SELECT word, id, documents FROM words "
            "WHERE layer = ? AND word = ANY(CAST(? AS text[]))",
            (layer, list(dict.fromkeys(words))),
        )
        return {word: (int(id), int(documents)) for word, id, documents in found}

    def _hits(
        self,
        number: int,
        layer: int,
        tokens: Sequence[str],
        known: Mapping[str, tuple[int, int]],
        owner: int,
        documents: int,
    ) -> tuple[str, list[Any]]:
        """Return SQL of (number, seq, length, times, idf) of a phrase among an owner's rows."""
        ids = [known[word][0] for word in tokens]
        joined, times = "", "cardinality(p0.places)"
        for place, id in enumerate(ids[1:], 1):
            joined += (
                f" JOIN postings p{place} ON p{place}.layer = p0.layer AND p{place}.word = {id} "
                f"AND p{place}.owner = p0.owner AND p{place}.seq = p0.seq"
            )
        source = f"postings p0{joined} WHERE p0.layer = {layer} AND p0.word = {ids[0]}"
        having = known[tokens[0]][1]
        if joined:
            follows = " AND ".join(f"at + {n} = ANY(p{n}.places)" for n in range(1, len(ids)))
            times = f"(SELECT count(*) FROM unnest(p0.places) AS at WHERE {follows})"
            source += f" AND {times} > 0"
            having = int(self.database.rows(f"SELECT count(*) FROM {source}")[0][0])
        # The texts were counted a moment earlier: others may have written some since.
        without = max(documents - having, 0)
        idf = math.log((without + 0.5) / (having + 0.5))
        sql = (
            f"SELECT {number} AS number, p0.seq, p0.length, CAST({times} AS float8) AS times, "
            f"CAST(? AS float8) AS idf FROM {source} AND p0.owner = ?"
        )
        return sql, [idf if idf > 0 else _LEAST, owner]


def _tokens(phrase: str) -> list[str]:
    return [
        word if len(word) <= _LONGEST else f"#{blake2b(word.encode(), digest_size=16).hexdigest()}"
        for word in _TOKEN.findall(phrase)
    ]


def _places(words: str) -> dict[str, list[int]]:
    """Return {word: where it stands}."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, word in enumerate(_tokens(words)):
        found[word].append(place)
    return found


def _limits(kind: Layer, whose: Whose, condition: Condition | None) -> tuple[str, list[Any]]:
    """Return a join that leaves only what is asked for; nothing where all is."""
    table, letter = ("turns", "t") if kind == "turn" else ("items", "i")
    parts, values = [], list[Any]()
    for name, value in (("agent", whose.agent), ("session", whose.session)):
        if value is not None:
            parts.append(f"{letter}.{name} = ?")
            values.append(value)
    if condition is not None:
        parts.append(condition[0])
        values += condition[1]
    if not parts:
        return "", []
    return f"JOIN {table} {letter} ON {letter}.seq = h.seq WHERE {' AND '.join(parts)}", values


def _float(number: float) -> str:
    return f"CAST({number!r} AS float8)"
