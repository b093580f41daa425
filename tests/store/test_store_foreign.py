"""Exports of Mem0 (1.x and 2.x) and of LangGraph stores, in and undone again."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from loci.errors import FormatError, ParameterError
from loci.run import memory_files
from loci.run.memory import Memory

# As Mem0 1.x `get_all` returns it, with a graph; times with the zone of its authors.
ONE = {
    "results": [
        {
            "id": "892db2ae-06d9-49e5-8b3e-585ef9b85b8e",
            "memory": "Loves basketball and gaming",
            "hash": "c0ffee",
            "metadata": {"category": "hobbies"},
            "score": None,
            "created_at": "2025-10-22T04:40:22.864647-07:00",
            "updated_at": None,
            "user_id": "alex",
            "agent_id": "coach",
            "run_id": "r1",
        },
        {
            "id": "5b1b2c3d-0000-4000-8000-000000000002",
            "memory": "Is allergic to nuts",
            "hash": "f00d",
            "metadata": None,
            "created_at": "2025-10-22T04:41:00-07:00",
            "updated_at": "2025-10-23T04:41:00-07:00",
            "user_id": "alex",
            "actor_id": "Alex",
            "role": "user",
        },
    ],
    "relations": [{"source": "alex", "relationship": "plays_in", "target": "city_league"}],
}
# As Mem0 2.x returns it; of two users, one memory with an end.
TWO = {
    "results": [
        {
            "id": "a-1",
            "memory": "Prefers dark mode",
            "hash": "1",
            "metadata": None,
            "score": None,
            "created_at": "2026-05-01T10:00:00+00:00",
            "updated_at": "2026-05-01T10:00:00+00:00",
            "user_id": "kim",
            "attributed_to": "user",
            "expiration_date": "2027-01-01",
        },
        {
            "id": "a-2",
            "memory": "Kim's guest likes tea",
            "created_at": "2026-05-02T10:00:00+00:00",
            "user_id": "guest",
        },
    ]
}
PAYLOADS = {
    "result": {
        "points": [
            {
                "id": "p-1",
                "payload": {
                    "data": "Runs on Sundays",
                    "hash": "x",
                    "text_lemmatized": "run sunday",
                    "created_at": "2026-05-01T10:00:00+00:00",
                    "updated_at": "2026-05-01T10:00:00+00:00",
                    "user_id": "kim",
                    "mood": "keen",
                },
            }
        ]
    }
}
GRAPH = [
    {
        "namespace": ["memories", "ada"],
        "key": "k1",
        "value": {"kind": "Memory", "content": {"content": "Ada prefers dark mode"}},
        "created_at": "2026-05-01T10:00:00+00:00",
        "updated_at": "2026-05-02T10:00:00+00:00",
    },
    {
        "namespace": ["memories", "ada"],
        "key": "k2",
        "value": {"content": "Ada keeps bees"},
        "created_at": "2026-05-01T11:00:00+00:00",
        "updated_at": "2026-05-01T11:00:00+00:00",
        "score": None,
    },
    {
        "namespace": ["profiles"],
        "key": "ada",
        "value": {"name": "Ada", "cities": ["Ghent", "Rome"]},
        "created_at": "2026-05-01T12:00:00+00:00",
        "updated_at": "2026-05-01T12:00:00+00:00",
    },
]


def put(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def notes(memory: Memory, user: str) -> dict[str, Any]:
    return {item.text: item for item in memory.list(user=user)}


def test_mem0_1_with_metadata_places_times_and_relations(memory: Memory, tmp_path: Path) -> None:
    path = put(tmp_path / "mem0.json", ONE)
    assert memory.import_(path) == 3
    found = notes(memory, "alex")
    sport = found["Loves basketball and gaming"]
    assert (sport.kind, sport.made_by, sport.metadata) == ("note", "mem0", {"category": "hobbies"})
    assert sport.recorded_at.isoformat() == "2025-10-22T11:40:22.864647+00:00"
    nuts = found["Is allergic to nuts"]
    assert nuts.metadata == {
        "actor_id": "Alex",
        "role": "user",
        "updated_at": "2025-10-23T04:41:00-07:00",
    }
    league = found["alex plays in city league"]
    assert (league.subject, league.predicate, league.object) == ("alex", "plays in", "city league")
    assert [hit.id for hit in memory.search("basketball", user="alex", agent="coach")] == [sport.id]
    assert memory.search("basketball", user="alex", session="r2") == []
    assert memory.search("nuts", user="alex", as_of="2025-10-01") == []
    assert memory.import_(path) == 0, "a second time adds nothing"
    assert [change.action for change in memory.history(sport.id)] == ["import"]
    memory.undo(sport.id)
    assert "Loves basketball and gaming" not in notes(memory, "alex")
    memory.redo(sport.id)
    assert memory.forget(sport.id).clean


def test_mem0_2_payloads_lists_and_lines(memory: Memory, tmp_path: Path) -> None:
    assert memory.import_(put(tmp_path / "two.json", TWO)) == 2
    assert memory.users() == ["guest", "kim"]
    dark = notes(memory, "kim")["Prefers dark mode"]
    assert dark.metadata == {"attributed_to": "user", "expiration_date": "2027-01-01"}
    assert memory.import_(put(tmp_path / "points.json", PAYLOADS), "mem0") == 1
    assert notes(memory, "kim")["Runs on Sundays"].metadata == {"mood": "keen"}
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps(one) + "\n" for one in TWO["results"]))
    assert memory.import_(lines) == 0, "the same memories in another wrapping"
    assert memory.import_(put(tmp_path / "list.json", TWO["results"]), user="both") == 2
    assert memory.import_(put(tmp_path / "one.json", TWO["results"][0]), user="one") == 1


def test_mem0_history_database_with_every_step(memory: Memory, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory "
        "TEXT, event TEXT, created_at DATETIME, updated_at DATETIME, is_deleted INTEGER, "
        "actor_id TEXT, role TEXT)"
    )
    first, second = "2025-01-01T00:00:00+00:00", "2025-02-01T00:00:00+00:00"
    third = "2025-03-01T00:00:00+00:00"
    rows = [
        ("1", "m1", None, "Likes tea", "ADD", first, None),
        ("2", "m1", "Likes tea", "Loves tea", "UPDATE", first, second),
        ("3", "m2", None, "Lives in Ghent", "ADD", first, first),
        ("4", "m2", "Lives in Ghent", None, "DELETE", first, third),
    ]
    db.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, 0, NULL, NULL)", rows)
    db.commit()
    db.close()
    with pytest.raises(ParameterError, match="does not tell whose"):
        memory.import_(path)
    assert memory.import_(path, user="kim") == 2
    assert list(notes(memory, "kim")) == ["Loves tea"]
    assert [(c.action, c.after.text) for c in memory.history("i1")] == [  # type: ignore[union-attr]
        ("import", "Likes tea"),
        ("edit", "Loves tea"),
    ]
    assert [i.text for i in memory.list(user="kim", known_at="2025-01-15")] == [  # type: ignore[union-attr]
        "Lives in Ghent",
        "Likes tea",
    ]
    assert memory.undo("i2")[0].is_live
    assert memory.import_(path, user="kim") == 0
    sqlite3.connect(tmp_path / "other.db").close()
    (tmp_path / "other.db").write_bytes(b"SQLite format 3\0 and nonsense")
    with pytest.raises(FormatError, match="no history of Mem0"):
        memory.import_(tmp_path / "other.db", user="kim")


def test_langmem_items_keep_namespace_key_and_value(memory: Memory, tmp_path: Path) -> None:
    path = put(tmp_path / "store.json", GRAPH)
    assert memory.import_(path) == 3
    assert memory.users() == ["memories.ada", "profiles"]
    dark = notes(memory, "memories.ada")["Ada prefers dark mode"]
    about = dark.metadata["langgraph"]
    assert (about["namespace"], about["key"]) == (["memories", "ada"], "k1")
    assert about["value"] == GRAPH[0]["value"]
    assert about["updated_at"] == "2026-05-02T10:00:00+00:00"
    [profile] = memory.list(user="profiles")
    assert json.loads(profile.text) == GRAPH[2]["value"]  # type: ignore[union-attr]
    assert memory.import_(path, "langmem") == 0
    assert memory.import_(path, user="ada") == 3, "all in one person's memory"
    assert memory.import_(put(tmp_path / "x.json", {"items": GRAPH}), user="ada") == 0
    assert memory.search("bees", user="ada")[0].text == "Ada keeps bees"


def test_what_langmems_managers_return(memory: Memory, tmp_path: Path) -> None:
    pairs = [["m-1", {"content": "Ada keeps bees"}], ["m-2", {"content": "Ada prefers dark mode"}]]
    path = put(tmp_path / "memories.json", pairs)
    with pytest.raises(ParameterError, match="no namespace"):
        memory.import_(path)
    assert memory.import_(path, user="ada") == 2
    assert set(notes(memory, "ada")) == {"Ada keeps bees", "Ada prefers dark mode"}


@pytest.mark.parametrize("cut", [1, 2])
def test_an_import_that_was_cut_off_goes_on(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    monkeypatch.setattr(memory_files, "_BATCH", 2)
    many = [{"id": f"m{n}", "memory": f"note {n}", "user_id": "kim"} for n in range(9)]
    path = put(tmp_path / "many.json", many)
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        seen.append((done, total))
        if len(seen) == cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.import_(path, progress=stop)
    assert seen[-1] == (2 * cut, 9)
    assert memory.import_(path) == 9 - 2 * cut
    assert len(memory.list(user="kim")) == 9
    for item in memory.list(user="kim"):
        assert [change.action for change in memory.history(item.id)] == ["import"]


def test_an_import_killed_in_a_batch_leaves_nothing_of_it(memory: Memory, tmp_path: Path) -> None:
    many = [{"id": f"m{n}", "memory": f"note {n}", "user_id": "kim"} for n in range(5)]
    many[3]["id"] = None  # type: ignore[assignment]
    path = put(tmp_path / "many.json", many)
    with pytest.raises(FormatError, match="memory 3 has no id"):
        memory.import_(path)
    assert memory.users() == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"id": "1", "memory": ""}], "memory 0 has no text"),
        ([{"id": "1", "memory": "x"}], "names no user"),
        ([{"memory": "x", "user_id": "a"}], "has no id"),
        (["memory"], "is no object"),
        ([{"id": "1", "memory": "x", "user_id": "a", "created_at": "soon"}], "created_at"),
        ({"results": [], "relations": [{"source": "a"}], "memory": 1}, "relation 0"),
        ([{"namespace": ["a"], "key": "k", "value": "text"}], "no value"),
        ([{"namespace": ["a"], "value": {}}], "no key"),
        ([{"namespace": ["a"], "key": "k", "value": {}, "updated_at": "soon"}], "updated_at"),
    ],
)
def test_files_that_are_not_as_they_should_be(
    memory: Memory, tmp_path: Path, data: object, words: str
) -> None:
    with pytest.raises((FormatError, ParameterError), match=words):
        memory.import_(put(tmp_path / "x.json", data))
    assert memory.users() == []


def test_an_export_keeps_where_memories_came_from(
    memory: Memory, tmp_path: Path, place: Any
) -> None:
    memory.import_(put(tmp_path / "mem0.json", ONE))
    memory.edit("i1", "Loves basketball")
    count = memory.export(tmp_path / "out.jsonl", user="alex")
    with Memory(place("other.db")) as other:
        assert other.import_(tmp_path / "out.jsonl") == count
        assert other.import_(put(tmp_path / "mem0.json", ONE)) == 0
        assert [c.action for c in other.history("i1")] == ["import", "edit"]
        assert other.import_(tmp_path / "out.jsonl") == 0
