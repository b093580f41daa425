"""Candidate lists, filters, vectors, and what held when."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memories import Hashing, Plain

from loci.core.clock import ManualClock
from loci.errors import FingerprintError, FormatError, NotFoundError, ParameterError
from loci.run import memory as memory_module
from loci.run.memory import Memory
from loci.store import sqlite_words
from loci.store.fulltext import Whose
from loci.store.search import View


def view(memory: Memory, user: str = "ada", **asked: Any) -> View:
    session = asked.pop("session", None)
    limits = memory._asked(asked.get("as_of"), asked.get("known_at"), asked.get("filters"))
    return memory._view(memory._scope(user, None, session), limits, dense=bool(memory.embedder))


def texts(memory: Memory, query: str, **asked: Any) -> list[str]:
    return [hit.text for hit in memory.search(query, user="ada", **asked)]


def test_words_rank_the_rare_above_the_common(memory: Memory) -> None:
    memory.add([f"tea number {n}" for n in range(20)] + ["tea with saffron"], user="ada")
    found = view(memory).search_words(["saffron", "tea"], 3, "turn")
    assert found[0][0] == "t21" and found[0][1] > found[1][1] > 0 and len(found) == 3


def test_a_word_of_the_turn_before_counts_by_its_weight(memory: Memory) -> None:
    memory.add(["my saffron jar", "where is it", "no idea"], user="ada", session="s")
    memory.add(["unrelated"], user="ada", session="other")
    alone = dict(view(memory).search_words(["saffron"], 9, "turn"))
    both = dict(view(memory).search_words(["saffron"], 9, "turn", context=0.5))
    assert list(alone) == ["t1"]
    assert both == {"t1": alone["t1"], "t2": pytest.approx(0.5 * alone["t1"])}


@pytest.mark.parametrize("users", [["ada"], ["ada", "bob"]])
def test_rows_passed_over_would_not_have_been_among_the_best(
    sqlite_memory: Memory, users: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_words, "_WORTH_IT", 10)
    chosen = random.Random(0)
    words = [f"w{rank}" for rank in range(300)]
    weights = [1 / (rank + 1) ** 1.2 for rank in range(300)]
    for number in range(12):
        texts = [
            " ".join(chosen.choices(words, weights, k=chosen.randint(1, 9))) for _ in range(250)
        ]
        user = users[number % len(users)]
        sqlite_memory.add(texts, user=user, session=f"s{number}", infer=False)
    index = sqlite_memory.store.database.words  # type: ignore[attr-defined]
    scored, passed_over = sqlite_words._Query.scored, 0
    for _ in range(150):
        asked = chosen.sample(words[20:], 2) + chosen.sample(words[:4], chosen.randint(1, 2))
        chosen.shuffle(asked)
        whose, limit = Whose(1), chosen.choice([1, 10, 40])
        calls: list[str] = []
        monkeypatch.setattr(
            sqlite_words._Query,
            "scored",
            lambda self, text, limit: calls.append(text) or scored(self, text, limit),  # noqa: B023
        )
        found = index.match("turn", asked, limit, whose, None)
        passed_over += len(calls) == 2
        monkeypatch.setattr(sqlite_words, "_parted", lambda *_: None)
        every = index.match("turn", asked, limit, whose, None)
        monkeypatch.undo()
        monkeypatch.setattr(sqlite_words, "_WORTH_IT", 10)
        assert [seq for seq, _ in found] == [seq for seq, _ in every]
        assert np.allclose([score for _, score in found], [score for _, score in every])
    assert passed_over > 20


def test_queries_of_full_text_syntax_are_words(memory: Memory) -> None:
    memory.add('NOT "key" : o1 AND words', user="ada")
    for query in ['"', "key : o2", "a* OR", "NEAR(", "-", "words NOT", "^x", "\0", "'; DROP"]:
        memory.search(query, user="ada")
    assert texts(memory, 'words "AND" NOT')


def test_users_tenants_agents_and_sessions_do_not_mix(
    memory: Memory, place: Callable[[str], str]
) -> None:
    memory.add("bees of ada", user="ada", session="s1", agent="x")
    memory.add("bees of bob", user="bob", session="s1")
    memory.add("bees again", user="ada", session="s2")
    assert set(texts(memory, "bees")) == {"bees of ada", "bees again"}
    assert texts(memory, "bees", session="s2") == ["bees again"]
    assert texts(memory, "bees", agent="x") == ["bees of ada"]
    assert texts(memory, "bees", agent="y") == []
    other = Memory(place("ada.db"), tenant="else", recall=Plain())
    assert other.search("bees", user="ada") == [] and other.users() == []
    with pytest.raises(NotFoundError):
        other.get("t1")
    with pytest.raises(NotFoundError):
        memory.get("t1", user="bob")
    other.close()


def test_names_are_counted(memory: Memory) -> None:
    turns = ["Grace Hopper met Alan", "Alan slept", "grace before meals"]
    memory.add([{"name": "Ada", "content": text} for text in turns], user="ada")
    assert dict(view(memory).search_entities(["grace hopper", "alan"], 9, "turn")) == {
        "t1": 2.0,
        "t2": 1.0,
    }
    memory.add([{"name": "Ada", "content": "I'm allergic to nuts"}], user="ada")
    assert view(memory).search_entities(["nuts", "ada"], 9, "item") == [("i1", 2.0)]


def test_neighbours_stay_in_their_session(memory: Memory) -> None:
    memory.add(["a", "b", "c", "d"], user="ada", session="s")
    memory.add(["e"], user="ada", session="t")
    around = view(memory).neighbours_of_turn("t3", 2, 2)
    assert [turn.content for turn in around] == ["a", "b", "d"]


def test_time_finds_what_was_said_and_what_held(memory: Memory) -> None:
    say = [{"name": "Ada", "content": "I live in Ghent", "time": "2024-03-01T00:00:00Z"}]
    memory.add(say, user="ada")
    memory.add([{"name": "Ada", "content": "I moved to Rome", "time": "2025-03-01"}], user="ada")
    start, end = datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)
    assert view(memory).search_time(start, end, 9, "turn") == ["t1"]
    assert view(memory).search_time(start, end, 9, "item") == []  # Ghent is retired
    assert view(memory, as_of=end).search_time(start, end, 9, "item") == ["i1"]


def test_as_of_shows_what_held_then(memory: Memory, clock: ManualClock) -> None:
    memory.add([{"name": "Ada", "content": "I live in Ghent", "time": "2024-03-01"}], user="ada")
    early = clock.now()
    clock.advance(3600)
    memory.add([{"name": "Ada", "content": "I moved to Rome", "time": "2025-03-01"}], user="ada")

    def homes(**asked: Any) -> list[str]:
        return texts(memory, "where does Ada lives", kinds="fact", **asked)

    assert homes() == ["Ada lives in Rome"]
    assert homes(as_of="2024-06-01") == ["Ada lives in Ghent"]
    assert homes(as_of="2025-06-01") == ["Ada lives in Rome"]
    assert homes(as_of="2023-01-01") == []
    assert homes(known_at=early) == ["Ada lives in Ghent"]
    with pytest.raises(ParameterError, match="as_of"):
        homes(as_of="last year")


FILTERS: list[tuple[Mapping[str, Any], set[str]]] = [
    ({"metadata.ref": "D1:1"}, {"one"}),
    ({"metadata.ref": {"in": ["D1:1", "D1:3"]}}, {"one", "three"}),
    ({"metadata.ref": {"nin": ["D1:1"]}}, {"two", "three"}),
    ({"metadata.n": {">=": 2}}, {"two", "three"}),
    ({"metadata.n": {">": 1, "<": 3}}, {"two"}),
    ({"metadata.deep.er": True}, {"three"}),
    ({"metadata.nothing": {"exists": False}}, {"one", "two", "three"}),
    ({"time": {">=": "2026-01-02T00:00:00Z"}}, {"two", "three"}),
    ({"role": "assistant"}, {"two"}),
    ({"name": {"contains": "AD"}}, {"one"}),
    ({"name": None}, {"two", "three"}),
    ({"not": {"role": "assistant"}}, {"one", "three"}),
    ({"or": [{"role": "assistant"}, {"metadata.n": 1}]}, {"one", "two"}),
    ({"AND": [{"role": "user"}, {"metadata.n": {"gt": 1}}]}, {"three"}),
    ({"session": "s", "role": "user"}, {"one", "three"}),
    ({"metadata.ref": {"!=": "D1:1"}, "kind": "turn"}, {"two", "three"}),
]


@pytest.mark.parametrize(("filters", "wanted"), FILTERS)
@pytest.mark.parametrize("dense", [False, True])
def test_filters(memory: Memory, filters: Mapping[str, Any], wanted: set[str], dense: bool) -> None:
    memory.embedder = Hashing() if dense else None
    said = [
        {"content": "bee one", "name": "Ada", "metadata": {"ref": "D1:1", "n": 1}},
        {"content": "bee two", "role": "assistant", "metadata": {"ref": "D1:2", "n": 2}},
        {"content": "bee three", "metadata": {"ref": "D1:3", "n": 3, "deep": {"er": True}}},
    ]
    for day, message in enumerate(said, 1):
        memory.add([{**message, "time": f"2026-01-0{day}T00:00:00Z"}], user="ada", session="s")
    assert {text[4:] for text in texts(memory, "bee", filters=filters)} == wanted
    listed = memory.list(user="ada", kinds="turn", filters=filters)
    assert {turn.content[4:] for turn in listed} == wanted  # type: ignore[union-attr]


def test_a_fact_passes_a_filter_by_one_of_its_turns(memory: Memory) -> None:
    said = {"name": "Ada", "content": "I'm allergic to nuts", "metadata": {"ref": "D1:3"}}
    memory.add([said], user="ada")
    memory.note("nuts are dear", user="ada", metadata={"ref": "own"})
    assert texts(memory, "nuts", filters={"metadata.ref": "D1:3"}) == ["Ada is allergic to nuts"]
    assert texts(memory, "nuts", filters={"metadata.ref": "own"}) == ["nuts are dear"]
    assert texts(memory, "nuts", filters={"kind": "fact", "role": "user"}) == [
        "Ada is allergic to nuts"
    ]


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"metadata.n": {"=>": 1}}, "did you mean"),
        ({"rolle": "user"}, "did you mean 'role'"),
        ({"role": {"in": "user"}}, "takes a list"),
        ({"time": "soon"}, "2026-05-01"),
        ({"and": {}}, "takes a list"),
        ({"role": []}, "compares with text"),
        ({"role": {}}, "compared with nothing"),
        ({"not": {}}, "something in it"),
        ([], "must be a dict"),
        ({"name": "\ud800"}, "surrogate"),
    ],
)
def test_a_bad_filter_is_refused(memory: Memory, filters: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        memory.search("x", user="nobody", filters=filters or [])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(key=st.text(min_size=1).filter(lambda key: "." not in key), value=st.text())
def test_any_metadata_can_be_asked_for(memory: Memory, key: str, value: str) -> None:
    try:
        added = memory.add([{"content": "x y", "metadata": {key: value}}], user="ada")
        found = memory.list(user="ada", kinds="turn", filters={f"metadata.{key}": value})
    except ParameterError:
        assert '"' in key or "\\" in key or not key.isprintable()
        return
    if "\0" not in value:
        assert added.turns[0].id in [turn.id for turn in found]


# ---- vectors


def test_meaning_finds_what_was_just_added(memory: Memory) -> None:
    memory.embedder = Hashing()
    memory.add(["bees hum", "cars roar"], user="ada")
    hits = memory.search("bees", user="ada")
    assert hits[0].text == "bees hum" and hits.pending == 0
    memory.add("more bees hum loudly", user="ada")
    found = view(memory).search_dense("more bees hum loudly", 9, "turn")
    assert "t3" not in dict(found)  # not embedded yet: a search does that
    memory.search("bees", user="ada")
    assert view(memory).search_dense("more bees hum loudly", 1, "turn")[0][0] == "t3"


def test_dense_search_is_the_full_sort(memory: Memory) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((300, 8)).astype(np.float32)
    memory.add_many([f"n {i}" for i in range(200)], user="ada", vectors=vectors[:200])
    memory.add_many([f"n {i}" for i in range(100)], user="bob", vectors=vectors[200:])
    query = generator.standard_normal(8).astype(np.float32)

    class Fixed(Hashing):
        def encode(self, texts: object) -> np.ndarray:
            return query[None]

    memory.embedder = Fixed(fingerprint="given")
    for user, part, first in (("ada", vectors[:200], 1), ("bob", vectors[200:], 201)):
        cosine = part @ query / np.linalg.norm(part, axis=1) / np.linalg.norm(query)
        order = np.argsort(-cosine)[:10]
        found = view(memory, user).search_dense("q", 10, "turn")
        assert [id for id, _ in found] == [f"t{first + place}" for place in order]
        assert np.allclose([score for _, score in found], cosine[order], atol=1e-6)


def test_beyond_the_limit_texts_wait_and_are_ranked_by_words(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "EMBED_AT_SEARCH", 10)
    memory.embedder = Hashing()
    memory.add([f"bee {n}" for n in range(25)] + ["zebra"], user="ada")
    hits = memory.search("zebra", user="ada")
    assert hits.pending == 16 and hits[0].text == "zebra"
    assert memory.search("bee", user="ada").pending == 6
    assert memory.wait() == 6
    assert memory.search("bee", user="ada").pending == 0


def test_lexical_search_asks_no_embedder(memory: Memory) -> None:
    memory.embedder = embedder = Hashing()
    memory.add("bees", user="ada")
    assert memory.search("bees", user="ada", mode="lexical")
    assert embedder.calls == 0


def test_another_embedder_is_refused_until_all_is_embedded_anew(memory: Memory) -> None:
    memory.embedder = Hashing()
    memory.add("bees", user="ada")
    memory.search("bees", user="ada")
    memory.embedder = Hashing(width=16, fingerprint="other")
    with pytest.raises(FingerprintError, match="reembed"):
        memory.search("bees", user="ada")
    assert memory.reembed() == 1
    assert memory.search("bees", user="ada")[0].text == "bees"
    with pytest.raises(FingerprintError, match="width"):
        memory.add_many(["x"], user="ada", vectors=np.ones((1, 3), np.float32))
    with pytest.raises(ParameterError, match="finite"):
        memory.add_many(["x"], user="ada", vectors=np.full((1, 16), np.nan, np.float32))


def test_rows_that_were_not_committed_are_not_there(sqlite_memory: Memory) -> None:
    memory = sqlite_memory
    memory.embedder = Hashing()
    memory.add("bees", user="ada")
    memory.search("bees", user="ada")
    path = memory.store.path.with_name("ada.db.vec")
    with open(path, "ab") as file:  # as a killed process leaves it
        file.write(b"\xff" * 100)
    memory.add("wasps", user="ada")
    assert memory.search("wasps", user="ada")[0].text == "wasps"
    path.write_bytes(path.read_bytes()[:80])
    again = Memory(memory.store.path, embedder=Hashing(), recall=Plain())
    with pytest.raises(FormatError, match="reembed"):
        again.search("wasps", user="ada")
    assert again.reembed() == 2 and again.search("wasps", user="ada")
    again.close()


def test_two_memories_of_one_place_see_each_others_vectors(place: Callable[[str], str]) -> None:
    first = Memory(place("m.db"), embedder=Hashing(), recall=Plain())
    second = Memory(place("m.db"), embedder=Hashing(), recall=Plain())
    for number, memory in enumerate((first, second, first, second)):
        memory.add(f"bees {number}", user="ada")
        for reader in (first, second):
            assert len(reader.search("bees", user="ada")) == number + 1
    first.forget("t2")
    assert len(second.search("bees", user="ada")) == 3
    second.add("bees more", user="ada")
    assert len(first.search("bees", user="ada")) == 4
    first.close()
    second.close()
