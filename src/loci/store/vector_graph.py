"""Graphs over vectors: usearch's HNSW, one file for each owner and layer with more than 100,000.

A graph is a guess at what is near, made of the file of vectors and never the other way round. What
`meta` says of it (`graph.OWNER.KIND`: its file, the last row in it, the generation of the vectors)
decides whether it is used: a graph that is missing, cut short or written by another process half
way is as good as none, and is built anew beside the running store.

It keeps 8 bits a number, 1/4 of the vectors' bytes; candidates are compared exactly afterwards.
What is forgotten is overwritten in the file of the graph too. The node stays, names a row nobody
has, and is passed over; when a fifth of the nodes are such, the graph is built anew.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any  # usearch is an extra

from loci.errors import LociError, StorageError

if TYPE_CHECKING:
    from loci.store.vector_file import FileVectors, Snapshot
    from loci.store.vectors import Floats, Ints

# HNSW (Y. Malkov, D. Yashunin, arXiv:1603.09320): links a node, candidates while building and
# while searching. This width, and candidates beyond those asked for (`vector_file`), give recall@10
# of 0.995 on 10^6 vectors drawn around topics at 1/17 of an exact scan (suite memory_speed,
# items=1000000).
_LINKS, _BUILD_WIDTH, _SEARCH_WIDTH = 16, 96, 256
_CHUNK = 2_000  # rows added between two looks at whether to stop
_GROWN = 0.1  # young rows, as a share of the graph's, that make it worth building on
_DEAD = 0.2  # rows that are gone, likewise
_FEW = 50  # forgotten rows that are looked for in the file; for more it is built anew
_KEY = "graph."


@dataclass
class Graph:
    """A graph of one owner and layer, opened.

    Attributes:
        last: the last row it was built of; younger rows are not in it.
        size: rows in it.
        generation: of the vectors when it was built or last swept.
    """

    index: Any
    last: int
    size: int
    generation: str

    def ask(self, query: Floats, count: int) -> Ints:
        """Return rows that are likely the nearest."""
        import numpy as np

        self.index.expansion_search = max(_SEARCH_WIDTH, count)
        return self.index.search(query, count).keys.astype(np.int64)  # type: ignore[no-any-return]


class Graphs:
    """The graphs of one store, beside its file of vectors."""

    def __init__(self, vectors: FileVectors) -> None:
        self._vectors, self._database = vectors, vectors.database
        self._open: dict[tuple[int, int], tuple[str, Graph]] = {}
        self._building: dict[tuple[int, int], threading.Thread] = {}
        self._failed: dict[tuple[int, int], str] = {}
        self._stop = threading.Event()

    @property
    def last(self) -> int:
        """Return the highest row in any graph, -1 if there is none."""
        return max((int(fact["last"]) for fact in self._facts().values()), default=-1)

    def find(self, owner: int, kind: int, rows: Ints) -> Graph | None:
        """Return the graph if it can be asked; sees to one that has grown old.

        `rows` are those of the owner's vectors in that layer, rising.
        """
        graph = self._opened(owner, kind)
        if graph is not None and _is_old(graph, rows):
            self.build_beside(owner, kind)
        return graph

    def settle(self, owner: int, kind: int) -> None:
        """Build a graph if there is none, or an old one, here and now."""
        if is_installed():
            self._build(owner, kind, threads=0)

    def build_beside(self, owner: int, kind: int) -> str:
        """Build on a thread of its own; returns how that stands."""
        if not is_installed():
            return "usearch, which would index them, is not installed (pip install 'loci[ann]')"
        key = (owner, kind)
        if key in self._failed:
            return f"building their index failed: {self._failed[key]}"
        if key not in self._building and not self._stop.is_set():

            def work() -> None:
                try:
                    self._build(owner, kind, threads=1)
                except LociError as problem:
                    if not self._stop.is_set():
                        self._failed[key] = problem.what
                finally:
                    self._building.pop(key, None)

            self._building[key] = threading.Thread(target=work, daemon=True)
            self._building[key].start()
        return "their index is being built (loci memory index waits for it)"

    def sweep(self, named: Collection[int]) -> None:
        """Overwrite in every graph the rows that are not named; inside a transaction."""
        for path in self._files(".new"):  # of a process that was killed while it built one
            with _locked(path, wait=False) as is_ours:
                if is_ours:
                    path.unlink(missing_ok=True)
        for key, fact in self._facts().items():
            path = self._path(fact["file"])
            graph = self._read(fact)
            if graph is None or not _overwritten(graph, path, named):
                self._forget(key, path)
                continue
            fact["generation"] = self._vectors.generation
            self._database.set_meta(key, json.dumps(fact))

    def drop(self) -> None:
        """Forget all graphs."""
        for key, fact in self._facts().items():
            self._forget(key, self._path(fact["file"]))

    def close(self) -> None:
        """Stop building."""
        self._stop.set()
        for thread in list(self._building.values()):
            thread.join()
        self._open.clear()

    # -- private ------------------------------------------------------------------------------

    def _opened(self, owner: int, kind: int) -> Graph | None:
        """Return a graph that `meta` speaks of and that is as it was written."""
        text = self._database.meta(f"{_KEY}{owner}.{kind}")
        if text is None or not is_installed():
            return None
        have = self._open.get((owner, kind))
        if have is None or have[0] != text:
            graph = self._read(json.loads(text))
            if graph is None:
                return None
            have = self._open[owner, kind] = (text, graph)
        return have[1]

    def _facts(self) -> dict[str, dict[str, Any]]:
        sql = "SELECT key, value FROM meta WHERE key >= ? AND key < ?"
        found = self._database.rows(sql, (_KEY, _KEY + "~"))
        return {str(key): json.loads(value) for key, value in found}

    def _path(self, name: str) -> Path:
        return self._vectors.path.with_name(name)

    def _files(self, end: str) -> list[Path]:
        name = escape(self._vectors.path.name)
        return sorted(self._vectors.path.parent.glob(f"{name}.*{end}"))

    def _forget(self, key: str, path: Path) -> None:
        path.unlink(missing_ok=True)  # who has it mapped keeps it, and asks it no more
        with self._database.write() as db:
            db.execute("DELETE FROM meta WHERE key = ?", (key,))

    def _read(self, fact: dict[str, Any]) -> Graph | None:
        """Return a graph from its file; None where that is missing or not as it was written."""
        from usearch.index import Index

        path = self._path(fact["file"])
        try:
            if path.stat().st_size != fact["bytes"]:
                return None
            index = Index.restore(path, view=True)
        except (OSError, RuntimeError, ValueError):  # what usearch raises for a bad file
            return None
        if index is None or len(index) != fact["size"] or index.ndim != self._vectors.width:
            return None
        return Graph(index, int(fact["last"]), int(fact["size"]), str(fact["generation"]))

    def _build(self, owner: int, kind: int, *, threads: int) -> None:
        """Build a graph of all rows there are now, and put it into place."""
        stem = f"{self._vectors.path.name}.{owner}.{kind}"
        fresh = self._path(f"{stem}.new")
        with _locked(fresh, wait=True):
            try:
                seen = self._vectors.snapshot()
                rows, _ = seen.places(owner, kind)
                graph = self._opened(owner, kind)
                if not len(rows) or (graph is not None and not _is_old(graph, rows)):
                    return  # another process has built it meanwhile
                index = self._made(seen, rows, threads)
                if index is not None:
                    index.save(str(fresh))
                    last, size = int(rows[-1]), len(index)
                    self._put(stem, fresh, Graph(index, last, size, seen.generation), owner, kind)
            finally:
                fresh.unlink(missing_ok=True)

    def _put(self, stem: str, fresh: Path, graph: Graph, owner: int, kind: int) -> None:
        """Put a new graph into place, without what was forgotten while it was built."""
        key, name = f"{_KEY}{owner}.{kind}", f"{stem}.{secrets.token_hex(4)}.ann"
        with self._database.write():
            if self._vectors.generation != graph.generation:
                sql = "SELECT row FROM vectors"
                named = {int(row) for (row,) in self._database.rows(sql)}
                if not _overwritten(graph, fresh, named):
                    return
            before = self._facts().get(key)
            _flush(fresh)
            os.replace(fresh, self._path(name))
            fact = {
                "file": name,
                "bytes": self._path(name).stat().st_size,
                "last": graph.last,
                "size": graph.size,
                "generation": self._vectors.generation,
            }
            self._database.set_meta(key, json.dumps(fact))
        if before is not None:
            self._path(before["file"]).unlink(missing_ok=True)

    def _made(self, seen: Snapshot, rows: Ints, threads: int) -> Any:
        """Return an index of rows; None if the store is closed meanwhile."""
        from usearch.index import Index, MetricKind, ScalarKind

        assert seen.matrix is not None
        index = Index(
            ndim=seen.matrix.shape[1],
            metric=MetricKind.IP,
            dtype=ScalarKind.I8,
            connectivity=_LINKS,
            expansion_add=_BUILD_WIDTH,
        )
        for start in range(0, len(rows), _CHUNK):
            if self._stop.is_set():
                return None
            part = rows[start : start + _CHUNK]
            index.add(part, seen.matrix[part], threads=threads)
        return index


def is_installed() -> bool:
    """Return whether usearch is there."""
    return util.find_spec("usearch") is not None


def _overwritten(graph: Graph, path: Path, named: Collection[int]) -> bool:
    """Write zeros over rows that are not named; False if they are many, or one is not found."""
    import numpy as np

    holes = np.setdiff1d(np.arange(graph.last + 1), np.fromiter(named, np.int64, len(named)))
    holes = holes[graph.index.contains(holes)] if len(holes) else holes
    stored: Counter[bytes] = Counter()
    for row in holes:
        vector = graph.index.get(int(row)).tobytes()
        if any(vector):  # else it was overwritten before
            stored[vector] += 1
            if stored.total() > _FEW:
                return False
    if not stored:
        return True
    with open(path, "rb+") as file, mmap.mmap(file.fileno(), 0) as data:
        for vector, times in stored.items():
            places: list[int] = []
            while (at := data.find(vector, places[-1] + 1 if places else 0)) >= 0:
                places.append(at)
            if len(places) != times:
                return False  # a live row has a twin's bytes, and must stay to be found
            for at in places:
                data[at : at + len(vector)] = bytes(len(vector))
        data.flush()
    return True


def _is_old(graph: Graph, rows: Ints) -> bool:
    """Return whether so much came or went since that the graph should be built anew."""
    young = len(rows) - int(rows.searchsorted(graph.last, side="right"))
    dead = graph.size - (len(rows) - young)
    return young > _GROWN * graph.size or dead > _DEAD * graph.size


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a file that is being built; yields whether it is ours."""
    import fcntl  # here: Windows has none, and only reads

    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as problem:
            raise StorageError(
                f"an index of vectors cannot be written: {problem.strerror}", value=str(path)
            ) from problem
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if not _is_same(descriptor, path):
                continue  # whoever held it has put it into place: wait for the next
            yield True
            return
        finally:
            os.close(descriptor)


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
