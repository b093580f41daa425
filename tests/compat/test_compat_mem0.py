"""Mem0's calls, of 1.x and of 2.x, with the results they document."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from loci.compat.mem0 import AsyncMemory, Memory
from loci.compat.mem0_filters import GRAMMAR
from loci.core.clock import ManualClock
from loci.errors import LociError, ParameterError
from loci.memory import Memory as LociMemory
from loci.models.scripted import ScriptedLlm
from loci.run.memory import Memory as Remembered

TALK = [
    {"role": "user", "content": "I'm planning to watch a movie tonight. Any recommendations?"},
    {"role": "assistant", "content": "How about thriller movies? They can be quite engaging."},
    {
        "role": "user",
        "content": "I'm not a big fan of thriller movies but I love sci-fi movies.",
    },
    {
        "role": "assistant",
        "content": "Got it! I'll avoid thriller recommendations and suggest sci-fi movies in the "
        "future.",
    },
]


@pytest.fixture
def m() -> Iterator[Memory]:
    with Memory() as opened:
        yield opened


def texts(found: dict[str, Any]) -> list[str]:
    return [one["memory"] for one in found["results"]]


# -- the documented quick starts, unchanged but for the import -------------------------------------


def test_the_quick_start_of_2() -> None:
    from loci.compat.mem0 import Memory

    m = Memory()
    messages = [
        {"role": "user", "content": "Hi, I'm Alex. I love basketball and gaming."},
        {"role": "assistant", "content": "Hey Alex! I'll remember your interests."},
    ]
    m.add(messages, user_id="alex")
    results = m.search("What do you know about me?", filters={"user_id": "alex"})
    print(results)
    assert any("basketball" in one["memory"] for one in results["results"])
    assert all(one["user_id"] == "alex" and 0 <= one["score"] <= 1 for one in results["results"])
    m.close()


def test_the_quick_start_of_1() -> None:
    from loci.compat.mem0 import Memory

    m = Memory()
    messages = TALK
    # Store inferred memories (default behavior)
    result = m.add(messages, user_id="alice", metadata={"category": "movie_recommendations"})
    assert {one["event"] for one in result["results"]} == {"ADD"}
    # Get all memories
    all_memories = m.get_all(user_id="alice")
    memory_id = all_memories["results"][0]["id"]
    # Get a single memory by ID
    specific_memory = m.get(memory_id)
    assert specific_memory["memory"] == all_memories["results"][0]["memory"]
    related_memories = m.search(query="What do you know about me?", user_id="alice")
    assert len(related_memories["results"]) == len(all_memories["results"])
    result = m.update(memory_id=memory_id, data="I love India, it is my favorite country.")
    assert result == {"message": "Memory updated successfully!"}
    history = m.history(memory_id=memory_id)
    assert [one["event"] for one in history] == ["ADD", "UPDATE"]
    assert m.delete(memory_id=memory_id) == {"message": "Memory deleted successfully!"}
    assert m.delete_all(user_id="alice") == {"message": "Memories deleted successfully!"}
    m.reset()
    m.close()


def test_the_chat_of_the_readme(m: Memory) -> None:
    memory, asked = m, []

    class Completions:
        def create(self, *, model: str, messages: list[dict[str, str]]) -> Any:
            asked.append(messages)
            reply = type("Message", (), {"content": f"You said: {messages[-1]['content']}"})
            choice = type("Choice", (), {"message": reply})
            return type("Response", (), {"choices": [choice]})

    openai_client = type("Client", (), {"chat": type("Chat", (), {"completions": Completions()})})

    def chat_with_memories(message: str, user_id: str = "default_user") -> str:
        relevant_memories = memory.search(query=message, filters={"user_id": user_id}, top_k=3)
        memories_str = "\n".join(f"- {entry['memory']}" for entry in relevant_memories["results"])
        system_prompt = (
            "You are a helpful AI. Answer the question based on query and memories.\n"
            f"User Memories:\n{memories_str}"
        )
        messages = [
            {"role": "system", "content": system_prompt},
            {"role": "user", "content": message},
        ]
        response = openai_client.chat.completions.create(model="gpt-5-mini", messages=messages)
        assistant_response = response.choices[0].message.content
        messages.append({"role": "assistant", "content": assistant_response})
        memory.add(messages, user_id=user_id)
        return assistant_response

    chat_with_memories("I'm allergic to nuts")
    chat_with_memories("What can I eat? I'm allergic to what?")
    assert "allergic to nuts" in asked[1][0]["content"]
    turns = m.inner.list(user="default_user", kinds="turn")
    assert not any("User Memories" in turn.content for turn in turns), "no feedback loop"  # type: ignore[union-attr]


def test_the_async_quick_start() -> None:
    async def talk() -> None:
        memory = AsyncMemory()
        result = await memory.add(
            messages=[
                {"role": "user", "content": "I'm travelling to SF"},
                {"role": "assistant", "content": "That's great to hear!"},
            ],
            user_id="alice",
        )
        assert set(result) == {"results"}
        results = await memory.search(query="Where am I travelling?", filters={"user_id": "alice"})
        assert any("SF" in one["memory"] or "sf" in one["memory"] for one in results["results"])
        tasks = [
            memory.add(messages=[{"role": "user", "content": f"Message {i}"}], user_id=f"user_{i}")
            for i in range(5)
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not any(isinstance(result, Exception) for result in results)
        await memory.delete_all(user_id="alice")
        assert (await memory.get_all(user_id="alice"))["results"] == []
        await memory.close()

    asyncio.run(talk())


# -- shapes ----------------------------------------------------------------------------------------


def test_results_have_the_documented_keys(m: Memory) -> None:
    m.add(TALK, user_id="alice", agent_id="bot", run_id="r1", metadata={"category": "movies"})
    [one, *_] = m.search("sci-fi movies", user_id="alice")["results"]
    assert {"id", "memory", "hash", "metadata", "score", "created_at", "updated_at"} <= set(one)
    assert (one["user_id"], one["agent_id"], one["run_id"]) == ("alice", "bot", "r1")
    assert one["metadata"] == {"category": "movies"} and len(one["hash"]) == 32
    datetime.fromisoformat(one["created_at"])
    listed = m.get_all(filters={"user_id": "alice"})["results"]
    assert all("score" not in memory for memory in listed)
    got = m.get(one["id"])
    assert got is not None and got["score"] is None and got["metadata"] == {"category": "movies"}


def test_raw_messages_are_memories_of_their_own(m: Memory) -> None:
    said = [{"role": "system", "content": "be nice"}, {**TALK[0], "name": "Alice"}, TALK[1]]
    added = m.add(said, user_id="alice", infer=False)["results"]
    assert [(one["event"], one["role"], one["actor_id"]) for one in added] == [
        ("ADD", "user", "Alice"),
        ("ADD", "assistant", None),
    ]
    assert [one["memory"] for one in added] == [said[1]["content"], said[2]["content"]]
    found = {one["id"]: one for one in m.search("tonight", user_id="alice")["results"]}
    first = found[added[0]["id"]]
    assert (first["role"], first["actor_id"]) == ("user", "Alice")
    again = m.add(said, user_id="alice", infer=False)["results"]
    assert len(again) == 2 and again[0]["id"] != added[0]["id"]


def test_corrections_tell_what_they_replaced(m: Memory) -> None:
    m.add("I live in Ghent", user_id="ada")
    told = m.add("I moved to Rome", user_id="ada")["results"]
    assert sorted((one["event"], "Rome" in one["memory"]) for one in told) == [
        ("ADD", True),
        ("DELETE", False),
    ]
    m.add("I have a dog", user_id="ada")
    [update] = m.add("I have a dog named Rex", user_id="ada")["results"]
    assert update["event"] == "UPDATE" and "Rex" in update["memory"]
    assert "dog" in update["previous_memory"] and "Rex" not in update["previous_memory"]
    assert m.add("I have a dog named Rex", user_id="ada")["results"] == [], "nothing new"
    found = " ".join(texts(m.search("where do I live? Ghent or Rome", user_id="ada")))
    assert "Rome" in found and "Ghent" not in found


def test_the_history_of_a_memory_to_its_end(m: Memory) -> None:
    [one] = m.add("I live in Ghent", user_id="ada")["results"]
    m.update(one["id"], "Lives in Rome", {"checked": True})
    m.delete(one["id"])
    rows = m.history(one["id"])
    assert [(row["event"], row["old_memory"], row["new_memory"]) for row in rows] == [
        ("ADD", None, one["memory"]),
        ("UPDATE", one["memory"], "Lives in Rome"),
        ("DELETE", "Lives in Rome", None),
    ]
    assert [row["is_deleted"] for row in rows] == [False, False, True]
    assert set(rows[0]) == {
        *("id", "memory_id", "old_memory", "new_memory", "event", "created_at"),
        *("updated_at", "is_deleted", "actor_id", "role"),
    }
    assert m.get(one["id"]) is None and m.history("i999") == []
    assert texts(m.search("Ghent Rome", user_id="ada")) == [], "nor as it was said"
    back = m.undo(one["id"])
    assert back is not None and back["memory"] == "Lives in Rome"
    assert back["metadata"] == {"checked": True}


def test_metadata_is_merged_and_cannot_say_whose(m: Memory) -> None:
    [one] = m.add("I live in Ghent", user_id="ada", metadata={"a": 1, "b": 1})["results"]
    m.update(one["id"], metadata={"b": 2})
    found = m.get(one["id"])
    assert found is not None and found["metadata"] == {"a": 1, "b": 2}
    assert found["memory"] == one["memory"]
    assert texts(m.get_all(user_id="ada", filters={"b": 2})) == [one["memory"]]
    assert texts(m.get_all(user_id="ada", filters={"b": 1})) == []
    with pytest.raises(ValueError, match="cannot say whose"):
        m.update(one["id"], metadata={"user_id": "bob"})
    with pytest.raises(ValueError, match="cannot say whose"):
        m.add("x y z", user_id="ada", metadata={"user_id": "bob"})
    m.add("I like tea", user_id="ada", metadata={"user_id": "ada"})


# -- whose -----------------------------------------------------------------------------------------


def test_a_user_an_agent_a_run_and_their_combinations(m: Memory) -> None:
    m.add("I live in Ghent", user_id="ada", agent_id="a1", run_id="r1")
    m.add("I like tea", user_id="ada", agent_id="a2")
    m.add("I have a dog", user_id="bob", agent_id="a1")
    m.add("I sort the mail by date", agent_id="a1", infer=False)
    m.add("I answered in French", run_id="r1", infer=False)

    def found(**who: str) -> set[str]:
        old = {one["memory"].split()[-1] for one in m.get_all(**who)["results"]}  # type: ignore[arg-type]
        new = {one["memory"].split()[-1] for one in m.get_all(filters=who)["results"]}
        assert old == new
        return old

    assert found(user_id="ada") == {"Ghent", "tea"}
    assert found(user_id="ada", agent_id="a1") == {"Ghent"}
    assert found(agent_id="a1") == {"Ghent", "dog", "date"}
    assert found(run_id="r1") == {"Ghent", "French"}
    assert found(user_id="bob", run_id="r1") == set()
    every = m.get_all(filters={"AND": [{"user_id": "*"}, {"agent_id": {"in": ["a1", "a2"]}}]})
    assert len(every["results"]) == 4
    agent = m.search("mail", agent_id="a1")["results"][0]
    assert "user_id" not in agent and agent["agent_id"] == "a1"
    m.delete_all(agent_id="a1")
    assert found(user_id="ada") == {"tea"} and found(user_id="bob") == set()


def test_ids_are_text_numbers_are_taken(m: Memory) -> None:
    m.add("I live in Ghent", user_id=7)  # type: ignore[arg-type]
    assert len(m.get_all(user_id="7")["results"]) == 1
    assert len(m.get_all(filters={"user_id": {"eq": 7}})["results"]) == 1


@pytest.mark.parametrize("wrong", [{}, {"user_id": ""}, {"user_id": "  "}, {"user_id": ["a"]}])
def test_a_scope_that_is_missing_is_a_value_error(m: Memory, wrong: dict[str, Any]) -> None:
    for act in (
        lambda: m.add("x", **wrong),
        lambda: m.search("x", **wrong),
        lambda: m.search("x", filters=wrong),
        lambda: m.get_all(**wrong),
        lambda: m.get_all(filters=wrong),
        lambda: m.delete_all(**wrong),
    ):
        with pytest.raises(ValueError) as refused:
            act()
        assert isinstance(refused.value, LociError)


def test_both_styles_at_once_must_agree(m: Memory) -> None:
    m.add("I live in Ghent", user_id="ada")
    assert m.search("Ghent", user_id="ada", filters={"user_id": "ada"})["results"]
    with pytest.raises(ParameterError, match="given twice, and differently"):
        m.search("Ghent", user_id="ada", filters={"user_id": "bob"})
    with pytest.raises(ParameterError, match="two names of one thing"):
        m.search("Ghent", user_id="ada", limit=3, top_k=4)
    with pytest.raises(ParameterError, match="two names of one thing"):
        m.update("i1", "a", data="b")


def test_no_memory_of_another_user_is_returned(m: Memory) -> None:
    m.add("I live in Ghent", user_id="ada")
    m.add("I live in Rome", user_id="bob")
    for query in ("Ghent", "Rome", "where do I live?"):
        assert all(one["user_id"] == "ada" for one in m.search(query, user_id="ada")["results"])


# -- filters ---------------------------------------------------------------------------------------

FILTERS: list[tuple[dict[str, Any], set[int]]] = [
    ({"n": 1}, {1}),
    ({"n": {"eq": 1}}, {1}),
    ({"n": {"ne": 1}}, {0, 2}),
    ({"n": {"gt": 0, "lte": 2}}, {1, 2}),
    ({"n": {"gte": 1}}, {1, 2}),
    ({"n": {"lt": 1}}, {0}),
    ({"tag": {"in": ["t0", "t2"]}}, {0, 2}),
    ({"tag": {"nin": ["t0", "t2"]}}, {1}),
    ({"tag": {"contains": "1"}}, {1}),
    ({"tag": {"icontains": "T2"}}, {2}),
    ({"tag": "*"}, {0, 1, 2}),
    ({"missing": "*"}, set()),
    ({"AND": [{"n": {"gt": 0}}, {"tag": "t2"}]}, {2}),
    ({"OR": [{"n": 0}, {"tag": "t2"}]}, {0, 2}),
    ({"NOT": [{"n": 0}, {"tag": "t2"}]}, {1}),
    ({"AND": [{"OR": [{"n": 0}, {"n": 1}]}, {"NOT": [{"n": 0}]}]}, {1}),
    ({"role": "user", "n": 2}, {2}),
]


@pytest.mark.parametrize(("filters", "wanted"), FILTERS)
def test_filters_of_metadata(m: Memory, filters: dict[str, Any], wanted: set[int]) -> None:
    for n in range(3):
        m.add(f"bee {n}", user_id="ada", metadata={"n": n, "tag": f"t{n}"}, infer=False)
    for found in (
        m.search("bee", filters={"user_id": "ada", **filters}),
        m.search("bee", user_id="ada", filters=filters),
        m.get_all(filters={"user_id": "ada", **filters}),
    ):
        assert {int(text[-1]) for text in texts(found)} == wanted


@pytest.mark.parametrize(
    "filters",
    [
        {"n": {"~": 1}},
        {"n": {}},
        {"AND": {}},
        {"OR": []},
        {"NOT": "x"},
        {"OR": [{"user_id": "a"}, {"agent_id": "b"}]},
        {"agent_id": {"gt": "a"}},
        {"AND": ["x"]},
        [],
        "user_id=ada",
    ],
)
def test_a_bad_filter_shows_the_grammar(m: Memory, filters: Any) -> None:
    with pytest.raises(ParameterError) as refused:
        m.search("x", user_id="ada", filters=filters)
    assert GRAMMAR[1] in str(refused.value)


# -- ends, times, limits ---------------------------------------------------------------------------


def test_memories_with_an_end_are_hidden_after_it(m: Memory, monkeypatch: Any) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    m.add("I live in Ghent until the lease ends", user_id="ada", expiration_date=tomorrow)
    [one] = m.get_all(user_id="ada")["results"]
    assert one["expiration_date"] == tomorrow and one["metadata"] is None
    from loci.compat import mem0_shapes

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=3)

    monkeypatch.setattr(mem0_shapes, "datetime", Later)
    assert m.get_all(user_id="ada")["results"] == []
    assert m.search("Ghent", user_id="ada")["results"] == []
    assert len(m.search("Ghent", user_id="ada", show_expired=True)["results"]) == 1
    monkeypatch.undo()
    m.update(one["id"], expiration_date=None)
    assert "expiration_date" not in m.get_all(user_id="ada")["results"][0]
    for wrong in ("2020-01-01", "soon", 7):
        with pytest.raises(ValueError, match="expiration_date"):
            m.add("x y", user_id="ada", expiration_date=wrong)


def test_a_timestamp_is_when_it_was_said(tmp_path: Path) -> None:
    clock = ManualClock(datetime(2026, 6, 1, tzinfo=UTC))
    with Memory(memory=Remembered(tmp_path / "m.db", clock=clock)) as m:
        m.add("I live in Ghent", user_id="ada", timestamp=1704067200)
        m.add("I moved to Rome", user_id="ada", timestamp="2025-01-01T00:00:00+00:00")
        [then] = m.search("where do I live?", user_id="ada", reference_date="2024-06-01")["results"]
        assert "Ghent" in then["memory"]
        with pytest.raises(ValueError, match="in the future"):
            m.add("hello there", user_id="ada", timestamp="2027-01-01")


def test_limits_and_thresholds(m: Memory) -> None:
    for n in range(30):
        m.add(f"bee number {n}", user_id="ada", infer=False)
    assert len(m.search("bee", user_id="ada")["results"]) == 30
    assert len(m.search("bee", filters={"user_id": "ada"})["results"]) == 20
    assert len(m.search("bee", user_id="ada", limit=3)["results"]) == 3
    assert m.search("bee", user_id="ada", top_k=0)["results"] == []
    assert len(m.get_all(filters={"user_id": "ada"}, top_k=7)["results"]) == 7
    high = m.search("bee number 17", user_id="ada", threshold=0.9)["results"]
    assert high[0]["memory"] == "bee number 17" and len(high) < 30
    assert all(one["score"] >= 0.9 for one in high)
    explained = m.search("bee number 17", user_id="ada", limit=1, explain=True)["results"][0]
    assert "total" in explained["score_details"]
    for wrong in ({"top_k": -1}, {"top_k": 1.5}, {"threshold": 2}, {"threshold": "x"}):
        with pytest.raises(ValueError):
            m.search("bee", user_id="ada", **wrong)  # type: ignore[arg-type]
    for query in ("", "  ", None):
        with pytest.raises(ValueError):
            m.search(query, user_id="ada")  # type: ignore[arg-type]


# -- messages --------------------------------------------------------------------------------------


def test_messages_of_other_clients(m: Memory) -> None:
    told = m.add(
        [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "I live in Ghent"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
            {"role": "assistant", "content": "Noted.", "refusal": None, "annotations": []},
        ],
        user_id="ada",
    )
    assert [one["event"] for one in told["results"]] == ["ADD"]
    assert m.add([], user_id="ada") == {"results": []}
    assert m.add({"role": "user", "content": "I like tea"}, user_id="ada")["results"]
    picture = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    with pytest.raises(ValueError, match="a part that is no text"):
        m.add([{"role": "user", "content": [picture]}], user_id="ada")
    for wrong in (7, [7], [{"role": "wizard", "content": "x"}]):
        with pytest.raises(ValueError):
            m.add(wrong, user_id="ada")
    with pytest.raises(ValueError, match="leave prompt out"):
        m.add("I like tea", user_id="ada", prompt="only food")


def test_what_was_said_is_found_where_nothing_was_drawn(m: Memory) -> None:
    m.add("The gate code has the digits of pi backwards", user_id="ada")
    [one] = m.search("gate code", user_id="ada")["results"]
    assert one["id"].startswith("t") and one["role"] == "user"
    with pytest.raises(ValueError, match="as it was said, and stays so"):
        m.update(one["id"], "something else")
    m.delete(one["id"])
    assert m.search("gate code", user_id="ada")["results"] == []
    assert m.get(one["id"]) is None


def test_unknown_ids_are_value_errors(m: Memory) -> None:
    assert m.get("i999") is None and m.get("not-an-id") is None
    for act in (m.delete, m.forget, lambda id: m.update(id, "x")):
        for id in ("i999", "t999", "892db2ae-06d9-49e5-8b3e-585ef9b85b8e"):
            with pytest.raises(ValueError, match="not found"):
                act(id)


def test_deleting_keeps_and_forgetting_does_not(m: Memory) -> None:
    [one] = m.add("I'm allergic to walnuts", user_id="ada")["results"]
    m.delete(one["id"])
    path = m.inner.store.path  # type: ignore[attr-defined]
    assert m.history(one["id"])[-1]["old_memory"] == one["memory"]
    assert m.forget(one["id"]).clean and m.history(one["id"]) == []
    m.add("I'm allergic to walnuts", user_id="ada")
    m.delete_all(user_id="ada")
    m.add("I'm allergic to walnuts", user_id="bob")
    m.reset()
    assert not any(b"walnut" in file.read_bytes() for file in path.parent.glob("mem0.db*"))
    m.delete_all(user_id="nobody")


def test_memories_are_in_a_file_of_their_own(m: Memory, home: Path) -> None:
    m.add("I live in Ghent", user_id="ada")
    file = home / "data" / "mem0.db"
    assert m.inner.store.path == file and file.stat().st_mode & 0o777 == 0o600  # type: ignore[attr-defined]
    with LociMemory(embedder=None) as mine:
        mine.add("my red bicycle", user="ada")
        m.reset()
        assert mine.search("bicycle", user="ada")


def test_a_procedural_memory_needs_an_agent_and_a_model(tmp_path: Path) -> None:
    said = [{"role": "assistant", "content": "I opened the page and clicked on Send."}]
    llm = ScriptedLlm({"clicked on Send": "1. open the page; 2. click on Send"})
    with Memory(memory=Remembered(tmp_path / "m.db", llm=llm)) as m:
        [one] = m.add(said, agent_id="a1", memory_type="procedural_memory")["results"]
        assert one["memory"] == "1. open the page; 2. click on Send"
        found = m.get(one["id"])
        assert found is not None and found["metadata"] == {"memory_type": "procedural_memory"}
        with pytest.raises(ValueError, match="is of an agent"):
            m.add(said, user_id="ada", memory_type="procedural_memory")
        with pytest.raises(ValueError, match="unknown memory_type"):
            m.add(said, agent_id="a1", memory_type="semantic")
    with (
        Memory(memory=Remembered(tmp_path / "n.db")) as plain,
        pytest.raises(ValueError, match="rules cannot sum up"),
    ):
        plain.add(said, agent_id="a1", memory_type="procedural_memory")


def test_chat_is_not_implemented_as_in_mem0(m: Memory) -> None:
    with pytest.raises(NotImplementedError):
        m.chat("hello")
