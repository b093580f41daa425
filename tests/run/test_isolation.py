"""Nobody reads a byte of another scope, whatever is asked, in ten thousand random cases."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from loci.core.clock import ManualClock
from loci.errors import NotFoundError, ParameterError
from loci.run.memory import Memory
from loci.text.stem import stems

CASES = {"sqlite": 10_000, "postgres": 1_000}
MARK = re.compile(r"zq(\d+)zq", re.IGNORECASE)
# What is said in every scope alike is merged into one fact; what follows marks whose it was.
SAID = (
    "I live in Ghent. Keep {} in mind.",
    "I have a dog. Keep {} in mind.",
    "I have a dog named {}.",
    "I work at {}.",
    "I love {}.",
    "I no longer live in Ghent, says {}.",
    "I'm allergic to nuts, see {}.",
    "Yesterday we met {} in the park.",
)
ASKED = ("where do I live?", "dog", "what do I love?", "Ghent", "allergic to nuts", "work", "park")


@dataclass(frozen=True)
class Place:
    tenant: str
    user: str
    agent: str | None
    session: str | None


class Hashing:
    """An embedder of words."""

    fingerprint = "hashing"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        made = np.full((len(texts), 32), 1e-6, np.float32)
        for row, text in enumerate(texts):
            for stem in stems(text):
                made[row, sum(stem.encode()) % 32] += 1.0
        return made


@pytest.mark.parametrize("database", list(CASES))
def test_no_other_scopes_byte_is_ever_returned(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cases, where = CASES[database], str(tmp_path / "m.db")
    if database == "postgres":
        where = request.getfixturevalue("postgres_place")("m.db")
    draw = random.Random(20260601)
    clock = ManualClock(datetime(2026, 6, 1, 12, tzinfo=UTC))
    memories = {
        tenant: Memory(where, tenant=tenant, embedder=Hashing(), clock=clock)
        for tenant in ("local", "acme")
    }
    whose: list[Place] = []
    ids: list[tuple[str, str]] = []  # (tenant, id)

    def somewhere() -> Place:
        return Place(
            draw.choice(["local", "acme"]),
            draw.choice(["ada", "bob", "ad", "ada "]),
            draw.choice([None, "a1", "a2"]),
            draw.choice([None, "s1", "s2"]),
        )

    def say() -> object:
        place = somewhere()
        mark = f"Zq{len(whose)}zq"
        whose.append(place)
        clock.advance(60)
        message = {
            "name": "Ada",
            "content": draw.choice(SAID).format(mark),
            "metadata": {"m": mark},
        }
        added = memories[place.tenant].add(
            [message], user=place.user, agent=place.agent, session=place.session
        )
        ids.extend((place.tenant, entry.id) for entry in (*added.turns, *added.items))
        # What a user tells is reconciled with all that the agent knows of them.
        check(added, Place(place.tenant, place.user, place.agent, None))
        return added

    def check(found: object, asked: Place) -> None:
        for number in MARK.findall(repr(found)):
            said = whose[int(number)]
            assert (said.tenant, said.user) == (asked.tenant, asked.user), (said, asked)
            assert asked.agent in (None, said.agent), (said, asked)
            assert asked.session in (None, said.session), (said, asked)

    for _ in range(40):
        say()
    seen = 0
    for case in range(cases):
        if case % 100 == 0:
            say()
        asked = somewhere()
        memory = memories[asked.tenant]
        scope = {"user": asked.user, "agent": asked.agent, "session": asked.session}
        way = draw.randrange(8)
        limits = draw.choice(
            [
                {},
                {"as_of": clock.now()},
                {"known_at": clock.now()},
                {"filters": {"role": "user"}},
                {"filters": {"metadata.m": f"Zq{draw.randrange(len(whose))}zq"}},
                {"filters": {"or": [{"text": {"contains": "zq"}}, {"kind": "fact"}]}},
            ]
        )
        if way < 3:
            query = draw.choice([*ASKED, f"zq{draw.randrange(len(whose))}zq", "zq"])
            mode = draw.choice(["hybrid", "lexical"])
            found: object = memory.search(query, limit=20, mode=mode, **scope, **limits)  # type: ignore[arg-type]
        elif way < 5:
            kinds = draw.choice([None, "turn", ("fact", "note", "turn")])
            found = memory.list(kinds=kinds, limit=200, **scope, **limits)  # type: ignore[arg-type]
        elif way == 5:
            asked = Place(asked.tenant, asked.user, None, None)
            found = memory.changes(user=asked.user, limit=200)
        else:
            asked = Place(asked.tenant, asked.user, None, None)
            id = draw.choice(ids)[1]
            read = draw.choice([memory.get, memory.history])
            try:
                found = read(id, user=asked.user)
            except NotFoundError as refused:
                found = str(refused)
        check(found, asked)
        seen += bool(MARK.search(repr(found)))
    assert seen > cases / 4, "most cases found something of their own"
    for memory in memories.values():
        memory.close()


def test_a_fact_told_in_two_sessions_belongs_to_neither_alone(place: Callable[[str], str]) -> None:
    with Memory(place("m.db")) as memory:
        memory.add("I have a dog", user="ada", session="one")
        assert memory.search("dog", user="ada", session="one")[0].kind == "fact"
        memory.add("I have a dog named Rex", user="ada", session="two")
        in_one = memory.search("dog", user="ada", session="one")
        assert [hit.text for hit in in_one] == ["I have a dog"] and "Rex" not in repr(in_one)
        assert any("Rex" in hit.text for hit in memory.search("dog", user="ada"))
        memory.undo("t2")
        assert memory.search("dog", user="ada", session="one")[0].kind == "fact"


@pytest.mark.parametrize(
    "forged",
    [
        {"user": None},
        {"user": ""},
        {"user": "  "},
        {"user": 7},
        {"user": b"\xff"},
        {"user": "ada\ud800"},
        {"user": "ada", "agent": ""},
        {"user": "ada", "session": 3},
        {"user": "ada", "filters": {"user": "bob"}},
        {"user": "ada", "filters": {"owner": 2}},
        {"user": "ada", "filters": {"tenant": "acme"}},
        {"user": "ada", "filters": {'metadata.x" OR "1': 1}},
    ],
)
def test_a_scope_that_is_missing_or_forged_is_refused(
    place: Callable[[str], str], forged: dict[str, object]
) -> None:
    with Memory(place("m.db")) as memory:
        memory.add("I live in Ghent", user="bob")
        with pytest.raises(ParameterError):
            memory.search("Ghent", **forged)  # type: ignore[arg-type]


def test_a_key_of_metadata_is_no_sql(place: Callable[[str], str]) -> None:
    with Memory(place("m.db")) as memory:
        memory.add("I live in Ghent", user="bob")
        assert memory.search("Ghent", user="ada", filters={"metadata.x') OR 1=1 --": 1}) == []


def test_words_of_a_query_cannot_reach_beyond_the_scope(place: Callable[[str], str]) -> None:
    with Memory(place("m.db")) as memory:
        memory.add("I live in Ghent", user="bob")
        memory.add("nothing here", user="ada")
        for query in ('o1" OR "ghent', "key:o1 ghent", "ghent*", "NEAR(ghent)", '"', "o1 ghent"):
            assert "Ghent" not in repr(memory.search(query, user="ada", mode="lexical"))
