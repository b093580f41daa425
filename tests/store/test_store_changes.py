"""History, undo, edits by hand."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loci.core.clock import ManualClock
from loci.core.item import Item, Link
from loci.errors import NotFoundError, StoreError
from loci.run.memory import Memory


def say(memory: Memory, text: str, time: str = "2026-01-01") -> None:
    memory.add([{"name": "Ada", "content": text, "time": time}], user="ada")


def live(memory: Memory) -> list[str]:
    return sorted(item.text for item in memory.list(user="ada"))  # type: ignore[union-attr]


def test_a_superseded_fact_is_kept_and_comes_back_with_undo(memory: Memory) -> None:
    say(memory, "I live in Ghent", "2024-01-01")
    say(memory, "I moved to Rome", "2025-01-01")
    assert live(memory) == ["Ada lives in Rome"]
    steps = memory.history("i1")
    assert [step.action for step in steps] == ["add", "retire"]
    assert steps[1].before.is_live and not steps[1].after.is_live  # type: ignore[union-attr]
    undone = memory.undo(steps[1].id)
    assert {item.id for item in undone} == {"i1", "i2"}
    assert live(memory) == ["Ada lives in Ghent"]
    assert memory.get("i1").valid_to is None  # type: ignore[union-attr]
    assert memory.search("Ghent", user="ada")[0].text == "Ada lives in Ghent"
    assert [step.undone for step in memory.history("i1")] == [False, True, False]


def test_undo_of_an_undo(memory: Memory) -> None:
    say(memory, "I live in Ghent")
    assert live(memory) == ["Ada lives in Ghent"]
    memory.undo("i1")
    assert live(memory) == []
    memory.undo(memory.history("i1")[-1].id)
    assert live(memory) == ["Ada lives in Ghent"]
    memory.undo("i1")
    assert live(memory) == []


def test_an_edit_by_hand_is_searched_and_undone(memory: Memory) -> None:
    say(memory, "I live in Ghent")
    edited = memory.edit("i1", "Ada lives near Bruges", reason="she said so")
    assert (edited.text, edited.version, edited.made_by) == ("Ada lives near Bruges", 2, "person")
    assert memory.search("Bruges", user="ada")[0].id == "i1"
    assert memory.history("i1")[-1].reason == "she said so"
    assert memory.undo("i1")[0].text == "Ada lives in Ghent"
    assert memory.get("i1").subject == "ada"  # type: ignore[union-attr]
    assert not memory.search("Bruges", user="ada", kinds="fact")


def test_later_changes_are_undone_first(memory: Memory) -> None:
    note = memory.note("one", user="ada")
    memory.edit(note.id, "two")
    memory.edit(note.id, "three")
    first, second, third = memory.history(note.id)
    with pytest.raises(StoreError, match=f"undo {third.id} first"):
        memory.undo(second.id)
    memory.undo(third.id)
    with pytest.raises(StoreError, match="undone before"):
        memory.undo(third.id)
    memory.undo(second.id)
    assert live(memory) == ["one"]
    memory.undo(first.id)
    assert live(memory) == []
    with pytest.raises(StoreError, match="nothing to undo"):
        memory.undo(note.id)


def test_retire_keeps_and_undo_brings_back(memory: Memory, clock: ManualClock) -> None:
    say(memory, "I'm allergic to nuts", "2026-01-01")
    retired = memory.retire("i1", at="2026-03-01")
    assert not retired.is_live and live(memory) == []
    assert memory.search("nuts", user="ada")[0].kind == "turn", "the turn is shown by itself again"
    then = memory.search("nuts", user="ada", as_of="2026-02-01", kinds="fact")
    assert [hit.text for hit in then] == ["Ada is allergic to nuts"]
    memory.undo("i1")
    assert live(memory) == ["Ada is allergic to nuts"]


def test_ids_nobody_has(memory: Memory) -> None:
    say(memory, "I live in Ghent")
    for id in ["i9", "t9", "c9", "", "x", "i-1", "i1x", None, "i" + "9" * 40]:
        with pytest.raises(NotFoundError):
            memory.get(id)  # type: ignore[arg-type]
    for act in (memory.undo, memory.history, memory.retire, memory.forget):
        with pytest.raises(NotFoundError):
            act("i9")
        with pytest.raises(NotFoundError):
            act("i1", user="bob")


def test_links_are_kept_once_and_undone(memory: Memory) -> None:
    one, two = memory.note("one", user="ada"), memory.note("two", user="ada")
    link = Link(source=one.id, relation="near", target=two.id)
    memory.store.add(
        memory._scope("ada"), memory_drafts(memory), lambda *_: [link, link], now(memory)
    )
    rows = memory.store.database.rows  # type: ignore[attr-defined]
    assert rows("SELECT relation FROM links") == [("near",)]
    memory.undo(memory.history(one.id)[-1].id)
    assert rows("SELECT relation FROM links") == []


def memory_drafts(memory: Memory):
    from datetime import UTC

    from loci.store.messages import drafts

    return drafts("hello", now=now(memory), assumed=UTC)


def now(memory: Memory):
    return memory.clock.now()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(["say", "edit", "retire", "undo"]), max_size=12))
def test_undoing_everything_leads_back_to_the_start(memory: Memory, steps: list[str]) -> None:
    note = memory.note("start", user="ada")
    start = memory.get(note.id)
    for number, step in enumerate(steps):
        if step == "edit":
            memory.edit(note.id, f"text {number}")
        elif step == "retire":
            memory.retire(note.id)
        elif step == "undo" and len([c for c in memory.history(note.id) if not c.undone]) > 1:
            open_ = [c for c in memory.history(note.id) if not c.undone and c.action != "undo"]
            if len(open_) > 1:
                memory.undo(note.id)
    while len([c for c in memory.history(note.id) if not c.undone and c.action != "undo"]) > 1:
        memory.undo(note.id)
    assert plain(memory.get(note.id)) == plain(start)  # type: ignore[arg-type]


def plain(item: Item) -> tuple[object, ...]:
    return (item.text, item.valid_to, item.retired_at, item.made_by, item.sources)
