"""Vectors in PostgreSQL: pgvector compares all of an owner's; above 100,000 it asks an HNSW index.

An index is of one owner and one layer, so nobody else's vectors are walked through. It is built
beside the running store, on a second connection, when a search first finds more than 100,000; until
it is there, and for vectors wider than pgvector can index, every vector is compared.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any  # rows of psycopg

from loci.errors import FingerprintError, LociError
from loci.store.fulltext import Condition, Layer
from loci.store.rows import ITEM, TURN
from loci.store.vectors import EXACT_ROWS, Near, VectorIndex, allowed_of, unit_rows

if TYPE_CHECKING:
    from psycopg import Connection

    from loci.store.database import Writer
    from loci.store.postgres import PostgresDatabase
    from loci.store.vectors import Floats

_INDEX = "vectors_near_"
_PAUSE_S = 0.1
_WIDEST = 2000  # numbers of a vector that pgvector can index


class PostgresVectors(VectorIndex):
    """The table `vectors`."""

    database: PostgresDatabase

    def __init__(self, database: PostgresDatabase) -> None:
        super().__init__(database)
        self._building: dict[str, threading.Thread] = {}
        self._failed: dict[str, str] = {}
        self._stop = threading.Event()
        self._at_work: Connection[Any] | None = None

    def near(self, query: Floats, owner: int) -> Near:
        """Return what is near to a vector among an owner's."""
        import numpy as np

        vector = unit_rows(np.asarray(query, np.float32).reshape(1, -1))[0]
        width = self.width
        if width is not None and len(vector) != width:
            raise FingerprintError(
                "the question's vector has another width than those stored",
                value=len(vector),
                allowed=str(width),
            )
        return _Neighbours(self, owner, vector)

    def settle(self) -> None:
        """Build the index of every owner that has more than 100,000 vectors."""
        sql = "SELECT owner, kind FROM vectors GROUP BY owner, kind HAVING count(*) > ?"
        for owner, kind in self.database.rows(sql, (EXACT_ROWS,)):
            if not self.has_index(owner, kind) and (self.width or 0) <= _WIDEST:
                with self.database.told():
                    self._build(owner, kind)

    def sweep(self) -> list[str]:
        """Drop the indexes, which hold copies; rewriting the table takes the vectors themselves."""
        found = self.database.rows(
            "SELECT relname FROM pg_class WHERE relkind = 'i' "
            "AND relnamespace = CAST(? AS regnamespace) AND starts_with(relname, ?)",
            (self.database.schema, _INDEX),
        )
        for (name,) in found:
            with self.database.write() as db:
                db.execute(f'DROP INDEX IF EXISTS "{name}"')
        return []

    def has_index(self, owner: int, kind: int) -> bool:
        """Return whether an index can be asked."""
        sql = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(?)"
        return self.database.one(sql, (_index(owner, kind),)) == (True,)

    def build_beside(self, owner: int, kind: int) -> str:
        """Build an index on a thread of its own; returns how that stands."""
        import psycopg

        name = _index(owner, kind)

        def work() -> None:
            try:
                self._build(owner, kind)
            except (psycopg.Error, LociError) as problem:
                if not self._stop.is_set():
                    self._failed[name] = str(problem).strip().partition("\n")[0]
            finally:
                self._building.pop(name, None)

        if name in self._failed:
            return f"building their index failed: {self._failed[name]}"
        if name not in self._building and not self._stop.is_set():
            self._building[name] = threading.Thread(target=work, daemon=True)
            self._building[name].start()
        return "their index is being built (loci memory index waits for it)"

    def close(self) -> None:
        """Stop building: the server drops what is half there when it is next asked for."""
        self._stop.set()
        for thread in list(self._building.values()):
            while thread.is_alive():
                if self._at_work is not None:
                    self._at_work.cancel_safe()
                thread.join(_PAUSE_S)

    def _build(self, owner: int, kind: int) -> None:
        name, database = _index(owner, kind), self.database
        with database.another() as raw, self._held(raw):
            raw.execute("SELECT set_config('lock_timeout', '0', false)")  # it waits for writers
            key = zlib.crc32(f"{database.schema}.{name}".encode())
            # Another may be building it. Whoever waits inside a statement keeps it from ending.
            while raw.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone() != (True,):
                self._stop.wait(_PAUSE_S)
            if self._stop.is_set() or self.has_index(owner, kind):
                return
            raw.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}".encode())
            raw.execute(
                f"CREATE INDEX CONCURRENTLY {name} ON vectors USING hnsw "
                f"((embedding::vector({self.width})) vector_ip_ops) "
                f"WHERE owner = {owner} AND kind = {kind}".encode()
            )

    @contextmanager
    def _held(self, raw: Connection[Any]) -> Iterator[None]:
        """Let `close` interrupt what this connection does."""
        self._at_work = raw
        try:
            yield
        finally:
            self._at_work = None

    def _store(self, db: Writer, entries: Sequence[tuple[int, int, int]], vectors: Floats) -> None:
        db.executemany(
            "INSERT INTO vectors (kind, seq, owner, embedding) VALUES (?, ?, ?, ?)",
            [(*entry, vector) for entry, vector in zip(entries, vectors, strict=True)],
        )


class _Neighbours:
    """A vector to be compared by the server."""

    def __init__(self, vectors: PostgresVectors, owner: int, query: Floats) -> None:
        self._vectors, self._owner, self._query = vectors, owner, query
        self.notes: list[str] = []

    def best(self, kind: Layer, limit: int, condition: Condition) -> list[tuple[int, float]]:
        """Return the nearest that are allowed."""
        layer, database = TURN if kind == "turn" else ITEM, self._vectors.database
        some = "SELECT 1 FROM vectors WHERE owner = ? AND kind = ? OFFSET ? LIMIT 1"
        if database.one(some, (self._owner, layer, EXACT_ROWS)) is not None:
            if self._vectors.has_index(self._owner, layer):
                return self._indexed(kind, layer, limit, condition)
            self._explain(kind, layer)
        return self._exact(kind, layer, limit, condition)

    def _exact(
        self, kind: Layer, layer: int, limit: int, condition: Condition
    ) -> list[tuple[int, float]]:
        table, letter = ("turns", "t") if kind == "turn" else ("items", "i")
        joined = f"JOIN {table} {letter} ON {letter}.seq = v.seq" if condition[0] else ""
        sql = (
            "SELECT v.seq, -(v.embedding <#> ?) AS score "
            f"FROM vectors v {joined} WHERE v.owner = ? AND v.kind = ? {condition[0]} "
            "ORDER BY score DESC, v.seq LIMIT ?"
        )
        given = (self._query, self._owner, layer, *condition[1], limit)
        found = self._vectors.database.rows(sql, given)
        return [(int(seq), float(score)) for seq, score in found]

    def _indexed(
        self, kind: Layer, layer: int, limit: int, condition: Condition
    ) -> list[tuple[int, float]]:
        """Ask the index; ask it for more while too few are allowed."""
        database, count = self._vectors.database, limit * 2 if condition[0] else limit
        width = len(self._query)
        while True:
            sql = (
                f"SELECT v.seq, -(v.embedding::vector({width}) <#> ?) AS score FROM vectors v "
                f"WHERE v.owner = {self._owner} AND v.kind = {layer} "
                f"ORDER BY v.embedding::vector({width}) <#> ? LIMIT {count}"
            )
            with database.lock, database.told():
                for name, value in _walk(count).items():
                    database.run("SELECT set_config(?, ?, false)", (name, value))
                rows = database.run(sql, (self._query, self._query)).fetchall()
            found = sorted(rows, key=lambda row: (-row[1], row[0]))
            if condition[0]:
                wanted = [int(seq) for seq, _ in found]
                allowed = allowed_of(database, self._owner, kind, wanted, condition)
                found = [row for row in found if row[0] in allowed]
            if len(found) >= limit or len(rows) < count:
                return [(int(seq), float(score)) for seq, score in found[:limit]]
            count *= 8

    def _explain(self, kind: Layer, layer: int) -> None:
        if len(self._query) > _WIDEST:
            why = (
                f"pgvector indexes at most {_WIDEST:,} numbers, and these have {len(self._query):,}"
            )
        else:
            why = self._vectors.build_beside(self._owner, layer)
        self.notes.append(f"more than {EXACT_ROWS:,} vectors of {kind}s were all compared: {why}")


def _walk(count: int) -> dict[str, str]:
    """Return how wide the index is searched; it goes on until it has found enough."""
    return {
        "hnsw.ef_search": str(min(1000, max(200, count))),
        "hnsw.iterative_scan": "strict_order",
        "hnsw.max_scan_tuples": "1000000",
    }


def _index(owner: int, kind: int) -> str:
    return f"{_INDEX}{owner}_{kind}"
