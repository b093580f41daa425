"""Why something is recalled, and what it was at another time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from loci.core.clock import ManualClock
from loci.core.item import Item
from loci.errors import NotFoundError, ParameterError
from loci.run.memory import Memory


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 6, 1, 12, tzinfo=UTC))


@pytest.fixture
def memory(tmp_path: Path, clock: ManualClock) -> Iterator[Memory]:
    with Memory(tmp_path / "m.db", clock=clock) as opened:
        said = {"name": "Ada", "content": "I live in Ghent", "metadata": {"ref": 1}}
        opened.add([said], user="ada", session="s1", time="2024-01-01")
        clock.advance(3600)
        opened.add([{"name": "Ada", "content": "I moved to Rome"}], user="ada", time="2025-01-01")
        yield opened


def test_tells_sources_history_and_links(memory: Memory) -> None:
    told = memory.explain("i2")
    assert isinstance(told.about, Item) and "Rome" in told.about.text
    assert [source.content for source in told.sources] == ["I moved to Rome"]
    assert [change.action for change in told.history] == ["add"]
    assert told.query is None and told.hit is None and told.rank is None
    assert [change.action for change in memory.explain("i1").history] == ["add", "retire"]
    turn = memory.explain("t2")
    assert [(c.item, c.action) for c in turn.history] == [("i1", "retire"), ("i2", "add")]


def test_tells_the_place_and_the_parts_of_the_score(memory: Memory) -> None:
    told = memory.explain("i2", query="where does Ada live?")
    found = [hit.id for hit in memory.search("where does Ada live?", user="ada")]
    assert told.rank == found.index("i2") + 1
    assert told.hit is not None and told.hit.id == "i2"
    assert told.hit.why and told.among >= 1
    shown = memory.explain("t2", query="where does Ada live?")
    assert shown.hit is not None and shown.hit.id == "i2", "the fact stands for its message"
    lost = memory.explain("i1", query="where does Ada live?")
    assert lost.rank is None and lost.hit is None, "it is retired"
    then = memory.explain("i1", query="where does Ada live?", as_of="2024-06-01")
    assert then.rank is not None and then.hit is not None
    assert [source.content for source in then.hit.sources] == ["I live in Ghent"]


def test_refuses_what_others_have(memory: Memory) -> None:
    for id in ("i9", "t9", "x"):
        with pytest.raises(NotFoundError):
            memory.explain(id)
    with pytest.raises(NotFoundError):
        memory.explain("i1", user="bob")
    with pytest.raises(ParameterError):
        memory.explain("i1", query=" ")


def test_an_item_as_it_was(memory: Memory, clock: ManualClock) -> None:
    before = clock.now()
    clock.advance(60)
    memory.edit("i2", "Ada lives near Rome")
    assert memory.get("i2").text == "Ada lives near Rome"  # type: ignore[union-attr]
    assert "near" not in memory.get("i2", known_at=before).text  # type: ignore[union-attr]
    assert "Ghent" in memory.get("i1", as_of="2024-06-01").text  # type: ignore[union-attr]
    for id, asked in (
        ("i1", {"as_of": "2025-06-01"}),
        ("i2", {"as_of": "2024-06-01"}),
        ("i2", {"known_at": "2026-06-01T12:30:00+00:00"}),
        ("t2", {"as_of": "2024-06-01"}),
        ("t2", {"known_at": "2026-06-01T12:30:00+00:00"}),
    ):
        with pytest.raises(NotFoundError, match="not so at that time"):
            memory.get(id, **asked)  # type: ignore[arg-type]


def test_sources_said_later_are_not_shown_of_a_time_before(memory: Memory) -> None:
    memory.add([{"name": "Ada", "content": "I have a dog"}], user="ada", time="2024-03-01")
    memory.add([{"name": "Ada", "content": "I have a dog"}], user="ada", time="2025-03-01")
    [dog] = [h for h in memory.search("dog", user="ada", as_of="2024-06-01") if h.kind == "fact"]
    assert [source.time.year for source in dog.sources] == [2024]
    [dog] = [h for h in memory.search("dog", user="ada") if h.kind == "fact"]
    assert sorted(source.time.year for source in dog.sources) == [2024, 2025]


def test_the_parts_add_up_to_the_score(memory: Memory) -> None:
    memory.add("My dog Rex likes the park", user="ada")
    memory.add("We met in the park yesterday", user="ada", infer=False)
    memory.note("parks close at eight", user="ada")
    for query in ("where does Ada live?", "dog in the park", "Rome", "when do parks close?"):
        hits = memory.search(query, user="ada", limit=20)
        assert hits
        for hit in hits:
            assert sum(hit.why.values()) == pytest.approx(hit.score), (query, hit)
