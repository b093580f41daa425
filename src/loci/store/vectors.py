"""Vectors of turns and items: unit rows, found again by their cosine.

What every database does alike. `vector_file` keeps them in a file beside SQLite's, and
`postgres_vectors` in a table of pgvector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from loci.errors import FingerprintError, ParameterError
from loci.store.fulltext import Condition, Layer
from loci.store.writes import bump

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from loci.store.database import Database, Writer

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

EXACT_ROWS = 100_000
"""Up to so many vectors of one owner and layer all are compared; above, an index is asked."""


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

    def close(self) -> None:  # noqa: B027 - nothing to do is a good answer
        """Stop what works beside the store; closing twice is fine."""

    @abstractmethod
    def sweep(self) -> list[str]:
        """Overwrite every vector nobody names; returns what could not be overwritten."""

    @abstractmethod
    def _store(self, db: Writer, entries: Sequence[tuple[int, int, int]], vectors: Floats) -> None:
        """Write unit rows and name them, inside a transaction."""


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


def unit_rows(vectors: Floats) -> Floats:
    """Return the vectors as float32 rows of length 1; a row of zeros stays."""
    import numpy as np

    vectors = np.ascontiguousarray(vectors, np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32, copy=False)
