"""How fast a memory is, against bare SQLite and bare numpy doing the same work in the same run.

    adds one by one      acknowledged adds a second, against a loop of plain inserts into the same
                         tables with the same full text and one commit each
    adds in batches      adds a second in batches of 1,000, against adds one by one
    search               median time over many rows with given vectors, against the same product
                         and top-k in numpy plus one full-text query of the same words in SQLite

Rivals run in the same process and alternate with ours.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any  # results hold whatever JSON can hold

import numpy as np

from loci.bench.suite import Context
from loci.run.memory import Memory
from loci.store.rows import key_words
from loci.store.sqlite import SqliteDatabase
from loci.text.stem import stems

ABOUT = "adds and searches of a text memory, against bare SQLite and numpy"

WIDTH = 384  # of the default embedder
_WORDS = 8000
_TOP = 10


def run(context: Context) -> dict[str, Any]:
    """Measure in a temporary folder; `rows=N` and `folder=PATH` are options."""
    rows = int(context.options.get("rows", 5_000 if context.quick else 100_000))
    place = context.options.get("folder")
    with tempfile.TemporaryDirectory(dir=place) as folder:
        texts = _texts(max(rows, 4_000), context.seed)
        context.progress("adds one by one", 0, 3)
        single, bare = _one_by_one(Path(folder), texts, 100 if context.quick else 400)
        context.progress("adds in batches", 1, 3)
        batch = _batches(Path(folder), texts, 2 if context.quick else 8)
        context.progress("searches", 2, 3)
        found = _searches(Path(folder), texts[:rows], 10 if context.quick else 40, context.seed)
        context.progress("done", 3, 3)
    return {
        "rows": rows,
        "width": WIDTH,
        "adds_per_s": {"single": single, "batch_1000": batch, "bare_sqlite": bare},
        "search_p50_s": found,
        "ratio": {
            "add.bare_sqlite": single / bare,
            "add_batch.single": batch / single,
            "search.bare": found["loci"] / (2 * found["numpy"] + found["fts5"]),
        },
        "target": {
            "add.bare_sqlite": ">= 0.4",
            "add_batch.single": ">= 10",
            "search.bare": "<= 1",
        },
    }


def _texts(count: int, seed: int) -> list[str]:
    """Return messages of 6 to 20 words whose frequencies fall as in English (Zipf)."""
    chosen = random.Random(seed)
    letters = "abcdefghiklmnoprstuvw"
    words = ["".join(chosen.choices(letters, k=chosen.randint(3, 9))) for _ in range(_WORDS)]
    weights = [1 / (rank + 10) for rank in range(_WORDS)]
    return [
        " ".join(("I", "was", "the", *chosen.choices(words, weights, k=chosen.randint(3, 17))))
        for _ in range(count)
    ]


def _one_by_one(folder: Path, texts: Sequence[str], count: int) -> tuple[float, float]:
    """Return (our adds a second, plain inserts a second), in alternating rounds."""
    spent = {"ours": 0.0, "bare": 0.0}
    bare = SqliteDatabase(folder / "bare.db", 10.0).connection
    rounds, size = 8, count // 8
    with Memory(folder / "single.db") as memory:
        for part in range(rounds):
            mine = texts[part * size : (part + 1) * size]
            start = time.perf_counter()
            for text in mine:
                memory.add(text, user="ada", session="s", infer=False)
            spent["ours"] += time.perf_counter() - start
            words = [" ".join(stems(text)) for text in mine]
            start = time.perf_counter()
            for place, (text, stemmed) in enumerate(zip(mine, words, strict=True)):
                _insert(bare, part * size + place + 1, text, stemmed)
            spent["bare"] += time.perf_counter() - start
    bare.close()
    done = rounds * size
    return done / spent["ours"], done / spent["bare"]


def _insert(db: sqlite3.Connection, seq: int, text: str, words: str) -> None:
    """Insert one message by hand: the same rows an add leaves behind, and a commit."""
    db.execute("BEGIN IMMEDIATE")
    db.execute(
        "INSERT INTO turns (seq, role, content, said_at, offset_s, zone_assumed, position, "
        "session, owner, recorded_at) VALUES (?, 'user', ?, 0, 0, 0, ?, 's', 1, 0)",
        (seq, text, seq),
    )
    db.execute(
        "INSERT INTO turn_words (rowid, key, words) VALUES (?, ?, ?)",
        (seq, key_words(1, None, "s"), words),
    )
    db.execute("INSERT INTO pending (kind, seq, owner) VALUES (0, ?, 1)", (seq,))
    db.execute(
        "INSERT INTO audit (at, owner, action, subject, digest) VALUES (0, 1, 'add', ?, ?)",
        (f"t{seq}", bytes(32)),
    )
    db.execute("COMMIT")


def _batches(folder: Path, texts: Sequence[str], count: int) -> float:
    with Memory(folder / "batch.db") as memory:
        memory.add(list(texts[:100]), user="ada", infer=False)
        start = time.perf_counter()
        for part in range(count):
            first = part * 1000 % max(1, len(texts) - 1000)
            memory.add(list(texts[first : first + 1000]), user="ada", session="s", infer=False)
        return count * 1000 / (time.perf_counter() - start)


class _Given:
    """An embedder that has every vector at hand."""

    fingerprint = "given"

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self._vectors = vectors

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors given for these texts; the first one for others."""
        first = next(iter(self._vectors.values()))
        return np.stack([self._vectors.get(text, first) for text in texts])


def _searches(folder: Path, texts: Sequence[str], count: int, seed: int) -> dict[str, float]:
    """Return median seconds of our search, numpy's product and top-k, and a plain FTS5 query."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((len(texts), WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = random.Random(seed + 1)
    queries = [
        "what was the " + " ".join(chosen.sample(chosen.choice(texts).split()[3:], 3))
        for _ in range(count + 1)
    ]
    asked = {text: generator.standard_normal(WIDTH, dtype=np.float32) for text in queries}
    with Memory(folder / "search.db", embedder=_Given(asked)) as memory:
        for first in range(0, len(texts), 1000):
            part = list(texts[first : first + 1000])
            memory.add_many(
                part, user="ada", session=f"s{first}", vectors=vectors[first : first + 1000]
            )
        database = memory.store.database  # type: ignore[attr-defined]
        sql = (
            "SELECT rowid, bm25(turn_words) FROM turn_words WHERE turn_words MATCH ? "
            "ORDER BY rank LIMIT ?"
        )
        times: dict[str, list[float]] = {"loci": [], "numpy": [], "fts5": []}
        for number, query in enumerate(queries):
            words = " OR ".join(f'"{word}"' for word in dict.fromkeys(stems(query)))
            taken = {
                "loci": _seconds(lambda q=query: memory.search(q, user="ada", limit=_TOP)),
                "numpy": _seconds(lambda q=query: _top(vectors @ asked[q])),
                "fts5": _seconds(
                    lambda w=words: database.connection.execute(sql, (w, _TOP)).fetchall()
                ),
            }
            if number:  # the first warms the caches of all three
                for name, value in taken.items():
                    times[name].append(value)
    return {name: median(values) for name, values in times.items()}


def _top(scores: np.ndarray) -> np.ndarray:
    best = np.argpartition(scores, -_TOP)[-_TOP:]
    return best[np.argsort(-scores[best])]


def _seconds(work: Callable[..., object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
