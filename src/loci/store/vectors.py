"""Vectors of turns and items: unit rows, found again by their cosine.

What every database does alike stands first; then SQLite's way: float32 rows in a file beside the
database, searched exactly. A row counts only when the table `vectors` names it. Rows are written
and flushed before the transaction that names them commits, so a killed process leaves at most rows
nobody reads. The file is a header of 64 bytes and then rows; it is memory-mapped to search.
"""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from loci.errors import FingerprintError, FormatError, ParameterError, StorageError
from loci.store.fulltext import Condition, Layer
from loci.store.rows import ITEM, TURN
from loci.store.writes import bump

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from loci.store.database import Database, Writer

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

EXACT_ROWS = 100_000
"""Up to so many vectors of one owner and layer all are compared; above, an index is asked."""

_HEADER = struct.Struct("<8sI52x")
_MAGIC = b"LOCIVEC1"


class Near(Protocol):
    """The neighbourhood of one vector among those of one owner.

    Attributes:
        notes: what made this search slower than it could be, and what to do.
    """

    notes: list[str]

    def best(self, kind: Layer, limit: int, condition: Condition) -> list[tuple[int, float]]:
        """Return (number, cosine) of the nearest, best first, then lowest number.

        `condition` is SQL to stand behind a WHERE, as `View` makes it.
        """
        ...


class VectorIndex(ABC):
    """The vectors of one store, in whatever its database keeps them."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @property
    def width(self) -> int | None:
        """How many numbers a vector has; None while there is none."""
        width = self.database.meta("vectors.width")
        return None if width is None else int(width)

    def check(self, fingerprint: str) -> None:
        """Refuse an embedder other than the one that made the stored vectors."""
        have = self.database.meta("vectors.embedder")
        if have is not None and have != fingerprint:
            raise FingerprintError(
                "the vectors of this memory were made by another embedder",
                value=fingerprint,
                allowed=have,
                way_out="memory.reembed() makes them anew with this one",
            )

    def put(self, entries: Sequence[tuple[int, int, int]], vectors: Floats, by: str) -> int:
        """Store vectors of (kind, seq, owner); those no longer pending are left out.

        Args:
            vectors: float32 [n, width], made into unit rows here.
            by: what made them.

        Returns:
            How many were stored.
        """
        import numpy as np

        vectors = unit_rows(vectors)
        if vectors.ndim != 2 or len(vectors) != len(entries):
            raise ParameterError(
                "the vectors do not match the texts",
                value=tuple(vectors.shape),
                allowed=f"[{len(entries)}, width]",
            )
        if not np.isfinite(vectors).all():
            raise ParameterError("the embedder returned numbers that are not finite")
        with self.database.write() as db:
            self.check(by)
            have = self.width
            width = int(vectors.shape[1])
            if have is not None and have != width:
                raise FingerprintError(
                    "vectors have another width than those stored", value=width, allowed=str(have)
                )
            waiting = _take_pending(db, entries)
            keep = [number for number, entry in enumerate(entries) if entry[:2] in waiting]
            if not keep:
                return 0
            self._store(db, [entries[number] for number in keep], vectors[keep])
            if have is None:
                self.database.set_meta("vectors.width", str(width))
                self.database.set_meta("vectors.embedder", by)
        return len(keep)

    def drop(self) -> None:
        """Forget all vectors and queue every text anew, for another embedder."""
        with self.database.write() as db:
            db.execute(
                "INSERT INTO pending (kind, seq, owner) SELECT kind, seq, owner FROM vectors "
                "WHERE TRUE ON CONFLICT DO NOTHING"
            )
            db.execute("DELETE FROM vectors")
            db.execute("DELETE FROM meta WHERE key IN ('vectors.width', 'vectors.embedder')")
            bump(db)

    @abstractmethod
    def near(self, query: Floats, owner: int) -> Near:
        """Return what is near to a vector [width] among an owner's."""

    def settle(self) -> None:  # noqa: B027 - nothing to do is a good answer
        """Build the indexes that searches would build beside them; may take minutes."""

    @abstractmethod
    def sweep(self) -> list[str]:
        """Overwrite every vector nobody names; returns what could not be overwritten."""

    @abstractmethod
    def _store(self, db: Writer, entries: Sequence[tuple[int, int, int]], vectors: Floats) -> None:
        """Write unit rows and name them, inside a transaction."""


class FileVectors(VectorIndex):
    """Rows of a file beside the database; opened when the first is needed."""

    def __init__(self, database: Database, path: Path) -> None:
        super().__init__(database)
        self.path = path
        self._generation: str | None = None
        self._matrix: Floats | None = None
        self._rows: Ints | None = None  # [n, 4]: row, kind, seq, owner

    def near(self, query: Floats, owner: int) -> Near:
        """Return what is near to a vector, all of the owner's compared."""
        return _Scan(self.database, owner, *self.scores(query, owner))

    def _store(self, db: Writer, entries: Sequence[tuple[int, int, int]], vectors: Floats) -> None:
        last = db.execute("SELECT max(row) FROM vectors").fetchone()[0]
        first = 0 if last is None else int(last) + 1
        with _told(self.path):
            self._write(first, vectors)
        db.executemany(
            "INSERT INTO vectors (row, kind, seq, owner) VALUES (?, ?, ?, ?)",
            [(first + place, *entry) for place, entry in enumerate(entries)],
        )

    def _write(self, first: int, vectors: Floats) -> None:
        width = int(vectors.shape[1])
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size < _HEADER.size:
                os.pwrite(descriptor, _HEADER.pack(_MAGIC, width), 0)
            data = memoryview(vectors.tobytes())
            place = _HEADER.size + first * width * 4
            while data:
                done = os.pwrite(descriptor, data, place)
                data, place = data[done:], place + done
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def scores(self, query: Floats, owner: int) -> tuple[Ints, Floats]:
        """Return (entries [n, 4] of this owner: row, kind, seq, owner; cosines [n])."""
        import numpy as np

        self._refresh()
        rows = self._rows
        if rows is None or self._matrix is None or not len(rows):
            return np.empty((0, 4), np.int64), np.empty(0, np.float32)
        query = unit_rows(np.asarray(query, np.float32).reshape(1, -1))[0]
        if len(query) != self._matrix.shape[1]:
            raise FingerprintError(
                "the question's vector has another width than those stored",
                value=len(query),
                allowed=str(self._matrix.shape[1]),
            )
        mine = rows[:, 3] == owner
        count = int(np.count_nonzero(mine))
        all_rows = len(rows) == len(self._matrix)  # no holes: row number is place
        if count == len(rows) and all_rows:
            return rows, self._matrix @ query
        if 2 * count >= len(self._matrix):
            chosen = rows[mine]
            return chosen, (self._matrix @ query)[chosen[:, 0]]
        chosen = rows[mine]
        return chosen, self._matrix[chosen[:, 0]] @ query

    def _refresh(self) -> None:
        """Read the rows that came since the last search; all of them after an erasure."""
        import numpy as np

        generation = self.database.meta("vectors.generation") or ""
        have = self._rows if generation == self._generation else None
        after = int(have[-1, 0]) if have is not None and len(have) else -1
        sql = "SELECT row, kind, seq, owner FROM vectors WHERE row > ? ORDER BY row"
        new = self.database.rows(sql, (after,))
        if have is not None and not new:
            return
        rows = np.array(new, np.int64).reshape(-1, 4)
        if have is not None and len(have):
            rows = np.concatenate([have, rows])
        self._rows, self._generation = rows, generation
        self._matrix = self._map(int(rows[-1, 0]) + 1) if len(rows) else None

    def _map(self, count: int) -> Floats:
        import numpy as np

        with _told(self.path), open(self.path, "rb") as file:
            magic, width = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size, b"\0"))
            size = os.fstat(file.fileno()).st_size
        if magic != _MAGIC or size < _HEADER.size + count * width * 4:
            raise FormatError(
                "the file of vectors is damaged",
                value=str(self.path),
                way_out="memory.reembed() makes it anew from the text",
            )
        return np.memmap(self.path, np.float32, "r", _HEADER.size, (count, width))

    def sweep(self) -> list[str]:
        """Overwrite with zeros every row that nobody names.

        The file is never cut: another process may have it mapped.
        """
        if not self.path.exists():
            return []
        # Inside a transaction: a row that another process has written but not named yet would be
        # taken for one nobody names.
        with self.database.write(), _told(self.path), open(self.path, "rb+") as file:
            width = self.width
            named = {row for (row,) in self.database.rows("SELECT row FROM vectors")}
            size = os.fstat(file.fileno()).st_size
            stride = 4 * (width or 1)
            for row in range((size - _HEADER.size) // stride):
                if row not in named:
                    file.seek(_HEADER.size + row * stride)
                    file.write(bytes(stride))
            file.flush()
            os.fsync(file.fileno())
        return []

    def drop(self) -> None:
        """Forget all vectors and queue every text anew, for another embedder."""
        super().drop()
        self.path.unlink(missing_ok=True)  # who has it mapped keeps the old one


class _Scan:
    """All entries of an owner with their cosines."""

    def __init__(self, database: Database, owner: int, entries: Ints, scores: Floats) -> None:
        self._database, self._owner = database, owner
        self._entries, self._scores = entries, scores
        self.notes: list[str] = []

    def best(self, kind: Layer, limit: int, condition: Condition) -> list[tuple[int, float]]:
        """Return the nearest that are allowed; looks further while too few are."""
        import numpy as np

        entries, scores = self._entries, self._scores
        places = np.flatnonzero(entries[:, 1] == (TURN if kind == "turn" else ITEM))
        if len(places) < len(entries):
            entries, scores = entries[places], scores[places]
        seqs, asks = entries[:, 2], bool(condition[0])
        count = limit * 2 if asks else limit
        while True:
            places = np.arange(len(scores))
            if len(scores) > count:
                places = np.argpartition(scores, -count)[-count:]
            places = places[np.lexsort((seqs[places], -scores[places]))]
            if asks:
                wanted = [int(seq) for seq in seqs[places]]
                allowed = allowed_of(self._database, self._owner, kind, wanted, condition)
                places = places[[seq in allowed for seq in wanted]]
            if len(places) >= limit or count >= len(scores):
                return [(int(seqs[at]), float(scores[at])) for at in places[:limit]]
            count *= 8


def allowed_of(
    database: Database, owner: int, kind: Layer, seqs: Sequence[int], condition: Condition
) -> set[int]:
    """Return which of these rows a condition allows."""
    table, letter = ("turns", "t") if kind == "turn" else ("items", "i")
    sql = (
        f"SELECT {letter}.seq FROM {table} {letter} "
        f"WHERE +{letter}.owner = ? AND {letter}.seq IN (%s) {condition[0]}"
    )
    return {int(seq) for (seq,) in database.many(sql, seqs, [owner], condition[1])}


def _take_pending(db: Writer, entries: Sequence[tuple[int, int, int]]) -> set[tuple[int, int]]:
    """Return which (kind, seq) waited for a vector; they wait no more."""
    sql = "DELETE FROM pending WHERE kind = ? AND seq = ?"
    return {entry[:2] for entry in entries if db.execute(sql, entry[:2]).rowcount}


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Raise errors of the file system as ours."""
    try:
        yield
    except OSError as problem:
        raise StorageError(
            f"cannot use the file of vectors: {problem.strerror or problem}", value=str(path)
        ) from problem


def unit_rows(vectors: Floats) -> Floats:
    """Return the vectors as float32 rows of length 1; a row of zeros stays."""
    import numpy as np

    vectors = np.ascontiguousarray(vectors, np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32, copy=False)
