"""Memory as people use it, with the method that is the default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest

from loci.core.clock import ManualClock
from loci.core.item import Add, Candidate, Edit, Hit, Turn
from loci.errors import ParameterError
from loci.methods.recall.base import Query, Recall, RecallPorts, StoreView
from loci.methods.recall.mem0 import Mem0
from loci.run.memory import Hits, Memory

Place = Callable[[str], str]
SAID = {
    "role": "user",
    "name": "Ada",
    "content": "I'm allergic to nuts",
    "metadata": {"ref": "D1:3"},
}


def test_the_example_of_the_first_page(place: Place) -> None:
    clock = ManualClock(datetime(2026, 6, 1, tzinfo=UTC))
    with Memory(place("ada.db"), clock=clock) as memory:
        memory.add([SAID], user="ada", session="s1", time="2026-05-01T10:00:00+00:00")
        hits = memory.search("what is Ada allergic to?", user="ada", limit=5)
        assert isinstance(hits, Hits) and hits.hits == list(hits) and hits.pending == 0
        assert "nuts" in hits[0].text and hits[0].score is not None and hits[0].why is not None
        assert [source.metadata["ref"] for source in hits[0].sources] == ["D1:3"]
        report = memory.forget(hits[0].id)
        assert report.clean
        assert memory.search("what is Ada allergic to?", user="ada") == []


def test_a_turn_behind_a_fact_is_not_shown_again(place: Place) -> None:
    with Memory(place("m.db")) as memory:
        memory.add([SAID], user="ada")
        memory.add("My nuts and bolts are in the shed", user="ada", infer=False)
        hits = memory.search("nuts", user="ada")
        shown = [hit.id for hit in hits if hit.kind == "turn"]
        behind = {source.id for hit in hits if hit.kind != "turn" for source in hit.sources}
        assert not behind & set(shown) and len(set(shown)) == len(shown)


def test_raw_turns_are_found_without_facts(place: Place) -> None:
    with Memory(place("m.db"), extract=False) as memory:
        memory.add([SAID], user="ada")
        assert memory.counts(user="ada") == {"turns": 1, "items": 0, "retired": 0}
        assert memory.search("nuts", user="ada")[0].kind == "turn"
        assert memory.search("nuts", user="ada", kinds="fact") == []


@pytest.mark.parametrize(
    "given",
    [
        {"query": ""},
        {"query": " "},
        {"query": "a\ud800"},
        {"query": "x", "limit": 0},
        {"query": "x", "limit": True},
        {"query": "x", "mode": "magic"},
        {"query": "x", "kinds": "feeling"},
        {"query": "x", "user": ""},
    ],
)
def test_a_bad_question_is_refused(place: Place, given: dict[str, object]) -> None:
    with Memory(place("m.db")) as memory, pytest.raises(ParameterError):
        memory.search(**{"user": "ada", **given})  # type: ignore[arg-type]


def test_nobody_knows_nothing(place: Place) -> None:
    with Memory(place("m.db")) as memory:
        assert memory.search("anything", user="ada") == []
        assert memory.list(user="ada") == [] and memory.users() == []


def test_a_question_of_stop_words_is_answered(place: Place) -> None:
    with Memory(place("m.db")) as memory:
        memory.add("to be or not to be", user="ada", infer=False)
        memory.search("to be or not to be", user="ada")


def test_lists_page_by_page(place: Place) -> None:
    with Memory(place("m.db")) as memory:
        for number in range(5):
            memory.note(f"note {number}", user="ada")
        pages = [memory.list(user="ada", limit=2, offset=offset) for offset in (0, 2, 4)]
        texts = [item.text for page in pages for item in page]  # type: ignore[union-attr]
        assert texts == [f"note {number}" for number in (4, 3, 2, 1, 0)]


class _Order(Recall):
    """Finds what it is told to, in that order: turns by number, facts by what they rest on."""

    about = Mem0.about

    def revise(self, turns: Sequence[Turn], view: StoreView, ports: RecallPorts) -> list[Edit]:
        return [
            Add(candidate=Candidate(text="Ada likes tea", sources=tuple(t.id for t in turns[:2])))
        ]

    def find(self, query: Query, view: StoreView) -> list[Hit]:
        ids = query.text.split()
        return [
            Hit(id=id, text=id, score=-float(n), kind="turn" if id[0] == "t" else "fact")
            for n, id in enumerate(ids)
        ][: query.limit]


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ("t1 t3 i1", "t1 t3"),  # the fact is beyond the limit: its message stays
        ("t1 i1 t3", "i1 t3"),  # the fact is shown: its message gives way, and room is filled
        ("i1 t2 t3", "i1 t3"),
        ("t3 t3 t1", "t3 t1"),
    ],
)
def test_a_message_gives_way_only_to_a_fact_that_is_shown(
    place: Place, found: str, shown: str
) -> None:
    with Memory(place("m.db"), recall=_Order()) as memory:
        memory.add(["I like tea", "Tea, always", "What a day"], user="ada")
        assert [hit.id for hit in memory.search(found, user="ada", limit=2)] == shown.split()
