"""What a server alone has: the same ranks as SQLite, its errors, its indexes, its files."""

from __future__ import annotations

import random
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memories import Hashing, Plain

from loci.errors import FingerprintError, LociError, ParameterError, SchemaError, StoreError
from loci.run.memory import Memory
from loci.store import postgres_vectors, vectors
from loci.store.database import VERSION
from loci.store.postgres import marked, read_url
from loci.store.postgres_words import PostgresWords
from loci.store.schema import postgres_script
from loci.text.dialogue import make_dialogue
from loci.text.stem import stems

Place = Callable[[str], str]
MIGRATIONS = Path(vectors.__file__).parent / "migrations"

WORDS = ["bee", "hive", "honey", "wax", "queen", "o'clock", "drone", "won't", "café", "Zoë", "2024"]


def said(count: int, seed: int) -> list[dict[str, Any]]:
    chosen = random.Random(seed)
    return [
        {
            "name": chosen.choice(["Ada", "Bo", None]),
            "content": " ".join(chosen.choices(WORDS, range(1, len(WORDS) + 1), k=length)),
            "metadata": {"ref": number, "tag": chosen.choice(["a", "b"])},
        }
        for number, length in enumerate(chosen.choices(range(1, 15), k=count))
    ]


def filled(place: str | Path, embedder: Any = None) -> Memory:
    memory = Memory(place, recall=Plain(), embedder=embedder)
    for part, user in enumerate(("ada", "bob", "ada", "ada")):
        agent = "x" if part == 2 else None
        messages = said(40, part)
        memory.add(messages, user=user, session=f"s{part}", agent=agent, time="2026-01-01")
    for word in ("bee hive", "honey", "wax queen o'clock"):
        memory.note(f"note of {word}", user="ada")
    memory.edit("i2", "note of honey and clover")
    memory.forget("t7")
    return memory


def test_the_script_is_what_the_tables_say() -> None:
    assert (MIGRATIONS / "postgres.sql").read_text("utf-8") == postgres_script()


def test_full_text_scores_as_sqlite_does(tmp_path: Path, postgres_place: Place) -> None:
    memories = [filled(tmp_path / "m.db"), filled(postgres_place("m"))]
    every = stems(" ".join(WORDS))
    for words in (["bee"], ["honey", "wax"], ["o'clock"], ["zoe", "cafe"], every, ["nothing"], []):
        for session, kind, context in (
            (None, "turn", 0.0),
            (None, "turn", 0.5),
            ("s2", "turn", 0.0),
            (None, "item", 0.0),
        ):
            found = [
                memory._view(
                    memory._scope("ada", None, session), memory._asked(None, None, None)
                ).search_words(words, 20, kind, context=context)  # type: ignore[arg-type]
                for memory in memories
            ]
            assert found[0] == found[1], (words, session, kind)
    names = ["bee hive", "wax queen", "o'clock", "zoe"]
    found = [
        memory._view(memory._scope("ada"), memory._asked(None, None, None)).search_entities(
            names, 50, "turn"
        )
        for memory in memories
    ]
    assert found[0] == found[1] and found[0]
    for memory in memories:
        assert memory.store.check_integrity() == []
        memory.close()


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, postgres: str
) -> Iterator[tuple[Memory, Memory]]:
    """Return the same memory twice, without texts."""
    folder = tmp_path_factory.mktemp("both")
    with Memory(folder / "m.db") as one, Memory(f"{postgres}&schema=both") as two:
        yield one, two


TEXT = st.text(st.sampled_from("ab é'’1ß中𝔸 \t-_.,\0ıİǅ\u0301ﬁ"), max_size=30)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(TEXT, min_size=1, max_size=5), query=TEXT)
def test_any_text_ranks_the_same(both: tuple[Memory, Memory], texts: list[str], query: str) -> None:
    found = []
    for memory in both:
        try:
            memory.add(texts, user="ada", infer=False)
            found.append([(hit.id, hit.score) for hit in memory.search(query, user="ada")])
        except ParameterError as problem:
            found.append([str(problem)])
    assert found[0] == found[1]


class Drawn:
    """An embedder that draws a vector for each word, so that no two texts are quite as near."""

    fingerprint = "drawn"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([sum(map(self.of, [text, *stems(text)])) for text in texts])

    def of(self, word: str) -> np.ndarray:
        drawn = np.random.default_rng(zlib.crc32(word.encode()))
        return drawn.standard_normal(48).astype(np.float32)


def test_recall_finds_the_same(tmp_path: Path, postgres_place: Place) -> None:
    dialogue = make_dialogue(3, sessions=12)
    memories = [
        Memory(place, embedder=Drawn()) for place in (tmp_path / "m.db", postgres_place("m"))
    ]
    for memory in memories:
        for session in dialogue.sessions:
            memory.add(
                [
                    {"name": turn.name, "content": turn.content, "time": turn.time}
                    for turn in session
                ],
                user="ada",
                session=session[0].session,
            )
    assert len(dialogue.questions) > 5
    for question in dialogue.questions:
        for mode in ("lexical", "hybrid"):
            first, second = (
                memory.search(question.text, user="ada", limit=10, mode=mode)  # type: ignore[arg-type]
                for memory in memories
            )
            assert [hit.id for hit in first] == [hit.id for hit in second]
            scores = [[hit.score for hit in hits] for hits in (first, second)]
            assert np.allclose(*scores, atol=1e-5)
    for memory in memories:
        memory.close()


# ---- the server


def test_two_schemas_are_two_memories(postgres_place: Place) -> None:
    one, two = Memory(postgres_place("one")), Memory(postgres_place("two"))
    one.add("bees", user="ada")
    assert two.users() == [] and two.search("bees", user="ada") == []
    one.close()
    two.close()


def test_a_lost_connection_is_made_again(postgres_memory: Memory, postgres: str) -> None:
    postgres_memory.add("bees", user="ada")

    def cut() -> None:
        pid = postgres_memory.store.database.raw.info.backend_pid  # type: ignore[attr-defined]
        with psycopg.connect(postgres, autocommit=True) as administrator:
            administrator.execute("SELECT pg_terminate_backend(%s)", (pid,))
        time.sleep(0.1)

    cut()
    assert postgres_memory.search("bees", user="ada"), "reading goes on"
    cut()
    with pytest.raises(StoreError, match="connection to the database was lost"):
        postgres_memory.add("wasps", user="ada")
    postgres_memory.add("wasps", user="ada")
    assert postgres_memory.counts(user="ada")["turns"] == 2
    with pytest.raises(StoreError), postgres_memory.store.database.write() as db:  # type: ignore[attr-defined]
        db.execute("DELETE FROM turns")
        cut()
        db.execute("DELETE FROM items")
    assert postgres_memory.counts(user="ada")["turns"] == 2, "half a transaction is none"


def test_what_cannot_be_opened_says_why(postgres: str, postgres_place: Place) -> None:
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        Memory("postgresql://ada:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreError) as caught:
        Memory("postgresql:///db?host=/nowhere&password=secret")
    assert "secret" not in str(caught.value)
    for schema in ("Loci", "pg_toast", "a;b", "1a", "", "a" * 64):
        with pytest.raises(ParameterError, match="schema"):
            Memory(f"{postgres}&schema={schema}")
    with pytest.raises(ParameterError, match="cannot be read"):
        Memory(f"{postgres}&colour=blue")
    with psycopg.connect(postgres, autocommit=True) as administrator:
        administrator.execute("CREATE SCHEMA others")
        administrator.execute("CREATE TABLE others.bees (n int)")
        administrator.execute(
            "CREATE DATABASE latin TEMPLATE template0 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    with pytest.raises(StoreError, match="no memory of Loci"):
        Memory(f"{postgres}&schema=others")
    with pytest.raises(StoreError, match="UTF-8"):
        Memory(postgres.replace("/postgres?", "/latin?"))
    Memory(postgres_place("new")).close()
    with psycopg.connect(postgres, autocommit=True) as administrator:
        schema = read_url(postgres_place("new"))[2]
        administrator.execute(
            f"UPDATE {schema}.meta SET value = '{VERSION + 1}' WHERE key = 'schema'".encode()
        )
    with pytest.raises(SchemaError, match="newer Loci"):
        Memory(postgres_place("new"))


def test_who_may_not_make_a_memory_is_told(postgres: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as administrator:
        administrator.execute("DROP ROLE IF EXISTS guest")
        administrator.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(StoreError, match="as an administrator"):
        Memory(f"{postgres.replace('postgres:@', 'guest:@')}&schema=guests")


def test_names_too_long_to_index_are_refused_and_nothing_is_stored(
    postgres_memory: Memory,
) -> None:
    name = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=20_000))
    with pytest.raises(ParameterError, match="shorten it"):
        postgres_memory.add([{"name": name, "content": "hello"}], user="ada")
    assert postgres_memory.users() == []
    postgres_memory.add(f"{name} and bees", user="ada")
    assert postgres_memory.search(name, user="ada"), "a long word is no name"


def test_migrates_an_older_schema(postgres: str, postgres_place: Place) -> None:
    with Memory(postgres_place("old"), recall=Plain()) as memory:
        memory.add([{"name": "Ada", "content": "I live in Ghent"}], user="ada")
    schema = read_url(postgres_place("old"))[2]

    def shape() -> set[tuple[Any, ...]]:
        with psycopg.connect(postgres) as reader:
            return set(
                reader.execute(
                    "SELECT table_name, column_name, data_type, collation_name, is_nullable "
                    "FROM information_schema.columns WHERE table_schema = %s",
                    (schema,),
                ).fetchall()
            )

    new = shape()
    with psycopg.connect(postgres) as administrator:  # as the second schema had it
        administrator.execute(f"SET search_path TO {schema}".encode())
        administrator.execute("ALTER TABLE items DROP gloss")
        administrator.execute("ALTER TABLE links DROP weight")
        administrator.execute("ALTER TABLE changes DROP sources, DROP ladder")
        administrator.execute("DROP TABLE ladders")
        administrator.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
    assert shape() != new
    with Memory(postgres_place("old"), recall=Plain()) as memory:
        assert memory.search("Ghent", user="ada")
        memory.add([{"name": "Ada", "content": "I moved to Rome"}], user="ada")
        assert memory.store.check_integrity() == []
    assert shape() == new


def test_the_planner_keeps_no_samples_of_what_was_said(
    postgres_memory: Memory, postgres: str
) -> None:
    for number in range(30):
        postgres_memory.add([{"name": "Ada", "content": f"I live in Town{number % 3}"}], user="ada")
    schema = postgres_memory.store.database.schema  # type: ignore[attr-defined]
    with psycopg.connect(postgres, autocommit=True) as administrator:
        administrator.execute(f"SET search_path TO {schema}".encode())
        administrator.execute("ANALYZE")
        rows = administrator.execute(
            "SELECT attname, coalesce(most_common_vals::text, '') || "
            "coalesce(histogram_bounds::text, '') FROM pg_stats WHERE schemaname = %s",
            (schema,),
        ).fetchall()
    assert rows, "numbers are sampled"
    assert [name for name, sample in rows if "town" in sample.lower()] == []


def test_forgotten_bytes_leave_the_files_of_the_tables(
    postgres_memory: Memory, postgres: str
) -> None:
    memory = postgres_memory
    memory.embedder = Hashing()
    text = "I'm allergic to walnuts. We went to Ghent."
    memory.add([{"name": "Ada", "content": text, "metadata": {"said": text}}], user="ada")
    memory.add([f"plain {number}" for number in range(50)], user="ada")
    memory.search("walnuts", user="ada")
    memory.edit("i1", "Ada and walnuts do not mix")

    def files() -> list[Path]:
        with psycopg.connect(postgres, autocommit=True) as administrator:
            administrator.execute("CHECKPOINT")
            folder = administrator.execute("SHOW data_directory").fetchone()
            rows = administrator.execute(
                "SELECT pg_relation_filepath(c.oid) FROM pg_class c WHERE "
                "pg_relation_filepath(c.oid) IS NOT NULL AND (c.relnamespace = %s::regnamespace "
                "OR c.oid IN (SELECT reltoastrelid FROM pg_class WHERE relnamespace = "
                "%s::regnamespace))",
                (memory.store.database.schema,) * 2,  # type: ignore[attr-defined]
            ).fetchall()
        assert folder is not None
        return [Path(folder[0], path) for (path,) in rows]

    def count() -> int:
        return sum(path.read_bytes().lower().count(b"walnut") for path in files())

    assert count() > 3
    report = memory.forget("i1")
    assert report.clean and set(report.found) >= {"turns", "documents", "words", "changes"}
    assert count() == 0
    assert any("write-ahead log" in words for words in report.out_of_reach)
    assert any("replicas" in words for words in report.out_of_reach)


# ---- vectors


class Fixed(Hashing):
    """An embedder that always returns the same vector."""

    def __init__(self, vector: np.ndarray) -> None:
        super().__init__(fingerprint="given")
        self.vector = vector

    def encode(self, texts: object) -> np.ndarray:
        return self.vector[None]


def test_above_the_limit_an_index_is_asked(
    postgres_memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_vectors, "EXACT_ROWS", 500)
    memory, generator = postgres_memory, np.random.default_rng(0)
    made = generator.standard_normal((900, 16)).astype(np.float32)
    memory.add_many([f"n {i}" for i in range(800)], user="ada", session="s", vectors=made[:800])
    memory.add_many([f"n {i}" for i in range(100)], user="bob", vectors=made[800:])
    query = generator.standard_normal(16).astype(np.float32)
    memory.embedder = Fixed(query)

    def nearest(limit: int, **asked: Any) -> tuple[list[str], list[str]]:
        scope = memory._scope("ada", None, asked.pop("session", None))
        view = memory._view(scope, memory._asked(None, None, asked.get("filters")), dense=True)
        found = view.search_dense("q", limit, "turn")
        return [id for id, _ in found], view.notes

    exact, notes = nearest(10)
    assert any("being built" in note for note in notes)
    memory.store.settle()
    assert memory.store.vectors.has_index(1, 0)  # type: ignore[attr-defined]
    found, notes = nearest(10)
    assert notes == [] and len(set(found) & set(exact)) >= 9
    cosine = made[:800] @ query / np.linalg.norm(made[:800], axis=1)
    assert found == [f"t{place + 1}" for place in np.argsort(-cosine) if f"t{place + 1}" in found]
    assert nearest(10, session="other")[0] == []
    assert len(nearest(300, session="s")[0]) == 300
    memory.forget(found[0])
    assert not memory.store.vectors.has_index(1, 0), "its copies of vectors went"  # type: ignore[attr-defined]
    after, notes = nearest(10)
    assert after == [id for id in exact if id != found[0]][:9] + after[9:] and notes
    memory.store.settle()
    assert found[0] not in nearest(800)[0] and len(nearest(800)[0]) == 799
    assert memory.store.check_integrity() == []


def test_what_others_write_during_a_search_does_not_end_it(
    postgres_memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres_memory.add("the boat is blue", user="ada", infer=False)
    known = PostgresWords._known

    def later(*given: Any) -> Any:  # five texts more have the words than were counted before
        return {word: (id, having + 5) for word, (id, having) in known(*given).items()}

    monkeypatch.setattr(PostgresWords, "_known", later)
    hits = postgres_memory.search("blue boat", user="ada")
    assert [hit.text for hit in hits] == ["the boat is blue"]


def test_closing_stops_the_building(
    postgres_memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_vectors, "EXACT_ROWS", 100)
    memory = postgres_memory
    made = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)
    memory.add_many([f"n {i}" for i in range(4000)], user="ada", vectors=made)
    memory.embedder = Fixed(made[3])
    assert memory.search("q", user="ada", kinds="turn").notes
    memory.close()
    assert not memory.store.vectors._building  # type: ignore[attr-defined]


def test_vectors_too_wide_for_an_index_are_compared(
    postgres_memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_vectors, "EXACT_ROWS", 5)
    memory = postgres_memory
    made = np.random.default_rng(0).standard_normal((8, 2001)).astype(np.float32)
    memory.add_many([f"n {i}" for i in range(8)], user="ada", vectors=made)
    memory.embedder = Fixed(made[3])
    hits = memory.search("q", user="ada", kinds="turn")
    assert hits[0].text == "n 3" and any("at most 2,000" in note for note in hits.notes)
    memory.embedder = Fixed(made[3, :7])
    with pytest.raises(FingerprintError, match="width"):
        memory.search("q", user="ada")


# ---- small parts


def test_marks_in_literals_stay() -> None:
    sql = "SELECT '?%', '''?', ? FROM t WHERE a % 2 = ?"
    assert marked(sql) == b"SELECT '?%%', '''?', %s FROM t WHERE a %% 2 = %s"


def test_a_url_is_shown_without_its_password() -> None:
    full, shown, schema = read_url("postgres://ada:pa%3Ass@h:5/db?schema=mine&sslmode=require")
    assert full == "postgresql://ada:pa%3Ass@h:5/db?sslmode=require&connect_timeout=10"
    assert (shown, schema) == ("postgresql://ada@h:5/db?schema=mine&sslmode=require", "mine")
    assert read_url("postgresql:///db?connect_timeout=3")[0].endswith("connect_timeout=3")
    assert not re.search("secret", read_url("postgresql:///db?password=secret")[1])


def test_errors_are_ours(postgres_memory: Memory) -> None:
    with pytest.raises(LociError, match="database cannot be used"):
        postgres_memory.store.database.rows("SELECT nonsense")  # type: ignore[attr-defined]
