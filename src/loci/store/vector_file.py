"""Vectors in a file beside SQLite's: float32 rows, memory-mapped.

A row counts only when the table `vectors` names it. Rows are written and flushed before the
transaction that names them commits, so a killed process leaves at most rows nobody reads. The file
is a header of 64 bytes and then rows.

Up to 100,000 vectors of one owner and layer all are compared. Above, a graph (`vector_graph`) names
candidates, which are looked up in the table and compared exactly: a graph can miss something near,
and cannot bring back what is gone. Rows younger than the graph are all compared.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loci.errors import FingerprintError, FormatError, StorageError
from loci.store import vectors as shared
from loci.store.fulltext import Condition, Layer
from loci.store.rows import ITEM, TURN
from loci.store.vector_graph import Graph, Graphs
from loci.store.vectors import Near, VectorIndex, allowed_of, unit_rows

if TYPE_CHECKING:
    from loci.store.database import Database, Writer
    from loci.store.vectors import Floats, Ints

_HEADER = struct.Struct("<8sI52x")
_MAGIC = b"LOCIVEC1"
_MARGIN = 32  # more than asked for, since a graph ranks by 8 bits a number and we by all of them
_MOST_ASKED = 8192  # of a graph; who needs more compares all


class Snapshot:
    """The rows that were named at one moment, and the file as far as they reach.

    Attributes:
        generation: changes when vectors go away.
        rows: [n, 4]: row, kind, number, owner; by row.
        matrix: float32 [rows of the file, width]; None while there is no vector.
    """

    def __init__(self, generation: str, rows: Ints, matrix: Floats | None) -> None:
        self.generation, self.rows, self.matrix = generation, rows, matrix
        self._places: dict[tuple[int, int], tuple[Ints, Ints]] = {}

    def places(self, owner: int, kind: int) -> tuple[Ints, Ints]:
        """Return (rows, numbers) of an owner's vectors in one layer, [n] each, by row."""
        import numpy as np

        key = (owner, kind)
        if key not in self._places:
            mine = self.rows[(self.rows[:, 3] == owner) & (self.rows[:, 1] == kind)]
            self._places[key] = np.ascontiguousarray(mine[:, 0]), np.ascontiguousarray(mine[:, 2])
        return self._places[key]

    def cosines(self, rows: Ints, query: Floats) -> Floats:
        """Return the cosines of these rows, [n]."""
        assert self.matrix is not None
        if len(rows) == len(self.matrix):
            return self.matrix @ query  # no holes: the row is the place
        if 2 * len(rows) >= len(self.matrix):
            return (self.matrix @ query)[rows]  # a pass over all is faster than picking half
        return self.matrix[rows] @ query


class FileVectors(VectorIndex):
    """Rows of a file; opened when the first is needed."""

    def __init__(self, database: Database, path: Path) -> None:
        super().__init__(database)
        self.path = path
        self.graphs = Graphs(self)
        self._seen: Snapshot | None = None

    def near(self, query: Floats, owner: int) -> Near:
        """Return what is near to a vector among an owner's."""
        import numpy as np

        seen = self.snapshot()
        query = unit_rows(np.asarray(query, np.float32).reshape(1, -1))[0]
        if seen.matrix is not None and len(query) != seen.matrix.shape[1]:
            raise FingerprintError(
                "the question's vector has another width than those stored",
                value=len(query),
                allowed=str(seen.matrix.shape[1]),
            )
        return _Near(self.database, self.graphs, seen, owner, query)

    @property
    def generation(self) -> str:
        """Return what changes when vectors go away."""
        return self.database.meta("vectors.generation") or ""

    def snapshot(self) -> Snapshot:
        """Read the rows that came since the last time; all of them after an erasure."""
        import numpy as np

        with self.database.lock:
            generation, seen = self.generation, self._seen
            have = seen.rows if seen is not None and seen.generation == generation else None
            after = int(have[-1, 0]) if have is not None and len(have) else -1
            sql = "SELECT row, kind, seq, owner FROM vectors WHERE row > ? ORDER BY row"
            new = self.database.rows(sql, (after,))
            if seen is None or have is None or new:
                rows = np.array(new, np.int64).reshape(-1, 4)
                if have is not None and len(have):
                    rows = np.concatenate([have, rows])
                matrix = self._map(int(rows[-1, 0]) + 1) if len(rows) else None
                seen = self._seen = Snapshot(generation, rows, matrix)
            return seen

    def settle(self) -> None:
        """Build the graph of every owner that has more than 100,000 vectors in a layer."""
        for owner, kind in self.crowded():
            self.graphs.settle(owner, kind)

    def crowded(self) -> list[tuple[int, int]]:
        """Return (owner, kind) of those with more than 100,000 vectors."""
        sql = "SELECT owner, kind FROM vectors GROUP BY owner, kind HAVING count(*) > ?"
        return [(int(a), int(b)) for a, b in self.database.rows(sql, (shared.EXACT_ROWS,))]

    def sweep(self) -> list[str]:
        """Overwrite with zeros every row that nobody names, here and in the graphs.

        The file is never cut: another process may have it mapped.
        """
        if not self.path.exists():
            return []
        # Inside a transaction: a row that another process has written but not named yet would be
        # taken for one nobody names.
        with self.database.write(), told(self.path), open(self.path, "rb+") as file:
            width = self.width
            named = {row for (row,) in self.database.rows("SELECT row FROM vectors")}
            self.graphs.sweep(named)
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
        self.graphs.drop()
        self.path.unlink(missing_ok=True)  # who has it mapped keeps the old one

    def close(self) -> None:
        """Stop building graphs."""
        self.graphs.close()

    # -- private ------------------------------------------------------------------------------

    def _store(self, db: Writer, entries: Sequence[tuple[int, int, int]], vectors: Floats) -> None:
        last = db.execute("SELECT max(row) FROM vectors").fetchone()[0]
        # A number that a graph knows is not given again: it would find the old vector under it.
        first = max(-1 if last is None else int(last), self.graphs.last) + 1
        with told(self.path):
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

    def _map(self, count: int) -> Floats:
        import numpy as np

        with told(self.path), open(self.path, "rb") as file:
            magic, width = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size, b"\0"))
            size = os.fstat(file.fileno()).st_size
        if magic != _MAGIC or size < _HEADER.size + count * width * 4:
            raise FormatError(
                "the file of vectors is damaged",
                value=str(self.path),
                way_out="memory.reembed() makes it anew from the text",
            )
        return np.memmap(self.path, np.float32, "r", _HEADER.size, (count, width))


class _Near:
    """A vector and what it was compared with so far."""

    def __init__(
        self, database: Database, graphs: Graphs, seen: Snapshot, owner: int, query: Floats
    ) -> None:
        self._database, self._graphs, self._seen = database, graphs, seen
        self._owner, self._query = owner, query
        self._exact: dict[int, tuple[Ints, Floats]] = {}
        self.notes: list[str] = []

    def best(self, kind: Layer, limit: int, condition: Condition) -> list[tuple[int, float]]:
        """Return the nearest that are allowed; looks further while too few are."""
        layer = TURN if kind == "turn" else ITEM
        rows, seqs = self._seen.places(self._owner, layer)
        if len(rows) > shared.EXACT_ROWS:
            graph = self._graphs.find(self._owner, layer, rows)
            if graph is not None:
                found = self._by_graph(graph, rows, seqs, kind, limit, condition)
                if found is not None:
                    return found
            else:
                why = self._graphs.build_beside(self._owner, layer)
                self.notes.append(f"{len(rows):,} vectors of {kind}s were all compared: {why}")
        return self._best_of(*self._compared(layer), kind, limit, condition)

    def _best_of(
        self, seqs: Ints, scores: Floats, kind: Layer, limit: int, condition: Condition
    ) -> list[tuple[int, float]]:
        import numpy as np

        asks = bool(condition[0])
        count = limit * 2 if asks else limit
        while True:
            places = np.arange(len(scores))
            if len(scores) > count:
                places = np.argpartition(scores, -count)[-count:]
            places = places[np.lexsort((seqs[places], -scores[places]))]
            if asks:
                places = places[self._allowed(seqs[places], kind, condition)]
            if len(places) >= limit or count >= len(scores):
                return [(int(seqs[at]), float(scores[at])) for at in places[:limit]]
            count *= 8

    def _compared(self, layer: int) -> tuple[Ints, Floats]:
        """Return (numbers, cosines) of all of a layer; both layers in one pass where both fit."""
        import numpy as np

        if layer not in self._exact:
            parts = {kind: self._seen.places(self._owner, kind) for kind in (TURN, ITEM)}
            if max(len(rows) for rows, _ in parts.values()) > shared.EXACT_ROWS:
                parts = {layer: parts[layer]}
            filled = [rows for rows, _ in parts.values() if len(rows)]
            at = (
                filled[0]
                if len(filled) == 1
                else np.sort(np.concatenate([rows for rows, _ in parts.values()]))
            )
            scores = self._seen.cosines(at, self._query) if len(at) else np.empty(0, np.float32)
            for kind, (rows, seqs) in parts.items():
                mine = scores if rows is at else scores[np.searchsorted(at, rows)]
                self._exact[kind] = (seqs, mine)
        return self._exact[layer]

    def _by_graph(
        self,
        graph: Graph,
        rows: Ints,
        seqs: Ints,
        kind: Layer,
        limit: int,
        condition: Condition,
    ) -> list[tuple[int, float]] | None:
        """Return the best of what the graph names and what is younger; None if too few."""
        import numpy as np

        young = np.arange(np.searchsorted(rows, graph.last, side="right"), len(rows))
        count = limit * 2 if condition[0] else limit
        while count <= _MOST_ASKED:
            named = np.unique(graph.ask(self._query, count + _MARGIN))
            at = np.minimum(np.searchsorted(rows, named), len(rows) - 1)
            chosen = np.concatenate([at[rows[at] == named], young])
            scores = self._seen.cosines(rows[chosen], self._query)
            order = np.lexsort((seqs[chosen], -scores))
            best, scores = seqs[chosen][order], scores[order]
            if condition[0]:
                kept = self._allowed(best, kind, condition)
                best, scores = best[kept], scores[kept]
            if len(best) >= limit:
                return [(int(s), float(c)) for s, c in zip(best[:limit], scores, strict=False)]
            count *= 8
        return None

    def _allowed(self, seqs: Ints, kind: Layer, condition: Condition) -> list[bool]:
        wanted = [int(seq) for seq in seqs]
        found = allowed_of(self._database, self._owner, kind, wanted, condition)
        return [seq in found for seq in wanted]


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Raise errors of the file system as ours."""
    try:
        yield
    except OSError as problem:
        raise StorageError(
            f"cannot use the file of vectors: {problem.strerror or problem}", value=str(path)
        ) from problem
