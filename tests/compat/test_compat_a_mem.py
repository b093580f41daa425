"""A-MEM's calls, with the faults of its package that must not come back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from loci.compat.a_mem import AgenticMemorySystem, MemoryNote
from loci.errors import LociError, NotFoundError, ParameterError
from loci.models.endpoint import Endpoint
from loci.run.memory import Memory
from loci.text.stem import stems

STAMP = "202503021500"


class Hashing:
    """An embedder of words."""

    fingerprint = "hashing"

    def encode(self, texts: list[str]) -> np.ndarray:
        made = np.full((len(texts), 64), 1e-6, np.float32)
        for row, text in enumerate(texts):
            for stem in stems(text):
                made[row, sum(stem.encode()) % 64] += 1.0
        return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture
def system(tmp_path: Path) -> Iterator[AgenticMemorySystem]:
    opened = AgenticMemorySystem(memory=tmp_path / "notes.db")
    yield opened
    opened.close()


@pytest.fixture
def linking(tmp_path: Path) -> Iterator[AgenticMemorySystem]:
    memory = Memory(tmp_path / "linked.db", embedder=Hashing(), recall="a_mem")
    yield AgenticMemorySystem(memory=memory)
    memory.close()


def test_the_quick_start_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    from loci.compat.a_mem import AgenticMemorySystem

    # Initialize the memory system
    memory_system = AgenticMemorySystem(
        model_name="all-MiniLM-L6-v2",  # Embedding model for ChromaDB
        llm_backend="openai",  # LLM backend (openai/ollama)
        llm_model="gpt-4o-mini",  # LLM model name
    )
    # Simple addition
    memory_id = memory_system.add_note("Deep learning neural networks")
    # Addition with metadata
    memory_id = memory_system.add_note(
        content="Machine learning project notes",
        tags=["ml", "project"],
        category="Research",
        timestamp="202503021500",  # YYYYMMDDHHmm format
    )
    # Get memory by ID
    memory = memory_system.read(memory_id)
    print(f"Content: {memory.content}")
    print(f"Tags: {memory.tags}")
    print(f"Context: {memory.context}")
    print(f"Keywords: {memory.keywords}")
    # Search memories
    results = memory_system.search_agentic("neural networks", k=5)
    for result in results:
        print(f"ID: {result['id']}")
        print(f"Content: {result['content']}")
        print(f"Tags: {result['tags']}")
        print("---")
    # Update Memories
    memory_system.update(memory_id, content="Updated content about deep learning")
    # Delete Memories
    memory_system.delete(memory_id)
    shown = capsys.readouterr().out
    assert "Tags: ['ml', 'project']" in shown and "Deep learning neural networks" in shown
    assert memory.category == "Research" and memory.timestamp == "202503021500"
    assert len(memory.keywords) >= 3, "a note is really analysed"
    assert memory_system.read(memory_id) is None
    memory_system.close()


def test_fields_that_are_given_are_kept(system: AgenticMemorySystem) -> None:
    given = {
        "keywords": ["test", "content"],
        "links": ["link1", "link2"],
        "context": "Test context",
        "category": "Test category",
        "tags": ["test", "memory"],
        "evolution_history": ["evolution1"],
        "retrieval_count": 3,
        "last_accessed": "202503021600",
    }
    id = system.add_note("Test memory content", time=STAMP, **given)
    note = system.read(id)
    assert isinstance(note, MemoryNote)
    for name, value in given.items():
        found = getattr(note, name)
        assert (found[: len(value)] if isinstance(value, list) else found) == value, name
    assert note.timestamp == STAMP
    [result] = system.search_agentic("Test memory content", k=1)
    assert set(result) == {
        *("id", "content", "context", "keywords", "tags", "timestamp", "category"),
        *("is_neighbor", "score"),
    }
    assert result["tags"] == given["tags"] and result["context"] == "Test context"
    [plain] = system.search("memory content", k=1)
    assert set(plain) == {"id", "content", "context", "keywords", "score"}


def test_update_changes_fields_and_what_is_found(system: AgenticMemorySystem) -> None:
    id = system.add_note("The heating is serviced in March")
    assert system.update(id, content="The boiler is replaced in April", tags=["house"])
    note = system.read(id)
    assert note is not None and note.content == "The boiler is replaced in April"
    assert note.tags == ["house"] and "boiler" in note.keywords, "analysed anew"
    assert system.search("boiler", k=1)[0]["id"] == id
    assert note.evolution_history[-1]["what"] == "edit"
    assert not system.update("i999", content="x y") and system.read("i999") is None
    assert not system.delete("i999")


def test_links_lead_to_neighbours_both_ways(linking: AgenticMemorySystem) -> None:
    bees = linking.add_note("Ada keeps bees on the roof in Ghent")
    other = linking.add_note("The tax office closes at noon")
    honey = linking.add_note("The bees on the roof in Ghent made honey for Ada")
    first, second = linking.read(bees), linking.read(honey)
    assert first is not None and second is not None
    assert honey in first.links and bees in second.links
    everything = linking.memories
    assert list(everything) == [bees, other, honey]
    for note in everything.values():
        assert all(link in everything for link in note.links), "every end exists"
    untouched = linking.read(other)
    assert untouched is not None and untouched.links == [] and untouched.evolution_history == []


def test_relationships_by_hand(system: AgenticMemorySystem) -> None:
    id1, id2 = system.add_note("First memory of spring"), system.add_note("Second one, of autumn")
    memory1 = system.read(id1)
    assert memory1 is not None
    memory1.links.append(id2)
    assert system.update(id1, links=memory1.links)
    again = system.read(id1)
    assert again is not None and id2 in again.links
    raw = system.find_related_memories_raw("First memory of spring", k=1)
    assert "First memory of spring" in raw and "Second one, of autumn" in raw


def test_related_memories_are_named_by_their_place(system: AgenticMemorySystem) -> None:
    ids = [system.add_note(f"note about {word}") for word in ("apples", "boats", "clouds")]
    text, places = system.find_related_memories("clouds", k=1)
    assert places == [2] and text.startswith("memory index:2\t") and "clouds" in text
    assert list(system.memories)[places[0]] == ids[2]


def test_notes_stay_after_the_process_ends_and_can_be_undone(tmp_path: Path) -> None:
    first = AgenticMemorySystem(memory=tmp_path / "n.db")
    id = first.add_note("Ada keeps bees", category="hobby")
    first.delete(id)
    first.close()
    second = AgenticMemorySystem(memory=tmp_path / "n.db")
    assert second.read(id) is None and second.memories == {}
    second.inner.undo(id)
    note = second.read(id)
    assert note is not None and note.category == "hobby"
    assert second.forget(id).clean
    with pytest.raises(NotFoundError):
        second.forget(id)
    second.close()
    assert not any(b"bees" in file.read_bytes() for file in tmp_path.glob("n.db*"))


def test_a_note_keeps_the_id_it_was_given(system: AgenticMemorySystem) -> None:
    assert system.add_note("Ada keeps bees", id="note-1") == "note-1"
    note = system.read("note-1")
    assert note is not None and note.id == "note-1"
    assert system.search("bees")[0]["id"] == "note-1"
    assert system.update("note-1", tags=["bees"]) and list(system.memories) == ["note-1"]
    with pytest.raises(ParameterError, match="a note with this id"):
        system.add_note("another", id="note-1")
    assert system.delete("note-1") and system.read("note-1") is None


def test_the_same_text_again_is_the_same_note(system: AgenticMemorySystem) -> None:
    assert system.add_note("Ada keeps bees") == system.add_note("Ada keeps bees")
    assert len(system.memories) == 1


def test_words_that_mean_nothing_are_kept_all_the_same(system: AgenticMemorySystem) -> None:
    id = system.add_note("to be or not to be")
    note = system.read(id)
    assert note is not None and note.content == "to be or not to be"


def test_analysis_of_a_text(system: AgenticMemorySystem) -> None:
    told = system.analyze_content("Ada keeps bees on the roof in Ghent")
    assert set(told) == {"keywords", "context", "tags"}
    assert any(word.startswith("bee") for word in told["keywords"])
    system.consolidate_memories()


def test_users_do_not_see_each_others_notes(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "n.db", recall="a_mem")
    ada = AgenticMemorySystem(memory=memory, user="ada")
    bob = AgenticMemorySystem(memory=memory, user="bob")
    id = ada.add_note("Ada's secret garden")
    assert bob.search("secret garden") == [] and bob.memories == {}
    assert bob.read(id) is None and not bob.delete(id) and not bob.update(id, content="x y")
    with pytest.raises(NotFoundError):
        bob.forget(id)
    memory.close()


def test_times_are_read_and_those_to_come_refused(system: AgenticMemorySystem) -> None:
    for time in (STAMP, "2025-03-02T15:00:00+00:00", datetime(2025, 3, 2, 15, tzinfo=UTC)):
        note = system.read(system.add_note(f"said at {time}", time=time))
        assert note is not None and note.timestamp == STAMP
    for wrong in ("20250399", "soon", "209901010000"):
        with pytest.raises(ParameterError):
            system.add_note("a note", time=wrong)


@pytest.mark.parametrize(
    "act",
    [
        lambda system: system.add_note(""),
        lambda system: system.add_note("x", tag=["a"]),
        lambda system: system.add_note("x", tags="a"),
        lambda system: system.search("x", k=0),
        lambda system: system.search("x", k=True),
        lambda system: system.search("", k=1),
        lambda system: system.update(system.add_note("a b c"), contents="x"),
        lambda system: system.update(system.add_note("a b c"), id="x"),
        lambda system: system.add_note("x y", category=object()),
    ],
)
def test_what_is_refused(system: AgenticMemorySystem, act: object) -> None:
    with pytest.raises(LociError):
        act(system)  # type: ignore[operator]


def test_settings_that_are_refused_and_what_they_ask(tmp_path: Path) -> None:
    place = {"memory": tmp_path / "n.db"}
    with pytest.raises(ParameterError, match="did you mean 'openai'"):
        AgenticMemorySystem(llm_backend="opanai", **place)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="all-MiniLM-L6-v2"):
        AgenticMemorySystem(model_name="bge-large", **place)  # type: ignore[arg-type]
    for wrong in (0, 1.5, True):
        with pytest.raises(ParameterError, match="evo_threshold"):
            AgenticMemorySystem(evo_threshold=wrong, **place)  # type: ignore[arg-type]
    asks = AgenticMemorySystem(api_key="sk", llm_model="m", **place)  # type: ignore[arg-type]
    assert isinstance(asks.inner.llm, Endpoint) and asks.inner.backend == "endpoint"
    asks.close()
    local = AgenticMemorySystem(llm_backend="ollama", llm_model="m", **place)  # type: ignore[arg-type]
    assert isinstance(local.inner.llm, Endpoint) and "11434" in local.inner.llm.url
    local.close()
