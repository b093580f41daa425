"""Vectors of turns and items: float32 rows in a file beside the database, searched exactly.

A row counts only when the table `vectors` names it. Rows are written and flushed before the
transaction that names them commits, so a killed process leaves at most rows nobody reads. The file
is a header of 64 bytes and then rows; it is memory-mapped to search.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loci.errors import FingerprintError, FormatError, ParameterError
from loci.store.database import Database, told
from loci.store.writes import bump

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

_HEADER = struct.Struct("<8sI52x")
_MAGIC = b"LOCIVEC1"


class Vectors:
    """The vectors of one store; opened when the first is needed."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.path = database.path.with_name(database.path.name + ".vec")
        self._generation: str | None = None
        self._matrix: Floats | None = None
        self._rows: Ints | None = None  # [n, 4]: row, kind, seq, owner

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
            keep = [
                number
                for number, (kind, seq, _) in enumerate(entries)
                if db.execute(
                    "DELETE FROM pending WHERE kind = ? AND seq = ?", (kind, seq)
                ).rowcount
            ]
            if not keep:
                return 0
            last = db.execute("SELECT max(row) FROM vectors").fetchone()[0]
            first = 0 if last is None else int(last) + 1
            with told(self.path, self.database.busy_s):
                self._write(first, vectors[keep], width)
            db.executemany(
                "INSERT INTO vectors (row, kind, seq, owner) VALUES (?, ?, ?, ?)",
                [(first + place, *entries[number]) for place, number in enumerate(keep)],
            )
            if have is None:
                self.database.set_meta("vectors.width", str(width))
                self.database.set_meta("vectors.embedder", by)
        return len(keep)

    def _write(self, first: int, vectors: Floats, width: int) -> None:
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

        with told(self.path, self.database.busy_s), open(self.path, "rb") as file:
            magic, width = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size, b"\0"))
            size = os.fstat(file.fileno()).st_size
        if magic != _MAGIC or size < _HEADER.size + count * width * 4:
            raise FormatError(
                "the file of vectors is damaged",
                value=str(self.path),
                way_out="memory.reembed() makes it anew from the text",
            )
        return np.memmap(self.path, np.float32, "r", _HEADER.size, (count, width))

    def sweep(self) -> None:
        """Overwrite with zeros every row that nobody names.

        The file is never cut: another process may have it mapped.
        """
        if not self.path.exists():
            return
        width = self.width
        named = {row for (row,) in self.database.rows("SELECT row FROM vectors")}
        with told(self.path, self.database.busy_s), open(self.path, "rb+") as file:
            size = os.fstat(file.fileno()).st_size
            stride = 4 * (width or 1)
            for row in range((size - _HEADER.size) // stride):
                if row not in named:
                    file.seek(_HEADER.size + row * stride)
                    file.write(bytes(stride))
            file.flush()
            os.fsync(file.fileno())

    def drop(self) -> None:
        """Forget all vectors and queue every text anew, for another embedder."""
        with self.database.write() as db:
            db.execute("INSERT OR IGNORE INTO pending SELECT kind, seq, owner FROM vectors")
            db.execute("DELETE FROM vectors")
            db.execute("DELETE FROM meta WHERE key IN ('vectors.width', 'vectors.embedder')")
            bump(db)
        self.path.unlink(missing_ok=True)  # who has it mapped keeps the old one


def unit_rows(vectors: Floats) -> Floats:
    """Return the vectors as float32 rows of length 1; a row of zeros stays."""
    import numpy as np

    vectors = np.ascontiguousarray(vectors, np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32, copy=False)
