"""Undo, redo, and the memory as it was: against a model of a list of texts and two stacks."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from memories import Plain

from loci.core.clock import ManualClock
from loci.errors import NotFoundError, StoreError
from loci.run.memory import Memory

START = datetime(2026, 6, 1, 12, tzinfo=UTC)


def opened(folder: Path) -> tuple[Memory, ManualClock]:
    clock = ManualClock(START)
    return Memory(folder / "m.db", recall=Plain(), clock=clock), clock


def say(memory: Memory, text: str, time: str = "2026-01-01", **scope: str) -> None:
    memory.add([{"name": "Ada", "content": text, "time": time}], user="ada", **scope)  # type: ignore[arg-type]


def live(memory: Memory, **asked: object) -> list[str]:
    return sorted(item.text for item in memory.list(user="ada", **asked))  # type: ignore[arg-type,union-attr]


@dataclass
class Expected:
    """One item as a person thinks of it: its states, and which of them stands."""

    states: list[str | None] = field(default_factory=list)  # None is retired
    at: int = 0

    @property
    def now(self) -> str | None:
        return self.states[self.at] if self.at >= 0 else None

    def do(self, state: str | None) -> None:
        del self.states[self.at + 1 :]
        self.states.append(state)
        self.at += 1


STEP = st.tuples(
    st.sampled_from(["note", "edit", "retire", "undo", "redo", "say"]), st.integers(0, 5)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=14))
@example([(step, 0) for step in ("note", "edit", "undo", "edit", "undo", "redo")])
def test_undo_redo_and_the_past_follow_the_model(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        memory, clock = opened(Path(folder))
        with memory:
            items: dict[str, Expected] = {}
            past: list[tuple[datetime, list[str]]] = [(clock.now(), [])]
            for number, (step, which) in enumerate(steps):
                clock.advance(60)
                act(memory, items, step, which, number)
                expected = sorted(item.now for item in items.values() if item.now is not None)
                assert live(memory) == expected, step
                past.append((clock.now(), expected))
            for time, expected in past:
                assert live(memory, known_at=time) == expected, "the past does not change"
            rows = memory.store.database.rows  # type: ignore[attr-defined]
            assert rows("PRAGMA integrity_check") == [("ok",)]


def act(memory: Memory, items: dict[str, Expected], step: str, which: int, number: int) -> None:
    if step in ("note", "say"):
        if step == "note":
            item = memory.note(f"note {number}", user="ada")
        else:
            [item] = memory.add(f"I'm allergic to thing{number}", user="ada").items
        items[item.id] = Expected([item.text])
        return
    if not items:
        return
    id = list(items)[which % len(items)]
    item = items[id]
    if step == "edit":
        if item.now is not None:
            memory.edit(id, f"text {number}")
            item.do(f"text {number}")
    elif step == "retire":
        if item.now is not None:
            memory.retire(id)
            item.do(None)
    elif step == "undo":
        if item.at < 0:
            with pytest.raises(StoreError, match="nothing to undo"):
                memory.undo(id)
        else:
            [now] = memory.undo(id)
            item.at -= 1
            assert (now.text if now.is_live else None) == item.now
    else:
        if item.at + 1 == len(item.states):
            with pytest.raises(StoreError, match="nothing to redo"):
                memory.redo(id)
        else:
            [now] = memory.redo(id)
            item.at += 1
            assert (now.text if now.is_live else None) == item.now


def test_what_the_rules_did_is_undone_and_redone_by_the_message(memory: Memory) -> None:
    say(memory, "I live in Ghent", "2024-01-01")
    say(memory, "I'm allergic to nuts. I moved to Rome", "2025-01-01")
    after = ["Ada is allergic to nuts", "Ada lives in Rome"]
    assert live(memory) == after
    assert {item.id for item in memory.undo("t2")} == {"i1", "i2", "i3"}
    assert live(memory) == ["Ada lives in Ghent"]
    assert memory.counts(user="ada")["turns"] == 2, "what was said stays"
    with pytest.raises(StoreError, match="no change that stands"):
        memory.undo("t2")
    memory.redo("t2")
    assert live(memory) == after
    rows = memory.store.database.rows  # type: ignore[attr-defined]
    assert rows("SELECT source, relation, target FROM links") == [(2, "supersedes", 1)]
    with pytest.raises(NotFoundError):
        memory.undo("t9")


def test_a_message_that_was_built_upon_is_not_undone_silently(memory: Memory) -> None:
    say(memory, "I live in Ghent")
    edited = memory.edit("i1", "Ada lives near Ghent")
    change = memory.history(edited.id)[-1].id
    with pytest.raises(StoreError, match=f"undo {change} first"):
        memory.undo("t1")
    assert live(memory) == ["Ada lives near Ghent"], "nothing half undone"


def test_a_new_change_ends_what_could_be_redone(memory: Memory) -> None:
    note = memory.note("one", user="ada")
    memory.edit(note.id, "two")
    memory.undo(note.id)
    memory.edit(note.id, "three")
    with pytest.raises(StoreError, match="nothing to redo"):
        memory.redo(note.id)
    assert [change.action for change in memory.history(note.id)] == ["add", "edit", "undo", "edit"]


def test_redo_by_the_change_and_undo_of_a_redo(memory: Memory) -> None:
    note = memory.note("one", user="ada")
    memory.edit(note.id, "two")
    edit = memory.history(note.id)[-1].id
    with pytest.raises(StoreError, match="not undone"):
        memory.redo(edit)
    memory.undo(edit)
    assert memory.redo(edit)[0].text == "two"
    redone = memory.history(note.id)[-1]
    assert redone.action == "redo"
    assert memory.undo(redone.id)[0].text == "one"
    assert memory.redo(note.id)[0].text == "two"


def test_all_changes_of_a_user_newest_first(memory: Memory) -> None:
    say(memory, "I live in Ghent")
    memory.edit("i1", "Ada lives near Ghent", reason="she said so")
    memory.note("bob's", user="bob")
    found = memory.changes(user="ada")
    assert [(change.action, change.made_by) for change in found] == [
        ("edit", "person"),
        ("add", "rules"),
    ]
    assert found[1].sources == ("t1",) and found[0].sources == ()
    assert [c.action for c in memory.changes(user="ada", made_by="rules")] == ["add"]
    assert [c.action for c in memory.changes(user="ada", limit=1, offset=1)] == ["add"]
    assert memory.changes(user="nobody") == []


def test_an_edited_item_is_found_by_what_it_said_then(memory: Memory, clock: ManualClock) -> None:
    note = memory.note("the key is under the flowerpot", user="ada")
    memory.note("the flowerpot is blue", user="ada")
    then = clock.now()
    clock.advance(60)
    memory.edit(note.id, "the key is with the neighbour")
    hits = memory.search("flowerpot key", user="ada", known_at=then)
    assert [hit.text for hit in hits] == ["the key is under the flowerpot", "the flowerpot is blue"]
    assert not memory.search("neighbour", user="ada", known_at=then)
    assert memory.search("neighbour", user="ada")[0].id == note.id


def test_a_retirement_taken_back_was_believed_in_between(
    memory: Memory, clock: ManualClock
) -> None:
    say(memory, "I'm allergic to nuts", "2026-01-01")
    clock.advance(60)
    memory.retire("i1", at="2026-03-01")
    between = clock.now()
    clock.advance(60)
    memory.undo("i1")
    assert live(memory, known_at=between) == []
    held = live(memory, known_at=between, as_of="2026-02-01")
    assert held == ["Ada is allergic to nuts"], "it was over, but had held"
    assert live(memory, known_at=between, as_of="2026-04-01") == []
    assert live(memory) == ["Ada is allergic to nuts"]
