"""How fast a memory is, against bare SQLite and bare numpy doing the same work in the same run.

    adds one by one      acknowledged adds a second, against a loop of plain inserts into the same
                         tables with the same full text and one commit each
    adds in batches      adds a second in batches of 1,000, against adds one by one
    search               median time over many rows with given vectors, against the same product
                         and top-k in numpy plus one full-text query of the same words in SQLite

With `--option turns=N`, what embedding costs: N messages acknowledged in batches of 1,000, and
embedded until none waits, against an embedder that is given one message after the other.

With `--option items=N` the search is over N items, above 100,000 by a graph: its vector part alone
and the whole of it, against the exact scan and the bare full-text query. Vectors are drawn as those
of texts lie: around topics, in a space whose spectrum falls. `--option shape=uniform` draws them
without any order, which no index can use, and shows how far recall falls then.

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
from loci.errors import ParameterError
from loci.run.memory import Memory
from loci.store.rows import key_words
from loci.store.sqlite import SqliteDatabase
from loci.text.stem import stems
from loci.units import nearest

ABOUT = "adds and searches of a text memory, against bare SQLite and numpy"

WIDTH = 384  # of the default embedder
_WORDS = 8000
_TOP = 10
_POOL = 200  # candidates a hybrid search asks of each signal
_OPTIONS = ("rows", "folder", "turns", "items", "shape")
_PER_TOPIC = 50  # items around one topic
_NOISE = 0.9  # of an item, against the length of its topic


def run(context: Context) -> dict[str, Any]:
    """Measure in a temporary folder; see above for the options."""
    given = context.options
    for name in given:
        if name not in _OPTIONS:
            near = nearest(name, _OPTIONS)
            raise ParameterError(
                "memory_speed has no such option",
                value=name,
                allowed=", ".join(_OPTIONS),
                way_out=f"did you mean {near!r}?" if near else (),
            )
    rows = int(given.get("rows", 5_000 if context.quick else 100_000))
    items, turns = int(given.get("items", 0)), int(given.get("turns", 0))
    parts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=given.get("folder")) as folder:
        if turns:
            parts.append(_embedding(Path(folder), context, turns))
        if items:
            parts.append(_scale(Path(folder), context, items, given.get("shape", "topics")))
        if not parts or "rows" in given:
            parts.insert(0, _plain(Path(folder), context, rows))
    result: dict[str, Any] = {"width": WIDTH}
    for part in parts:
        for key, value in part.items():
            if key in ("ratio", "target"):
                result[key] = {**result.get(key, {}), **value}
            else:
                result[key] = value
    return result


def _plain(folder: Path, context: Context, rows: int) -> dict[str, Any]:
    texts = _texts(max(rows, 4_000), context.seed)
    context.progress("adds one by one", 0, 3)
    single, bare = _one_by_one(folder, texts, 100 if context.quick else 400)
    context.progress("adds in batches", 1, 3)
    batch = _batches(folder, texts, 2 if context.quick else 8)
    context.progress("searches", 2, 3)
    found = _searches(folder, texts[:rows], 10 if context.quick else 40, context.seed)
    context.progress("done", 3, 3)
    return {
        "rows": rows,
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


# -- embedding --------------------------------------------------------------------------------


def _embedding(folder: Path, context: Context, turns: int) -> dict[str, Any]:
    """Return how fast messages are acknowledged and embedded, in alternating rounds."""
    from loci.models.embed import MiniLM
    from loci.text.dialogue import make_dialogue, turns_of

    embedder = MiniLM(context.folder / "minilm")
    chosen = random.Random(context.seed)
    said = [t.content for seed in range(40) for t in turns_of(make_dialogue(seed))]
    texts = [" ".join(chosen.sample(said, chosen.randint(1, 6))) for _ in range(turns)]
    embedder.encode(texts[:8])
    spent = dict.fromkeys(("one", "acknowledged", "embedded"), 0.0)
    alone, size = 0, min(1000, turns)
    with Memory(folder / "turns.db", embedder=embedder) as memory:
        for start in range(0, turns, size):
            context.progress("messages", start, turns)
            part = texts[start : start + size]
            few = part[: max(1, size // 10)]
            alone += len(few)
            spent["one"] += _seconds(lambda few=few: [embedder.encode([text]) for text in few])
            spent["acknowledged"] += _seconds(
                lambda part=part: memory.add(part, user="ada", session="s", infer=False)
            )
            spent["embedded"] += _seconds(memory.wait)
    rates = {
        "one_by_one": alone / spent["one"],
        "acknowledged": turns / spent["acknowledged"],
        "embedded": turns / (spent["acknowledged"] + spent["embedded"]),
    }
    return {
        "turns": turns,
        "messages_per_s": rates,
        "ratio": {
            "acknowledged.one_by_one": rates["acknowledged"] / rates["one_by_one"],
            "embedded.one_by_one": rates["embedded"] / rates["one_by_one"],
        },
        "target": {"acknowledged.one_by_one": ">= 20", "embedded.one_by_one": ">= 2.2"},
    }


# -- many items -------------------------------------------------------------------------------


def _scale(folder: Path, context: Context, items: int, shape: str) -> dict[str, Any]:
    """Return what a search over many items takes, part by part, and what the graph misses."""
    if shape not in ("topics", "uniform"):
        raise ParameterError("unknown shape", value=shape, allowed="topics, uniform")
    asked = 10 if context.quick else 40
    generator = np.random.default_rng(context.seed)
    vectors = _drawn(items + asked + 1, shape, generator)
    vectors, questions = vectors[:items], vectors[items:]
    texts = _texts(items, context.seed)
    chosen = random.Random(context.seed + 1)
    queries = [
        "what was the " + " ".join(chosen.sample(chosen.choice(texts).split()[3:], 3))
        for _ in questions
    ]
    given = dict(zip(queries, questions, strict=True))
    times: dict[str, list[float]] = {
        name: [] for name in ("hybrid", "vectors", "pool", "exact", "fts5")
    }
    recall: list[float] = []
    with Memory(folder / "items.db", embedder=_Given(given)) as memory:
        size = 10_000
        for first in range(0, items, size):
            context.progress("items", first, items)
            part = slice(first, first + size)
            memory.add_many(texts[part], user="ada", session=f"s{first}", vectors=vectors[part])
        context.progress("index", items, items)
        build = _seconds(memory.wait)
        database = memory.store.database  # type: ignore[attr-defined]
        sql = (
            "SELECT rowid, bm25(turn_words) FROM turn_words WHERE turn_words MATCH ? "
            "ORDER BY rank LIMIT ?"
        )
        scope, limits = memory._scope("ada"), memory._asked(None, None, None)
        for number, (query, vector) in enumerate(given.items()):
            words = " OR ".join(f'"{word}"' for word in dict.fromkeys(stems(query)))
            found: dict[str, Any] = {}

            def dense(count: int, name: str, q: str = query, found: Any = found) -> None:
                view = memory._view(scope, limits, dense=True)
                found[name] = view.search_dense(q, count, "turn")
                assert not view.notes, view.notes

            def exact(v: np.ndarray = vector, found: Any = found) -> None:
                found["exact"] = _top(vectors @ v)

            taken = {
                "hybrid": _seconds(lambda q=query: memory.search(q, user="ada", limit=_TOP)),
                "vectors": _seconds(lambda dense=dense: dense(_TOP, "vectors")),
                "pool": _seconds(lambda dense=dense: dense(_POOL, "pool")),
                "exact": _seconds(exact),
                "fts5": _seconds(
                    lambda w=words: database.connection.execute(sql, (w, _TOP)).fetchall()
                ),
            }
            real = {f"t{place + 1}" for place in found["exact"]}
            if number:  # the first warms the caches of all
                recall.append(len(real & {id for id, _ in found["vectors"]}) / _TOP)
                for name, value in taken.items():
                    times[name].append(value)
    middle = {name: median(values) for name, values in times.items()}
    return {
        "items": items,
        "shape": shape,
        "index_build_s": build,
        "scale_p50_s": middle,
        "recall_at_10": sum(recall) / len(recall),
        "ratio": {
            "vectors.exact": middle["vectors"] / middle["exact"],
            "pool.exact": middle["pool"] / middle["exact"],
            "hybrid.exact_and_fts5": middle["hybrid"] / (middle["exact"] + middle["fts5"]),
        },
        "target": {
            "vectors.exact": "<= 0.1",
            "hybrid.exact_and_fts5": "<= 0.4",
            "recall_at_10": ">= 0.95",
        },
    }


def _drawn(count: int, shape: str, generator: np.random.Generator) -> np.ndarray:
    """Return unit vectors, float32 [count, width]."""
    made = generator.standard_normal((count, WIDTH), dtype=np.float32)
    if shape == "topics":
        # Axis i has variance 1 / (1 + i / 16): half of it lies in the first 60 of 384.
        scale = (1 + np.arange(WIDTH, dtype=np.float32) / 16) ** -0.5
        topics = generator.standard_normal((max(1, count // _PER_TOPIC), WIDTH), dtype=np.float32)
        of = generator.integers(0, len(topics), count)
        for first in range(0, count, 100_000):
            part = slice(first, first + 100_000)
            made[part] = (topics[of[part]] + _NOISE * made[part]) * scale
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made
